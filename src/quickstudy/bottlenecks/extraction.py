"""Turns image files into bottlenecks, each computed once: read, hash, look up, decode, run the prefix, store.

One thread a core takes files one by one and carries each through all steps, so decoding overlaps with the prefix by
itself and memory does not grow with the number of images. One-thread runs of one session from several threads beat a
session that spreads a batch over the cores (see `quickstudy.backbones.runtime`). Finished bottlenecks gather in a
buffer that the main thread flushes to the store every two seconds; an interrupt or a kill loses no more than that.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engine import AnyPrefix, Engine
from quickstudy.backbones.runtime import ONNX_RUNTIME
from quickstudy.bottlenecks.shards import SourceSpec
from quickstudy.bottlenecks.store import KeptRows, Source, Store
from quickstudy.errors import StoreError, UnusableImageError
from quickstudy.images.census import Census
from quickstudy.images.decoding import InputSpec, decode
from quickstudy.images.distortions import Distortions
from quickstudy.images.identity import Stamp, StatIndex, read_image_file, stamp_of
from quickstudy.images.views import render_view, view_key
from quickstudy.process import give_way, usable_cores
from quickstudy.progress import Progress, silent

if TYPE_CHECKING:
    from quickstudy.bottlenecks.shared import SharedSource

_FLUSH_SECONDS = 2.0
_FLUSH_BYTES = 64 << 20
_POLL_SECONDS = 0.1


@dataclass(kw_only=True)
class Timings:
    """Seconds spent in each step, summed over the threads."""

    read: float = 0.0
    """Seconds of reading files and hashing them."""
    decode: float = 0.0
    """Seconds of decoding."""
    resize: float = 0.0
    """Seconds of rendering views from decoded images."""
    prefix: float = 0.0
    """Seconds in the network."""
    store: float = 0.0
    """Seconds of writing shards; the other threads go on meanwhile."""
    wall: float = 0.0
    """Seconds from start to end, by the clock."""

    def add(self, other: Timings) -> None:
        """Add another thread's seconds; wall time stays."""
        for name in ("read", "decode", "resize", "prefix", "store"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


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


@dataclass(kw_only=True)
class _Job:
    """What the threads share; `lock` guards all that changes."""

    images: Sequence[Path | bytes]
    expected: Sequence[bytes] | None
    known: dict[str, tuple[Stamp, bytes]]
    known_unusable: dict[bytes, str]
    backbone: Backbone
    source: Source
    prefix: _LazyPrefix
    views: int
    distortions: Distortions
    numbers: Iterator[int]
    digests: list[bytes | None]
    kept: Callable[[Sequence[bytes], Sequence[NDArray[np.floating]]], object] | None
    background: bool
    lock: threading.Lock = field(default_factory=threading.Lock)
    reasons: dict[int, str] = field(default_factory=dict)
    unusable: dict[int, bytes] = field(default_factory=dict)
    remembered: list[tuple[Path, Stamp, bytes]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    values: list[NDArray[np.floating]] = field(default_factory=list)
    under_way: set[bytes] = field(default_factory=set)
    done: int = 0
    computed: int = 0
    cached: int = 0
    stop: bool = False
    failure: BaseException | None = None
    timings: Timings = field(default_factory=Timings)


class _LazyPrefix:
    """Loads the prefix when the first image needs it; a run that finds everything in the store never does."""

    def __init__(self, engine: Engine, backbone: Backbone) -> None:
        self._engine, self._backbone = engine, backbone
        self._lock = threading.Lock()
        self._prefix: AnyPrefix | None = None

    def get(self) -> AnyPrefix:
        with self._lock:
            if self._prefix is None:
                kept = self._backbone.kept
                self._prefix = self._engine.open(kept, kept.cut, kept.cut_shape)
            return self._prefix

    def close(self) -> None:
        if self._prefix is not None:
            self._prefix.close()


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
    kept: Callable[[Sequence[bytes], Sequence[NDArray[np.floating]]], object] | None = None,
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
    job = _Job(
        images=images,
        expected=digests,
        known=index.look_up([image for image in images if isinstance(image, Path)]) if digests is None else {},
        known_unusable=index.unusable(),
        backbone=backbone,
        source=store.source(source_spec(backbone, dtype, engine)),
        prefix=_LazyPrefix(engine, backbone),
        views=views,
        distortions=distortions,
        numbers=iter(range(len(images))) if order is None else order,
        digests=[None] * len(images),
        kept=kept,
        background=background,
    )
    tiles = backbone.input.tiles
    progress.start("bottlenecks" if tiles == 1 else f"bottlenecks, {tiles} passes an image", len(images))
    workers = [threading.Thread(target=_work, args=(job,)) for _ in range(threads or engine.threads or usable_cores())]
    try:
        for worker in workers:
            worker.start()
        _supervise(job, workers, index, progress)
    finally:
        job.stop = True
        for worker in workers:
            worker.join()
        job.prefix.close()
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


def compute_bottlenecks(
    data: bytes,
    digest: bytes,
    views: Sequence[int],
    *,
    spec: InputSpec,
    distortions: Distortions,
    prefix: Callable[[], AnyPrefix],
    dtype: str,
    timings: Timings,
) -> Iterator[NDArray[np.floating]]:
    """Yield the bottlenecks of these views of an image file, given by its bytes, which are decoded once, at the start.

    Threads here and workers on a cluster all come through here, so a bottleneck is the same to the bit wherever it is
    computed.

    Raises:
        UnusableImageError: the bytes are no image that can be used; the message is the reason.
    """
    clock = time.perf_counter()
    decoded = decode(data, spec)
    timings.decode += time.perf_counter() - clock
    for view in views:
        before = time.perf_counter()
        pixels = render_view(decoded, spec, digest, view, distortions)
        timings.resize += (clock := time.perf_counter()) - before
        bottleneck: NDArray[np.floating] = prefix()(pixels[None])[0].astype(dtype)
        timings.prefix += time.perf_counter() - clock
        yield bottleneck


def _supervise(job: _Job, workers: Sequence[threading.Thread], index: StatIndex, progress: Progress) -> None:
    """Flush the buffer when it is due and tell how far things are, until the workers are done."""
    flushed = time.monotonic()
    while any(worker.is_alive() for worker in workers):
        next((worker for worker in workers if worker.is_alive()), workers[0]).join(_POLL_SECONDS)
        size = sum(values.nbytes for values in job.values[:1]) * len(job.values)
        if time.monotonic() - flushed > _FLUSH_SECONDS or size > _FLUSH_BYTES:
            _flush(job, index)
            flushed = time.monotonic()
        progress.update(done=job.done, note=f"{job.cached} from the store, {job.computed} computed")


def _flush(job: _Job, index: StatIndex) -> None:
    with job.lock:
        keys, values, remembered = job.keys, job.values, job.remembered
        job.keys, job.values, job.remembered = [], [], []
    started = time.perf_counter()
    if keys:
        job.source.append(keys, np.stack(values))
        if job.kept is not None:
            job.kept(keys, values)
    if remembered:
        index.remember(remembered)
    job.timings.store += time.perf_counter() - started


def _work(job: _Job) -> None:
    timings = Timings()
    if job.background:
        give_way()
    try:
        while not job.stop:
            with job.lock:
                number = next(job.numbers, None)
            if number is None:
                break
            try:
                _process(job, number, timings)
            except UnusableImageError as error:
                with job.lock:
                    job.reasons[number] = str(error)
            with job.lock:
                job.done += 1
    except BaseException as error:  # handed to the caller's thread
        job.failure = error
        job.stop = True
    finally:
        with job.lock:
            job.timings.add(timings)


def _process(job: _Job, number: int, timings: Timings) -> None:
    """Carry one file through all steps."""
    clock = time.perf_counter()
    data, digest = _identify(job, number)
    missing = _claim(job, digest)
    timings.read += time.perf_counter() - clock
    if missing and data is not None:
        bottlenecks = compute_bottlenecks(
            data,
            digest,
            [view for view, _ in missing],
            spec=job.backbone.input,
            distortions=job.distortions,
            prefix=job.prefix.get,
            dtype=job.source.spec.dtype,
            timings=timings,
        )
        try:
            for (_, key), bottleneck in zip(missing, bottlenecks, strict=True):
                with job.lock:
                    job.keys.append(key)
                    job.values.append(bottleneck)
                    job.computed += 1
        except UnusableImageError:
            job.unusable[number] = digest
            raise
    job.digests[number] = digest


def _identify(job: _Job, number: int) -> tuple[bytes | None, bytes]:
    """Return an image's bytes and content hash; no bytes where what is known of it and the store spare reading them.

    What is to be computed is always read first, so that it is claimed under the hash of what was read.
    """
    image = job.images[number]
    if isinstance(image, bytes):
        return image, hashlib.sha256(image).digest()
    if job.expected is not None:
        expected = job.expected[number]
        _require_usable(job, number, expected)
        if not _missing(job, expected):
            return None, expected
        data, digest = read_image_file(image)
        if digest != expected:
            raise UnusableImageError("changed while it was read")
        return data, digest
    stamp = stamp_of(image)
    known = job.known.get(os.path.abspath(image))
    if known is not None and known[0] == stamp:
        _require_usable(job, number, known[1])
        if not _missing(job, known[1]):
            return None, known[1]
    data, digest = read_image_file(image)
    with job.lock:
        job.remembered.append((image, stamp, digest))
    return data, digest


def _require_usable(job: _Job, number: int, digest: bytes) -> None:
    if (reason := job.known_unusable.get(digest)) is not None:
        job.unusable[number] = digest
        raise UnusableImageError(reason)


def _drop_copies_of_unusable(job: _Job) -> None:
    """Give copies of images that could not be decoded the same reason; they were taken for images under way."""
    reasons: dict[bytes, str] = {}
    for number, reason in sorted(job.reasons.items()):
        if (digest := job.unusable.get(number)) is not None:
            reasons.setdefault(digest, reason)
    for number, digest in enumerate(job.digests):
        if digest in reasons:
            job.digests[number] = None
            job.reasons[number] = reasons[digest]


def _claim(job: _Job, digest: bytes) -> list[tuple[int, bytes]]:
    """Claim for this thread the views of an image that nobody has computed: their numbers and keys."""
    with job.lock:
        missing = _missing(job, digest)
        job.under_way.update(key for _, key in missing)
        job.cached += job.views + 1 - len(missing)
    return missing


def _missing(job: _Job, digest: bytes) -> list[tuple[int, bytes]]:
    keys = ((view, view_key(digest, view, job.distortions)) for view in range(job.views + 1))
    return [(view, key) for view, key in keys if key not in job.source and key not in job.under_way]
