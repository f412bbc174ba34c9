"""What belongs to the whole process is settled here: environment, warning filters, signals, cores, its own processes.

A process that only imports quickstudy is somebody else's: importing the library changes nothing of it, neither
environment nor warning filters, umask or signal handlers, and what is set later is set for moments and put back. The
command line, and the workers that it starts, are processes of our own: those call `settle_own_process`.
"""

from __future__ import annotations

import _thread
import contextlib
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

_LOCK = threading.Lock()
_LOW_PRIORITY = 5  # of -20, first, to 19, last; at 15, other programs on the cores left next to nothing
_INSIDE: Counter[str] = Counter()
"""Number of contexts that hold each environment variable, by its name."""

TELEMETRY_OFF = ("ORT_DISABLE_TELEMETRY", "1")
"""Variable and value that keep ONNX Runtime, from 1.29 on, from telling its makers about the machine.

It reads them when it is imported: nobody's photos are anybody's business. A program that imports ONNX Runtime before
quickstudy does decides for itself.
"""

# torch's threads spin for milliseconds while they wait for each other. Beside another process on the same cores, like
# the evaluator, that made a step up to ten times as long. So many turns (some 20 µs) cost a step alone nothing, and
# sleeping at once (OMP_WAIT_POLICY=PASSIVE) an eighth. Read when torch is first imported, so it has to be there before.
_SPINNING = ("GOMP_SPINCOUNT", "20000")
IMPORTING = threading.RLock()
"""Held by the one thread that imports a package which several may want first.

Where two threads begin to import parts of scikit-learn at once, whose modules import each other in a circle, Python
gives one of them a module that is not complete, and both imports fail.
"""


def how_it_ended(code: int) -> str:
    """Say how a process ended, by its exit status, which is the negative number of the signal that killed it."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


@contextmanager
def default_variable(name: str, value: str) -> Iterator[None]:
    """Give an environment variable a value inside this context, unless somebody has set it; then it is gone again.

    Threads may be inside at once; the last to leave takes the variable away. What other threads start meanwhile
    inherits it.
    """
    with _LOCK:
        ours = _INSIDE[name] > 0 or name not in os.environ
        if ours:
            _INSIDE[name] += 1
            os.environ[name] = value
    try:
        yield
    finally:
        with _LOCK:
            if ours:
                _INSIDE[name] -= 1
                if not _INSIDE[name]:
                    os.environ.pop(name, None)


_ASKING_TO_END = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def starting_own_process() -> Iterator[None]:
    """Make a context in which to start a process of quickstudy's own, so that it inherits what it needs.

    What asks a process to end waits until `settle_own_process` has been called there, so that none ends half-started.
    What arrives at this thread meanwhile comes at the end of the context.
    """
    with default_variable(*_SPINNING):
        if not hasattr(signal, "pthread_sigmask"):
            yield
            return
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # which would let the signals through again, were it begun inside
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING_TO_END)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_IMPORTED = ("quickstudy.sweeps.workers", "torch._dynamo", "torch.utils.tensorboard")
"""What trains, by module; torch imports the last two in the first step of a training, which takes seconds."""


_SOCKET_NAME = len("/pymp-12345678/listener-12345678")
"""Bytes of what multiprocessing adds to the folder for temporary files."""
_LONGEST_ADDRESS = 107 if sys.platform == "linux" else 103
"""Most bytes of a socket's address."""


def own_processes() -> Any:
    """Give the context of multiprocessing that processes which train are made in.

    Where the system can, they are forked from a process that has imported all that trains and done nothing else; it is
    begun by `begin_own_processes`, or else with the first of them. Elsewhere each begins anew, and where the folder for
    temporary files has a name so long that no socket in it can be asked for one.
    """
    import multiprocessing
    import tempfile

    address = len(os.fsencode(tempfile.gettempdir())) + _SOCKET_NAME
    if "forkserver" not in multiprocessing.get_all_start_methods() or address > _LONGEST_ADDRESS:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context


def own_process(work: Callable[..., object], *arguments: object) -> Any:
    """Make a process that trains, not yet started, with the environment of now.

    What it is forked from has that of when it began, which in a notebook may be many cells ago.

    Args:
        work: a function of a module, so that another process can import it.
        arguments: what `work` gets.
    """
    return own_processes().Process(target=_work, args=(dict(os.environ), work, arguments), daemon=True)


