"""Exact leave-one-out accuracy in one go: ridge regression on class indicators, all regularisation strengths at once.

The prediction for an image by the fit that has not seen it follows from the fit that has: with the hat matrix H, which
takes targets to predictions, the residual without image i is the residual with it divided by 1 - H_ii (Allen, "The
relationship between variable selection and data augmentation and a method for prediction", Technometrics 16, 1974).
That is an identity, not an approximation, and it holds with an intercept that is not penalised. One eigendecomposition
gives H's diagonal and the predictions for every strength (Rifkin and Lippert, "Notes on regularized least squares",
MIT CSAIL, 2007). Everything is in float64: where few images meet many features, 1 - H_ii is small.

Of images that no one machine holds, sums over parts of them are enough: `Sums` add up, exactly and so to the same bits
however the images are parted, and `SolvedSums` is the head of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import HeadError
from quickstudy.learning.features import (
    Features,
    Floats,
    Rounding,
    StoredRows,
    blas_threads,
    prepare_features,
    scale_of,
)
from quickstudy.learning.spaces import in_small_space

RIDGE_STRENGTHS = tuple(10.0 ** (half / 2) for half in range(2, -7, -1))  # 10 down to 0.001
"""The usual strengths, strongest first."""
_BLOCK_ROWS = 4096  # at a time, of which everything is in float64


@dataclass(frozen=True, kw_only=True)
class RidgePoint:
    """What leave-one-out gives at one regularisation strength."""

    l2: float
    """The strength, per unit of mean squared error and of features scaled to mean square 1."""
    squared_error: float
    """Squared error, mean over images and classes, for targets of -1 and 1."""
    right: int
    """Number of images whose class had the largest prediction."""


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """Each image predicted by a ridge head that was fitted to all the others."""

    path: tuple[RidgePoint, ...]
    """What each strength gives, in the order in which they were asked for."""
    best: RidgePoint
    """The point of least squared error; chosen so, its accuracy is hardly an optimum of noise."""
    predicted: NDArray[np.intp]
    """Class number by image at the strength of `best`."""
    n: int
    """Number of images."""


def leave_one_out(
    bottlenecks: NDArray[np.floating] | StoredRows,
    labels: NDArray[np.intp],
    *,
    classes: int,
    widths: Sequence[int] | None = None,
    strengths: tuple[float, ...] = RIDGE_STRENGTHS,
) -> LeaveOneOut:
    """Predict each image by the ridge head of all the others, exactly, for all `strengths`.

    The head is linear with an intercept on the signed square roots of the bottlenecks, as the softmax head is; a
    class's target is 1 for its own images and -1 for others. The penalty `l2 * n` stays the same when an image is left
    out.

    Args:
        bottlenecks: n×d, one row an image.
        labels: n class numbers from 0 to `classes` - 1.
        classes: number of classes K.
        widths: number of features in each group, as for `fit_head`.
        strengths: positive numbers.

    Raises:
        HeadError: fewer than two images or classes, or values that are not finite.
    """
    n = len(labels)
    if n < 2 or classes < 2:
        raise HeadError(f"Leaving one out takes at least 2 images of 2 classes; got {n:,} of {classes:,}")
    features = in_small_space(prepare_features(bottlenecks, widths=widths))[0]
    blocks = [slice(first, first + _BLOCK_ROWS) for first in range(0, n, _BLOCK_ROWS)]
    coordinates, eigenvalues = _principal_coordinates(features, blocks)
    counts = np.bincount(labels, minlength=classes)
    sums = np.zeros((len(eigenvalues), classes))
    for rows in blocks:
        sums += coordinates(rows).T @ np.eye(classes)[labels[rows]]
    ridge = Ridge(counts=counts, eigenvalues=eigenvalues, sums=sums)
    predicted, errors = np.empty((len(strengths), n), np.intp), np.zeros(len(strengths))
    for rows in blocks:
        for number, scores in enumerate(ridge.left_out(coordinates(rows), labels[rows], strengths)):
            predicted[number, rows] = scores.argmax(axis=1)
            errors[number] += squared_errors(scores, labels[rows])
    right = (predicted == labels).sum(axis=1)
    path = ridge.path(strengths, errors, right)
    chosen = path.index(best_of(path))
    return LeaveOneOut(path=path, best=path[chosen], predicted=predicted[chosen], n=n)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ridge:
    """A ridge head for all strengths, in a basis in which the features' second moments are a diagonal."""

    counts: NDArray[np.intp]
    """Number of images of each class, K."""
    eigenvalues: NDArray[np.float64]
    """Sums (r) of the images' squared coordinates."""
    sums: NDArray[np.float64]
    """Sums (r×K) of the coordinates of each class's images."""

    @property
    def n(self) -> int:
        """Number of images."""
        return int(self.counts.sum())

    @property
    def mean(self) -> NDArray[np.float64]:
        """Means (K) of the targets, which are 1 for an image's own class and -1 for the others."""
        return 2 * self.counts / self.n - 1

    def weights(self, l2: float) -> NDArray[np.float64]:
        """Work out the weights (r×K) for coordinates at one strength; the intercepts are `mean`."""
        found: NDArray[np.float64] = 2 * self.sums / (self.eigenvalues + self.n * l2)[:, None]
        return found

    def left_out(
        self, coordinates: NDArray[np.float64], labels: NDArray[np.intp], strengths: Sequence[float]
    ) -> Iterator[NDArray[np.float64]]:
        """Yield for each strength the scores (m×K) of some of the images by the heads that had not seen them.

        Args:
            coordinates: the images' coordinates, m×r.
            labels: their class numbers, m.
            strengths: the strengths.
        """
        targets = np.full((len(labels), len(self.counts)), -1.0)
        targets[np.arange(len(labels)), labels] = 1.0
        shrinking = 1 / (self.eigenvalues[:, None] + self.n * np.array(strengths))
        leverages = 1 / self.n + np.square(coordinates) @ shrinking
        for number, l2 in enumerate(strengths):
            fitted = self.mean + coordinates @ self.weights(l2)
            yield targets - (targets - fitted) / (1 - leverages[:, number, None])

    def path(
        self, strengths: Sequence[float], errors: NDArray[np.float64], right: NDArray[np.intp]
    ) -> tuple[RidgePoint, ...]:
        """Sum up what was found of each strength: sums of `squared_errors`, and how many images were right."""
        return tuple(
            RidgePoint(l2=l2, squared_error=error / (self.n * len(self.counts)), right=count)
            for l2, error, count in zip(strengths, errors.tolist(), right.tolist(), strict=True)
        )


