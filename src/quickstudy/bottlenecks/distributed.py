"""Extraction on a Ray cluster: workers on any number of nodes fill one shared store, each image computed once.

Ray Data hands out blocks of paths. A worker, one a core, reads the files of its block, asks the ledger which of their
bottlenecks nobody has, carries those through the same steps as the local extraction, and writes its own shards straight
into the store; only counts and reasons come back. Whatever dies is started again and its blocks with it: shards are
immutable, so what it had written stays, and what is computed twice is harmless.

Ray is imported inside functions only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import tempfile
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.named import Prefix
from quickstudy.bottlenecks.extraction import source_spec
from quickstudy.bottlenecks.preparing import Timings, compute_bottlenecks
from quickstudy.bottlenecks.shards import SourceSpec
from quickstudy.bottlenecks.shared import SharedStore, open_shared_store
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import ClusterError, StoreError, UnusableImageError, first_line
from quickstudy.images.distortions import Distortions
from quickstudy.images.identity import read_image_file
from quickstudy.images.views import view_key
from quickstudy.process import settle_own_process
from quickstudy.progress import Progress, silent

if TYPE_CHECKING:
    from numpy.typing import NDArray


# A shard of 1,280 float16 values an image then has 5 MB: few enough objects, none so small that it is merged later.
_BLOCK_IMAGES = 2048
# Fewer images a block where there are few, so that workers end at about the same time.
_BLOCKS_A_WORKER = 8
# Workers that ask for a whole core each leave none for Ray Data's own tasks, and everything waits for ever.
_CORES_ASKED = 0.5
_HASH_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class ClusterExtraction:
    """What an extraction on a cluster found and did."""

    computed: int
    """Number of forward passes through the prefix, without those of lost workers."""
    cached: int
    """Number of bottlenecks that were in the store already, or that a copy of the image had."""
    reasons: dict[int, str]
    """Why an image cannot be used, by its number."""
    repeated: dict[int, bytes]
    """Content hash of each usable image that is there more than once, by its number."""
    workers: int
    """Number of workers."""
    nodes: int
    """Number of nodes that were alive at the end."""
    seconds: float
    """Seconds from start to end, by the clock."""


def extract_on_cluster(
    images: Sequence[Path],
    backbone: Backbone,
    place: str | Path,
    *,
    views: int = 0,
    distortions: Distortions | None = None,
    dtype: str = "float16",
    progress: Progress = silent,
) -> ClusterExtraction:
    """Make sure that a shared store holds the bottlenecks of these images, computing those that are missing.

    Ray must be connected (`quickstudy.cluster.connected`). Every node reads the images by the same paths.

    Args:
        images: image files.
        backbone: the network whose default cut is taken.
        place: the store, a folder that all nodes see or a URI that pyarrow.fs knows.
        views: how many augmented views each image gets besides the plain one.
        distortions: how views differ from the plain image.
        dtype: `float16` or `float32`, as the store keeps them.
        progress: is told how far it has come, block by block.

    Raises:
        StoreError: the store cannot be read or written; what was flushed before is kept.
        ClusterError: the cluster was lost, or workers died again and again at the same images.
    """
    import ray

    started = time.perf_counter()
    store = open_shared_store(place)
    order = Order(
        place=str(store.folder or place),
        source=source_spec(backbone, dtype),
        backbone=backbone,
        views=views,
        distortions=distortions or Distortions(),
    )
    store.prepare(order.source)
    workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    rows = max(1, min(_BLOCK_IMAGES, -(-len(images) // (workers * _BLOCKS_A_WORKER))))
    blocks = [_block(images, start, start + rows) for start in range(0, len(images), rows)]
    workers = min(workers, len(blocks))
    computed = cached = done = 0
    reasons: dict[int, str] = {}
    digests = np.zeros((len(images), _HASH_BYTES), np.uint8)
    progress.start("bottlenecks", len(images))
    try:
        with contextlib.closing(finished_blocks(order, blocks, workers)) as finished:
            for row in finished:
                if row["failure"]:
                    raise (ClusterError if row["workers_died"] else StoreError)(row["failure"])
                done += row["images"]
                computed += row["computed"]
                cached += row["cached"]
                reasons.update(json.loads(row["reasons"]))
                mine = np.frombuffer(row["digests"], np.uint8).reshape(-1, _HASH_BYTES)
                digests[row["first"] : row["first"] + len(mine)] = mine
                progress.update(done=done, note=f"{cached} from the store, {computed} computed")
    except ray.exceptions.RayTaskError:  # a defect of ours, which wants its traceback
        raise
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"The cluster was lost ({first_line(error)}). "
            "What was computed is kept, and the same command continues from there"
        ) from error
    finally:
        progress.finish()
    digests[list(reasons)] = 0
    if store.folder is not None:
        with contextlib.suppress(StoreError):  # a store that is full serves what it has all the same
            Store(store.folder).source(order.source).compact()
    return ClusterExtraction(
        computed=computed,
        cached=cached,
        reasons=dict(sorted(reasons.items())),
        repeated=_repeated(digests),
        workers=workers,
        nodes=sum(bool(node["Alive"]) for node in ray.nodes()),
        seconds=time.perf_counter() - started,
    )


def _repeated(digests: NDArray[np.uint8]) -> dict[int, bytes]:
    """Find the content hashes (n×32) that stand there more than once, by their number; zeros are of no image."""
    known = np.flatnonzero(digests.any(axis=1))
    hashes = digests[known].view(f"V{_HASH_BYTES}")[:, 0] if known.size else np.empty(0, f"V{_HASH_BYTES}")
    _, group, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    return {number: digests[number].tobytes() for number in known[sizes[group] > 1].tolist()}


def _block(images: Sequence[Path], start: int, stop: int) -> pa.Table:
    # As bytes, since a path need not be valid text.
    paths = [os.fsencode(os.path.abspath(path)) for path in images[start:stop]]
    numbers = pa.array(range(start, start + len(paths)), pa.int64())
    return pa.table({"number": numbers, "path": pa.array(paths, pa.binary())})


def finished_blocks(order: Order, blocks: list[pa.Table], workers: int) -> Generator[dict[str, Any], None, None]:
    """Yield what became of each block of paths, as workers finish them."""
    if not blocks:
        return
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    graph = ray.put(order.backbone.path.read_bytes())
    ledger = ray.remote(Ledger).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(order)
    try:
        dataset = ray.data.from_arrow(blocks).map_batches(
            Worker,
            fn_constructor_kwargs={"order": order, "graph": graph, "ledger": ledger},
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_CORES_ASKED,
        )
        yield from dataset.iter_rows()
    finally:
        ray.kill(ledger)


# What runs on the nodes: workers, which compute blocks of images, and the ledger, which keeps them apart.

# So many images are asked about in one question to the ledger; as many files are read ahead.
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
    """All that decides the bottlenecks besides image and view."""
    backbone: Backbone
    """The network; its path is the driver's, and the graph travels separately."""
    views: int
    """Number of augmented views of each image besides the plain one."""
    distortions: Distortions
    """How views differ from the plain image."""

    def keys(self, digest: bytes) -> list[bytes]:
        """Return the keys of an image's views."""
        return [view_key(digest, view, self.distortions) for view in range(self.views + 1)]


