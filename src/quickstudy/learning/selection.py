"""The head: softmax regression whose regularisation is chosen by cross-validation on the training bottlenecks.

Folds are dealt out by content hash, class by class, so they depend on neither file order nor worker count, and all
views of an image, and all its exact copies, are in one fold. The strength is found by walking a half-decade grid from
its usual place, 0.1, downhill in cross-validated log loss, which is smooth and has one minimum where accuracy is a
staircase. The walk stops where the loss no longer falls by 10⁻³ nats; a full grid costs three times as much and ends at
the same place. To begin nearer to a weak strength does not pay: with 67 classes, whose best is 0.003, the first fit at
0.01 took 73 passes a fold, where the way from 0.1 takes 17 a strength. The held-out logits then give the temperature
that calibrates the probabilities (Guo et al., 2017, arXiv:1706.04599).

Cross-validation also chooses what the head sees: a network's last features alone, or with what earlier blocks know. The
more values, the more there is to misread in a few images, so the levels have to earn their place: their log loss must
be lower by more than its standard error, image by image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import HeadError
from quickstudy.learning.calibration import probabilities_of
from quickstudy.learning.softmax import (
    Features,
    Fit,
    Floats,
    fit_softmax,
    in_small_space,
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
_TEMPERATURES = (0.25, 16.0)
_FEWEST_COMPARED = 50  # held-out images
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
    widths: Sequence[int] | None = None,
    plain: NDArray[np.bool_] | None = None,
    balanced: bool = False,
    l2: float | None = None,
) -> Head:
    """Fit the head to its optimum.

    Where there are many features and rows, the weights are those of the directions in which the rows vary most: 768, or
    a sixth of the features.

    Args:
        bottlenecks: n×d, one row an image and view.
        labels: n class numbers from 0 to `classes` - 1; each class has at least one row.
        keys: n content hashes; rows with the same key stay in one fold.
        classes: number of classes K.
        widths: number of features in each group, in their order, where groups are scaled each by a number of its own;
            left out, all features are one group.
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
    folds = assign_folds(labels, keys)
    held_out = np.flatnonzero((folds >= 0) if plain is None else (folds >= 0) & plain)
    order = np.argsort(folds, kind="stable")  # a fold's rows side by side, so that products can leave them out
    features, back = in_small_space(prepare_features(bottlenecks, order, widths=widths))
    validation = _CrossValidation(
        features, labels[order], folds[order], np.argsort(order)[held_out], importance[order], classes
    )
    path = [validation.score(l2, None)] if l2 is not None else _walk(validation)
    best = min(path, key=lambda trial: trial.log_loss)
    start = best.weights.mean(axis=0, keepdims=True), best.biases.mean(axis=0, keepdims=True)
    fit = validation.fit_all(best.l2, start)
    temperature = fit_temperature(best.logits, labels[held_out])
    weights = back(fit.weights[0]) / (features.scale[:, None] * temperature)
    return Head(
        weights=weights.astype(np.float32),
        biases=(fit.biases[0] / temperature - features.mean @ weights).astype(np.float32),
        l2=best.l2,
        path=_points(path) if held_out.size else (),
        held_out=held_out,
        held_out_classes=best.logits.argmax(axis=1),
        held_out_logits=best.logits / np.float32(temperature),
        held_out_right=int(np.sum(best.logits.argmax(axis=1) == labels[held_out])),
        temperature=temperature,
        iterations=fit.iterations,
        gap=fit.gap,
    )


@dataclass(frozen=True, kw_only=True)
class LevelsCompared:
    """What cross-validation found of heads that see the last features alone, and of those that see all levels."""

    log_loss_last: float
    """Mean log loss of the held-out images by the head on the last features, in nats, after calibration."""
    log_loss_all: float
    """Mean log loss of the same images by the head on all levels, in nats, after calibration."""
    standard_error: float
    """Standard error of the difference between the two means, in nats, from the differences image by image."""

    @property
    def all_pay(self) -> bool:
        """Whether all levels are better by more than the standard error."""
        return self.log_loss_last - self.log_loss_all > self.standard_error

    def to_dict(self) -> dict[str, Any]:
        """Give what was found and what was chosen as JSON values."""
        return {**asdict(self), "chosen": "all" if self.all_pay else "last"}


