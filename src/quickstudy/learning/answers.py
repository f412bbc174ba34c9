"""Answers: what probabilities come to, the most probable class or any number of labels, and how good that is.

`Answer` is the same question to both kinds of head: what is given for these probabilities, and how does it score.

A label's threshold is chosen on images that the fit had not seen, in cross-validation, and never on the test: for the
best F1, the harmonic mean of precision and recall, or as low as a stated precision allows.

The figures are those of multi-label classification: average precision, which asks for the order of the images alone
and so knows no threshold; F1 of all labels' answers together (micro) and the mean of the labels' F1 (macro); the share
of images all of whose labels are right (exact match); precision and recall of each label. Their 95 % intervals are
those of the bootstrap over images (Efron and Tibshirani, 1993): so many images are drawn from the tested ones with
replacement, 500 times, and the middle 95 % of what comes out are given, shifted so that their median is what was found.
All labels of an image come and go with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quickstudy.learning.links import ONE_OF, SEVERAL_OF, Link
from quickstudy.learning.scores import (
    ClassScore,
    Confusion,
    Interval,
    Score,
    Scores,
    SeveralScores,
    score_predictions,
    share_interval,
)

Marks = NDArray[np.intp]
Shares = NDArray[np.floating]
Labels = tuple[str, ...]
"""The labels of an image: one where each is of one class, any number where it may have several."""


class Answer(Protocol):
    """What probabilities are answered by."""

    @property
    def link(self) -> Link:
        """The kind of head whose probabilities they are."""

    def given(self, probabilities: Shares) -> NDArray[np.bool_]:
        """Say which classes are given (n×K) for probabilities (n×K)."""

    def score(
        self,
        probabilities: Shares,
        labels: Sequence[Labels],
        classes: Sequence[str],
        *,
        unknown: Mapping[str, int] | None = None,
    ) -> Scores:
        """Compare what is given for probabilities (n×K) with the images' labels.

        Args:
            probabilities: of each image and class.
            labels: of each image; where each is of one class, it is one of `classes`.
            classes: names of the classes, in the order of the probabilities.
            unknown: number of images by label, of labels that the model does not know.
        """


@dataclass(frozen=True)
class MostProbable:
    """The answer is the most probable class."""

    @property
    def link(self) -> Link:
        """The softmax, as each image is of one class."""
        return ONE_OF

    def given(self, probabilities: Shares) -> NDArray[np.bool_]:
        """Say which classes are given (n×K): one for each image; of equal ones, the first."""
        found = np.zeros(probabilities.shape, np.bool_)
        if probabilities.size:
            found[np.arange(len(found)), probabilities.argmax(axis=1)] = True
        return found

    def score(
        self,
        probabilities: Shares,
        labels: Sequence[Labels],
        classes: Sequence[str],
        *,
        unknown: Mapping[str, int] | None = None,
    ) -> Scores:
        """Compare the most probable classes with the true ones."""
        said = [classes[number] for number in probabilities.argmax(axis=1)] if len(labels) else []
        return score_predictions([names[0] for names in labels], said, classes, unknown=unknown)


MOST_PROBABLE: Answer = MostProbable()
"""The answer of a head of one class an image."""

_ALL = 1e-9  # of a share, from none or all of the images, that rounding may leave
DRAWS = 500
"""Number of times that images are drawn for an interval."""
NEVER = 2.0
"""A threshold that no probability reaches: that of a label that cannot be given with the precision asked for."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The probability from which on each label is given, chosen on images that the fits had not seen."""

    values: tuple[float, ...]
    """The least probability of each label, in the model's order; 2 where the label is never given."""
    precision: float | None
    """Precision that was asked for, above 0 and below 1; None where the best F1 was."""
    n: int
    """Number of images that they were chosen on."""

    @property
    def link(self) -> Link:
        """The logistic function, as an image may have several labels."""
        return SEVERAL_OF

    def given(self, probabilities: Shares) -> NDArray[np.bool_]:
        """Say which labels are given (n×K) by their probabilities (n×K)."""
        found: NDArray[np.bool_] = probabilities >= np.array(self.values)
        return found

    def score(
        self,
        probabilities: Shares,
        labels: Sequence[Labels],
        classes: Sequence[str],
        *,
        unknown: Mapping[str, int] | None = None,
        draws: int = DRAWS,
    ) -> Scores:
        """Compare the labels that are given with the true ones; those that are not among `classes` do not count."""
        marks = marks_of(labels, classes)
        return score_labels(probabilities, marks, self.given(probabilities), classes, unknown=unknown, draws=draws)

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {**asdict(self), "values": list(self.values)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Thresholds:
        """Make thresholds of what `to_dict` gave.

        Raises:
            ValueError: it is something else.
        """
        found = tuple(float(value) for value in values["values"])
        if not all(0 <= value <= NEVER for value in found):
            raise ValueError("a threshold of its labels is no probability")
        precision = values["precision"]
        return Thresholds(values=found, precision=None if precision is None else float(precision), n=int(values["n"]))


def labels_given(answer: Answer, logits: Shares, classes: Sequence[str]) -> list[Labels]:
    """Name for each image the labels that are given for its logits (n×K), sorted."""
    if not len(logits):
        return []
    given = answer.given(answer.link.probabilities(logits))
    return [tuple(sorted(classes[number] for number in np.flatnonzero(row).tolist())) for row in given]


def marks_of(labels: Sequence[Labels], classes: Sequence[str]) -> Marks:
    """Write labels as marks (n×K): 1 where the image has the label; labels that are no class are left out."""
    number_of = {name: number for number, name in enumerate(classes)}
    marks = np.zeros((len(labels), len(classes)), np.intp)
    for row, names in enumerate(labels):
        marks[row, [number_of[name] for name in names if name in number_of]] = 1
    return marks


def choose_thresholds(probabilities: Shares, marks: Marks, *, precision: float | None = None) -> Thresholds:
    """Choose each label's threshold on images that the fits which judged them had not seen.

    A threshold lies half-way between the probabilities of two images. A label that no image has gets one half.

    Args:
        probabilities: of each image and label (n×K).
        marks: 1 where the image has the label (n×K).
        precision: take the lowest threshold from which on this share of what is given is right; if left out, that of
            the best F1.
    """
    values = [_threshold(probabilities[:, k].astype(np.float64), marks[:, k], precision) for k in range(marks.shape[1])]
    return Thresholds(values=tuple(values), precision=precision, n=len(marks))


def _threshold(probabilities: NDArray[np.float64], marks: Marks, precision: float | None) -> float:
    if not marks.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ranked, right = probabilities[order], np.cumsum(marks[order])
    given = np.arange(1, len(ranked) + 1)
    is_cut = np.ones(len(ranked), np.bool_)
    is_cut[:-1] = ranked[1:] < ranked[:-1]
    if precision is None:
        value = 2 * right / (given + right[-1])
        last = int(np.where(is_cut, value, -1).argmax())
    else:
        good = np.flatnonzero(is_cut & (right >= precision * given))
        if not len(good):
            return NEVER
        last = int(good[-1])
    below = ranked[last + 1] if last + 1 < len(ranked) else 0.0
    return float((ranked[last] + below) / 2)


def score_labels(
    probabilities: Shares,
    marks: Marks,
    given: NDArray[np.bool_],
    classes: Sequence[str],
    *,
    unknown: Mapping[str, int] | None = None,
    draws: int = DRAWS,
) -> Scores:
    """Compare labels with the true ones, in all figures.

    Args:
        probabilities: of each image and label (n×K).
        marks: 1 where the image has the label (n×K).
        given: whether the label was given (n×K).
        classes: names of the labels.
        unknown: number of images by label, of labels that the model does not know.
        draws: number of times that images are drawn for the intervals.
    """
    truth = marks.astype(bool)
    hits, missed, wrong = truth & given, truth & ~given, given & ~truth
    weights = _weights(len(marks), draws)
    sums = [(weights @ part.astype(np.float32)).astype(np.float64) for part in (hits, missed, wrong)]
    precisions = np.stack([_average_precision(probabilities[:, k], truth[:, k], weights) for k in range(len(classes))])
    f1 = _f1(*sums)
    has = np.asarray(truth.any(axis=0), np.bool_)
    together, images = [part.sum(axis=1) for part in sums], len(marks)
    several = SeveralScores(
        average_precision=_interval(_mean(precisions[has].T), images),
        f1_micro=_interval(_f1(*together), images),
        f1_macro=_interval(_mean(f1[:, has]), images),
        exact_match=_interval_of_share(int((truth == given).all(axis=1).sum()), images),
        labels={
            name: {
                "average_precision": _interval(precisions[k], int(truth[:, k].sum())),
                "precision": _interval(_share(sums[0][:, k], sums[0][:, k] + sums[2][:, k]), int(given[:, k].sum())),
                "recall": _interval(_share(sums[0][:, k], sums[0][:, k] + sums[1][:, k]), int(truth[:, k].sum())),
                "f1": _interval(f1[:, k], int((truth[:, k] | given[:, k]).sum())),
            }
            for k, name in enumerate(classes)
        },
    )
    together_with = missed.astype(np.float32).T @ wrong.astype(np.float32)
    pairs = [
        Confusion(truth=classes[a], predicted=classes[b], count=int(together_with[a, b]))
        for a, b in np.argwhere(together_with > 0).tolist()
    ]
    return Scores(
        score=Score(right=int((truth == given).all(axis=1).sum()), n=len(marks)),
        classes=tuple(
            ClassScore(
                name=name, n=int(truth[:, k].sum()), predicted=int(given[:, k].sum()), right=int(hits[:, k].sum())
            )
            for k, name in enumerate(classes)
        ),
        confusions=tuple(sorted(pairs, key=lambda pair: (-pair.count, pair.truth, pair.predicted))),
        missing=tuple(name for k, name in enumerate(classes) if not has[k]),
        unknown=unknown or {},
        several=several,
    )


def compare_average_precision(first: Shares, second: Shares, marks: Marks) -> Interval:
    """Work out the second's mean average precision less the first's on the same images, with its paired interval.

    Args:
        first: probabilities by the first (n×K).
        second: probabilities by the second (n×K).
        marks: 1 where the image has the label (n×K).
    """
    truth, weights = marks.astype(bool), _weights(len(marks), DRAWS)
    has = np.flatnonzero(truth.any(axis=0))
    means = [
        _mean(np.stack([_average_precision(shares[:, k], truth[:, k], weights) for k in has]).T)
        for shares in (first, second)
    ]
    return _interval(means[1] - means[0])


def _weights(n: int, draws: int) -> NDArray[np.float32]:
    """Say how often each image is there: once in the first row, and as it was drawn in the others (draws + 1 × n)."""
    generator = np.random.Generator(np.random.Philox(key=[2, n]))
    drawn = generator.multinomial(n, np.full(n, 1 / max(n, 1)), size=draws) if n else np.zeros((draws, 0))
    return np.concatenate([np.ones((1, n)), drawn]).astype(np.float32)


def _average_precision(shares: Shares, truth: NDArray[np.bool_], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Work out the average precision for each row of weights; NaN where no image has the label.

    It is the mean over the images that have the label of the precision among those at least as probable.
    """
    order = np.argsort(-shares, kind="stable")
    ranked, has = shares[order], np.flatnonzero(truth[order])
    if not len(has):
        return np.full(len(weights), np.nan)
    ordered = weights[:, order]
    last = np.searchsorted(-ranked, -ranked[has], side="right") - 1  # of those that are equally probable
    given = np.cumsum(ordered, axis=1, dtype=np.float32)[:, last]
    mine = ordered[:, has]
    right = np.cumsum(mine, axis=1)[:, np.searchsorted(has, last, side="right") - 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (mine * np.where(given > 0, right / given, 0)).sum(axis=1, dtype=np.float64) / mine.sum(axis=1)
    return np.asarray(found, np.float64)


def _f1(hits: NDArray[np.float64], missed: NDArray[np.float64], wrong: NDArray[np.float64]) -> NDArray[np.float64]:
    return _share(2 * hits, 2 * hits + missed + wrong)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return found


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take the mean of each row over what is known in it; NaN where nothing is."""
    known = ~np.isnan(values)
    return _share(np.where(known, values, 0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def _interval_of_share(right: int, n: int) -> Interval:
    low, high = share_interval(right, n)
    return Interval(value=right / n if n else None, low=low, high=high)


def _interval(values: NDArray[np.floating], n: int | None = None) -> Interval:
    """Take the first value for what was found, and the others for its interval.

    Where all of n images are right, or none is, draws from them are no different; Wilson's interval for a share tells
    what so few can say.
    """
    found, drawn = float(values[0]), values[1:][~np.isnan(values[1:])]
    if np.isnan(found) or not len(drawn):
        return Interval(value=None, low=0.0, high=1.0)
    if n is not None and min(abs(found), abs(1 - found)) < _ALL:
        low, high = share_interval(round(found) * n, n)
        return Interval(value=found, low=low, high=high)
    low, middle, high = np.quantile(drawn, (0.025, 0.5, 0.975)).tolist()
    # An image that was drawn twice makes its own average precision better, so that draws are too good on average.
    bias = middle - found
    return Interval(value=found, low=max(low - bias, min(found, 0.0)), high=min(high - bias, 1.0))
