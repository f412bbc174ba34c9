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
from quickstudy.files import as_path
from quickstudy.images.census import take_census
from quickstudy.images.imageset import Skipped
from quickstudy.learning.intervals import paired_interval
from quickstudy.models.model import Model, load
from quickstudy.models.roles import Judgement, may_judge
from quickstudy.progress import Progress, silent
from quickstudy.retraining.evaluation import Score, ask, stat_index


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
    judgement: Judgement
    """What the set's images are to the models, by the model that is nearest to it, and which were left out for that."""
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
            **self.judgement.to_dict(),
            "unknown_classes": list(self.judgement.unknown),
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
    first: Model | str | Path,
    second: Model | str | Path,
    images: str | Path,
    *,
    everything: bool = False,
    cache: str | Path | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Score two models on the same labelled images, of which neither has learned or been chosen by any.

    Of a set with a test split only that is used. Each content counts once.

    Args:
        first: a model, or the path of one.
        second: the other.
        images: folder or manifest, as for `retrain`.
        everything: take all images, whatever they are to the models; the result says whether that is a test.
        cache: folder whose stat index spares hashing unchanged files; see `quickstudy.files.cache_folder`.
        progress: is told how far it has come.

    Raises:
        ModelError: a model cannot be loaded.
        ImageSetError: there is no image that can be used, of a class that both models know, that is a test of both.
    """
    models = [model if isinstance(model, Model) else load(model) for model in (first, second)]
    census = take_census(as_path(images), stat_index(cache), progress=progress)
    shared = set(models[0].classes) & set(models[1].classes)
    judgement = may_judge(census, [model.roles for model in models], classes=shared, everything=everything)
    contents = judgement.contents
    predicted: list[dict[bytes, str]] = []
    skipped = {item.path: item for item in census.skipped}
    progress.start("comparing", 2 * len(contents))
    try:
        for number, model in enumerate(models):
            said, unusable = ask(model, contents, progress, before=number * len(contents))
            predicted.append(said)
            skipped.update((item.path, item) for item in unusable)
    finally:
        progress.finish()
    scored = [content for content in contents if all(content.digest in names for names in predicted)]
    if not scored:
        raise ImageSetError(f"No image under '{images}' of a class that both models know can be used")
    right = [[names[content.digest] == content.label for content in scored] for names in predicted]
    differences = (
        Difference(path=c.path, label=c.label or "", first=predicted[0][c.digest], second=predicted[1][c.digest])
        for c in scored
    )
    return Comparison(
        first=Score(right=sum(right[0]), n=len(scored)),
        second=Score(right=sum(right[1]), n=len(scored)),
        only_first=sum(a and not b for a, b in zip(*right, strict=True)),
        only_second=sum(b and not a for a, b in zip(*right, strict=True)),
        differences=tuple(sorted((d for d in differences if d.first != d.second), key=lambda d: str(d.path))),
        judgement=judgement,
        skipped=tuple(skipped.values()),
    )
