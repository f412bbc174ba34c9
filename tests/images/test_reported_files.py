"""Files as users reported them, each of which went wrong once: the same pixels as the plain file, or refused."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from corpus import chunk, clockwise, encoded, picture, segment, with_chunks, with_segments
from PIL import Image

from quickstudy.errors import UnusableImageError
from quickstudy.images.decoding import InputSpec, decode, size_of
from quickstudy.models.loading import load
from small_models import write_small_model

SPEC = InputSpec(size=224)
SHOWN = picture(400, 300, seed=4)
PLAIN = encoded(SHOWN, "JPEG", quality=90)
PNG = encoded(SHOWN, "PNG", compress_level=1)
PROGRESSIVE = encoded(SHOWN, "JPEG", quality=90, progressive=True)
VIDEO = b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + np.random.Generator(np.random.PCG64(1)).bytes(8 << 20)
LONG = b"x" * (3 << 20)


@pytest.mark.parametrize("size", [224, 100, 20])
def test_a_motion_photo_is_its_picture(size: int) -> None:
    spec = InputSpec(size=size)
    np.testing.assert_array_equal(decode(PLAIN + VIDEO, spec), decode(PLAIN, spec))


@pytest.mark.parametrize(
    "before",
    [
        segment(0xE2, b"ICC_PROFILE\0\x01\x01" + bytes(128) + b"\xff\xda" + bytes(64)),
        segment(0xE0, b"JFXX\0\x10" + encoded(SHOWN[:64, :64], "JPEG", quality=50)),
    ],
    ids=["a profile", "a thumbnail"],
)
def test_orientation_behind_what_holds_the_bytes_ff_da(before: bytes) -> None:
    data = with_segments(PLAIN, before, segment(0xE1, clockwise(6)))
    np.testing.assert_array_equal(decode(data, SPEC), np.rot90(decode(PLAIN, SPEC), -1))
    assert size_of(data) == (300, 400)


@pytest.mark.parametrize("data", [PLAIN, PROGRESSIVE], ids=["baseline", "progressive"])
@pytest.mark.parametrize("size", [224, 50])
def test_a_jpeg_that_lacks_its_last_two_bytes_is_whole(data: bytes, size: int) -> None:
    spec = InputSpec(size=size)
    np.testing.assert_array_equal(decode(data[:-2], spec), decode(data, spec))
    np.testing.assert_array_equal(decode(data[:-1], spec), decode(data, spec))


@pytest.mark.parametrize("size", [224, 50])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PLAIN[: len(PLAIN) // 4] + b"\xff\xd9", "truncated (the scan ends after "),
        (PLAIN[: len(PLAIN) // 4], "truncated (the scan ends after "),
        (PROGRESSIVE[: len(PROGRESSIVE) // 4] + b"\xff\xd9", "truncated (the scans of component "),
        (PROGRESSIVE[:-40] + b"\xff\xd9", "truncated (one of the scans ends before its last block)"),
    ],
)
def test_a_cut_jpeg_is_refused_with_or_without_an_end_marker(data: bytes, reason: str, size: int) -> None:
    with pytest.raises(UnusableImageError) as caught:
        decode(data, InputSpec(size=size))
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize("kind", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 9}])
def test_zeros_in_the_middle_of_a_scan_are_refused(kind: str, options: dict[str, object]) -> None:
    data = encoded(Image.fromarray(SHOWN).convert(kind), "JPEG", quality=90, **options)
    third = len(data) // 3
    damaged = data[:third] + bytes(4096) + data[third + 4096 :]
    with pytest.raises(UnusableImageError, match=r"^(truncated|damaged) \("):
        decode(damaged, SPEC)
    decode(data, SPEC)


@pytest.mark.parametrize(
    "part",
    [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LONG)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0" + zlib.compress(b"<x>" + LONG + b"</x>")),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(LONG)),
        chunk(b"eXIf", b"\x01\0\x06\0\0\0\0"),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"a" * 500), crc=0),
        chunk(b"tEXt", b"a\0b", crc=0),
        chunk(b"tEXt", b"a\0b", length=2**31 - 1),
        chunk(b"tEXt", b"a\0b" * 9, length=4),
    ],
    ids=["text", "XMP", "profile", "EXIF", "sum of a profile", "sum of text", "length", "short length"],
)
def test_what_makes_no_pixels_cannot_cost_a_png(part: bytes) -> None:
    np.testing.assert_array_equal(decode(with_chunks(PNG, part), SPEC), SHOWN)


def test_a_float_image_with_one_bright_pixel_is_not_black() -> None:
    grey = np.asarray(Image.fromarray(SHOWN).convert("L")).astype(np.float32) / 255
    brightest = np.where(grey == grey.max(), 9, grey).astype(np.float32)
    plain, brighter = (decode(encoded(levels, "TIFF"), SPEC) for levels in (grey, brightest))
    assert plain.mean() > 90
    assert np.mean(plain != brighter) < 0.01


def test_pillow_images_with_broken_exif_are_predicted(tmp_path: Path) -> None:
    model = load(write_small_model(tmp_path / "small.onnx"))
    (tmp_path / "plain.jpg").write_bytes(PLAIN)
    broken = with_segments(PLAIN, segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff"))
    expected = model.predict_proba(tmp_path / "plain.jpg")
    np.testing.assert_array_equal(model.predict_proba([Image.open(io.BytesIO(broken))]), expected)
    loaded = Image.open(io.BytesIO(broken))
    loaded.load()
    np.testing.assert_allclose(model.predict_proba([loaded]), expected, atol=0.02)


def test_an_image_that_pillow_has_opened_is_judged_by_its_file(tmp_path: Path) -> None:
    model = load(write_small_model(tmp_path / "small.onnx"))
    damaged = Image.open(io.BytesIO(PLAIN[: len(PLAIN) // 2] + b"\xff\xd9"))
    with pytest.raises(UnusableImageError, match=r"truncated \(the scan ends after \d+ % of the rows\)"):
        model.predict_proba([damaged])
