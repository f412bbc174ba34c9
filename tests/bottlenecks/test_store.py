"""The store: what goes in comes out, whatever is damaged is found, and nothing is ever written by half."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quickstudy.bottlenecks.shards import SourceSpec
from quickstudy.bottlenecks.store import Source, Store
from quickstudy.errors import StoreError

SPEC = SourceSpec(backbone="net", fingerprint="f" * 64, cut="features", input={"size": 8, "crop": 1.0}, shape=(4,))


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def keys(numbers: Sequence[int]) -> list[bytes]:
    return [key(number) for number in numbers]


def rows(numbers: Sequence[int], width: int = 4) -> NDArray[np.float16]:
    """The values that belong to the keys of the same numbers."""
    return (np.array(numbers)[:, None] + np.arange(width) / 4).astype(np.float16)


def fill(source: Source, shards: int, each: int = 3) -> list[int]:
    """Append so many shards; the numbers of all their keys."""
    for shard in range(shards):
        numbers = range(shard * each, (shard + 1) * each)
        source.append(keys(numbers), rows(numbers))
    return list(range(shards * each))


def shards_of(source: Source) -> list[Path]:
    return sorted(source.folder.glob("*.arrow"))


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".tmp-")]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def source(store: Store) -> Source:
    return store.source(SPEC)


@contextmanager
def limited(kind: str, soft: int) -> Iterator[None]:
    """Lower one of this process's resource limits for a while."""
    resource = pytest.importorskip("resource", reason="no resource limits on this system")
    number = getattr(resource, kind)
    before = resource.getrlimit(number)
    resource.setrlimit(number, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(number, before)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", [(1,), (4,), (1280,), (3, 5, 2), (1, 7, 7)])
def test_what_goes_in_comes_out(store: Store, dtype: str, shape: tuple[int, ...]) -> None:
    spec = replace(SPEC, dtype=dtype, shape=shape)
    values = np.random.Generator(np.random.PCG64(0)).normal(size=(6, *shape)).astype(dtype)
    values.flat[0], values.flat[-1] = np.inf, -0.0
    store.source(spec).append(keys(range(6)), values)
    for source in (store.source(spec), Store(store.folder).source(spec)):
        gathered = source.gather(keys([5, 0, 0, 3]))
        assert gathered.dtype == dtype
        assert gathered.shape == (4, *shape)
        assert gathered.tobytes() == values[[5, 0, 0, 3]].tobytes()
    assert store.source(spec).gather([]).shape == (0, *shape)


@hypothesis_settings(max_examples=40)
@given(
    batches=st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=14),
    order=st.lists(st.integers(0, 10_000), max_size=60),
    compact=st.booleans(),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_any_batches_gathered_in_any_order_equal_what_was_put_in(
    batches: list[list[int]], order: list[int], compact: bool, dtype: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, spec = Store(Path(folder)), replace(SPEC, dtype=dtype)
        source = store.source(spec)
        for batch in batches:
            source.append(keys(batch), rows(batch))
        if compact:
            store.compact()
        known = sorted({number for batch in batches for number in batch})
        wanted = [known[number % len(known)] for number in order] if known else []
        for reader in (source, store.source(spec)):
            assert len(reader) == len(known)
            assert {number for number in range(41) if key(number) in reader} == set(known)
            expected = rows(wanted) if wanted else np.empty((0, 4))
            np.testing.assert_array_equal(reader.gather(keys(wanted)), expected)
        assert store.verify().damaged == ()


def test_a_missing_key_is_a_key_error(source: Source) -> None:
    fill(source, 1)
    with pytest.raises(KeyError):
        source.gather(keys([0, 99]))


def test_gathered_bottlenecks_are_the_callers_to_change(source: Source) -> None:
    fill(source, 1)
    source.gather(keys([0]))[:] = 99
    np.testing.assert_array_equal(source.gather(keys([0])), rows([0]))


def test_a_shard_is_named_by_the_hash_of_its_bytes(source: Source) -> None:
    fill(source, 3)
    assert len(shards_of(source)) == 3
    for path in shards_of(source):
        assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_bottlenecks_twice_are_one_shard(source: Source) -> None:
    fill(source, 1)
    fill(source, 1)
    assert len(shards_of(source)) == 1
    assert len(source) == 3


def test_nothing_is_written_before_there_is_a_bottleneck(store: Store) -> None:
    source = store.source(SPEC)
    source.append([], np.empty((0, 4), np.float16))
    assert store.summaries() == []
    assert store.verify().shards == store.compact() == 0
    assert not store.folder.exists()


def test_sources_differ_by_all_that_decides_the_bottleneck() -> None:
    others = [
        replace(SPEC, fingerprint="e" * 64),
        replace(SPEC, cut="head"),
        replace(SPEC, input={"size": 9, "crop": 1.0}),
        replace(SPEC, shape=(2, 2)),
        replace(SPEC, dtype="float32"),
    ]
    assert len({spec.identity for spec in [SPEC, *others]}) == 6
    assert replace(SPEC, backbone="renamed").identity == SPEC.identity
    assert replace(SPEC, input={"crop": 1.0, "size": 8}).identity == SPEC.identity


def test_a_shard_of_another_source_is_not_read(store: Store, source: Source) -> None:
    fill(source, 1)
    other = store.source(replace(SPEC, cut="head"))
    other.append(keys([7]), rows([7]))
    [stray] = shards_of(other)
    (source.folder / stray.name).write_bytes(stray.read_bytes())
    assert key(7) not in store.source(SPEC)
    assert store.verify().damaged == (source.folder / stray.name,)


def test_values_of_another_width_are_refused(source: Source) -> None:
    with pytest.raises(StoreError, match="A bottleneck of 'net' has 5 values; expected 4"):
        source.append(keys([0]), rows([0], width=5))
    assert not source.folder.exists()


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_is_found_and_never_stops_reading(store: Store, source: Source, step: int) -> None:
    fill(source, 2)
    victim, other = shards_of(source)
    whole = victim.read_bytes()
    intact = [number for number in range(6) if key(number) in keys_in(other, source)]
    # Many bits all over, and more of the last ones, which say where all else is.
    for place in [*range(0, 8 * len(whole), 11 * step), *range(8 * (len(whole) - 300), 8 * len(whole), step)]:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        replace_bytes(victim, bytes(damaged))
        reader = store.source(SPEC)
        np.testing.assert_array_equal(reader.gather(keys(intact)), rows(intact))
        assert store.verify().damaged == (victim,)
    replace_bytes(victim, whole)
    assert store.verify().damaged == ()


def test_a_truncated_shard_is_found_at_any_length_and_never_stops_reading(store: Store, source: Source) -> None:
    fill(source, 2)
    victim, other = shards_of(source)
    whole = victim.read_bytes()
    intact = [number for number in range(6) if key(number) in keys_in(other, source)]
    for length in range(0, len(whole), 7):
        replace_bytes(victim, whole[:length])
        reader = store.source(SPEC)
        assert reader.damaged == [victim]
        assert len(reader) == 3
        np.testing.assert_array_equal(reader.gather(keys(intact)), rows(intact))
        assert store.verify().damaged == (victim,)


def keys_in(path: Path, source: Source) -> set[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / source.folder.name
        alone.mkdir()
        (alone / path.name).write_bytes(path.read_bytes())
        reader = Source(alone, source.spec)
        return {key(number) for number in range(100) if key(number) in reader}


def replace_bytes(path: Path, data: bytes) -> None:
    """As bit rot would: under the same name. A new file, because the old one may be mapped."""
    path.unlink()
    path.write_bytes(data)


def test_a_removed_shard_can_be_filled_again(store: Store, source: Source) -> None:
    fill(source, 2)
    victim = shards_of(source)[0]
    lost = sorted(number for number in range(6) if key(number) in keys_in(victim, source))
    whole = victim.read_bytes()
    replace_bytes(victim, whole[:-20] + bytes([whole[-20] ^ 4]) + whole[-19:])
    result = store.verify(remove=True)
    assert (result.shards, result.damaged) == (2, (victim,))
    assert not victim.exists()
    after = store.source(SPEC)
    assert [number for number in range(6) if key(number) not in after] == lost
    after.append(keys(lost), rows(lost))
    np.testing.assert_array_equal(store.source(SPEC).gather(keys(range(6))), rows(range(6)))
    assert store.verify().damaged == ()


def test_half_written_files_are_ignored_and_swept_up_once_stale(store: Store, source: Source) -> None:
    fill(source, 1)
    [shard] = shards_of(source)
    stale, fresh = source.folder / ".tmp-stale", source.folder / ".tmp-fresh"
    for path in (stale, fresh):
        path.write_bytes(shard.read_bytes()[:-9])
    os.utime(stale, (time.time() - 7200,) * 2)
    assert len(store.source(SPEC)) == 3
    assert store.verify().damaged == ()
    store.compact()
    assert leftovers(store.folder) == [fresh]  # whose writer may be at work


def test_compaction_keeps_every_bottleneck(store: Store, source: Source) -> None:
    numbers = fill(source, 12)
    source.append(keys([0, 35, 36]), rows([0, 35, 36]))
    assert store.compact() == 13
    reader = store.source(SPEC)
    assert len(shards_of(source)) == 1
    np.testing.assert_array_equal(reader.gather(keys([*numbers, 36])), rows([*numbers, 36]))
    assert store.verify().damaged == ()
    assert store.compact() == 0


def test_few_shards_are_left_alone(store: Store, source: Source) -> None:
    fill(source, 8)
    before = shards_of(source)
    assert store.compact() == 0
    assert shards_of(source) == before


def test_the_merged_shard_does_not_depend_on_how_bottlenecks_were_batched(tmp_path: Path) -> None:
    names = []
    for each in (1, 2):
        store = Store(tmp_path / str(each))
        source = store.source(SPEC)
        fill(source, 24 // each, each)
        store.compact()
        names.append([path.name for path in shards_of(source)])
    assert names[0] == names[1]
    assert len(names[0]) == 1


def test_a_reader_goes_on_while_its_shards_are_compacted_away(store: Store, source: Source) -> None:
    numbers = fill(source, 10)
    reader, writer = store.source(SPEC), store.source(SPEC)
    assert store.compact() == 10
    np.testing.assert_array_equal(reader.gather(keys(numbers)), rows(numbers))
    writer.append(keys([77]), rows([77]))
    np.testing.assert_array_equal(writer.gather(keys([*numbers, 77])), rows([*numbers, 77]))
    reader.load()
    np.testing.assert_array_equal(reader.gather(keys([*numbers, 77])), rows([*numbers, 77]))


def test_a_damaged_shard_is_not_merged_where_it_could_no_longer_be_found(store: Store, source: Source) -> None:
    numbers = fill(source, 10)
    victim = shards_of(source)[4]
    lost = {number for number in numbers if key(number) in keys_in(victim, source)}
    data = bytearray(victim.read_bytes())
    data[data.index(rows([min(lost)]).tobytes())] ^= 1  # a value, so that it reads without complaint
    replace_bytes(victim, bytes(data))
    assert not store.source(SPEC).damaged
    assert store.compact() == 9
    assert store.verify(remove=True).damaged == (victim,)
    kept = [number for number in numbers if number not in lost]
    np.testing.assert_array_equal(store.source(SPEC).gather(keys(kept)), rows(kept))


def test_the_whole_copy_of_a_bottleneck_is_merged_not_the_damaged_one(store: Store, source: Source) -> None:
    numbers = fill(source, 10)
    source.append(keys([4, 99]), rows([4, 99]))
    for victim in shards_of(source):
        whole = victim.read_bytes()
        if not keys_in(victim, source) >= set(keys([4, 99])):
            continue
        data = bytearray(whole)
        data[data.index(rows([4]).tobytes())] ^= 1
        replace_bytes(victim, bytes(data))
    assert store.compact() == 10
    store.verify(remove=True)
    np.testing.assert_array_equal(store.source(SPEC).gather(keys(numbers)), rows(numbers))


def test_shards_that_may_not_be_deleted_are_merged_once_and_stay(
    store: Store, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where they belong to somebody else, or on Windows while they are mapped."""
    numbers = fill(source, 10)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        store.compact()
    assert len(shards_of(source)) == 11
    np.testing.assert_array_equal(store.source(SPEC).gather(keys(numbers)), rows(numbers))
    assert store.verify().damaged == ()
    store.compact()
    assert len(shards_of(source)) == 1


def test_writers_readers_and_compaction_get_along(store: Store, source: Source) -> None:
    """Threads stand in for processes here; they share nothing but the folder."""
    failures: list[BaseException] = []
    done = threading.Event()

    def compact() -> None:
        while not done.is_set():
            store.source(SPEC).compact()

    def write(first: int) -> None:
        mine = store.source(SPEC)
        for number in range(first, first + 40):
            mine.append(keys([number]), rows([number]))
        np.testing.assert_array_equal(mine.gather(keys(range(first, first + 40))), rows(range(first, first + 40)))

    def guarded(work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            failures.append(error)

    compactors = [threading.Thread(target=guarded, args=(compact,)) for _ in range(2)]
    writers = [threading.Thread(target=guarded, args=(write, first)) for first in (0, 40, 80)]
    for thread in [*compactors, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in compactors:
        thread.join()
    assert failures == []
    np.testing.assert_array_equal(store.source(SPEC).gather(keys(range(120))), rows(range(120)))
    assert store.verify().damaged == ()
    assert leftovers(store.folder) == []


def test_many_shards_need_few_open_files(source: Source) -> None:
    in_use = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 64
    with limited("RLIMIT_NOFILE", in_use + 16):
        numbers = fill(source, 60, each=1)
        reader = Source(source.folder, SPEC)
    assert reader.damaged == []
    np.testing.assert_array_equal(reader.gather(keys(numbers)), rows(numbers))


def test_a_summary_says_what_a_source_holds(store: Store, source: Source) -> None:
    fill(source, 2)
    [summary] = store.summaries()
    assert (summary.identity, summary.backbone, summary.cut) == (SPEC.identity, "net", "features")
    assert (summary.bottlenecks, summary.shards, summary.dtype) == (6, 2, "float16")
    assert summary.size_bytes == sum(path.stat().st_size for path in shards_of(source))
    assert summary.used == max(path.stat().st_mtime for path in shards_of(source))


def test_pruning_by_id_deletes_that_source_alone(store: Store, source: Source) -> None:
    fill(source, 1)
    other = store.source(replace(SPEC, cut="head"))
    fill(other, 1)
    [gone] = store.prune(identity=SPEC.identity[:10])
    assert gone.identity == SPEC.identity
    assert not source.folder.exists()
    assert [summary.cut for summary in store.summaries()] == ["head"]


def test_pruning_an_id_that_is_unknown_or_ambiguous_is_refused(store: Store, source: Source) -> None:
    fill(source, 1)
    fill(store.source(replace(SPEC, cut="head")), 1)
    with pytest.raises(StoreError, match=f"0 sources in .* that starts with 'zz'; there are: .*{SPEC.identity[:8]}"):
        store.prune(identity="zz")
    with pytest.raises(StoreError, match="2 sources in"):
        store.prune(identity="")
    assert len(store.summaries()) == 2


def test_pruning_by_age_goes_by_the_newest_shard(store: Store, source: Source) -> None:
    fill(source, 2)
    other = store.source(replace(SPEC, cut="head"))
    fill(other, 2)
    old = time.time() - 40 * 86400
    for path in [*shards_of(source), shards_of(other)[0]]:
        os.utime(path, (old, old))
    assert store.prune(older_than_days=50) == []
    assert [summary.cut for summary in store.prune(older_than_days=30)] == ["features"]
    assert [summary.cut for summary in store.summaries()] == ["head"]


def test_pruning_by_id_and_age_wants_both(store: Store, source: Source) -> None:
    fill(source, 1)
    assert store.prune(identity=SPEC.identity, older_than_days=1) == []
    assert len(store.summaries()) == 1


def test_a_damaged_description_is_named_with_the_way_out(store: Store, source: Source) -> None:
    fill(source, 1)
    (source.folder / "source.json").write_text('{"backbone": "net"')
    for use in (store.summaries, store.verify, store.compact):
        with pytest.raises(StoreError, match=r"source\.json' is damaged .*; delete the folder '.*'"):
            use()


def test_a_full_disk_wants_space(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("quickstudy.bottlenecks.store.write_bytes_atomically", full)
    with pytest.raises(StoreError, match=r"No space left .* Free some space, or name another folder with --cache"):
        fill(source, 1)


def test_a_file_in_place_of_the_folder_is_named_with_the_way_out(store: Store) -> None:
    source = store.source(SPEC)
    store.folder.write_text("not a folder")
    with pytest.raises(
        StoreError, match=f"Cannot write to the store '{source.folder}': .* safe. Name another folder with"
    ):
        fill(source, 1)
    assert store.folder.read_text() == "not a folder"
    with pytest.raises(StoreError, match=f"Cannot read the store '{source.folder}': "):
        store.source(SPEC)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder_is_named_with_the_way_out(store: Store, source: Source) -> None:
    numbers = fill(source, 1)
    source.folder.chmod(0o555)
    try:
        with pytest.raises(StoreError, match=f"'{source.folder}': Permission denied.*--cache or QUICKSTUDY_CACHE"):
            source.append(keys([50]), rows([50]))
        with pytest.raises(StoreError, match="Cannot change the store"):
            store.prune(identity=SPEC.identity)
    finally:
        source.folder.chmod(0o755)
    np.testing.assert_array_equal(store.source(SPEC).gather(keys(numbers)), rows(numbers))


def test_a_full_disk_loses_nothing_and_leaves_nothing_by_half(store: Store, source: Source) -> None:
    """A limit on the size of files stands in for the disk: the write fails in the middle all the same."""
    numbers = fill(source, 1)
    many = range(100, 400)
    with (
        limited("RLIMIT_FSIZE", 2000),
        pytest.raises(StoreError, match=f"'{source.folder}': File too large. What was flushed before is safe"),
    ):
        source.append(keys(many), rows(many))
    assert leftovers(store.folder) == []
    assert len(shards_of(source)) == 1
    assert store.verify().damaged == ()
    np.testing.assert_array_equal(source.gather(keys(numbers)), rows(numbers))
    source.append(keys(many), rows(many))
    np.testing.assert_array_equal(store.source(SPEC).gather(keys(many)), rows(many))


def test_compaction_on_a_full_disk_keeps_the_small_shards(store: Store, source: Source) -> None:
    numbers = fill(source, 30, each=10)
    before = shards_of(source)
    with limited("RLIMIT_FSIZE", 4000), pytest.raises(StoreError, match="File too large"):
        source.compact()
    assert shards_of(source) == before
    assert leftovers(store.folder) == []
    np.testing.assert_array_equal(store.source(SPEC).gather(keys(numbers)), rows(numbers))
