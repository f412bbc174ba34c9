"""Image files of all formats, mutated, decoded, and compared with what they were: counts of what came of them, as JSON.

    python benchmarks/fuzz_images.py [--files 20000] [--seed 0]

A mutation knows the structure of its format (segments, chunks: dropped, swapped, doubled, of a wrong length or sum)
or not (cut, bytes overwritten by zeros or noise, taken out, put in, bits flipped). What comes out is the `same` (of at
most 2 % of the pixels any value is off by more than 8 levels), `refused`, or `changed`. Anything else than pixels or an
`UnusableImageError` is a `crash`; more than 2 seconds are `slow`. Metadata that say how pixels are shown (orientation,
profiles) are in none of the samples: that a changed one changes the picture is right.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import resource
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from quickstudy.errors import UnusableImageError
from quickstudy.images.decoding import InputSpec, decode
from quickstudy.images.structure import read_jpeg

SLOW_SECONDS = 2.0
FAR, SHARE = 8, 0.02
"""Levels from which on a pixel is another, and share of them from which on the picture is."""
SPEC = InputSpec(size=1024)
Random = np.random.Generator
Mutation = Callable[[bytes, Random], bytes]


def picture(seed: int) -> Image.Image:
    """A picture with outlines, colours and grain."""
    draws = np.random.Generator(np.random.PCG64(seed))
    height, width = int(draws.integers(60, 140)), int(draws.integers(60, 140))
    coarse = Image.fromarray(draws.integers(0, 256, (5, 5, 3), np.uint8)).resize((width, height))
    return Image.fromarray(
        np.clip(np.asarray(coarse) + draws.integers(-9, 10, (height, width, 3)), 0, 255).astype("u1")
    )


FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": ("JPEG", "RGB", {"quality": 88}),
    "JPEG progressive": ("JPEG", "RGB", {"quality": 88, "progressive": True}),
    "JPEG restarts": ("JPEG", "RGB", {"quality": 88, "restart_marker_blocks": 5}),
    "JPEG grey": ("JPEG", "L", {"quality": 88}),
    "JPEG CMYK": ("JPEG", "CMYK", {"quality": 88}),
    "PNG": ("PNG", "RGB", {}),
    "PNG palette": ("PNG", "P", {}),
    "PNG alpha": ("PNG", "RGBA", {}),
    "WebP": ("WEBP", "RGB", {"quality": 88}),
    "WebP lossless": ("WEBP", "RGB", {"lossless": True}),
    "GIF": ("GIF", "P", {}),
    "BMP": ("BMP", "RGB", {}),
    "TIFF": ("TIFF", "RGB", {}),
    "TIFF LZW": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "TIFF deflate": ("TIFF", "L", {"compression": "tiff_adobe_deflate"}),
    "AVIF": ("AVIF", "RGB", {"quality": 88}),
    "JPEG 2000": ("JPEG2000", "RGB", {}),
    "PPM": ("PPM", "RGB", {}),
    "ICO": ("ICO", "RGB", {"sizes": [(64, 64)]}),
}


def samples(count: int) -> dict[str, list[bytes]]:
    """So many whole files of each format."""
    found: dict[str, list[bytes]] = {}
    for name, (kind, mode, options) in FORMATS.items():
        for seed in range(count):
            file = io.BytesIO()
            image = picture(seed).resize((64, 64)) if kind == "ICO" else picture(seed)
            image.convert(mode).save(file, kind, **options)
            found.setdefault(name, []).append(file.getvalue())
    return found


# Mutations that know nothing of the format


def _span(data: bytes, random: Random, most: float = 0.2) -> tuple[int, int]:
    start = int(random.integers(0, len(data)))
    return start, min(len(data), start + 1 + int(random.integers(0, max(2, int(len(data) * most)))))


def flip_bits(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        changed[int(random.integers(0, len(data)))] ^= 1 << int(random.integers(0, 8))
    return bytes(changed)


def cut(data: bytes, random: Random) -> bytes:
    return data[: int(random.integers(0, len(data)))]


def zeros(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + bytes(end - start) + data[end:]


def noise(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + random.bytes(end - start) + data[end:]


def take_out(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + data[end:]


def put_in(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + random.bytes(end - start) + data[start:]


def put_behind(data: bytes, random: Random) -> bytes:
    return data + random.bytes(int(random.integers(1, 5000)))


PLAIN: dict[str, Mutation] = {
    "bits flipped": flip_bits,
    "cut": cut,
    "zeros": zeros,
    "noise": noise,
    "taken out": take_out,
    "put in": put_in,
    "put behind": put_behind,
}


# Mutations of parts


def _jpeg_parts(data: bytes) -> list[bytes]:
    jpeg = read_jpeg(data)
    scans = jpeg.scans()
    parts, coded = [data[s.start : s.end] for s in jpeg.segments], iter(scans.coded)
    for one in scans.segments:
        begin, end = next(coded) if one.marker == 0xDA else (0, 0)
        parts.append(data[one.start : one.end] + data[begin:end])
    return parts


def _png_parts(data: bytes) -> list[bytes]:
    parts, place = [], 8
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        parts.append(data[place:end])
        place = end
    return parts


def _riff_parts(data: bytes) -> list[bytes]:
    parts, place = [], 12
    while place + 8 <= len(data):
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        parts.append(data[place : place + 8 + length + (length & 1)])
        place += len(parts[-1])
    return parts


def _whole(data: bytes, parts: list[bytes]) -> bytes:
    if data[:2] == b"\xff\xd8":
        return b"".join([b"\xff\xd8", *parts, b"\xff\xd9"])
    return b"".join([data[: 8 if data[1:4] == b"PNG" else 12], *parts])


def _parts(data: bytes) -> list[bytes]:
    if data[:2] == b"\xff\xd8":
        return _jpeg_parts(data)
    return _png_parts(data) if data[1:4] == b"PNG" else _riff_parts(data)


def drop_part(data: bytes, random: Random) -> bytes:
    parts = _parts(data)
    del parts[int(random.integers(0, len(parts)))]
    return _whole(data, parts)


def swap_parts(data: bytes, random: Random) -> bytes:
    parts = _parts(data)
    one, other = (int(random.integers(0, len(parts))) for _ in range(2))
    parts[one], parts[other] = parts[other], parts[one]
    return _whole(data, parts)


def double_part(data: bytes, random: Random) -> bytes:
    parts = _parts(data)
    place = int(random.integers(0, len(parts)))
    return _whole(data, [*parts[: place + 1], *parts[place:]])


def wrong_length(data: bytes, random: Random) -> bytes:
    parts = _parts(data)
    place = int(random.integers(0, len(parts)))
    part, length = parts[place], int(random.integers(0, 70_000))
    if data[:2] == b"\xff\xd8":
        part = part[:2] + struct.pack(">H", length & 0xFFFF) + part[4:]
    elif data[1:4] == b"PNG":
        part = struct.pack(">I", length) + part[4:]
    else:
        part = part[:4] + struct.pack("<I", length) + part[8:]
    return _whole(data, [*parts[:place], part, *parts[place + 1 :]])


def foreign_part(data: bytes, random: Random) -> bytes:
    """One more part that makes no pixels, which may hold anything, and whose length or checksum may be wrong."""
    parts, content = _parts(data), random.bytes(int(random.integers(0, 400))) + b"\xff\xda\xff\xd9IDAT"
    off = int(random.choice([0, 0, 5, 300]))
    if data[:2] == b"\xff\xd8":
        marker = int(random.choice([0xE0, 0xE1, 0xE5, 0xED, 0xFE]))
        part = b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2 + off) + content
    elif data[1:4] == b"PNG":
        part = struct.pack(">I", len(content) + off) + b"tEXt" + content + struct.pack(">I", zlib.crc32(content))
    else:
        part = b"JUNK" + struct.pack("<I", len(content)) + content + b"\0" * (len(content) & 1)
    place = int(random.integers(1, max(2, len(parts) - 1)))
    return _whole(data, [*parts[:place], part, *parts[place:]])


def cut_and_ended(data: bytes, random: Random) -> bytes:
    """Cut anywhere, with the mark of the end put behind."""
    return cut(data, random) + (b"\xff\xd9" if data[:2] == b"\xff\xd8" else data[-12:])


STRUCTURED: dict[str, Mutation] = {
    "part dropped": drop_part,
    "parts swapped": swap_parts,
    "part doubled": double_part,
    "length wrong": wrong_length,
    "foreign part": foreign_part,
    "cut, ended": cut_and_ended,
}


def mutations(name: str) -> dict[str, Mutation]:
    """The mutations of a format."""
    has_parts = name.startswith(("JPEG", "PNG", "WebP")) and name != "JPEG 2000"
    return {**PLAIN, **STRUCTURED} if has_parts else PLAIN


def outcome(data: bytes, original: np.ndarray) -> str:
    """Decode a mutated file and say what came of it."""
    started = time.perf_counter()
    try:
        pixels = decode(data, SPEC)
        away = 1.0
        if pixels.shape == original.shape:
            away = float((np.abs(pixels.astype(np.int16) - original).max(axis=2) > FAR).mean())
        found = "same" if away <= SHARE else "changed"
    except UnusableImageError as error:
        found = "refused" if str(error) and "\n" not in str(error) and len(str(error)) < 250 else "crash"
    except Exception:
        found = "crash"
    return "slow" if time.perf_counter() - started > SLOW_SECONDS else found


def fuzz(files: int, seed: int = 0) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield format, mutation, what came of it, and the file."""
    whole = samples(4)
    originals = {name: [decode(data, SPEC) for data in some] for name, some in whole.items()}
    jobs = [(name, mutation) for name in whole for mutation in mutations(name)]
    for number in range(files):
        name, mutation = jobs[number % len(jobs)]
        random = np.random.Generator(np.random.PCG64([seed, number]))
        which = int(random.integers(0, len(whole[name])))
        data = mutations(name)[mutation](whole[name][which], random)
        yield name, mutation, outcome(data, originals[name][which]), data


def summary(found: Iterator[tuple[str, str, str, bytes]]) -> dict[str, Any]:
    """Counts of all, by mutation, and by format."""
    total: collections.Counter[str] = collections.Counter()
    tables: dict[str, dict[str, collections.Counter[str]]] = {"mutation": {}, "format": {}}
    for name, mutation, came, _ in found:
        total[came] += 1
        for table, key in (("mutation", mutation), ("format", name)):
            tables[table].setdefault(key, collections.Counter())[came] += 1
    return {
        "files": sum(total.values()),
        **{came: total[came] for came in ("same", "refused", "changed", "crash", "slow")},
        **{
            f"by_{table}": {key: dict(sorted(row.items())) for key, row in rows.items()}
            for table, rows in tables.items()
        },
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    print(
        json.dumps(
            {**summary(fuzz(told.files, told.seed)), "seconds": round(time.perf_counter() - started, 1)}, indent=1
        )
    )


if __name__ == "__main__":
    main()
