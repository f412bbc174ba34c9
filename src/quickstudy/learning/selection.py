"""The head: softmax regression whose regularisation, and whose features, cross-validation chooses.

How the strength is chosen, `strengths` says. The held-out logits then give the temperature that calibrates the
probabilities (Guo et al., 2017, arXiv:1706.04599). Of both, few images know less than what is usual.

Cross-validation also chooses what the head sees: a network's last features alone, or with what earlier blocks know. The
more values, the more there is to misread in a few images, so the levels have to earn their place: their log loss must
be lower by more than its standard error, image by image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import HeadError
from quickstudy.learning.features import (
    Floats,
    StoredRows,
    first_values,
    logits_of_names,
    prepare_features,
    signed_sqrt,
)
from quickstudy.learning.links import HeadKind, Integers, link_of
from quickstudy.learning.spaces import in_small_space
from quickstudy.learning.strengths import (
    CrossValidated,
    CrossValidation,
    Found,
    choose_strength,
    deal_out,
    fit_folds,
    folds_of,
    log_losses,
)

_TEMPERATURES = (0.25, 16.0)
_NEAR_ONE = 0.2  # standard deviation, beforehand, of the temperature's natural logarithm, once a strength was chosen
_FEWEST_COMPARED = 50  # held-out images


@dataclass(frozen=True, kw_only=True)
class PathPoint:
    """One regularisation strength that cross-validation tried, and what held-out images gave."""

    l2: float
    """The strength, per unit of mean loss and of features scaled to mean square 1."""
    log_loss: float
    """Mean log loss of the held-out images, in nats."""
    accuracy: float
    """Share of the held-out images that were predicted right, between 0 and 1."""
    folds: int
    """Number of folds of which images were held out: 5, or fewer where there are few images. Where it is 1 with many
    images, the figures are those of the chosen strength and, added, the difference between the two on that fold."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A fitted classifier: class probabilities are those of signed_sqrt(bottleneck) · weights + biases, by its kind."""

    kind: HeadKind
    """Whether images are of one class, and probabilities the softmax of the logits, or may have several labels."""
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
    """Class numbers (m) of the held-out images as predicted by the fit that had not seen them; where there may be
    several labels, the most probable ones."""
    held_out_logits: Floats
    """Calibrated logits (m×K) of the held-out images: those of the fit that had not seen them, by the temperature."""
    held_out_right: int
    """Number of images that were predicted right when they were held out, in all labels where there may be several."""
    held_out_count: int
    """Number of images that were held out; `held_out` are these, or some of them where they are too many to keep."""
    temperature: float
    """The number by which logits were divided to calibrate them on the held-out images; above 1, to be less sure."""
    iterations: int
    """Number of iterations of conjugate gradients that the final fit took."""
    gap: float
    """Bound on how far the final fit's loss is above the optimum, in nats."""
    never_held_out: int = 0
    """Number of images that cross-validation never held out: the only ones of their class, or without which a label
    would be on no image, or on all."""
    names: Floats | None = None
    """What the names of the classes say (F×K), which is then added; None where they do not count. See `prior`."""

    def logits(self, bottlenecks: NDArray[np.floating]) -> Floats:
        """Work out calibrated logits (n×K) of bottlenecks (n×d)."""
        learned = signed_sqrt(bottlenecks) @ self.weights + self.biases
        return learned if self.names is None else learned + logits_of_names(bottlenecks, self.names)


