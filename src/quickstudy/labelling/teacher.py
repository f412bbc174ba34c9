"""What is learned of labels while they are given: a head in milliseconds, and what it is worth.

The head is softmax regression, as the final model's is, in the few directions in which all photos vary most. These are
found without any label, from the photos that wait as well as from those that have one, and for few labels they are more
than quick: on the clothing photos, heads of 50 to 500 random labels were as good in 256 directions as in all 1,280
features, or up to a point better. A refit starts from the head before, so it takes a few steps; it is as precise as
suggestions need to be, to a hundredth in probability, where the final model's is exact.

What the head is worth is said in two ways. Five-fold cross-validation judges every label by fits that had not seen it;
but photos that were chosen since they are doubtful are harder than most, so that this is too modest a figure for the
folder as a whole. So some photos, the checks, are drawn at random and labelled along the way. The head learns from them
as from all others, or a fifth of all answers would teach nothing. But each is judged by a fit to all labels but a fifth
of the checks, its own among these, which is 96 % of what the head has: the share of right ones is the honest figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from quickstudy.learning.calibration import probabilities_of
from quickstudy.learning.features import Features, Floats, Real, sample_of, signed_sqrt
from quickstudy.learning.learning_curve import learning_curve
from quickstudy.learning.links import FOLDS
from quickstudy.learning.scores import Score
from quickstudy.learning.selection import fit_temperature
from quickstudy.learning.softmax import Fit, fit_softmax
from quickstudy.learning.strengths import assign_folds

DIRECTIONS = 256
"""The number of directions in which the live head sees photos."""
L2 = 0.01
"""Strength of the live head's regularisation; from 0.003 to 0.03, accuracies with 50 to 1,500 labels are the same."""
_PRECISION = 1e-2  # root mean square of probabilities
_MAIN = 128  # directions in which the fit is preconditioned by class
_SAMPLE = 4096  # photos from which the directions are found
_MOST_MISTAKES = 60


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """The directions in which photos vary most."""

    mean: Floats
    """Means (d) of the signed square roots of the bottlenecks."""
    axes: Floats
    """The directions, d×r, divided by the scale that makes the mean square of all features 1."""

    def project(self, bottlenecks: NDArray[np.floating]) -> Floats:
        """Write bottlenecks (n×d) in these directions (n×r)."""
        rows: Floats = ((signed_sqrt(bottlenecks) - self.mean) @ self.axes).astype(np.float32, copy=False)
        return rows


def find_space(bottlenecks: NDArray[np.floating]) -> Space | None:
    """Find the directions from bottlenecks (n×d), n at least 2; None where all are the same."""
    rows = signed_sqrt(bottlenecks[sample_of(len(bottlenecks), _SAMPLE)])
    mean = rows.mean(axis=0)
    rows -= mean
    scale = float(np.sqrt(np.mean(np.square(rows, dtype=np.float64))))
    if not scale > 0 or not np.isfinite(scale):
        return None
    count = min(DIRECTIONS, len(rows) - 1, rows.shape[1])
    if len(rows) < rows.shape[1]:
        values, vectors = np.linalg.eigh(rows @ rows.T)
        axes = rows.T @ vectors[:, ::-1][:, :count]
        axes /= np.sqrt(np.maximum(values[::-1][:count], 1e-9))
    else:
        axes = np.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, :count]
    return Space(mean=mean, axes=np.ascontiguousarray(axes / scale, np.float32))


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveHead:
    """A head as it stands after some labels."""

    classes: tuple[str, ...]
    """Names of the classes that it tells apart, K."""
    weights: Floats
    """The weights, r×K."""
    biases: Floats
    """The biases, K."""
    space: Space
    """What its weights are for."""

    def probabilities(self, rows: Floats, temperature: float = 1.0) -> Floats:
        """Work out probabilities (n×K) of photos (n×r); logits are divided by the temperature."""
        logits = (rows @ self.weights + self.biases) / np.float32(temperature)
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        return logits


class _Ordered(Features):
    """Features whose first are those in which the rows vary most."""

    @cached_property
    def main_directions(self) -> Real:
        """The first directions, and the last feature."""
        width = self.width
        chosen = np.append(np.arange(min(_MAIN, width - 1)), width - 1)
        return np.eye(width, dtype=self.dtype)[:, chosen]


