"""Intervals that hold 95 % of what chance could have made of a share, or of the difference of two."""

from __future__ import annotations

import math

_Z95 = 1.959963984540054
"""Standard deviations either side that hold 95 % of a normal distribution."""


def share_interval(right: int, n: int) -> tuple[float, float]:
    """Of a share of `right` in `n` (Wilson, 1927), which holds for few, too; 0 to 1 for none."""
    if not n:
        return 0.0, 1.0
    p, z2 = right / n, _Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_interval(more: int, less: int, n: int) -> tuple[float, float]:
    """Of the difference of two shares of the same `n` (Agresti and Min, Statistics in Medicine 24, 2005).

    Args:
        more: how many count for the first share alone.
        less: how many count for the second alone.
        n: how many there are.
    """
    n, gained, lost = n + 2, more + 0.5, less + 0.5
    centre = (gained - lost) / n
    half = _Z95 * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return centre - half, centre + half
