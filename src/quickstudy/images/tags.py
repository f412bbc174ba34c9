"""The tags of TIFF and EXIF are read here: those asked for, of the first directory, and nothing from what is broken.

EXIF data are a small TIFF without pixels. Whatever cannot be read is as if it were not there; nothing here raises.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

NEW_SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
MAKE, STRIP_OFFSETS, ORIENTATION, SAMPLES, STRIP_BYTES = 271, 273, 274, 277, 279
TILE_OFFSETS, TILE_BYTES, SUB_IFDS, SAMPLE_FORMAT, PROFILE, DNG_VERSION = 324, 325, 330, 339, 34675, 50706
_ESSENTIAL = frozenset(
    {WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, 266, STRIP_OFFSETS, SAMPLES, 278, STRIP_BYTES, 284, 292, 293, 317}
    | {320, 322, 323, TILE_OFFSETS, TILE_BYTES, 332, 338, SAMPLE_FORMAT, 347, *range(512, 522), 529, 530, 531, 532}
)
"""The tags that decide the pixels as they are stored."""
_HARMLESS = frozenset(
    {NEW_SUBFILE_TYPE, 255, 269, 270, MAKE, 272, 280, 281, 282, 283, 296, 305, 306, 315, 316, PROFILE}
)
"""Texts, resolution and the like."""

Tags = dict[int, tuple[float, ...]]
"""The values of tags by number."""

_ENTRIES = 4096
"""The most entries of a directory that are looked at."""
_VALUES = 4 << 20
"""The most values of one tag that are read."""
# By type: bytes, shorts, longs, signed ones, floats, and the longs of BigTIFF; texts and fractions say nothing here.
_FORMATS = dict(zip((1, 3, 4, 6, 7, 8, 9, 11, 12, 13, 16, 17, 18), "BHIbBhifdIQqQ", strict=True))


def read_tags(tiff: bytes | memoryview, wanted: Collection[int]) -> Tags:
    """Read these tags of a TIFF's first directory, as far as they are there and whole.

    Args:
        tiff: the bytes from the byte order mark on.
        wanted: numbers of tags.
    """
    directory = _directory(tiff)
    if directory is None:
        return {}
    order, _, count, place, size, room = directory
    entry = "HHQ" if room == 8 else "HHI"
    found: Tags = {}
    for number in range(min(count, _ENTRIES)):
        at = place + number * size
        try:
            tag, kind, values = struct.unpack_from(order + entry, tiff, at)
        except struct.error:
            break
        code = _FORMATS.get(kind)
        if tag not in wanted or tag in found or code is None or not 0 < values <= _VALUES:
            continue
        value_at = at + size - room
        try:
            if values * struct.calcsize(f"={code}") > room:
                value_at = struct.unpack_from(f"{order}{'Q' if room == 8 else 'I'}", tiff, value_at)[0]
            found[tag] = struct.unpack_from(f"{order}{values}{code}", tiff, value_at)
        except (struct.error, OverflowError, ValueError):
            continue
    return found


def _directory(tiff: bytes | memoryview) -> tuple[str, int, int, int, int, int] | None:
    """Find the first directory: byte order, start, number of entries, their place, bytes an entry and a value."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None:
        return None
    try:
        if struct.unpack_from(f"{order}H", tiff, 2)[0] == 43:
            start = struct.unpack_from(f"{order}Q", tiff, 8)[0]
            return order, start, struct.unpack_from(f"{order}Q", tiff, start)[0], start + 8, 20, 8
        start = struct.unpack_from(f"{order}I", tiff, 4)[0]
        return order, start, struct.unpack_from(f"{order}H", tiff, start)[0], start + 2, 12, 4
    except (struct.error, OverflowError, ValueError):
        return None


def essential_tiff(data: bytes) -> bytes:
    """Write a TIFF anew whose only directory has but the tags that decide the pixels as they are stored.

    Where there are no others but texts and the like, which Pillow passes over if they are broken, it stays as it is.
    """
    directory = _directory(data)
    if directory is None:
        return data
    order, start, count, place, size, room = directory
    if count > _ENTRIES or place + count * size > len(data):
        return data
    entries = [data[place + n * size : place + (n + 1) * size] for n in range(count)]
    numbers = {struct.unpack_from(f"{order}H", entry)[0] for entry in entries}
    if numbers <= _ESSENTIAL | _HARMLESS:
        return data
    kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] in _ESSENTIAL]
    head = struct.pack(f"{order}{'Q' if room == 8 else 'H'}", len(kept))
    written = b"".join([head, *kept, bytes(room)])
    return b"".join([data[:start], written, data[start + len(written) :]])


def exif_orientation(exif: bytes | memoryview) -> int:
    """Return the orientation, 1 to 8, that EXIF data give, with or without `Exif` in front; 1 where they give none."""
    if bytes(exif[:6]) == b"Exif\x00\x00":
        exif = exif[6:]
    return orientation_in(read_tags(exif, (ORIENTATION,)))


def orientation_in(tags: Tags) -> int:
    """Return the orientation, 1 to 8, among these tags; 1 where there is none, or one that means nothing."""
    value = tags.get(ORIENTATION, (1,))[0]
    return int(value) if value in (2, 3, 4, 5, 6, 7, 8) else 1