def _features(rows: Floats) -> Features:
    n, width = rows.shape
    return _Ordered(stored=np.hstack([rows, np.ones((n, 1), np.float32)]), mean=np.zeros(width), scale=np.ones(width))


def fit_live(
    rows: Floats, labels: NDArray[np.intp], classes: tuple[str, ...], space: Space, before: LiveHead | None = None
) -> LiveHead:
    """Fit the head to photos (n×r) with class numbers (n), from an earlier head on if there is one for this space.

    Each class has at least one photo, and there are at least two classes.
    """
    start = None
    if before is not None and before.space is space:
        known = {name: number for number, name in enumerate(before.classes)}
        weights, biases = np.zeros((rows.shape[1], len(classes))), np.zeros(len(classes))
        for number, name in enumerate(classes):
            if name in known:
                weights[:, number], biases[number] = before.weights[:, known[name]], before.biases[known[name]]
        start = weights[None], biases[None]
    weight = np.full((len(labels), 1), 1 / len(labels), np.float32)
    fit = _fit(_features(rows), labels, weight, len(classes), start)
    return LiveHead(
        classes=classes,
        weights=fit.weights[0].astype(np.float32),
        biases=fit.biases[0].astype(np.float32),
        space=space,
    )


def _fit(
    features: Features, labels: NDArray[np.intp], weights: Floats, classes: int, start: tuple[Real, Real] | None
) -> Fit:
    return fit_softmax(features, labels, weights, classes=classes, l2=L2, precision=_PRECISION, start=start, rough=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """What cross-validation says of the labels."""

    held_out: NDArray[np.intp]
    """Rows (m) that were held out, once each; the only photo of a class never is."""
    probabilities: Floats
    """Calibrated probabilities (m×K) of these by the fit that had not seen them."""
    truth: NDArray[np.intp]
    """Class numbers (m) of these, as they were labelled."""
    temperature: float
    """Number by which logits are divided to calibrate them; 1 for few labels."""

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each of them (m) was predicted as it was labelled."""
        right: NDArray[np.bool_] = self.probabilities.argmax(axis=1) == self.truth
        return right

    @property
    def score(self) -> Score:
        """The share that was predicted as labelled."""
        return Score(right=int(self.right.sum()), n=len(self.truth))

    def by_class(self, number: int) -> Score:
        """Count the share of one class's photos that was predicted as labelled."""
        mine = self.truth == number
        return Score(right=int(self.right[mine].sum()), n=int(mine.sum()))


def cross_validate(rows: Floats, labels: NDArray[np.intp], keys: Sequence[bytes], head: LiveHead) -> Judged | None:
    """Judge each label by a fit to the four fifths of the others that have another fold; None if none can be held out.

    Args:
        rows: n×r.
        labels: n class numbers of the head.
        keys: n content hashes, which deal the photos out to the folds.
        head: the head of all labels, from which the fits start.
    """
    folds = assign_folds(labels, keys)
    if not (folds >= 0).any():
        return None
    order = np.argsort(folds, kind="stable")  # so that products leave out whole blocks
    trains = (folds[order, None] != np.arange(FOLDS)).astype(np.float32)
    used = np.array([fold for fold in range(FOLDS) if (folds == fold).any()])
    weights = trains[:, used] / trains[:, used].sum(axis=0)
    start = (
        np.repeat(head.weights[None].astype(np.float64), len(used), axis=0),
        np.repeat(head.biases[None].astype(np.float64), len(used), axis=0),
    )
    fit = _fit(_features(rows[order]), labels[order], weights, len(head.classes), start)
    held_out, logits = [], []
    for number, fold in enumerate(used.tolist()):
        mine = np.flatnonzero(folds[order] == fold)
        held_out.append(order[mine])
        logits.append(fit.logits_of(mine, number))
    where, all_logits = np.concatenate(held_out), np.concatenate(logits)
    temperature = fit_temperature(all_logits, labels[where])
    return Judged(
        held_out=where,
        probabilities=probabilities_of(all_logits / temperature).astype(np.float32),
        truth=labels[where],
        temperature=temperature,
    )


def judge_checks(rows: Floats, labels: NDArray[np.intp], checks: NDArray[np.intp], head: LiveHead) -> NDArray[np.bool_]:
    """Tell of each check whether a fit to all labels but a fifth of the checks, its own included, predicts it right.

    A check that is the only photo of its class counts as wrong: without it, nobody knows the class.

    Args:
        rows: n×r, checks and others.
        labels: n class numbers of the head.
        checks: numbers (m) of the rows that are checks.
        head: the head of all labels, from which the fits start.

    Returns:
        Whether each is right (m).
    """
    right = np.zeros(len(checks), np.bool_)
    alone = np.bincount(labels, minlength=len(head.classes))[labels[checks]] < 2
    dealt = np.flatnonzero(~alone)
    dealt = dealt[np.argsort(labels[checks[dealt]], kind="stable")]  # the checks of a class go to different folds
    if not len(dealt):
        return right
    count = min(FOLDS, len(dealt))
    fold = np.arange(len(dealt)) % count
    weights = np.ones((len(rows), count), np.float32)
    weights[checks[dealt], fold] = 0
    start = (
        np.repeat(head.weights[None].astype(np.float64), count, axis=0),
        np.repeat(head.biases[None].astype(np.float64), count, axis=0),
    )
    fit = _fit(_features(rows), labels, weights / weights.sum(axis=0), len(head.classes), start)
    for number in range(count):
        mine = dealt[fold == number]
        right[mine] = fit.logits_of(checks[mine], number).argmax(axis=1) == labels[checks[mine]]
    return right


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A label to look at again."""

    row: int
    """Row of the photo."""
    suggested: int
    """Number of the class that is more probable."""
    probability: float
    """Probability of that class by a fit that had not seen the photo, 0 to 1."""


def find_mistakes(judged: Judged) -> list[Mistake]:
    """Find the labels that are probably wrong, the most surprising first."""
    from quickstudy.reports.audit import choose_surprising, probability_wrong, suggest_others

    if judged.probabilities.shape[1] < 2 or not len(judged.truth):
        return []
    wrong = probability_wrong(judged.probabilities, judged.truth)
    others = suggest_others(judged.probabilities, judged.truth)
    return [
        Mistake(
            row=int(judged.held_out[k]),
            suggested=int(others[k]),
            probability=float(judged.probabilities[k, others[k]]),
        )
        for k in choose_surprising(judged.probabilities, judged.truth, wrong)[:_MOST_MISTAKES]
        if judged.probabilities[k, others[k]] > judged.probabilities[k, judged.truth[k]]
    ]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What more labels would bring."""

    name: str
    """Name of the class that they are of; empty for labels of all classes, in the proportions that there are."""
    more: int
    """Number of further labels."""
    points: float
    """Gain in accuracy, or in the class's own recall, in percentage points."""
    deviation: float
    """Standard deviation of the gain, in percentage points."""


def forecast(
    bottlenecks: NDArray[np.floating],
    labels: NDArray[np.intp],
    keys: Sequence[bytes],
    classes: Sequence[str],
    judged: Judged,
    *,
    more: int = 100,
) -> tuple[Gain, ...]:
    """Forecast what `more` labels would bring: of all classes first, then of each, the most rewarding first.

    There is no forecast for fewer than 80 labels.

    Args:
        bottlenecks: n×d, of the photos learned from.
        labels: n class numbers.
        keys: n content hashes.
        classes: names of the classes.
        judged: what cross-validation said of the same photos.
        more: number of labels.
    """
    right = np.full(len(labels), np.nan)
    right[judged.held_out] = judged.right
    curve = learning_curve(bottlenecks, labels, keys, classes=len(classes), l2=L2, right=right, more=more)
    if curve is None:
        return ()
    points, deviation = curve.gain(more)
    gains = [Gain(name=classes[g.name], more=g.more, points=g.points, deviation=g.deviation) for g in curve.gains]
    gains.sort(key=lambda gain: -gain.points)
    return (Gain(name="", more=more, points=points, deviation=deviation), *gains)
