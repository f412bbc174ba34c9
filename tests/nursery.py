"""A process that has imported what servers need, and forks one of them in a moment whenever it is asked to."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A command to run in a process of its own."""

    arguments: list[str]
    """The words after `quickstudy`."""
    folder: Path
    """Where it runs."""
    environment: dict[str, str]
    """All variables that it has."""
    output: Path
    """Where its standard output goes."""
    errors: Path
    """Where its standard error goes."""


def next_fork(asking: Connection) -> Asked | None:
    """Fork for each request, and say what becomes of the forks; returns in each of them, and with None at the end."""
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ready = wait([asking, woken])
        if woken in ready:
            os.read(woken, 1 << 10)
            with suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    asking.send((ended[0], os.waitstatus_to_exitcode(ended[1])))
        if asking in ready:
            try:
                asked: Asked = asking.recv()
            except EOFError:
                return None
            if not (pid := os.fork()):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                asking.close()
                for descriptor in (woken, waking):
                    os.close(descriptor)
                return asked
            asking.send((pid, None))


if __name__ == "__main__":
    # What is imported here, no fork has to import.
    import sklearn.cluster  # noqa: F401

    import quickstudy.labelling.app
    import quickstudy.retraining.retrain
    import quickstudy.serving.server  # noqa: F401
    from quickstudy.backbones.graphs.runtime import import_onnxruntime
    from quickstudy.cli.main import run

    import_onnxruntime()
    if asked := next_fork(Connection(int(sys.argv[1]))):
        os.environ.clear()
        os.environ.update(asked.environment)
        os.chdir(asked.folder)
        for number, place, mode in ((0, Path(os.devnull), "r"), (1, asked.output, "w"), (2, asked.errors, "w")):
            with place.open(mode) as file:
                os.dup2(file.fileno(), number)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", 1)
        sys.argv = ["quickstudy", *asked.arguments]
        run()