def choose_head(
    kept: NDArray[np.floating],
    labels: Integers,
    keys: Sequence[bytes],
    *,
    last: Sequence[int],
    widths: Sequence[int],
    **options: Any,
) -> tuple[Head, LevelsCompared | None]:
    """Fit a head to the last features, another one to all levels, and take the one that cross-validation prefers.

    Of two that differ by no more than chance, it is the head on the last features. Nothing is compared where fewer than
    50 images are held out.

    Args:
        kept: n×d, one row an image and view: the last features and behind them what earlier blocks know.
        labels: as for `fit_head`.
        keys: as for `fit_head`.
        last: number of features in each group of the last features.
        widths: number of features in each group of `kept`, in their order.
        **options: as for `fit_head`.

    Returns:
        The head, with weights for the last features or for all of them, and what was compared.
    """
    head = fit_head(kept[:, : sum(last)], labels, keys, widths=last, **options)
    if len(head.held_out) < _FEWEST_COMPARED:
        return head, None
    other = fit_head(kept, labels, keys, widths=widths, **options)
    truth = labels[head.held_out]
    before, after = log_losses(head.held_out_logits, truth), log_losses(other.held_out_logits, truth)
    compared = LevelsCompared(
        log_loss_last=float(before.mean()),
        log_loss_all=float(after.mean()),
        standard_error=float((before - after).std(ddof=1) / len(before) ** 0.5),
    )
    return (other if compared.all_pay else head), compared


def _points(path: Sequence[_Trial]) -> tuple[PathPoint, ...]:
    """List the strengths that were tried, strongest first."""
    points = [PathPoint(l2=trial.l2, log_loss=trial.log_loss, accuracy=trial.accuracy) for trial in path]
    return tuple(sorted(points, key=lambda point: -point.l2))


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
        self.importance = importance
        self.used = np.arange(max(int(folds.max(initial=-1)) + 1, 1))
        self.sample_weights = _normalise(importance[:, None] * (folds[:, None] != self.used))
        self.together = max(1, _LARGEST_BATCH // (len(labels) * classes))

    def score(self, l2: float, start: _Start | None) -> _Trial:
        """Fit every fold and score the held-out rows."""
        fits, logits = [], np.empty((len(self.held_out), self.classes), np.float32)
        for first in range(0, len(self.used), self.together):
            batch = slice(first, first + self.together)
            near = None if start is None else (start[0][batch], start[1][batch])
            fits.append(self.fit(self.sample_weights[:, batch], l2, _SELECTION_PRECISION, near))
            for position, fold in enumerate(self.used[batch]):
                mine = self.held_out_folds == fold
                logits[mine] = fits[-1].logits_of(self.held_out[mine], position)
        truth = self.labels[self.held_out]
        return _Trial(
            l2=l2,
            log_loss=float(log_losses(logits, truth).mean()) if len(truth) else float("nan"),
            accuracy=float(np.mean(logits.argmax(axis=1) == truth)) if len(truth) else float("nan"),
            logits=logits,
            weights=np.concatenate([fit.weights for fit in fits]),
            biases=np.concatenate([fit.biases for fit in fits]),
        )

    def fit_all(self, l2: float, start: _Start) -> Fit:
        """Fit all rows, as precisely as a head is."""
        return self.fit(_normalise(self.importance[:, None]), l2, _PRECISION, start)

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


def _further(last: _Trial, before: _Trial | None) -> _Start:
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
        position, last, before = _FIRST + direction, path[0], path[1] if len(path) > 1 else None
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


def log_losses(logits: NDArray[np.floating], labels: Integers) -> NDArray[np.float64]:
    """Work out the log loss of each image (n), in nats, of its logits (n×K) and its class number (n)."""
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
