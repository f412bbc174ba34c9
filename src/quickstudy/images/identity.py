"""Who an image is: the SHA-256 of its file's bytes; and an index that spares reading unchanged files again.

The stat index is a small SQLite file from (path, size, times of change, inode) to hash. It is a cache: deleting it
costs only time, and where it cannot be opened or written, files are simply read. Programs may put a modification time
back (`rsync --times`, `touch -d`, taggers that keep it), but not the time at which the system noted a change of the
file or of what it knows about it (ctime), so both count. A file changed within two seconds of when the index was
opened, or later, is not trusted, as its times might not tell the next change apart (the "racy git" problem).
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from quickstudy.errors import UnusableImageError
from quickstudy.files import is_text, sha256_of_file
from quickstudy.images.decoding import DECODER, MOST_BYTES
from quickstudy.process import usable_cores
from quickstudy.progress import Progress, silent

_RACY_NANOSECONDS = 2_000_000_000
_ATTEMPTS = 100
_HASHED_TOGETHER = 32
_LARGEST_INTEGER = 2**63 - 1  # that SQLite holds
# Earlier versions kept stamps without ctime in a table called files.
_SCHEMA = """
DROP TABLE IF EXISTS files;
CREATE TABLE IF NOT EXISTS stamps (
    path TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    digest BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unusable (
    digest BLOB NOT NULL,
    decoder TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (digest, decoder)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bits (
    digest BLOB NOT NULL,
    decoder TEXT NOT NULL,
    used INTEGER NOT NULL,
    PRIMARY KEY (digest, decoder)
) WITHOUT ROWID;
"""
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Stamp = tuple[int, int, int, int]
"""Size in bytes, times of the last change of the content and of any change in nanoseconds (mtime, ctime), inode.

On Windows the second time is that of the file's creation, which does no harm."""


def stamp_of(path: Path | str) -> Stamp:
    """Look up the facts by which the index recognises an unchanged file.

    Raises:
        UnusableImageError: there is no such file, or it may not be looked at.
    """
    try:
        return _stamp(path)
    except OSError as error:
        raise UnusableImageError(_reason(error)) from None


def read_image_file(path: Path | str) -> tuple[bytes, bytes]:
    """Read a file: its bytes and their SHA-256 digest (32 bytes).

    What is no file is not opened: a named pipe would wait for somebody to write, and devices may never end.

    Raises:
        UnusableImageError: it is no file, cannot be read or is too large; the message is the reason.
    """
    try:
        _require_file(os.stat(path))
        # Where something else has taken its place meanwhile, opening it must not wait either.
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            _require_file(os.fstat(file.fileno()))
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise UnusableImageError(f"larger than {MOST_BYTES >> 20} MiB")
            data = file.readall()
    except OSError as error:
        raise UnusableImageError(_reason(error)) from None
    return data, hashlib.sha256(data).digest()


def _stamp(path: Path | str) -> Stamp:
    found = os.stat(path)
    inode = found.st_ino & _LARGEST_INTEGER  # some file systems use more bits
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, inode


def _require_file(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UnusableImageError(f"unreadable (is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no file')})")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


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
    """Remembers the hashes of files by path and stamp. It is not safe for use by several threads at once."""

    def __init__(self, path: Path | None, *, now_ns: int | None = None) -> None:
        """Open an index, or make one.

        Args:
            path: the SQLite file; nothing is remembered if it is None.
            now_ns: a time, in nanoseconds since 1970, before all stamps that will be remembered were taken; the
                present if left out. Only files that had been at rest for two seconds by then are trusted, however much
                later they are remembered.
        """
        self._newest = (time.time_ns() if now_ns is None else now_ns) - _RACY_NANOSECONDS
        self._connection: sqlite3.Connection | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=5)
            _prepare(self._connection)
        except (sqlite3.Error, OSError):
            self.close()

    def look_up(self, paths: Sequence[Path | str]) -> dict[str, tuple[Stamp, bytes]]:
        """Say what is known of these files: stamp and digest by absolute path as text; callers compare the stamp.

        A path given as text is absolute already: making 100,000 so takes a sixth of a second.
        """
        if self._connection is None:
            return {}
        known: dict[str, tuple[Stamp, bytes]] = {}
        absolute = (path if isinstance(path, str) else os.path.abspath(path) for path in paths)
        names = [name for name in absolute if is_text(name)]
        try:
            for start in range(0, len(names), 500):
                chunk = names[start : start + 500]
                marks = ",".join("?" * len(chunk))
                query = f"SELECT path, digest, size, mtime_ns, ctime_ns, inode FROM stamps WHERE path IN ({marks})"  # noqa: S608
                for row in self._connection.execute(query, chunk):
                    digest = row[1]
                    if isinstance(digest, bytes) and len(digest) == 32:
                        known[row[0]] = (row[2:], digest)
        except sqlite3.Error:
            return {}
        return known

    def remember(self, entries: Iterable[tuple[Path | str, Stamp, bytes]]) -> None:
        """Note the hashes of files that were just read, except those changed so lately that a stamp may lie."""
        if self._connection is None:
            return
        rows = [
            (name, *stamp, digest)
            for path, stamp, digest in entries
            if max(stamp[1:3]) < self._newest and is_text(name := os.path.abspath(path))
        ]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO stamps VALUES (?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.Error:
            self.close()  # locked, full or damaged: go on without

    def unusable(self) -> dict[bytes, str]:
        """Say by digest why contents cannot be decoded, as far as this version of decoding has found out before."""
        return self._found("SELECT digest, reason FROM unusable WHERE decoder = ?")

    def remember_unusable(self, reasons: Mapping[bytes, str]) -> None:
        """Note why contents cannot be decoded, so that they are not read again only to find out the same."""
        self._note("INSERT OR REPLACE INTO unusable VALUES (?, ?, ?)", reasons)

    def bits_used(self) -> dict[bytes, int]:
        """Say by digest how many bits the levels of contents use, as far as this version of decoding has found out."""
        return self._found("SELECT digest, used FROM bits WHERE decoder = ?")

    def remember_bits(self, used: Mapping[bytes, int]) -> None:
        """Note how many bits the levels of contents use, so that they are not read again to find out the same."""
        self._note("INSERT OR REPLACE INTO bits VALUES (?, ?, ?)", used)

    def _found(self, query: str) -> dict[bytes, Any]:
        if self._connection is None:
            return {}
        try:
            return dict(self._connection.execute(query, (DECODER,)))
        except sqlite3.Error:
            return {}

    def _note(self, statement: str, values: Mapping[bytes, Any]) -> None:
        if self._connection is None or not values:
            return
        rows = [(digest, DECODER, value) for digest, value in values.items()]
        try:
            with self._connection:
                self._connection.executemany(statement, rows)
        except sqlite3.Error:
            self.close()

    def digest_of(self, path: Path) -> bytes:
        """Return the file's SHA-256 digest (32 bytes); the file is read only where its stamp is not the one remembered.

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


def identify(paths: Sequence[Path | str], index: Path | None, *, progress: Progress = silent) -> list[bytes | str]:
    """Return the SHA-256 digest of each file, or why it cannot be read; unchanged files are known to the stat index."""
    store = StatIndex(index)
    names = [os.path.abspath(path) for path in paths]
    found: list[bytes | str] = [b""] * len(paths)
    to_read: list[tuple[int, Stamp]] = []
    try:
        known = store.look_up(names)
        for number, name in enumerate(names):
            try:
                stamp = stamp_of(name)
            except UnusableImageError as error:
                found[number] = str(error)
                continue
            remembered = known.get(name)
            if remembered is not None and remembered[0] == stamp:
                found[number] = remembered[1]
            else:
                to_read.append((number, stamp))
        if to_read:
            _read(paths, to_read, found, store, progress)
    finally:
        store.close()
    return found


def _read(
    paths: Sequence[Path | str],
    to_read: Sequence[tuple[int, Stamp]],
    found: list[bytes | str],
    index: StatIndex,
    progress: Progress,
) -> None:
    """Hash the files that are new, 32 at a time: a future for each would take as long as hashing a small file."""

    def hash_some(start: int) -> int:
        some = to_read[start : start + _HASHED_TOGETHER]
        for number, _ in some:
            try:
                found[number] = read_image_file(paths[number])[1]
            except UnusableImageError as error:
                found[number] = str(error)
        return len(some)

    progress.start("hashing", len(to_read))
    done = 0
    pool = ThreadPoolExecutor(usable_cores())
    try:
        for hashed in pool.map(hash_some, range(0, len(to_read), _HASHED_TOGETHER)):
            done += hashed
            progress.update(done=done, note="")
    finally:
        pool.shutdown(cancel_futures=True)
        progress.finish()
    index.remember((paths[n], stamp, digest) for n, stamp in to_read if isinstance(digest := found[n], bytes))
