"""The store: a content-addressed cache of bottlenecks that many processes may fill at once.

A store is a folder with one subfolder per source (what the bottlenecks were computed by); a source is a set of
immutable shards, each named by the SHA-256 of its own bytes. A shard appears whole or not at all (temporary name,
flush, rename), so readers and writers need no locks: duplicates are harmless, and what a killed process had flushed
stays. Shards are memory-mapped when read.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from quickstudy.bottlenecks.shards import SUFFIX, Shard, SourceSpec, map_shard, map_values, serialise, shard_name
from quickstudy.errors import StoreError
from quickstudy.files import TEMPORARY_PREFIX, sha256_of_file, write_bytes_atomically, write_json_atomically
from quickstudy.records import read_record

_FULL = (errno.ENOSPC, errno.EDQUOT)
COMPACT_ABOVE = 8
"""Number of small shards of a source, more than which are merged."""
_MERGED_BYTES = 8 << 20
_STALE_SECONDS = 3600
_LISTINGS = 100
MOST_ROWS = 1 << 32
"""The most rows of a shard, by which the place of a bottleneck is one number."""
_PIECE_ROWS = 512


class Source:
    """The bottlenecks of one source, as far as its shards were there at `load` or have been appended since."""

    def __init__(self, folder: Path, spec: SourceSpec) -> None:
        self.folder, self.spec = folder, spec
        self._width = spec.width
        self._places: dict[bytes, int] = {}  # number of the shard and of the row in one, which takes half the memory
        self._shards: list[Shard] = []
        self.damaged: list[Path] = []
        """Shards that could not be read and were left out; `Store.verify` tells more."""
        self.load()

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def load(self) -> None:
        """Read the keys of all shards on disk; the values stay mapped until they are gathered.

        Raises:
            StoreError: the folder cannot be read, or keeps changing.
        """
        self._places, self._shards, self.damaged = {}, [], []
        seen: set[Path] = set()
        for _ in range(_LISTINGS):
            vanished = False
            for path in _shard_paths(self.folder):
                if path not in seen:
                    try:
                        self._add(path)
                        seen.add(path)
                    except FileNotFoundError:  # merged by another process since, into one that the next listing has
                        vanished = True
            if not vanished:
                return
        raise StoreError(f"The store '{self.folder}' keeps changing while it is read; try again")

    def gather(self, keys: Sequence[bytes], first: int | None = None) -> NDArray[np.floating]:
        """Read the bottlenecks of these keys, in their order: len(keys) × shape, in the source's dtype.

        Args:
            keys: keys that the store has.
            first: read only so many values of each bottleneck, from its start on; what comes is len(keys) × `first`.

        Raises:
            KeyError: a key is not in the store.
        """
        width = self._width if first is None else first
        result = np.empty((len(keys), width), self.spec.dtype)
        wanted: dict[int, tuple[list[int], list[int]]] = {}
        for position, key in enumerate(keys):
            shard, row = divmod(self._places[key], MOST_ROWS)
            positions, rows = wanted.setdefault(shard, ([], []))
            positions.append(position)
            rows.append(row)
        for shard, (positions, rows) in wanted.items():
            result[positions] = self._shards[shard].values[rows, :width]
        return result if first is not None else result.reshape(len(keys), *self.spec.shape)

    def places(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Give the places of bottlenecks: number of the shard times `MOST_ROWS`, and number of the row in it.

        Raises:
            KeyError: a key is not in the store.
        """
        return np.array([self._places[key] for key in keys], np.int64)

    def read(self, shard: int, rows: NDArray[np.intp], width: int) -> NDArray[np.floating]:
        """Read the first `width` values of some rows of a shard, of which nothing stays in memory."""
        kept = self._shards[shard]
        with contextlib.suppress(FileNotFoundError):  # merged into another one meanwhile; the old one is still mapped
            return map_values(kept.path, self.spec)[rows, :width]
        found: NDArray[np.floating] = kept.values[rows, :width]
        return found

    def rows(self, keys: Sequence[bytes], first: int | None = None) -> KeptRows:
        """Give the bottlenecks of these keys, of one dimension each, to be read piece by piece.

        Args:
            keys: as for `gather`.
            first: as for `gather`.

        Raises:
            KeyError: a key is not in the store.
        """
        return KeptRows(self, keys, self._width if first is None else first)

    def records(self, keys: Sequence[bytes]) -> list[dict[str, Any]]:
        """Give the records of these keys, in their order, of a source that keeps records.

        Raises:
            KeyError: a key is not in the store.
        """
        places = [divmod(self._places[key], MOST_ROWS) for key in keys]
        return [self._shards[shard].values[row].as_py() for shard, row in places]

    def append(self, keys: Sequence[bytes], values: NDArray[np.floating] | Sequence[Mapping[str, Any]]) -> None:
        """Write one shard durably and make it readable here; `values` are records where the source keeps such.

        Raises:
            StoreError: the disk is full, the folder cannot be written, or the values do not fit the source.
        """
        if not keys:
            return
        if self.spec.record:
            self._see(self._write(serialise(self.spec, keys, values)))
            return
        rows = np.ascontiguousarray(values, self.spec.dtype).reshape(len(keys), -1)
        if rows.shape[1] != self._width:
            raise StoreError(
                f"A bottleneck of '{self.spec.backbone}' has {rows.shape[1]} values; expected {self._width}"
            )
        self._see(self._write(serialise(self.spec, keys, rows)))

    def adopt(self, shard: bytes) -> None:
        """Write a shard of this source that was made elsewhere, durably and as it is, and make it readable here.

        Raises:
            StoreError: the disk is full, or the folder cannot be written.
        """
        self._see(self._write(shard))

    def _see(self, path: Path) -> None:
        try:
            self._add(path)
        except FileNotFoundError:  # merged into a larger shard by another process already
            self.load()

    def compact(self) -> int:
        """Merge small shards when there are many, and return how many were merged.

        Safe beside other readers and writers: a merged shard is durable before the small ones go, and a process that
        still has those mapped keeps reading them. Memory stays within a few merged shards.
        """
        merged = 0
        while batch := self._batch_to_merge():
            rows = {key: shard.values[row] for shard in batch for row, key in enumerate(shard.keys)}
            keys = sorted(rows)
            kept = [rows[key] for key in keys]
            values = [value.as_py() for value in kept] if self.spec.record else np.stack(kept)
            path = self._write(serialise(self.spec, keys, values))
            for shard in batch:
                if shard.path != path:
                    with contextlib.suppress(OSError):  # gone already, or in use on Windows; a duplicate is harmless
                        shard.path.unlink()
            merged += len(batch)
            self.load()
            if ({shard.path for shard in batch} - {path}) & {shard.path for shard in self._shards}:
                break  # what cannot be deleted would be merged for ever
        return merged

    def _batch_to_merge(self) -> list[Shard]:
        """Choose more than a few small shards that make one of full size together; none where there are not so many."""
        small = [shard for shard in self._shards if shard.mapped.size < _MERGED_BYTES // 4]
        batch: list[Shard] = []
        for shard in small if len(small) > COMPACT_ABOVE else []:
            # A damaged shard stays as it is: merged, its wrong values would get a hash that is right.
            if sum(member.mapped.size for member in batch) < _MERGED_BYTES and _is_whole(shard.path):
                batch.append(shard)
        return batch if len(batch) > COMPACT_ABOVE else []

    def _write(self, data: bytes | memoryview) -> Path:
        path = self.folder / shard_name(data)
        try:
            if not (self.folder / "source.json").exists():
                write_json_atomically(self.folder / "source.json", self.spec.to_dict())
            write_bytes_atomically(path, data)
        except OSError as error:
            way_out = "Free some space, or name" if error.errno in _FULL else "Name"
            raise StoreError(
                f"Cannot write to the store '{self.folder}': {error.strerror}. What was flushed before is safe. "
                f"{way_out} another folder with --cache or QUICKSTUDY_CACHE"
            ) from error
        return path

    def _add(self, path: Path) -> None:
        try:
            # Records are small and have parts of any length, so they are read for certain: hashed, not only mapped.
            if self.spec.record and sha256_of_file(path) != path.stem:
                raise ValueError("its bytes are not those that it is named by")
            shard = map_shard(path, self.spec)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException, ValueError, IndexError):
            self.damaged.append(path)
            return
        number = len(self._shards)
        self._shards.append(shard)
        self._places.update((key, row) for row, key in enumerate(shard.keys, number * MOST_ROWS))


