"""The kinds of head: one of K classes an image, or any number of K labels; what differs between the two is here.

A head is linear in what it sees. Of one class an image, the probabilities are the softmax of the logits and sum to 1;
of several labels, each logit has a probability of its own, by the logistic function, as if each label had a head to
itself. All else is the same for both: the features, the products with them, the choice of the strength by
cross-validation, the calibration, the model file. So whatever is done with targets asks `link_of` which kind they are
of: class numbers, n, or marks, n×K, 1 where the image has the label.
"""

# ruff: noqa: ARG002 (both kinds are asked the same, and one does not need all of it)
from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from quickstudy.images.drawn_roles import spread_evenly
from quickstudy.learning.calibration import probabilities_of
from quickstudy.learning.features import Real

Integers = NDArray[np.intp]
HeadKind = Literal["one", "several"]
"""The kinds of head by name: one of K classes an image, or several of K labels."""


class Link(Protocol):
    """What a kind of head does with logits; shapes are sets×K×rows while it is fitted, and rows×K afterwards."""

    kind: HeadKind
    """Name of the kind."""

    def units(self, classes: int) -> int:
        """Say how many parts a fit to K columns falls into that know nothing of each other: 1 or K."""

    def loss_of_nothing(self, classes: int) -> float:
        """Say what the loss of a unit is where all weights are 0, in nats."""

    def centred(self, by_class: Real) -> Real:
        """Take away, in place, what parameters (sets×K×d) can all be shifted by without any effect; return them."""

    def given(self, logits: Real) -> tuple[Real, Real]:
        """Work out probabilities (sets×K×rows), and what `losses` and `residual` need besides."""

    def losses(self, logits: Real, more: Real, targets: Integers, weights: Real) -> NDArray[np.float64]:
        """Sum up the rows' losses (sets×units), each by its weight (sets×rows)."""

    def residual(self, probabilities: Real, more: Real, targets: Integers, weights: Real) -> Real:
        """Work out the weighted losses' derivative by the logits (sets×K×rows)."""

    def bend(self, moved: Real, probabilities: Real) -> Real:
        """Multiply a change of the logits by the losses' second derivative (sets×K×rows)."""

    def wanted(self, targets: Integers, weights: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
        """Sum up the weights (sets×rows) of each class's rows (sets×K)."""

    def shifted(self, probabilities: Real, factors: Real) -> Real:
        """Multiply the odds of classes by factors (sets×K×1)."""

    def curvature(self, weighted: Real, probabilities: Real) -> Real:
        """Work out the second derivative by the biases (sets×K×K), made regular where a shift of all has no effect."""

    def log_losses(self, logits: Real, targets: Integers) -> NDArray[np.float64]:
        """Work out the log loss of each row (m), in nats, from logits (m×K); of several labels, their mean."""

    def right(self, logits: Real, targets: Integers) -> NDArray[np.bool_]:
        """Say of each row (m) whether what is more probable than not, or most probable, is so."""

    def slope(self, logits: NDArray[np.float64], targets: Integers, temperature: float) -> float:
        """Work out the derivative of the mean log loss by what logits are multiplied with, at 1 / temperature."""

    def probabilities(self, logits: Real) -> NDArray[np.float64]:
        """Work out probabilities of logits (m×K), in float64."""

    def deal_out(self, targets: Integers, keys: Sequence[bytes]) -> tuple[Integers, Integers]:
        """Number the rows for cross-validation, and within what they have in common; see `strengths.deal_out`."""

    def counts(self, targets: Integers, classes: int) -> Integers:
        """Count each class's rows (K)."""


class _OneOf:
    """The softmax of the logits: one class an image."""

    kind: HeadKind = "one"

    def units(self, classes: int) -> int:
        return 1

    def loss_of_nothing(self, classes: int) -> float:
        return float(np.log(classes))

    def centred(self, by_class: Real) -> Real:
        by_class -= by_class.mean(axis=1, keepdims=True)
        return by_class

    def given(self, logits: Real) -> tuple[Real, Real]:
        largest = logits.max(axis=1, initial=-np.inf, keepdims=True)
        p = np.exp(logits - largest)
        total = p.sum(axis=1, keepdims=True)
        p /= total
        return p, (np.log(total) + largest)[:, 0]

    def losses(self, logits: Real, more: Real, targets: Integers, weights: Real) -> NDArray[np.float64]:
        of_labels = logits[:, targets, np.arange(len(targets))]
        summed: NDArray[np.float64] = np.einsum("fn,fn->f", more - of_labels, weights, dtype=np.float64)
        return summed[:, None]

    def residual(self, probabilities: Real, more: Real, targets: Integers, weights: Real) -> Real:
        found: Real = probabilities * weights[:, None]
        # 1 - p of the label as the sum of the others: the difference keeps no digit where p is nearly 1.
        positions = np.arange(len(targets))
        found[:, targets, positions] = 0
        found[:, targets, positions] = -found.sum(axis=1)
        return found

    def bend(self, moved: Real, probabilities: Real) -> Real:
        bent: Real = moved * probabilities
        bent -= bent.sum(axis=1, keepdims=True) * probabilities
        return bent

    def wanted(self, targets: Integers, weights: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
        return np.stack([np.bincount(targets, mine, minlength=classes) for mine in weights])

    def shifted(self, probabilities: Real, factors: Real) -> Real:
        p: Real = probabilities * factors
        p /= p.sum(axis=1, keepdims=True)
        return p

    def curvature(self, weighted: Real, probabilities: Real) -> Real:
        found: Real = -(weighted @ probabilities.swapaxes(1, 2))
        diagonal = np.arange(found.shape[1])
        found[:, diagonal, diagonal] += weighted.sum(axis=2)
        return found

    def log_losses(self, logits: Real, targets: Integers) -> NDArray[np.float64]:
        z = logits.astype(np.float64)
        z -= z.max(axis=1, keepdims=True)
        losses: NDArray[np.float64] = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), targets]
        return losses

    def right(self, logits: Real, targets: Integers) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = logits.argmax(axis=1) == targets
        return found

    def slope(self, logits: NDArray[np.float64], targets: Integers, temperature: float) -> float:
        z = logits - logits[np.arange(len(logits)), targets][:, None]
        return float(np.mean((probabilities_of(z / temperature) * z).sum(axis=1)))

    def probabilities(self, logits: Real) -> NDArray[np.float64]:
        return probabilities_of(logits)

    def deal_out(self, targets: Integers, keys: Sequence[bytes]) -> tuple[Integers, Integers]:
        dealt, places = np.full(len(targets), -1, np.intp), np.zeros(len(targets), np.intp)
        if not len(targets):
            return dealt, places
        words = _words(keys)
        order = np.lexsort((*words[::-1], targets))
        new_label = np.diff(targets[order], prepend=-1) != 0
        new_key = new_label | (np.diff(words[:, order], prepend=words[:, order[:1]]) != 0).any(axis=0)
        number = np.cumsum(new_key) - 1  # of the distinct pairs of label and key, in order
        of_label = np.cumsum(new_label) - 1
        first = number[new_label]
        sizes = np.diff(first, append=number[-1] + 1)[of_label]
        places[order] = number - first[of_label]
        of_large = np.cumsum(new_key & (sizes >= FOLDS)) - 1
        dealt[order] = np.select([sizes == 1, sizes < FOLDS], [-1, places[order]], of_large)
        return dealt, places

    def counts(self, targets: Integers, classes: int) -> Integers:
        return np.bincount(targets, minlength=classes)


