"""Checkpoints: what is read is what was written, or it is refused."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from quickstudy.errors import RunError, WriteError
from quickstudy.learning.checkpoints import Checkpoints, Interrupts


def state(number: int, size: int = 10) -> dict[str, Any]:
    return {"step": number, "tensor": torch.full((size,), float(number)), "nested": {"list": [1, 2.5, None]}}


@pytest.fixture
def two(tmp_path: Path) -> Checkpoints:
    """The checkpoints of steps 10 and 20."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (10, 20):
        checkpoints.save(step, state(step))
    return checkpoints


def write_with_right_hash(checkpoints: Checkpoints, step: int, data: bytes) -> None:
    checkpoints.path(step).write_bytes(data)
    hashes = {"step": step, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    checkpoints.path(step).with_suffix(".json").write_text(json.dumps(hashes))


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "deep" / "checkpoints")
    path = checkpoints.save(1_234_567, state(5))
    assert path == tmp_path / "deep" / "checkpoints" / "step-1234567.pt"
    found = checkpoints.load(1_234_567)
    assert (found.path, found.step) == (path, 1_234_567)
    assert torch.equal(found.state["tensor"], torch.full((10,), 5.0))
    assert found.state["nested"] == {"list": [1, 2.5, None]}
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["bytes"] == path.stat().st_size


def test_nothing_there(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "nowhere")
    assert checkpoints.steps() == []
    assert checkpoints.newest() is None
    with pytest.raises(FileNotFoundError):
        checkpoints.load(3)


def test_steps_are_ordered_as_numbers_and_other_files_are_none(two: Checkpoints) -> None:
    two.save(1_000_000, state(1_000_000))
    two.save(999_999, state(999_999))
    for name in ("step-best.pt", "step-.pt", "step-30.pt.bak", ".tmp-abc", "notes.txt"):
        (two.folder / name).write_text("x")
    assert two.steps() == [10, 20, 999_999, 1_000_000]
    newest = two.newest()
    assert newest is not None
    assert newest.step == 1_000_000
    assert two.damaged == []


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip_a_bit,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(500)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "no hash": lambda path: path.with_suffix(".json").unlink(),
    "an empty hash": lambda path: path.with_suffix(".json").write_bytes(b""),
    "a hash that is no text": lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe\x00"),
    "a hash in another form": lambda path: path.with_suffix(".json").write_text('["sha256"]'),
    "null for a hash": lambda path: path.with_suffix(".json").write_text("null"),
    "a hash without the hash": lambda path: path.with_suffix(".json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_taken(two: Checkpoints, damage: str) -> None:
    DAMAGE[damage](two.path(20))
    with pytest.raises(RunError, match=r"step-000020\.pt' is damaged"):
        two.load(20)
    newest = two.newest()
    assert newest is not None
    assert newest.step == 10
    assert torch.equal(newest.state["tensor"], torch.full((10,), 10.0))
    assert two.damaged == [two.path(20)]


def whole_but_for_the_end(_: Checkpoints) -> bytes:
    buffer = io.BytesIO()
    torch.save(state(20, 1000), buffer)
    return buffer.getvalue()[:-50]


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80", b"garbage", b"PK\x03\x04" + bytes(100), bytes(1000), b"\x80\x02}q\x00.", whole_but_for_the_end],
)
def test_what_is_no_checkpoint_is_refused_even_with_the_right_hash(
    two: Checkpoints, data: bytes | Callable[[Checkpoints], bytes]
) -> None:
    write_with_right_hash(two, 20, data if isinstance(data, bytes) else data(two))
    newest = two.newest()
    assert newest is not None
    assert newest.step == 10
    assert two.damaged == [two.path(20)]


class Malicious:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.mark}'",))


def test_nothing_is_unpickled_but_tensors_and_plain_values(two: Checkpoints, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"step": 20, "tensor": Malicious(tmp_path / "mark")}, buffer)
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert (tmp_path / "mark").exists(), "the attack itself works"
    (tmp_path / "mark").unlink()
    write_with_right_hash(two, 20, buffer.getvalue())
    newest = two.newest()
    assert newest is not None
    assert newest.step == 10
    assert two.damaged == [two.path(20)]
    assert not (tmp_path / "mark").exists()


