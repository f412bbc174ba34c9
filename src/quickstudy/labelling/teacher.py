"""What is learned of labels while they are given: a head in milliseconds, and what it is worth.

The head is softmax regression, as the final model's is, in the few directions in which all photos vary most. These are
found without any label, from the photos that wait as well as from those that have one, and for few labels they are more
than quick: on the clothing photos, heads of 50 to 500 random labels were as good in 256 directions as in all 1,280
features, or up to a point better. A refit starts from the head before, so it takes a few steps; it is as precise as
suggestions need to be, to a hundredth in probability, where the final model's is exact.

Photos that wait for an answer teach, too, as far as they can be guessed (pseudo-labels; Lee, 2013). A thousand of them
are guessed by a ridge head of the labels, a few milliseconds by itself, and count as if somebody had said so, by how
sure the guess is; the guesses of a rare class count for more, and all together no more than the labels. On the clothing
photos, heads of 50, 100 and 200 labels are right 2.7, 1.9 and 1.3 points more often so. Nobody else is told of these
guesses: *Train*, the forecast and the manifest know what people said and nothing else.

What the head is worth is said in two ways. Five-fold cross-validation judges every label by fits that had not seen it;
but photos that were chosen since they are doubtful are harder than most, so that this is too modest a figure for the
folder as a whole. So some photos, the checks, are drawn at random and labelled along the way. The head learns from them
as from all others, or a fifth of all answers would teach nothing. But each is judged by a fit to all labels but a fifth
of the checks, its own among these, which is 96 % of what the head has: the share of right ones is the honest figure.

Where a photo may have several labels, each label has a logistic head, and is given from a threshold on that is chosen
in the cross-validation of the photos that are no checks. Targets say which kind it is: class numbers, or marks (n×K).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from quickstudy.learning.answers import MOST_PROBABLE, Answer, Thresholds, choose_thresholds
from quickstudy.learning.features import Features, Floats, Real, blas_threads, sample_of, signed_sqrt
from quickstudy.learning.learning_curve import learning_curve
from quickstudy.learning.links import FOLDS, ONE_OF, Link, link_of
from quickstudy.learning.selection import fit_temperature
from quickstudy.learning.softmax import Optimum, fit_softmax
from quickstudy.learning.strengths import assign_folds

DIRECTIONS = 256
"""The number of directions in which the live head sees photos."""
L2 = 0.03
"""Strength of the live head's regularisation; from 0.01 to 0.1, accuracies with 50 to 500 labels are about the same."""
GUESSED = 1000
"""The largest number of photos without a label that are guessed and learned from; 2,000 bring hardly more."""
_PRECISION = 1e-2  # root mean square of probabilities
_MAIN = 32  # directions in which the fit is preconditioned by class; of 128, a refit takes twice as long
_SAMPLE = 4096  # photos from which the directions are found
_MOST_MISTAKES = 60
# Of the ridge head that guesses: its strength, what its scores are multiplied with to be logits, and the power of the
# probability by which a guess counts. Strengths of 1 and 10, a factor of 5 and a power of 8 come to about the same.
_RIDGE, _BOLDNESS, _SURENESS = 3.0, 10.0, 4
_RAREST = 0.2  # of the mean weight of a class's guesses, below which a class is not rarer for it
_MORE = 100  # labels that a forecast is of
_FEWEST_FOR_THRESHOLDS = 50  # photos; with fewer, a label is given from one half on


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
    link: Link = ONE_OF
    """Whether a photo has one of the classes, or any number of them."""

    def probabilities(self, rows: Floats, temperature: float = 1.0) -> Floats:
        """Work out probabilities (n×K) of photos (n×r); logits are divided by the temperature."""
        logits = (rows @ self.weights + self.biases) / np.float32(temperature)
        return self.link.probabilities(logits).astype(np.float32)


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
    rows: Floats,
    targets: NDArray[np.intp],
    classes: tuple[str, ...],
    space: Space,
    before: LiveHead | None = None,
    waiting: Floats | None = None,
) -> LiveHead:
    """Fit the head to photos (n×r) and their targets, from an earlier head on if there is one for this space.

    Each class has at least one photo, and there are at least two classes; or each label is on some, and not on all.
    Where photos have one class, those that wait for an answer (m×r) are guessed, and learned from, too.
    """
    start = None
    if before is not None and before.space is space:
        known = {name: number for number, name in enumerate(before.classes)}
        weights, biases = np.zeros((rows.shape[1], len(classes))), np.zeros(len(classes))
        for number, name in enumerate(classes):
            if name in known:
                weights[:, number], biases[number] = before.weights[:, known[name]], before.biases[known[name]]
        start = weights[None], biases[None]
    weight = np.full((len(rows), 1), 1 / len(rows), np.float32)
    fit = _fit(rows, targets, weight, len(classes), start, waiting)
    return LiveHead(
        classes=classes,
        weights=fit.weights[0].astype(np.float32),
        biases=fit.biases[0].astype(np.float32),
        space=space,
        link=link_of(targets),
    )


