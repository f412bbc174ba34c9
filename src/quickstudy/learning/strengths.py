"""The choice of the head's regularisation by cross-validation, from few images to very many.

Folds are dealt out by content hash, class by class, so they depend on neither file order nor worker count, and all
views of an image, and all its exact copies, are in one fold. The strength is found by walking a half-decade grid from
its usual place, 0.1, downhill in cross-validated log loss, which is smooth and has one minimum where accuracy is a
staircase. The walk stops where the loss no longer falls by 10⁻³ nats; a full grid costs three times as much and ends at
the same place. To begin nearer to a weak strength does not pay: with 67 classes, whose best is 0.003, the first fit at
0.01 took 73 passes a fold, where the way from 0.1 takes 17 a strength.

Few held-out images choose badly by themselves. Where all are right, the log loss falls with ever weaker strengths, as
nothing punishes boldness; where many are wrong, with ever stronger ones. So what is known beforehand counts, too: the
logarithm of a strength is normally distributed about that of the usual one, with a standard deviation of a decade. With
the product of the held-out images' probabilities for evidence (Geisser & Eddy, "A predictive approach to model
selection", 1979), the strength of the least `cost` is the most probable one. Cawley & Talbot ("Preventing over-fitting
during model selection via Bayesian regularisation of the hyper-parameters", 2007) do so for the same reason. With five
clothing photos each of two to four kinds, new photos' log loss is 0.286 so, 0.315 by cross-validation alone; with
hundreds of images, it changes nothing. Smoothed targets (Platt, "Probabilistic outputs for support vector machines",
1999) are too careful here: they promise 6 points less than is right.

Where there are many images, one fold's held-out images tell strengths apart, so one fold scouts, and all are fitted
at the chosen strength alone, from its fit. A weaker strength has to be better by more than the difference's standard
error, image by image: 12,000 images of 200 classes in which 0.001 and 0.003 differ by less take five times as long at
0.001. Where a quarter of the images is still many times the features, the walk begins on that quarter, or on a quarter
of it, and each larger part begins where the last one ended, with its weights, and looks at both neighbours again. On
smaller parts it would go astray: where there are about as many images as features, the best strength is weaker, not
stronger, than for many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from quickstudy.learning.features import Features, Floats
from quickstudy.learning.links import FOLDS, Integers, link_of
from quickstudy.learning.softmax import Optimum, fit_softmax

Start = tuple[NDArray[np.floating], NDArray[np.floating]]
_T = TypeVar("_T", bound="Scout")

STRENGTHS = tuple(10.0 ** (half / 2) for half in range(4, -13, -1))  # 100 down to 1e-6
FIRST = 6  # 10^-1 is where the walk begins, and the most probable strength beforehand
_DECADES = 1.0  # standard deviation of the strengths' logarithm to base 10, beforehand
_PRECISION = 1e-4
# What cross-validation tells apart: log losses that differ by a thousandth of a nat.
_SELECTION_PRECISION = 1e-3
_NOTICEABLE = 1e-3  # nats
_LARGEST_BATCH = 24_000_000  # logits of the folds that are fitted side by side: 96 MB in float32, several times
_MANY = 5000  # plain images, from which one fold of them scouts
_MANY_MARKS = 50_000  # plain images times labels, where an image may have several
_LEAST_PART = 15_000  # rows
_LARGEST_PART = 50_000  # rows
_PART = 4  # times as many rows has the next part


def deal_out(labels: Integers, keys: Sequence[bytes]) -> tuple[Integers, Integers]:
    """Number the images for cross-validation: one after the other over all classes, and within each class, from 0.

    A class's distinct keys are put in order and dealt out one by one; the next class goes on where the last one ended,
    so that folds are even. A class of fewer keys than folds begins at 0: of each such class, the first fold leaves one
    out, so that those of two images are compared with others of one image, not of two. With ten classes of two clothing
    photos, 50 % are right in cross-validation so, 32 % where they are dealt like others, and 62 % of new photos. The
    only image of a class is never held out, since nothing else could stand for it: its first number is -1.

    Where an image may have several labels, folds are dealt out by iterative stratification, so that each has its share
    of each label, and the numbers are those of a fold.

    Returns:
        Two numbers a row, each n; rows of the same key and class have the same ones.
    """
    return link_of(labels).deal_out(labels, keys)


def assign_folds(labels: Integers, keys: Sequence[bytes]) -> Integers:
    """Assign fold numbers (n) for cross-validation by content hash; see `deal_out` and `folds_of`."""
    return folds_of(deal_out(labels, keys)[0])


def folds_of(dealt: Integers) -> Integers:
    """Turn the first numbers of `deal_out` into fold numbers (n); -1 for rows that are never held out."""
    return np.where(dealt < 0, -1, dealt % FOLDS)


@dataclass(frozen=True, kw_only=True)
class Scout:
    """One strength's fit on all folds but the first."""

    l2: float
    """Strength of the regularisation."""
    losses: NDArray[np.float64]
    """Log losses of the held-out rows, in nats: of a scout, those of the first fold."""
    cost: float
    """Mean of these, and added to it how improbable the strength is beforehand, in nats an answer; least is best."""
    right: NDArray[np.bool_]
    """Whether these rows were predicted right."""
    weights: Floats
    """Weights of each fit, F×d×K; a scout has one."""
    biases: Floats
    """Biases of each fit, F×K."""


