"""What an extra second buys: test accuracy against the seconds of the whole command, for presets and for cuts.

    python benchmarks/extra_seconds.py PHOTOS             # PHOTOS/<class>/*.jpg, or split folders
    python benchmarks/extra_seconds.py --draw             # docs/pictures/extra_seconds.png from the result

All photos are taken together, and two of five, drawn by content, are the test, so that intervals are narrow. Each
command starts with an empty cache, and is timed from process start to exit. Expected before it was run: `best` takes
2.8 times as long as `good`, cuts farther from the end take longer, and fine-tuning gains more than a preset does.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from common import RESULTS, fresh, photos, quickstudy, run_measured, save
from quickstudy.files import sha256_of_file

NAME = "extra_seconds"
PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / f"{NAME}.png"
COMMANDS = {
    "fast": ("--preset", "fast"),
    "good": ("--preset", "good"),
    "best": ("--preset", "best"),
    **{cut: ("--cut", cut) for cut in ("block_15", "block_13", "block_12")},
}
_TEST_SHARE = 0.4


def main() -> None:
    """Measure and write the result, or draw the last one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--draw", action="store_true", help="draw the picture of the last result")
    options = parser.parse_args()
    if options.folder is not None:
        save(NAME, measure(options.folder))
    if options.draw:
        draw(json.loads((RESULTS / f"{NAME}.json").read_text()))


def measure(folder: Path) -> dict[str, Any]:
    """Run each command once from an empty cache."""
    with tempfile.TemporaryDirectory() as temporary:
        manifest = Path(temporary) / "photos.csv"
        write_manifest(manifest, folder)
        rows = {}
        for name, given in COMMANDS.items():
            cache = fresh(Path(temporary) / "cache")
            command = quickstudy(
                "retrain", str(manifest), "--output", f"{temporary}/{name}.onnx", "--cache", str(cache)
            )
            found = run_measured([*command, *given, "--json", "--quiet"])
            values = json.loads(found["output"])
            rows[name] = {
                "seconds": found["wall_seconds"],
                "cpu_seconds": found["cpu_seconds"],
                "test": {key: values["test"][key] for key in ("accuracy", "right", "n", "interval_95")},
            }
            print(name, rows[name], flush=True)
    return {"training_images": sum(values["train_counts"].values()), "rows": rows}


def write_manifest(path: Path, folder: Path) -> None:
    """Name each photo once, with its folder as the label, and a split drawn by its content."""
    seen = set()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for photo in photos(folder):
            digest = sha256_of_file(photo)
            if digest not in seen:
                seen.add(digest)
                test = int(digest[:8], 16) / 16**8 < _TEST_SHARE
                writer.writerow([photo.resolve(), photo.parent.name, "test" if test else "train"])


def draw(values: dict[str, Any]) -> None:
    """Draw accuracy with its interval against seconds."""
    figure, axes = plt.subplots(figsize=(7.2, 3.9))
    for kind, colour, names in (
        ("presets: a head on one pass", "#1f6feb", ("fast", "good", "best")),
        ("--cut: fine-tuning after it", "#bf5b04", ("block_15", "block_13", "block_12")),
    ):
        rows = [values["rows"][name] for name in names]
        seconds, accuracy = ([row["seconds"] for row in rows], [100 * row["test"]["accuracy"] for row in rows])
        low, high = zip(*([100 * end for end in row["test"]["interval_95"]] for row in rows), strict=True)
        below, above = ([abs(a - b) for a, b in zip(accuracy, ends, strict=True)] for ends in (low, high))
        axes.errorbar(seconds, accuracy, [below, above], color=colour, marker="o", capsize=3, lw=1.4, label=kind)
        for name, x, y in zip(names, seconds, accuracy, strict=True):
            axes.annotate(name, (x, y), (6, -13), textcoords="offset points", fontsize=9, color=colour)
    test = next(iter(values["rows"].values()))["test"]["n"]
    axes.set(xscale="log", xlabel="seconds of the whole command, from an empty cache, on two cores")
    axes.set_ylabel(f"right of {test:,} test photos, %")
    axes.margins(x=0.12)
    ticks = [t for t in (10, 20, 30, 60, 120, 300, 600) if min(axes.get_xlim()) <= t <= max(axes.get_xlim())]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    main()
