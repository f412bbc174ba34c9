"""Image files of all kinds that cameras, phones, scanners and browsers write, with what is right for each.

A kind makes a file of a picture; what is right is the picture as it should be shown, or the beginning of the reason for
which the file is refused. `DIFFERS` says why, where most other programs do something else.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms

Right = Callable[[np.ndarray], np.ndarray] | str


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    make: Callable[[np.ndarray], bytes]
    right: Right
    """What it should show of the picture, or the beginning of the reason why it is refused."""
    off: float = 0.0
    """Mean difference in levels that its coding costs at most."""
    needs: str = ""
    """Module without which it is not made or not read."""


def picture(width: int, height: int, seed: int) -> np.ndarray:
    """A picture with outlines, colours and some grain, of which no two corners are alike."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack([columns * 200 / width + 20, rows * 200 / height + 20, 128 + 60 * np.sin(columns / 9 + seed)], -1)
    waves[height // 4 : height // 2, width // 3 : width // 2] = (200, 40, 60)
    grain = np.random.Generator(np.random.PCG64(seed)).integers(-4, 5, (height, width, 1))
    return np.clip(waves + grain, 0, 255).astype(np.uint8)


def encoded(levels: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = levels if isinstance(levels, Image.Image) else Image.fromarray(levels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def same(pixels: np.ndarray) -> np.ndarray:
    return pixels


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))


def turned(pixels: np.ndarray) -> np.ndarray:
    return np.rot90(pixels, -1)


def clockwise(orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


# Parts


def segment(marker: int, content: bytes, *, length: int | None = None) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", length or len(content) + 2) + content


def with_segments(data: bytes, *segments: bytes) -> bytes:
    after = 4 + int.from_bytes(data[4:6], "big")
    return data[:after] + b"".join(segments) + data[after:]


def chunk(kind: bytes, data: bytes, *, crc: int | None = None, length: int | None = None) -> bytes:
    told = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data) if length is None else length) + kind + data + struct.pack(">I", told)


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    return data[:33] + b"".join(chunks) + data[33:]


def split_pixels(data: bytes, size: int = 500, *, crc: int | None = None) -> bytes:
    """A PNG whose pixels come in many chunks, of which the second may have a wrong checksum."""
    place, pixels = 33, b""
    while (kind := data[place + 4 : place + 8]) != b"IEND":
        length = int.from_bytes(data[place : place + 4], "big")
        pixels += data[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        place += 12 + length
    parts = [pixels[n : n + size] for n in range(0, len(pixels), size)]
    chunks = [chunk(b"IDAT", part, crc=crc if n == 1 else None) for n, part in enumerate(parts)]
    return data[:33] + b"".join(chunks) + chunk(b"IEND", b"")


def riff(data: bytes, kind: bytes, content: bytes) -> bytes:
    """A WebP with one more chunk, and the flag of VP8X that says so."""
    flags = bytearray(data)
    flags[20] |= {b"EXIF": 0x08, b"ICCP": 0x20}[kind]
    part = kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) & 1)
    body = bytes(flags[12:30]) + part + bytes(flags[30:]) if kind == b"ICCP" else bytes(flags[12:]) + part
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


