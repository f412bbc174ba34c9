"""Image sets that come packed: a .zip or .tar file is unpacked once, beside itself, and read as the folder in it.

Members are files and folders inside the archive's own folder; whatever is a link, a device, encrypted, or named so that
it would lie elsewhere is refused before anything is kept. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from quickstudy.errors import ImageSetError, WriteError
from quickstudy.files import workplace, write_json_atomically

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
"""Suffixes of archives, in lower case."""
_MOST_BYTES = 256 << 30
_MOST_FILES = 10_000_000
_LEFT_BEHIND = ("__MACOSX", ".DS_Store")
_BLOCK = 1 << 20


def archive_suffix(path: Path) -> str:
    """Give the suffix by which a file is an archive; empty where it is none."""
    return next((suffix for suffix in ARCHIVE_SUFFIXES if path.name.lower().endswith(suffix)), "")


def set_name(source: Path) -> str:
    """Name an image set: its folder's name, or its file's without the suffix."""
    source = source.resolve()
    if not source.is_file():
        return source.name
    return source.name[: -len(archive_suffix(source))] if archive_suffix(source) else source.stem


def unpacked(archive: Path) -> Path:
    """Give the folder of an archive's images, which is unpacked beside it unless it has been.

    Where all that the archive holds lies in one folder, it is that one.

    Raises:
        ImageSetError: the archive is damaged or unsafe, or its folder is of another archive or an earlier version.
        WriteError: its folder cannot be written.
    """
    folder, note = archive.with_name(set_name(archive)), archive.with_name(f".{archive.name}.unpacked")
    try:
        status = archive.stat()
        now = {"bytes": status.st_size, "changed_ns": status.st_mtime_ns}
        if folder.exists():
            try:
                before = json.loads(note.read_bytes())
            except (OSError, ValueError):
                before = None
            if before != now:
                has = "has changed since it was unpacked into" if before else "is to be unpacked into"
                raise ImageSetError(
                    f"'{archive}' {has} '{folder}', which is there already; name that folder, or move it away"
                )
            return folder
        with workplace(folder.parent, "unpacking-") as content:
            for name, member in _members(archive):
                place = content.joinpath(*_parts(name, archive))
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("xb") as file:
                    shutil.copyfileobj(member, file, _BLOCK)
            entries = [entry for entry in content.iterdir() if entry.name not in _LEFT_BEHIND]
            top = entries[0] if len(entries) == 1 and entries[0].is_dir() else content
            if not entries:
                raise ImageSetError(f"'{archive}' is empty; expected photos in it")
            if hasattr(os, "sync"):  # once for all files; thousands of single flushes take many seconds
                os.sync()
            write_json_atomically(note, now)
            if top is content:
                whole = content / "all"
                whole.mkdir()
                for entry in entries:
                    entry.replace(whole / entry.name)
                top = whole
            top.replace(folder)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ImageSetError(f"'{archive}' cannot be unpacked: {error}; unpack it by hand, or pack it anew") from None
    except FileExistsError as error:
        raise ImageSetError(f"'{archive}' holds '{Path(error.filename).name}' twice; unpack it by hand") from None
    except OSError as error:
        raise WriteError(
            f"Cannot unpack '{archive}' into '{folder}': {error.strerror or error}; unpack it elsewhere, and name the "
            "folder"
        ) from None
    return folder


def _parts(name: str, archive: Path) -> tuple[str, ...]:
    """Give the parts of a member's name, all of which are names of files and folders.

    Raises:
        ImageSetError: it would lie elsewhere.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    parts = tuple(part for part in path.parts if part != ".")
    drive = os.name == "nt" and ":" in name
    if path.is_absolute() or not parts or drive or any(part == ".." or "\0" in part for part in parts):
        raise ImageSetError(f"'{archive}' holds '{name}', which would lie elsewhere; it was not unpacked")
    return parts


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the files of an archive: name and content, to be read before the next one.

    Raises:
        ImageSetError: it holds something else than files and folders, or too much.
    """
    left, files = _MOST_BYTES, 0
    if archive_suffix(archive) == ".zip":
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                kind = info.external_attr >> 28  # of systems that have kinds: 8 are files, 0 where there are none
                if info.is_dir() or info.filename.startswith(f"{_LEFT_BEHIND[0]}/"):
                    continue
                if kind not in (0, 8):
                    raise ImageSetError(f"'{archive}' holds '{info.filename}', neither file nor folder; refused")
                left, files = _less(archive, left, files, info.file_size)
                with packed.open(info) as content:
                    yield info.filename, content
        return
    with tarfile.open(archive, "r|*") as stream:  # one pass, and a bomb is noticed as it unpacks
        for member in stream:
            if member.isdir() or member.name.startswith(f"{_LEFT_BEHIND[0]}/"):
                continue
            if not member.isreg():
                raise ImageSetError(f"'{archive}' holds '{member.name}', neither file nor folder; refused")
            left, files = _less(archive, left, files, member.size)
            found = stream.extractfile(member)
            if found is not None:
                yield member.name, found


def _less(archive: Path, left: int, files: int, size: int) -> tuple[int, int]:
    left, files = left - size, files + 1
    if left < 0 or files > _MOST_FILES:
        raise ImageSetError(
            f"'{archive}' unpacks to more than {_MOST_BYTES >> 30} GiB or {_MOST_FILES:,} files, which is the limit"
        )
    return left, files