def _fit(
    rows: Floats,
    targets: NDArray[np.intp],
    weights: Floats,
    classes: int,
    start: tuple[Real, Real] | None,
    waiting: Floats | None,
) -> Optimum:
    """Fit a head to each column of weights (n×F) that sums to 1, each with guesses of its own; rows come first."""
    if waiting is not None and len(waiting) and targets.ndim == 1:
        with blas_threads(worth=False):
            guesses = [_guess(rows, targets, column, waiting, classes) for column in weights.T]
        count, sets = len(waiting), len(guesses)
        of_guesses = np.zeros((sets, count, sets), np.float32)
        for number, (_, counts) in enumerate(guesses):
            of_guesses[number, :, number] = counts
        rows = np.concatenate([rows, *[waiting] * sets])
        targets = np.concatenate([targets, *(guessed for guessed, _ in guesses)])
        weights = np.concatenate([weights, of_guesses.reshape(-1, sets)])
        weights /= weights.sum(axis=0)
    return fit_softmax(
        _features(rows), targets, weights, classes=classes, l2=L2, precision=_PRECISION, start=start, rough=True
    )


def _guess(
    rows: Floats, targets: NDArray[np.intp], weights: Floats, waiting: Floats, classes: int
) -> tuple[NDArray[np.intp], Floats]:
    """Guess the class of photos (m×r) by a ridge head of those that have one; give classes, and how much they count."""
    known = np.flatnonzero(weights)
    mean = rows[known].mean(axis=0)
    centred, marks = rows[known] - mean, np.eye(classes, dtype=np.float32)[targets[known]]
    often = marks.mean(axis=0)
    squares = centred.T @ centred / len(known)
    squares[np.diag_indices_from(squares)] += _RIDGE
    head = np.linalg.solve(squares, centred.T @ (marks - often) / len(known))
    shares = ONE_OF.probabilities(_BOLDNESS * ((waiting - mean) @ head + often))
    guessed: NDArray[np.intp] = shares.argmax(axis=1)
    counts = shares.max(axis=1) ** _SURENESS
    of_class = np.bincount(guessed, counts, minlength=classes)
    counts *= np.sqrt(of_class.mean() / np.maximum(of_class, _RAREST * of_class.mean()))[guessed]
    # A guess counts no more than a label does, and all together no more than all labels.
    return guessed, (counts / max(float(counts.sum()), len(known))).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """What cross-validation says of the labels."""

    held_out: NDArray[np.intp]
    """Rows (m) that were held out, once each; the only photo of a class never is."""
    probabilities: Floats
    """Calibrated probabilities (m×K) of these by the fit that had not seen them."""
    targets: NDArray[np.intp]
    """Targets (m, or m×K) of these, as they were labelled."""
    temperature: float
    """Number by which logits are divided to calibrate them; 1 for few labels."""


