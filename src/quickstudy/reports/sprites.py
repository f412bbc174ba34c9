"""Thumbnails of all images in a few WebP files, which take a third of the bytes of as many JPEG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import simplejpeg
from PIL import Image

from quickstudy.cores import usable_cores

SIDE = 80
"""Of a thumbnail's square, in pixels."""
COLUMNS = 16
PER_SHEET = 256
_QUALITY = 65


def sprite_sheets(thumbnails: Sequence[bytes]) -> list[bytes]:
    """WebP files of 256 thumbnails each, 16 a row: the centred square of each image, as the network sees it.

    Args:
        thumbnails: JPEG files; an empty one leaves its square grey.
    """
    starts = range(0, len(thumbnails), PER_SHEET)
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(lambda start: _sheet(thumbnails[start : start + PER_SHEET]), starts))


def _sheet(thumbnails: Sequence[bytes]) -> bytes:
    sheet = Image.new("RGB", (SIDE * COLUMNS, SIDE * -(-len(thumbnails) // COLUMNS)), (128, 128, 128))
    for number, data in enumerate(thumbnails):
        if data:
            sheet.paste(_square(data), (number % COLUMNS * SIDE, number // COLUMNS * SIDE))
    target = io.BytesIO()
    sheet.save(target, "WEBP", quality=_QUALITY, method=0)
    return target.getvalue()


def _square(data: bytes) -> Image.Image:
    pixels = simplejpeg.decode_jpeg(data)
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    return square.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
