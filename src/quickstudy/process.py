"""What belongs to the whole process is settled here: environment variables, warning filters, the cores it may use.

A process that only imports quickstudy is somebody else's: importing the library changes nothing of it, neither
environment nor warning filters, umask or signal handlers, and what is set later is set for moments and put back. The
command line, and the workers that it starts, are processes of our own: those call `settle_own_process`.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

_LOCK = threading.Lock()
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


def starting_own_process() -> AbstractContextManager[None]:
    """Make a context in which to start a process of quickstudy's own, so that it inherits what it needs."""
    return default_variable(*_SPINNING)


def settle_own_process() -> None:
    """Set what only a process of quickstudy's own may: the command line and its workers call it first of all."""
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


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
