"""Who an image is: the SHA-256 of its file's bytes; and an index that spares reading unchanged files again.

The stat index is a small SQLite file from (path, size, modification time, inode) to hash. It is a cache: deleting it
costs only time, and where it cannot be opened or written, files are simply read. A file changed within two seconds of
being indexed is not trusted, as its time stamp might not tell the next change apart (the "racy git" problem).
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from quickstudy.errors import UnusableImageError
from quickstudy.files import is_text, sha256_of_file
from quickstudy.images.decoding import MOST_BYTES

_RACY_NANOSECONDS = 2_000_000_000
_ATTEMPTS = 100
_LARGEST_INTEGER = 2**63 - 1  # that SQLite holds
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    digest BLOB NOT NULL
) WITHOUT ROWID
"""

Stamp = tuple[int, int, int]
"""Size in bytes, modification time in nanoseconds, inode."""


def stamp_of(path: Path) -> Stamp:
    """The facts by which the index recognises an unchanged file.

    Raises:
        UnusableImageError: there is no such file, or it may not be looked at.
    """
    try:
        return _stamp(path)
    except OSError as error:
        raise UnusableImageError(_reason(error)) from None


def read_image_file(path: Path) -> tuple[bytes, bytes]:
    """The file's bytes and their SHA-256 digest (32 bytes).

    Raises:
        UnusableImageError: it cannot be read or is too large; the message is the reason.
    """
    try:
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise UnusableImageError(f"larger than {MOST_BYTES >> 20} MiB")
            data = file.readall()
    except OSError as error:
        raise UnusableImageError(_reason(error)) from None
    return data, hashlib.sha256(data).digest()


def _stamp(path: Path) -> Stamp:
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino & _LARGEST_INTEGER  # some file systems use more bits


def _reason(error: OSError) -> str:
    return f"unreadable ({error.strerror or type(error).__name__})".lower()


def _prepare(connection: sqlite3.Connection) -> None:
    """Choose the journal and make the table, where another process may be doing the same."""
    for attempt in range(_ATTEMPTS):
        try:
            # A lost index costs only time, so it need not be flushed; WAL lets several processes read and write.
            connection.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; {_SCHEMA}")
            return
        except sqlite3.OperationalError as error:  # SQLite does not wait for the lock that a change of journal takes
            if "locked" not in str(error) or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.02)


class StatIndex:
    """Remembers the hashes of files by path and stamp. Not safe for use by several threads at once."""

    def __init__(self, path: Path | None) -> None:
        self._connection: sqlite3.Connection | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=5)
            _prepare(self._connection)
        except (sqlite3.Error, OSError):
            self.close()

    def look_up(self, paths: Sequence[Path]) -> dict[str, tuple[Stamp, bytes]]:
        """What is known of these files: stamp and digest by path as text; callers compare the stamp."""
        if self._connection is None:
            return {}
        known: dict[str, tuple[Stamp, bytes]] = {}
        names = [name for path in paths if is_text(name := os.path.abspath(path))]
        try:
            for start in range(0, len(names), 500):
                chunk = names[start : start + 500]
                marks = ",".join("?" * len(chunk))
                query = f"SELECT path, size, mtime_ns, inode, digest FROM files WHERE path IN ({marks})"  # noqa: S608
                for name, size, mtime_ns, inode, digest in self._connection.execute(query, chunk):
                    if isinstance(digest, bytes) and len(digest) == 32:
                        known[name] = ((size, mtime_ns, inode), digest)
        except sqlite3.Error:
            return {}
        return known

    def remember(self, entries: Iterable[tuple[Path, Stamp, bytes]]) -> None:
        """Note the hashes of files that were just read, except those changed so lately that a stamp may lie."""
        if self._connection is None:
            return
        newest = time.time_ns() - _RACY_NANOSECONDS
        rows = [
            (name, *stamp, digest)
            for path, stamp, digest in entries
            if stamp[1] < newest and is_text(name := os.path.abspath(path))
        ]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
        except sqlite3.Error:
            self.close()  # locked, full or damaged: go on without

    def digest_of(self, path: Path) -> bytes:
        """The file's SHA-256 digest (32 bytes); the file is read only where its stamp is not the one remembered.

        Raises:
            OSError: it cannot be read.
        """
        stamp = _stamp(path)
        known = self.look_up([path]).get(os.path.abspath(path))
        if known is not None and known[0] == stamp:
            return known[1]
        digest = bytes.fromhex(sha256_of_file(path))
        self.remember([(path, stamp, digest)])
        return digest

    def close(self) -> None:
        """Release the file; what is looked up or remembered afterwards is nothing."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
