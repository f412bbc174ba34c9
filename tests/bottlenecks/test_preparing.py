"""Images made ready by processes: the same pixels as here, whatever is wrong with files or becomes of the processes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

pytest.importorskip("torch")
from quickstudy.backbones.engines.batched import engine_on
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.preparing import Preparers, Wanted
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import MachineError
from quickstudy.images.decoding import InputSpec, decode
from quickstudy.images.distortions import Distortions
from quickstudy.images.views import render_view
from small_backbones import SIDE, add_small_backbone

SPEC, DISTORTIONS = InputSpec(size=SIDE), Distortions()
ROWS = 40

needs_processes = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memory that has no name")


@pytest.fixture(params=[True, False], ids=["processes", "threads"])
def preparers(request: pytest.FixtureRequest) -> Iterator[Preparers]:
    made = Preparers(SPEC, DISTORTIONS, blocks=2, rows=ROWS, workers=2, apart=request.param)
    yield made
    made.close()
    assert not processes()


def processes() -> list[psutil.Process]:
    """Those that make images ready, of this process."""
    return [child for child in psutil.Process().children() if any("preparing" in part for part in child.cmdline())]


def wanted(image: Path | bytes, *views: int, expected: bytes | None = None) -> Wanted:
    return Wanted(image=image, expected=expected, views=views or (0,))


def test_the_processes_import_no_networks() -> None:
    """Start-up counts, since as many of them begin at the same time as there are cores."""
    program = (
        "import sys, quickstudy.bottlenecks.preparing; "
        "print([name for name in ('onnx', 'onnxruntime', 'pyarrow', 'scipy', 'torch') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert found.strip() == "[]"


def test_views_are_those_that_are_rendered_here(preparers: Preparers, photos: Path) -> None:
    paths = sorted(photos.rglob("*.jpg"))[:17]
    asked = [wanted(path, 0, 2) if number % 2 else wanted(path, 1) for number, path in enumerate(paths)]
    ready = preparers.fill(1, asked)
    at = 0
    for one, found in zip(asked, ready, strict=True):
        data = Path(str(one.image)).read_bytes()
        digest = hashlib.sha256(data).digest()
        assert (found.digest, found.reason) == (digest, None)
        assert min(found.seconds) > 0
        for view in one.views:
            expected = render_view(decode(data, SPEC), SPEC, digest, view, DISTORTIONS)
            np.testing.assert_array_equal(preparers.blocks[1, at], expected)
            at += 1
    assert not preparers.blocks[0].any()


def test_each_gets_what_is_wrong_with_it_and_the_others_are_ready(
    preparers: Preparers, photos: Path, tmp_path: Path
) -> None:
    good = sorted(photos.rglob("*.jpg"))[0]
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe of 1998.jpg"))
    odd.write_bytes(good.read_bytes())
    (tmp_path / "empty.jpg").write_bytes(b"")
    digest = hashlib.sha256(good.read_bytes()).digest()
    ready = preparers.fill(
        0,
        [
            wanted(tmp_path / "empty.jpg"),
            wanted(good, expected=digest),
            wanted(good, expected=bytes(32)),
            wanted(tmp_path / "missing.jpg"),
            wanted(odd),
            wanted(good.read_bytes()),
            wanted(b"no image"),
        ],
    )
    reasons = [one.reason for one in ready]
    assert ["empty file" in str(reasons[0]), "no such file" in str(reasons[3])] == [True, True]
    assert reasons[2] == "changed while it was read"
    assert "not an image" in str(reasons[6])
    assert [one.digest for one in ready] == [
        hashlib.sha256(b"").digest(),
        digest,
        None,
        None,
        digest,
        digest,
        hashlib.sha256(b"no image").digest(),
    ]
    for row in (4, 5):
        np.testing.assert_array_equal(preparers.blocks[0, row], preparers.blocks[0, 1])


@needs_processes
def test_processes_that_die_are_replaced(photos: Path) -> None:
    paths = sorted(photos.rglob("*.jpg"))[:30]
    preparers = Preparers(SPEC, DISTORTIONS, blocks=1, rows=ROWS, workers=2)
    try:
        expected = preparers.fill(0, [wanted(path) for path in paths])
        pixels = preparers.blocks.copy()
        preparers.blocks[...] = 0
        children = processes()
        assert len(children) == 2
        for child in children:
            child.kill()
        psutil.wait_procs(children, timeout=10)
        again = preparers.fill(0, [wanted(path) for path in paths])
    finally:
        preparers.close()
    assert [(one.digest, one.reason) for one in again] == [(one.digest, one.reason) for one in expected]
    np.testing.assert_array_equal(preparers.blocks, pixels)


@needs_processes
def test_an_image_at_which_processes_die_is_named_and_costs_no_other(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "deadly.jpg").write_bytes(b"")
    paths = sorted(photos.rglob("*.jpg"))[:2]
    preparers = Preparers(SPEC, DISTORTIONS, blocks=1, rows=ROWS, workers=1)
    try:
        ready = preparers.fill(0, [wanted(path) for path in (paths[0], tmp_path / "deadly.jpg", paths[1])])
    finally:
        preparers.close()
    assert [one.reason for one in ready] == [None, "kills the process that decodes it (signal SIGKILL)", None]
    assert [one.digest for one in ready] == [
        hashlib.sha256(paths[0].read_bytes()).digest(),
        None,
        hashlib.sha256(paths[1].read_bytes()).digest(),
    ]


DEADLY = """
import os, sys