@dataclass(frozen=True, kw_only=True)
class CrossValidated(Scout):
    """One strength's fits on all folds."""

    logits: Floats
    """Logits of the held-out rows, m×K, by the fit that had not seen them."""


class CrossValidation:
    """Fits folds at a given strength, as many side by side as memory allows."""

    def __init__(
        self,
        features: Features,
        labels: Integers,
        dealt: Integers,
        places: Integers,
        plain: NDArray[np.bool_],
        importance: NDArray[np.float64],
        classes: int,
    ) -> None:
        """Take rows in the order of their folds, with their numbers from `deal_out`, and whether they are view 0."""
        self.features, self.labels, self.classes = features, labels, classes
        self.link = link_of(labels)
        self.dealt, self.places, self.plain = dealt, places, plain
        folds = folds_of(dealt)
        self.held_out = np.flatnonzero((folds >= 0) & plain)
        self.held_out_folds = folds[self.held_out]
        self.importance = importance
        self.used = np.arange(max(int(folds.max(initial=-1)) + 1, 1))
        self.sample_weights = _normalise(importance[:, None] * (folds[:, None] != self.used))
        images = len(self.held_out)
        self.answers = images * self.link.units(classes)  # each label of an image is one, where it may have several
        self.many = images * classes >= _MANY_MARKS if self.link.kind == "several" else images >= _MANY
        self.together = max(1, _LARGEST_BATCH // (len(labels) * classes))

    def score(self, l2: float, start: Start | None, first: Scout | None = None) -> CrossValidated:
        """Fit every fold, or all but the first where that is known, and score the held-out rows."""
        weights, biases = ([], []) if first is None else ([first.weights], [first.biases])
        todo = self.used[len(weights) :]
        for batch in (todo[i : i + self.together] for i in range(0, len(todo), self.together)):
            near = None if start is None else (start[0][batch], start[1][batch])
            fit = self.fit(self.sample_weights[:, batch], l2, _SELECTION_PRECISION, near)
            weights.append(fit.weights)
            biases.append(fit.biases)
        by_fold = np.concatenate(weights), np.concatenate(biases)
        logits = np.empty((len(self.held_out), self.classes), np.float32)
        for fold in self.used:
            mine = self.held_out_folds == fold
            logits[mine] = self.features.logits(self.held_out[mine], by_fold[0][fold], by_fold[1][fold])
        truth = self.labels[self.held_out]
        losses = self.link.log_losses(logits, truth)
        return CrossValidated(
            l2=l2,
            losses=losses,
            cost=self._cost(l2, losses),
            right=self.link.right(logits, truth),
            logits=logits,
            weights=by_fold[0],
            biases=by_fold[1],
        )

    def scout(self, l2: float, start: Start | None) -> Scout:
        """Fit all folds but the first and score the rows of the first."""
        fit = self.fit(self.sample_weights[:, :1], l2, _SELECTION_PRECISION, start)
        rows = self.held_out[self.held_out_folds == 0]
        logits = self.features.logits(rows, fit.weights[0], fit.biases[0])
        losses = self.link.log_losses(logits, self.labels[rows])
        return Scout(
            l2=l2,
            losses=losses,
            cost=self._cost(l2, losses),
            right=self.link.right(logits, self.labels[rows]),
            weights=fit.weights,
            biases=fit.biases,
        )

    def _cost(self, l2: float, losses: NDArray[np.float64]) -> float:
        if not self.answers:
            return 0.0
        from_usual = float(np.log10(l2 / STRENGTHS[FIRST])) / _DECADES
        return float(losses.mean()) + 0.5 * from_usual**2 / self.answers

    def fit_all(self, tried: Scout) -> Optimum:
        """Fit all rows at a strength that was tried, as precisely as a head is, from the mean of its fits."""
        start = tried.weights.mean(axis=0, keepdims=True), tried.biases.mean(axis=0, keepdims=True)
        return self.fit(_normalise(self.importance[:, None]), tried.l2, _PRECISION, start)

    def fit(self, sample_weights: Floats, l2: float, precision: float, start: Start | None) -> Optimum:
        """Fit these training sets."""
        return fit_softmax(
            self.features,
            self.labels,
            sample_weights,
            classes=self.classes,
            l2=l2,
            precision=precision,
            start=start,
        )

    def parts(self) -> list[CrossValidation]:
        """Take smaller and smaller parts of the rows, with the same folds and some of each class, the smallest first.

        They are for one another what they are for all rows: a part that is small has all rows of a smaller one.
        """
        n, found = len(self.labels), []
        share = _PART
        while n // share >= _LEAST_PART:
            if n // share <= _LARGEST_PART:
                found.append(self._part(share))
            share *= _PART
        return found[::-1]

    def _part(self, share: int) -> CrossValidation:
        """Take one row of `share`, and the first two of each class, which are held out of different folds."""
        rows = np.flatnonzero((self.dealt // FOLDS % share == 0) | (self.places < 2))
        return CrossValidation(
            self.features.take(rows),
            self.labels[rows],
            self.dealt[rows],
            self.places[rows],
            self.plain[rows],
            self.importance[rows],
            self.classes,
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the search for a strength found."""

    best: CrossValidated
    """The strength of the least cost, on all folds."""
    validated: Sequence[CrossValidated]
    """The strengths that were tried on all folds, the best one among them."""
    scouts: Sequence[Scout]
    """The strengths that were tried on the first fold; empty where all were tried on all folds."""
    whole: Optimum | None
    """The fit of all rows at the best strength; None where the folds were fitted without it."""


def choose_strength(
    validation: CrossValidation, *, l2: float | None, near: float | None = None
) -> tuple[CrossValidated | Scout, Sequence[CrossValidated | Scout]]:
    """Choose the strength, or take the one that is given: on all folds, or on the first where there are many images.

    Args:
        validation: the rows and their folds.
        l2: take this strength instead of choosing one.
        near: a strength that was best for much the same images; the walk begins one stronger.

    Returns:
        What was chosen, and all that was tried.
    """
    first = FIRST if near not in STRENGTHS else max(STRENGTHS.index(near) - 1, 0)
    many = validation.many
    if not many and (l2 is not None or not len(validation.held_out)):
        return _alone(validation.score(STRENGTHS[first] if l2 is None else l2, None))
    if not many:
        _, tried = walk(validation.score, first, None)
        return min(tried, key=lambda one: one.cost), tried
    start: Start | None = None
    for part in [*validation.parts(), validation]:
        chosen, scouts = walk(part.scout, first, start) if l2 is None else _alone(part.scout(l2, start))
        start, first = (chosen.weights, chosen.biases), first if l2 is not None else STRENGTHS.index(chosen.l2)
    return chosen, scouts


def fit_folds(
    validation: CrossValidation, chosen: CrossValidated | Scout, tried: Sequence[CrossValidated | Scout]
) -> Found:
    """Fit all folds at the strength that `choose_strength` chose, unless they are.

    They start from the fit of all rows: to leave rows out changes a fit less than to swap some for others. With 6,000
    images of 100 classes the folds take 42 iterations from there, 93 and 15 more in float64 from the fit of the first
    fold, and the fit of all rows takes 38 from that and 28 from the mean of the folds.
    """
    if isinstance(chosen, CrossValidated):
        return Found(
            best=chosen, validated=[one for one in tried if isinstance(one, CrossValidated)], scouts=(), whole=None
        )
    folds, whole = len(validation.used), validation.fit_all(chosen)
    start = np.repeat(whole.weights, folds, axis=0), np.repeat(whole.biases, folds, axis=0)
    best = validation.score(chosen.l2, start, chosen)
    return Found(best=best, validated=(best,), scouts=tried, whole=whole)


def _alone(tried: _T) -> tuple[_T, list[_T]]:
    return tried, [tried]


def _further(last: Scout, before: Scout | None) -> Start:
    """Go on from the last strength's fit, as far again as the weights came from the one before.

    On the clothing photos the third strength takes 8 iterations from there; it took 26 from the second's fit.
    """
    if before is None:
        return last.weights, last.biases
    return 2 * last.weights - before.weights, 2 * last.biases - before.biases


def walk(score: Callable[[float, Start | None], _T], first: int, start: Start | None) -> tuple[_T, list[_T]]:
    """Try strengths from one on, weaker or else stronger, as long as the cost falls noticeably.

    Returns:
        The last one that was noticeably better, and all that were tried.
    """
    best = score(STRENGTHS[first], start)
    path = [best]
    for direction in (+1, -1):
        position, before = first + direction, path[1] if len(path) > 1 else None
        while 0 <= position < len(STRENGTHS):
            further = score(STRENGTHS[position], _further(best, before))
            path.append(further)
            if not _is_better(further, best):
                break
            position, before, best = position + direction, best, further
        if len(path) > 2:
            break  # weaker was better, so stronger is not
    return best, path


def _is_better(one: Scout, other: Scout) -> bool:
    """Decide whether a strength's cost is noticeably lower than that of another, on the same images."""
    gains = other.losses - one.losses
    chance = gains.std() / len(gains) ** 0.5 if not isinstance(one, CrossValidated) else 0.0
    return other.cost - one.cost > max(_NOTICEABLE, chance)


def _normalise(weights: NDArray[np.float64]) -> Floats:
    normalised: Floats = (weights / weights.sum(axis=0)).astype(np.float32)
    return normalised


def log_losses(logits: NDArray[np.floating], labels: Integers) -> NDArray[np.float64]:
    """Work out the log loss of each row (m), in nats, from logits (m×K) and class numbers (m), or marks (m×K)."""
    return link_of(labels).log_losses(logits, labels)
