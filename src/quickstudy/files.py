"""Files are written so that they last: under a temporary name, flushed to the disk, then renamed.

A reader therefore sees the old file or the new one, never a part of one, and `kill -9` at any moment leaves at worst
an unused temporary file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from quickstudy.errors import InputError, WriteError

TEMPORARY_PREFIX = ".tmp-"
CACHE_VARIABLE = "QUICKSTUDY_CACHE"
_ABANDONED_SECONDS = 24 * 3600
_START_BYTES = 4096

# O_BINARY is Windows', which else writes CR LF; O_NOFOLLOW is POSIX', for folders that others may write to as well.
_NEW_FILE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)


def as_path(value: str | os.PathLike[str]) -> Path:
    """Make a path of what somebody gives, with a leading `~` taken for the home folder; see `expand_home`.

    Raises:
        InputError: there is no home folder, or the text is empty, which `Path` would take for the current folder.
    """
    if not (text := os.fspath(value)):
        raise InputError("The path '' is empty; name a file or a folder, or '.' for the current folder")
    return Path(expand_home(text))


def expand_home(path: str) -> str:
    """Put the home folder in the place of a leading `~`, as a shell would.

    Only `~` alone as the first part is the home folder: a folder may be called '~backup', as a user of the machine is.
    A folder that is called '~' itself is reached by its absolute path.

    Raises:
        InputError: there is no home folder.
    """
    if not path.startswith("~") or path[1:2] not in ("", "/", os.sep):
        return path
    expanded = os.path.expanduser(path)  # noqa: PTH111 (paths of lists stay as they are written)
    if expanded == path:
        raise InputError(
            f"'{path}' begins with the home folder, but this user has none; set HOME, or give the whole path"
        )
    return expanded


def cache_folder(chosen: str | Path | None = None) -> Path:
    """Choose the folder for what can be computed again: `chosen`, else QUICKSTUDY_CACHE, else the user's cache.

    An empty `chosen` or QUICKSTUDY_CACHE counts as none, and a leading `~` is the home folder.
    """
    if chosen is not None and str(chosen):
        return as_path(chosen)
    if named := os.environ.get(CACHE_VARIABLE):
        return as_path(named)
    import platformdirs

    return Path(platformdirs.user_cache_dir("quickstudy", appauthor=False))


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or replace `path` with what `write` puts into the open binary file it is given.

    The folder is created if need be. When anything fails, the temporary file is removed and `path` is untouched.

    Raises:
        OSError: the file system refused (disk full, read-only, no permission).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = _open_temporary(path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def require_place_for(
    what: str, path: Path, *, own: Callable[[bytes], bool], sources: Iterable[str | Path | None] = ()
) -> None:
    """Refuse a place to write to where something would be lost, before anything is worked out.

    Args:
        what: what is to be written, for the message.
        path: the file to create or replace.
        own: tells by the first bytes of a file whether it is of the kind that is to be written, and may be replaced.
        sources: files that it is made from.

    Raises:
        WriteError: there is a folder, one of the sources, or a file of another kind.
    """
    if path.is_dir():
        raise WriteError(f"Cannot write the {what} '{path}': there is a folder of that name; name a file")
    if not path.exists():
        return
    if any(source is not None and os.path.exists(source) and path.samefile(source) for source in sources):  # noqa: PTH110
        raise WriteError(f"'{path}' is what the {what} is made from; name another file for it")
    if path.is_file():
        try:
            with path.open("rb") as file:
                start = file.read(_START_BYTES)
        except OSError as error:
            raise WriteError(f"Cannot write the {what} '{path}': {error.strerror}") from None
        if start and not own(start):
            raise WriteError(f"There is a '{path}' already, which is no {what}; name another file, or delete it")


def require_folder_of(path: Path, what: str) -> None:
    """Refuse a place to write to whose folder is missing, before anything is worked out.

    Raises:
        WriteError: there is no such folder.
    """
    if not path.parent.is_dir():
        raise WriteError(f"There is no folder '{path.parent}' to write the {what} '{path.name}' to; create it first")


def write_bytes_atomically(path: Path, data: bytes | memoryview) -> None:
    """Create or replace `path` with `data`; see `write_atomically`."""
    write_atomically(path, lambda file: file.write(data))


def write_json_atomically(path: Path, value: Any) -> None:
    """Create or replace `path` with `value` as indented JSON in UTF-8; see `write_atomically`."""
    write_bytes_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def workplace(folder: Path, what: str) -> Iterator[Path]:
    """Make a temporary folder in `folder`, on whose file system it has to be for what is whole to be renamed.

    Those that a kill left are removed, once it is certain that nobody works there.

    Args:
        folder: where; created if need be.
        what: a word for what is done there, by which those that were left are known.
    """
    import tempfile

    prefix = f"{TEMPORARY_PREFIX}{what}"
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.glob(f"{prefix}*"):
        if time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(entry, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.absolute(), ignore_cleanup_errors=True) as name:
        yield Path(name)


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
    """Compute the SHA-256 of the file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_text(name: str) -> bool:
    """Tell whether a file's name is valid Unicode, so that JSON, SQLite and models can hold it.

    On POSIX it need not be.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _open_temporary(folder: Path) -> tuple[int, Path]:
    """Make a new file in `folder`, open for writing; gives its descriptor and its path."""
    # mkstemp's 0600 would hide shared stores from colleagues. Here the kernel applies the process's umask, which can
    # only be read by setting it: under threads, files of others came out world-writable (221 of 40,000). With 128
    # random bits a name that is there already is no accident, so it is an error rather than a reason to try again.
    path = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(16)}"
    return os.open(path, _NEW_FILE, 0o666), path
