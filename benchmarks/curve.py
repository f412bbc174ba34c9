"""Draws accuracy against time for runs that an evaluator has followed, at the rate of a quiet machine.

    python benchmarks/curve.py runs/cifar10-classic --output docs/pictures/classic_curve.png

The evaluator and other work on the same cores slow a run down, so time is steps at the rate that `training.py race` has
measured for the classic recipe; the fast recipe's five runs, whole processes, are points beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from common import RESULTS
from quickstudy.scratch.folder import EVALUATIONS, RunFolder

_BATCH = 128


def main() -> None:
    """Read the run and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    race = json.loads((RESULTS / "training_race.json").read_text())
    rate = race["classic_examples_per_second"]["median"]
    lines = [line for line in RunFolder.existing(options.run).lines(EVALUATIONS) if line.get("split") == "test"]
    lines.sort(key=lambda line: line["step"])
    minutes = [line["step"] * _BATCH / rate / 60 for line in lines]
    figure = Figure(figsize=(6.6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(minutes, [100 * line["accuracy"] for line in lines], label=f"classic, to step {lines[-1]['step']:,}")
    axes.plot(
        [row["wall_seconds"] / 60 for row in race["rows"]],
        [100 * row["precision"] for row in race["rows"]],
        "o",
        markersize=4,
        label="fast, each of five seeds at its end",
    )
    axes.axhline(86, color="grey", linewidth=0.8, linestyle=":")
    whole = 60_000 * _BATCH / rate / 60
    axes.axvline(whole, color="grey", linewidth=0.8, linestyle=":")
    axes.annotate("60,000 classic steps", (whole, 50), rotation=90, ha="right", va="bottom", fontsize=8, color="grey")
    axes.set_xlabel("minutes on two cores")
    axes.set_ylabel("accuracy on the test images, %")
    axes.set_ylim(40, 90)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", bbox_to_anchor=(0.94, 0.02))
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
