"""Archives unpacked safely: nothing outside the folder, no links, no devices, a bounded size, and all or nothing."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from quickstudy.errors import DownloadError
from quickstudy.files import TEMPORARY_PREFIX, flush_folder

_CHUNK_BYTES = 1 << 20
_PREFIX = f"{TEMPORARY_PREFIX}unpacking-"
_ABANDONED_SECONDS = 24 * 3600


def unpack(
    archive: Path, folder: Path, *, top: str | None = None, most_bytes: int = 4 << 30, most_files: int = 1_000_000
) -> Path:
    """Unpack a .tar, .tar.gz or .zip archive into the new folder `folder`.

    It is unpacked under a temporary name beside `folder`, flushed and renamed, so a kill leaves nothing half done.

    Args:
        archive: the file.
        folder: what to create; an empty folder of this name is replaced.
        top: take only what lies in this folder of the archive, as the content of `folder`.
        most_bytes: how large the content may be in all.
        most_files: how many files and folders there may be.

    Raises:
        DownloadError: the archive is damaged, unsafe or too large, or the folder cannot be written.
    """
    try:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise DownloadError(f"'{folder}' is there already; move it away or delete it to have it unpacked anew")
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder.parent, ignore_cleanup_errors=True) as temporary:
            content = Path(temporary) / "content"
            content.mkdir()
            _unpack_members(archive, content, most_bytes, most_files)
            chosen = content / top if top else content
            if not chosen.is_dir():
                raise DownloadError(f"'{archive}' holds no folder '{top}', only {_listing(content)}")
            if hasattr(os, "sync"):  # once for all files; thousands of single flushes take many seconds
                os.sync()
            chosen.replace(folder)
        flush_folder(folder.parent)
    except OSError as error:
        raise DownloadError(f"Cannot unpack '{archive}' into '{folder}': {error.strerror or error}") from error
    return folder


def _unpack_members(archive: Path, content: Path, most_bytes: int, most_files: int) -> None:
    written = count = 0
    try:
        for name, is_folder, stream in _members(archive, content):
            count += 1
            if count > most_files:
                raise DownloadError(f"'{archive}' holds more than {most_files:,} files, which is the limit")
            path = content / _safe_path(archive, name)
            if is_folder:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if stream is None:
                raise DownloadError(f"'{archive}' holds '{name}', which is neither a file nor a folder; refused")
            with stream, path.open("xb") as file:  # two files of one name are refused, too
                while chunk := stream.read(_CHUNK_BYTES):
                    # Counted as they come: what the headers announce need not be true.
                    written += len(chunk)
                    if written > most_bytes:
                        raise DownloadError(
                            f"'{archive}' unpacks to more than {most_bytes:,} bytes, which is the limit"
                        )
                    file.write(chunk)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, RuntimeError) as error:
        # RuntimeError: zip members with a password; ValueError: names with null characters and the like;
        # TypeError: a gzip header that ends early.
        raise DownloadError(f"'{archive}' is damaged or no archive that can be read ({error}); get it again") from None
    except FileExistsError as error:
        raise DownloadError(f"'{archive}' holds '{error.filename}' twice; refused") from None
    except (IsADirectoryError, NotADirectoryError) as error:
        raise DownloadError(f"'{archive}' holds '{error.filename}' as a file and as a folder; refused") from None
    if not count:
        raise DownloadError(f"'{archive}' is an empty archive")


def _members(archive: Path, content: Path) -> Iterator[tuple[str, bool, IO[bytes] | None]]:
    """Name, whether it is a folder, and the bytes, None for what is neither; one after the other."""
    with archive.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        with zipfile.ZipFile(archive) as packed:
            for item in packed.infolist():
                kind = (item.external_attr >> 16) & 0o170000  # as Unix has it: 0 where another system packed
                regular = kind in (0, 0o100000) or item.is_dir()
                yield item.filename, item.is_dir(), packed.open(item) if regular and not item.is_dir() else None
        return
    # As a stream: one pass, and a bomb is noticed as it unpacks.
    with tarfile.open(archive, "r|*") as packed_tar:
        for member in packed_tar:
            if hasattr(tarfile, "data_filter") and member.isreg():  # from Python 3.11.4 on; beside the checks here
                try:
                    tarfile.data_filter(member, str(content))
                except tarfile.TarError as error:
                    raise DownloadError(f"'{archive}' is not safe to unpack ({error}); refused") from None
            yield member.name, member.isdir(), packed_tar.extractfile(member) if member.isreg() else None


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise DownloadError(f"'{archive}' holds the path {name!r}, which may lead out of the folder; refused")
    return path


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(f"'{name}'" for name in names[:5]) + (", …" if len(names) > 5 else "")


def _sweep(folder: Path) -> None:
    """Remove what killed unpackings left, once it is certain that nobody works on it."""
    for entry in folder.glob(f"{_PREFIX}*"):
        if time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(entry, ignore_errors=True)
