"""Content hashes and the index that spares computing them: right when it answers, harmless when it cannot."""

from __future__ import annotations

import hashlib
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quickstudy.errors import UnusableImageError
from quickstudy.images import identity
from quickstudy.images.identity import StatIndex, read_image_file, stamp_of

HOUR = 3_600_000_000_000
"""In nanoseconds."""


def make_file(path: Path, data: bytes = b"content", *, age: int = HOUR) -> Path:
    """A file that was changed `age` nanoseconds ago."""
    path.write_bytes(data)
    changed = time.time_ns() - age
    os.utime(path, ns=(changed, changed))
    return path


def later(nanoseconds: int = HOUR) -> int:
    """A time so much later than now that files that were just made are old; nobody can set a change's time back."""
    return time.time_ns() + nanoseconds


def remember(index: StatIndex, *paths: Path) -> None:
    index.remember([(path, stamp_of(path), read_image_file(path)[1]) for path in paths])


def recognised(index: StatIndex, path: Path) -> bytes | None:
    """The digest that the index gives for the file as it is now."""
    stamp, digest = index.look_up([path]).get(os.path.abspath(path), (None, None))
    return digest if stamp == stamp_of(path) else None


@pytest.fixture
def index(tmp_path: Path) -> StatIndex:
    return StatIndex(tmp_path / "cache" / "files.sqlite", now_ns=later())


def test_an_image_is_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    assert read_image_file(make_file(tmp_path / "x.jpg", b"abc")) == (
        b"abc",
        bytes.fromhex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    )


def test_an_unchanged_file_is_recognised(index: StatIndex, tmp_path: Path) -> None:
    path = make_file(tmp_path / "x.jpg")
    assert index.look_up([path]) == {}
    remember(index, path)
    assert recognised(index, path) == hashlib.sha256(b"content").digest()
    assert recognised(index, make_file(tmp_path / "y.jpg")) is None


def test_the_index_outlives_the_process(tmp_path: Path) -> None:
    path = make_file(tmp_path / "x.jpg")
    for expected in (None, hashlib.sha256(b"content").digest()):
        index = StatIndex(tmp_path / "files.sqlite", now_ns=later())
        assert recognised(index, path) == expected
        remember(index, path)
        index.close()


def test_relative_and_absolute_paths_are_one(index: StatIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_file(tmp_path / "x.jpg")
    remember(index, path)
    monkeypatch.chdir(tmp_path)
    assert recognised(index, Path("x.jpg")) is not None
    assert recognised(index, Path("../") / tmp_path.name / "x.jpg") is not None


def test_a_file_of_another_size_is_not_recognised(index: StatIndex, tmp_path: Path) -> None:
    path = make_file(tmp_path / "x.jpg")
    remember(index, path)
    changed = path.stat().st_mtime_ns
    path.write_bytes(b"longer content")
    os.utime(path, ns=(changed, changed))
    assert recognised(index, path) is None


def test_a_file_changed_a_nanosecond_later_is_not_recognised(index: StatIndex, tmp_path: Path) -> None:
    path = make_file(tmp_path / "x.jpg")
    remember(index, path)
    changed = path.stat().st_mtime_ns
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(changed + 1000, changed + 1000))
    assert recognised(index, path) is None


def test_another_file_moved_in_its_place_is_not_recognised(index: StatIndex, tmp_path: Path) -> None:
    """Same name, size and time, as when a program saves to a new file and renames it; only the inode tells."""
    path = make_file(tmp_path / "x.jpg")
    remember(index, path)
    changed = path.stat().st_mtime_ns
    other = make_file(tmp_path / "new.jpg", b"CONTENT")
    os.utime(other, ns=(changed, changed))
    other.replace(path)
    assert recognised(index, path) is None
    remember(index, path)
    assert recognised(index, path) == hashlib.sha256(b"CONTENT").digest()


