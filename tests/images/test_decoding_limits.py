"""Limits of decoding that protect a server: pixels by choice, and scans of a JPEG."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from quickstudy.errors import UnusableImageError
from quickstudy.images.decoding import MOST_SCANS, InputSpec, decode

SPEC = InputSpec(size=32)


def progressive_jpeg(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are so many."""
    file = io.BytesIO()
    picture = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(picture).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]


def test_as_many_scans_as_any_encoder_writes_are_read() -> None:
    expected = decode(progressive_jpeg(0), SPEC)
    assert expected.shape[2] == 3
    assert decode(progressive_jpeg(MOST_SCANS), SPEC).shape == expected.shape


def test_endless_scans_are_refused_before_decoding() -> None:
    with pytest.raises(UnusableImageError, match=f"more than {MOST_SCANS} scans"):
        decode(progressive_jpeg(MOST_SCANS + 1), SPEC)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_callers_choose_how_many_pixels(kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (100, 50)).save(file, kind)
    assert decode(file.getvalue(), SPEC, most_pixels=5000).size
    with pytest.raises(UnusableImageError, match=r"100x50; the limit is 0\.004999 million"):
        decode(file.getvalue(), SPEC, most_pixels=4999)