def fit_head(
    bottlenecks: NDArray[np.floating] | StoredRows,
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
        labels: n class numbers from 0 to `classes` - 1, each class with at least one row; or marks, n×K, 1 where the
            image has the label, each label on some rows and not on others.
        keys: n content hashes; rows with the same key stay in one fold.
        classes: number of classes K.
        widths: number of features in each group, in their order, where groups are scaled each by a number of its own;
            left out, all features are one group.
        plain: which rows are view 0; only they are scored in cross-validation. All rows if left out.
        balanced: weigh each class the same, however many images it has, as scikit-learn's `class_weight="balanced"`.
        l2: take this strength instead of choosing one; cross-validation then scores it alone.

    Raises:
        HeadError: fewer than two classes, a class without rows, a label on all rows, or values that are not finite.
    """
    return _Search(bottlenecks, labels, keys, classes, widths, plain, balanced, l2).head()


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
    kept: NDArray[np.floating] | StoredRows,
    labels: Integers,
    keys: Sequence[bytes],
    *,
    last: Sequence[int],
    widths: Sequence[int],
    **options: Any,
) -> tuple[Head, LevelsCompared | None]:
    """Fit a head to the last features, another one to all levels, and take the one that cross-validation prefers.

    Of two that differ by no more than chance, it is the head on the last features. Nothing is compared where fewer than
    50 images are held out. Where there are so many that one fold scouts for the strength, its images tell, before
    calibration; the other folds are fitted for what was chosen alone.

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
    classes = options.pop("classes")
    one = _Search(first_values(kept, sum(last)), labels, keys, classes, widths=last, **options)
    if len(one.held_out) < _FEWEST_COMPARED:
        return one.head(), None
    other = _Search(kept, labels, keys, classes, widths=widths, near=one.chosen.l2, **options)
    before, after = one.log_losses(), other.log_losses()
    compared = LevelsCompared(
        log_loss_last=float(before.mean()),
        log_loss_all=float(after.mean()),
        standard_error=float((before - after).std(ddof=1) / len(before) ** 0.5),
    )
    return (other if compared.all_pay else one).head(), compared


class _Search:
    """The head that cross-validation chooses from some features, all but its fit to all rows."""

    def __init__(
        self,
        bottlenecks: NDArray[np.floating] | StoredRows,
        labels: Integers,
        keys: Sequence[bytes],
        classes: int,
        widths: Sequence[int] | None = None,
        plain: NDArray[np.bool_] | None = None,
        balanced: bool = False,
        l2: float | None = None,
        near: float | None = None,
    ) -> None:
        """Take what `fit_head` takes, and a strength that was best for other features of the images."""
        self.link = link_of(labels)
        counts = self.link.counts(labels, classes)
        if self.link.kind == "several":
            if not counts.all() or (counts == len(labels)).any() or balanced:
                raise HeadError(
                    "The head needs labels that are on some images and not on others, weighed as they are; got counts "
                    f"{counts.tolist()} of {len(labels)}"
                )
        elif classes < 2 or not counts.all():
            raise HeadError(
                f"The head needs at least 2 classes with at least 1 image each; got counts {counts.tolist()}"
            )
        if l2 is not None and not 0 < l2 < np.inf:
            raise HeadError(f"The regularisation strength must be a positive number; got {l2!r}")
        importance = (1 / counts)[labels] if balanced else np.ones(len(labels))
        dealt, places = deal_out(labels, keys)
        order = np.argsort(folds_of(dealt), kind="stable")  # products leave a fold's rows out
        plain = np.ones(len(labels), bool) if plain is None else plain
        self.features, self.back = in_small_space(prepare_features(bottlenecks, order, widths=widths))
        self.validation = CrossValidation(
            self.features, labels[order], dealt[order], places[order], plain[order], importance[order], classes
        )
        self.never_held_out = int(((dealt < 0) & plain).sum())
        self.chosen, self.tried = choose_strength(self.validation, l2=l2, near=near)
        self._spread = _NEAR_ONE if l2 is None else np.inf
        self._in_order = np.argsort(order[self.validation.held_out])  # of the rows, not of their folds
        self.held_out = order[self.validation.held_out][self._in_order]
        self.truth = labels[self.held_out]

    @cached_property
    def found(self) -> Found:
        """The fits of all folds at the chosen strength."""
        return fit_folds(self.validation, self.chosen, self.tried)

    @cached_property
    def logits(self) -> Floats:
        """Logits of the held-out rows, by the fits that had not seen them."""
        return self.found.best.logits[self._in_order]

    @cached_property
    def temperature(self) -> float:
        """The number to divide logits by."""
        return fit_temperature(self.logits, self.truth, spread=self._spread)

    def log_losses(self) -> NDArray[np.float64]:
        """Work out the log losses of the held-out rows, in nats, after calibration; a scout's are those of one fold."""
        if not isinstance(self.chosen, CrossValidated):
            return self.chosen.losses
        return log_losses(self.logits / np.float32(self.temperature), self.truth)

    def head(self) -> Head:
        """Fit all rows at the chosen strength, as precisely as a head is."""
        fit = self.found.whole or self.validation.fit_all(self.found.best)
        weights = self.back(fit.weights[0]) / (self.features.scale[:, None] * self.temperature)
        predicted = self.logits.argmax(axis=1)
        return Head(
            kind=self.link.kind,
            weights=weights.astype(np.float32),
            biases=(fit.biases[0] / self.temperature - self.features.mean @ weights).astype(np.float32),
            l2=self.found.best.l2,
            path=_points(self.found) if self.held_out.size else (),
            held_out=self.held_out,
            held_out_classes=predicted,
            held_out_logits=self.logits / np.float32(self.temperature),
            held_out_right=int(self.link.right(self.logits, self.truth).sum()),
            held_out_count=len(self.held_out),
            never_held_out=self.never_held_out,
            temperature=self.temperature,
            iterations=fit.iterations,
            gap=fit.gap,
        )


def _points(found: Found) -> tuple[PathPoint, ...]:
    """List the strengths that were tried, strongest first."""
    best, mean = found.best, found.best.losses.mean()
    points = [
        PathPoint(
            l2=one.l2,
            log_loss=float(one.losses.mean()),
            accuracy=float(one.right.mean()),
            folds=len(one.weights),
        )
        for one in found.validated
    ]
    chosen = [scout for scout in found.scouts if scout.l2 == best.l2]
    points += [
        PathPoint(
            l2=scout.l2,
            log_loss=float(mean + scout.losses.mean() - chosen[0].losses.mean()),
            accuracy=float(best.right.mean() + scout.right.mean() - chosen[0].right.mean()),
            folds=1,
        )
        for scout in found.scouts
        if scout.l2 != best.l2
    ]
    return tuple(sorted(points, key=lambda point: -point.l2))


def fit_temperature(logits: NDArray[np.floating], labels: Integers, *, spread: float = np.inf) -> float:
    """Find the number to divide logits by for the least held-out log loss, to a ten-thousandth of itself.

    It lies between 1/4 and 16, and is 16 if the least lies beyond. If the least lies below 1/4, it is 1: images that
    are all told apart would make any classifier bolder and bolder, and say nothing of those that it will get wrong. It
    is 1, too, where fewer than 50 held-out images could tell. The log loss is convex in 1/T, so its slope, the mean
    over images of what the probabilities expect of the logits less the logit of the label, changes its sign once; the
    place is found by halving.

    A head whose strength the same images have chosen is about as bold as they want it. So its temperature is near 1
    beforehand, and is the most probable one, as its strength is (see `strengths`): else one wrong image among sixty,
    which makes it bolder by a half, would undo what the choice had made careful.

    Args:
        logits: n×K.
        labels: n class numbers, or marks, n×K.
        spread: standard deviation of the temperature's natural logarithm about 0, beforehand; infinite if nothing is
            known.
    """
    if len(labels) < 50:
        return 1.0
    z, link = logits.astype(np.float64), link_of(labels)
    answers = len(labels) * link.units(z.shape[1])

    def too_bold(temperature: float) -> bool:
        known = float(np.log(temperature)) / (spread**2 * answers)
        return link.slope(z, labels, temperature) / temperature > known

    coldest, hottest = _TEMPERATURES
    if not too_bold(coldest):
        return 1.0
    while hottest > coldest * (1 + 1e-4):
        middle = (coldest * hottest) ** 0.5
        if too_bold(middle):
            coldest = middle
        else:
            hottest = middle
    return float((coldest * hottest) ** 0.5)
