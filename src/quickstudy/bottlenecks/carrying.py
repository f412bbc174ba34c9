"""What the threads of an extraction share, and how each carries images through: one by one, or a batch at a time.

An image is claimed before it is computed, under the hash of what was read, so that nobody computes the same twice.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.engine import AnyPrefix, Engine
from quickstudy.bottlenecks.preparing import Preparers, Ready, Timings, Wanted, compute_bottlenecks
from quickstudy.bottlenecks.store import Source
from quickstudy.errors import UnusableImageError
from quickstudy.images.distortions import Distortions
from quickstudy.images.identity import Stamp, read_image_file, stamp_of
from quickstudy.images.views import view_key
from quickstudy.process import give_way


@dataclass(kw_only=True)
class Job:
    """What the threads share; `lock` guards all that changes."""

    images: Sequence[Path | bytes]
    """Image files, or what would be in them."""
    expected: Sequence[bytes] | None
    """Content hashes of the images, where a census knows them; None where it does not."""
    known: dict[str, tuple[Stamp, bytes]]
    """Stamp and content hash of files that the stat index knows, by absolute path."""
    known_unusable: dict[bytes, str]
    """Why contents cannot be used, by content hash, as far as the stat index knows."""
    backbone: Backbone
    """Network whose bottlenecks are wanted."""
    source: Source
    """Part of the store that they are kept in."""
    prefix: LazyPrefix
    """What runs the network, made by the first thread that needs it."""
    views: int
    """Number of augmented views of each image, besides the plain one; at least 0."""
    distortions: Distortions
    """How views differ from the plain image."""
    numbers: Iterator[int]
    """Numbers of the images that are left, in the order in which they are taken."""
    digests: list[bytes | None]
    """Content hash of each image whose bottlenecks the store has or will have; None for the others."""
    kept: Callable[[Sequence[bytes], NDArray[np.floating]], object] | None
    """Is told keys and bottlenecks that have been written to the store; None where nobody is."""
    background: bool
    """Whether the rest of the process goes first."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held by whoever reads or changes what the threads share."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Why images cannot be used, by their number."""
    unusable: dict[int, bytes] = field(default_factory=dict)
    """Content hash of images that prove unusable, by their number."""
    remembered: list[tuple[Path, Stamp, bytes]] = field(default_factory=list)
    """Files that the stat index is to learn of: path, stamp and content hash."""
    keys: list[bytes] = field(default_factory=list)
    """Keys of bottlenecks that wait to be written to the store."""
    values: list[NDArray[np.floating]] = field(default_factory=list)
    """Bottlenecks (n × their shape, each) of `keys`, in their order."""
    under_way: set[bytes] = field(default_factory=set)
    """Keys that a thread has claimed: nobody else computes them."""
    done: int = 0
    """Number of images that have gone through all steps."""
    computed: int = 0
    """Number of bottlenecks that were computed."""
    cached: int = 0
    """Number of bottlenecks that the store had."""
    stop: bool = False
    """Whether the threads are to end."""
    failure: BaseException | None = None
    """What a thread failed with; None while none has."""
    running: int
    """Number of threads that have not ended."""
    over: threading.Event = field(default_factory=threading.Event)
    """Set when the last thread ends."""
    timings: Timings = field(default_factory=Timings)
    """Seconds that the steps took, over all threads."""


class LazyPrefix:
    """Loads the prefix when the first image needs it; a run that finds everything in the store never does."""

    def __init__(self, engine: Engine, backbone: Backbone) -> None:
        self._engine, self._backbone = engine, backbone
        self._lock = threading.Lock()
        self._prefix: AnyPrefix | None = None

    def get(self) -> AnyPrefix:
        """Load the prefix, if nobody has, and return it."""
        with self._lock:
            if self._prefix is None:
                kept = self._backbone.kept
                self._prefix = self._engine.open(kept, kept.cut, kept.cut_shape)
            return self._prefix

    def close(self) -> None:
        """Let go of the prefix, if somebody has loaded it."""
        if self._prefix is not None:
            self._prefix.close()


def work(job: Job, carry: Callable[[Job, Timings], bool]) -> None:
    """Be one of the threads: carry images through until there are no more."""
    timings = Timings()
    if job.background:
        give_way()
    try:
        while not job.stop and carry(job, timings):
            pass
    except BaseException as error:  # handed to the caller's thread
        job.failure = error
        job.stop = True
    finally:
        with job.lock:
            job.timings.add(timings)
            job.running -= 1
            if not job.running:
                job.over.set()


def carry_next(job: Job, timings: Timings) -> bool:
    """Carry the next image through all steps; say whether there was one."""
    with job.lock:
        number = next(job.numbers, None)
    if number is None:
        return False
    try:
        _process(job, number, timings)
    except UnusableImageError as error:
        with job.lock:
            job.reasons[number] = str(error)
    with job.lock:
        job.done += 1
    return True


def _process(job: Job, number: int, timings: Timings) -> None:
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
                _keep(job, [key], bottleneck[None])
        except UnusableImageError:
            job.unusable[number] = digest
            raise
    job.digests[number] = digest


def _keep(job: Job, keys: list[bytes], bottlenecks: NDArray[np.floating]) -> None:
    with job.lock:
        job.keys += keys
        job.values.append(bottlenecks)
        job.computed += len(keys)


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """An image of a batch."""

    number: int
    wanted: Wanted
    missing: list[tuple[int, bytes]] | None
    """Number and key of each view that was claimed; None where the content is known only when it has been read."""
    stamp: Stamp | None
    """What the index is to recognise the file by; None where it need not remember it."""


def carry_batch(job: Job, timings: Timings, *, preparers: Preparers, block: int) -> bool:
    """Carry as many of the next images through all steps as fill a block; say whether there were any."""
    pixels = preparers.blocks[block]
    taken = _take(job, len(pixels))
    if not taken:
        return False
    if block == 0:
        job.prefix.get()  # takes seconds the first time, in which the other threads' images are made ready
    ready = preparers.fill(block, [one.wanted for one in taken])
    keys: list[bytes] = []
    rows: list[int] = []
    at = 0
    for one, found in zip(taken, ready, strict=True):
        for name, seconds in zip(("read", "decode", "resize"), found.seconds, strict=True):
            setattr(timings, name, getattr(timings, name) + seconds)
        missing = _settle(job, one, found)
        places = {view: at + place for place, view in enumerate(one.wanted.views)}
        keys += [key for _, key in missing]
        rows += [places[view] for view, _ in missing]
        at += len(one.wanted.views)
    if rows:
        clock = time.perf_counter()
        whole = rows == list(range(len(rows)))
        bottlenecks = job.prefix.get()(pixels[: len(rows)] if whole else pixels[rows])
        timings.prefix += time.perf_counter() - clock
        _keep(job, keys, bottlenecks.astype(job.source.spec.dtype))
    with job.lock:
        job.done += len(taken)
    return True


def _take(job: Job, rows: int) -> list[_Taken]:
    """Take the next images, up to so many views; what needs no network is done with at once."""
    taken: list[_Taken] = []
    left = rows
    while left > job.views and not job.stop:
        with job.lock:
            number = next(job.numbers, None)
        if number is None:
            break
        try:
            one = _look(job, number)
        except UnusableImageError as error:
            one = None
            with job.lock:
                job.reasons[number] = str(error)
        if one is None:
            with job.lock:
                job.done += 1
        else:
            taken.append(one)
            left -= len(one.wanted.views)
    return taken


def _look(job: Job, number: int) -> _Taken | None:
    """Say what of an image is to be made ready; None where the store has all of it."""
    image, stamp = job.images[number], None
    expected = hashlib.sha256(image).digest() if isinstance(image, bytes) else None
    if job.expected is not None:
        expected = job.expected[number]
    elif isinstance(image, Path):
        stamp = stamp_of(image)
        known = job.known.get(os.path.abspath(image))
        if known is not None and known[0] == stamp:
            _require_usable(job, number, known[1])
            if not _missing(job, known[1]):
                expected, stamp = known[1], None
    if expected is None:
        wanted = Wanted(image=image, expected=None, views=range(job.views + 1))
        return _Taken(number=number, wanted=wanted, missing=None, stamp=stamp)
    _require_usable(job, number, expected)
    missing = _claim(job, expected)
    if not missing:
        job.digests[number] = expected
        return None
    wanted = Wanted(image=image, expected=expected, views=[view for view, _ in missing])
    return _Taken(number=number, wanted=wanted, missing=missing, stamp=None)


def _settle(job: Job, taken: _Taken, found: Ready) -> list[tuple[int, bytes]]:
    """Note what became of an image; number and key of each of its views that are to pass through the network."""
    if found.digest is not None and taken.stamp is not None and isinstance(taken.wanted.image, Path):
        with job.lock:
            job.remembered.append((taken.wanted.image, taken.stamp, found.digest))
    if found.reason is not None or found.digest is None:
        with job.lock:
            job.reasons[taken.number] = found.reason or "unreadable"
            if found.digest is not None:
                job.unusable[taken.number] = found.digest
        return []
    job.digests[taken.number] = found.digest
    return _claim(job, found.digest) if taken.missing is None else taken.missing


def _identify(job: Job, number: int) -> tuple[bytes | None, bytes]:
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


def _require_usable(job: Job, number: int, digest: bytes) -> None:
    if (reason := job.known_unusable.get(digest)) is not None:
        job.unusable[number] = digest
        raise UnusableImageError(reason)


def _claim(job: Job, digest: bytes) -> list[tuple[int, bytes]]:
    """Claim for this thread the views of an image that nobody has computed: their numbers and keys."""
    with job.lock:
        missing = _missing(job, digest)
        job.under_way.update(key for _, key in missing)
        job.cached += job.views + 1 - len(missing)
    return missing


def _missing(job: Job, digest: bytes) -> list[tuple[int, bytes]]:
    keys = ((view, view_key(digest, view, job.distortions)) for view in range(job.views + 1))
    return [(view, key) for view, key in keys if key not in job.source and key not in job.under_way]
