"""Durable files: whole or not at all, with the mode that the process gives its files; and paths with a `~`."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quickstudy.errors import QuickstudyError
from quickstudy.files import as_path, cache_folder, write_atomically, write_bytes_atomically

posix_only = pytest.mark.skipif(os.name != "posix", reason="Windows has no modes of files")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@posix_only
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0, 0o666)])
def test_a_file_has_the_mode_that_the_mask_leaves(tmp_path: Path, mask: int, mode: int) -> None:
    code = (
        "import sys; from pathlib import Path; from quickstudy.files import *; write_bytes_atomically(Path('x'), b'')"
    )
    subprocess.run([sys.executable, "-c", f"import os; os.umask({mask}); {code}"], cwd=tmp_path, check=True)
    assert mode_of(tmp_path / "x") == mode


@posix_only
def test_a_file_under_way_is_no_more_open_than_when_it_is_done(tmp_path: Path) -> None:
    seen: list[int] = []
    write_atomically(tmp_path / "x", lambda file: seen.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode)))
    assert seen == [mode_of(tmp_path / "x")]


@posix_only
def test_no_thread_gets_another_mode_while_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that others open meanwhile, too: the mask belongs to the process, so it must never be touched."""
    mask = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the mask of the process was changed"))

        def write(number: int) -> None:
            write_bytes_atomically(tmp_path / f"{number}.bin", b"%d" % number)
            (tmp_path / f"{number}.txt").write_text("somebody else's")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(500)))
    finally:
        monkeypatch.undo()
        os.umask(mask)
    assert {mode_of(path) for path in tmp_path.iterdir()} == {0o640}
    assert len(list(tmp_path.iterdir())) == 1000


def test_writers_of_one_path_leave_one_whole_file(tmp_path: Path) -> None:
    contents = [bytes([number]) * 10_000 for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: write_bytes_atomically(tmp_path / "deep" / "x", data), contents))
    assert (tmp_path / "deep" / "x").read_bytes() in contents
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    write_bytes_atomically(tmp_path / "x", b"a\nb\r\n\x1a")
    assert (tmp_path / "x").read_bytes() == b"a\nb\r\n\x1a"


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")

    def fail(file: object) -> None:
        raise ValueError

    with pytest.raises(ValueError):
        write_atomically(tmp_path / "x", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("~", "{home}"),
        ("~/photos", "{home}/photos"),
        (Path("~/a/../b"), "{home}/a/../b"),
        ("~backup/x", "~backup/x"),
        ("a/~", "a/~"),
        ("/a/b", "/a/b"),
    ],
)
def test_a_leading_tilde_is_the_home_folder(
    given: str | Path, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert as_path(given) == Path(meant.format(home=tmp_path))


def test_an_empty_path_is_not_the_current_folder() -> None:
    with pytest.raises(QuickstudyError, match="The path '' is empty"):
        as_path("")
    assert as_path(".") == Path()


def test_the_cache_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("QUICKSTUDY_CACHE", "~/cache")
    assert cache_folder() == tmp_path / "cache"
    assert cache_folder("") == tmp_path / "cache"
    assert cache_folder("~/other") == cache_folder(Path("~/other")) == tmp_path / "other"
    assert cache_folder(tmp_path) == tmp_path