def _work(environment: dict[str, str], work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    work(*arguments)


def begin_own_processes() -> None:
    """Let the process that others are forked from begin its imports, while this one does its own."""
    if own_processes().get_start_method() == "forkserver":
        from multiprocessing import forkserver

        with starting_own_process():
            forkserver.ensure_running()


def leave_group() -> None:
    """Leave the group that Ctrl-C and schedulers signal as a whole: the parent alone hears of it, and hands it on."""
    if hasattr(os, "setsid"):
        os.setsid()


def settle_own_process() -> None:
    """Set what only a process of quickstudy's own may: the command line and its workers call it first of all.

    SIGTERM, which schedulers send, ends it like Ctrl-C does: by an exception, after which everybody cleans up. Either
    waits until a module that is imported just then is there.
    """
    if threading.current_thread() is threading.main_thread():
        for number, usual in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
            if signal.getsignal(number) is usual:
                signal.signal(number, _end)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKING_TO_END)
    keep_memory()
    os.environ.setdefault(*_SPINNING)
    # Here it can stay, which spares changing the environment while other threads may read it.
    os.environ.setdefault(*TELEMETRY_OFF)
    if not sys.warnoptions:
        # Pillow warns of odd metadata, which helps nobody in front of a progress bar, and of images beyond 89 million
        # pixels, where `images.decoding` has its own limit; what matters comes as an exception. Filters are the whole
        # process's, and `warnings.catch_warnings` is not safe in threads, which decode: so a program that uses
        # quickstudy as a library sees these warnings, once a place, or filters them as it likes.
        for category in (UserWarning, RuntimeWarning):
            warnings.filterwarnings("ignore", category=category, module=r"PIL\.")


# Numbers of mallopt's parameters (malloc.h of glibc): bytes at the top that are kept, and bytes from which on an array
# gets pages of its own, which go back with it.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _OWN_PAGES_BYTES = 64 << 20, 32 << 20


def keep_memory() -> None:
    """Let this process keep up to 64 MB a thread of what it frees, where its C library is glibc.

    Decoding an image of 400 pixels takes some dozen arrays of up to 1 MB. By default their memory goes back to the
    system each time: 400 page faults an image, a quarter of the time on one core, and more on many, as the threads of a
    process take turns at them. With this there are none.
    """
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _OWN_PAGES_BYTES)


_LATER_SECONDS = 0.05


def _end(number: int, frame: FrameType | None) -> None:
    """End the process by an exception, but not while a module is imported: that is finished first.

    Modules in C that import others, or make classes, turn an exception into another (`import numpy failed`), or crash.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _thread.start_new_thread(_end_later, (number,))  # threading's own may hold a lock of theirs just now
            return
        frame = frame.f_back
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _end_later(number: int) -> None:
    time.sleep(_LATER_SECONDS)
    if hasattr(signal, "pthread_kill") and (main := threading.main_thread().ident) is not None:
        signal.pthread_kill(main, number)  # which wakes it, if it sleeps
    else:
        signal.raise_signal(number)


def give_way() -> None:
    """Let all other threads go before the calling one, where priorities are a thread's own, as on Linux."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW_PRIORITY)


def usable_cores() -> int:
    """Count the cores that this process may use: those that it may run on, or fewer where its time is limited."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, math.ceil(min(granted_cores(), cores))))


def granted_cores(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Say how many cores' time the control groups of this process grant it, as `docker run --cpus` does.

    A container with a limit sees all cores of its machine: 16 of 192, say, and more processes than 16 would only wait
    for each other.

    Args:
        groups: where Linux shows control groups.
        own: says which are this process's.

    Returns:
        The number, which need not be whole; infinity where there is no limit, or no such groups.
    """
    least = math.inf
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return least
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            base = groups / "cpu" if controllers else groups
            place = base / path.lstrip("/")
            # A container may see its own group at the top, by whatever name the machine knows it.
            for folder in (place, *place.parents):
                if folder.is_relative_to(base):
                    least = min(least, _granted_in(folder))
    return least


def _granted_in(folder: Path) -> float:
    """Say how many cores' time a control group grants, by either version of what Linux shows of it."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf
