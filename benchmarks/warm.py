"""The whole command from process start to exit, cold and warm; its imports; and `quickstudy --help`.

python benchmarks/warm.py FOLDER [--runs 9]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from common import quickstudy, run_measured, save, spread

# What a warm run of `quickstudy retrain` imports, as its modules name it.
_IMPORTS = """
import quickstudy.cli.main, quickstudy.cli.display, quickstudy.retraining.retrain
import onnx, onnxruntime, pyarrow, pyarrow.ipc
"""


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        command = quickstudy(
            "retrain", str(options.folder), "--output", f"{temporary}/model.onnx", "--cache", f"{temporary}/cache"
        )
        cold = run_measured(command)
        warm = [run_measured(command) for _ in range(options.runs)]
        stages = json.loads(run_measured([*command, "--json"])["output"])
    imports = [run_measured([sys.executable, "-c", _IMPORTS])["wall_seconds"] for _ in range(options.runs)]
    bare = [run_measured([sys.executable, "-c", ""])["wall_seconds"] for _ in range(options.runs)]
    help_ = [run_measured(quickstudy("--help"))["wall_seconds"] for _ in range(options.runs)]
    save(
        "warm",
        {
            "training_images": sum(stages["train_counts"].values()),
            "cold_seconds": cold["wall_seconds"],
            "warm_seconds": spread([run["wall_seconds"] for run in warm]),
            "warm_peak_megabytes": max(run["peak_megabytes"] for run in warm),
            "warm_stages_seconds": stages["seconds"],
            "imports_seconds": spread(imports),
            "python_alone_seconds": spread(bare),
            "help_seconds": spread(help_),
        },
    )


if __name__ == "__main__":
    main()