def choose_answer(judged: Judged | None, classes: int, but: NDArray[np.intp]) -> Answer:
    """Choose what probabilities are answered by: the most probable class, or for several labels their thresholds.

    Args:
        judged: what cross-validation says; None where it said nothing.
        classes: number of classes.
        but: rows of the checks, which are to judge the thresholds, and so do not choose them.
    """
    if judged is None or judged.targets.ndim == 1:
        return MOST_PROBABLE
    others = ~np.isin(judged.held_out, but)
    if others.sum() < _FEWEST_FOR_THRESHOLDS:
        return Thresholds(values=(0.5,) * classes, precision=None, n=0)
    return choose_thresholds(judged.probabilities[others], judged.targets[others])


def cross_validate(
    rows: Floats,
    targets: NDArray[np.intp],
    keys: Sequence[bytes],
    head: LiveHead,
    waiting: Floats | None = None,
) -> Judged | None:
    """Judge each label by a fit to the four fifths of the others that have another fold; None if none can be held out.

    Args:
        rows: n×r.
        targets: class numbers of the head (n), or marks (n×K).
        keys: n content hashes, which deal the photos out to the folds.
        head: the head of all labels, from which the fits start.
        waiting: m×r, photos without a label, which each fit guesses by itself.
    """
    folds = assign_folds(targets, keys)
    if not (folds >= 0).any():
        return None
    order = np.argsort(folds, kind="stable")  # so that products leave out whole blocks
    trains = (folds[order, None] != np.arange(FOLDS)).astype(np.float32)
    used = np.array([fold for fold in range(FOLDS) if (folds == fold).any()])
    weights = trains[:, used] / trains[:, used].sum(axis=0)
    fit = _fit(rows[order], targets[order], weights, len(head.classes), _from(head, len(used)), waiting)
    held_out, logits = [], []
    for number, fold in enumerate(used.tolist()):
        mine = np.flatnonzero(folds[order] == fold)
        held_out.append(order[mine])
        logits.append(fit.logits_of(mine, number))
    where, all_logits = np.concatenate(held_out), np.concatenate(logits)
    temperature = fit_temperature(all_logits, targets[where])
    return Judged(
        held_out=where,
        probabilities=head.link.probabilities(all_logits / temperature).astype(np.float32),
        targets=targets[where],
        temperature=temperature,
    )


def _from(head: LiveHead, count: int) -> tuple[Real, Real]:
    """Begin so many fits where the head is."""
    weights, biases = head.weights.astype(np.float64), head.biases.astype(np.float64)
    return np.repeat(weights[None], count, axis=0), np.repeat(biases[None], count, axis=0)


def judge_checks(
    rows: Floats,
    targets: NDArray[np.intp],
    checks: NDArray[np.intp],
    head: LiveHead,
    temperature: float = 1.0,
    waiting: Floats | None = None,
) -> Floats:
    """Work out each check's probabilities by a fit to all labels but those of a fifth of the checks, its own included.

    A check that is the only photo of its class, or that alone tells a label, stays in the fit, and counts as wrong
    there: without it, nobody knows the class.

    Args:
        rows: n×r, checks and others.
        targets: class numbers of the head (n), or marks (n×K).
        checks: numbers (m) of the rows that are checks.
        head: the head of all labels, from which the fits start.
        temperature: number by which logits are divided.
        waiting: photos without a label, which each fit guesses by itself.

    Returns:
        Probabilities, m×K.
    """
    classes = len(head.classes)
    marks = targets > 0 if targets.ndim == 2 else np.eye(classes, dtype=np.bool_)[targets]
    mine, found = marks[checks], head.probabilities(rows[checks], temperature)
    if not len(checks):
        return found
    # The checks of a label go to different folds, the rarest label first.
    rarest = np.where(mine, marks.sum(axis=0), len(rows) + 1).argmin(axis=1)
    count = min(FOLDS, len(checks))
    fold = np.empty(len(checks), np.intp)
    fold[np.argsort(rarest, kind="stable")] = np.arange(len(checks)) % count
    alone = mine & _only_in(mine, marks, fold)
    if targets.ndim == 2:
        alone |= ~mine & _only_in(~mine, ~marks, fold)
    weights = np.ones((len(rows), count), np.float32)
    dealt = ~alone.any(axis=1)
    weights[checks[dealt], fold[dealt]] = 0
    fit = _fit(rows, targets, weights / weights.sum(axis=0), classes, _from(head, count), waiting)
    for number in range(count):
        some = dealt & (fold == number)
        found[some] = head.link.probabilities(fit.logits_of(checks[some], number) / temperature)
    return np.where(alone, ~mine, found).astype(np.float32)


