"""Turns image files into bottlenecks, each computed once: read, hash, look up, decode, run the prefix, store.

One thread a core takes files one by one and carries each through all steps, so decoding overlaps with the prefix by
itself and memory does not grow with the number of images. One-thread runs of one session from several threads beat a
session that spreads a batch over the cores (see `quickstudy.backbones.engines.named`). Finished bottlenecks gather in a
buffer that the main thread flushes to the store every two seconds; an interrupt or a kill loses no more than that.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.engine import Engine
from quickstudy.backbones.engines.named import ONNX_RUNTIME
from quickstudy.bottlenecks.carrying import Job, LazyPrefix, carry_batch, carry_next, work
from quickstudy.bottlenecks.preparing import Preparers, Timings
from quickstudy.bottlenecks.shards import SourceSpec
from quickstudy.bottlenecks.store import KeptRows, Source, Store
from quickstudy.errors import StoreError
from quickstudy.images.census import Census
from quickstudy.images.distortions import Distortions
from quickstudy.images.identity import StatIndex
from quickstudy.images.views import view_key
from quickstudy.process import usable_cores
from quickstudy.progress import Progress, silent

if TYPE_CHECKING:
    from quickstudy.bottlenecks.shared import SharedSource

_FLUSH_SECONDS = 2.0
_FLUSH_BYTES = 64 << 20
_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What an extraction found and did."""

    source: Source | SharedSource
    """The part of the store that holds the bottlenecks."""
    backbone: Backbone
    """The network, cut where the bottlenecks were asked for."""
    digests: tuple[bytes | None, ...]
    """Content hash by image; None where the file cannot be used."""
    reasons: dict[int, str]
    """Why an image cannot be used, by its number."""
    computed: int
    """Number of forward passes through the prefix."""
    cached: int
    """Number of bottlenecks that were in the store already."""
    views: int
    """Number of augmented views of each image besides the plain one."""
    distortions: Distortions
    """How views differ from the plain image."""
    timings: Timings
    """Seconds spent in each step."""
    unusable: dict[bytes, str] = field(default_factory=dict)
    """Why contents cannot be used, by digest, where those of a census were extracted."""

    def gather(self, digests: Sequence[bytes], view: int = 0, *, levels: bool = False) -> NDArray[np.floating]:
        """Read the bottlenecks of one view of these images, in their order.

        Args:
            digests: content hashes of the images.
            view: number of the view; 0 is the plain image.
            levels: read `levels`, of which the features are the beginning, where the cut is `features`.
        """
        keys = [view_key(digest, view, self.distortions) for digest in digests]
        return self.source.gather(keys, self._first(levels))

    def rows(self, digests: Sequence[bytes], *, levels: bool = False) -> KeptRows:
        """Give the bottlenecks of all views of these images, to be read piece by piece: the images view by view.

        Args:
            digests: content hashes of the images.
            levels: as for `gather`.
        """
        keys = [view_key(digest, view, self.distortions) for view in range(self.views + 1) for digest in digests]
        return self.source.rows(keys, self._first(levels))

    def _first(self, levels: bool) -> int | None:
        """Give the number of values that are read of each bottleneck; None for all."""
        return None if levels or self.backbone.kept is self.backbone else self.backbone.cut_shape[0]


