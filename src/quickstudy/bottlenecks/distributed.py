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
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from quickstudy.backbones.backbone import Backbone
from quickstudy.bottlenecks.extraction import source_spec
from quickstudy.bottlenecks.shared import open_shared_store
from quickstudy.bottlenecks.store import Store
from quickstudy.bottlenecks.worker import Ledger, Order, Worker
from quickstudy.errors import ClusterError, StoreError
from quickstudy.images.distortions import Distortions
from quickstudy.progress import Progress, silent

# A shard of 1,280 float16 values an image then has 5 MB: few enough objects, none so small that it is merged later.
_BLOCK_IMAGES = 2048
# Fewer images a block where there are few, so that workers end at about the same time.
_BLOCKS_A_WORKER = 8
# Workers that ask for a whole core each leave none for Ray Data's own tasks, and everything waits for ever.
_CORES_ASKED = 0.5


@dataclass(frozen=True, kw_only=True)
class ClusterExtraction:
    """What an extraction on a cluster found and did."""

    computed: int
    """Forward passes through the prefix, without those of lost workers."""
    cached: int
    """Bottlenecks that were in the store already, or that a copy of the image had."""
    reasons: dict[int, str]
    """Why an image cannot be used, by its number."""
    workers: int
    nodes: int
    seconds: float


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

    To be called while Ray is connected (`quickstudy.cluster.connected`). Every node reads the images by the same paths.

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
    progress.start("bottlenecks", len(images))
    try:
        with contextlib.closing(_rows(order, blocks, workers)) as finished:
            for row in finished:
                if row["failure"]:
                    raise (ClusterError if row["workers_died"] else StoreError)(row["failure"])
                done += row["images"]
                computed += row["computed"]
                cached += row["cached"]
                reasons.update(json.loads(row["reasons"]))
                progress.update(done=done, note=f"{cached} from the store, {computed} computed")
    except ray.exceptions.RayTaskError:  # a defect of ours, which wants its traceback
        raise
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"The cluster was lost ({_first_line(error)}). "
            "What was computed is kept, and the same command goes on from there"
        ) from error
    finally:
        progress.finish()
    if store.folder is not None:
        with contextlib.suppress(StoreError):  # a store that is full serves what it has all the same
            Store(store.folder).source(order.source).compact()
    return ClusterExtraction(
        computed=computed,
        cached=cached,
        reasons=dict(sorted(reasons.items())),
        workers=workers,
        nodes=sum(bool(node["Alive"]) for node in ray.nodes()),
        seconds=time.perf_counter() - started,
    )


def _block(images: Sequence[Path], start: int, stop: int) -> pa.Table:
    # As bytes, since a path need not be valid text.
    paths = [os.fsencode(os.path.abspath(path)) for path in images[start:stop]]
    numbers = pa.array(range(start, start + len(paths)), pa.int64())
    return pa.table({"number": numbers, "path": pa.array(paths, pa.binary())})


def _rows(order: Order, blocks: list[pa.Table], workers: int) -> Generator[dict[str, Any], None, None]:
    """What became of each block, as workers finish them."""
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


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
