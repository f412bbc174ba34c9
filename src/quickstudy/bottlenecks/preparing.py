"""An image on its way to a network: read, hashed, decoded and rendered, here or by processes beside this one.

Threads do not scale for it (3,642 images a second on 16 cores, where one core takes 0.85 ms an image). Counted on two
busy cores: of 2.3 ms of a core an image, 0.5 to 0.7 went into 400 page faults, for which the threads of a process wait
in one line, since the memory of every array went back to the system and came again; `process.keep_memory` ends that,
and an image then takes 1.7 ms. About a tenth of that is Python's, which runs one thread at a time. So a GPU's images
are made ready by processes, which write into memory that they share with this one.

They are started as programs of their own, so that a program which uses quickstudy needs no `__main__` that can be
imported again, and end when their input does: with this process, however it ends. The memory has no name in the file
system, so a kill leaves nothing behind. Where a system has no such memory, threads do the same.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import MachineError, UnusableImageError
from quickstudy.images.decoding import InputSpec, decode
from quickstudy.images.distortions import Distortions
from quickstudy.images.identity import read_image_file
from quickstudy.images.views import render_view
from quickstudy.process import how_it_ended, settle_own_process

if TYPE_CHECKING:  # each of the processes imports this module, and needs no networks
    from quickstudy.backbones.engines.engine import AnyPrefix

_TICKET_ROWS = 16
"""About as many views are ordered from a process at a time: a few hundredths of a second."""
_ENDING_SECONDS = 10.0
"""Seconds that a process has to end once its input has."""


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


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """An image whose views are to be made ready."""

    image: Path | bytes
    """The file, or what would be in it."""
    expected: bytes | None
    """Content hash that it must have; None where nobody knows it."""
    views: Sequence[int]
    """Numbers of the views, 0 being the plain image."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What became of an image that was wanted."""

    digest: bytes | None
    """Content hash; None where the image was not read, or is another one by now."""
    reason: str | None
    """Why it cannot be used; None where its views are ready."""
    seconds: tuple[float, float, float]
    """Seconds of reading, decoding and rendering."""


def make_ready(wanted: Wanted, rows: NDArray[np.uint8], spec: InputSpec, distortions: Distortions) -> Ready:
    """Read an image, decode it and render its views into `rows`, one after the other."""
    clock = [time.perf_counter()]
    digest = None
    try:
        if isinstance(wanted.image, bytes):
            data, digest = wanted.image, hashlib.sha256(wanted.image).digest()
        else:
            data, digest = read_image_file(wanted.image)
        clock.append(time.perf_counter())
        if wanted.expected is not None and digest != wanted.expected:
            digest = None
            raise UnusableImageError("changed while it was read")
        decoded = decode(data, spec)
        clock.append(time.perf_counter())
        for row, view in zip(rows, wanted.views, strict=True):
            row[...] = render_view(decoded, spec, digest, view, distortions)
        clock.append(time.perf_counter())
        reason = None
    except UnusableImageError as error:
        reason = str(error)
    spent = [*np.diff(clock), 0.0, 0.0, 0.0][:3]
    return Ready(digest=digest, reason=reason, seconds=(float(spent[0]), float(spent[1]), float(spent[2])))


