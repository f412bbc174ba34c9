"""The head: softmax regression whose regularisation is chosen by cross-validation on the training bottlenecks.

Folds are dealt out by content hash, class by class, so they depend on neither file order nor worker count, and all
views of an image, and all its exact copies, are in one fold. The strength is found by walking a half-decade grid from
its usual place, 0.1, downhill in cross-validated log loss, which is smooth and has one minimum where accuracy is a
staircase. The walk stops where the loss no longer falls by 10⁻³ nats; a full grid costs three times as much and ends at
the same place. The held-out logits then give the temperature that calibrates the probabilities (Guo et al., 2017,
arXiv:1706.04599).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from quickstudy.errors import HeadError
from quickstudy.learning.calibration import probabilities_of
from quickstudy.learning.softmax import (
    Features,
    Fit,
    Floats,
    fit_softmax,
    in_row_space,
    prepare_features,
    signed_sqrt,
)

Integers = NDArray[np.intp]
_Start = tuple[NDArray[np.floating], NDArray[np.floating]]

_STRENGTHS = tuple(10.0 ** (half / 2) for half in range(4, -13, -1))  # 100 down to 1e-6
_FIRST = 6  # 10^-1 is where the walk begins
_FOLDS = 5
_PRECISION = 1e-4
# What cross-validation tells apart: log losses that differ by a thousandth of a nat.
_SELECTION_PRECISION = 1e-3
_NOTICEABLE = 1e-3  # nats
# From how much work on one fold scouts. With few rows its images tell too little, and products with few columns run at a
# fraction of the rate, so that one fold takes two fifths of the time of five.
_LARGE = 20_000_000  # rows × features × classes
_MANY_ROWS, _MANY_CLASSES = 15_000, 40
_CERTAIN = 2  # standard errors of a difference between strengths
_TEMPERATURES = (0.25, 16.0)
_WORTH_THREADS = 10_000_000  # rows × features × classes
_LARGEST_BATCH = 60_000_000  # logits of the folds that are fitted side by side: 240 MB in float32


@dataclass(frozen=True, kw_only=True)
class PathPoint:
    """One regularisation strength that cross-validation tried, and what held-out images gave."""

    l2: float
    """The strength, per unit of mean loss and of features scaled to mean square 1."""
    log_loss: float
    """Mean log loss of the held-out images, in nats."""
    accuracy: float
    """Share of the held-out images that were predicted right, between 0 and 1."""
    folds: int = _FOLDS
    """Number of folds that were fitted at this strength. At 1, the figures are those of the chosen strength plus the
    difference between the two strengths on the one fold."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A fitted classifier: class probabilities are softmax(signed_sqrt(bottleneck) · weights + biases)."""

    weights: Floats
    """The weights, d×K, scale and temperature included."""
    biases: Floats
    """The biases, K."""
    l2: float
    """The chosen strength, per unit of mean loss and of features scaled to mean square 1."""
    path: tuple[PathPoint, ...]
    """The strengths that were tried, strongest first; empty where there was too little to cross-validate."""
    held_out: Integers
    """Row numbers (m) of the plain images that were held out, once each, in cross-validation."""
    held_out_classes: Integers
    """Class numbers (m) of the held-out images as predicted by the fit that had not seen them."""
    held_out_logits: Floats
    """Calibrated logits (m×K) of the held-out images: those of the fit that had not seen them, by the temperature."""
    held_out_right: int
    """Number of held-out images that were predicted right."""
    temperature: float
    """The number by which logits were divided to calibrate them on the held-out images; above 1, to be less sure."""
    iterations: int
    """Number of iterations of conjugate gradients that the final fit took."""
    gap: float
    """Bound on how far the final fit's loss is above the optimum, in nats."""

    def logits(self, bottlenecks: NDArray[np.floating]) -> Floats:
        """Work out calibrated logits (n×K) of bottlenecks (n×d)."""
        return signed_sqrt(bottlenecks) @ self.weights + self.biases