D65 = (0.9642, 1.0, 0.8249)
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def profile(colours: tuple[tuple[float, ...], ...], gamma: float) -> bytes:
    """A colour profile of three primaries (or of grey, where there are none) and a power curve."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(number, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"a test's colours\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(80), b"wtpt": xyz(D65)}
    tags |= {b"cprt": b"text\0\0\0\0none\0\0\0\0"}
    tags |= {name: xyz(values) for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colours, strict=False)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC") if colours else (b"kTRC",), curve)
    place, table, content = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", place + len(content), len(data))
        content += data
    size = struct.pack(">I", place + len(content))
    space = b"RGB " if colours else b"GRAY"
    head = size + bytes(4) + struct.pack(">I", 0x02100000) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    return (head + b"".join(map(number, D65))).ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + content


def converted(pixels: np.ndarray, to: bytes) -> Image.Image:
    """The same colours as numbers of another profile."""
    srgb, other = ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(to))
    mode = "RGB" if other.profile.xcolor_space == "RGB " else "L"
    return ImageCms.profileToProfile(
        Image.fromarray(pixels), srgb, other, ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode=mode
    )


WIDE, OLD, LINEAR = profile(P3, 2.2), profile(ADOBE, 2.199), profile((), 1.0)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LONG = b"x" * (3 << 20)


def jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    return encoded(pixels, "JPEG", quality=92, **options)


def png(pixels: np.ndarray, **options: Any) -> bytes:
    return encoded(pixels, "PNG", **options)


def webp(pixels: np.ndarray, **options: Any) -> bytes:
    return encoded(pixels, "WEBP", lossless=True, **options)


def with_alpha(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels).convert("RGBA")
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[: len(alpha) // 2] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


def half_white(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([np.full_like(pixels[: len(pixels) // 2], 255), pixels[len(pixels) // 2 :]])


def paletted(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).quantize(64).convert("RGB"))


def two_levels(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("1").convert("RGB"))


def cv2_encoded(suffix: str, *options: int) -> Callable[[np.ndarray], bytes]:
    def make(pixels: np.ndarray) -> bytes:
        import cv2

        return bytes(cv2.imencode(suffix, np.ascontiguousarray(pixels[..., ::-1]), list(options))[1].tobytes())

    return make


def vips_encoded(suffix: str, **options: Any) -> Callable[[np.ndarray], bytes]:
    def make(pixels: np.ndarray) -> bytes:
        import pyvips

        return bytes(pyvips.Image.new_from_array(pixels).copy(interpretation="srgb").write_to_buffer(suffix, **options))

    return make


def heic(pixels: np.ndarray, **options: Any) -> bytes:
    import pillow_heif

    pillow_heif.register_heif_opener()
    return encoded(pixels, "HEIF", quality=95, **options)


def frames(pixels: np.ndarray) -> dict[str, Any]:
    return {"save_all": True, "append_images": [Image.fromarray(255 - pixels)]}


def zeroed(data: bytes, size: int = 900) -> bytes:
    third = len(data) // 3
    return data[:third] + bytes(size) + data[third + size :]


def patched(data: bytes, place: int, value: int) -> bytes:
    return data[:place] + bytes([value]) + data[place + 1 :]


def without_last_scan(data: bytes) -> bytes:
    return data[: data.rindex(b"\xff\xda")] + b"\xff\xd9"


def sixteen(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L")).astype(np.uint16) * 257


def two_pages(pixels: np.ndarray) -> bytes:
    return encoded(pixels, "TIFF", **frames(pixels))


def with_broken_tag(pixels: np.ndarray) -> bytes:
    """A TIFF whose EXIF directory lies behind the end of the file."""
    exif = Image.Exif()
    exif[0x8769] = 0x7FFFFFF0
    data = bytearray(encoded(pixels, "TIFF"))
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    entries = bytes(data[start + 2 : start + 2 + 12 * count]) + struct.pack("<HHII", 0x8769, 4, 1, 0x7FFFFFF0)
    place = len(data)
    data += struct.pack("<H", count + 1) + entries + bytes(4)
    data[4:8] = struct.pack("<I", place)
    return bytes(data)


def netpbm(pixels: np.ndarray, levels: int) -> bytes:
    """Grey levels from 0 to 1000, as the header declares."""
    values = np.asarray(Image.fromarray(pixels).convert("L")).astype(np.float64) * levels / 255
    head = f"P5 {pixels.shape[1]} {pixels.shape[0]} {levels}\n".encode()
    return head + values.round().astype(">u2").tobytes()


BEGINS = b"\0\0\0\x18ftyp%b\0\0\0\0%b"
