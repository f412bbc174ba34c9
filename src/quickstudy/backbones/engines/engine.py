"""What any engine is to be: the protocol that all that run prefixes share. It imports none of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone


class AnyPrefix(Protocol):
    """The frozen part of a backbone, up to a cut, in whatever runs it. Several threads may call it at once."""

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the bottlenecks (N × shape of the cut) of images (uint8, N × the shape of an input)."""

    def close(self) -> None:
        """Let go of what it holds; it is not called any more."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What runs prefixes."""

    name: str
    """Name of the engine, part of the key of every bottleneck: engines differ in more than the last digit."""
    open: Callable[[Backbone, str, tuple[int, ...]], AnyPrefix]
    """Loads a backbone up to a cut, given by its name and the shape of a bottleneck there."""
    threads: int | None = None
    """Number of threads to call it from; as many as there are cores where it is None."""
    batch: int | None = None
    """Number of images to call it with at once, which processes make ready; one, made ready by the thread that calls
    it, where it is None."""
