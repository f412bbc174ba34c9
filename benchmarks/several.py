"""Several labels an image: how long it takes, and how good it is, on collages of real photos.

    python benchmarks/several.py speed --data FOLDER [--images 5000]
    python benchmarks/several.py quality --data FOLDER [--images 2000]

FOLDER has `clothing/` with split folders and `cifar10_jpeg.npz`. A collage has four fields, of which one to four hold a
photo; in every tenth none does.

Speed: 80 labels, each of ten kinds of clothing and ten of CIFAR-10 in each of four fields. `quickstudy retrain` runs
until all bottlenecks are there, then three times; the time is that of the whole process, and the median counts.

Quality: the kinds of clothing that a collage shows. Collages to learn from are made of the training photos, those to
test on of the test photos. Beside it, a model of one class an image learns the same training photos, as small as they
are in a collage, and is tested on the test photos: what is a kind in a photo of its own must be easier than among four.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common import save

_SIDE = 144
Photo = Callable[[random.Random], Image.Image]


def clothing(data: Path, splits: Sequence[str]) -> dict[str, Photo]:
    """Give for each kind of clothing what draws a photo of it."""

    def drawer(paths: list[Path]) -> Photo:
        return lambda draws: Image.open(draws.choice(paths))

    folders = [data / "clothing" / split for split in splits]
    kinds = sorted({kind.name for folder in folders for kind in folder.iterdir() if kind.is_dir()})
    return {kind: drawer([path for folder in folders for path in sorted((folder / kind).glob("*"))]) for kind in kinds}


def cifar10(data: Path) -> dict[str, Photo]:
    """Give for each class of CIFAR-10 what draws an image of it."""
    held = np.load(data / "cifar10_jpeg.npz")
    jpeg, offsets, labels = held["jpeg"].tobytes(), held["offsets"], held["labels"]

    def drawer(rows: list[int]) -> Photo:
        def draw(draws: random.Random) -> Image.Image:
            row = draws.choice(rows)
            return Image.open(io.BytesIO(jpeg[offsets[row] : offsets[row + 1]]))

        return draw

    return {str(name): drawer(np.flatnonzero(labels == k)[:2000].tolist()) for k, name in enumerate(held["names"])}


def shrunk(photo: Image.Image) -> Image.Image:
    """Make a photo as small as it is in a collage: its centred square."""
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    return photo.convert("RGB").crop((left, top, left + side, top + side)).resize((_SIDE, _SIDE))


def make_collages(
    folder: Path, count: int, photos: dict[str, Photo], *, by_field: bool, seed: int
) -> list[tuple[str, list[str]]]:
    """Write collages; give the name and the labels of each."""
    folder.mkdir(parents=True)
    found = []
    kinds = sorted(photos)
    for number in range(count):
        draws = random.Random(f"{seed} {number}")
        picture = Image.new("RGB", (2 * _SIDE, 2 * _SIDE), tuple(draws.randrange(96, 160) for _ in range(3)))
        chosen = [] if number % 10 == 9 else [draws.choice(kinds) for _ in range(draws.randint(1, 4))]
        labels = set()
        for field, kind in zip(draws.sample(range(4), len(chosen)), chosen, strict=True):
            picture.paste(shrunk(photos[kind](draws)), (field % 2 * _SIDE, field // 2 * _SIDE))
            labels.add(f"{kind} {field}" if by_field else kind)
        name = f"{number:05}.jpg"
        picture.save(folder / name, quality=90)
        found.append((name, sorted(labels)))
    return found


def write_manifest(path: Path, rows: Sequence[tuple[str, list[str], str]]) -> Path:
    """Write a manifest of images, their labels and their splits."""
    lines = ["path,labels,split", *(f"{name},{'|'.join(labels)},{split}" for name, labels, split in rows)]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def retrain(*words: str | Path) -> tuple[dict[str, Any], float, float]:
    """Run the command; give what it says, and how many seconds the process took, and how many of all cores' time."""
    began, spent = time.perf_counter(), os.times()
    command = [sys.executable, "-m", "quickstudy", "retrain", *map(str, words), "--json", "--quiet"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    now = os.times()
    cores = now.children_user - spent.children_user + now.children_system - spent.children_system
    return json.loads(done.stdout), time.perf_counter() - began, cores


def measure_speed(data: Path, images: int, scratch: Path) -> dict[str, Any]:
    """Measure the time of a warm run."""
    photos = {f"clothing {name}": draw for name, draw in clothing(data, ["train"]).items()}
    photos |= {f"cifar {name}": draw for name, draw in cifar10(data).items()}
    made = make_collages(scratch / "img", images, photos, by_field=True, seed=1)
    manifest = write_manifest(scratch / "tags.csv", [(f"img/{name}", labels, "") for name, labels in made])
    words = (manifest, "--several", "-o", scratch / "m.onnx")
    retrain(*words)
    runs = [retrain(*words) for _ in range(3)]
    result = runs[0][0]
    return {
        "images": images,
        "labels": len(result["classes"]),
        "seconds": [seconds for _, seconds, _ in runs],
        "median_seconds": statistics.median(seconds for _, seconds, _ in runs),
        "core_seconds": [seconds for *_, seconds in runs],
        "stages": result["seconds"],
        "levels": result["head"]["levels"],
        "l2": result["head"]["l2"],
        "forward_passes": [found["forward_passes"] for found, *_ in runs],
        "average_precision": result["test"]["several"]["average_precision"],
    }


def measure_quality(data: Path, images: int, scratch: Path) -> dict[str, Any]:
    """Measure figures on collages, and the accuracy of one class an image on the parts."""
    rows: list[tuple[str, list[str], str]] = []
    for split, count, seed in (("train", images, 2), ("test", images // 4, 3)):
        made = make_collages(scratch / split, count, clothing(data, [split]), by_field=False, seed=seed)
        rows += [(f"{split}/{name}", labels, split) for name, labels in made]
    several, *_ = retrain(write_manifest(scratch / "tags.csv", rows), "--several", "-o", scratch / "several.onnx")
    parts = scratch / "parts"
    for split in ("train", "test"):
        for path in sorted((data / "clothing" / split).glob("*/*")):
            place = parts / split / path.parent.name / f"{path.stem}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            shrunk(Image.open(path)).save(place, quality=90)
    one, *_ = retrain(parts, "-o", scratch / "one.onnx")
    figures = several["test"]["several"]
    return {
        "train": sum(split == "train" for *_, split in rows),
        "test": several["test"]["n"],
        **{name: figures[name] for name in ("average_precision", "f1_micro", "f1_macro", "exact_match")},
        "labels": figures["labels"],
        "thresholds": several["thresholds"]["values"],
        "one_class_a_part": {name: one["test"][name] for name in ("accuracy", "n", "interval_95")},
        "one_class_a_part_by_class": one["test"]["classes"],
    }


def main() -> None:
    """Measure, and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "quality"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, help="number of collages to learn from [default: 5000 or 2000]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.what == "speed":
            found = measure_speed(arguments.data, arguments.images or 5000, Path(scratch))
        else:
            found = measure_quality(arguments.data, arguments.images or 2000, Path(scratch))
    save(f"several_{arguments.what}", found)


if __name__ == "__main__":
    main()
