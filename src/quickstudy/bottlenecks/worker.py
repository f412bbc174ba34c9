"""What runs on the nodes of a cluster: workers, which compute blocks of images, and the ledger, which keeps them apart.

Ray is imported inside functions only.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.runtime import Prefix
from quickstudy.bottlenecks.extraction import Timings, compute_bottlenecks
from quickstudy.bottlenecks.shards import SourceSpec
from quickstudy.bottlenecks.shared import SharedStore, open_shared_store
from quickstudy.errors import ClusterError, StoreError, UnusableImageError
from quickstudy.images.distortions import Distortions
from quickstudy.images.identity import read_image_file
from quickstudy.images.views import view_key
from quickstudy.process import settle_own_process

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Between questions to the ledger; as many files are read ahead.
_GROUP_IMAGES = 16
_READERS = 4
_FLUSH_SECONDS = 30.0
_FLUSH_BYTES = 64 << 20
# Ray Data starts lost workers and their blocks again without end, even after a file that kills its reader.
_MOST_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class Order:
    """What every worker is told."""

    place: str
    """The store: a folder that all nodes see, or a URI."""
    source: SourceSpec
    backbone: Backbone
    """Its path is the driver's; the graph travels separately."""
    views: int
    distortions: Distortions

    def keys(self, digest: bytes) -> list[bytes]:
        """The keys of an image's views."""
        return [view_key(digest, view, self.distortions) for view in range(self.views + 1)]


class Ledger:
    """Knows which bottlenecks the store has and which are being computed; one for the whole cluster."""

    def __init__(self, order: Order) -> None:
        self._stored = open_shared_store(order.place).keys(order.source)
        self._claims: dict[bytes, int] = {}
        self._attempts: Counter[int] = Counter()

    def begin(self, block: int) -> int:
        """A worker begins a block, known by its first image's number; returns how often that has happened."""
        self._attempts[block] += 1
        return self._attempts[block]

    def claim(self, wanted: list[tuple[int, list[bytes]]]) -> list[list[int] | None]:
        """For images, given by number and keys: the views that each is to compute; None where the store has them all.

        No views are left to an image whose copy is being computed. The same image gets the same again, as the one who
        asked before may have been lost.
        """
        answers: list[list[int] | None] = []
        for number, keys in wanted:
            missing = [(view, key) for view, key in enumerate(keys) if key not in self._stored]
            mine = [view for view, key in missing if self._claims.setdefault(key, number) == number]
            answers.append(mine if missing else None)
        return answers


@dataclass(kw_only=True)
class _Tally:
    """What became of a block."""

    images: int
    computed: int = 0
    cached: int = 0
    reasons: list[tuple[int, str]] = field(default_factory=list)
    failure: str = ""
    """Why the block could not be finished, which ends the whole extraction."""
    workers_died: bool = False
    """Whether that is why."""

    def to_table(self) -> pa.Table:
        columns = {**vars(self), "reasons": json.dumps(self.reasons)}
        return pa.table({name: [value] for name, value in columns.items()})


