"""Scores: shares of right answers with what chance could have made of them, by class, and of two judges compared.

Everything that says how good something is says it by these.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Score:
    """A share of right answers with its 95 % interval (Wilson, 1927), which holds for few images too."""

    right: int
    """Number of right answers."""
    n: int
    """Number of images."""

    @property
    def accuracy(self) -> float:
        """Share of right answers, between 0 and 1; NaN for no images."""
        return self.right / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the accuracy's 95 % interval; 0 to 1 for no images."""
        return share_interval(self.right, self.n)

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {
            "accuracy": self.accuracy if self.n else None,
            "right": self.right,
            "n": self.n,
            "interval_95": list(self.interval),
        }


def told_of_never_held_out(images: int, n: int, *, several: bool = False) -> str:
    """Say that cross-validation does not judge some images, such as `1 of 301 images is not in it, …`.

    Args:
        images: how many are not judged; the text is empty where there are none.
        n: how many are.
        several: whether an image may have several labels.
    """
    if not images:
        return ""
    are, each = ("is", "it is") if images == 1 else ("are", "each is")
    why = "too few others have, or lack, one of the labels" if several else f"{each} the only one of its class"
    return f"{images:,} of {images + n:,} images {are} not in it, since {why}"


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class: how many of its images were found, and how many called so were right."""

    name: str
    """Name of the class."""
    n: int
    """Number of its images."""
    predicted: int
    """Number of images that were taken for it."""
    right: int
    """Number of its images that were taken for it."""

    @property
    def precision(self) -> float | None:
        """Share of the images taken for it that are of it; None where none was taken for it."""
        return self.right / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """Share of its images that were taken for it; None where it has none."""
        return self.right / self.n if self.n else None


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """So many images of one class were taken for another."""

    truth: str
    """Name of the images' class."""
    predicted: str
    """Name of the class that they were taken for."""
    count: int
    """Number of these images."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float | None
    """The figure; None where there is nothing to tell it by."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {"value": self.value, "interval_95": [self.low, self.high]}


