"""Golden checks: images that anybody can make again, with which a model proves that it still gives what it gave.

The images are made from SHAKE-128 of a fixed text, not from a generator of numbers, so that any language on any machine
makes the same ones.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

GOLDEN_COUNT = 3
GOLDEN_TOLERANCE = 1e-4
"""Largest difference of a probability that counts as agreement; runtimes and processors differ by about 1e-6."""
LOOSEST_TOLERANCE = 0.1
"""What a model may claim for itself: rounding to 8 bits may fall the other way on another processor."""

_COARSE = 8


def golden_images(size: int) -> NDArray[np.uint8]:
    """The images (GOLDEN_COUNT×size×size×3): 8×8 random tiles, each tile plus fine noise, like a coarse picture."""
    images = []
    for number in range(GOLDEN_COUNT):
        stream = hashlib.shake_128(f"quickstudy golden {number}".encode()).digest(_COARSE**2 * 3 + size * size * 3)
        tiles = np.frombuffer(stream[: _COARSE**2 * 3], np.uint8).reshape(_COARSE, _COARSE, 3)
        noise = np.frombuffer(stream[_COARSE**2 * 3 :], np.uint8).reshape(size, size, 3)
        place = np.arange(size) * _COARSE // size
        images.append((tiles[place][:, place] // 2 + noise // 4 + 16).astype(np.uint8))
    return np.stack(images)