def fit_head(
    bottlenecks: NDArray[np.floating],
    labels: Integers,
    keys: Sequence[bytes],
    *,
    classes: int,
    plain: NDArray[np.bool_] | None = None,
    balanced: bool = False,
    l2: float | None = None,
) -> Head:
    """Fit the head to its optimum.

    Args:
        bottlenecks: n×d, one row an image and view.
        labels: n class numbers from 0 to `classes` - 1; each class has at least one row.
        keys: n content hashes; rows with the same key stay in one fold.
        classes: number of classes K.
        plain: which rows are view 0; only they are scored in cross-validation. All rows if left out.
        balanced: weigh each class the same, however many images it has, as scikit-learn's `class_weight="balanced"`.
        l2: take this strength instead of choosing one; cross-validation then scores it alone.

    Raises:
        HeadError: fewer than two classes, a class without rows, or values that are not finite.
    """
    counts = np.bincount(labels, minlength=classes)
    if classes < 2 or not counts.all():
        raise HeadError(f"The head needs at least 2 classes with at least 1 image each; got counts {counts.tolist()}")
    if l2 is not None and not 0 < l2 < np.inf:
        raise HeadError(f"The regularisation strength must be a positive number; got {l2!r}")
    importance = (1 / counts)[labels] if balanced else np.ones(len(labels))
    rows, width = bottlenecks.shape
    few = rows < width  # then the row space has the same optimum, sooner
    folds = assign_folds(labels, keys)
    held_out = np.flatnonzero((folds >= 0) if plain is None else (folds >= 0) & plain)
    order = np.argsort(folds, kind="stable")  # a fold's rows side by side, so that products can leave them out
    features = prepare_features(bottlenecks, order)
    with _few_threads(rows * (rows if few else width) * classes):
        if few:
            features, back = in_row_space(features)
        validation = _CrossValidation(
            features, labels[order], folds[order], np.argsort(order)[held_out], importance[order], classes
        )
        scouts: list[_Scout] = []
        ahead: dict[float, Fit] = {}
        if few or rows * width * classes < _LARGE or (rows < _MANY_ROWS and classes < _MANY_CLASSES):
            path = [validation.score(l2, None)] if l2 is not None else _walk(validation)
        elif l2 is not None:
            ahead = {l2: validation.fit_all(l2, None, _SELECTION_PRECISION)}
            path = [validation.score(l2, validation.spread(ahead[l2]))]
        else:
            path, scouts, ahead = _scout(validation)
        best = min(path, key=lambda trial: trial.log_loss)
        near = ahead.get(best.l2)
        start = (
            (best.weights.mean(axis=0, keepdims=True), best.biases.mean(axis=0, keepdims=True))
            if near is None
            else (near.weights, near.biases)
        )
        fit = validation.fit_all(best.l2, start, _PRECISION)
    temperature = fit_temperature(best.logits, labels[held_out])
    fitted = back(fit.weights[0]) if few else fit.weights[0]
    weights = fitted.astype(np.float64) / (features.scale * temperature)
    return Head(
        weights=weights.astype(np.float32),
        biases=(fit.biases[0] / temperature - features.mean @ weights).astype(np.float32),
        l2=best.l2,
        path=_points(path, scouts, best) if held_out.size else (),
        held_out=held_out,
        held_out_classes=best.logits.argmax(axis=1),
        held_out_logits=best.logits / np.float32(temperature),
        held_out_right=int(np.sum(best.logits.argmax(axis=1) == labels[held_out])),
        temperature=temperature,
        iterations=fit.iterations,
        gap=fit.gap,
    )


def _points(path: Sequence[_Trial], scouts: Sequence[_Scout], best: _Trial) -> tuple[PathPoint, ...]:
    """List the strengths that were tried, strongest first."""
    points = [PathPoint(l2=trial.l2, log_loss=trial.log_loss, accuracy=trial.accuracy) for trial in path]
    chosen = [scout for scout in scouts if scout.l2 == best.l2]
    for scout in scouts:
        if all(scout.l2 != trial.l2 for trial in path):
            points.append(
                PathPoint(
                    l2=scout.l2,
                    log_loss=best.log_loss + float(np.mean(scout.losses - chosen[0].losses)),
                    accuracy=best.accuracy + float(np.mean(scout.right) - np.mean(chosen[0].right)),
                    folds=1,
                )
            )
    return tuple(sorted(points, key=lambda point: -point.l2))


def _few_threads(values: int) -> AbstractContextManager[object]:
    """Allow BLAS one thread where the products are small: below 10 million rows × features × classes.

    OpenBLAS's threads wait for each other actively. On small products they gain nothing, and with other programs on the
    cores, a head on 300 images took 7 s instead of 0.07 s.
    """
    return threadpool_limits(1, user_api="blas") if values < _WORTH_THREADS else nullcontext()