@dataclass(frozen=True, kw_only=True)
class SeveralScores:
    """What is measured where an image may have several labels, from 0 to 1, with intervals.

    Intervals are by bootstrap over images, and Wilson's for the share of the images all of whose labels are right.
    """

    average_precision: Interval
    """Mean over the labels of the average precision: how well probabilities put images in order."""
    f1_micro: Interval
    """F1 of all labels' answers together."""
    f1_macro: Interval
    """Mean over the labels of their F1."""
    exact_match: Interval
    """Share of the images all of whose labels are right."""
    labels: Mapping[str, Mapping[str, Interval]]
    """Figures of each label, by its name: `average_precision`, `precision`, `recall` and `f1`."""

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {
            **{name: getattr(self, name).to_dict() for name in SEVERAL_FIGURES},
            "labels": {
                name: {what: figure.to_dict() for what, figure in figures.items()}
                for name, figures in self.labels.items()
            },
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> SeveralScores:
        """Make them of what `to_dict` gave."""
        return SeveralScores(
            **{name: _interval_of(values[name]) for name in SEVERAL_FIGURES},
            labels={
                name: {what: _interval_of(figure) for what, figure in figures.items()}
                for name, figures in values["labels"].items()
            },
        )


SEVERAL_FIGURES = {
    "average_precision": "Mean average precision",
    "f1_micro": "F1, micro",
    "f1_macro": "F1, macro",
    "exact_match": "All labels right",
}
"""The figures over all labels, and what they are called."""


def _interval_of(values: Mapping[str, Any]) -> Interval:
    low, high = values["interval_95"]
    return Interval(value=values["value"], low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What came out on labelled images: in all, by class, and what was mistaken for what.

    Where an image may have several labels, an answer is right if all of them are, an image of a class is one that has
    the label, and what was mistaken for what are labels that were missed and others that were given instead.
    """

    score: Score
    """The share of right answers in all."""
    classes: tuple[ClassScore, ...]
    """Each class of the model, in its order."""
    confusions: tuple[Confusion, ...]
    """Pairs of classes of which one was taken for the other, the most frequent first."""
    missing: tuple[str, ...] = ()
    """Classes of the model of which there was no image."""
    unknown: Mapping[str, int] = field(default_factory=dict)
    """Number of images of each class that the model does not know; they are not scored."""
    several: SeveralScores | None = None
    """What is measured besides where an image may have several labels; None where each has one."""

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {
            **self.score.to_dict(),
            **({"several": self.several.to_dict()} if self.several else {}),
            "classes": [{**asdict(c), "precision": c.precision, "recall": c.recall} for c in self.classes],
            "confusions": [asdict(confusion) for confusion in self.confusions],
            "missing_classes": list(self.missing),
            "unknown_classes": list(self.unknown),
            "unknown_images": dict(self.unknown),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Scores:
        """Make scores of what `to_dict` gave."""
        return Scores(
            score=Score(right=values["right"], n=values["n"]),
            classes=tuple(
                ClassScore(**{name: c[name] for name in ("name", "n", "predicted", "right")}) for c in values["classes"]
            ),
            confusions=tuple(Confusion(**confusion) for confusion in values["confusions"]),
            missing=tuple(values["missing_classes"]),
            unknown=dict(values["unknown_images"]),
            several=SeveralScores.from_dict(values["several"]) if "several" in values else None,
        )


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two judges of the same images.

    The difference is judged by the images on which exactly one of them is right; those on which both are right, or both
    wrong, say nothing about it.
    """

    first: Score
    """The first judge's score."""
    second: Score
    """The second judge's score."""
    only_first: int
    """Number of images that the first alone gets right."""
    only_second: int
    """Number of images that the second alone gets right."""

    @staticmethod
    def of(first: Sequence[bool], second: Sequence[bool]) -> Paired:
        """Pair what two judges got right, image by image."""
        return Paired(
            first=Score(right=sum(first), n=len(first)),
            second=Score(right=sum(second), n=len(second)),
            only_first=sum(a and not b for a, b in zip(first, second, strict=True)),
            only_second=sum(b and not a for a, b in zip(first, second, strict=True)),
        )

    @property
    def difference(self) -> float:
        """The second's accuracy less the first's, from -1 to 1."""
        return (self.only_second - self.only_first) / self.first.n

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % interval of the difference."""
        low, high = paired_interval(self.only_second, self.only_first, self.first.n)
        return max(-1.0, low), min(1.0, high)

    @property
    def p_value(self) -> float:
        """How probable so uneven a division is if the judges are equally good: McNemar's exact test, two-sided."""
        return mcnemar(self.only_first, self.only_second)


def score_predictions(
    truth: Sequence[str],
    predicted: Sequence[str],
    classes: Sequence[str],
    *,
    unknown: Mapping[str, int] | None = None,
) -> Scores:
    """Compare predicted class names with the true ones.

    Args:
        truth: true class by image.
        predicted: predicted class by image.
        classes: all classes of the model, in its order.
        unknown: number of images by class, of classes that the model does not know.
    """
    return _scores_of(Counter(zip(truth, predicted, strict=True)), classes, unknown or {})


def score_numbers(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: Sequence[str]) -> Scores:
    """Compare predicted class numbers with the true ones, by image: a fiftieth of the time that names take."""
    import numpy as np  # here, as the command line's help does without

    many = len(classes)
    table = np.bincount(truth * many + predicted, minlength=many * many)
    there = np.flatnonzero(table).tolist()
    return _scores_of({(classes[at // many], classes[at % many]): int(table[at]) for at in there}, classes, {})


def _scores_of(pairs: Mapping[tuple[str, str], int], classes: Sequence[str], unknown: Mapping[str, int]) -> Scores:
    """Make scores of the number of images by true and predicted class."""
    counts, called = Counter[str](), Counter[str]()
    for (true, said), count in pairs.items():
        counts[true] += count
        called[said] += count
    wrong = [Confusion(truth=t, predicted=p, count=count) for (t, p), count in pairs.items() if t != p]
    right = {name: pairs.get((name, name), 0) for name in classes}
    return Scores(
        score=Score(right=sum(right.values()), n=counts.total()),
        classes=tuple(
            ClassScore(name=name, n=counts[name], predicted=called[name], right=right[name]) for name in classes
        ),
        confusions=tuple(sorted(wrong, key=lambda pair: (-pair.count, pair.truth, pair.predicted))),
        missing=tuple(name for name in classes if not counts[name]),
        unknown=unknown,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Work out the two-sided exact p-value of McNemar's test (Psychometrika 12, 1947), from the binomial distribution.

    Args:
        only_first: number of images that the first judge alone gets right.
        only_second: number of images that the second judge alone gets right.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail = ways = 1  # of n coins, so many as have been counted show heads
    for heads in range(1, fewer + 1):
        ways = ways * (n - heads + 1) // heads
        tail += ways
    return min(1.0, 2 * tail / (1 << n))


def share_interval(right: int, n: int) -> tuple[float, float]:
    """Work out the 95 % interval of the share `right` of `n` (Wilson, 1927), which holds for few; 0 to 1 for none."""
    if not n:
        return 0.0, 1.0
    p, z2 = right / n, _Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_interval(more: int, less: int, n: int) -> tuple[float, float]:
    """Work out the 95 % interval of the difference of two shares of the same images.

    The method is that of Agresti and Min (Statistics in Medicine 24, 2005).

    Args:
        more: how many count for the first share alone.
        less: how many count for the second alone.
        n: how many there are.
    """
    n, gained, lost = n + 2, more + 0.5, less + 0.5
    centre = (gained - lost) / n
    half = _Z95 * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return centre - half, centre + half


_Z95 = 1.959963984540054
"""Standard deviations either side that hold 95 % of a normal distribution."""
