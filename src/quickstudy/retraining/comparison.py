"""Two models on the same images: is one better, and on which images do they differ?

Both see the same images, so the difference is judged by the images on which exactly one of them is right; those on
which both are right, or both wrong, say nothing about it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from quickstudy.errors import ImageSetError
from quickstudy.images.imageset import Skipped, load_image_set
from quickstudy.intervals import paired_interval
from quickstudy.models.model import Model, load
from quickstudy.progress import Progress, silent
from quickstudy.retraining.evaluation import Score, is_among, training_images


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An image that the two models call differently."""

    path: Path
    label: str
    first: str
    """What the first model calls it."""
    second: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the same labelled images."""

    first: Score
    second: Score
    only_first: int
    """Images that the first alone gets right."""
    only_second: int
    differences: tuple[Difference, ...]
    """Images that they call differently, whether or not one is right; by path."""
    trained_on: int
    """Images among them that a model was trained on, as far as the split locks beside the models tell."""
    unknown: tuple[str, ...]
    """Classes of the images that not both models know; their images are not compared."""
    skipped: tuple[Skipped, ...]

    @property
    def difference(self) -> float:
        """The second's accuracy less the first's."""
        return (self.only_second - self.only_first) / self.first.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference."""
        low, high = paired_interval(self.only_second, self.only_first, self.first.n)
        return max(-1.0, low), min(1.0, high)

    @property
    def p_value(self) -> float:
        """McNemar's exact test: how probable so uneven a division is if the models are equally good (two-sided)."""
        return mcnemar(self.only_first, self.only_second)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "first": self.first.to_dict(),
            "second": self.second.to_dict(),
            "difference": self.difference,
            "interval_95": list(self.interval),
            "only_first_right": self.only_first,
            "only_second_right": self.only_second,
            "p_value": self.p_value,
            "trained_on": self.trained_on,
            "unknown_classes": list(self.unknown),
            "differences": [
                {"path": str(d.path), "label": d.label, "first": d.first, "second": d.second} for d in self.differences
            ],
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in self.skipped],
        }


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of McNemar's test (Psychometrika 12, 1947), from the binomial distribution with p = 1/2.

    Args:
        only_first: images that the first model alone gets right.
        only_second: images that the second alone gets right.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * float(Fraction(tail, 2**n)))


def compare(
    first: Model | str | Path, second: Model | str | Path, images: str | Path, *, progress: Progress = silent
) -> Comparison:
    """Score two models on the same labelled images.

    Of a set with a test split only that is used. Otherwise, images that a split lock beside one of the models has for
    training are left out; where nothing else remains, they are used, and `trained_on` counts them.

    Args:
        first: a model, or the path of one.
        second: the other.
        images: folder or manifest, as for `retrain`.
        progress: is told how far it has come.

    Raises:
        ModelError: a model cannot be loaded.
        ImageSetError: there is no image that can be used, of a class that both models know.
    """
    found = load_image_set(Path(images))
    trained = {d for path in (first, second) if not isinstance(path, Model) for d in training_images(Path(path))}
    models = [model if isinstance(model, Model) else load(model) for model in (first, second)]
    shared = set(models[0].classes) & set(models[1].classes)
    files = [file for file in found.files if file.split == "test"] if found.has_splits else list(found.files)
    unknown = tuple(sorted({file.label for file in files} - shared))
    files = [file for file in files if file.label in shared]
    seen = {file.path for file in files if is_among(file, trained)}
    if not found.has_splits and len(seen) < len(files):
        files, seen = [file for file in files if file.path not in seen], set()
    predicted: list[dict[Path, str]] = [{}, {}]
    skipped = {item.path: item for item in found.skipped}
    progress.start("comparing", 2 * len(files))
    try:
        for number, model in enumerate(models):
            predictions = model.predict_each(file.path for file in files)
            for place, (file, prediction) in enumerate(zip(files, predictions, strict=True), start=1):
                if prediction.probabilities is None:
                    skipped[file.path] = Skipped(path=file.path, reason=prediction.reason)
                else:
                    predicted[number][file.path] = model.classes[prediction.probabilities.argmax()]
                progress.update(done=number * len(files) + place, note="")
    finally:
        progress.finish()
    scored = [file for file in files if file.path in predicted[0] and file.path in predicted[1]]
    if not scored:
        raise ImageSetError(
            f"No usable image under '{images}' is of a class that both models know; classes are matched by name"
        )
    right = [[names[file.path] == file.label for file in scored] for names in predicted]
    return Comparison(
        first=Score(right=sum(right[0]), n=len(scored)),
        second=Score(right=sum(right[1]), n=len(scored)),
        only_first=sum(a and not b for a, b in zip(*right, strict=True)),
        only_second=sum(b and not a for a, b in zip(*right, strict=True)),
        differences=tuple(
            Difference(path=file.path, label=file.label, first=a, second=b)
            for file in scored
            if (a := predicted[0][file.path]) != (b := predicted[1][file.path])
        ),
        trained_on=len(seen),
        unknown=unknown,
        skipped=tuple(skipped.values()),
    )
