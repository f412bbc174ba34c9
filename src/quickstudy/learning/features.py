"""Bottlenecks made ready for fitting: signed square roots, centred and scaled.

What the head and its relatives (ridge, learning curves) share: features, the directions in which rows vary most, and
threads that have blocks of rows to themselves.

Up to a gigabyte, features are float32. Beyond, each value is kept in 16 bits, as a whole number of steps of which a
feature's range has 65,534, and a block of rows is written out when it is needed: two bytes a value instead of four, and
bottlenecks come from the store shard by shard. Whole numbers add up exactly in whatever order, so means and scales do
not depend on how the store is cut into shards.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, reduce
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from quickstudy.errors import HeadError

Floats = NDArray[np.float32]
Real = NDArray[np.floating]
_S = TypeVar("_S")
_T = TypeVar("_T")

# On the clothing photos 64, 96, 128, 160 and 256 directions take 1.34, 1.18, 1.19, 1.40 and 1.65 s for four strengths.
# Very many rows pay for more, whose blocks take eight times as long: of 100,000 in 10 classes, 256 take 20.5 s and 128
# take 23.9; of 12,000 in 200 classes, 256, 128 and 64 take 52, 39 and 36 s.
_MAIN_DIRECTIONS, _MORE_MAIN_DIRECTIONS = 128, 256
_VERY_MANY_ROWS = 50_000
_SUBSPACE_STEPS = 3
_SAMPLE_FOR_DIRECTIONS = 2048  # rows from which the main directions are found
LEAST_SAMPLE = 8192  # rows from which preconditioners are made
PREPARED_ROWS = 256  # at a time
MOST_AS_NUMBERS = 1 << 28
"""The most values that are kept as float32; more are kept in steps, in 16 bits each."""
STEPS = 65_534  # of a feature's range, of which the middle is step 0
WORTH_THREADS_TO_PREPARE = 1_000_000  # values
WORTH_THREADS = 20_000_000  # rows × features × columns
MOST_PARTS = 16  # of the work, which threads share


@dataclass(frozen=True, kw_only=True, eq=False)
class Sketch:
    """Some rows as preconditioners see them."""

    in_main: Real
    """The rows in the main directions, m×r."""
    mean_square: Real
    """Their second moment, r×r."""
    squares_outside: Real
    """Squared length of what is outside the main directions, m."""


class StoredRows(Protocol):
    """Rows that lie somewhere else and are read a piece at a time."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and of values in each."""

    def pieces(self) -> Sequence[NDArray[np.intp]]:
        """Give the numbers of the rows that each piece has; each row is in one."""

    def read(self, piece: int) -> NDArray[np.floating]:
        """Read the rows of a piece, by its number."""

    def all(self) -> NDArray[np.floating]:
        """Read all rows, in their order."""

    def first(self, width: int) -> StoredRows:
        """Give the same rows with their first values alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Bottlenecks made ready for fitting: centred and scaled, with a last feature that is always 1.

    The signed square roots are `values * scale + mean`. The scale, one number for a group of features, makes their mean
    square 1, so that an `l2` means the same for every backbone, and deep and early blocks weigh the same: other weights
    gained 0.003 to 0.007 nats and no accuracy (benchmarks/level_weights.py). The last feature's weight is the bias.
    """

    stored: Real | NDArray[np.int16]
    """The prepared features, n×(d+1), the last one always 1: as numbers, or as whole steps."""
    mean: NDArray[np.float64]
    """Means (d) of the signed square roots over the rows."""
    scale: NDArray[np.float64]
    """The numbers (d) by which the centred values were divided, the same for all features of a group."""
    triangular: bool = False
    """Whether row i, counted from 0, of n has zeros in its first n - 1 - i features."""
    steps: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """Where whole steps are kept, the size of a feature's steps and the value at step 0, d each."""

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def width(self) -> int:
        """Number of features, with the last one that is always 1: d+1."""
        return int(self.stored.shape[1])

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Type of the rows."""
        return np.dtype(np.float32) if self.steps else np.dtype(self.stored.dtype)  # type: ignore[arg-type]

    def rows(self, which: NDArray[np.intp] | slice, dtype: type[np.floating] | None = None) -> Real:
        """Give some rows with the last feature (m×(d+1)), in their own type or another one."""
        rows = self.as_kept(which, self.dtype.type)
        if self.steps:
            rows[:, :-1] *= self.steps[0].astype(np.float32)
            rows[:, :-1] += self.steps[1].astype(np.float32)
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def as_kept(self, which: NDArray[np.intp] | slice, dtype: type[np.floating]) -> Real:
        """Give some rows with the last feature (m×(d+1)) as they are kept: numbers, or how many steps."""
        return self.stored[which].astype(dtype, copy=False)

    def for_kept(self, parameters: Real) -> Real:
        """Turn parameters (M×(d+1)) for rows into those that give the same products with the rows as they are kept."""
        if not self.steps:
            return parameters
        turned = parameters.astype(np.float64)
        turned[:, -1] += turned[:, :-1] @ self.steps[1]
        turned[:, :-1] *= self.steps[0]
        return turned.astype(parameters.dtype)

    def of_kept(self, products: Real) -> Real:
        """Turn products (M×(d+1)) with the rows as they are kept into those with the rows."""
        if not self.steps:
            return products
        turned = products.astype(np.float64)
        turned[:, :-1] *= self.steps[0]
        turned[:, :-1] += turned[:, -1:] * self.steps[1]
        return turned.astype(products.dtype)

    @property
    def values(self) -> Real:
        """All rows without the last feature, n×d."""
        return self.rows(slice(None))[:, :-1]

    def of_type(self, dtype: type[np.floating]) -> Features:
        """Keep the rows as numbers of another type; those in steps stay, as they were too many for that."""
        return self if self.steps else replace(self, stored=self.stored.astype(dtype, copy=False))

    def take(self, rows: NDArray[np.intp]) -> Features:
        """Take some of the rows; they are scaled as all rows were."""
        return replace(self, stored=self.stored[rows], triangular=False)

    def logits(self, rows: NDArray[np.intp] | slice, weights: Real, biases: Real) -> Real:
        """Work out the logits (m×K) of some rows by weights (d×K) and biases (K) for prepared features."""
        numbers = np.arange(len(self))[rows]
        logits = np.empty((len(numbers), len(biases)), np.result_type(self.dtype, weights))

        def fill(first: int) -> None:
            few = slice(first, first + PREPARED_ROWS)
            logits[few] = self.rows(numbers[few])[:, :-1] @ weights + biases

        with blas_threads(len(numbers) * weights.size >= WORTH_THREADS) as threads:
            in_threads(fill, range(0, len(numbers), PREPARED_ROWS), threads)
        return logits

    @cached_property
    def main_directions(self) -> Real:
        """An orthonormal basis ((d+1)×r) of the directions in which the rows vary most, and of the last feature.

        They are found by subspace iteration from a fixed random start (Halko, Martinsson and Tropp, SIAM Review 53,
        2011).
        """
        d = self.width - 1
        count = _MAIN_DIRECTIONS if len(self) < _VERY_MANY_ROWS else _MORE_MAIN_DIRECTIONS
        if d <= count:
            return np.eye(d + 1, dtype=self.dtype)
        values = self.rows(sample_of(len(self), _SAMPLE_FOR_DIRECTIONS))[:, :-1]
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
        if self.width <= 2 * main.shape[1]:
            return None
        with blas_threads(self.stored.size >= WORTH_THREADS_TO_PREPARE) as threads:
            starts = range(0, len(self), PREPARED_ROWS)
            rows = in_threads(lambda first: self.rows(slice(first, first + PREPARED_ROWS)) @ main, starts, threads)
        return Features(stored=np.concatenate(rows), mean=self.mean, scale=self.scale)

    @cached_property
    def _sketches(self) -> dict[int, Sketch]:
        return {}

    def sketch(self, most: int) -> Sketch:
        """Write `most` of the rows in the main directions; the same number is remembered."""
        if most not in self._sketches:
            sampled, main = sample_of(len(self), most), self.main_directions
            rows = self.rows(sampled if len(sampled) < len(self) else slice(None))
            in_main = rows @ main
            outside = np.einsum("ij,ij->i", rows, rows) - np.einsum("ij,ij->i", in_main, in_main)
            self._sketches[most] = Sketch(
                in_main=in_main,
                mean_square=in_main.T @ in_main / in_main.dtype.type(len(rows)),
                squares_outside=np.maximum(outside, 0),
            )
        return self._sketches[most]


def signed_sqrt(bottlenecks: NDArray[np.floating]) -> Floats:
    """Take the signed square root of each value, which evens out how strongly features fire (Perronnin et al., 2010).

    On the clothing photos, at 256 pixels, it lowered the cross-validated log loss from 0.323 to 0.302 nats.
    """
    if bottlenecks.dtype == np.float16:
        return np.take(_roots_of_halves(), bottlenecks.view(np.uint16))
    values = bottlenecks.astype(np.float32)
    return np.copysign(np.sqrt(np.abs(values)), values)


@cache
def _roots_of_halves() -> Floats:
    """List the roots of all 65,536 numbers of 16 bits: looking them up takes a fifth of the time."""
    with np.errstate(invalid="ignore"):  # a signalling NaN is one, too
        return signed_sqrt(np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32))


def unit_rows(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scale each row (n×d) to length 1, so that products of rows are cosines; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), np.float32)


def logits_of_names(features: NDArray[np.floating], names: Floats) -> Floats:
    """Work out what names (F×K) say of images by their features (n×d), of which the first F are the last features."""
    said: Floats = unit_rows(features[:, : len(names)].astype(np.float32)) @ names
    return said


def prepare_features(
    bottlenecks: NDArray[np.floating] | StoredRows,
    order: NDArray[np.intp] | None = None,
    *,
    widths: Sequence[int] | None = None,
    most: int = MOST_AS_NUMBERS,
) -> Features:
    """Take the signed square root of `bottlenecks` (n×d, any float type), centre and scale.

    Args:
        bottlenecks: one row an image and view.
        order: numbers of the rows to take, in this order; all, as they stand, if left out.
        widths: number of features in each group, in their order, where groups are scaled each by a number of its own;
            left out, all features are one group.
        most: the most values that are kept as float32; more are kept in steps.

    Raises:
        HeadError: a value is NaN or infinite, or all rows are equal.
    """
    n, d = bottlenecks.shape
    if n * d > most:
        return _in_steps(bottlenecks, order, widths)
    bottlenecks = in_memory(bottlenecks)
    with_one = np.empty((n, d + 1), np.float32)
    starts = range(0, n, PREPARED_ROWS)

    def take_roots(first: int) -> NDArray[np.float64]:
        rows = slice(first, first + PREPARED_ROWS)
        roots = signed_sqrt(bottlenecks[rows] if order is None else bottlenecks[order[rows]])
        with_one[rows, :-1], with_one[rows, -1] = roots, 1
        total: NDArray[np.float64] = roots.sum(axis=0, dtype=np.float64)
        return total

    def centre(first: int) -> NDArray[np.float64]:
        values = with_one[first : first + PREPARED_ROWS, :-1]
        with np.errstate(invalid="ignore"):  # infinities are refused below
            values -= mean.astype(np.float32)
            squares: NDArray[np.float64] = np.square(values, dtype=np.float64).sum(axis=0)
        return squares

    def divide(first: int) -> None:
        values = with_one[first : first + PREPARED_ROWS, :-1]
        values /= scale.astype(np.float32)

    with blas_threads(n * d >= WORTH_THREADS_TO_PREPARE) as threads:
        mean = np.sum(in_threads(take_roots, starts, threads), axis=0) / n
        squares = np.sum(in_threads(centre, starts, threads), axis=0) / n
        scale = scale_of(squares, widths)
        in_threads(divide, starts, threads)
    return Features(stored=with_one, mean=mean, scale=scale)


def scale_of(squares: NDArray[np.float64], widths: Sequence[int] | None) -> NDArray[np.float64]:
    """Work out what to divide features by (d), of their mean squares (d): one number a group.

    Raises:
        HeadError: they are not finite, or all zero.
    """
    if not np.isfinite(squares).all():
        raise HeadError(
            "The bottlenecks hold values that are not finite; the store may be damaged: run 'quickstudy cache verify'"
        )
    if not squares.any():
        raise HeadError("All images give the same bottleneck, so nothing can be learned from them; are they blank?")
    scale = np.ones(len(squares))
    for end, width in zip(itertools.accumulate(widths or [len(squares)]), widths or [len(squares)], strict=True):
        spread = float(squares[end - width : end].mean()) ** 0.5
        if spread > 0:  # else the group is the same in all images, and stays
            scale[end - width : end] = spread
    return scale


def in_memory(bottlenecks: NDArray[np.floating] | StoredRows) -> NDArray[np.floating]:
    """Give bottlenecks as an array, which those are read into that lie elsewhere."""
    return bottlenecks if isinstance(bottlenecks, np.ndarray) else bottlenecks.all()


def first_values(bottlenecks: NDArray[np.floating] | StoredRows, width: int) -> NDArray[np.floating] | StoredRows:
    """Give the first `width` values of each row."""
    return bottlenecks[:, :width] if isinstance(bottlenecks, np.ndarray) else bottlenecks.first(width)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounding:
    """The steps that signed square roots are rounded to, feature by feature, so that sums of them are exact."""

    middle: NDArray[np.float64]
    """The roots (d) at step 0."""
    size: NDArray[np.float64]
    """The size of a step (d); 1 where a feature has but one value."""

    @staticmethod
    def over(least: Floats, largest: Floats) -> Rounding:
        """Make the rounding of all roots, of which the least and the largest of each feature (d) are given."""
        low, high = least.astype(np.float64), largest.astype(np.float64)
        return Rounding(middle=(low + high) / 2, size=np.where(high > low, (high - low) / STEPS, 1))

    def steps(self, roots: Floats) -> Floats:
        """Round roots (m×d) to whole numbers of steps, from -32,767 to 32,767."""
        return np.rint((roots - self.middle.astype(np.float32)) * (1 / self.size).astype(np.float32))


def range_of(roots: Floats) -> tuple[Floats, Floats]:
    """Find the least and the largest root of each feature (d), of rows (m×d)."""
    return roots.min(axis=0), roots.max(axis=0)


def joined_ranges(one: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """Join two ranges of the same features."""
    return np.minimum(one[0], other[0]), np.maximum(one[1], other[1])


def _in_steps(
    bottlenecks: NDArray[np.floating] | StoredRows, order: NDArray[np.intp] | None, widths: Sequence[int] | None
) -> Features:
    """Prepare very many features (see `prepare_features`), as whole steps, without a copy of the bottlenecks."""
    n, d = bottlenecks.shape
    places = np.arange(n) if order is None else np.argsort(order)
    stored = np.empty((n, d + 1), np.int16)
    stored[:, -1] = 1
    pieces: Sequence[NDArray[np.intp] | slice]
    if isinstance(bottlenecks, np.ndarray):
        pieces = [slice(first, first + PREPARED_ROWS) for first in range(0, n, PREPARED_ROWS)]
    else:
        pieces = bottlenecks.pieces()

    def roots(piece: int) -> Floats:
        return signed_sqrt(
            bottlenecks[pieces[piece]] if isinstance(bottlenecks, np.ndarray) else bottlenecks.read(piece)
        )

    def fill(piece: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        steps = rounding.steps(roots(piece))
        stored[places[pieces[piece]], :-1] = steps
        exact = steps.astype(np.float64)
        return exact.sum(axis=0), np.square(exact, out=exact).sum(axis=0)

    with blas_threads(worth=True) as threads:
        ranges = in_threads(lambda piece: range_of(roots(piece)), range(len(pieces)), threads)
        least, largest = reduce(joined_ranges, ranges)
        scale_of((largest - least).astype(np.float64), widths)  # refuses what is not finite, or all the same
        rounding = Rounding.over(least, largest)
        sums = in_threads(fill, range(len(pieces)), threads)
    total, squares = (np.sum(parts, axis=0) for parts in zip(*sums, strict=True))
    offset = total / n
    scale = scale_of(rounding.size**2 * (squares / n - offset**2), widths)
    return Features(
        stored=stored,
        mean=rounding.middle + offset * rounding.size,
        scale=scale,
        steps=(rounding.size / scale, -offset * rounding.size / scale),
    )


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
