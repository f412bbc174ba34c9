"""Accuracy on a folder with train, validation and test splits: by the number of training images, by views, by engine.

    python benchmarks/accuracy.py FOLDER --cache CACHE [--few]

Trains on train and validation together. Subsets are drawn five times, evenly over the classes, for each preset; the
test images stay the same. Views and engines are compared with the preset `fast`. The store makes all but the first run
of each source a matter of a second.
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from common import chosen_point, save, spread
from quickstudy import evaluate, retrain
from quickstudy.images.distortions import Distortions
from quickstudy.images.imageset import ImageFile, load_image_set
from quickstudy.retraining.config import PRESETS
from quickstudy.retraining.result import RetrainResult

_DRAWS = 5
_FLIP_ONLY = Distortions(crop=0, scale=0, brightness=0)
_VIEWS = {
    "none": (0, None),
    "1, flip alone": (1, _FLIP_ONLY),
    "1, all four at 10 %": (1, Distortions()),
    "3, all four at 10 %": (3, Distortions()),
    "3, all four at 20 %": (3, Distortions(crop=0.2, scale=0.2, brightness=0.2)),
}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 100, 500])
    parser.add_argument("--few", action="store_true", help="measure by the number of training images alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "model.onnx"
        save("accuracy_few", {"draws": _DRAWS, "sizes": by_size(options.folder, options.sizes, model, options.cache)})
        if options.few:
            return
        fast = partial(retrain, options.folder, model, preset="fast", cache=options.cache)
        by_views = {}
        for name, (views, distortions) in _VIEWS.items():
            by_views[name] = describe(fast(views=views, distortions=distortions))
            print(name, by_views[name], flush=True)
        by_engine = {}
        for engine in ("onnxruntime", "openvino"):
            by_engine[engine] = describe(fast(engine=engine))
            # What counts in use: the model on its own, in ONNX Runtime, on the test photos.
            by_engine[engine]["model"] = evaluate(model, options.folder / "test").score.to_dict()
            print(engine, by_engine[engine], flush=True)
    save("accuracy", {"by_views": by_views, "by_engine": by_engine})


def by_size(folder: Path, sizes: list[int], model: Path, cache: Path) -> dict[str, Any]:
    """Train on subsets of these sizes, with each preset: how many are right in cross-validation, and of the test."""
    files, found = load_image_set(folder).files, {}
    for size in sizes:
        runs: dict[str, list[RetrainResult]] = {preset: [] for preset in PRESETS}
        for seed in range(_DRAWS):
            manifest = write_manifest(model.with_name("subset.csv"), draw(files, size, seed))
            for preset, mine in runs.items():
                mine.append(retrain(manifest, model, preset=preset, cache=cache))
        found[str(size)] = {
            preset: {
                "test": spread([run.test.score.accuracy for run in mine if run.test]),
                "cross_validated": spread([run.cross_validation.accuracy for run in mine]),
            }
            for preset, mine in runs.items()
        }
        print(size, found[str(size)], flush=True)
    return found


def describe(result: RetrainResult) -> dict[str, Any]:
    """What it scored."""
    return {
        "cross_validation": result.cross_validation.to_dict(),
        "log_loss": chosen_point(result.head).log_loss,
        "test": result.test.score.to_dict() if result.test else None,
    }


def draw(files: tuple[ImageFile, ...], size: int, seed: int) -> list[ImageFile]:
    """The test images and `size` of the others, as even over the classes as can be."""
    by_class: dict[str, list[ImageFile]] = defaultdict(list)
    for file in files:
        if file.split != "test":
            by_class[file.label].append(file)
    generator = random.Random(seed)
    for members in by_class.values():
        generator.shuffle(members)
    rounds = [members[place] for place in range(size) for members in by_class.values() if place < len(members)]
    return [file for file in files if file.split == "test"] + rounds[:size]


def write_manifest(path: Path, files: list[ImageFile]) -> Path:
    """A CSV manifest of these images."""
    with path.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["path", "label", "split"])
        writer.writerows([file.path.resolve(), file.label, file.split] for file in files)
    return path


if __name__ == "__main__":
    main()
