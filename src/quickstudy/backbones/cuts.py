"""Cuts, the places where freezing ends: what there is to know of each. `graphs.py` finds them in a graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FEATURES = "features"
"""The cut that every backbone has: the pooled penultimate layer."""
LEVELS = "levels"
"""The tensor that holds the features and, behind them, what other blocks know of the image; see `levels.py`."""
_FROZEN_SHARES = (0.9, 0.7, 0.5, 0.3)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A place at which a backbone can be cut."""

    name: str
    """The tensor's name."""
    shape: tuple[int, ...]
    """Shape of one image's activation: channels×height×width, or features."""
    multiply_adds: int
    """Number of multiply-adds before the cut, for one image, in layers with weights."""
    parameters_after: int
    """Number of weights and biases in the layers from the cut to the features."""

    @property
    def values(self) -> int:
        """Number of values in one image's activation."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Level:
    """A group of features in `levels` that belong together, such as the means of one block's channels."""

    name: str
    """What the features are, for people."""
    width: int
    """Number of features."""
    last: bool = False
    """Whether they are a network's last features, which `features` holds, too."""


def stages(cuts: Sequence[Cut], deepest: str | None = None) -> list[str]:
    """Choose cuts for going deeper step by step, shallowest first: each freezes about a fifth of the work less.

    Args:
        cuts: all cuts of the backbone, from the image on.
        deepest: name of the cut at which to end at the latest; the first if left out.
    """
    names = [cut.name for cut in cuts]
    usable = cuts[names.index(deepest) if deepest else 0 : -1]
    chosen: list[str] = []
    for share in _FROZEN_SHARES:
        wanted = share * cuts[-1].multiply_adds
        nearest = min(usable, key=lambda cut: abs(cut.multiply_adds - wanted))
        if nearest.name not in chosen:
            chosen.append(nearest.name)
    return chosen