def assign_folds(labels: Integers, keys: Sequence[bytes], *, folds: int = _FOLDS) -> Integers:
    """Assign fold numbers (n) for cross-validation; -1 for rows that are never held out.

    A class's distinct keys are put in order and dealt out one by one; the next class goes on where the last one ended,
    so that folds are even. The only image of a class is never held out: nothing else could stand for it.
    """
    assigned = np.full(len(labels), -1, np.intp)
    dealt = 0
    rows_by_label: dict[int, dict[bytes, list[int]]] = {}
    for row, (label, key) in enumerate(zip(labels.tolist(), keys, strict=True)):
        rows_by_label.setdefault(label, {}).setdefault(key, []).append(row)
    for label in sorted(rows_by_label):
        rows_by_key = rows_by_label[label]
        if len(rows_by_key) < 2:
            continue
        for key in sorted(rows_by_key):
            assigned[rows_by_key[key]] = dealt % folds
            dealt += 1
    return assigned


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """One strength's fits on all folds; `logits` are those of the held-out rows, by the fit that had not seen them."""

    l2: float
    """Strength of the regularisation."""
    log_loss: float
    """Mean log loss of the held-out rows, in nats; NaN where there are none."""
    accuracy: float
    """Share of the held-out rows that were predicted right; NaN where there are none."""
    logits: Floats
    """Logits of the held-out rows, m×K."""
    weights: Floats
    """Weights of each fold's fit, F×d×K."""
    biases: Floats
    """Biases of each fold's fit, F×K."""


@dataclass(frozen=True, kw_only=True)
class _Scout:
    """One strength's fit on all folds but the first."""

    l2: float
    """Strength of the regularisation."""
    losses: NDArray[np.float64]
    """Losses of the first fold's held-out rows, in nats."""
    right: NDArray[np.bool_]
    """Whether these rows were predicted right."""
    fit: Fit
    """The fit."""


