"""The walk over a file's structure: what it says of whole files, and that it ends whatever it is given."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import zlib

import numpy as np
import pytest
from corpus import OLD, chunk, clockwise, encoded, picture, png, riff, segment, webp, with_chunks, with_segments
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quickstudy.errors import UnusableImageError
from quickstudy.images.chunks import read_png, read_webp
from quickstudy.images.decoding import InputSpec, decode
from quickstudy.images.structure import MOST_PROFILE, MOST_SCANS, essential, read_jpeg
from quickstudy.images.tags import BITS, ORIENTATION, WIDTH, essential_tiff, exif_orientation, read_tags

SHOWN = picture(90, 70, seed=2)
PLAIN = encoded(SHOWN, "JPEG", quality=90)
MOST = 10**8


def test_what_a_jpeg_says_of_itself() -> None:
    data = encoded(SHOWN, "JPEG", quality=90, exif=clockwise(8), icc_profile=OLD)
    jpeg = read_jpeg(data)
    assert (jpeg.frame.width, jpeg.frame.height, jpeg.frame.precision) == (90, 70, 8)
    assert jpeg.frame.components == (1, 2, 3)
    assert (jpeg.orientation, jpeg.profile, jpeg.adobe, jpeg.mended) == (8, OLD, None, False)
    assert (jpeg.progressive, jpeg.one_scan) == (False, True)
    scans = jpeg.scans()
    assert (len(scans.coded), scans.end, scans.has_end, scans.missing) == (1, len(data), True, "")


def test_a_progressive_jpegs_scans_are_counted_to_its_end() -> None:
    data = encoded(SHOWN, "JPEG", progressive=True)
    jpeg = read_jpeg(data + PLAIN)
    assert (jpeg.progressive, jpeg.one_scan) == (True, False)
    assert (len(jpeg.scans().coded), jpeg.scans().end) == (10, len(data))
    assert essential(jpeg).count(b"\xff\xda") == 10


@pytest.mark.parametrize("adobe", [0, 1, 2])
def test_adobes_marker(adobe: int) -> None:
    marker = segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([adobe]))
    assert read_jpeg(with_segments(PLAIN, marker)).adobe == adobe


def test_a_profile_in_several_parts_in_any_order() -> None:
    whole = np.random.Generator(np.random.PCG64(0)).bytes(100_000)
    parts = [
        segment(0xE2, b"ICC_PROFILE\0" + bytes([n + 1, 2]) + whole[n * 50_000 : (n + 1) * 50_000]) for n in range(2)
    ]
    assert read_jpeg(with_segments(PLAIN, *parts)).profile == whole
    assert read_jpeg(with_segments(PLAIN, *parts[::-1])).profile == whole
    assert read_jpeg(with_segments(PLAIN, parts[1])).profile == b""


def test_the_height_may_stand_behind_the_first_scan() -> None:
    frame = PLAIN.index(b"\xff\xc0")
    told = PLAIN[: frame + 5] + bytes(2) + PLAIN[frame + 7 : -2] + segment(0xDC, struct.pack(">H", 70)) + PLAIN[-2:]
    jpeg = read_jpeg(told)
    assert (jpeg.frame.height, jpeg.mended) == (70, True)
    assert read_jpeg(essential(jpeg)).frame == jpeg.frame


def test_a_broken_chain_is_taken_up_at_the_largest_frame() -> None:
    small = encoded(SHOWN[:16, :16], "JPEG")
    wrong = segment(0xE1, b"Exif\0\0" + bytes(20) + small + bytes(30), length=25)
    jpeg = read_jpeg(with_segments(PLAIN, wrong))
    assert (jpeg.frame.width, jpeg.frame.height, jpeg.mended) == (90, 70, True)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PLAIN[: PLAIN.index(b"\xff\xda")], "truncated (the file ends in front of its first scan)"),
        (PLAIN[:30], "damaged header (the file has no frame)"),
        (PLAIN.replace(b"\xff\xc0", b"\xff\xc5", 1), "a hierarchical JPEG"),
        (PLAIN.replace(b"\xff\xc0", b"\xff\xc3", 1), "a lossless JPEG"),
    ],
)
def test_a_jpeg_without_a_scan_that_can_be_decoded(data: bytes, reason: str) -> None:
    with pytest.raises(UnusableImageError) as caught:
        read_jpeg(data)
    assert str(caught.value).startswith(reason)


def test_what_a_png_says_of_itself_and_what_is_left_of_it() -> None:
    data = with_chunks(png(SHOWN, exif=clockwise(3), icc_profile=OLD), chunk(b"tEXt", b"a\0b"), chunk(b"gAMA", b"abcd"))
    found = read_png(data, MOST)
    assert (found.width, found.height, found.depth, found.orientation, found.profile) == (90, 70, 8, 3, OLD)
    assert found.file == png(SHOWN)
    huge = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(MOST_PROFILE + 1)))
    assert read_png(with_chunks(png(SHOWN), huge), MOST).profile == b""
    with pytest.raises(UnusableImageError, match=r"too many pixels \(90x70; the limit is 0\.006299 million\)"):
        read_png(data, 6299)


def test_what_a_webp_says_of_itself_and_what_is_left_of_it() -> None:
    data = webp(SHOWN, exif=clockwise(5), icc_profile=OLD)
    found = read_webp(data, MOST)
    assert (found.width, found.height, found.orientation, found.profile) == (90, 70, 5, OLD)
    assert b"EXIF" not in found.file
    assert b"ICCP" not in found.file
    assert read_webp(riff(data, b"EXIF", b"broken"), MOST).orientation == 5
    with pytest.raises(UnusableImageError, match=r"truncated \(the file has [\d,]+ of the [\d,]+ bytes "):
        read_webp(webp(SHOWN)[:-100], MOST)


def test_tags_of_both_orders_and_sizes() -> None:
    for order, mark in (("<", b"II"), (">", b"MM")):
        turned, wide = struct.pack(f"{order}HH", 6, 0), struct.pack(f"{order}I", 70_000)
        entries = [(ORIENTATION, 3, 1, turned), (WIDTH, 4, 1, wide)]
        body = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
        tiff = mark + struct.pack(f"{order}HIH", 42, 8, len(entries)) + body + bytes(4)
        assert read_tags(tiff, (ORIENTATION, WIDTH)) == {ORIENTATION: (6,), WIDTH: (70_000,)}
        assert exif_orientation(b"Exif\0\0" + tiff) == 6
        assert exif_orientation(tiff[:15]) == 1


def test_a_tiff_keeps_but_what_makes_its_pixels() -> None:
    data = encoded(SHOWN, "TIFF", exif=clockwise(6), icc_profile=OLD)
    left = essential_tiff(data)
    assert len(left) == len(data)
    assert read_tags(left, (ORIENTATION, 34675, WIDTH, BITS)) == {WIDTH: (90,), BITS: (8, 8, 8)}
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(left))), SHOWN)
    plain = encoded(SHOWN, "TIFF", description="text", icc_profile=OLD)
    assert essential_tiff(plain) is plain


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff" * 3_000_000,
        b"\xff\xd8" + b"\xff\xe1\x00\x02" * 700_000,
        b"\xff\xd8" + b"\xff\xe1\x00\x03\x00" * 600_000,
        PLAIN[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 300_000,
        PLAIN[:-2] + b"\xff\x00" * 1_500_000,
        PLAIN[:-2] + b"\xff\xfe\x00\x02" * 700_000,
        png(SHOWN)[:33] + chunk(b"tEXt", b"") * 250_000,
        png(SHOWN)[:33] + b"\0\0\0\4IDAT" * 400_000,
        b"RIFF\0\0\0\0WEBP" + b"JUNK\0\0\0\0" * 400_000,
    ],
    ids=["fill", "empty segments", "odd segments", "scans", "stuffing", "comments", "text", "pixels", "junk"],
)
def test_files_made_to_take_long_do_not(data: bytes) -> None:
    """No byte costs more than a call; where the rest was copied for each segment, this would not come to its end."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        with contextlib.suppress(UnusableImageError):
            decode(data, InputSpec(size=32))
    finally:
        sys.setprofile(None)
    assert 0 < calls <= len(data)


def test_more_scans_than_any_encoder_writes() -> None:
    last = PLAIN[PLAIN.rindex(b"\xff\xda") : -2]
    assert len(read_jpeg(PLAIN[:-2] + last * (MOST_SCANS - 1)).scans().coded) == 1
    with pytest.raises(UnusableImageError, match=f"a JPEG of more than {MOST_SCANS} scans"):
        read_jpeg(PLAIN[:-2] + last * MOST_SCANS).scans()


@given(st.sampled_from([PLAIN[:200], PLAIN, png(SHOWN), webp(SHOWN)]), st.binary(max_size=60), st.integers(0, 400))
def test_any_bytes_put_in_are_walked_over_or_refused(data: bytes, more: bytes, place: int) -> None:
    for changed in (data[:place] + more + data[place:], data[:2] + more):
        try:
            if changed[:2] == b"\xff\xd8":
                assert read_jpeg(changed).scans().end <= len(changed)
            elif changed[1:4] == b"PNG":
                assert read_png(changed, MOST).file
            else:
                assert read_webp(changed, MOST).file
        except UnusableImageError as error:
            assert str(error)
