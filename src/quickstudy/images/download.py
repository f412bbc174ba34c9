"""Files from the network, and archives unpacked: what comes from outside counts only once it is whole and checked.

Downloads go on where they were cut. What has come so far is in `<name>.partial` beside the target, and what the server
said of it in `<name>.partial.json`. A cut connection, an interrupt or a kill loses none of it: the next attempt asks
for the rest (RFC 9110, range requests, `If-Range`). Only a file of the right size and hash is renamed to its name.

Archives are unpacked safely: nothing outside the folder, no links, no devices, a bounded size, and all or nothing.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from quickstudy.errors import DownloadError
from quickstudy.files import TEMPORARY_PREFIX, flush_folder, sha256_of_file, write_json_atomically
from quickstudy.progress import Progress, silent
from quickstudy.version import VERSION

_CHUNK_BYTES = 256 << 10
_MOST_BYTES = 8 << 30
_GOOD_PROGRESS_BYTES = 1 << 20
"""Bytes of an attempt that does not count as failed although it was cut: a flaky line may cut a large file often."""
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class _TryAgainError(Exception):
    """This attempt failed, another may not; the message is the reason."""


@dataclass(kw_only=True)
class _Target:
    """Where a download goes and what it must be."""

    url: str
    """The address."""
    path: Path
    """The file to create or replace."""
    size: int | None
    """Bytes that the file must have; None where that is not known."""
    most_bytes: int
    """Largest size that is fetched, in bytes."""
    timeout_seconds: float
    """How long the server may be silent, in seconds."""
    progress: Progress
    """Is told the bytes that have come."""
    resumed: bool = False
    """Whether bytes of an earlier attempt are part of the file."""

    @property
    def partial(self) -> Path:
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def notes(self) -> Path:
        return self.path.with_name(f"{self.path.name}.partial.json")


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    most_bytes: int = _MOST_BYTES,
    timeout_seconds: float = 30,
    attempts: int = 4,
    wait_seconds: float = 0.5,
    progress: Progress = silent,
) -> Path:
    """Fetch `url` into the file `path`, going on where an earlier attempt was cut.

    Args:
        url: http, https or file.
        path: the file to create or replace; the folder is created if need be.
        sha256: hash that the file must have, 64 hexadecimal digits; what has another is deleted.
        size: bytes that the file must have, where known.
        most_bytes: what is larger is not fetched.
        timeout_seconds: how long the server may be silent.
        attempts: how many attempts may fail one after the other.
        wait_seconds: pause after the first failure; it doubles with each that follows.
        progress: is told the bytes that have come.

    Raises:
        DownloadError: it cannot be fetched or written, or is not the file that it should be.
    """
    if url.partition("://")[0].lower() not in ("http", "https", "file"):
        raise DownloadError(
            f"Cannot download '{url}': expected an address that begins with https://, http:// or file://"
        )
    target = _Target(
        url=url,
        path=path,
        size=size,
        most_bytes=most_bytes if size is None else size,
        timeout_seconds=timeout_seconds,
        progress=progress,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _claim(target) as file:
            progress.start(path.name, size or 0)
            try:
                _fetch_whole(target, file, sha256, attempts, wait_seconds)
            finally:
                progress.finish()
            os.fsync(file.fileno())
            if os.name == "posix":  # elsewhere an open file cannot be renamed
                target.partial.replace(path)
        if os.name != "posix":
            target.partial.replace(path)
        target.notes.unlink(missing_ok=True)
        flush_folder(path.parent)
    except OSError as error:
        raise DownloadError(
            f"Cannot write '{error.filename or path}': {error.strerror or error}; make room or name another folder"
        ) from error
    return path


@contextlib.contextmanager
def _claim(target: _Target) -> Iterator[BinaryIO]:
    """Open the partial file for appending and for this process alone (where the system can lock files)."""
    with target.partial.open("ab") as file:
        try:
            import fcntl
        except ImportError:  # Windows, which does not rename or delete an open file anyway
            pass
        else:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DownloadError(
                    f"Another process is downloading to '{target.partial}'; wait until it is done"
                ) from None
        # Between opening and locking, another process may have finished and renamed the file.
        if not target.partial.exists() or not os.path.samestat(os.fstat(file.fileno()), target.partial.stat()):
            raise DownloadError(f"Another process has just downloaded '{target.path}'; run this again")
        yield file


def _fetch_whole(target: _Target, file: BinaryIO, sha256: str | None, attempts: int, wait_seconds: float) -> None:
    """Bring the partial file to its end, and delete it where its hash is wrong."""
    while True:
        _fetch_with_retries(target, file, attempts, wait_seconds)
        if sha256 is None or (found := sha256_of_file(target.partial)) == sha256.lower():
            return
        length = _length(file)
        if not target.resumed:
            _forget(target)
            raise DownloadError(
                f"'{target.url}' is not the file that it should be: expected SHA-256 {sha256}, got {found} "
                f"({length:,} bytes); it was deleted. Try again or name another source"
            )
        # What was there before may have been of another file: the whole anew decides.
        _start_over(target, file)


def _fetch_with_retries(target: _Target, file: BinaryIO, attempts: int, wait_seconds: float) -> None:
    failures = 0
    while True:
        before = _length(file)
        try:
            _fetch(target, file)
        except _TryAgainError as error:
            failures = 1 if _length(file) - before >= _GOOD_PROGRESS_BYTES else failures + 1
            if failures >= attempts:
                kept = (
                    f"; {_length(file):,} bytes are kept, and the next attempt goes on there" if _length(file) else ""
                )
                _forget_if_empty(target, file)
                tries = "attempt" if failures == 1 else "attempts"
                raise DownloadError(f"Cannot download '{target.url}': {error} ({failures} {tries}){kept}") from None
            time.sleep(wait_seconds * 2 ** (failures - 1))
        except DownloadError:
            _forget_if_empty(target, file)
            raise
        else:
            return


def _fetch(target: _Target, file: BinaryIO) -> None:
    """Make one attempt: ask for what is missing and append it.

    Raises:
        _TryAgainError: cut, or the server is out of order for the moment.
        DownloadError: trying again would not help.
    """
    start = _length(file)
    if start and start == target.size:
        target.resumed = True
        return
    headers = {"User-Agent": f"quickstudy/{VERSION}"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator := _read_notes(target).get("validator"):
            headers["If-Range"] = str(validator)
    try:
        request = urllib.request.Request(target.url, headers=headers)  # noqa: S310 (the scheme is checked)
        with _opener().open(request, timeout=target.timeout_seconds) as response:
            total = _place(target, file, start, response.status, response.headers)
            _receive(target, file, response, total)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:
            # Nothing after `start`: either all is here, or the file has become another.
            if _range_total(error.headers) == start and target.size in (None, start):
                target.resumed = True
                return
            _start_over(target, file)
            raise _TryAgainError("the server's file has changed") from None
        reason = f"the server answers {error.code} {error.reason}"
        if error.code in _PASSING_STATUS:
            raise _TryAgainError(reason) from None
        raise DownloadError(f"Cannot download '{target.url}': {reason}") from None
    except urllib.error.URLError as error:
        # A name that does not resolve, a certificate that does not fit and a missing local file stay so.
        lasting = isinstance(error.reason, (socket.gaierror, ssl.SSLCertVerificationError, str))
        if lasting or target.url.lower().startswith("file:"):
            raise DownloadError(f"Cannot download '{target.url}': {_describe(error.reason)}") from None
        if isinstance(error.reason, TimeoutError):
            raise _TryAgainError(_describe_cut(error.reason, target)) from None
        raise _TryAgainError(_describe(error.reason)) from None
    except ValueError as error:  # no address, here or in a redirection
        raise DownloadError(f"Cannot download '{target.url}': {error}") from None
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _TryAgainError(_describe_cut(error, target)) from None


def _place(target: _Target, file: BinaryIO, start: int, status: int | None, headers: Message) -> int | None:
    """Find out where the answer's bytes belong, cut the partial file there, and return the size of the whole."""
    length = headers.get("Content-Length", "")
    length_bytes = int(length) if length.isascii() and length.isdigit() else None
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
        total = int(match[2]) if match and match[2] != "*" else None
        known = _read_notes(target).get("size")
        if match is None or int(match[1]) != start or (known and total and known != total):
            _start_over(target, file)
            raise _TryAgainError("the server's file has changed")
        target.resumed = True
    else:
        total = length_bytes
        _start_over(target, file)
    if total is not None and total > target.most_bytes and target.size is None:
        raise DownloadError(f"'{target.url}' has {total:,} bytes; the limit is {target.most_bytes:,}")
    if total is not None and target.size is not None and total != target.size:
        _start_over(target, file)
        raise DownloadError(
            f"'{target.url}' is not the file that it should be: {total:,} bytes instead of {target.size:,}"
        )
    if status != 206:
        etag = headers.get("ETag", "")
        validator = etag if etag.startswith('"') else headers.get("Last-Modified", "")  # weak tags do not do here
        write_json_atomically(target.notes, {"url": target.url, "validator": validator, "size": total})
    return total


