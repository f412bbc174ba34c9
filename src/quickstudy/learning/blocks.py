"""The products of a fit go through the rows block by block, so that what is between two of them stays in the cache.

All training sets share the products with a block of rows, whose parameters stand one below the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.learning.features import Real

_BLOCK_VALUES = 1 << 19  # values between the two products with a block of rows: 2 MB in float32
_BLOCK_FEATURES = 1 << 19  # of a block of rows, for the same reason
_BLOCK_ROWS = (384, 4096)
_LEAST_BLOCKS = 10  # where there are rows enough, so that threads have even shares
_FEW_COLUMNS = 64  # OpenBLAS multiplies so few sooner the other way round, by a half at 10
# So few columns by 48 rows at once it does not pack anew: 10 columns at 32 instead of 19 GFLOP/s a core.
_VERY_FEW_COLUMNS, _ROWS_AT_ONCE = 20, 48
_LEAST_RUN = 256  # rows, on average, of the same training sets, where blocks are cut by these


@dataclass(frozen=True, kw_only=True, eq=False)
class RowBlock:
    """Neighbouring rows that go through the products together, so that what is between them stays in the cache."""

    rows: slice
    """The rows of the block."""
    training: NDArray[np.intp]
    """Numbers of the sets that some of the rows train."""
    held_out: NDArray[np.intp]
    """Numbers of the sets in which the rows have no weight."""
    weights: Real
    """Weights of the rows in the sets that they train."""
    labels: NDArray[np.intp]
    """Class numbers of the rows, or marks."""
    columns: slice
    """The features that are not all zero."""
    sample: NDArray[np.intp]
    """Positions of the rows from which preconditioners are made."""


def cut_into_blocks(
    labels: NDArray[np.intp], weights: Real, classes: int, width: int, sampled: NDArray[np.intp], triangular: bool
) -> list[RowBlock]:
    """Cut the rows into blocks: where the sets that they train change, if that is seldom, and else by size."""
    sets, n = weights.shape
    least, most = _BLOCK_ROWS
    longest = min(_BLOCK_VALUES // (sets * classes), n // _LEAST_BLOCKS, _BLOCK_FEATURES // width)
    longest = int(np.clip(longest, least, most))
    trains = weights > 0
    changes = np.flatnonzero((trains[:, 1:] != trains[:, :-1]).any(axis=0)) + 1
    ends = [0, *changes.tolist(), n] if len(changes) * _LEAST_RUN <= n else [0, n]
    blocks = []
    for first, last in itertools.pairwise(ends):
        pieces = -(-(last - first) // longest)
        cuts = [first + (last - first) * piece // pieces for piece in range(pieces + 1)]
        for i, j in itertools.pairwise(cuts):
            mine = trains[:, i:j].any(axis=1)
            picked = sampled[np.searchsorted(sampled, i) : np.searchsorted(sampled, j)] - i
            blocks.append(
                RowBlock(
                    rows=slice(i, j),
                    training=np.flatnonzero(mine),
                    held_out=np.flatnonzero(~mine),
                    weights=np.ascontiguousarray(weights[mine, i:j]),
                    labels=labels[i:j],
                    columns=slice(n - j if triangular else 0, None),
                    sample=picked,
                )
            )
    return blocks


def logits_of_rows(parameters: Real, x: Real) -> Real:
    """Multiply parameters (M×(d+1)) with rows (m×(d+1)) to M×m."""
    if len(parameters) > _FEW_COLUMNS:
        wide: Real = parameters @ x.T
        return wide
    columns = parameters.T
    if len(parameters) > _VERY_FEW_COLUMNS:
        return np.ascontiguousarray((x @ columns).T)
    whole, several = _several(x)
    found = np.empty((len(x), len(parameters)), x.dtype)
    np.matmul(several, columns, out=found[:whole].reshape(*several.shape[:2], len(parameters)))
    np.matmul(x[whole:], columns, out=found[whole:])
    return np.ascontiguousarray(found.T)


def add_products(total: Real, sets: NDArray[np.intp], values: Real, x: Real) -> None:
    """Add to the total (F×K×(d+1)) of the chosen sets the products of values (chosen×K×m) with rows (m×(d+1))."""
    rows = values.reshape(-1, len(x))
    if len(rows) > _VERY_FEW_COLUMNS:
        product = rows @ x
    else:
        whole, several = _several(x)
        product = rows[:, whole:] @ x[whole:]
        for few, mine in zip(
            several, rows[:, :whole].reshape(len(rows), *several.shape[:2]).swapaxes(0, 1), strict=True
        ):
            product += mine @ few
    product = product.reshape(len(sets), *total.shape[1:])
    if len(sets) == len(total):
        total += product
        return
    for number, mine in zip(sets.tolist(), product, strict=True):
        total[number] += mine


def _several(x: Real) -> tuple[int, Real]:
    """Cut rows into matrices of a few rows each (?×few×(d+1)); return how many rows that takes, and the matrices."""
    whole = len(x) // _ROWS_AT_ONCE * _ROWS_AT_ONCE
    return whole, x[:whole].reshape(-1, _ROWS_AT_ONCE, x.shape[1])


def sums_of(parts: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Add up what the parts gave, in their order, so that the sums are the same to the bit whatever the threads."""
    sums = list(parts[0])
    for part in parts[1:]:
        for mine, other in zip(sums, part, strict=True):
            mine += other
    return sums
