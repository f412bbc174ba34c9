"""Durable files: written under a temporary name, flushed to the disk, then renamed.

A reader therefore sees the old file or the new one, never a part of one, and `kill -9` at any moment leaves at worst
an unused temporary file.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY_PREFIX = ".tmp-"
CACHE_VARIABLE = "QUICKSTUDY_CACHE"


def cache_folder(chosen: Path | None = None) -> Path:
    """The folder for everything that can be computed again: `chosen`, else QUICKSTUDY_CACHE, else the user's cache."""
    if chosen is not None:
        return chosen
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_cache_dir("quickstudy", appauthor=False))


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or replace `path` with what `write` puts into the open binary file it is given.

    The folder is created if need be. When anything fails, the temporary file is removed and `path` is untouched.

    Raises:
        OSError: the file system refused (disk full, read-only, no permission).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_bytes_atomically(path: Path, data: bytes | memoryview) -> None:
    """Create or replace `path` with `data`; see `write_atomically`."""
    write_atomically(path, lambda file: file.write(data))


def write_json_atomically(path: Path, value: Any) -> None:
    """Create or replace `path` with `value` as indented JSON in UTF-8; see `write_atomically`."""
    write_bytes_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def flush_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, where the system can flush a folder (POSIX; elsewhere a no-op)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of the file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_text(name: str) -> bool:
    """Whether a file's name is valid Unicode, so that JSON, SQLite and models can hold it; on POSIX it need not be."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _umask() -> int:
    # The only portable way to read the mask is to set it; mkstemp's 0600 would hide shared stores from colleagues.
    mask = os.umask(0)
    os.umask(mask)
    return mask