def _receive(target: _Target, file: BinaryIO, response: BinaryIO, total: int | None) -> None:
    """Append what comes to the partial file until the end."""
    done = _length(file)
    while True:
        try:
            chunk = response.read(_CHUNK_BYTES)
        except OSError as error:  # of the network; those of the disk come from `write`
            raise _TryAgainError(_describe_cut(error, target)) from None
        if not chunk:
            break
        if done + len(chunk) > target.most_bytes:
            _start_over(target, file)
            raise DownloadError(f"'{target.url}' has more than {target.most_bytes:,} bytes, which is the limit")
        file.write(chunk)
        done += len(chunk)
        target.progress.update(done=done, note="")
    file.flush()
    if (expected := target.size if total is None else total) is not None and done < expected:
        raise _TryAgainError(f"the connection was cut after {done:,} of {expected:,} bytes")


def _opener() -> urllib.request.OpenerDirector:
    """Make an opener of http, https and file that follows redirections to http(s) only; urllib's own speaks ftp too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.FileHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
    ):
        opener.add_handler(handler())
    return opener


def _length(file: BinaryIO) -> int:
    file.flush()
    return os.fstat(file.fileno()).st_size


def _start_over(target: _Target, file: BinaryIO) -> None:
    file.flush()
    file.truncate(0)
    target.resumed = False
    target.notes.unlink(missing_ok=True)


def _forget(target: _Target) -> None:
    target.partial.unlink(missing_ok=True)
    target.notes.unlink(missing_ok=True)


def _forget_if_empty(target: _Target, file: BinaryIO) -> None:
    if not _length(file):
        _forget(target)


def _read_notes(target: _Target) -> dict[str, object]:
    try:
        notes = json.loads(target.notes.read_bytes())
    except (OSError, ValueError):
        return {}
    # Another address may serve another file under the same name.
    return notes if isinstance(notes, dict) and notes.get("url") == target.url else {}


def _range_total(headers: Message) -> int | None:
    match = re.fullmatch(r"bytes \*/(\d+)", headers.get("Content-Range", "").strip())
    return int(match[1]) if match else None


def _describe_cut(error: Exception, target: _Target) -> str:
    if isinstance(error, TimeoutError):
        return f"the server was silent for {target.timeout_seconds:g} s"
    return f"the connection was cut ({_describe(error)})"


def _describe(error: object) -> str:
    if isinstance(error, socket.gaierror):
        return "the server's name is not known here (no network?)"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


# Archives
_PIECE_BYTES = 1 << 20
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
                while chunk := stream.read(_PIECE_BYTES):
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
    """Yield each member: name, whether it is a folder, and its bytes, None for what is neither file nor folder."""
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