def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith("deadly.jpg"):
        os.kill(os.getpid(), 9)

sys.addaudithook(hook)
"""


@needs_processes
def test_threads_do_it_where_a_sandbox_has_no_memory_to_share(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_name: str) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refuse)
    preparers = Preparers(SPEC, DISTORTIONS, blocks=1, rows=ROWS, workers=2)
    wanted = [Wanted(image=path, expected=None, views=(0,)) for path in sorted(photos.rglob("*.jpg"))[:20]]
    assert [one.reason for one in preparers.fill(0, wanted)] == [None] * 20
    assert not processes()
    preparers.close()


@needs_processes
def test_processes_that_cannot_start_are_an_error(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/nowhere"])
    preparers = Preparers(SPEC, DISTORTIONS, blocks=1, rows=ROWS, workers=1)
    with pytest.raises(MachineError, match="could not be started"):
        preparers.fill(0, [wanted(sorted(photos.rglob("*.jpg"))[0])])
    preparers.close()


RUN = """
import sys
from pathlib import Path
from quickstudy.backbones.loading import load_backbone
from quickstudy.backbones.engines.batched import engine_on
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.progress import Progress

class Told(Progress):
    def start(self, what, total): print("begun", flush=True)
    def update(self, *, done, note=""): print(done, flush=True)
    def finish(self): pass

paths = sorted(Path(sys.argv[1]).rglob("*.jpg"))
extract(paths * 40, load_backbone("small", Path(sys.argv[2])), Store(Path(sys.argv[3])), views=3,
        engine=engine_on("cpu"), progress=Told())
"""


@pytest.mark.heavy
@needs_processes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_behind_by_a_run_that_is_ended(photos: Path, tmp_path: Path, number: int) -> None:
    net = add_small_backbone(tmp_path / "cache")
    command = [sys.executable, "-c", RUN, *map(str, (photos, tmp_path / "cache", tmp_path / "store"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        assert next(line for line in process.stdout if line.strip().isdigit() and int(line) > 0)
        children = psutil.Process(process.pid).children()
        process.send_signal(number)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    store = Store(tmp_path / "store")
    assert store.verify().damaged == ()
    paths = sorted(photos.rglob("*.jpg"))
    found = extract(paths, net, store, views=3, engine=engine_on("cpu"))
    assert (found.computed + found.cached, found.reasons) == (4 * len(paths), {})
