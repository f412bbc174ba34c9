"""Arrays of numbers from MATLAB files of level 5, as SVHN comes in (MathWorks, *MAT-File Format*).

SciPy reads these files, too, but its reader ends the process on some damaged ones (a segmentation fault within 6,000
files with changed bytes in their headers); nothing that came from outside may do that.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import ImageSetError
from quickstudy.images.rawfiles import MOST_BYTES, RawFile

Numbers = NDArray[np.integer | np.floating]

_HEADER_BYTES, _LEVEL = 128, 0x0100
_MATRIX, _COMPRESSED = 14, 15
_NUMERIC_CLASSES = range(6, 16)
_COMPLEX = 0x0800
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


class _DamagedError(Exception):
    """An element is not what it should be; the message says why."""


def read_mat(path: Path, wanted: Collection[str]) -> dict[str, Numbers | None]:
    """The wanted variables that a file holds, in the type in which they are stored; None for what is no real numbers.

    Raises:
        ImageSetError: it is no such file, or damaged.
    """
    found: dict[str, Numbers | None] = {}
    with closing(RawFile(path)) as file:
        order = _read_header(file)
        offset = _HEADER_BYTES
        while len(found) < len(wanted) and (tag := file.read(8)):
            try:
                kind, size = _read_tag(tag, order)
                body = bytes(file.read(size))
                if len(body) < size:
                    raise _DamagedError(f"it announces {size:,} bytes, and {len(body):,} are there")
                if kind == _COMPRESSED:
                    kind, body = _decompress(body, order)
                if kind != _MATRIX:
                    raise _DamagedError(f"it is of type {kind}; expected {_MATRIX} or {_COMPRESSED}")
                name, values = _read_matrix(body, order)
            except (_DamagedError, zlib.error) as error:
                raise ImageSetError(f"'{path}' is damaged in the element at offset {offset:,}: {error}") from None
            if name in wanted:
                found[name] = values
            offset += 8 + size
    return found


def _read_header(file: RawFile) -> str:
    """NumPy's sign for the byte order."""
    header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES:
        raise ImageSetError(f"'{file.path}' is no MATLAB file: it ends at offset {len(header)}, within the header")
    order = {b"IM": "<", b"MI": ">"}.get(bytes(header[126:]))
    if order is None:
        raise ImageSetError(
            f"'{file.path}' is no MATLAB file: at offset 126 it has {bytes(header[126:])!r}; expected b'IM'"
        )
    level = int.from_bytes(header[124:126], "little" if order == "<" else "big")
    if level != _LEVEL:
        raise ImageSetError(
            f"'{file.path}' is a MATLAB file of version {level:#06x} at offset 124; "
            f"expected {_LEVEL:#06x} (saved with -v7)"
        )
    return order


def _read_tag(tag: bytes | bytearray, order: str) -> tuple[int, int]:
    if len(tag) < 8:
        raise _DamagedError("it ends within its tag")
    kind, size = (int(number) for number in np.frombuffer(tag, f"{order}u4", 2))
    if size > MOST_BYTES:
        raise _DamagedError(f"it announces {size:,} bytes; the limit is {MOST_BYTES:,}")
    return kind, size


def _decompress(packed: bytes, order: str) -> tuple[int, bytes]:
    """Type and content of the one element that lies compressed in another; never more than it announces."""
    stream = zlib.decompressobj()
    kind, size = _read_tag(stream.decompress(packed, 8), order)
    body = stream.decompress(stream.unconsumed_tail, size) if size else b""
    if len(body) < size:
        raise _DamagedError(f"it announces {size:,} bytes unpacked, and {len(body):,} are there")
    return kind, body


def _read_matrix(body: bytes, order: str) -> tuple[str, Numbers | None]:
    """Name and values of a variable: flags, sizes, name, values, one after the other."""
    flags, place = _read_numbers(body, 0, order)
    sizes, place = _read_numbers(body, place, order)
    letters, place = _read_numbers(body, place, order)
    if flags.dtype.kind != "u" or flags.size != 2 or sizes.dtype.kind != "i" or letters.dtype.itemsize != 1:
        raise _DamagedError("its flags, sizes or name are of the wrong type")
    name = letters.tobytes().decode("latin-1")
    if int(flags[0]) & 0xFF not in _NUMERIC_CLASSES or int(flags[0]) & _COMPLEX:
        return name, None
    values, _ = _read_numbers(body, place, order)
    shape = tuple(int(size) for size in sizes)
    if not 2 <= len(shape) <= 8 or min(shape) < 0 or math.prod(shape) != values.size:
        raise _DamagedError(f"'{name}' announces the shape {shape}, and {values.size:,} numbers are there")
    return name, values.reshape(shape, order="F")


def _read_numbers(body: bytes, place: int, order: str) -> tuple[Numbers, int]:
    """The numbers of the element at `place`, and where the next one is."""
    if len(body) < place + 8:
        raise _DamagedError(f"it ends after {len(body):,} bytes, where another part is expected")
    kind, size = (int(number) for number in np.frombuffer(body, f"{order}u4", 2, place))
    if kind >> 16:  # up to four bytes lie in the tag itself
        kind, size, start, following = kind & 0xFFFF, kind >> 16, place + 4, place + 8
    else:
        start, following = place + 8, place + 8 + -(-size // 8) * 8
    if kind not in _TYPES:
        raise _DamagedError(f"a part is of type {kind}, which is none of numbers")
    dtype = np.dtype(order + _TYPES[kind])
    if start + size > min(len(body), following) or size % dtype.itemsize:
        raise _DamagedError(f"a part of {dtype.name} announces {size:,} bytes, and {len(body) - start:,} are there")
    return np.frombuffer(body, dtype, size // dtype.itemsize, start), following
