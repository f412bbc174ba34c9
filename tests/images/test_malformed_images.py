"""Files that are no usable image: each is refused with a true reason, and never with another exception."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quickstudy.errors import UnusableImageError
from quickstudy.images.decoding import InputSpec, decode
from quickstudy.images.identity import read_image_file

# pytest switches off the filter that quickstudy sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore:Image size:Warning")

SPEC = InputSpec(size=256)


def textured(width: int = 120, height: int = 90) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    waves = 128 + 60 * np.sin(columns / 7) + 60 * np.cos(rows / 5)
    grain = np.random.Generator(np.random.PCG64(3)).integers(-6, 7, (height, width, 3))
    return Image.fromarray(np.clip(waves[..., None] + grain, 0, 255).astype(np.uint8))


def encode(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    textured().save(buffer, kind, **options)
    return buffer.getvalue()


JPEG, PNG, WEBP, GIF, BMP, TIFF = (encode(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"))
PROGRESSIVE = encode("JPEG", progressive=True)
COMPRESSED_TIFF = encode("TIFF", compression="tiff_lzw")
SCAN = JPEG.index(b"\xff\xda")
FRAME_HEADER = JPEG.index(b"\xff\xc0")
GARBAGE = np.random.Generator(np.random.PCG64(9)).bytes(3000)


def chunk(name: bytes, data: bytes, *, broken_sum: bool = False) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ broken_sum)


def png(
    width: int, height: int, *, data: bytes = zlib.compress(bytes(100)), header: dict[str, Any] | None = None
) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), **(header or {}))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif(*, screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    palette = b"\x00\x00\x00\xff\xff\xff"
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + palette
    return head + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\x00;"


def bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 100, 0, 0, 54) + head + bytes(100)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.jpg", JPEG)
    return buffer.getvalue()


NOT_AN_IMAGE = "not an image, or damaged from its first bytes on"
BEGINS_AS = "damaged header (it begins as {} does, but what follows is broken"
TOO_MANY = "too many pixels"
REFUSED: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "empty file (0 bytes)"),
    "one byte": (b"\xff", NOT_AN_IMAGE),
    "only a JPEG's first 2 bytes": (JPEG[:2], NOT_AN_IMAGE),
    "only a JPEG's first 20 bytes": (JPEG[:20], "damaged header (the file has no frame)"),
    "JPEG cut in its header": (JPEG[:100], "damaged header"),
    "JPEG cut right before its data": (JPEG[: SCAN + 14], "truncated"),
    "JPEG cut in half": (JPEG[: len(JPEG) // 2], "truncated"),
    "JPEG cut before its last 100 bytes": (JPEG[:-100], "truncated"),
    "progressive JPEG cut in half": (PROGRESSIVE[: len(PROGRESSIVE) // 2], "truncated"),
    "JPEG with zeros for its size": (
        JPEG[: FRAME_HEADER + 5] + bytes(4) + JPEG[FRAME_HEADER + 9 :],
        "damaged (the frame's header says that the image has no rows)",
    ),
    "JPEG announcing 65000x65000": (
        JPEG[: FRAME_HEADER + 5] + struct.pack(">HH", 65000, 65000) + JPEG[FRAME_HEADER + 9 :],
        TOO_MANY,
    ),
    "JPEG with a segment longer than the file": (
        JPEG[:20] + b"\xff\xdb\xff\xff" + JPEG[24:],
        "damaged (a table that the scan needs is missing or broken)",
    ),
    "JPEG with a header of random bytes": (JPEG[:2] + GARBAGE, NOT_AN_IMAGE),
    "JPEG with garbage instead of its scan's header": (JPEG[: SCAN + 2] + GARBAGE, "damaged"),
    "JPEG whose data are garbage to the last byte": (
        JPEG[: SCAN + 14] + bytes(range(255)) * 10 + JPEG[-2:],
        "damaged (the scan's data lost their place: 107 bytes of them are left over in front of the marker FF D9)",
    ),
    "JPEG without tables": (JPEG[:2] + JPEG[FRAME_HEADER:], "damaged"),
    "only a PNG's signature": (PNG[:8], "damaged header (a PNG whose first chunk is not its header)"),
    "PNG cut in its header": (PNG[:20], "damaged header"),
    "PNG cut in half": (PNG[: len(PNG) // 2], "truncated"),
    "PNG whose header has a wrong checksum": (
        png(4, 4, header={"broken_sum": True}),
        "damaged header (the checksum of a PNG's header is wrong)",
    ),
    "PNG whose data stop early": (png(40, 40), "truncated"),
    "PNG whose data are no zlib stream": (png(4, 4, data=GARBAGE[:200]), "damaged"),
    "PNG of 0x0": (png(0, 0), "damaged header (a PNG of 0x0 pixels, 8 bits and colour type 2)"),
    "PNG announcing 30000x30000": (png(30000, 30000), TOO_MANY),
    "PNG announcing 12000x12000": (png(12000, 12000), "too many pixels (12000x12000; the limit is 100 million)"),
    "PNG announcing 2147483647x1": (png(2**31 - 1, 1), TOO_MANY),
    "WebP cut in its header": (WEBP[:16], "truncated (the file ends in front of its pixels)"),
    "WebP cut in half": (WEBP[: len(WEBP) // 2], "truncated (the file has 384 of the 788 bytes of its pixels)"),
    "RIFF that is a sound": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(30), NOT_AN_IMAGE),
    "RIFF of nothing": (b"RIFF\x04\0\0\0WEBP", "truncated (the file ends in front of its pixels)"),
    "GIF cut in its header": (GIF[:8], BEGINS_AS.format("GIF")),
    "GIF cut in its palette": (GIF[:200], BEGINS_AS.format("GIF")),
    "GIF cut in half": (GIF[: len(GIF) // 2], "truncated"),
    "GIF with a screen of 65535x65535": (gif(screen=(65535, 65535), frame=(1, 1)), TOO_MANY),
    "GIF with a frame larger than its screen": (gif(screen=(1, 1), frame=(65535, 65535)), TOO_MANY),
    "GIF with a frame of 12000x12000": (gif(screen=(1, 1), frame=(12000, 12000)), "too many pixels (12000x12000"),
    "GIF without frames": (b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b";", BEGINS_AS.format("GIF")),
    "BMP cut in its header": (BMP[:20], "damaged header"),
    "BMP cut in half": (BMP[: len(BMP) // 2], "truncated"),
    "BMP announcing 30000x30000": (bmp(30000, 30000), TOO_MANY),
    "BMP of negative width": (bmp(-4, 4), ""),
    "TIFF cut in its header": (TIFF[:6], BEGINS_AS.format("TIFF")),
    "TIFF cut in its fields": (TIFF[:60], BEGINS_AS.format("TIFF")),
    "TIFF cut in half": (TIFF[: len(TIFF) // 2], "truncated"),
    "compressed TIFF cut in half": (COMPRESSED_TIFF[: len(COMPRESSED_TIFF) // 2], ""),
    "HTML": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "an HTML page, not an image"),
    "HTML after blank lines": (b"\r\n\n  <HTML><head>", "an HTML page, not an image"),
    "text": (b"Ceci n'est pas une image.\n" * 20, NOT_AN_IMAGE),
    "JSON": (b'{"error": "rate limit exceeded"}', NOT_AN_IMAGE),
    "random bytes": (GARBAGE, NOT_AN_IMAGE),
    "zeros": (bytes(5000), NOT_AN_IMAGE),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n", "a PDF file, not an image; save its pages as PNG"),
    "zip": (zipped(), "an archive, not an image; unpack it"),
    "AVIF": (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(40), BEGINS_AS.format("AVIF")),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG is not supported; convert it to PNG"),
    "SVG with an XML header": (
        b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg/>',
        "SVG is not supported; convert it to PNG",
    ),
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "a PostScript file, not an image; convert it to PNG",
    ),
    "JPEG behind a byte order mark": (b"\xef\xbb\xbf" + JPEG, NOT_AN_IMAGE),
    "JPEG read as text and written as UTF-8": (JPEG.decode("latin-1").encode(), NOT_AN_IMAGE),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_malformed_files_are_refused_with_a_true_reason(kind: str) -> None:
    data, expected = REFUSED[kind]
    with pytest.raises(UnusableImageError) as caught:
        decode(data, SPEC)
    reason = str(caught.value)
    assert reason.startswith(expected), reason
    assert reason
    assert "\n" not in reason
    assert len(reason) < 200


def test_the_largest_image_has_a_hundred_million_pixels() -> None:
    with pytest.raises(UnusableImageError, match=r"too many pixels \(10001x10000; the limit is 100 million\)"):
        decode(png(10_001, 10_000), SPEC)
    with pytest.raises(UnusableImageError, match="truncated"):
        decode(png(10_000, 10_000), SPEC)


USABLE: dict[str, bytes] = {
    "PNG named .jpg, which only its name says": PNG,
    "JPEG with bytes after its end": JPEG + GARBAGE,
    "PNG without its last chunk": PNG[:-12],
    "GIF without its last byte": GIF[:-1],
    "WebP with bytes after its end": WEBP + b"\0\0",
    "TIFF with bytes after its end": TIFF + GARBAGE,
}


@pytest.mark.parametrize("kind", USABLE)
def test_files_with_harmless_damage_decode(kind: str) -> None:
    assert decode(USABLE[kind], SPEC).shape == (90, 120, 3)


def test_every_truncation_decodes_or_is_refused() -> None:
    """Each kind of file cut at 40 places: nothing but UnusableImageError comes out."""
    for data in (JPEG, PROGRESSIVE, PNG, WEBP, GIF, BMP, TIFF, COMPRESSED_TIFF):
        refused = 0
        for length in np.linspace(0, len(data) - 1, 40).astype(int):
            try:
                assert decode(data[:length], SPEC).shape == (90, 120, 3)
            except UnusableImageError as error:
                assert str(error)
                refused += 1
        assert refused >= 35


def broken_link(path: Path) -> None:
    path.symlink_to("nowhere.jpg")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.mkdir(), "unreadable (is a directory)"),
        (lambda path: None, "unreadable (no such file or directory)"),
        (broken_link, "unreadable (no such file or directory)"),
        (link_to_itself, "unreadable (too many levels of symbolic links)"),
    ],
    ids=["a folder", "nothing", "a broken link", "a link to itself"],
)
def test_what_is_no_file_is_unreadable(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    path = tmp_path / "x.jpg"
    make(path)
    with pytest.raises(UnusableImageError) as caught:
        read_image_file(path)
    assert str(caught.value) == reason


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(JPEG)
    path.chmod(0)
    with pytest.raises(UnusableImageError, match=r"unreadable \(permission denied\)"):
        read_image_file(path)


def test_an_enormous_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tiff"
    with path.open("wb") as file:
        file.truncate(257 << 20)  # sparse: takes no room
    with pytest.raises(UnusableImageError, match="larger than 256 MiB"):
        read_image_file(path)