class Ledger:
    """Knows which bottlenecks the store has and which are being computed; one for the whole cluster."""

    def __init__(self, order: Order) -> None:
        self._stored = open_shared_store(order.place).keys(order.source)
        self._claims: dict[bytes, int] = {}
        self._attempts: Counter[int] = Counter()

    def begin(self, block: int) -> int:
        """Note that a worker begins a block, known by its first image's number; return how often that has happened."""
        self._attempts[block] += 1
        return self._attempts[block]

    def claim(self, wanted: list[tuple[int, list[bytes]]]) -> list[list[int] | None]:
        """Give each image the views that are to be computed for it; None where the store has them all.

        No views are left to an image whose copy is being computed. An image that is asked for again gets the same
        views, as the worker that asked before may have been lost.

        Args:
            wanted: number and keys, by view, of each image.
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

    first: int
    """Number of the block's first image."""
    images: int
    """Number of images in the block."""
    digests: bytes = b""
    """Content hash of each image, one behind the other; zeros where it cannot be read."""
    computed: int = 0
    """Number of bottlenecks that were computed."""
    cached: int = 0
    """Number of bottlenecks that the store or a copy of the image has."""
    reasons: list[tuple[int, str]] = field(default_factory=list)
    """Number of each image that cannot be used, and why."""
    failure: str = ""
    """Why the block could not be finished, which ends the whole extraction; empty where it was."""
    workers_died: bool = False
    """Whether the block failed because workers died of it."""

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
        """Compute what is missing of a block (columns `number` and `path`), and return what became of it."""
        tally = _Tally(first=block["number"][0].as_py(), images=block.num_rows)
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
                    tally.digests += bytes(_HASH_BYTES)
                else:
                    usable.append((number, *content))
                    tally.digests += content[1]
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
                kept = replace(self.order.backbone, path=path).kept
                self._prefix = Prefix(kept, kept.cut, kept.cut_shape)
        return self._prefix


class _Output:
    """Gathers bottlenecks and writes them to the store in shards."""

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
    """Yield bytes and content hashes of files, or why there are none, by groups; the next group is read meanwhile."""
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