def extract(
    images: Sequence[Path | bytes],
    backbone: Backbone,
    store: Store,
    *,
    digests: Sequence[bytes] | None = None,
    views: int = 0,
    distortions: Distortions | None = None,
    dtype: str = "float16",
    engine: Engine = ONNX_RUNTIME,
    threads: int | None = None,
    order: Iterator[int] | None = None,
    kept: Callable[[Sequence[bytes], NDArray[np.floating]], object] | None = None,
    background: bool = False,
    progress: Progress = silent,
) -> Extraction:
    """Make sure that the store holds the bottlenecks of these images, computing those that are missing.

    Args:
        images: image files, or what would be in them.
        backbone: the network whose default cut is taken.
        store: where bottlenecks are kept.
        digests: the images' content hashes, where a census knows them: files whose bottlenecks the store has are not
            read, and a file that has another content by now cannot be used.
        views: how many augmented views each image gets besides the plain one.
        distortions: how views differ from the plain image.
        dtype: `float16` or `float32`, as the store keeps them.
        engine: what runs the network.
        threads: number of threads; as many as the engine asks for, or else as there are cores, if left out.
        order: the images' numbers in the order in which to take them, asked for one at a time, by one thread at a time;
            images that it leaves out are left out.
        kept: is told the keys and bottlenecks that have just been written to the store, by the calling thread.
        background: let the rest of the process go first, where the system has priorities of threads, as Linux has.
        progress: is told how far it has come.

    Raises:
        StoreError: the store cannot be read or written; what was flushed before is kept.
    """
    started = time.perf_counter()
    distortions = distortions or Distortions()
    index = StatIndex(store.index_path)
    count = threads or engine.threads or usable_cores()
    job = Job(
        images=images,
        expected=digests,
        known=index.look_up([image for image in images if isinstance(image, Path)]) if digests is None else {},
        known_unusable=index.unusable(),
        backbone=backbone,
        source=store.source(source_spec(backbone, dtype, engine)),
        prefix=LazyPrefix(engine, backbone),
        views=views,
        distortions=distortions,
        numbers=iter(range(len(images))) if order is None else order,
        digests=[None] * len(images),
        kept=kept,
        background=background,
        running=count,
    )
    tiles = backbone.input.tiles
    progress.start("bottlenecks" if tiles == 1 else f"bottlenecks, {tiles} passes an image", len(images))
    preparers = None
    if engine.batch is None:
        workers = [threading.Thread(target=work, args=(job, carry_next)) for _ in range(count)]
    else:
        rows = max(engine.batch, views + 1)
        preparers = Preparers(backbone.input, distortions, blocks=count, rows=rows, workers=usable_cores())
        workers = [
            threading.Thread(target=work, args=(job, partial(carry_batch, preparers=preparers, block=block)))
            for block in range(count)
        ]
    try:
        for worker in workers:
            worker.start()
        _supervise(job, index, progress)
    finally:
        job.stop = True
        for worker in workers:
            if worker.ident is not None:  # else it was not started
                worker.join()
        job.prefix.close()
        if preparers is not None:
            preparers.close()
        try:
            _flush(job, index)
            index.remember_unusable({digest: job.reasons[number] for number, digest in job.unusable.items()})
        finally:
            index.close()
            progress.finish()
    if job.failure is not None:
        raise job.failure
    _drop_copies_of_unusable(job)
    with contextlib.suppress(StoreError):  # a store that is full or read-only serves what it has all the same
        job.source.compact()
    job.timings.wall = time.perf_counter() - started
    return Extraction(
        source=job.source,
        backbone=backbone,
        digests=tuple(job.digests),
        reasons=job.reasons,
        computed=job.computed,
        cached=job.cached,
        views=views,
        distortions=distortions,
        timings=job.timings,
    )


def extract_census(
    census: Census,
    backbone: Backbone,
    store: Store,
    *,
    unlabelled: bool = False,
    **options: Any,
) -> Extraction:
    """Make sure that the store holds the bottlenecks of a census' images; see `extract`.

    Args:
        census: the images, of which those that have a role are taken.
        backbone: as for `extract`.
        store: as for `extract`.
        unlabelled: take images without a role, too.
        **options: as for `extract`.
    """
    contents = [content for content in census.contents.values() if content.role is not None or unlabelled]
    digests = [content.digest for content in contents]
    found = extract([content.path for content in contents], backbone, store, digests=digests, **options)
    return replace(found, unusable={digests[number]: reason for number, reason in found.reasons.items()})


def source_spec(backbone: Backbone, dtype: str, engine: Engine = ONNX_RUNTIME) -> SourceSpec:
    """Describe all that decides the bottlenecks that are kept for a backbone's default cut besides image and view."""
    kept = backbone.kept
    return SourceSpec(
        backbone=backbone.name,
        fingerprint=backbone.fingerprint,
        cut=kept.cut,
        input=backbone.input.to_dict(),
        shape=kept.cut_shape,
        dtype=dtype,
        engine=engine.name,
    )


def _supervise(job: Job, index: StatIndex, progress: Progress) -> None:
    """Flush the buffer when it is due and tell how far things are, until the workers are done."""
    flushed, over = time.monotonic(), False
    # Not by `Thread.join`: where a signal's exception leaves it, Python 3.11 takes the thread for ended
    # (bpo-45274), nobody waits for it any more, and the process aborts.
    while not over:
        over = job.over.wait(_POLL_SECONDS)
        size = sum(values.nbytes for values in list(job.values))
        if time.monotonic() - flushed > _FLUSH_SECONDS or size > _FLUSH_BYTES:
            _flush(job, index)
            flushed = time.monotonic()
        progress.update(done=job.done, note=f"{job.cached} from the store, {job.computed} computed")


def _flush(job: Job, index: StatIndex) -> None:
    with job.lock:
        keys, values, remembered = job.keys, job.values, job.remembered
        job.keys, job.values, job.remembered = [], [], []
    started = time.perf_counter()
    if keys:
        rows = np.concatenate(values)
        job.source.append(keys, rows)
        if job.kept is not None:
            job.kept(keys, rows)
    if remembered:
        index.remember(remembered)
    job.timings.store += time.perf_counter() - started


def _drop_copies_of_unusable(job: Job) -> None:
    """Give copies of images that could not be decoded the same reason; they were taken for images under way."""
    reasons: dict[bytes, str] = {}
    for number, reason in sorted(job.reasons.items()):
        if (digest := job.unusable.get(number)) is not None:
            reasons.setdefault(digest, reason)
    for number, digest in enumerate(job.digests):
        if digest in reasons:
            job.digests[number] = None
            job.reasons[number] = reasons[digest]
