"""Pixel sets: images of one size, decoded and held in memory with their labels.

What is trained from scratch reads small images many times over, so they are decoded once. Named data sets come as pixel
sets (`readers.py`), and so does an image set that is decoded as a whole (`decoded.py`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import ImageSetError


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelSet:
    """Images of one size held in memory with their labels.

    Raises:
        ImageSetError: the shapes do not belong together, or a label has no class.
    """

    pixels: NDArray[np.uint8]
    """N×height×width×channels, 1 (grey) or 3 (RGB), from 0 to 255."""
    labels: NDArray[np.int64]
    """N places in `classes`."""
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[3] not in (1, 3) or self.pixels.dtype != np.uint8:
            raise ImageSetError(
                f"Pixels must be N×height×width×1 or ×3 of uint8; got {self.pixels.dtype} of shape {self.pixels.shape}"
            )
        if self.labels.shape != self.pixels.shape[:1] or self.labels.dtype != np.int64:
            raise ImageSetError(
                f"{len(self.pixels)} images need as many labels of int64; "
                f"got {self.labels.dtype} of shape {self.labels.shape}"
            )
        wrong = (self.labels < 0) | (self.labels >= len(self.classes))
        if wrong.any():
            first = int(wrong.argmax())
            raise ImageSetError(
                f"Label {self.labels[first]} of image {first} is not one of {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.pixels)

    def content_fingerprint(self) -> str:
        """SHA-256 of shape, classes, pixels and labels, as 64 hexadecimal digits; the same on every machine."""
        head = json.dumps({"shape": self.pixels.shape, "classes": self.classes}, ensure_ascii=True)
        digest = hashlib.sha256(head.encode() + b"\n")
        digest.update(np.ascontiguousarray(self.pixels).data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        return digest.hexdigest()
