"""Shared stores: the same shards on any file system, brought to a local store whole or not at all."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import fs

from quickstudy.bottlenecks.shards import SourceSpec, read_keys
from quickstudy.bottlenecks.shared import SharedStore, open_shared_store
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import StoreError

SPEC = SourceSpec(backbone="small", fingerprint="f" * 64, cut="features", input={"size": 8}, shape=(5,))


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def some(*numbers: int) -> tuple[list[bytes], NDArray[np.float16]]:
    return [key(number) for number in numbers], np.array([[number] * 5 for number in numbers], np.float16)


class _ObjectStorage(fs.FileSystemHandler):  # type: ignore[misc]
    """A folder that says of itself that it is object storage, and has no renaming."""

    def __init__(self, folder: Path) -> None:
        self.inner = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())

    def __eq__(self, other: object) -> bool:
        return self is other

    def get_type_name(self) -> str:
        return "objects"

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return self.inner.get_file_info(paths)  # type: ignore[no-any-return]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return self.inner.get_file_info(selector)  # type: ignore[no-any-return]

    def open_input_file(self, path: str) -> object:
        return self.inner.open_input_file(path)

    def open_output_stream(self, path: str, metadata: object) -> object:
        self.inner.create_dir(path.rpartition("/")[0], recursive=True)
        return self.inner.open_output_stream(path)

    def _refuse(self, *_: object) -> None:
        raise NotImplementedError

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = _refuse
    open_input_stream = open_append_stream = normalize_path = _refuse


@pytest.fixture(params=["folder", "file URI", "subtree", "mock", "fsspec", "objects"])
def shared(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharedStore:
    """An empty store on each kind of file system."""
    folder = tmp_path / "shared"
    folder.mkdir()
    if request.param == "folder":
        return open_shared_store(folder / "new" / "store")
    if request.param == "file URI":
        return open_shared_store((folder / "new" / "store").as_uri())
    if request.param == "subtree":
        return SharedStore(fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), "new/store", place="a subtree")
    if request.param == "mock":
        from pyarrow._fs import _MockFileSystem

        return SharedStore(_MockFileSystem(), "new/store", place="a mock")
    if request.param == "fsspec":
        fsspec = pytest.importorskip("fsspec", reason="no fsspec here")
        memory = fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("memory", skip_instance_cache=True)))
        return SharedStore(memory, f"/{tmp_path.name}/store", place="memory")
    monkeypatch.setattr("quickstudy.bottlenecks.shared.OBJECT_STORES", ("py::objects",))
    return SharedStore(fs.PyFileSystem(_ObjectStorage(folder)), "bucket/store", place="objects")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(tmp_path / "local")


def test_what_is_appended_can_be_listed_and_pulled(shared: SharedStore, local: Store) -> None:
    other = replace(SPEC, dtype="float32")
    assert shared.specs() == []
    assert (shared.shards(SPEC), shared.keys(SPEC), shared.is_prepared(SPEC)) == ([], set(), False)
    for spec in (SPEC, other):
        shared.prepare(spec)
        shared.prepare(spec)
    assert shared.is_prepared(SPEC)
    shared.append(SPEC, *some(1, 2, 3))
    shared.append(SPEC, *some(4))
    shared.append(SPEC, *some(4))
    shared.append(other, *some(7))
    assert sorted(spec.identity for spec in shared.specs()) == sorted((SPEC.identity, other.identity))
    assert len(shared.shards(SPEC)) == 2
    assert shared.keys(SPEC) == {key(number) for number in range(1, 5)}
    pulled = shared.pull(local)
    assert (pulled.shards, pulled.bottlenecks, pulled.damaged) == (3, 5, ())
    np.testing.assert_array_equal(local.source(SPEC).gather([key(3), key(4)]), some(3, 4)[1])
    assert local.source(other).gather([key(7)]).dtype == np.float32
    assert local.verify().damaged == ()
    assert len(local.summaries()) == 2


def test_a_pull_brings_what_is_missing_and_nothing_else(shared: SharedStore, local: Store) -> None:
    shared.prepare(SPEC)
    for number in range(12):
        shared.append(SPEC, *some(2 * number, 2 * number + 1))
    assert shared.pull(local).shards == 12
    assert shared.pull(local).shards == 0
    assert local.compact() == 12
    assert shared.pull(local).shards == 0, "merged under another name, but there"
    shared.append(SPEC, *some(1, 100))
    again = shared.pull(local)
    assert (again.shards, again.bottlenecks) == (1, 1)
    assert len(local.source(SPEC)) == 25


def test_shards_are_the_local_ones_to_the_bit(shared: SharedStore, local: Store) -> None:
    shared.append(SPEC, *some(1, 2))
    source = local.source(SPEC)
    source.append(*some(1, 2))
    assert [path.name for path in source.folder.glob("*.arrow")] == shared.shards(SPEC)


def test_a_shard_that_is_not_whole_is_neither_counted_nor_pulled(tmp_path: Path, local: Store) -> None:
    shared = open_shared_store(tmp_path / "shared")
    shared.prepare(SPEC)
    shared.append(SPEC, *some(1, 2))
    shared.append(SPEC, *some(3))
    folder = tmp_path / "shared" / SPEC.identity
    cut, flipped = sorted(folder.glob("*.arrow"))
    flipped_keys = set(shared.keys_of(SPEC, flipped.name))
    cut.write_bytes(cut.read_bytes()[:100])
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    assert shared.keys_of(SPEC, cut.name) == []
    assert len(flipped_keys) == len(shared.keys_of(SPEC, flipped.name)), "only hashing tells a flipped bit"
    pulled = shared.pull(local)
    assert pulled.shards == 0
    assert sorted(pulled.damaged) == sorted(f"{SPEC.identity}/{path.name}" for path in (cut, flipped))
    assert local.summaries() == []


def test_a_damaged_description_is_named(tmp_path: Path, local: Store) -> None:
    shared = open_shared_store(tmp_path / "shared")
    shared.prepare(SPEC)
    (tmp_path / "shared" / SPEC.identity / "source.json").write_text("{}")
    with pytest.raises(StoreError, match=rf"{SPEC.identity}/source.json.*damaged.*delete its folder"):
        shared.pull(local)


def test_keys_are_read_without_the_bottlenecks(tmp_path: Path) -> None:
    wide = replace(SPEC, shape=(100_000,))
    shared = open_shared_store(tmp_path / "shared")
    shared.append(wide, [key(number) for number in range(20)], np.ones((20, 100_000)))

    [name] = shared.shards(wide)
    path = tmp_path / "shared" / wide.identity / name
    read = 0

    class File:
        """A Python file whose reads are counted."""

        def __init__(self) -> None:
            self.file = path.open("rb")
            self.closed = False

        def read(self, size: int = -1) -> bytes:
            nonlocal read
            data = self.file.read(size)
            read += len(data)
            return data

        def seek(self, *arguments: int) -> int:
            return self.file.seek(*arguments)

        def tell(self) -> int:
            return self.file.tell()

        def seekable(self) -> bool:
            return True

        def readable(self) -> bool:
            return True

        def writable(self) -> bool:
            return False

        def close(self) -> None:
            self.file.close()
            self.closed = True

    assert read_keys(pa.PythonFile(File(), "r"), wide) == [key(number) for number in range(20)]
    assert path.stat().st_size > 4_000_000
    assert read < 100_000


def test_a_place_of_no_known_kind_is_named_with_what_is_expected() -> None:
    with pytest.raises(StoreError, match=r"nowhere://user/path.*s3://bucket/path"):
        open_shared_store("nowhere://user/path")


def test_passwords_are_not_repeated() -> None:
    with pytest.raises(StoreError) as caught:
        open_shared_store("nowhere://user:secret@host/path")
    assert "secret" not in str(caught.value)
    assert "nowhere://…@host/path" in str(caught.value)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    shared = open_shared_store(tmp_path / "occupied" / "store")
    with pytest.raises(
        StoreError, match=r"Cannot write to the store '.*occupied/store': .*expected a folder, or a URI"
    ):
        shared.prepare(SPEC)


def test_a_place_that_cannot_be_read_is_named(tmp_path: Path, local: Store) -> None:
    (tmp_path / "occupied").write_text("")
    with pytest.raises(StoreError, match=r"Cannot read the store '.*occupied'"):
        open_shared_store(tmp_path / "occupied").pull(local)


def test_a_place_without_bottlenecks_is_not_pulled_from_in_silence(tmp_path: Path, local: Store) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        with pytest.raises(StoreError, match=f"There are no bottlenecks at '.*{name}'"):
            open_shared_store(str(tmp_path / name)).pull(local)