class _SeveralOf:
    """The logistic function of each logit: any number of labels an image."""

    kind: HeadKind = "several"

    def units(self, classes: int) -> int:
        return classes

    def loss_of_nothing(self, classes: int) -> float:
        return float(np.log(2))

    def centred(self, by_class: Real) -> Real:
        return by_class

    def given(self, logits: Real) -> tuple[Real, Real]:
        # 1 - p apart from p: the difference keeps no digit where p is nearly 1.
        less = np.exp(-np.abs(logits))
        rarer = less / (1 + less)
        likely = 1 - rarer
        above = logits > 0
        return np.where(above, likely, rarer), np.where(above, rarer, likely)

    def losses(self, logits: Real, more: Real, targets: Integers, weights: Real) -> NDArray[np.float64]:
        each = np.abs(logits)  # the loss is log(1 + exp(-|z|)), and |z| more where the label is not what z says
        loss = np.log1p(np.exp(-each))
        each *= (logits > 0) != targets.T
        loss += each
        found: NDArray[np.float64] = np.matmul(loss, weights[:, :, None])[:, :, 0].astype(np.float64)
        return found

    def residual(self, probabilities: Real, more: Real, targets: Integers, weights: Real) -> Real:
        found: Real = np.where(targets.T, -more, probabilities)
        found *= weights[:, None]
        return found

    def bend(self, moved: Real, probabilities: Real) -> Real:
        bent: Real = moved * probabilities
        bent -= bent * probabilities
        return bent

    def wanted(self, targets: Integers, weights: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
        found: NDArray[np.float64] = weights @ targets
        return found

    def shifted(self, probabilities: Real, factors: Real) -> Real:
        p: Real = probabilities * factors
        p /= p + 1 - probabilities
        return p

    def curvature(self, weighted: Real, probabilities: Real) -> Real:
        sets, classes, _ = weighted.shape
        found = np.zeros((sets, classes, classes), weighted.dtype)
        diagonal = np.arange(classes)
        found[:, diagonal, diagonal] = (weighted - weighted * probabilities).sum(axis=2)
        return found

    def log_losses(self, logits: Real, targets: Integers) -> NDArray[np.float64]:
        z = logits.astype(np.float64)
        losses: NDArray[np.float64] = (np.logaddexp(0, z) - z * targets).mean(axis=1)
        return losses

    def right(self, logits: Real, targets: Integers) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = ((logits > 0) == targets).all(axis=1)
        return found

    def slope(self, logits: NDArray[np.float64], targets: Integers, temperature: float) -> float:
        return float(np.mean((self.probabilities(logits / temperature) - targets) * logits))

    def probabilities(self, logits: Real) -> NDArray[np.float64]:
        return np.asarray(self.given(logits.astype(np.float64))[0], np.float64)

    def deal_out(self, targets: Integers, keys: Sequence[bytes]) -> tuple[Integers, Integers]:
        dealt, places = np.full(len(targets), -1, np.intp), np.zeros(len(targets), np.intp)
        labels = {key: np.flatnonzero(row).tolist() for key, row in zip(keys, targets, strict=True)}
        folds = spread_evenly(labels, (1 / FOLDS,) * FOLDS)
        alone = _alone(folds, dict(zip(keys, targets, strict=True)))
        following = [0] * FOLDS
        numbers: dict[bytes, tuple[int, int]] = {}
        for key in sorted(folds):
            fold = folds[key]
            numbers[key] = (-1, 0) if key in alone else (following[fold] * FOLDS + fold, following[fold])
            following[fold] += 1
        for row, key in enumerate(keys):
            dealt[row], places[row] = numbers[key]
        return dealt, places

    def counts(self, targets: Integers, classes: int) -> Integers:
        counted: Integers = targets.sum(axis=0)
        return counted


FOLDS = 5
"""Number of folds of a cross-validation."""
ONE_OF: Link = _OneOf()
"""One class an image."""
SEVERAL_OF: Link = _SeveralOf()
"""Any number of labels an image."""


def link_of(targets: Integers) -> Link:
    """Tell of which kind targets are: class numbers (n), or marks (n×K)."""
    return ONE_OF if targets.ndim == 1 else SEVERAL_OF


def link_named(kind: str) -> Link:
    """Give the link of a kind of head, `one` or `several`.

    Raises:
        ValueError: there is no such kind.
    """
    for link in (ONE_OF, SEVERAL_OF):
        if link.kind == kind:
            return link
    raise ValueError(f"its head is of the kind {kind!r}")


def _words(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    """Write n keys as columns of numbers, which come in the same order as the keys."""
    longest = -(-max(map(len, keys)) // 8) * 8
    joined = b"".join(key.ljust(longest, b"\0") for key in keys)
    words = np.frombuffer(joined, ">u8").reshape(len(keys), -1).astype(np.uint64)
    lengths = np.fromiter(map(len, keys), np.uint64, len(keys))
    return np.vstack([words.T, lengths])


def _alone(folds: dict[bytes, int], marks: dict[bytes, Integers]) -> set[bytes]:
    """Find the images that no fit may leave out: without their fold, a label would be on no image, or on all."""
    keys = sorted(folds)
    table, fold_of = np.stack([marks[key] for key in keys]), np.array([folds[key] for key in keys])
    found: set[bytes] = set()
    for value in (0, 1):
        has = table == value
        total = has.sum(axis=0)
        for fold in range(FOLDS):
            mine = has & (fold_of == fold)[:, None]
            only = (mine.sum(axis=0) == total) & (total > 0)
            found.update(keys[row] for row in np.flatnonzero(mine[:, only].any(axis=1)))
    return found
