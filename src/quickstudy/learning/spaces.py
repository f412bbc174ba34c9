"""Fewer features for rows: the space that few rows span, exactly, and the directions in which many rows vary most."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from quickstudy.learning.features import (
    MOST_AS_NUMBERS,
    MOST_PARTS,
    PREPARED_ROWS,
    STEPS,
    WORTH_THREADS_TO_PREPARE,
    Features,
    Real,
    blas_threads,
    in_threads,
    sample_of,
)

# Of more than twice as many features, the head sees the main directions only. On the clothing photos, 4,048 values an
# image in 512, 768, 1,024 and 1,280 directions give log losses of 0.270, 0.266, 0.263 and 0.261 nats, and all 0.261.
# 768 keep nine tenths of the variance, and so does a sixth of the 8,240 values of two networks.
_MAIN_SPACE, _FEATURES_A_DIRECTION = 768, 6
_MOST_IN_ROW_SPACE = 2048  # rows
_MOST_FOR_MAIN_SPACE = 8192  # rows from which the main directions are found
_OWN = 1e-9  # of the mean square length, in a direction of a row's own, where rows span less than their number
_SMALL_ROW_SPACE = 1 << 20  # values


def in_small_space(features: Features) -> tuple[Features, Callable[[Real], NDArray[np.float64]]]:
    """Write the rows in fewer features where that is worth it; return them and the way back for weights.

    Few rows are written in the space that they span, exactly; of very many features, the main directions are taken.
    """
    n, d = len(features), features.width - 1
    if n < d and n <= _MOST_IN_ROW_SPACE:
        return in_row_space(features)
    if d > 2 * _MAIN_SPACE and n > _MAIN_SPACE:
        return in_main_space(features, max(_MAIN_SPACE, d // _FEATURES_A_DIRECTION))
    return features, lambda weights: weights.astype(np.float64)


def in_row_space(features: Features) -> tuple[Features, Callable[[Real], NDArray[np.float64]]]:
    """Write the n rows in an orthonormal basis of the space that they span; return them and the way back for weights.

    The penalty keeps the optimum's weights in that space, so nothing is lost. The n coordinates are the Cholesky factor
    of the rows' inner products: a row has as many as there are rows up to it, and products leave out the zeros, so that
    a pass costs n/2 features a row instead of d. Rows that depend on others get a billionth of their own.
    """
    x = features.values.astype(np.float64)
    n = len(x)
    products = np.empty((n, n))

    def multiply(first: int) -> None:
        last = min(first + PREPARED_ROWS, n)
        np.matmul(x[first:last], x[:last].T, out=products[first:last, :last])  # what is above the diagonal is not read

    with blas_threads(x.size >= WORTH_THREADS_TO_PREPARE) as threads:
        in_threads(multiply, range(0, n, PREPARED_ROWS), threads)
        products[range(n), range(n)] += _OWN * products.trace() / n
        factor = np.linalg.cholesky(products)
    rotated = np.ones((n, n + 1), np.float64 if n * n <= _SMALL_ROW_SPACE else np.float32)
    rotated[:, :-1] = factor[:, ::-1]  # the zeros first, so that a block of rows takes the last columns and the bias

    def back(weights: Real) -> NDArray[np.float64]:
        shares = np.linalg.solve(factor.T, weights[::-1].astype(np.float64))
        found: NDArray[np.float64] = x.T @ shares
        return found

    return Features(stored=rotated, mean=features.mean, scale=features.scale, triangular=True), back


def in_main_space(features: Features, count: int) -> tuple[Features, Callable[[Real], NDArray[np.float64]]]:
    """Write the rows in the `count` directions in which they vary most; return them and the way back for weights.

    What varies little says little, and a penalty would shrink its weights most, so the rest is left out.
    """
    n, d = len(features), features.width - 1
    sample = slice(None) if n <= _MOST_FOR_MAIN_SPACE else sample_of(n, _MOST_FOR_MAIN_SPACE)
    x = features.rows(sample)[:, :-1]
    m = len(x)
    draws = np.random.Generator(np.random.Philox(key=[0, m])).standard_normal((m, count), np.float32).astype(x.dtype)
    with blas_threads(n * d >= WORTH_THREADS_TO_PREPARE) as threads:

        def over(length: int, product: Callable[[slice], Real]) -> list[Real]:
            step = -(-length // MOST_PARTS)
            return in_threads(product, [slice(first, first + step) for first in range(0, length, step)], threads)

        def orthonormal(columns: Real) -> Real:
            """Make an orthonormal basis, up to rounding, of the space of columns (Cholesky's way)."""
            columns = columns / np.linalg.norm(columns, axis=0)
            inner = reduce(np.add, over(d, lambda rows: columns[rows].T.astype(np.float64) @ columns[rows]))
            inner[np.diag_indices_from(inner)] += 1e-10 * count
            turn = np.linalg.inv(np.linalg.cholesky(inner)).T.astype(columns.dtype)
            return np.concatenate(over(d, lambda rows: columns[rows] @ turn))

        def back_to_features(columns: Real) -> Real:
            """Multiply the rows, turned, with columns (m×count); each part has features of its own: nothing to add."""
            return np.concatenate(over(d, lambda mine: x[:, mine].T @ columns))

        basis = orthonormal(back_to_features(draws))
        main = orthonormal(back_to_features(np.concatenate(over(m, lambda rows: x[rows] @ basis))))
        rotated = _rotated(features, main, threads)

    def back(weights: Real) -> NDArray[np.float64]:
        found: NDArray[np.float64] = main.astype(np.float64) @ weights
        return found

    return rotated, back


def _rotated(features: Features, main: Real, threads: int) -> Features:
    """Write rows in the main directions (d×r), as numbers or, where these would be too many, as whole steps."""
    n, r = len(features), main.shape[1]
    as_numbers = n * r <= MOST_AS_NUMBERS
    stored: Real | NDArray[np.int16] = np.empty((n, r + 1), features.dtype if as_numbers else np.int16)
    stored[:, -1] = 1
    blocks = [slice(first, first + PREPARED_ROWS) for first in range(0, n, PREPARED_ROWS)]
    size = 1.0
    if not as_numbers:  # no coordinate is larger than the longest row is long
        squares = in_threads(lambda rows: float(np.square(features.rows(rows)).sum(axis=1).max()), blocks, threads)
        size = 2 * max(squares) ** 0.5 / STEPS

    def fill(rows: slice) -> None:
        found = features.rows(rows)[:, :-1] @ main
        stored[rows, :-1] = found if as_numbers else np.rint(found / np.float32(size))

    in_threads(fill, blocks, threads)
    steps = None if as_numbers else (np.full(r, size), np.zeros(r))
    return Features(stored=stored, mean=features.mean, scale=features.scale, steps=steps)
