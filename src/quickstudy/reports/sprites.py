"""Thumbnails of all images in a few WebP files, which take a third of the bytes of as many JPEG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from quickstudy.cores import usable_cores

SIDE = 80
"""Of a thumbnail's square, in pixels."""
COLUMNS = 16
PER_SHEET = 256
_QUALITY = 70


def sprite_sheets(thumbnails: Sequence[bytes]) -> list[bytes]:
    """WebP files of 256 thumbnails each, in rows of 16 squares of 80 pixels; a picture is centred in its square.

    Args:
        thumbnails: JPEG files; an empty one leaves its square empty.
    """
    starts = range(0, len(thumbnails), PER_SHEET)
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(lambda start: _sheet(thumbnails[start : start + PER_SHEET]), starts))


def _sheet(thumbnails: Sequence[bytes]) -> bytes:
    rows = -(-len(thumbnails) // COLUMNS)
    sheet = Image.new("RGB", (SIDE * COLUMNS, SIDE * rows), (128, 128, 128))
    for number, data in enumerate(thumbnails):
        if data:
            picture = Image.open(io.BytesIO(data), formats=("JPEG",)).convert("RGB")
            picture.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
            left, top = (SIDE - picture.width) // 2, (SIDE - picture.height) // 2
            sheet.paste(picture, (number % COLUMNS * SIDE + left, number // COLUMNS * SIDE + top))
    target = io.BytesIO()
    sheet.save(target, "WEBP", quality=_QUALITY, method=0)
    return target.getvalue()
