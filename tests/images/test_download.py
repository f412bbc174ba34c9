"""Downloads from a server that behaves well or badly, and archives that want out of their folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickstudy.errors import DownloadError, QuickstudyError
from quickstudy.images.download import download, unpack

CONTENT = np.random.Generator(np.random.PCG64(5)).bytes(600_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ENDED = threading.Event()


class Handler(BaseHTTPRequestHandler):
    """Answers as the address says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        kind = self.path.strip("/")
        body = {"wrong": bytes(len(CONTENT)), "page": b"<html>Sorry</html>", "long": CONTENT * 2}.get(kind, CONTENT)
        if kind == "silent":
            self.close_connection = ENDED.wait(60)
            return
        if kind in ("404", "503"):
            self.send_response(int(kind))
            body = b""
        elif kind.startswith("to-"):
            self.send_response(302)
            self.send_header("Location", kind.removeprefix("to-"))
            body = b""
        else:
            assert self.headers["User-Agent"].startswith("quickstudy/")
            self.send_response(200)
        self.send_header("Connection", "close")
        if kind == "encoded":
            self.send_header("Content-Encoding", "gzip")
        if kind in ("pieces", "endless"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(body), 10_000):
                self.wfile.write(b"%x\r\n%s\r\n" % (10_000, body[start : start + 10_000]))
            self.wfile.write(b"5\r\nabcde\r\n0\r\n\r\n" if kind == "endless" else b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:1000] if kind in ("cut", "stalled") else body)
        if kind == "stalled":
            ENDED.wait(60)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on this machine, to which the kind of answer is added."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    ENDED.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}/"
        finally:
            ENDED.set()
            running.shutdown()
            thread.join()


class Noted:
    def __init__(self) -> None:
        self.told: list[int] = []
        self.finished = 0

    def start(self, task: str, total: int) -> None:
        assert (task, total) == ("data.bin", len(CONTENT))

    def update(self, *, done: int, note: str) -> None:
        self.told.append(done)

    def finish(self) -> None:
        self.finished += 1


def fetch(url: str, path: Path, **more: object) -> Path:
    return download(url, path, sha256=SHA256, size=len(CONTENT), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["plain", "pieces", "encoded", "to-elsewhere"])
def test_a_file_comes_whole_and_is_as_readable_as_its_folder(
    server: str, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    noted, path = Noted(), tmp_path / "new" / "data.bin"
    assert fetch(server + kind, path, progress=noted) == path
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == ["data.bin"]
    assert path.stat().st_mode & 0o666 == path.parent.stat().st_mode & 0o666
    assert noted.told == sorted(noted.told) and noted.told[-1] == len(CONTENT)
    assert noted.finished == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("404", "the server answers 404 Not Found"),
        ("503", "the server answers 503 Service Unavailable"),
        ("silent", "timed out"),
        ("stalled", "timed out"),
        ("cut", "1000 bytes read, 599000 more expected"),
        ("wrong", f"is not the file that it should be.*{SHA256} but got"),
        ("page", "is not the file that it should be"),
        ("long", "is not the file that it should be: it has more than 600,000 bytes"),
        ("endless", "is not the file that it should be: it has more than 600,000 bytes"),
        ("to-file:///etc/hostname", "file:///etc/hostname"),
        ("to-ftp://127.0.0.1/x", "ftp://127.0.0.1/x"),
    ],
)
def test_what_is_not_the_whole_file_is_told_and_leaves_nothing(
    server: str, tmp_path: Path, kind: str, told: str
) -> None:
    noted = Noted()
    with pytest.raises(DownloadError, match=told) as caught:
        fetch(server + kind, tmp_path / "data.bin", timeout_seconds=0.2, progress=noted)
    assert f"'{server}{kind}'" in str(caught.value)
    assert caught.value.__cause__ is None
    assert list(tmp_path.iterdir()) == []
    assert noted.finished == 1


@pytest.mark.parametrize(
    "url", ["ftp://example.org/x", "data:text/plain,x", "file:///etc/hostname", "/etc/hostname", "x", "http://["]
)
def test_addresses_that_are_none(url: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="Cannot download"):
        fetch(url, tmp_path / "data.bin")


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as unused:
        port = unused.server_address[1]
    with pytest.raises(DownloadError) as caught:
        fetch(f"http://127.0.0.1:{port}/", tmp_path / "data.bin")
    assert str(caught.value).startswith(f"Cannot download 'http://127.0.0.1:{port}/': Failed to establish a new conn")


