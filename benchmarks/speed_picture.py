"""The picture of the speed: seconds for the same jobs, quickstudy beside its peers, from benchmarks/results/.

python benchmarks/speed_picture.py        # writes docs/pictures/speed.png
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
_PEER, _OURS = "#9aa3ad", "#1f6feb"


def main() -> None:
    """Draw the picture."""
    tutorial, tuning, race = (load(name) for name in ("keras_tutorial", "finetuning_keras", "training_race"))
    job = {name: values["median"] for name, values in tutorial["seconds"].items()}
    first, again = (tutorial["times_faster"][name]["median"] for name in ("first", "second"))
    theirs, classic = tuning["keras"]["seconds"], statistics.median(row["classic_seconds"] for row in race["rows"])
    jobs = [
        (
            "A new classifier on frozen InceptionV3, 244 photos\n(Keras's tutorial, 2 epochs)",
            [
                ("Keras on TensorFlow", job["keras"], 1),
                ("quickstudy, first time", job["first"], first),
                ("quickstudy, again", job["second"], again),
            ],
        ),
        (
            f"Fine-tuning InceptionV3, {tuning['images']} photos\n(Keras's guide; test accuracy in brackets)",
            [
                ("Keras on TensorFlow", theirs, 1, tuning["keras"]["test"]["accuracy"]),
                *(
                    (
                        f"quickstudy, {name}",
                        tuning["quickstudy"][name]["seconds"],
                        theirs / tuning["quickstudy"][name]["seconds"],
                        tuning["quickstudy"][name]["test"]["accuracy"],
                    )
                    for name in ("fine-tuned", "linear")
                ),
            ],
        ),
        (
            "CIFAR-10 from scratch to 86 %\n(the deep-CNN tutorial's system and recipe)",
            [
                ("classic recipe", classic, 1),
                ("cifar10-fast", race["wall_seconds"]["median"], race["times_sooner"]["median"]),
            ],
        ),
    ]
    figure, axes = plt.subplots(len(jobs), 1, figsize=(8.4, 5.6), height_ratios=[len(bars) for _, bars in jobs])
    for axis, (title, bars) in zip(axes, jobs, strict=True):
        longest = bars[0][1]
        for row, (name, seconds, times, *accuracy) in enumerate(bars):
            axis.barh(row, seconds, color=_OURS if row else _PEER, height=0.62)
            sooner = f", {times:.{0 if times >= 10 else 1}f} times sooner" if row else ""
            right = f" ({100 * accuracy[0]:.1f} %)" if accuracy else ""
            axis.text(seconds + longest * 0.012, row, f"{shown(seconds)}{right}{sooner}", va="center", fontsize=9)
            axis.text(-longest * 0.012, row, name, ha="right", va="center", fontsize=9)
        axis.set_title(title, loc="left", fontsize=9.5, fontweight="bold")
        axis.set(xlim=(0, longest * 1.35), ylim=(len(bars) - 0.5, -0.5), xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.text(0.99, 0.01, "Two cores, no GPU; shorter is better", ha="right", fontsize=8, color="#57606a")
    figure.tight_layout(rect=(0, 0.02, 1, 1), h_pad=1.6)
    figure.savefig(ROOT / "docs" / "pictures" / "speed.png", dpi=130)


def load(name: str) -> Any:
    """A result."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def shown(seconds: float) -> str:
    """Such as `0.23 s`, `64 s` and `43 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    main()
