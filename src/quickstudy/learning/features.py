"""Bottlenecks made ready for fitting: signed square roots, centred, scaled, and in fewer features where that is enough.

What the head and its relatives (ridge, learning curves) share: features, the directions in which rows vary most, and
threads that have blocks of rows to themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from quickstudy.errors import HeadError

Floats = NDArray[np.float32]
Real = NDArray[np.floating]
_S = TypeVar("_S")
_T = TypeVar("_T")

# On the clothing photos 64, 96, 128, 160 and 256 directions take 1.34, 1.18, 1.19, 1.40 and 1.65 s for four strengths.
# Many rows pay for more: 6,000 of 100 classes took 29 iterations instead of 48 from the fit to another fold.
_MAIN_DIRECTIONS, _MORE_MAIN_DIRECTIONS = 128, 256
_SUBSPACE_STEPS = 3
_SAMPLE_FOR_DIRECTIONS = 2048  # rows from which the main directions are found
LEAST_SAMPLE = 8192  # rows from which preconditioners are made
# Of more than twice as many features, the head sees the main directions only. On the clothing photos, 4,048 values an
# image in 512, 768, 1,024 and 1,280 directions give log losses of 0.270, 0.266, 0.263 and 0.261 nats, and all 0.261.
# 768 keep nine tenths of the variance, and so does a sixth of the 8,240 values of two networks.
_MAIN_SPACE, _FEATURES_A_DIRECTION = 768, 6
_MOST_IN_ROW_SPACE = 2048  # rows
_MOST_FOR_MAIN_SPACE = 8192  # rows from which the main directions are found
_OWN = 1e-9  # of the mean square length, in a direction of a row's own, where rows span less than their number
_SMALL_ROW_SPACE = 1 << 20  # values
_PREPARED_ROWS = 256  # at a time
_WORTH_THREADS_TO_PREPARE = 1_000_000  # values
WORTH_THREADS = 20_000_000  # rows × features × columns
MOST_PARTS = 16  # of the work, which threads share


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sketch:
    """Some rows as preconditioners see them."""

    in_main: Real
    """The rows in the main directions, m×r."""
    mean_square: Real
    """Their second moment, r×r."""
    squares_outside: Real
    """Squared length of what is outside the main directions, m."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Bottlenecks made ready for fitting: centred and scaled, with a last feature that is always 1.

    The signed square roots are `values * scale + mean`. The scale, one number for a group of features, makes their mean
    square 1, so that an `l2` means the same for every backbone, and deep and early blocks weigh the same. The weight of
    the last feature is the bias.
    """

    with_one: Real
    """The prepared features, n×(d+1), the last one always 1."""
    mean: NDArray[np.float64]
    """Means (d) of the signed square roots over the rows."""
    scale: NDArray[np.float64]
    """The numbers (d) by which the centred values were divided, the same for all features of a group."""
    triangular: bool = False
    """Whether row i, counted from 0, of n has zeros in its first n - 1 - i features."""

    @property
    def values(self) -> Real:
        """The prepared features without the last one, n×d."""
        return self.with_one[:, :-1]

    def take(self, rows: NDArray[np.intp]) -> Features:
        """Take some of the rows; they are scaled as all rows were."""
        return Features(with_one=self.with_one[rows], mean=self.mean, scale=self.scale)

    def logits(self, rows: NDArray[np.intp] | slice, weights: Real, biases: Real) -> Real:
        """Work out the logits (m×K) of some rows by weights (d×K) and biases (K) for prepared features."""
        numbers = np.arange(len(self.values))[rows]
        logits = np.empty((len(numbers), len(biases)), np.result_type(self.values, weights))

        def fill(first: int) -> None:
            few = slice(first, first + _PREPARED_ROWS)
            logits[few] = self.values[numbers[few]] @ weights + biases

        with blas_threads(len(numbers) * weights.size >= WORTH_THREADS) as threads:
            in_threads(fill, range(0, len(numbers), _PREPARED_ROWS), threads)
        return logits

    @cached_property
    def main_directions(self) -> Real:
        """An orthonormal basis ((d+1)×r) of the directions in which the rows vary most, and of the last feature.

        They are found by subspace iteration from a fixed random start (Halko, Martinsson and Tropp, SIAM Review 53,
        2011).
        """
        values = self.values
        d = values.shape[1]
        count = _MAIN_DIRECTIONS if len(values) < LEAST_SAMPLE else _MORE_MAIN_DIRECTIONS
        if d <= count:
            return np.eye(d + 1, dtype=values.dtype)
        values = values[sample_of(len(values), _SAMPLE_FOR_DIRECTIONS)]
        draws = np.random.Generator(np.random.Philox(key=[0, d])).standard_normal((d, count))
        basis = draws.astype(values.dtype)
        with blas_threads(worth=False):
            for _ in range(_SUBSPACE_STEPS):
                basis, _ = np.linalg.qr(values.T @ (values @ basis))
        directions = np.zeros((d + 1, count + 1), values.dtype)
        directions[:-1, :-1], directions[-1, -1] = basis, 1
        return directions

    @cached_property
    def in_main_directions(self) -> Features | None:
        """The same rows in the main directions alone, n×r; none where there are hardly more features."""
        main = self.main_directions
        if self.with_one.shape[1] <= 2 * main.shape[1]:
            return None
        with blas_threads(self.with_one.size >= _WORTH_THREADS_TO_PREPARE) as threads:
            starts = range(0, len(self.with_one), _PREPARED_ROWS)
            rows = in_threads(lambda first: self.with_one[first : first + _PREPARED_ROWS] @ main, starts, threads)
        return Features(with_one=np.concatenate(rows), mean=self.mean, scale=self.scale)

    @cached_property
    def _sketches(self) -> dict[int, _Sketch]:
        return {}

    def sketch(self, most: int) -> _Sketch:
        """Write `most` of the rows in the main directions; the same number is remembered."""
        if most not in self._sketches:
            sampled, main = sample_of(len(self.with_one), most), self.main_directions
            rows = self.with_one[sampled] if len(sampled) < len(self.with_one) else self.with_one
            in_main = rows @ main
            outside = np.einsum("ij,ij->i", rows, rows) - np.einsum("ij,ij->i", in_main, in_main)
            self._sketches[most] = _Sketch(
                in_main=in_main,
                mean_square=in_main.T @ in_main / in_main.dtype.type(len(rows)),
                squares_outside=np.maximum(outside, 0),
            )
        return self._sketches[most]


def signed_sqrt(bottlenecks: NDArray[np.floating]) -> Floats:
    """Take the signed square root of each value, which evens out how strongly features fire (Perronnin et al., 2010).

    On the clothing photos, at 256 pixels, it lowered the cross-validated log loss from 0.323 to 0.302 nats.
    """
    values = bottlenecks.astype(np.float32)
    return np.copysign(np.sqrt(np.abs(values)), values)


def unit_rows(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scale each row (n×d) to length 1, so that products of rows are cosines; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), np.float32)


def prepare_features(
    bottlenecks: NDArray[np.floating], order: NDArray[np.intp] | None = None, *, widths: Sequence[int] | None = None
) -> Features:
    """Take the signed square root of `bottlenecks` (n×d, any float type), centre and scale.

    Args:
        bottlenecks: one row an image and view.
        order: numbers of the rows to take, in this order; all, as they stand, if left out.
        widths: number of features in each group, in their order, where groups are scaled each by a number of its own;
            left out, all features are one group.

    Raises:
        HeadError: a value is NaN or infinite, or all rows are equal.
    """
    n, d = bottlenecks.shape
    with_one = np.empty((n, d + 1), np.float32)
    starts = range(0, n, _PREPARED_ROWS)

    def take_roots(first: int) -> NDArray[np.float64]:
        rows = slice(first, first + _PREPARED_ROWS)
        roots = signed_sqrt(bottlenecks[rows] if order is None else bottlenecks[order[rows]])
        with_one[rows, :-1], with_one[rows, -1] = roots, 1
        total: NDArray[np.float64] = roots.sum(axis=0, dtype=np.float64)
        return total

    def centre(first: int) -> NDArray[np.float64]:
        values = with_one[first : first + _PREPARED_ROWS, :-1]
        with np.errstate(invalid="ignore"):  # infinities are refused below
            values -= mean.astype(np.float32)
            squares: NDArray[np.float64] = np.square(values, dtype=np.float64).sum(axis=0)
        return squares

    def divide(first: int) -> None:
        values = with_one[first : first + _PREPARED_ROWS, :-1]
        values /= scale.astype(np.float32)

    with blas_threads(n * d >= _WORTH_THREADS_TO_PREPARE) as threads:
        mean = np.sum(in_threads(take_roots, starts, threads), axis=0) / n
        squares = np.sum(in_threads(centre, starts, threads), axis=0) / n
        if not np.isfinite(squares).all():
            raise HeadError(
                "The bottlenecks hold values that are not finite; the store may be damaged: "
                "run 'quickstudy cache verify'"
            )
        if not squares.any():
            raise HeadError("All images give the same bottleneck, so nothing can be learned from them; are they blank?")
        scale = np.ones(d)
        for end, width in zip(itertools.accumulate(widths or [d]), widths or [d], strict=True):
            spread = float(squares[end - width : end].mean()) ** 0.5
            if spread > 0:  # else the group is the same in all images, and stays
                scale[end - width : end] = spread
        in_threads(divide, starts, threads)
    return Features(with_one=with_one, mean=mean, scale=scale)


def in_small_space(features: Features) -> tuple[Features, Callable[[Real], NDArray[np.float64]]]:
    """Write the rows in fewer features where that is worth it; return them and the way back for weights.

    Few rows are written in the space that they span, exactly; of very many features, the main directions are taken.
    """
    n, d = features.values.shape
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
        last = min(first + _PREPARED_ROWS, n)
        np.matmul(x[first:last], x[:last].T, out=products[first:last, :last])  # what is above the diagonal is not read

    with blas_threads(x.size >= _WORTH_THREADS_TO_PREPARE) as threads:
        in_threads(multiply, range(0, n, _PREPARED_ROWS), threads)
        products[range(n), range(n)] += _OWN * products.trace() / n
        factor = np.linalg.cholesky(products)
    rotated = np.ones((n, n + 1), np.float64 if n * n <= _SMALL_ROW_SPACE else np.float32)
    rotated[:, :-1] = factor[:, ::-1]  # the zeros first, so that a block of rows takes the last columns and the bias

    def back(weights: Real) -> NDArray[np.float64]:
        shares = np.linalg.solve(factor.T, weights[::-1].astype(np.float64))
        found: NDArray[np.float64] = x.T @ shares
        return found

    return Features(with_one=rotated, mean=features.mean, scale=features.scale, triangular=True), back


def in_main_space(features: Features, count: int) -> tuple[Features, Callable[[Real], NDArray[np.float64]]]:
    """Write the rows in the `count` directions in which they vary most; return them and the way back for weights.

    What varies little says little, and a penalty would shrink its weights most, so the rest is left out.
    """
    values = features.values
    n, d = values.shape
    x = values if n <= _MOST_FOR_MAIN_SPACE else values[sample_of(n, _MOST_FOR_MAIN_SPACE)]
    m = len(x)
    draws = np.random.Generator(np.random.Philox(key=[0, m])).standard_normal((m, count), np.float32).astype(x.dtype)
    with blas_threads(n * d >= _WORTH_THREADS_TO_PREPARE) as threads:

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

        basis = orthonormal(reduce(np.add, over(m, lambda rows: x[rows].T @ draws[rows])))
        varying = reduce(np.add, over(m, lambda rows: x[rows].T @ (x[rows] @ basis)))
        main = orthonormal(varying)
        rotated = np.concatenate(over(n, lambda rows: values[rows] @ main))
    rotated = np.hstack([rotated, np.ones((n, 1), x.dtype)])

    def back(weights: Real) -> NDArray[np.float64]:
        found: NDArray[np.float64] = main.astype(np.float64) @ weights
        return found

    return Features(with_one=rotated, mean=features.mean, scale=features.scale), back


def sample_of(n: int, most: int) -> NDArray[np.intp]:
    """Draw `most` of the numbers below n, always the same ones; they are in ascending order."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.Generator(np.random.Philox(key=[1, n])).permutation(n)[:most])


@contextmanager
def blas_threads(worth: bool) -> Iterator[int]:
    """Say how many threads to use, as many as BLAS may, and let each of them use one of BLAS's meanwhile.

    OpenBLAS's own threads wait for each other actively: beside other programs on the cores, a head on 300 images took
    7 s instead of 0.07 s. Threads that have blocks of rows to themselves do not wait.
    """
    blas = _blas()
    threads = max((library["num_threads"] for library in blas.info()), default=1) if worth else 1
    with blas.limit(limits=1):
        yield threads


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def in_threads(function: Callable[[_S], _T], values: Iterable[_S], threads: int) -> list[_T]:
    """Call a function on each value, in so many threads; NumPy leaves the interpreter to others while it calculates."""
    if threads == 1:
        return [function(value) for value in values]
    return list(_pool(threads).map(function, values))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="softmax")
