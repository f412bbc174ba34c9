"""Extraction: each bottleneck computed once, whoever asks and however often, and always the right one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.named import Prefix, engine_named
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import Extraction, extract, source_spec
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import StoreError
from quickstudy.images.decoding import decode, to_input
from quickstudy.images.distortions import Distortions
from quickstudy.images.views import render_view
from resting_files import index_as_resting
from small_backbones import add_small_backbone


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The default backbone, for what takes its time or its size."""
    return load_backbone("efficientnet_lite0", tmp_path_factory.mktemp("lite0"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The small backbone, which passes photos in no time."""
    return add_small_backbone(tmp_path_factory.mktemp("small"))


@pytest.fixture
def store(cache: Path) -> Store:
    return Store(cache / "bottlenecks")


@pytest.fixture
def paths(photos: Path) -> list[Path]:
    """All photos, modified long ago, one after the other."""
    found = sorted(photos.rglob("*.jpg"))
    for number, path in enumerate(found):
        date(path, number)
    return found


def date(path: Path, number: int = 0) -> None:
    os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))


def sha256(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def all_of(extraction: Extraction, view: int = 0) -> NDArray[Any]:
    digests = [digest for digest in extraction.digests if digest is not None]
    return extraction.gather(digests, view)


def by_hand(paths: Sequence[Path], backbone: Backbone) -> NDArray[Any]:
    """The bottlenecks, one image after the other and without any store."""
    prefix = Prefix(backbone, backbone.cut, backbone.cut_shape)
    pixels = [to_input(decode(path.read_bytes(), backbone.input), backbone.input) for path in paths]
    return np.concatenate([prefix(image[None]) for image in pixels])


def test_bottlenecks_are_those_of_the_backbone(paths: list[Path], lite0: Backbone, store: Store) -> None:
    expected = by_hand(paths[::5], lite0)
    halves, singles = (extract(paths[::5], lite0, store, dtype=dtype) for dtype in ("float16", "float32"))
    np.testing.assert_array_equal(all_of(singles), expected)
    np.testing.assert_array_equal(all_of(halves), expected.astype(np.float16))
    assert list(halves.digests) == [sha256(path) for path in paths[::5]]


def test_each_image_passes_once(paths: list[Path], backbone: Backbone, store: Store) -> None:
    first = extract(paths[:26], backbone, store)
    again = extract(paths[:26], backbone, store)
    more = extract(paths, backbone, store)
    assert (first.computed, first.cached) == (26, 0)
    assert (again.computed, again.cached) == (0, 26)
    assert (more.computed, more.cached) == (10, 26)
    np.testing.assert_array_equal(all_of(first), all_of(again))
    np.testing.assert_array_equal(all_of(first), all_of(more)[:26])


def test_the_number_of_threads_does_not_change_a_bit(paths: list[Path], lite0: Backbone, tmp_path: Path) -> None:
    runs = [extract(paths[::3], lite0, Store(tmp_path / str(n)), views=1, threads=n) for n in (1, 2, 5)]
    for run in runs[1:]:
        assert run.digests == runs[0].digests
        for view in (0, 1):
            assert all_of(run, view).tobytes() == all_of(runs[0], view).tobytes()


def test_the_order_of_the_files_does_not_matter(paths: list[Path], backbone: Backbone, tmp_path: Path) -> None:
    forth, back = (extract(these, backbone, Store(tmp_path / f"{these[0].stem}")) for these in (paths, paths[::-1]))
    np.testing.assert_array_equal(all_of(forth), all_of(back)[::-1])


def test_images_are_taken_in_the_order_that_is_asked_for_and_told_once_they_are_kept(
    paths: list[Path], backbone: Backbone, store: Store
) -> None:
    told: list[bytes] = []

    def kept(keys: Sequence[bytes], values: Sequence[NDArray[np.floating]]) -> None:
        source = store.source(source_spec(backbone, "float16"))
        assert np.array_equal(source.gather(keys), np.stack(values))
        told.extend(keys)

    found = extract(paths, backbone, store, order=iter([2, 0]), kept=kept, background=True, threads=1)
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    assert told == [digests[2], digests[0]]
    assert [digest is not None for digest in found.digests] == [number in (0, 2) for number in range(len(paths))]
    assert found.computed == 2


def test_copies_are_computed_once(paths: list[Path], backbone: Backbone, store: Store, tmp_path: Path) -> None:
    copies = [Path(shutil.copy(path, tmp_path / f"copy-{path.parent.name}-{path.name}")) for path in paths[:8]]
    mixed = [path for pair in zip(paths[:8], copies, strict=True) for path in pair]
    extraction = extract(mixed, backbone, store, threads=4)
    assert (extraction.computed, extraction.cached) == (8, 8)
    assert extraction.digests[::2] == extraction.digests[1::2]
    assert all_of(extraction).shape == (16, *backbone.cut_shape)


def test_bytes_are_known_by_their_content_like_files(paths: list[Path], backbone: Backbone, store: Store) -> None:
    extract(paths[:3], backbone, store)
    extraction = extract([paths[0].read_bytes(), paths[5].read_bytes()], backbone, store)
    assert (extraction.computed, extraction.cached) == (1, 1)
    assert list(extraction.digests) == [sha256(paths[0]), sha256(paths[5])]


def test_no_images_are_no_trouble(backbone: Backbone, store: Store) -> None:
    extraction = extract([], backbone, store)
    assert (extraction.computed, extraction.cached, extraction.digests) == (0, 0, ())
    assert extraction.gather([]).shape == (0, *backbone.cut_shape)


def test_what_cannot_be_used_gets_its_reason_and_stops_nobody(
    paths: list[Path], backbone: Backbone, store: Store, tmp_path: Path
) -> None:
    files = {
        "empty.jpg": b"",
        "page.jpg": b"<!DOCTYPE html><html>no such photo</html>",
        "noise.png": bytes(range(256)) * 20,
        "cut.jpg": paths[0].read_bytes()[:3000],
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.jpg").mkdir()
    bad = [*(tmp_path / name for name in files), tmp_path / "missing.jpg", tmp_path / "folder.jpg"]
    mixed = [paths[0], *bad, paths[1]]
    extraction = extract(mixed, backbone, store)
    assert extraction.computed == 2
    assert [digest is None for digest in extraction.digests] == [False, *[True] * len(bad), False]
    reasons = [extraction.reasons[number] for number in range(1, len(bad) + 1)]
    assert "empty file (0 bytes)" in reasons[0]
    assert "an HTML page" in reasons[1]
    assert "not an image" in reasons[2]
    assert "truncated" in reasons[3]
    assert "no such file" in reasons[4]
    assert "unreadable" in reasons[5]
    again = extract(mixed, backbone, store)
    assert (again.computed, again.reasons) == (0, extraction.reasons)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_copy_of_an_undecodable_file_gets_the_same_reason(
    paths: list[Path], backbone: Backbone, store: Store, tmp_path: Path, threads: int
) -> None:
    bad = [tmp_path / f"bad-{number}.jpg" for number in range(6)]
    for path in bad:
        path.write_bytes(paths[0].read_bytes()[:2500])
    extraction = extract([*bad, paths[0]], backbone, store, threads=threads)
    assert extraction.digests[:-1] == (None,) * 6
    assert len(set(extraction.reasons.values())) == 1
    assert sorted(extraction.reasons) == list(range(6))
    assert extraction.computed == 1


def test_views_are_cached_like_plain_images(paths: list[Path], backbone: Backbone, store: Store) -> None:
    some = paths[::6]
    first = extract(some, backbone, store, views=2)
    again = extract(some, backbone, store, views=2)
    more = extract(some, backbone, store, views=3)
    other = extract(some, backbone, store, views=2, distortions=Distortions(brightness=0.3))
    assert [run.computed for run in (first, again, more, other)] == [3 * len(some), 0, len(some), 2 * len(some)]
    assert (again.cached, more.cached, other.cached) == (3 * len(some), 3 * len(some), len(some))
    plain, one, two = (all_of(first, view) for view in range(3))
    np.testing.assert_array_equal(one, all_of(more, 1))
    for left, right in ((plain, one), (one, two), (one, all_of(other, 1))):
        assert (left != right).any(axis=1).all()
    np.testing.assert_array_equal(plain, all_of(other, 0))
    prefix = Prefix(backbone, backbone.cut, backbone.cut_shape)
    decoded = decode(some[2].read_bytes(), backbone.input)
    pixels = render_view(decoded, backbone.input, sha256(some[2]), 2, Distortions())
    np.testing.assert_array_equal(two[2], prefix(pixels[None])[0].astype(np.float16))


def test_another_backbone_cut_or_precision_has_bottlenecks_of_its_own(
    paths: list[Path], lite0: Backbone, store: Store
) -> None:
    some = paths[:2]
    extract(some, lite0, store)
    assert extract(some, lite0, store, dtype="float32").computed == 2
    deeper = replace(lite0, cut="logits", cut_shape=(1000,))
    assert extract(some, deeper, store).computed == 2
    assert extract(some, replace(lite0, fingerprint="0" * 64), store).computed == 2
    assert extract(some, lite0, store).computed == 0
    assert len(store.summaries()) == 4


def test_activations_keep_their_shape(paths: list[Path], lite0: Backbone, store: Store) -> None:
    side = -(-lite0.input.size // 32)
    cut = replace(lite0, cut="head", cut_shape=(1280, side, side))
    extraction = extract(paths[:2], cut, store, dtype="float32")
    assert all_of(extraction).shape == (2, 1280, side, side)
    pooled = all_of(extraction).mean(axis=(2, 3))
    np.testing.assert_allclose(pooled, by_hand(paths[:2], lite0), rtol=1e-4, atol=1e-5)


def test_renamed_moved_and_touched_files_need_no_forward_pass(
    paths: list[Path], photos: Path, backbone: Backbone, store: Store, tmp_path: Path
) -> None:
    before = extract(paths, backbone, store)
    moved = photos.rename(tmp_path / "holiday")
    (moved / "discs").rename(moved / "circles")
    for number, path in enumerate(sorted((moved / "circles").glob("*.jpg"))):
        path.rename(path.with_name(f"renamed-{number}.jpeg"))
    now = sorted(path for path in moved.rglob("*.jp*g"))
    for path in now[::2]:
        path.touch()
    after = extract(now, backbone, store)
    assert (after.computed, after.cached) == (0, 36)
    assert set(after.digests) == set(before.digests)


def test_unchanged_files_are_not_read_again(paths: list[Path], backbone: Backbone, store: Store) -> None:
    first = extract(paths[:2], backbone, store)
    # A false entry tells: who reads the file finds the true hash, who trusts the index the false one.
    index_as_resting(store.index_path, paths[0], digest=first.digests[1])
    assert extract(paths[:2], backbone, store).digests == (first.digests[1], first.digests[1])
    paths[0].touch()
    assert extract(paths[:2], backbone, store).digests == first.digests


@pytest.mark.parametrize("damage", ["missing", "garbage", "folder"])
def test_without_its_stat_index_extraction_is_slower_but_right(
    paths: list[Path], backbone: Backbone, store: Store, damage: str
) -> None:
    first = extract(paths[:4], backbone, store)
    for path in store.folder.glob("files.sqlite*"):
        path.unlink()
    if damage == "garbage":
        store.index_path.write_bytes(b"SQLite format 3\0" + b"garbage" * 1000)
    elif damage == "folder":
        store.index_path.mkdir()
    second = extract(paths[:4], backbone, store)
    assert (second.computed, second.digests) == (0, first.digests)


class TestChangedFiles:
    """What the stat index guarantees: with path, size, times of change and inode as before, a file is as before.

    So it notices whatever writes a new file in place of the old one or into it, even where a program puts the time of
    modification back, and, as files changed within two seconds of being indexed are not trusted, whatever follows
    within the grain of a file system's clock.
    """

    def change(self, path: Path, other: Path, *, replace_file: bool) -> None:
        """Give `path` other content of the same size, and its old time."""
        size, before = path.stat().st_size, path.stat()
        data = other.read_bytes()
        data += bytes(size - len(data))  # JPEG decoders ignore what follows the picture
        if replace_file:
            fresh = path.with_name("fresh")
            fresh.write_bytes(data)
            fresh.replace(path)
        else:
            with path.open("r+b") as file:
                file.write(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == size
        assert path.stat().st_mtime_ns == before.st_mtime_ns

    @pytest.fixture
    def pair(self, paths: list[Path]) -> tuple[Path, Path]:
        """The largest file and the smallest one, which fits into it."""
        by_size = sorted(paths, key=lambda path: path.stat().st_size)
        return by_size[-1], by_size[0]

    def test_a_file_put_in_its_place_is_noticed(
        self, pair: tuple[Path, Path], backbone: Backbone, store: Store
    ) -> None:
        path, other = pair
        extract([path], backbone, store)
        index_as_resting(store.index_path, path)
        self.change(path, other, replace_file=True)
        after = extract([path], backbone, store)
        assert after.computed == 1
        self.assert_right(after, path, backbone)

    def test_new_content_with_a_new_time_is_noticed(
        self, pair: tuple[Path, Path], backbone: Backbone, store: Store
    ) -> None:
        path, other = pair
        extract([path], backbone, store)
        index_as_resting(store.index_path, path)
        self.change(path, other, replace_file=False)
        date(path, 1000)
        self.assert_right(extract([path], backbone, store), path, backbone)

    def test_new_content_within_the_grain_of_the_clock_is_noticed(
        self, pair: tuple[Path, Path], backbone: Backbone, store: Store
    ) -> None:
        path, other = pair
        path.touch()
        extract([path], backbone, store)
        self.change(path, other, replace_file=False)
        self.assert_right(extract([path], backbone, store), path, backbone)

    def test_new_content_in_place_with_size_and_time_put_back_is_noticed(
        self, pair: tuple[Path, Path], backbone: Backbone, store: Store
    ) -> None:
        path, other = pair
        extract([path], backbone, store)
        index_as_resting(store.index_path, path)
        time.sleep(0.05)  # some systems' clocks tick every 4 to 16 ms
        self.change(path, other, replace_file=False)
        after = extract([path], backbone, store)
        assert after.computed == 1
        self.assert_right(after, path, backbone)

    def test_a_disguised_change_is_noticed_when_the_file_is_read(
        self, pair: tuple[Path, Path], backbone: Backbone, store: Store, tmp_path: Path
    ) -> None:
        path, other = pair
        former = Path(shutil.copy(path, tmp_path / "former.jpg"))
        extract([path], backbone, store)
        self.change(path, other, replace_file=False)
        index_as_resting(store.index_path, path, digest=sha256(former))  # what no stamp could tell
        store.prune()
        after = extract([path, former], backbone, store, threads=1)
        assert after.reasons == {}
        assert after.computed == 2
        assert after.digests[1] == sha256(former)
        np.testing.assert_array_equal(all_of(after), by_hand([path, former], backbone).astype(np.float16))
        index_as_resting(store.index_path, path)
        self.assert_right(extract([path], backbone, store), path, backbone)

    def assert_right(self, extraction: Extraction, path: Path, backbone: Backbone) -> None:
        assert extraction.digests == (sha256(path),)
        np.testing.assert_array_equal(all_of(extraction), by_hand([path], backbone).astype(np.float16))


def test_what_a_damaged_shard_held_is_computed_again(paths: list[Path], backbone: Backbone, store: Store) -> None:
    first = extract(paths[:3], backbone, store)
    before = set(first.source.folder.glob("*.arrow"))
    [victim] = set(extract(paths[3:7], backbone, store).source.folder.glob("*.arrow")) - before
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 16
    victim.unlink()
    victim.write_bytes(data)
    assert store.verify(remove=True).damaged == (victim,)
    after = extract(paths[:7], backbone, store)
    assert (after.computed, after.cached) == (4, 3)
    np.testing.assert_array_equal(all_of(after), by_hand(paths[:7], backbone).astype(np.float16))
    assert store.verify().damaged == ()


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let writes beyond this size fail, as they would on a full disk."""
    resource = pytest.importorskip("resource", reason="no resource limits on this system")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_what_fitted_is_kept(paths: list[Path], lite0: Backbone, store: Store) -> None:
    extract(paths[:5], lite0, store)
    with largest_file(3_000), pytest.raises(StoreError, match=r"File too large.*--cache or QUICKSTUDY_CACHE"):
        extract(paths, lite0, store)
    assert [path for path in store.folder.rglob("*") if path.name.startswith(".tmp-")] == []
    assert store.verify().damaged == ()
    after = extract(paths, lite0, store)
    assert (after.computed, after.cached) == (31, 5)


def test_a_store_too_full_to_be_compacted_still_serves(paths: list[Path], lite0: Backbone, store: Store) -> None:
    with largest_file(50_000):
        for start in range(0, 36, 3):
            assert extract(paths[start : start + 3], lite0, store).computed == 3
        extraction = extract(paths, lite0, store)
    assert extraction.computed == 0
    assert len(list(extraction.source.folder.glob("*.arrow"))) == 12
    after = extract(paths, lite0, store)
    assert len(list(after.source.folder.glob("*.arrow"))) == 1
    np.testing.assert_array_equal(all_of(after), all_of(extraction))


def test_a_store_that_cannot_be_made_is_told_before_anything_is_computed(
    paths: list[Path], backbone: Backbone, tmp_path: Path
) -> None:
    (tmp_path / "occupied").write_text("")
    with pytest.raises(StoreError, match="Cannot read the store"):
        extract(paths, backbone, Store(tmp_path / "occupied" / "store"))


class _Counter:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def start(self, task: str, total: int) -> None:
        self.calls.append((f"start {task}", total))

    def update(self, *, done: int, note: str) -> None:
        self.calls.append(("update", done))

    def finish(self) -> None:
        self.calls.append(("finish", 0))


def test_progress_is_told_from_start_to_end(paths: list[Path], backbone: Backbone, store: Store) -> None:
    progress = _Counter()
    extract(paths, backbone, store, progress=progress)
    assert progress.calls[0] == ("start bottlenecks", 36)
    assert progress.calls[-2:] == [("update", 36), ("finish", 0)]
    done = [count for name, count in progress.calls if name == "update"]
    assert done == sorted(done)


INTERRUPTED = """
import sys
import time
from pathlib import Path
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store

class Told:
    def start(self, task, total): pass
    def update(self, *, done, note): print(done, flush=True)
    def finish(self): print("finished", flush=True)

paths = sorted(Path(sys.argv[1]).rglob("*.jpg"))
backbone = load_backbone("efficientnet_lite0", Path(sys.argv[2]))
extract(paths, backbone, Store(Path(sys.argv[3])), views=4, threads=1, progress=Told())
"""


@pytest.mark.skipif(os.name == "nt", reason="a signal to a thread")
def test_no_thread_computes_any_more_when_a_signal_has_ended_an_extraction(
    paths: list[Path], backbone: Backbone, store: Store
) -> None:
    engine, inside, computing = engine_named("onnxruntime"), threading.Semaphore(0), set[int]()

    class Slow:
        def __init__(self, *arguments: Any) -> None:
            self.prefix = engine.open(*arguments)
            self.close = self.prefix.close

        def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            computing.add(threading.get_ident())
            inside.release()
            time.sleep(0.5)
            result = self.prefix(images)
            computing.discard(threading.get_ident())
            return result

    def interrupt() -> None:
        inside.acquire()
        time.sleep(0.1)  # the main thread waits again
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    asking = threading.Thread(target=interrupt)
    asking.start()
    with pytest.raises(KeyboardInterrupt):
        extract(paths, backbone, store, engine=replace(engine, open=Slow), threads=1)
    asking.join()
    assert computing == set()


@pytest.mark.heavy
def test_an_interrupt_keeps_what_was_computed(paths: list[Path], lite0: Backbone, store: Store) -> None:
    command = [
        sys.executable,
        "-c",
        INTERRUPTED,
        *map(str, (paths[0].parents[1], lite0.path.parents[1], store.folder)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        done = next(int(line) for line in process.stdout if line.strip().isdigit() and int(line) >= 3)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert "KeyboardInterrupt" in errors
    assert "finished" in output
    assert process.returncode != 0
    assert store.verify().damaged == ()
    after = extract(paths, lite0, store, views=4)
    assert 5 * done <= after.cached < 5 * 36
    assert after.computed + after.cached == 5 * 36


CROWD = """
import hashlib, sys
from pathlib import Path
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store

paths = sorted(Path(sys.argv[1]).rglob("*.jpg"))
backbone = load_backbone("small", Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
extraction = extract(paths, backbone, Store(Path(sys.argv[3])), threads=2)
print(hashlib.sha256(extraction.gather(extraction.digests).tobytes()).hexdigest(), extraction.computed)
"""


@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_several_processes_fill_one_store_at_once(
    paths: list[Path], backbone: Backbone, store: Store, tmp_path: Path, count: int
) -> None:
    alone = extract(paths, backbone, Store(tmp_path / "alone"))
    command = [sys.executable, "-c", CROWD, *map(str, (paths[0].parents[1], backbone.path.parents[1], store.folder))]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        results = []
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            output, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
            results.append(output.split())
    finally:
        for process in processes:
            process.kill()
            process.wait()
    expected = hashlib.sha256(all_of(alone).tobytes()).hexdigest()
    assert {digest for digest, _ in results} == {expected}
    assert sum(int(computed) for _, computed in results) >= 36
    assert store.verify().damaged == ()
    [summary] = store.summaries()
    assert summary.bottlenecks == 36
    assert [path for path in store.folder.rglob("*") if path.name.startswith(".tmp-")] == []
    assert extract(paths, backbone, store).computed == 0