def _only_in(mine: NDArray[np.bool_], marks: NDArray[np.bool_], fold: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Tell by check and label (m×K) whether all photos that have the label (n×K) are checks (m×K) of its fold."""
    total = marks.sum(axis=0)
    inside = np.stack([mine[fold == number].sum(axis=0) for number in range(int(fold.max()) + 1)])
    only: NDArray[np.bool_] = (inside == total)[fold]
    return only


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A label to look at again."""

    row: int
    """Row of the photo."""
    suggested: tuple[int, ...]
    """Numbers of the labels that it should have instead."""


def find_mistakes(judged: Judged) -> list[Mistake]:
    """Find the labels that are probably wrong, the most surprising first."""
    if not len(judged.targets):
        return []
    found = _too_many_or_few(judged) if judged.targets.ndim == 2 else _other_classes(judged)
    rows = judged.held_out
    return [Mistake(row=int(rows[place]), suggested=suggested) for place, suggested in found[:_MOST_MISTAKES]]


def _other_classes(judged: Judged) -> list[tuple[int, tuple[int, ...]]]:
    from quickstudy.reports.audit import choose_surprising, probability_wrong, suggest_others

    shares, truth = judged.probabilities, judged.targets
    if shares.shape[1] < 2:
        return []
    others = suggest_others(shares, truth)
    return [
        (k, (int(others[k]),))
        for k in choose_surprising(shares, truth, probability_wrong(shares, truth))
        if shares[k, others[k]] > shares[k, truth[k]]
    ]


def _too_many_or_few(judged: Judged) -> list[tuple[int, tuple[int, ...]]]:
    """Ask of each label whether it is more likely than not to be missing or too many, and bring a photo's together."""
    from quickstudy.reports.audit import probability_wrong

    wrong = np.stack(
        [
            probability_wrong(np.stack([1 - share, share], axis=1), given)
            for share, given in zip(judged.probabilities.T, judged.targets.T, strict=True)
        ],
        axis=1,
    )
    turned = wrong > 0.5
    places = np.flatnonzero(turned.any(axis=1))
    ordered = places[np.argsort(-wrong[places].max(axis=1), kind="stable")]
    should = (judged.targets > 0) ^ turned
    return [(place, tuple(np.flatnonzero(should[place]).tolist())) for place in ordered.tolist()]


@dataclass(frozen=True, kw_only=True)
class LabelGain:
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
) -> tuple[LabelGain, ...]:
    """Forecast what a hundred more labels would bring: of all classes first, then of each, the most rewarding first.

    There is no forecast for fewer than 80 labels.

    Args:
        bottlenecks: n×d, of the photos learned from.
        labels: n class numbers.
        keys: n content hashes.
        classes: names of the classes.
        judged: what cross-validation said of the same photos.
    """
    right = np.full(len(labels), np.nan)
    right[judged.held_out] = judged.probabilities.argmax(axis=1) == judged.targets
    curve = learning_curve(bottlenecks, labels, keys, classes=len(classes), l2=L2, right=right, more=_MORE)
    if curve is None:
        return ()
    points, deviation = curve.gain(_MORE)
    gains = [LabelGain(name=classes[g.name], more=g.more, points=g.points, deviation=g.deviation) for g in curve.gains]
    gains.sort(key=lambda gain: -gain.points)
    return (LabelGain(name="", more=_MORE, points=points, deviation=deviation), *gains)
