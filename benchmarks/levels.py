"""What levels, and a second backbone, gain: whole image sets, and draws of few images from them.

    python benchmarks/levels.py --data FOLDER [--sets clothing,cifar10,mnist] [--draws 10]

FOLDER has the sets as `tests` take them: `clothing/` with split folders, `cifar10_jpeg.npz`, and MNIST's files. From
CIFAR-10 and MNIST come 2,000 images to draw from and 1,000 to test on, written as image files.

Each image passes once through EfficientNet-Lite0 and -Lite2, side by side and Lite0 alone. Then, on all images to train
on and on draws of 20, 50, 100 and 500 of them, as many of each class: the last features, all levels, and whichever
cross-validation chooses. Small draws are tested on the images that were not drawn and on the test images. `optimism` is
the cross-validated accuracy less the one on those.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common import chosen_point, save
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract_census
from quickstudy.bottlenecks.store import Store
from quickstudy.files import cache_folder
from quickstudy.images.census import take_census
from quickstudy.images.readers import read_mnist
from quickstudy.learning.links import link_of
from quickstudy.learning.selection import Head, choose_head, fit_head
from quickstudy.retraining.config import PRESETS

_DRAWN = (20, 50, 100, 500)
_TRAIN, _TEST = 2000, 1000


def write_small(data: Path, name: str, folder: Path) -> Path:
    """Write images of CIFAR-10 or MNIST as split folders with class folders in them."""
    images: Iterator[Image.Image]
    if name == "cifar10":
        held = np.load(data / "cifar10_jpeg.npz")
        jpeg, offsets, labels, names = held["jpeg"].tobytes(), held["offsets"], held["labels"], held["names"]
        images = (Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]])) for i in range(_TRAIN + _TEST))
    else:
        digits = read_mnist(data / "mnist")["train"]
        labels, names = digits.labels, digits.classes
        images = (Image.fromarray(digits.pixels[i].squeeze()) for i in range(_TRAIN + _TEST))
    for number, image in enumerate(images):
        place = folder / ("train" if number < _TRAIN else "test") / str(names[labels[number]]) / f"{number:05}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place)
    return folder


def judge(head: Head, kept: NDArray[np.floating], labels: NDArray[np.intp]) -> tuple[float, float]:
    """Work out log loss and accuracy."""
    logits, link = head.logits(kept[:, : len(head.weights)]), link_of(labels)
    return float(link.log_losses(logits, labels).mean()), float(link.right(logits, labels).mean())


def measure(
    kept: NDArray[np.floating],
    labels: NDArray[np.intp],
    keys: list[bytes],
    rows: NDArray[np.intp],
    others: tuple[NDArray[np.floating], NDArray[np.intp]],
    last: tuple[int, ...],
    widths: tuple[int, ...],
) -> dict[str, Any]:
    """Fit the three heads to these rows."""
    few, classes, found = [keys[row] for row in rows.tolist()], int(labels.max()) + 1, {}
    for name in ("last", "all", "chosen"):
        started = time.perf_counter()
        if name == "last":
            head = fit_head(kept[rows, : sum(last)], labels[rows], few, classes=classes, widths=last)
        elif name == "all":
            head = fit_head(kept[rows], labels[rows], few, classes=classes, widths=widths)
        else:
            head, _ = choose_head(kept[rows], labels[rows], few, classes=classes, last=last, widths=widths)
        seconds = time.perf_counter() - started
        log_loss, accuracy = judge(head, *others)
        best = chosen_point(head)
        found[name] = {
            "cv_log_loss": best.log_loss,
            "cv_accuracy": best.accuracy,
            "log_loss": log_loss,
            "accuracy": accuracy,
            "l2": head.l2,
            "features": len(head.weights),
            "seconds": seconds,
        }
    return found


def draw(labels: NDArray[np.intp], count: int, number: int) -> NDArray[np.intp]:
    """Draw as many images of each class, `count` in all."""
    rng = np.random.Generator(np.random.PCG64([count, number]))
    each = count // (int(labels.max()) + 1)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == k))[:each] for k in range(int(labels.max()) + 1)])


Part = tuple[list[bytes], NDArray[np.floating], NDArray[np.intp]]
"""Content hashes of images, what is kept of each, and their class numbers."""


def gather(
    folder: Path, backbone: str, cache: Path
) -> tuple[int, dict[str, Part], tuple[tuple[int, ...], tuple[int, ...]], float]:
    """Take a set's training and test images through a backbone, or from the store.

    Returns:
        The number of passes, both parts, the widths of the last features and of all levels, and the seconds it took.
    """
    net, store = load_backbone(backbone, cache), Store(cache / "bottlenecks")
    census = take_census(folder, store.index_path)
    started = time.perf_counter()
    extraction = extract_census(census, net, store)
    seconds = time.perf_counter() - started
    parts: dict[str, Part] = {}
    for part, chosen in (("train", census.targets("train", "validation")), ("test", census.targets("test"))):
        digests, labels = chosen
        parts[part] = digests, extraction.gather(digests, levels=True), labels
    return extraction.computed, parts, (net.widths, net.kept.widths), seconds


def of_set(folder: Path, backbone: str, cache: Path, draws: int) -> dict[str, Any]:
    """Measure one set with one backbone."""
    computed, parts, widths, seconds = gather(folder, backbone, cache)
    keys, kept, labels = parts["train"]
    test = parts["test"][1:]
    result: dict[str, Any] = {"bottleneck_seconds": seconds, "forward_passes": computed}
    result["whole"] = measure(kept, labels, keys, np.arange(len(labels)), test, *widths)
    for count in _DRAWN:
        runs = []
        for number in range(draws):
            rows = draw(labels, count, number)
            rest = np.setdiff1d(np.arange(len(labels)), rows)
            others = np.concatenate([kept[rest], test[0]]), np.concatenate([labels[rest], test[1]])
            runs.append(measure(kept, labels, keys, rows, others, *widths))
        result[str(count)] = {
            name: {
                "accuracy": statistics.mean(run[name]["accuracy"] for run in runs),
                "log_loss": statistics.mean(run[name]["log_loss"] for run in runs),
                "optimism": statistics.mean(run[name]["cv_accuracy"] - run[name]["accuracy"] for run in runs),
                "accuracies": [run[name]["accuracy"] for run in runs],
                "all_levels": sum(run[name]["features"] == sum(widths[1]) for run in runs),
            }
            for name in runs[0]
        }
    return result


def parser_of_sets(description: str | None) -> argparse.ArgumentParser:
    """Make a parser of the options that say which sets are measured, as `folders` reads them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default="clothing,cifar10,mnist")
    return parser


def folders(told: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Give the names of the sets that are asked for, each with its folder, which is there until the last was given."""
    with tempfile.TemporaryDirectory() as temporary:
        for name in told.sets.split(","):
            yield name, told.data / name if name == "clothing" else write_small(told.data, name, Path(temporary) / name)


def main() -> None:
    """Measure and write the result."""
    parser = parser_of_sets(__doc__)
    parser.add_argument("--draws", type=int, default=10)
    told = parser.parse_args()
    rows = {}
    for name, folder in folders(told):
        rows[name] = {
            preset: of_set(folder, PRESETS[preset].backbone, cache_folder(None), told.draws)
            for preset in ("good", "best")
        }
        save("levels", {"sets": rows})


if __name__ == "__main__":
    main()
