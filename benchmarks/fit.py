"""What each fit gains and costs: clothing photos as they are, and sets made of them where the whole picture matters.

    python benchmarks/fit.py --data FOLDER [--sets clothing,pairs,banners] [--draws 5]

FOLDER has `clothing/` with split folders. Of its photos are made `pairs`, two side by side, of four classes, where the
label is which two they are, whatever their order (ten classes, about 3:2); and `banners`, three times as wide as high,
where one photo stands somewhere along a plain wall of its own background's colour, and the label is that of the photo.
Both have 1,500 to train on and 500 to test on, made of the photos of the same role.

Each fit starts from an empty cache. `auto` does so, too, and then on draws of 100 and 300 training images: which fit is
chosen, and what that is worth on the test images beside `crop`.

    python benchmarks/fit.py --data FOLDER --margins

measures which level the margins of `pad` should have, cross-validated on 1,500 clothing photos, and

    python benchmarks/fit.py --data FOLDER --race 600

what `--backbone auto` finds within so many seconds on 1,000 of the clothing photos, each from an empty cache.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import tempfile
import time
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import quickstudy
from common import RESULTS, chosen_point, photos, save
from quickstudy.backbones.loading import load_backbone
from quickstudy.files import cache_folder
from quickstudy.images import decoding
from quickstudy.images.fits import FITS

_MADE = {"train": 1500, "test": 500}
_PAIRED = ("longsleeve", "pants", "shoes", "t-shirt")
_SIDE = 300


def make_set(clothing: Path, name: str, folder: Path) -> Path:
    """Make `pairs` or `banners` as split folders with class folders in them."""
    for part, count in _MADE.items():
        sources = photos(clothing / part)
        draws = np.random.Generator(np.random.PCG64([len(name), count]))
        by_class = {label: [path for path in sources if path.parent.name == label] for label in _PAIRED}
        pairs = list(combinations_with_replacement(_PAIRED, 2))
        for number in range(count):
            if name == "pairs":
                labels = pairs[number % len(pairs)]
                chosen = [by_class[label][int(draws.integers(len(by_class[label])))] for label in labels]
                made, label = side_by_side([chosen[place] for place in draws.permutation(2)]), "+".join(labels)
            else:
                path = sources[int(draws.integers(len(sources)))]
                made, label = on_a_banner(path, float(draws.uniform())), path.parent.name
            place = folder / part / label / f"{number:05}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            made.save(place, quality=90)
    return folder


def opened(path: Path) -> Image.Image:
    """A photo at a height of 300 pixels."""
    with Image.open(path) as image:
        return image.convert("RGB").resize((max(1, round(image.width * _SIDE / image.height)), _SIDE))


def side_by_side(paths: list[Path]) -> Image.Image:
    """Two photos of one height, one beside the other."""
    parts = [opened(path) for path in paths]
    whole = Image.new("RGB", (sum(part.width for part in parts), _SIDE))
    for number, part in enumerate(parts):
        whole.paste(part, (number * parts[0].width, 0))
    return whole


def on_a_banner(path: Path, share: float) -> Image.Image:
    """A photo somewhere, from the left (0) to the right end (1), on a wall of the colour of its own edges."""
    part = opened(path)
    edges = np.asarray(part)[:, [0, -1]].reshape(-1, 3)
    wall = Image.new("RGB", (3 * _SIDE, _SIDE), tuple(np.median(edges, axis=0).astype(int).tolist()))
    wall.paste(part, (round(share * (wall.width - part.width)), 0))
    return wall


def retrained(images: Path, cache: Path, **options: Any) -> quickstudy.RetrainResult:
    """A model of these images, thrown away."""
    return quickstudy.retrain(images, cache / "model.onnx", cache=cache, **options)


def described(result: quickstudy.RetrainResult, seconds: float) -> dict[str, Any]:
    """What is written down of a result."""
    assert result.test is not None
    return {
        "cv_log_loss": chosen_point(result.head).log_loss,
        "cv_accuracy": result.cross_validation.accuracy,
        "test": result.test.score.to_dict(),
        "forward_passes": result.computed,
        "seconds": seconds,
        "choices": [choice.to_dict() for choice in result.choices],
    }


def with_backbone(cache: Path) -> Path:
    """A cache folder with the backbone and nothing else."""
    usual = load_backbone("efficientnet_lite0", cache_folder(None))
    shutil.copytree(usual.path.parent, cache / "backbones", ignore=shutil.ignore_patterns("*lite2*", "files.sqlite*"))
    return cache


def drawn(images: Path, count: int, number: int, manifest: Path) -> Path:
    """A manifest of so many training images, spread over the classes as they come, and all test images."""
    draws = np.random.Generator(np.random.PCG64([count, number]))
    train = photos(images / "train")
    some = [train[place] for place in draws.permutation(len(train))[:count]]
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows([path, path.parent.name, "train"] for path in some)
        writer.writerows([path, path.parent.name, "test"] for path in photos(images / "test"))
    return manifest


def of_set(images: Path, folder: Path, draws: int) -> dict[str, Any]:
    """Measure all fits on one set."""
    found: dict[str, Any] = {}
    longest = "tiles3" if images.name == "banners" else "tiles2"
    filled = with_backbone(folder / "filled")
    for fit in [*(fit for fit in FITS if not fit.startswith("tiles")), longest, "auto"]:
        cache = with_backbone(folder / fit)
        started = time.perf_counter()
        result = retrained(images, cache, fit=fit)
        found[fit] = described(result, time.perf_counter() - started)
        print(images.name, fit, json.dumps(found[fit]["test"]), f"{found[fit]['cv_log_loss']:.3f}", flush=True)
        shutil.copytree(cache / "bottlenecks", filled / "bottlenecks", dirs_exist_ok=True)
        shutil.rmtree(cache)
    found["draws"] = {}
    for count in (100, 300):
        runs = []
        for number in range(draws):
            manifest = drawn(images, count, number, folder / "drawn.csv")
            crop, auto = (retrained(manifest, filled, fit=fit) for fit in ("crop", "auto"))
            assert crop.test is not None
            assert auto.test is not None
            scores = {"crop": crop.test.score.accuracy, "auto": auto.test.score.accuracy}
            runs.append({"chosen": auto.choices[0].chosen, **scores})
        found["draws"][str(count)] = runs
        print(images.name, count, runs, flush=True)
    return found


def of_margins(clothing: Path, folder: Path) -> dict[str, float]:
    """Cross-validate levels of the margins of `pad`."""
    manifest, found = drawn(clothing, 1500, 0, folder / "drawn.csv"), {}
    for level in (0, 127, 255):
        decoding.MARGIN = level
        result = retrained(manifest, with_backbone(folder / str(level)), fit="pad")
        found[str(level)] = chosen_point(result.head).log_loss
    return found


def of_race(clothing: Path, folder: Path, limits: list[str]) -> dict[str, Any]:
    """Let backbones race within so many seconds."""
    found, manifest = {}, drawn(clothing, 1000, 0, folder / "drawn.csv")
    for limit in limits:
        started = time.perf_counter()
        cache = with_backbone(folder / limit)
        result = retrained(manifest, cache, backbone="auto", race_seconds=float(limit))
        found[limit] = {**described(result, time.perf_counter() - started), "stages": result.seconds}
    return found


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default="clothing,pairs,banners")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--margins", action="store_true")
    parser.add_argument("--race", metavar="SECONDS,…")
    told = parser.parse_args()
    before = RESULTS / "fit.json"
    result: dict[str, Any] = json.loads(before.read_text()) if before.exists() else {"sets": {}}
    result.pop("machine", None)
    clothing = told.data.resolve() / "clothing"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if told.margins:
            save("fit", {**result, "margins": of_margins(clothing, folder)})
            return
        if told.race:
            save("fit", {**result, "race": {"clothing": of_race(clothing, folder, told.race.split(","))}})
            return
        for name in told.sets.split(","):
            images = clothing if name == "clothing" else make_set(clothing, name, folder / name)
            result["sets"][name] = of_set(images, folder / f"caches of {name}", told.draws)
            save("fit", result)


if __name__ == "__main__":
    main()