def squared_errors(scores: NDArray[np.float64], labels: NDArray[np.intp]) -> float:
    """Sum the squared errors of scores (m×K) whose targets are 1 for an image's own class and -1 for the others."""
    off = scores + 1
    off[np.arange(len(labels)), labels] -= 2
    return float(np.square(off, out=off).sum())


def best_of(path: Sequence[RidgePoint]) -> RidgePoint:
    """Choose the strength of least squared error, the strongest of equal ones."""
    return min(path, key=lambda point: point.squared_error)


def _principal_coordinates(
    features: Features, blocks: Sequence[slice]
) -> tuple[Callable[[slice], NDArray[np.float64]], NDArray[np.float64]]:
    """Find a basis in which the features' second moments are a diagonal.

    The smaller of the two Gram matrices is decomposed: that of the features, block by block, or that of the rows.

    Returns:
        What gives the coordinates (m×r) of a block of rows, with r the smaller of images and features, and the
        eigenvalues, r.
    """
    n, d = len(features), features.width - 1
    if n < d:
        x = features.values.astype(np.float64)
        x -= x.mean(axis=0)
        eigenvalues, basis = np.linalg.eigh(x @ x.T)
        eigenvalues = np.maximum(eigenvalues, 0)
        own = basis * np.sqrt(eigenvalues)
        return own.__getitem__, eigenvalues
    mean = sum((features.rows(rows)[:, :-1].sum(axis=0, dtype=np.float64) for rows in blocks), np.zeros(d)) / n

    def centred(rows: slice) -> NDArray[np.float64]:
        return features.rows(rows)[:, :-1] - mean

    products = np.zeros((d, d))
    for rows in blocks:
        mine = centred(rows)
        products += mine.T @ mine
    eigenvalues, basis = np.linalg.eigh(products)
    return lambda rows: centred(rows) @ basis, np.maximum(eigenvalues, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sums:
    """Sums over images in whole steps, which are exact, so that they are the same whatever adds them up."""

    counts: NDArray[np.int64]
    """Number of images of each class, K."""
    by_class: NDArray[np.int64]
    """Sums of the steps of each class's images, K×d."""
    products: NDArray[np.int64]
    """Sums of the products of two features' steps, d×d."""

    @staticmethod
    def of(steps: NDArray[np.floating], labels: NDArray[np.intp], classes: int) -> Sums:
        """Sum over images, of their steps (m×d) and class numbers (m); m is at most 4 million.

        A product of two steps has at most 30 bits, so that a float64, which has 53, adds up 8 million of them exactly.
        """
        exact = steps.astype(np.float64)
        members = np.eye(classes)[labels]
        return Sums(
            counts=np.bincount(labels, minlength=classes).astype(np.int64),
            by_class=(members.T @ exact).astype(np.int64),
            products=(exact.T @ exact).astype(np.int64),
        )

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            counts=self.counts + other.counts,
            by_class=self.by_class + other.by_class,
            products=self.products + other.products,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SolvedSums:
    """What follows from sums: the ridge head for all strengths, and how rows are turned into its coordinates."""

    rounding: Rounding
    """The steps that roots are rounded to."""
    mean: NDArray[np.float64]
    """Means (d) of the roots."""
    scale: NDArray[np.float64]
    """The numbers (d) by which the centred roots are divided, the same for all features of a group."""
    basis: NDArray[np.float64]
    """The directions in which the second moments are a diagonal, d×d."""
    ridge: Ridge
    """The head in these coordinates."""

    @staticmethod
    def of(sums: Sums, rounding: Rounding, *, widths: Sequence[int]) -> SolvedSums:
        """Decompose sums over at least two images of at least two classes.

        Raises:
            HeadError: there are fewer, or all of them are the same.
        """
        n = int(sums.counts.sum())
        if n < 2 or np.count_nonzero(sums.counts) < 2:
            raise HeadError(f"The head needs images of at least 2 classes; got counts {sums.counts.tolist()}")
        total = sums.by_class.sum(axis=0) / n
        moments = sums.products / n - np.outer(total, total)
        scale = scale_of(rounding.size**2 * np.maximum(moments.diagonal(), 0), widths)
        size = rounding.size / scale
        with blas_threads(worth=False):  # so that the same sums give the same bits on however many cores
            eigenvalues, basis = np.linalg.eigh(n * moments * np.outer(size, size))
            centred = (sums.by_class - sums.counts[:, None] * total) * size
            ridge = Ridge(
                counts=sums.counts.astype(np.intp),
                eigenvalues=np.maximum(eigenvalues, 0),
                sums=basis.T @ centred.T,
            )
        return SolvedSums(
            rounding=rounding, mean=rounding.middle + total * rounding.size, scale=scale, basis=basis, ridge=ridge
        )

    def coordinates(self, roots: Floats) -> NDArray[np.float64]:
        """Turn roots (m×d) into the head's coordinates, m×d."""
        x = self.rounding.steps(roots).astype(np.float64) * self.rounding.size + (self.rounding.middle - self.mean)
        found: NDArray[np.float64] = x / self.scale @ self.basis
        return found

    def head(self, l2: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Work out weights (d×K) and biases (K) for roots at one strength."""
        weights = self.basis @ self.ridge.weights(l2) / self.scale[:, None]
        return weights, self.ridge.mean - self.mean @ weights
