"""A store that many machines reach: a shared folder, or object storage named by a URI (pyarrow.fs).

It is laid out like the local one and holds the same files, so it needs no locks either: who fills it writes whole
shards under the hash of their content. Object storage is mirrored, not read in place: a head wants all bottlenecks
anyway, and a local store maps its shards into memory. `pull` brings it the shards that it lacks. A shared folder is a
local store to whoever mounts it.
"""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from quickstudy.bottlenecks.shards import SUFFIX, SourceSpec, map_values, read_keys, serialise, shard_name, values_in
from quickstudy.bottlenecks.store import MOST_ROWS, KeptRows, Source, Store
from quickstudy.errors import StoreError
from quickstudy.files import TEMPORARY_PREFIX, write_bytes_atomically
from quickstudy.progress import Progress, silent
from quickstudy.records import read_record

EXPECTED = "expected a folder, or a URI such as s3://bucket/path, gs://bucket/path or file:///folder"
"""The end of a message about a place that is no store."""
OBJECT_STORES = ("s3", "gcs", "abfs")
"""File systems in which an object appears whole or not at all; elsewhere that takes a temporary name and a rename."""
_DESCRIPTION = "source.json"
_LISTINGS = 3
# Requests to object storage take tens of milliseconds each, nearly all of it waiting.
_REQUESTS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What `SharedStore.pull` brought."""

    shards: int
    """Number of shards that were copied."""
    bottlenecks: int
    """Number of bottlenecks in them that were not in the local store before."""
    size_bytes: int
    """Size of the shards that were copied, in bytes."""
    damaged: tuple[str, ...]
    """Shards, named with their source, whose bytes do not match their name; they are left where they are."""


class SharedStore:
    """The shards of all sources under one path of a file system."""

    def __init__(self, filesystem: fs.FileSystem, root: str, *, place: str) -> None:
        self.filesystem, self.root = filesystem, root.rstrip("/")
        self.place = place
        """The place as the user named it, for messages."""

    @property
    def folder(self) -> Path | None:
        """The folder that it is on this machine; None where it is none."""
        return Path(self.root) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    def prepare(self, spec: SourceSpec) -> None:
        """Write a source's description, which shows before anything is computed whether the place can be written.

        Raises:
            StoreError: it cannot.
        """
        text = json.dumps(spec.to_dict(), indent=1, ensure_ascii=False) + "\n"
        with self._named("write to"):
            self._put(f"{self._folder_of(spec)}/{_DESCRIPTION}", text.encode())

    def is_prepared(self, spec: SourceSpec) -> bool:
        """Say whether a source's description is there, seen from this machine."""
        with self._named("read"):
            info: fs.FileInfo = self.filesystem.get_file_info(f"{self._folder_of(spec)}/{_DESCRIPTION}")
        return bool(info.type == fs.FileType.File)

    def specs(self) -> list[SourceSpec]:
        """Read the descriptions of all sources here.

        Raises:
            StoreError: the store cannot be read, or a description is damaged.
        """
        found = []
        with self._named("read"):
            for info in self._list(self.root):
                path = f"{info.path}/{_DESCRIPTION}"
                if info.type == fs.FileType.Directory and self.filesystem.get_file_info(path).type == fs.FileType.File:
                    try:
                        found.append(read_record(SourceSpec, json.loads(self._get(path)), version=1))
                    except (ValueError, KeyError, TypeError) as error:
                        raise StoreError(
                            f"'{path}' in '{self.place}' is damaged ({error}); delete its folder"
                        ) from None
        return found

    def shards(self, spec: SourceSpec) -> list[str]:
        """List the names of a source's shards, sorted."""
        with self._named("read"):
            names = [info.base_name for info in self._list(self._folder_of(spec))]
        return sorted(name for name in names if name.endswith(SUFFIX) and not name.startswith("."))

    def keys(self, spec: SourceSpec) -> set[bytes]:
        """Read the keys of all of a source's shards; those of damaged ones are left out, to be computed again."""
        keys: set[bytes] = set()
        seen: set[str] = set()
        # A shard that is gone when it is to be read has been merged into a new one, which the next listing has.
        for _ in range(_LISTINGS):
            fresh = [name for name in self.shards(spec) if name not in seen]
            with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
                for found in pool.map(lambda name: self.keys_of(spec, name), fresh):
                    keys.update(found)
            seen.update(fresh)
        return keys

    def keys_of(self, spec: SourceSpec, name: str) -> list[bytes]:
        """Read the keys of one shard; none where it is damaged or gone."""
        try:
            with self.filesystem.open_input_file(f"{self._folder_of(spec)}/{name}") as file:
                return read_keys(file, spec)
        except (OSError, pa.ArrowException, ValueError, IndexError):
            return []

    def values_of(self, spec: SourceSpec, name: str) -> NDArray[np.floating]:
        """Read the bottlenecks (rows × width) of one shard; in a folder, they are only mapped.

        Raises:
            StoreError: it is damaged or gone.
        """
        path = f"{self._folder_of(spec)}/{name}"
        try:
            return map_values(Path(path), spec) if self.folder is not None else values_in(self._get(path), spec)
        except (OSError, pa.ArrowException, ValueError, IndexError) as error:
            raise StoreError(
                f"The shard '{path}' in the store '{self.place}' cannot be read ({error}); delete it, and fill the "
                "store again"
            ) from error

    def append(self, spec: SourceSpec, keys: Sequence[bytes], values: NDArray[np.floating]) -> None:
        """Write one shard.

        Raises:
            StoreError: the place cannot be written.
        """
        rows = np.ascontiguousarray(values, np.dtype(spec.dtype)).reshape(len(keys), spec.width)
        data = serialise(spec, keys, rows)
        with self._named("write to"):
            self._put(f"{self._folder_of(spec)}/{shard_name(data)}", data)

    def pull(self, store: Store, *, progress: Progress = silent) -> Pulled:
        """Copy to a local store the shards that it lacks, without those whose bottlenecks it has in other shards.

        Raises:
            StoreError: this place cannot be read or holds no bottlenecks, or the local store cannot be written.
        """
        if not self.specs():
            raise StoreError(f"There are no bottlenecks at '{self.place}'; {EXPECTED}, as cache fill --store fills it")
        pulled = bottlenecks = size = done = 0
        damaged: list[str] = []
        wanted = [(spec, name) for spec in self.specs() for name in self.shards(spec)]
        sources = {spec.identity: store.source(spec) for spec, _ in wanted}
        progress.start("shards", len(wanted))
        try:
            for spec, name in wanted:
                source = sources[spec.identity]
                if self._is_missed(source, name):
                    with self._named("read"):
                        data = self._get(f"{self._folder_of(spec)}/{name}")
                    if shard_name(data) == name:
                        before = len(source)
                        source.adopt(data)
                        pulled, size = pulled + 1, size + len(data)
                        bottlenecks += len(source) - before
                    else:
                        damaged.append(f"{spec.identity}/{name}")
                done += 1
                progress.update(done=done, note=f"{size / 1e6:.0f} MB copied")
        finally:
            progress.finish()
        return Pulled(shards=pulled, bottlenecks=bottlenecks, size_bytes=size, damaged=tuple(damaged))

    def _is_missed(self, source: Source, name: str) -> bool:
        """Say whether a shard here has anything that a local source lacks, also in its shards of other names."""
        if (source.folder / name).exists():
            return False
        keys = self.keys_of(source.spec, name) if len(source) else []
        return not keys or any(key not in source for key in keys)

    def _folder_of(self, spec: SourceSpec) -> str:
        return f"{self.root}/{spec.identity}"

    def _list(self, path: str) -> list[fs.FileInfo]:
        found: list[fs.FileInfo] = self.filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(found, key=lambda info: str(info.path))

    def _get(self, path: str) -> bytes:
        with self.filesystem.open_input_file(path) as file:
            return bytes(file.readall())

    def _put(self, path: str, data: bytes | memoryview) -> None:
        if self.folder is not None:
            write_bytes_atomically(Path(path), data)
        elif self.filesystem.type_name in OBJECT_STORES:
            self._write(path, data)
        else:
            folder, _, _ = path.rpartition("/")
            self.filesystem.create_dir(folder, recursive=True)
            temporary = f"{folder}/{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
            self._write(temporary, data)
            self.filesystem.move(temporary, path)

    def _write(self, path: str, data: bytes | memoryview) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(data)

    @contextlib.contextmanager
    def _named(self, action: str) -> Iterator[None]:
        """Turn errors inside this context into a StoreError that says which store it is about."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or error
            raise StoreError(f"Cannot {action} the store '{self.place}': {reason}; {EXPECTED}") from error


class SharedSource:
    """The bottlenecks of one source in a shared store, as far as its shards were there at the start."""

    def __init__(self, store: SharedStore, spec: SourceSpec) -> None:
        self.spec, self._store = spec, store
        self._names = store.shards(spec)
        self._places: dict[bytes, int] = {}
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            for number, keys in enumerate(pool.map(lambda name: store.keys_of(spec, name), self._names)):
                for place, key in enumerate(keys, number * MOST_ROWS):
                    self._places.setdefault(key, place)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def places(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Give the places of bottlenecks; see `quickstudy.bottlenecks.store.Source.places`.

        Raises:
            KeyError: a key is not in the store.
        """
        return np.array([self._places[key] for key in keys], np.int64)

    def read(self, shard: int, rows: NDArray[np.intp], width: int) -> NDArray[np.floating]:
        """Read the first `width` values of some rows of a shard.

        Raises:
            StoreError: the shard cannot be read.
        """
        return self._store.values_of(self.spec, self._names[shard])[rows, :width]

    def rows(self, keys: Sequence[bytes], first: int | None = None) -> KeptRows:
        """Give the bottlenecks of these keys, to be read piece by piece; see `Source.rows` of the local store."""
        return KeptRows(self, keys, self.spec.width if first is None else first)

    def shards_of(self, keys: Sequence[bytes]) -> Iterator[tuple[str, NDArray[np.intp], NDArray[np.intp]]]:
        """Yield the shards in which some bottlenecks are: name, numbers of their rows, and of their keys.

        Raises:
            KeyError: a key is not in the store.
        """
        places = self.places(keys)
        order = np.argsort(places)
        shards, rows = np.divmod(places[order], MOST_ROWS)
        numbers, starts = np.unique(shards, return_index=True)
        for number, mine, positions in zip(
            numbers.tolist(), np.split(rows, starts[1:]), np.split(order, starts[1:]), strict=True
        ):
            yield self._names[number], mine.astype(np.intp), positions

    def gather(self, keys: Sequence[bytes], first: int | None = None) -> NDArray[np.floating]:
        """Read the bottlenecks of these keys, in their order; see `quickstudy.bottlenecks.store.Source.gather`.

        Raises:
            KeyError: a key is not in the store.
            StoreError: a shard cannot be read.
        """
        width = self.spec.width if first is None else first
        result = np.empty((len(keys), width), self.spec.dtype)
        for name, rows, positions in self.shards_of(keys):
            result[positions] = self._store.values_of(self.spec, name)[rows, :width]
        return result if first is not None else result.reshape(len(keys), *self.spec.shape)


def open_shared_store(place: str | Path) -> SharedStore:
    """Open the store in a folder, or at a URI that pyarrow.fs knows; nothing is written.

    Raises:
        StoreError: no such kind of URI.
    """
    text = str(place)
    if "://" not in text:
        return SharedStore(fs.LocalFileSystem(), Path(text).absolute().as_posix(), place=text)
    shown = re.sub(r"//[^/@]*@", "//…@", text)  # user and password
    try:
        filesystem, root = fs.FileSystem.from_uri(text)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).replace(text, shown)
        raise StoreError(f"Cannot open the store '{shown}': {reason}; {EXPECTED}") from None
    return SharedStore(filesystem, root, place=shown)