def test_a_folder_that_cannot_be_written(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"Cannot write '.*file'") as caught:
        fetch(server, tmp_path / "file" / "data.bin")
    assert isinstance(caught.value.__cause__, OSError)


def test_what_a_kill_left_is_swept_up_in_the_end(server: str, tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / f".tmp-fetching-{name}").mkdir()
    os.utime(tmp_path / ".tmp-fetching-old", (0, 0))
    fetch(server, tmp_path / "data.bin")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-fetching-new", "data.bin"]


# Archives


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for info, data in members:
            info.size = len(data) if info.isreg() else info.size
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **more: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


GOOD = [
    (member("top/", tarfile.DIRTYPE, mode=0o700), b""),
    (member("top/a.bin", mode=0o4600), b"a"),
    (member("top/deep/b.bin"), b"bb"),
    (member("other/c.bin"), b"ccc"),
]


def test_the_folder_of_an_archive_with_the_permissions_of_new_files(tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_bytes(tar(*GOOD))
    out = unpack(tmp_path / "x.tgz", tmp_path / "out", top="top")
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found == {"a.bin": b"a", "deep/b.bin": b"bb"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.tgz"]
    (tmp_path / "here").touch()
    assert (out / "a.bin").stat().st_mode == (tmp_path / "here").stat().st_mode


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (tar((member("../out of it"), b"x")), "not safe to unpack"),
        (tar((member("a/../../out of it"), b"x")), "not safe to unpack"),
        (tar((member("/tmp/absolute"), b"x")), "holds no folder 'top'"),
        (tar((member("link", tarfile.SYMTYPE, linkname="/etc"), b"")), "'link', neither file nor folder"),
        (tar((member("link", tarfile.SYMTYPE, linkname="a"), b"")), "'link', neither file nor folder"),
        (tar((member("hard", tarfile.LNKTYPE, linkname="/etc/passwd"), b"")), "'hard', neither file nor folder"),
        (tar((member("device", tarfile.CHRTYPE, devmajor=1, devminor=3), b"")), "'device', neither file nor"),
        (tar((member("pipe", tarfile.FIFOTYPE), b"")), "'pipe', neither file nor folder"),
        (tar((member("a"), b"1"), (member("a/b"), b"2")), "Cannot unpack"),
        (tar((member("bomb"), bytes(2_000_000))), "unpacks to more than 1,000,000 bytes, which is the limit"),
        (tar(*((member(f"{n}"), b"") for n in range(2000))), "unpacks to more than 1,000,000 bytes"),
        (tar(*GOOD[3:]), "holds no folder 'top'"),
        (tar(), "holds no folder 'top'"),
        (b"", "is damaged"),
        (b"no archive at all", "is damaged"),
        (tar(*GOOD)[:60], "is damaged"),
        (tar(*GOOD)[:3], "is damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "archive",  # whose bytes hold the time
)
def test_archives_that_are_refused(tmp_path: Path, data: bytes, told: str) -> None:
    archive = tmp_path / "in" / "x.tgz"
    archive.parent.mkdir()
    archive.write_bytes(data)
    with pytest.raises(DownloadError) as caught:
        unpack(archive, tmp_path / "in" / "out", top="top", most_bytes=1_000_000)
    assert told in str(caught.value)
    assert f"'{archive}'" in str(caught.value)
    # Nothing is left, inside or outside.
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "x.tgz"]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_bytes(tar(*GOOD))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(DownloadError, match="not empty; delete the folder if it is there"):
        unpack(tmp_path / "x.tgz", tmp_path / "out", top="top")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@given(st.data())
def test_damaged_archives_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    whole = bytearray(tar(*GOOD))
    within = data.draw(st.booleans())  # the archive that is compressed, or the compressed one
    whole = bytearray(gzip.decompress(whole)) if within else whole
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    whole = whole[: data.draw(st.integers(0, len(whole)))]
    (folder / "x").write_bytes(gzip.compress(whole) if within else whole)
    try:
        unpack(folder / "x", folder / "out", top="top")
    except QuickstudyError:
        assert [path.name for path in folder.iterdir()] == ["x"]