class _CrossValidation:
    """Fits folds at a given strength, as many side by side as memory allows."""

    def __init__(
        self,
        features: Features,
        labels: Integers,
        folds: Integers,
        held_out: Integers,
        importance: NDArray[np.float64],
        classes: int,
    ) -> None:
        self.features, self.labels, self.classes = features, labels, classes
        self.held_out, self.held_out_folds = held_out, folds[held_out]
        self.scouted = self.held_out_folds == 0
        self.importance = importance
        self.used = np.arange(max(int(folds.max(initial=-1)) + 1, 1))
        self.sample_weights = _normalise(importance[:, None] * (folds[:, None] != self.used))
        self.together = max(1, _LARGEST_BATCH // (len(labels) * classes))

    def score(self, l2: float, start: _Start | None, first: Fit | None = None) -> _Trial:
        """Fit every fold, or all but the first where that is known, and score the held-out rows."""
        done = [] if first is None else [first]
        logits = np.empty((len(self.held_out), self.classes), np.float32)
        todo = self.used[len(done) :]
        batches = [todo[i : i + self.together] for i in range(0, len(todo), self.together)]
        for batch in batches:
            near = None if start is None else (start[0][batch], start[1][batch])
            done.append(self.fit(self.sample_weights[:, batch], l2, _SELECTION_PRECISION, near))
        for batch, fit in zip([self.used[: len(self.used) - len(todo)], *batches][-len(done) :], done, strict=True):
            for position, fold in enumerate(batch):
                mine = self.held_out_folds == fold
                logits[mine] = fit.logits_of(self.held_out[mine], position)
        truth = self.labels[self.held_out]
        return _Trial(
            l2=l2,
            log_loss=float(_losses(logits, truth).mean()) if len(truth) else float("nan"),
            accuracy=float(np.mean(logits.argmax(axis=1) == truth)) if len(truth) else float("nan"),
            logits=logits,
            weights=np.concatenate([fit.weights for fit in done]),
            biases=np.concatenate([fit.biases for fit in done]),
        )

    def scout(self, l2: float, start: _Start | None) -> _Scout:
        """Fit all folds but the first and score the rows of the first."""
        fit = self.fit(self.sample_weights[:, :1], l2, _SELECTION_PRECISION, start)
        rows = self.held_out[self.scouted]
        logits = fit.logits_of(rows, 0)
        right = logits.argmax(axis=1) == self.labels[rows]
        return _Scout(l2=l2, losses=_losses(logits, self.labels[rows]), right=right, fit=fit)

    def fit_all(self, l2: float, start: _Start | None, precision: float) -> Fit:
        """Fit all rows."""
        return self.fit(_normalise(self.importance[:, None]), l2, precision, start)

    def fit(self, sample_weights: Floats, l2: float, precision: float, start: _Start | None) -> Fit:
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

    def spread(self, fit: Fit) -> _Start:
        """Let every fold start from the same fit."""
        return np.repeat(fit.weights, len(self.used), axis=0), np.repeat(fit.biases, len(self.used), axis=0)


def _scout(validation: _CrossValidation) -> tuple[list[_Trial], list[_Scout], dict[float, Fit]]:
    """Walk with one fold, and fit all five only at strengths that could be the best.

    A strength is left to the one fold where its loss there is above the best one's by more than chance: the losses of
    the same images at both strengths are compared, and the mean difference must be two standard errors above what is
    noticeable in the other's favour. The folds start from the fit to all rows, and from the scout's way between
    strengths.

    Returns:
        The strengths at which five folds were fitted, the scouts, and fits to all rows, by strength.
    """
    scouts: dict[int, _Scout] = {}

    def scout(position: int, neighbours: Sequence[int]) -> _Scout:
        if position not in scouts:
            near = [scouts[neighbour].fit for neighbour in neighbours]
            start = _further(near[0], near[1] if len(near) > 1 else None) if near else None
            scouts[position] = validation.scout(_STRENGTHS[position], start)
        return scouts[position]

    def difference(one: int, other: int) -> tuple[float, float]:
        apart = scouts[one].losses - scouts[other].losses
        return float(apart.mean()), float(apart.std() / len(apart) ** 0.5)

    scout(_FIRST, ())
    for direction in (+1, -1):
        position = _FIRST + direction
        while 0 <= position < len(_STRENGTHS):
            behind = [p for p in (position - direction, position - 2 * direction) if p in scouts]
            scout(position, behind)
            if difference(position, position - direction)[0] > -_NOTICEABLE:
                break
            position += direction
        if len(scouts) > 2:
            break  # weaker was better, so stronger is not
    best = origin = min(scouts, key=lambda position: float(scouts[position].losses.mean()))
    known = scouts[best].fit
    fit = validation.fit_all(_STRENGTHS[best], (known.weights, known.biases), _SELECTION_PRECISION)
    trials = {best: validation.score(_STRENGTHS[best], validation.spread(fit), known)}
    moving = True
    while moving:
        moving = False
        for position in (best + 1, best - 1):
            if position in trials or not 0 <= position < len(_STRENGTHS):
                continue
            if position not in scouts and best == origin:
                continue  # the walk did not go there
            mine = scout(position, (best,))
            above, error = difference(position, best)
            if above > _CERTAIN * error - _NOTICEABLE:
                continue
            start = (
                trials[best].weights + (mine.fit.weights - scouts[best].fit.weights),
                trials[best].biases + (mine.fit.biases - scouts[best].fit.biases),
            )
            trials[position] = validation.score(_STRENGTHS[position], start, mine.fit)
            if trials[position].log_loss < trials[best].log_loss:
                best, moving = position, True
                break
    return list(trials.values()), list(scouts.values()), {_STRENGTHS[origin]: fit}


def _further(last: Fit | _Trial, before: Fit | _Trial | None) -> _Start:
    """Go on from the last strength's fit, as far again as the weights came from the one before.

    On the clothing photos the third strength takes 8 iterations from there; it took 26 from the second's fit.
    """
    if before is None:
        return last.weights, last.biases
    return 2 * last.weights - before.weights, 2 * last.biases - before.biases


def _walk(validation: _CrossValidation) -> list[_Trial]:
    """Try strengths from the usual one on, weaker or else stronger, as long as the log loss falls noticeably."""
    path = [validation.score(_STRENGTHS[_FIRST], None)]
    if not len(validation.held_out):
        return path
    for direction in (+1, -1):
        position, last, before = _FIRST + direction, path[0], None
        while 0 <= position < len(_STRENGTHS):
            trial = validation.score(_STRENGTHS[position], _further(last, before))
            path.append(trial)
            if trial.log_loss > last.log_loss - _NOTICEABLE:
                break
            position, last, before = position + direction, trial, last
        if len(path) > 2:
            break  # weaker was better, so stronger is not
    return path


def _normalise(weights: NDArray[np.float64]) -> Floats:
    normalised: Floats = (weights / weights.sum(axis=0)).astype(np.float32)
    return normalised


def _losses(logits: NDArray[np.floating], labels: Integers) -> NDArray[np.float64]:
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    losses: NDArray[np.float64] = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]
    return losses


def fit_temperature(logits: NDArray[np.floating], labels: Integers) -> float:
    """Find the number to divide logits by for the least held-out log loss, to a ten-thousandth of itself.

    It lies between 1/4 and 16, and at one of these ends if the least lies beyond: images that are all told apart would
    make any classifier bolder and bolder. It is 1 where fewer than 50 held-out images could tell. The log loss is
    convex in 1/T, so its slope, the mean over images of what the probabilities expect of the logits less the logit of
    the label, changes its sign once; the place is found by halving.
    """
    if len(labels) < 50:
        return 1.0
    z = logits.astype(np.float64)
    z -= z[np.arange(len(z)), labels][:, None]
    coldest, hottest = _TEMPERATURES
    while hottest > coldest * (1 + 1e-4):
        middle = (coldest * hottest) ** 0.5
        if np.mean((probabilities_of(z / middle) * z).sum(axis=1)) > 0:
            coldest = middle
        else:
            hottest = middle
    return float((coldest * hottest) ** 0.5)
