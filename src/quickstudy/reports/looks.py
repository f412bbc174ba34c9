"""Looks: what can be said of an image by looking at its pixels, without a network; computed once and kept.

JPEGs are decoded at a fraction of their size where that is enough, which spares most of the work. Everything is
measured at one scale, so that a large photo and its small copy look alike. `gallery.py` keeps looks beside the store.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quickstudy.images.decoding import InputSpec, decode, encode_thumbnail, size_of

THUMBNAIL_SIDE = 96
"""The longest side of a thumbnail, in pixels."""
VERSION = "1"
"""Of the arithmetic below; it is to change with it."""

_MEASURED = InputSpec(size=192)  # the shorter side at which sharpness and brightness are measured
_BLACK, _WHITE = 8, 250  # grey levels up to and from which a pixel is taken for black and white
_LONGEST_RATIO = 8  # narrower pictures are measured at this aspect ratio, so that they stay small


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one image looks like."""

    width: int
    """Of the image as it is shown, in pixels."""
    height: int
    brightness: float
    """Mean grey level, 0 to 1."""
    contrast: float
    """Standard deviation of the grey levels, on the same scale."""
    black: float
    """Share of the pixels that are almost black."""
    white: float
    """Share of the pixels that are almost white."""
    sharpness: float
    """0 for a picture without any detail, about 0.5 for one of hard outlines, towards 1 for noise; see `sharpness`."""
    thumbnail: bytes
    """A JPEG file."""


def look_at(data: bytes) -> Look:
    """Look at an image file's bytes.

    Raises:
        UnusableImageError: the bytes are no image that can be used; the message is the reason.
    """
    width, height = size_of(data)
    picture = _shrink(Image.fromarray(decode(data, _MEASURED)))
    grey = np.asarray(picture.convert("L"))
    levels = np.bincount(grey.ravel(), minlength=256) / grey.size
    mean = float(levels @ np.arange(256))
    return Look(
        width=width,
        height=height,
        brightness=mean / 255,
        contrast=float(levels @ (np.arange(256) - mean) ** 2) ** 0.5 / 255,
        black=float(levels[: _BLACK + 1].sum()),
        white=float(levels[_WHITE:].sum()),
        sharpness=sharpness(grey),
        thumbnail=_thumbnail(picture),
    )


def sharpness(grey: NDArray[np.uint8]) -> float:
    """1 - H, where neighbouring pixels two apart differ 2^H times as much as adjacent ones (root mean square).

    H is the Hölder exponent, read off the structure function (Kolmogorov, 1941) at two lags: 1/2 for hard outlines,
    less for fine texture, 1 where all is smooth. Unlike the variance of the Laplacian, it does not take a plain product
    photo for a blurred one: of clothing photos blurred by 1/200 of their side, 97 % fall below what 99.5 % of the
    photos as they are exceed, against 67 %.
    """
    levels = grey.astype(np.float32)
    if min(levels.shape) < 3:
        return 0.5
    energy = [
        float(np.mean(np.square(levels[lag:] - levels[:-lag])) + np.mean(np.square(levels[:, lag:] - levels[:, :-lag])))
        for lag in (1, 2)
    ]
    if energy[0] == 0:
        return 0.0
    return float(np.clip(1 - np.log2(max(energy[1], 1e-12) / energy[0]) / 2, 0, 1))


def grey_square(thumbnail: bytes, side: int) -> NDArray[np.uint8]:
    """A thumbnail's grey levels, squashed to side×side."""
    with Image.open(io.BytesIO(thumbnail), formats=("JPEG",)) as image:
        return np.asarray(image.convert("L").resize((side, side), Image.Resampling.BILINEAR))


def _shrink(picture: Image.Image) -> Image.Image:
    """The picture with `_MEASURED.size` pixels on its shorter side, or as it is where that is smaller."""
    ratio = max(picture.size) / min(picture.size)
    factor = min(1.0, _MEASURED.size / min(picture.size) * min(1.0, _LONGEST_RATIO / ratio))
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BILINEAR)


def _thumbnail(picture: Image.Image) -> bytes:
    factor = min(1.0, THUMBNAIL_SIDE / max(picture.size))
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return encode_thumbnail(np.asarray(picture.resize(size, Image.Resampling.BILINEAR)))
