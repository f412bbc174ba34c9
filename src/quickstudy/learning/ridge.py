"""Exact leave-one-out accuracy in one go: ridge regression on class indicators, all regularisation strengths at once.

The prediction for an image by the fit that has not seen it follows from the fit that has: with the hat matrix H, which
takes targets to predictions, the residual without image i is the residual with it divided by 1 - H_ii (Allen, "The
relationship between variable selection and data augmentation and a method for prediction", Technometrics 16, 1974).
That is an identity, not an approximation, and it holds with an intercept that is not penalised. One eigendecomposition
gives H's diagonal and the predictions for every strength (Rifkin and Lippert, "Notes on regularized least squares",
MIT CSAIL, 2007). Everything is in float64: where few images meet many features, 1 - H_ii is small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import HeadError
from quickstudy.learning.features import Features, StoredRows, prepare_features
from quickstudy.learning.spaces import in_small_space

STRENGTHS = tuple(10.0 ** (half / 2) for half in range(2, -7, -1))  # 10 down to 0.001
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
    strengths: tuple[float, ...] = STRENGTHS,
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
        raise HeadError(f"Leaving one out takes at least 2 images of 2 classes; got {n} images of {classes} classes")
    targets = np.full((n, classes), -1.0)
    targets[np.arange(n), labels] = 1.0
    mean = targets.mean(axis=0)
    features = in_small_space(prepare_features(bottlenecks, widths=widths))[0]
    blocks = [slice(first, first + _BLOCK_ROWS) for first in range(0, n, _BLOCK_ROWS)]
    coordinates, eigenvalues = _principal_coordinates(features, blocks)
    projected = np.zeros((len(eigenvalues), classes))
    for rows in blocks:
        projected += coordinates(rows).T @ (targets[rows] - mean)
    shrinking = 1 / (eigenvalues[:, None] + n * np.array(strengths))
    predictions, errors = np.empty((len(strengths), n), np.intp), np.zeros(len(strengths))
    for rows in blocks:
        mine = coordinates(rows)
        leverages = 1 / n + np.square(mine) @ shrinking
        for number in range(len(strengths)):
            fitted = mean + mine @ (projected * shrinking[:, number, None])
            left_out = (targets[rows] - fitted) / (1 - leverages[:, number, None])
            predictions[number, rows] = (targets[rows] - left_out).argmax(axis=1)
            errors[number] += np.square(left_out).sum()
    path = [
        RidgePoint(l2=l2, squared_error=float(error) / (n * classes), right=int(np.sum(predicted == labels)))
        for l2, error, predicted in zip(strengths, errors, predictions, strict=True)
    ]
    chosen = min(range(len(path)), key=lambda number: path[number].squared_error)
    return LeaveOneOut(path=tuple(path), best=path[chosen], predicted=predictions[chosen], n=n)


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