def test_a_file_changed_in_place_with_size_and_time_put_back_is_not_recognised(
    index: StatIndex, tmp_path: Path
) -> None:
    """Same name, size, time of modification and inode, as programs leave it that put the time back; ctime tells."""
    path = make_file(tmp_path / "x.jpg")
    remember(index, path)
    before = path.stat()
    time.sleep(0.05)  # some systems' clocks tick every 4 to 16 ms
    with path.open("r+b") as file:
        file.write(b"CONTENT")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert recognised(index, path) is None
    assert index.digest_of(path) == hashlib.sha256(b"CONTENT").digest()


@pytest.mark.parametrize("rest", [0, 1_000_000_000, -HOUR], ids=["now", "a second ago", "in the future"])
def test_a_file_changed_just_now_is_not_trusted(tmp_path: Path, rest: int) -> None:
    """A second change within the clock's grain would leave the same stamp, even with the modification long ago."""
    path = make_file(tmp_path / "x.jpg")
    index = StatIndex(tmp_path / "files.sqlite", now_ns=later(rest))
    remember(index, path)
    assert index.look_up([path]) == {}


def test_a_file_modified_in_the_future_is_not_trusted(index: StatIndex, tmp_path: Path) -> None:
    path = make_file(tmp_path / "x.jpg", age=-2 * HOUR)
    remember(index, path)
    assert index.look_up([path]) == {}


def test_a_file_is_trusted_two_seconds_after_its_change(tmp_path: Path) -> None:
    path = make_file(tmp_path / "x.jpg")
    remember(StatIndex(tmp_path / "files.sqlite", now_ns=later(2_500_000_000)), path)
    assert recognised(StatIndex(tmp_path / "files.sqlite"), path) is not None


