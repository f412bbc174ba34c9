"""Downloads from a server that behaves well or badly, and archives that want out of their folder."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickstudy.errors import DownloadError, QuickstudyError
from quickstudy.images.download import download, unpack

CONTENT = np.random.Generator(np.random.PCG64(5)).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Behaviour:
    """What the server does next; tests set it."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    ranges: bool = True
    announce_length: bool = True
    cuts: list[int] = field(default_factory=list)
    """Bytes after which each of the next answers is cut."""
    statuses: list[int] = field(default_factory=list)
    """What the next requests are answered with."""
    location: str = ""
    requests: list[dict[str, str]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_GET(self) -> None:
        behaviour = self.behaviour
        behaviour.requests.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
        if behaviour.statuses and (status := behaviour.statuses.pop(0)) != 200:
            self.send_response(status)
            if behaviour.location:
                self.send_header("Location", behaviour.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, content = 0, behaviour.content
        wanted = self.headers.get("Range")
        fresh = self.headers.get("If-Range") in (None, behaviour.etag)
        if wanted and behaviour.ranges and fresh:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if behaviour.etag:
            self.send_header("ETag", behaviour.etag)
        if behaviour.announce_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + behaviour.cuts.pop(0) if behaviour.cuts else len(content)
        self.wfile.write(content[start:end])
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Behaviour]]:
    """The address of a file on this machine, and how it is served."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    behaviour = Behaviour()
    handler = type("Bound", (Handler,), {"behaviour": behaviour})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}/data.bin", behaviour
        finally:
            running.shutdown()
            thread.join()


class Noted:
    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, task: str, total: int) -> None:
        self.total = total

    def update(self, *, done: int, note: str) -> None:
        self.done = done

    def finish(self) -> None:
        pass


def fetch(
    url: str, path: Path, *, sha256: str | None = SHA256, size: int | None = len(CONTENT), **more: object
) -> Path:
    return download(url, path, sha256=sha256, size=size, wait_seconds=0, **more)  # type: ignore[arg-type]


def refusal(url: str, path: Path, **more: object) -> str:
    with pytest.raises(DownloadError) as caught:
        fetch(url, path, **more)  # type: ignore[arg-type]
    assert not path.exists()
    return str(caught.value)


def test_a_file_comes_whole(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, behaviour = server
    noted = Noted()
    assert fetch(url, tmp_path / "new" / "data.bin", progress=noted) == tmp_path / "new" / "data.bin"
    assert (tmp_path / "new" / "data.bin").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["data.bin"]
    assert (noted.total, noted.done) == (len(CONTENT), len(CONTENT))
    assert behaviour.requests[0]["user-agent"].startswith("quickstudy/")


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("announce_length", [True, False])
def test_cut_connections(server: tuple[str, Behaviour], tmp_path: Path, ranges: bool, announce_length: bool) -> None:
    url, behaviour = server
    behaviour.ranges, behaviour.announce_length = ranges, announce_length
    behaviour.cuts = [1000, 0, 500_000]
    assert fetch(url, tmp_path / "data.bin").read_bytes() == CONTENT
    asked = [request.get("range") for request in behaviour.requests]
    resumed_at = 501_000 if ranges else 500_000
    assert asked == [None, "bytes=1000-", "bytes=1000-" if ranges else None, f"bytes={resumed_at}-"]
    assert [path.name for path in tmp_path.iterdir()] == ["data.bin"]


def test_a_line_that_is_cut_often_gets_there(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, behaviour = server
    behaviour.content = CONTENT * 4
    behaviour.cuts = [1 << 20] * 11
    fetch(url, tmp_path / "data.bin", sha256=None, size=len(behaviour.content), attempts=2)
    assert (tmp_path / "data.bin").read_bytes() == behaviour.content


def test_too_many_cuts_keep_what_has_come(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, behaviour = server
    behaviour.cuts = [1000] * 4
    told = refusal(url, tmp_path / "data.bin")
    assert "the connection was cut after 4,000 of 3,000,000 bytes (4 attempts); 4,000 bytes are kept" in told
    assert (tmp_path / "data.bin.partial").read_bytes() == CONTENT[:4000]
    assert fetch(url, tmp_path / "data.bin").read_bytes() == CONTENT
    assert behaviour.requests[-1]["range"] == "bytes=4000-"
    assert behaviour.requests[-1]["if-range"] == '"one"'


@pytest.mark.parametrize("etag", ['"two"', None])
def test_a_file_that_changed_between_attempts_is_fetched_anew(
    server: tuple[str, Behaviour], tmp_path: Path, etag: str | None
) -> None:
    url, behaviour = server
    behaviour.content, behaviour.etag = bytes(len(CONTENT)), '"one"' if etag else None
    behaviour.cuts = [1000] * 4
    refusal(url, tmp_path / "data.bin")
    behaviour.content, behaviour.etag = CONTENT, etag
    assert fetch(url, tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_partial_file_of_another_size_is_fetched_anew(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, behaviour = server
    behaviour.etag = None
    behaviour.content, behaviour.cuts = CONTENT[:-5], [1000] * 4
    refusal(url, tmp_path / "data.bin", size=None, sha256=None)
    behaviour.content = CONTENT
    assert fetch(url, tmp_path / "data.bin", size=None, sha256=None).read_bytes() == CONTENT


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 10])
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_partial_file_that_is_complete_or_too_long(
    server: tuple[str, Behaviour], tmp_path: Path, length: int, size: int | None
) -> None:
    url, _ = server
    (tmp_path / "data.bin.partial").write_bytes((CONTENT + bytes(10))[:length])
    assert fetch(url, tmp_path / "data.bin", size=size).read_bytes() == CONTENT


@pytest.mark.parametrize("length", [1000, len(CONTENT)])
def test_a_partial_file_of_another_content_is_fetched_anew(
    server: tuple[str, Behaviour], tmp_path: Path, length: int
) -> None:
    url, _ = server
    (tmp_path / "data.bin.partial").write_bytes(bytes(length))
    (tmp_path / "data.bin.partial.json").write_text("no JSON")
    assert fetch(url, tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_is_told_and_deleted(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, behaviour = server
    behaviour.content = bytes(len(CONTENT))
    told = refusal(url, tmp_path / "data.bin")
    got = hashlib.sha256(behaviour.content).hexdigest()
    assert f"expected SHA-256 {SHA256}, got {got} (3,000,000 bytes); it was deleted" in told
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_size_is_told_before_anything_is_fetched(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, behaviour = server
    behaviour.content = b"<html>Sorry</html>"
    assert "is not the file that it should be: 18 bytes instead of 3,000,000" in refusal(url, tmp_path / "data.bin")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("announce_length", [True, False])
def test_more_than_the_limit_is_not_fetched(
    server: tuple[str, Behaviour], tmp_path: Path, announce_length: bool
) -> None:
    url, behaviour = server
    behaviour.announce_length = announce_length
    told = refusal(url, tmp_path / "data.bin", size=None, most_bytes=1000)
    assert "1,000" in told and "the limit" in told
    assert list(tmp_path.iterdir()) == []


def test_what_the_server_refuses(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, behaviour = server
    behaviour.statuses = [404]
    assert refusal(url, tmp_path / "data.bin") == f"Cannot download '{url}': the server answers 404 Not Found"
    assert len(behaviour.requests) == 1
    behaviour.statuses = [503, 500]
    assert fetch(url, tmp_path / "data.bin").read_bytes() == CONTENT
    behaviour.statuses = [503] * 4
    assert "the server answers 503 Service Unavailable (4 attempts)" in refusal(url, tmp_path / "other.bin")


def test_redirections(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    url, behaviour = server
    behaviour.statuses, behaviour.location = [302], url.replace("data.bin", "elsewhere.bin")
    assert fetch(url, tmp_path / "data.bin").read_bytes() == CONTENT
    assert behaviour.requests[-1]["path"] == "/elsewhere.bin"
    for location in ("file:///etc/hostname", "ftp://127.0.0.1/x", "nonsense://x"):
        behaviour.statuses, behaviour.location = [302], location
        assert "Cannot download" in refusal(url, tmp_path / "other.bin")


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as unused:
        port = unused.server_address[1]
    told = refusal(f"http://127.0.0.1:{port}/data.bin", tmp_path / "data.bin")
    assert told.endswith("Connection refused (4 attempts)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["ftp://example.org/x", "data:text/plain,x", "/etc/hostname", "x", "http://[", "http:///x"]
)
def test_addresses_that_are_none(url: str, tmp_path: Path) -> None:
    assert "Cannot download" in refusal(url, tmp_path / "data.bin")


def test_local_addresses(tmp_path: Path) -> None:
    (tmp_path / "original").write_bytes(CONTENT)
    assert fetch((tmp_path / "original").as_uri(), tmp_path / "copy").read_bytes() == CONTENT
    assert "Cannot download" in refusal((tmp_path / "missing").as_uri(), tmp_path / "other")


def test_a_slow_server_is_waited_for_and_a_silent_one_is_not(
    server: tuple[str, Behaviour], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = server
    answer, waited = Handler.do_GET, threading.Event()

    def hesitant(self: Handler) -> None:
        waited.wait(0.05)
        answer(self)

    monkeypatch.setattr(Handler, "do_GET", hesitant)
    assert fetch(url, tmp_path / "data.bin").read_bytes() == CONTENT
    monkeypatch.setattr(Handler, "do_GET", lambda self: waited.wait(60))
    try:
        assert "the server was silent for 0.05 s (1 attempt)" in refusal(
            url, tmp_path / "other.bin", timeout_seconds=0.05, attempts=1
        )
    finally:
        waited.set()


@pytest.mark.skipif(os.name != "posix", reason="files are locked on POSIX only")
def test_two_processes_do_not_write_one_file(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / "data.bin.partial").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        told = refusal(server[0], tmp_path / "data.bin")
    assert told == f"Another process is downloading to '{tmp_path / 'data.bin.partial'}'; wait until it is done"


def test_a_folder_that_cannot_be_written(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"Cannot write '.*file'"):
        fetch(server[0], tmp_path / "file" / "data.bin")


# Archives


def tar(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
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


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


GOOD = [(member("top/", tarfile.DIRTYPE), b""), (member("top/a.bin"), b"a"), (member("top/deep/b.bin"), b"bb")]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_archives(tmp_path: Path, mode: str) -> None:
    (tmp_path / "x.tgz").write_bytes(tar(*GOOD, mode=mode))
    unpack(tmp_path / "x.tgz", tmp_path / "out")
    assert contents(tmp_path / "out") == {"top/a.bin": b"a", "top/deep/b.bin": b"bb"}
    unpack(tmp_path / "x.tgz", tmp_path / "top", top="top")
    assert contents(tmp_path / "top") == {"a.bin": b"a", "deep/b.bin": b"bb"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "top", "x.tgz"]
    assert stat.S_IMODE((tmp_path / "top").stat().st_mode) & 0o500 == 0o500


def test_zip_archives(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped(**{"top/": b"", "top/a.bin": b"a", "top/deep/b.bin": b"bb"}))
    unpack(tmp_path / "x.zip", tmp_path / "out", top="top")
    assert contents(tmp_path / "out") == {"a.bin": b"a", "deep/b.bin": b"bb"}


def zip_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (tar((member("../out of it"), b"x")), "refused"),
        (tar((member("a/../../out of it"), b"x")), "refused"),
        (tar((member("/tmp/absolute"), b"x")), "refused"),
        (tar((member("a\\..\\b"), b"x")), "refused"),
        (tar((member("C:x"), b"x")), "refused"),
        (tar((member("link", tarfile.SYMTYPE, linkname="/etc"), b"")), "'link', which is neither a file nor a folder"),
        (tar((member("link", tarfile.SYMTYPE, linkname="a"), b"")), "'link', which is neither a file nor a folder"),
        (tar((member("hard", tarfile.LNKTYPE, linkname="/etc/passwd"), b"")), "'hard', which is neither"),
        (tar((member("device", tarfile.CHRTYPE, devmajor=1, devminor=3), b"")), "'device', which is neither"),
        (tar((member("pipe", tarfile.FIFOTYPE), b"")), "'pipe', which is neither"),
        (tar((member("a"), b"1"), (member("a"), b"2")), "twice; refused"),
        (tar((member("a"), b"1"), (member("a/b"), b"2")), "refused"),
        (tar((member("a/b"), b"1"), (member("a"), b"2")), "refused"),
        (tar((member("bomb"), bytes(2_000_000))), "unpacks to more than 1,000,000 bytes, which is the limit"),
        (tar(*((member(f"{n}"), b"") for n in range(101))), "holds more than 100 files, which is the limit"),
        (tar(), "is an empty archive"),
        (zipped(**{"../out": b"x"}), "which may lead out of the folder; refused"),
        (zipped(**{"/out": b"x"}), "which may lead out of the folder; refused"),
        (zipped(bomb=bytes(2_000_000)), "unpacks to more than 1,000,000 bytes"),
        (zip_link(), "'link', which is neither a file nor a folder"),
        (b"", "is damaged or no archive that can be read"),
        (b"no archive at all", "is damaged or no archive that can be read"),
        (b"PK no archive at all", "is damaged or no archive that can be read"),
        (tar(*GOOD)[:60], "is damaged or no archive that can be read"),
        (tar(*GOOD)[:3], "is damaged or no archive that can be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "archive",  # whose bytes hold the time
)
def test_archives_that_are_refused(tmp_path: Path, data: bytes, told: str) -> None:
    archive = tmp_path / "in" / "x.tgz"
    archive.parent.mkdir()
    archive.write_bytes(data)
    with pytest.raises(DownloadError) as caught:
        unpack(archive, tmp_path / "in" / "out", most_bytes=1_000_000, most_files=100)
    assert told in str(caught.value)
    assert f"'{archive}'" in str(caught.value)
    # Nothing is left, inside or outside.
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "x.tgz"]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_bytes(tar(*GOOD))
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "x.tgz", tmp_path / "out")
    with pytest.raises(DownloadError, match="is there already; move it away"):
        unpack(tmp_path / "x.tgz", tmp_path / "out")
    with pytest.raises(DownloadError, match="holds no folder 'other', only 'top'"):
        unpack(tmp_path / "x.tgz", tmp_path / "new", top="other")


def test_what_a_killed_unpacking_left_is_swept_up_in_the_end(tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_bytes(tar(*GOOD))
    for name in ("old", "new"):
        (tmp_path / f".tmp-unpacking-{name}").mkdir()
    os.utime(tmp_path / ".tmp-unpacking-old", (0, 0))
    unpack(tmp_path / "x.tgz", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-unpacking-new", "out", "x.tgz"]


@given(st.data())
def test_damaged_archives_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    makers: list[Callable[[], bytes]] = [
        lambda: tar(*GOOD),
        lambda: tar(*GOOD, mode="w"),
        lambda: zipped(a=b"a" * 50, b=b"b"),
    ]
    whole = bytearray(data.draw(st.sampled_from(makers))())
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (folder / "x").write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        unpack(folder / "x", folder / "out")
    except QuickstudyError:
        assert [path.name for path in folder.iterdir()] == ["x"]
