"""The whole command from process start to exit, cold and warm; its imports; and `quickstudy --help`.

    python benchmarks/warm.py FOLDER [--runs 9]
    python benchmarks/warm.py FOLDER --before OTHER_CHECKOUT/src --colds 3 [--name warm_before]

With `--before`, another version and the presets of this one take turns, each with a cache of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import quickstudy, run_measured, save, spread

# What a warm run of `quickstudy retrain` imports, as its modules name it.
_IMPORTS = """
import quickstudy.cli.main, quickstudy.cli.display, quickstudy.retraining.retrain
import onnx, onnxruntime, pyarrow, pyarrow.ipc
"""
_SOURCE = Path(__file__).resolve().parent.parent / "src"


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=9, help="warm runs of each")
    parser.add_argument("--colds", type=int, default=1, help="cold runs of each, beside another version")
    parser.add_argument("--before", type=Path, help="the other version's src")
    parser.add_argument("--name", default="warm", help="of the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if options.before:
            save(options.name, in_turn(options, Path(temporary)))
        else:
            save(options.name, alone(options, Path(temporary)))


def alone(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure this version's cold and warm runs, their stages, and what they begin with."""
    command = quickstudy(
        "retrain", str(options.folder), "--output", f"{folder}/model.onnx", "--cache", f"{folder}/cache"
    )
    cold = run_measured(command)
    warm = [run_measured(command) for _ in range(options.runs)]
    stages = json.loads(run_measured([*command, "--json"])["output"])
    imports = [run_measured([sys.executable, "-c", _IMPORTS])["wall_seconds"] for _ in range(options.runs)]
    bare = [run_measured([sys.executable, "-c", ""])["wall_seconds"] for _ in range(options.runs)]
    help_ = [run_measured(quickstudy("--help"))["wall_seconds"] for _ in range(options.runs)]
    return {
        "training_images": sum(stages["train_counts"].values()),
        "cold_seconds": cold["wall_seconds"],
        "warm_seconds": spread([run["wall_seconds"] for run in warm]),
        "warm_peak_megabytes": max(run["peak_megabytes"] for run in warm),
        "warm_stages_seconds": stages["seconds"],
        "imports_seconds": spread(imports),
        "python_alone_seconds": spread(bare),
        "help_seconds": spread(help_),
    }


def in_turn(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure another version and the presets of this one in turn, cold and then warm, and their ratios."""
    kinds = {
        "before": (options.before.resolve(), ()),
        **{preset: (_SOURCE, ("--preset", preset)) for preset in ("fast", "good", "best")},
    }

    def run(kind: str) -> dict[str, Any]:
        source, words = kinds[kind]
        places = ("--output", f"{folder}/{kind}.onnx", "--cache", f"{folder}/{kind}")
        command = [sys.executable, "-m", "quickstudy", "retrain", str(options.folder), *places, *words]
        return run_measured(command, PYTHONPATH=str(source))

    found: dict[str, Any] = {}
    for state, rounds in (("cold", options.colds), ("warm", options.runs)):
        runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, mine in runs.items():
                if state == "cold":
                    shutil.rmtree(folder / kind, ignore_errors=True)
                mine.append(run(kind))
                print(state, kind, f"{mine[-1]['wall_seconds']:.2f} s", file=sys.stderr, flush=True)
        for clock in ("wall_seconds", "cpu_seconds"):
            found[f"{state}_{clock}"] = {kind: spread([one[clock] for one in mine]) for kind, mine in runs.items()}
            found[f"{state}_{clock}_times_before"] = {
                kind: statistics.median(
                    one[clock] / other[clock] for one, other in zip(mine, runs["before"], strict=True)
                )
                for kind, mine in runs.items()
                if kind != "before"
            }
    return found


if __name__ == "__main__":
    main()