def test_a_file_changed_since_the_index_was_opened_is_not_trusted_however_late_it_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have changed again right after it was read, with the same stamp, long before it is remembered."""
    index = StatIndex(tmp_path / "files.sqlite")
    path = make_file(tmp_path / "x.jpg")
    entry = (path, stamp_of(path), read_image_file(path)[1])
    monkeypatch.setattr(time, "time_ns", lambda: entry[1][2] + HOUR)
    index.remember([entry])
    assert index.look_up([path]) == {}


def test_many_files_are_looked_up_at_once(index: StatIndex, tmp_path: Path) -> None:
    entries = [(tmp_path / f"{n}.jpg", (n, HOUR, 2 * HOUR, n), hashlib.sha256(b"%d" % n).digest()) for n in range(1201)]
    index.remember(entries)
    known = index.look_up([path for path, _, _ in entries] + [tmp_path / "unknown.jpg"])
    assert known == {str(path): (stamp, digest) for path, stamp, digest in entries}


def test_the_digest_of_an_untouched_file_takes_no_reading(
    index: StatIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file(tmp_path / "x.bin")
    read: list[Path] = []
    hash_file = identity.sha256_of_file
    monkeypatch.setattr(identity, "sha256_of_file", lambda path: read.append(path) or hash_file(path))
    for _ in range(2):
        assert index.digest_of(path) == hashlib.sha256(b"content").digest()
    assert len(read) == 1
    make_file(path, b"CONTENT", age=2 * HOUR)
    assert index.digest_of(path) == hashlib.sha256(b"CONTENT").digest()
    assert len(read) == 2
    with pytest.raises(FileNotFoundError):
        index.digest_of(tmp_path / "missing.bin")


def test_without_a_path_nothing_is_remembered(tmp_path: Path) -> None:
    index = StatIndex(None)
    path = make_file(tmp_path / "x.jpg")
    remember(index, path)
    assert index.look_up([path]) == {}
    index.close()


@pytest.mark.parametrize("damage", [b"", b"this is no database " * 100, b"SQLite format 3\0" + bytes(4000)])
def test_a_damaged_index_costs_only_time(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "files.sqlite").write_bytes(damage)
    path = make_file(tmp_path / "x.jpg")
    index = StatIndex(tmp_path / "files.sqlite", now_ns=later())
    assert index.look_up([path]) == {}
    remember(index, path)
    assert recognised(index, path) in (None, hashlib.sha256(b"content").digest())
    index.close()


def test_an_index_damaged_while_it_is_in_use_costs_only_time(tmp_path: Path) -> None:
    paths = [make_file(tmp_path / f"{number}.jpg") for number in range(50)]
    index = StatIndex(tmp_path / "files.sqlite", now_ns=later())
    remember(index, *paths)
    index.close()
    data = bytearray((tmp_path / "files.sqlite").read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    (tmp_path / "files.sqlite").write_bytes(data)
    index = StatIndex(tmp_path / "files.sqlite", now_ns=later())
    for path in paths:
        assert recognised(index, path) in (None, hashlib.sha256(b"content").digest())
    remember(index, *paths)
    index.close()


def test_a_digest_of_the_wrong_length_is_not_believed(index: StatIndex, tmp_path: Path) -> None:
    path = make_file(tmp_path / "x.jpg")
    index.remember([(path, stamp_of(path), b"short")])
    assert index.look_up([path]) == {}


def test_an_index_of_another_kind_costs_only_time(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "files.sqlite") as connection:
        connection.execute("CREATE TABLE stamps (something TEXT)")
    connection.close()
    index = StatIndex(tmp_path / "files.sqlite", now_ns=later())
    path = make_file(tmp_path / "x.jpg")
    assert index.look_up([path]) == {}
    remember(index, path)
    assert index.look_up([path]) == {}


def test_an_index_of_an_earlier_version_is_begun_anew(tmp_path: Path) -> None:
    path = make_file(tmp_path / "x.jpg")
    size, mtime_ns, _, inode = stamp_of(path)
    with sqlite3.connect(tmp_path / "files.sqlite") as connection:
        connection.execute(
            "CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, "
            "inode INTEGER NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID"
        )
        connection.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?)", (str(path), size, mtime_ns, inode, bytes(32)))
    connection.close()
    index = StatIndex(tmp_path / "files.sqlite", now_ns=later())
    assert index.look_up([path]) == {}
    remember(index, path)
    assert recognised(index, path) == hashlib.sha256(b"content").digest()


def test_where_the_index_cannot_be_it_costs_only_time(tmp_path: Path) -> None:
    make_file(tmp_path / "file")
    path = make_file(tmp_path / "x.jpg")
    for place in (tmp_path / "file" / "files.sqlite", tmp_path):  # under a file; a folder itself
        index = StatIndex(place, now_ns=later())
        remember(index, path)
        assert index.look_up([path]) == {}
        index.close()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    path = make_file(tmp_path / "x.jpg")
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        index = StatIndex(folder / "files.sqlite", now_ns=later())
        remember(index, path)
        assert index.look_up([path]) == {}
    finally:
        folder.chmod(0o700)


def test_deleting_the_index_while_it_is_open_costs_only_time(index: StatIndex, tmp_path: Path) -> None:
    path = make_file(tmp_path / "x.jpg")
    remember(index, path)
    for part in (tmp_path / "cache").iterdir():
        part.unlink()
    remember(index, path)
    assert recognised(index, path) in (None, hashlib.sha256(b"content").digest())
    fresh = StatIndex(tmp_path / "cache" / "files.sqlite", now_ns=later())
    assert fresh.look_up([path]) == {}
    remember(fresh, path)
    assert recognised(fresh, path) == hashlib.sha256(b"content").digest()


def test_names_that_are_not_utf_8_are_left_out_and_the_others_found(index: StatIndex, tmp_path: Path) -> None:
    plain = make_file(tmp_path / "x.jpg")
    try:
        odd = make_file(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    remember(index, plain, odd)
    assert set(index.look_up([odd, plain])) == {str(plain)}


def test_names_with_quotes_spaces_and_any_script_are_found(index: StatIndex, tmp_path: Path) -> None:
    paths = [make_file(tmp_path / name) for name in ("a'b\".jpg", "né à.jpg", "犬.jpg", "%_?.jpg", " .jpg", "🙂.JPG")]
    remember(index, *paths)
    assert all(recognised(index, path) for path in paths)


def test_a_stamp_fits_into_the_index_whatever_the_file_system_numbers_its_files(
    index: StatIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network and Windows file systems use all 64 bits of an inode, or more; SQLite's integers have a sign."""
    path = make_file(tmp_path / "x.jpg")
    real = os.stat(path)
    values = list(real)
    values[1] = 2**64 - 3
    high = os.stat_result(values, {"st_mtime_ns": real.st_mtime_ns, "st_ctime_ns": real.st_ctime_ns})
    monkeypatch.setattr(os, "stat", lambda *_, **__: high)
    stamp = stamp_of(path)
    monkeypatch.undo()
    index.remember([(path, stamp, hashlib.sha256(b"content").digest())])
    assert index.look_up([path])[str(path)] == (stamp, hashlib.sha256(b"content").digest())


