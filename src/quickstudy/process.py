"""What belongs to the whole process: environment variables and warning filters, which a library leaves as they are.

A process that only imports quickstudy is somebody else's, so nothing is set there but for moments, and put back. The
command line, and the workers that it starts, are processes of our own: those call `settle_own_process`.

How many processors this process may use.
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
"""How many contexts hold each environment variable."""

TELEMETRY_OFF = ("ORT_DISABLE_TELEMETRY", "1")
"""What keeps ONNX Runtime, from 1.29 on, from telling its makers about the machine; read when it is imported."""

# torch's threads spin for milliseconds while they wait for each other. Beside another process on the same cores, like
# the evaluator, that made a step ten times as long. So many turns (some 20 µs) cost a step alone nothing; sleeping at
# once (OMP_WAIT_POLICY=PASSIVE) cost an eighth. Read when torch is first imported, so it has to be there before.
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
    """A context in which to start a process of quickstudy's own, so that it inherits what it needs."""
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
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