def test_all_damaged(two: Checkpoints) -> None:
    for step in (10, 20):
        flip_a_bit(two.path(step))
    assert two.newest() is None
    assert two.damaged == [two.path(20), two.path(10)]


def test_only_later_ones_are_looked_at(two: Checkpoints) -> None:
    assert two.newest(after=20) is None
    newest = two.newest(after=10)
    assert newest is not None
    assert newest.step == 20
    flip_a_bit(two.path(20))
    assert two.newest(after=10) is None


def files(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_the_newest_and_the_best_are_kept_and_nothing_else_stays(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(10, 70, 10):
        checkpoints.save(step, state(step), best=20 if step > 20 else None)
    assert checkpoints.steps() == [20, 50, 60]
    assert files(checkpoints) == [f"step-0000{step}.{kind}" for step in (20, 50, 60) for kind in ("json", "pt")]
    checkpoints.save(70, state(70), best=50)
    assert checkpoints.steps() == [50, 60, 70]


def test_the_one_just_written_is_never_deleted(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (90, 100):  # damaged ones that a run has passed over when it went on from step 10
        Checkpoints(tmp_path, keep=9).save(step, state(step))
        flip_a_bit(checkpoints.path(step))
    checkpoints.save(11, state(11))
    assert 11 in checkpoints.steps()
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 11


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_ones_and_no_rubbish(
    two: Checkpoints, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {path.name: path.read_bytes() for path in two.folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if place == "fsync" else (Path, "replace")), full)
        with pytest.raises(WriteError, match="No space left on device") as caught:
            two.save(30, state(30))
    assert "start the same command again" in str(caught.value)
    assert {path.name: path.read_bytes() for path in two.folder.iterdir()} == before


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files cannot grow beyond this size: the system's own error, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_when_the_system_refuses_to_write_on_the_old_one_stays(two: Checkpoints) -> None:
    with largest_file(100_000), pytest.raises(WriteError, match=r"Cannot write the checkpoint .*step-000030\.pt"):
        two.save(30, state(30, 100_000))  # 400 kB
    assert two.steps() == [10, 20]
    assert not list(two.folder.glob(".tmp-*"))
    newest = two.newest()
    assert newest is not None
    assert newest.step == 20
    assert two.damaged == []
    two.save(30, state(30, 100_000))
    assert two.load(30).state["step"] == 30


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(WriteError, match="Cannot write the checkpoint"):
        Checkpoints(tmp_path / "checkpoints").save(1, state(1))


def test_deleted_between_listing_and_reading(two: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = iter([[10, 20, 30, 40]])
    real = Checkpoints.steps
    monkeypatch.setattr(Checkpoints, "steps", lambda self: next(listed, None) or real(self))
    newest = two.newest()
    assert newest is not None
    assert newest.step == 20
    assert two.damaged == [], "one that is not there any more is not damaged"


def test_deleted_between_reading_it_and_reading_its_hash(two: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text

    def read_text(self: Path, *arguments: Any, **options: Any) -> str:
        if self.name == "step-000020.json":
            two.path(20).unlink(missing_ok=True)
            self.unlink(missing_ok=True)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    newest = two.newest()
    assert newest is not None
    assert newest.step == 10
    assert two.damaged == []


def test_what_a_kill_in_the_midst_of_writing_leaves_goes_with_the_next_checkpoint(two: Checkpoints) -> None:
    (two.folder / ".tmp-half").write_bytes(bytes(1000))
    two.save(30, state(30))
    assert two.steps() == [10, 20, 30]
    assert not list(two.folder.glob(".tmp-*"))


def test_a_signal_is_handed_on_and_ends_the_context_where_nobody_looked_at_it() -> None:
    handed: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, Interrupts(handed.append) as interrupts:
        signal.raise_signal(signal.SIGTERM)
        assert (handed, interrupts.pending) == ([signal.SIGTERM], signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_error_is_not_hidden_by_a_signal_that_came_before_it() -> None:
    with pytest.raises(RunError), Interrupts():
        signal.raise_signal(signal.SIGINT)
        raise RunError("the disk is gone")