def test_several_processes_write_one_index(tmp_path: Path) -> None:
    place = tmp_path / "files.sqlite"
    code = (
        "import sys; from pathlib import Path; from quickstudy.images.identity import StatIndex; "
        "index = StatIndex(Path(sys.argv[1])); "
        "[index.remember([(Path(f'/{sys.argv[2]}-{n}'), (1, 1, 1, n), bytes(32))]) for n in range(50)]; index.close()"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(place), str(number)]) for number in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    names = [Path(f"/{number}-{n}") for number in range(2) for n in range(50)]
    assert len(StatIndex(place).look_up(names)) == 100


def test_an_index_locked_by_another_does_not_stop_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite waits a few seconds for the other; here for none, so that the test does not."""
    path = make_file(tmp_path / "x.jpg")
    StatIndex(tmp_path / "files.sqlite", now_ns=later()).close()
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda place, timeout: connect(place, timeout=0))
    index = StatIndex(tmp_path / "files.sqlite", now_ns=later())
    other = connect(tmp_path / "files.sqlite")
    other.execute("BEGIN EXCLUSIVE")
    remember(index, path)
    assert index.look_up([path]) == {}
    other.close()


def test_a_missing_file_has_no_stamp(tmp_path: Path) -> None:
    with pytest.raises(UnusableImageError, match=r"unreadable \(no such file or directory\)"):
        stamp_of(tmp_path / "none.jpg")


def test_files_are_read_by_many_threads(tmp_path: Path) -> None:
    paths = [make_file(tmp_path / f"{number}.jpg", b"%d" % number) for number in range(20)]
    found: list[list[bytes]] = []
    threads = [
        threading.Thread(target=lambda: found.append([read_image_file(path)[1] for path in paths])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[hashlib.sha256(b"%d" % number).digest() for number in range(20)]] * 4


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.skipif(os.name != "posix", reason="Windows has none of these among files")
@pytest.mark.parametrize(
    ("make", "reason"), [(pipe, "is a named pipe"), (listener, "is a socket"), (device, "is a device")]
)
def test_what_is_no_file_is_named_at_once(
    make: Callable[[Path], None], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a pipe would wait for somebody to write to it; a device may never end."""
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    make(Path("x.jpg"))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_image_file, Path("x.jpg"))
        try:
            with pytest.raises(UnusableImageError, match=reason):
                reading.result(timeout=10)
        finally:
            if not reading.done() and make is pipe:  # let the thread end
                os.close(os.open("x.jpg", os.O_RDWR | os.O_NONBLOCK))


@pytest.mark.skipif(os.name != "posix", reason="Windows has no pipes among files")
def test_a_pipe_put_in_a_file_s_place_while_it_is_opened_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file(tmp_path / "x.jpg")
    file = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda *_, **__: file)
    with ThreadPoolExecutor(1) as pool, pytest.raises(UnusableImageError, match="is a named pipe"):
        pool.submit(read_image_file, path).result(timeout=10)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no pipes among files")
def test_the_stamp_of_a_pipe_takes_no_opening(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    assert stamp_of(tmp_path / "x.jpg")[0] == 0