class Preparers:
    """Makes images ready, many at a time, in blocks of memory that processes share."""

    def __init__(
        self,
        spec: InputSpec,
        distortions: Distortions,
        *,
        blocks: int,
        rows: int,
        workers: int,
        apart: bool = True,
    ) -> None:
        """Reserve the memory; the processes begin when there is something to do for them.

        Args:
            spec: the network's input.
            distortions: how views differ from the plain image.
            blocks: number of blocks, each filled by one thread at a time.
            rows: number of views that a block has room for.
            workers: number of processes.
            apart: whether processes do the work, where the system can; threads of this one do it if not.
        """
        self._spec, self._distortions = spec, distortions
        shape = (blocks, rows, *spec.shape)
        self._order = {"spec": spec.to_dict(), "distortions": asdict(distortions), "shape": shape}
        size = math.prod(shape)
        self._memory = _shared_memory(size) if apart and sys.executable else None
        mapped = mmap.mmap(-1 if self._memory is None else self._memory, size)
        self.blocks: NDArray[np.uint8] = np.frombuffer(mapped, np.uint8).reshape(shape)
        """Memory of the blocks: blocks × rows × the shape of an input."""
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="quickstudy-ready")

    def fill(self, block: int, wanted: Sequence[Wanted]) -> list[Ready]:
        """Make images ready in a block: their views lie one after the other from its first row on.

        Raises:
            MachineError: the processes cannot be started.
        """
        tickets: list[tuple[int, list[Wanted]]] = []
        at = begun = 0
        for one in wanted:
            if not tickets or at - begun >= _TICKET_ROWS:
                tickets.append((at, []))
                begun = at
            tickets[-1][1].append(one)
            at += len(one.views)
        return [one for part in self._pool.map(lambda ticket: self._carry(block, *ticket), tickets) for one in part]

    def close(self) -> None:
        """End the processes, and let go of the memory."""
        self._pool.shutdown(cancel_futures=True)
        for process in self._processes:
            _end(process)
        if self._memory is not None:
            os.close(self._memory)

    def _start(self) -> subprocess.Popen[bytes]:
        assert self._memory is not None  # noqa: S101 (asked before)
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(self._memory), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._memory],
            start_new_session=True,  # Ctrl-C is for this process, which ends them
        )
        with self._lock:
            self._processes.append(process)
        with contextlib.suppress(OSError):
            _write(process.stdin, self._order)
        if process.stdout is None or process.stdout.readline() != _BEGUN:
            raise MachineError(
                f"A process that decodes images could not be started ({how_it_ended(_end(process))}); see what it "
                "says above, or leave out --engine to decode in threads"
            )
        return process

    def _carry(self, block: int, at: int, wanted: list[Wanted]) -> list[Ready]:
        """Have images made ready from a row on; one at which a process dies twice cannot be used."""
        if not hasattr(self._mine, "process"):
            self._mine.process = None if self._memory is None else self._start()
        if self._mine.process is None:
            return list(_each_ready(self.blocks[block], at, wanted, self._spec, self._distortions))
        try:
            return self._ask(block, at, wanted)
        except (EOFError, OSError):
            process = self._mine.process
            _end(process)
            self._mine.process = self._start()
        if len(wanted) > 1:
            parts = []
            for one in wanted:
                parts += self._carry(block, at, [one])
                at += len(one.views)
            return parts
        try:
            return self._ask(block, at, wanted)
        except (EOFError, OSError):
            how = how_it_ended(_end(self._mine.process))
            self._mine.process = self._start()
            return [Ready(digest=None, reason=f"kills the process that decodes it ({how})", seconds=(0.0, 0.0, 0.0))]

    def _ask(self, block: int, at: int, wanted: list[Wanted]) -> list[Ready]:
        process = self._mine.process
        _write(process.stdin, [block, at, [_told(one) for one in wanted]])
        line = process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return [
            Ready(digest=None if digest is None else bytes.fromhex(digest), reason=reason, seconds=tuple(seconds))
            for digest, reason, seconds in json.loads(line)
        ]


def _shared_memory(size: int) -> int | None:
    """Make memory that processes can share, by its descriptor; None where the system, or a sandbox, has none.

    It is none of `/dev/shm`, of which containers often have 64 MB.
    """
    if not hasattr(os, "memfd_create"):
        return None
    try:
        memory = os.memfd_create("quickstudy-views")
    except OSError:
        return None
    os.ftruncate(memory, size)
    return memory


_PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from quickstudy.bottlenecks.preparing import prepare; prepare()"


_BEGUN = b"begun\n"
"""What a process says first."""


def prepare() -> None:
    """Be one of the processes: take orders from standard input, line by line, until it ends."""
    settle_own_process()
    order = json.loads(sys.stdin.buffer.readline())
    spec, distortions = InputSpec.from_dict(order["spec"]), Distortions(**order["distortions"])
    memory = mmap.mmap(int(sys.argv[1]), math.prod(order["shape"]))
    blocks = np.frombuffer(memory, np.uint8).reshape(order["shape"])
    sys.stdout.buffer.write(_BEGUN)
    sys.stdout.buffer.flush()
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for line in sys.stdin.buffer:
            block, at, told = json.loads(line)
            wanted = [
                Wanted(
                    image=Path(os.fsdecode(os.fsencode(path))) if data is None else base64.b64decode(data),
                    expected=None if expected is None else bytes.fromhex(expected),
                    views=views,
                )
                for path, data, expected, views in told
            ]
            ready = _each_ready(blocks[block], at, wanted, spec, distortions)
            answer = [(None if one.digest is None else one.digest.hex(), one.reason, one.seconds) for one in ready]
            _write(sys.stdout.buffer, answer)


def _each_ready(
    block: NDArray[np.uint8], at: int, wanted: Sequence[Wanted], spec: InputSpec, distortions: Distortions
) -> Iterator[Ready]:
    for one in wanted:
        yield make_ready(one, block[at : at + len(one.views)], spec, distortions)
        at += len(one.views)


def _told(wanted: Wanted) -> tuple[str | None, str | None, str | None, list[int]]:
    """Say as JSON values what is wanted; a path that is not valid text stays what it is."""
    data = base64.b64encode(wanted.image).decode() if isinstance(wanted.image, bytes) else None
    path = None if isinstance(wanted.image, bytes) else os.path.abspath(wanted.image)
    return path, data, None if wanted.expected is None else wanted.expected.hex(), list(wanted.views)


def _write(pipe: Any, values: object) -> None:
    pipe.write(json.dumps(values).encode() + b"\n")
    pipe.flush()


def _end(process: subprocess.Popen[bytes]) -> int:
    """End a process by ending its input, and give its exit status."""
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    try:
        return process.wait(_ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
