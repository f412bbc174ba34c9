"""Data files read with care: bounded, in chunks, unpacked on the way; messages name file, offset and value."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import ImageSetError

MOST_BYTES = 2 << 30
"""Files that hold or announce more are not read: all official ones are far smaller."""

_CHUNK_BYTES = 1 << 20


class RawFile:
    """A file's bytes, unpacked where it is gzip; never more in memory than there are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not path.is_file():
                raise ImageSetError(f"No such file: '{path}'")
            if path.suffix != ".gz" and (size := path.stat().st_size) > MOST_BYTES:
                raise ImageSetError(f"'{path}' has {size:,} bytes; the limit is {MOST_BYTES:,}")
            packed = path.suffix == ".gz"
            self._file = cast(BinaryIO, gzip.GzipFile(path)) if packed else path.open("rb")
        except OSError as error:
            raise ImageSetError(f"Cannot read '{path}': {error.strerror}") from None
        self._offset = 0

    def read(self, count: int) -> bytearray:
        """So many bytes, or as many as there are; arrays on them can be written to."""
        data = bytearray()
        try:
            while len(data) < count and (chunk := self._file.read(min(count - len(data), _CHUNK_BYTES))):
                data += chunk
        except (OSError, EOFError, zlib.error) as error:
            raise ImageSetError(
                f"'{self.path}' cannot be read at offset {self._offset + len(data):,} of its content ({error}); "
                "get it again"
            ) from None
        self._offset += len(data)
        return data

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def read_names(path: Path, count: int) -> tuple[str, ...]:
    """Class names, one a line; none where there is no such file.

    Raises:
        ImageSetError: they are not as many different ones as there should be, or no text.
    """
    if not path.is_file():
        return ()
    with closing(RawFile(path)) as file:
        data = file.read(_CHUNK_BYTES)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ImageSetError(f"'{path}' is not text at offset {error.start}: byte {data[error.start]}") from None
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != count or len(set(names)) != count:
        raise ImageSetError(f"'{path}' has {len(names)} names, {len(set(names))} different; expected {count}")
    return names


def require_files(folder: Path, names: Iterable[str]) -> None:
    """Check that a folder has these files.

    Raises:
        ImageSetError: it lacks some.
    """
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ImageSetError(f"'{folder}' lacks {', '.join(missing)}; get the data set again")


def require_labels(
    labels: NDArray[np.uint8], classes: int, path: Path, *, start: int, step: int, kind: str = "label"
) -> None:
    """Check that labels, of which the first is at offset `start` and each next `step` bytes on, are below `classes`.

    Raises:
        ImageSetError: one is not.
    """
    wrong = labels >= classes
    if wrong.any():
        first = int(wrong.argmax())
        raise ImageSetError(
            f"'{path}' has the {kind} {labels[first]} at offset {start + first * step:,}; expected 0 to {classes - 1}"
        )