class Worker:
    """Computes blocks of images in a process of its own, which keeps the prefix loaded from block to block."""

    def __init__(self, order: Order, graph: Any, ledger: Any) -> None:
        settle_own_process()
        self.order, self.graph, self.ledger = order, graph, ledger
        self._store: SharedStore | None = None
        self._prefix: Prefix | None = None

    def __call__(self, block: pa.Table) -> pa.Table:
        """Compute what is missing of a block (columns `number` and `path`), and tell what became of it."""
        tally = _Tally(images=block.num_rows)
        try:
            self._compute(block["number"].to_pylist(), block["path"].to_pylist(), tally)
        except (StoreError, ClusterError) as error:
            tally.failure, tally.workers_died = str(error), isinstance(error, ClusterError)
        return tally.to_table()

    def _compute(self, numbers: list[int], paths: list[bytes], tally: _Tally) -> None:
        import ray

        output = _Output(self._open_store(), self.order.source)
        if ray.get(self.ledger.begin.remote(numbers[0])) > _MOST_ATTEMPTS:
            raise ClusterError(
                f"{_MOST_ATTEMPTS} workers died, one after the other, at the {len(paths)} images from "
                f"'{os.fsdecode(paths[0])}' to '{os.fsdecode(paths[-1])}'. If nodes have too little memory, give them "
                "fewer CPUs (ray start --num-cpus); else leave out halves of these images to find what they die of"
            )
        for start, contents in _read_ahead(paths):
            usable: list[tuple[int, bytes, bytes]] = []
            for number, content in zip(numbers[start:], contents, strict=False):
                if isinstance(content, UnusableImageError):
                    tally.reasons.append((number, str(content)))
                else:
                    usable.append((number, *content))
            wanted = [(number, self.order.keys(digest)) for number, _, digest in usable]
            answers = ray.get(self.ledger.claim.remote(wanted)) if wanted else []
            for (number, data, digest), (_, keys), views in zip(usable, wanted, answers, strict=True):
                try:
                    # A copy of an image under way elsewhere has no views to compute, only to show whether it is usable.
                    if views is not None:
                        self._carry_through(data, digest, keys, views, output)
                except UnusableImageError as error:
                    tally.reasons.append((number, str(error)))
                else:
                    tally.computed += len(views or ())
                    tally.cached += len(keys) - len(views or ())
        output.flush()

    def _carry_through(self, data: bytes, digest: bytes, keys: list[bytes], views: list[int], output: _Output) -> None:
        bottlenecks = compute_bottlenecks(
            data,
            digest,
            views,
            spec=self.order.backbone.input,
            distortions=self.order.distortions,
            prefix=self._load_prefix,
            dtype=self.order.source.dtype,
            timings=Timings(),
        )
        for bottleneck, view in zip(bottlenecks, views, strict=True):
            output.add(keys[view], bottleneck)

    def _open_store(self) -> SharedStore:
        if self._store is None:
            store = open_shared_store(self.order.place)
            if not store.is_prepared(self.order.source):
                raise StoreError(
                    f"The node '{socket.gethostname()}' does not see the store '{store.place}'; it has to be a folder "
                    "that all nodes share under the same path, or object storage such as s3://bucket/path"
                )
            self._store = store
        return self._store

    def _load_prefix(self) -> Prefix:
        if self._prefix is None:
            import ray

            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "backbone.onnx"
                path.write_bytes(ray.get(self.graph))
                backbone = replace(self.order.backbone, path=path)
                self._prefix = Prefix(backbone, backbone.cut, backbone.cut_shape)
        return self._prefix


class _Output:
    """Gathers bottlenecks to shards."""

    def __init__(self, store: SharedStore, source: SourceSpec) -> None:
        self._store, self._source = store, source
        self._keys: list[bytes] = []
        self._values: list[NDArray[np.floating]] = []
        self._flushed = time.monotonic()

    def add(self, key: bytes, value: NDArray[np.floating]) -> None:
        self._keys.append(key)
        self._values.append(value)
        if value.nbytes * len(self._keys) > _FLUSH_BYTES or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._keys:
            self._store.append(self._source, self._keys, np.stack(self._values))
            self._keys, self._values = [], []
        self._flushed = time.monotonic()


def _read_ahead(paths: list[bytes]) -> Iterator[tuple[int, list[tuple[bytes, bytes] | UnusableImageError]]]:
    """Bytes and content hashes of files, or why there are none, a group at a time; the next is read meanwhile."""
    # Storage that is reached over a network answers late, and one file after the other would leave the core waiting.
    with ThreadPoolExecutor(_READERS) as readers:
        ahead: deque[tuple[int, list[Future[tuple[bytes, bytes] | UnusableImageError]]]] = deque()
        for start in range(0, len(paths), _GROUP_IMAGES):
            ahead.append((start, [readers.submit(_read, path) for path in paths[start : start + _GROUP_IMAGES]]))
            if len(ahead) > 1:
                first, futures = ahead.popleft()
                yield first, [future.result() for future in futures]
        for first, futures in ahead:
            yield first, [future.result() for future in futures]


def _read(path: bytes) -> tuple[bytes, bytes] | UnusableImageError:
    try:
        return read_image_file(Path(os.fsdecode(path)))
    except UnusableImageError as error:
        return error
