"""The chunks of PNG and WebP files: those that make pixels are kept, all others can cost nothing.

A chunk says how long it is, and in a PNG it has a checksum. What is decoded is the file written anew from the chunks
that make its pixels; so text of many megabytes, broken EXIF data, or a profile whose checksum or length is wrong are
never seen by a decoder. Where the length of such a chunk leads nowhere, the next chunk that is whole is looked for.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from quickstudy.errors import UnusableImageError
from quickstudy.images.structure import MOST_PROFILE, require_few_pixels
from quickstudy.images.tags import exif_orientation

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_KIND = re.compile(rb"[A-Za-z]{4}")
_NEXT = re.compile(rb"PLTE|tRNS|IDAT|IEND")
_MOST_CHUNKS = 100_000  # encoders write some thousands at most


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """An image file by chunks: what there is to know of it, and the file from those that make its pixels."""

    width: int
    """Width in pixels, as stored."""
    height: int
    """Height in pixels, as stored."""
    depth: int
    """Number of bits a sample."""
    orientation: int
    """Orientation that EXIF data give, 1 to 8."""
    profile: bytes
    """Colour profile; empty where there is none that can be read."""
    file: bytes
    """The file without anything that makes no pixels."""


class _Chunk(NamedTuple):
    kind: bytes
    start: int
    """Place of its data."""
    end: int
    """Place behind its data."""
    whole: bool
    """Whether its checksum is right."""


def read_png(data: bytes, most_pixels: int) -> Chunks:
    """Read a PNG.

    Raises:
        UnusableImageError: it has no proper header, too many pixels, or not all of them.
    """
    header = data[16:29]
    if data[12:16] != b"IHDR" or len(header) < 13:
        raise UnusableImageError("damaged header (a PNG whose first chunk is not its header)")
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", header)
    if data[29:33] != _checksum(data[12:29]):
        raise UnusableImageError("damaged header (the checksum of a PNG's header is wrong)")
    if not width or not height or depth not in _DEPTHS.get(colour, ()):
        raise UnusableImageError(
            f"damaged header (a PNG of {width}x{height} pixels, {depth} bits and colour type {colour})"
        )
    require_few_pixels((width, height), most_pixels)
    palette = transparency = profile = exif = b""
    pixels: list[tuple[int, int]] = []
    whole = True
    for chunk in _png_chunks(data, 33):
        if chunk.kind == b"IDAT":
            pixels.append((chunk.start, chunk.end))
            whole = whole and chunk.whole
        elif chunk.kind == b"PLTE" and not pixels:
            if not chunk.whole and colour == 3:
                raise UnusableImageError("damaged (the checksum of a PNG's palette is wrong)")
            palette = data[chunk.start : chunk.end]
        elif not chunk.whole:
            continue
        elif chunk.kind == b"tRNS" and not pixels:
            transparency = data[chunk.start : chunk.end]
        elif chunk.kind == b"iCCP" and not profile:
            profile = _inflated_profile(data[chunk.start : chunk.end])
        elif chunk.kind == b"eXIf" and not exif:
            exif = data[chunk.start : chunk.end]
    if not pixels:
        raise UnusableImageError("truncated (the file ends in front of its pixels)")
    if not whole:
        _require_whole(data, pixels, header)
    parts = [_SIGNATURE, _chunk(b"IHDR", header)]
    parts += [_chunk(b"PLTE", palette)] if palette else []
    parts += [_chunk(b"tRNS", transparency)] if transparency else []
    if whole and len(pixels) == 1:
        parts.append(data[pixels[0][0] - 8 : pixels[0][1] + 4])
    else:
        parts.append(_chunk(b"IDAT", b"".join(data[start:end] for start, end in pixels)))
    return Chunks(
        width=width,
        height=height,
        depth=depth,
        orientation=exif_orientation(exif),
        profile=profile,
        file=b"".join([*parts, _chunk(b"IEND", b"")]),
    )


def _png_chunks(data: bytes, place: int) -> Iterator[_Chunk]:
    """Yield the chunks from a place on, up to the end of the image."""
    size, budget = len(data), [4 * len(data) + (1 << 20)]
    for _ in range(_MOST_CHUNKS):
        if place + 8 > size:
            return
        kind, start = data[place + 4 : place + 8], place + 8
        end = start + int.from_bytes(data[place : place + 4], "big")
        if kind == b"IEND":
            return
        whole = end + 4 <= size and data[end : end + 4] == _checksum(data[place + 4 : end])
        if whole or (kind in (b"IDAT", b"PLTE") and _leads_on(data, end + 4)):
            yield _Chunk(kind, start, end, whole)
            place = end + 4
            continue
        found = _next_whole(data, start, budget)
        if kind == b"IDAT":  # its length is wrong, or the file ends in it
            yield _Chunk(kind, start, min(end, size) if found is None else found - 4, whole=False)
        if found is None:
            return
        place = found


def _leads_on(data: bytes, place: int) -> bool:
    """Say whether a chunk may begin here, or the file ends."""
    kind, length = data[place + 4 : place + 8], int.from_bytes(data[place : place + 4], "big")
    return place == len(data) or (_KIND.fullmatch(kind) is not None and place + 12 + length <= len(data))


def _next_whole(data: bytes, place: int, budget: list[int]) -> int | None:
    """Find the next chunk that matters and whose checksum is right; `budget` holds the bytes that may be summed."""
    for found in _NEXT.finditer(data, place):
        length = int.from_bytes(data[found.start() - 4 : found.start()], "big")
        end = found.end() + length
        if end + 4 > len(data):
            continue
        budget[0] -= length + 64
        if budget[0] < 0:
            return None
        if data[end : end + 4] == _checksum(data[found.start() : end]):
            return found.start() - 4
    return None


def _require_whole(data: bytes, pixels: list[tuple[int, int]], header: bytes) -> None:
    """Inflate pixels whose checksums are wrong or that have no end, to find out whether they are all there."""
    expected, row = _bytes_of(*struct.unpack(">IIBBBBB", header))
    inflater, count, problem = zlib.decompressobj(), 0, False
    pending = b"".join(data[start:end] for start, end in pixels)
    try:
        while (count < expected or not inflater.eof) and count <= expected + (1 << 20):
            piece = inflater.decompress(pending, 1 << 20)
            pending = inflater.unconsumed_tail
            count += len(piece)
            if not piece and not pending:
                break
    except zlib.error:
        problem = True
    if inflater.eof and count >= expected:
        return  # the checksum of all pixels is right
    if problem or (count >= expected and pixels[-1][1] < len(data)):
        raise UnusableImageError("damaged (the pixels of the PNG are no longer what was compressed)")
    if count < expected:
        rows = f"after {100 * count // expected} % of the rows" if row else "too early"
        raise UnusableImageError(f"truncated (the pixels end {rows})")


def _bytes_of(width: int, height: int, depth: int, colour: int, *rest: int) -> tuple[int, int | None]:
    """Return the number of bytes of the uncompressed pixels, and of a row where all rows are as long."""
    bits = depth * _CHANNELS[colour]

    def rows(across: int, down: int) -> int:
        return down * (1 + -(-across * bits // 8)) if across else 0

    if not rest[-1]:
        return rows(width, height), rows(width, 1)
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    return sum(rows(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes), None


def _inflated_profile(data: bytes) -> bytes:
    """Inflate a profile; an empty one where that cannot be done, or is too large."""
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(data[data.index(b"\0") + 2 :], MOST_PROFILE)
    except (ValueError, zlib.error):
        return b""
    return profile if inflater.eof else b""


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join([len(data).to_bytes(4, "big"), kind, data, _checksum(kind + data)])


# WebP
_ANIMATED, _ALPHA = 0x02, 0x10
_PIXEL_CHUNKS = (b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L")


def read_webp(data: bytes, most_pixels: int) -> Chunks:
    """Read a WebP; of an animation, the first frame.

    Raises:
        UnusableImageError: it has no pixels, too many, or not all of them.
    """
    kept: list[bytes] = []
    profile = exif = b""
    size: tuple[int, int] | None = None
    place, truncated = 12, False
    while place + 8 <= len(data) and len(kept) < _MOST_CHUNKS:
        kind, length = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        body = data[place + 8 : place + 8 + length]
        if kind == b"VP8X" and length >= 10 and size is None:
            size = 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
            flags = body[0] & (_ANIMATED | _ALPHA)
            kept.append(_riff_chunk(kind, bytes([flags]) + body[1:10]))
        elif kind in _PIXEL_CHUNKS:
            if len(body) < length:
                truncated = True
                break
            kept.append(_riff_chunk(kind, body))
            size = size or _webp_size(kind, body)
            if kind in (b"VP8 ", b"VP8L", b"ANMF"):
                break  # the picture, or the first of them
        elif kind == b"ICCP" and not profile and length <= MOST_PROFILE and len(body) == length:
            profile = body
        place += 8 + length + (length & 1)
    exif = _webp_exif(data, place)
    if size is not None:
        require_few_pixels(size, most_pixels)
    if truncated:
        raise UnusableImageError(f"truncated (the file has {len(body):,} of the {length:,} bytes of its pixels)")
    if size is None or not kept or not kept[-1].startswith((b"VP8 ", b"VP8L", b"ANMF")):
        raise UnusableImageError("truncated (the file ends in front of its pixels)")
    inside = b"".join([b"WEBP", *kept])
    return Chunks(
        width=size[0],
        height=size[1],
        depth=8,
        orientation=exif_orientation(exif),
        profile=profile,
        file=b"".join([b"RIFF", len(inside).to_bytes(4, "little"), inside]),
    )


def _webp_exif(data: bytes, place: int) -> bytes:
    """Find the EXIF data, which come behind the pixels."""
    for _ in range(_MOST_CHUNKS):
        kind, length = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if kind == b"EXIF":
            return data[place + 8 : place + 8 + length]
        if place + 8 > len(data):
            break
        place += 8 + length + (length & 1)
    return b""


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int] | None:
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a" and len(body) >= 10:
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    if kind == b"VP8L" and body[:1] == b"\x2f" and len(body) >= 5:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None


def _riff_chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join([kind, len(data).to_bytes(4, "little"), data, b"\0" * (len(data) & 1)])