class Readable(Protocol):
    """What has bottlenecks in shards; see `Source` for what each function does."""

    def places(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Give the places of bottlenecks."""

    def read(self, shard: int, rows: NDArray[np.intp], width: int) -> NDArray[np.floating]:
        """Read the first `width` values of some rows of a shard."""

    def gather(self, keys: Sequence[bytes], first: int | None = None) -> NDArray[np.floating]:
        """Read the bottlenecks of these keys, in their order."""


class KeptRows:
    """Rows of a source in an order of one's own, which are read shard by shard.

    A shard is mapped anew for each piece and let go afterwards, so of a store larger than the memory only what is being
    read is in it.
    """

    def __init__(self, source: Readable, keys: Sequence[bytes], width: int) -> None:
        self._source, self._keys, self._width = source, keys, width
        places = source.places(keys)
        order = np.argsort(places, kind="stable")
        shards, rows = np.divmod(places[order], MOST_ROWS)
        ends = np.flatnonzero(np.diff(shards)) + 1
        self._pieces: list[tuple[int, NDArray[np.intp], NDArray[np.intp]]] = []
        for start, end in itertools.pairwise([0, *ends.tolist(), len(order)]):
            for piece in range(start, end, _PIECE_ROWS):
                few = slice(piece, min(piece + _PIECE_ROWS, end))
                self._pieces.append((int(shards[start]), rows[few].astype(np.intp), order[few]))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and of values in each."""
        return len(self._keys), self._width

    def pieces(self) -> list[NDArray[np.intp]]:
        """Give the numbers of the rows that each piece has."""
        return [numbers for _, _, numbers in self._pieces]

    def read(self, piece: int) -> NDArray[np.floating]:
        """Read the rows of a piece, by its number."""
        number, rows, _ = self._pieces[piece]
        return self._source.read(number, rows, self._width)

    def all(self) -> NDArray[np.floating]:
        """Read all rows, in their order."""
        return self._source.gather(self._keys, self._width)

    def first(self, width: int) -> KeptRows:
        """Give the same rows with their first values alone."""
        narrow = copy.copy(self)
        narrow._width = width
        return narrow


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """One source in the store, for people: what it is, and what it holds."""

    identity: str
    """Name of the source's folder, 32 hexadecimal digits."""
    backbone: str
    """Name of the network."""
    cut: str
    """Name of the tensor at which freezing ends."""
    dtype: str
    """Type of the values, `float16` or `float32`; `record` for records."""
    engine: str
    """Name of the engine that ran the network; empty where none did."""
    bottlenecks: int
    """Number of bottlenecks or records."""
    shards: int
    """Number of shards."""
    size_bytes: int
    """Size of all shards, in bytes."""
    used: float
    """When a shard was last written, in seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `Store.verify` found."""

    shards: int
    """Number of shards, damaged ones among them."""
    bottlenecks: int
    """Number of bottlenecks that can be read."""
    damaged: tuple[Path, ...]
    """Shards whose bytes do not match their name, or that cannot be read."""


class Store:
    """The folder with all sources. Nothing is written to it before there is a bottleneck to keep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def index_path(self) -> Path:
        """The file of the stat index."""
        return self.folder / "files.sqlite"

    def source(self, spec: SourceSpec) -> Source:
        """Open the bottlenecks of a source, which may have none yet."""
        return Source(self.folder / spec.identity, spec)

    def summaries(self) -> list[SourceSummary]:
        """Sum up what the store holds, source by source."""
        return [self._summarise(folder, spec) for folder, spec in self._sources()]

    def verify(self, *, remove: bool = False) -> Verification:
        """Hash every shard and compare with its name; with `remove`, delete damaged shards, to be computed again."""
        damaged: list[Path] = []
        shards = bottlenecks = 0
        for folder, spec in self._sources():
            source = Source(folder, spec)
            bottlenecks += len(source)
            for path in _shard_paths(folder):
                whole = path not in source.damaged and _is_whole(path)
                if not whole and not path.exists():
                    continue  # compacted away by another process after it was listed
                shards += 1
                if not whole:
                    damaged.append(path)
        if remove:
            for path in damaged:
                self._change(lambda path=path: path.unlink(missing_ok=True))
        return Verification(shards=shards, bottlenecks=bottlenecks, damaged=tuple(damaged))

    def compact(self) -> int:
        """Merge small shards in every source and sweep up what killed processes left; return how many were merged."""
        for folder in [self.folder, *(folder for folder, _ in self._sources())]:
            for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
                with contextlib.suppress(FileNotFoundError):  # renamed by its writer after it was listed
                    if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                        path.unlink()
        return sum(Source(folder, spec).compact() for folder, spec in self._sources())

    def prune(self, *, identity: str | None = None, older_than_days: float | None = None) -> list[SourceSummary]:
        """Delete the source whose identity starts so, or those not written to for so many days; return which.

        Raises:
            StoreError: no source, or more than one, has such an identity.
        """
        summaries = self.summaries()
        if identity is not None:
            chosen = [summary for summary in summaries if summary.identity.startswith(identity)]
            if len(chosen) != 1:
                known = ", ".join(summary.identity[:8] for summary in summaries) or "none"
                raise StoreError(
                    f"{len(chosen)} sources in '{self.folder}' have an id that starts with '{identity}'; "
                    f"there are: {known}"
                )
        else:
            chosen = summaries
        if older_than_days is not None:
            chosen = [summary for summary in chosen if time.time() - summary.used > older_than_days * 86400]
        for summary in chosen:
            self._change(lambda summary=summary: shutil.rmtree(self.folder / summary.identity))
        return chosen

    def _sources(self) -> Iterator[tuple[Path, SourceSpec]]:
        for path in sorted(self.folder.glob("*/source.json")):
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
                yield path.parent, read_record(SourceSpec, values, version=1)
            except (OSError, ValueError) as error:
                raise StoreError(f"'{path}' is damaged ({error}); delete the folder '{path.parent}'") from None

    def _summarise(self, folder: Path, spec: SourceSpec) -> SourceSummary:
        stats = []
        for path in _shard_paths(folder):
            with contextlib.suppress(FileNotFoundError):  # merged by another process after it was listed
                stats.append(path.stat())
        return SourceSummary(
            identity=folder.name,
            backbone=spec.backbone,
            cut=spec.cut,
            dtype=spec.dtype,
            engine=spec.engine,
            bottlenecks=len(Source(folder, spec)),
            shards=len(stats),
            size_bytes=sum(stat.st_size for stat in stats),
            used=max((stat.st_mtime for stat in stats), default=folder.stat().st_mtime),
        )

    def _change(self, change: Any) -> None:
        try:
            change()
        except OSError as error:
            raise StoreError(f"Cannot change the store '{self.folder}': {error.strerror}") from error


def _is_whole(path: Path) -> bool:
    try:
        return sha256_of_file(path) == path.stem
    except OSError:
        return False


def _shard_paths(folder: Path) -> list[Path]:
    try:
        names: Iterable[str] = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"Cannot read the store '{folder}': {error.strerror}") from error
    return [folder / name for name in sorted(names) if name.endswith(SUFFIX) and not name.startswith(".")]
