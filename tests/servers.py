"""Servers as processes of their own, for tests of what they answer."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that runs."""

    process: subprocess.Popen[str]
    address: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


Start = Callable[..., Running]
"""Starts a server with the arguments of its command, on a free port or a given one; names are environment variables."""


@contextlib.contextmanager
def servers(command: str, folder: Path, *options: str, cwd: Path | None = None, **environment: str) -> Iterator[Start]:
    """Gives what starts servers of a command, with options and environment that all have; ends what is left.

    What they complain of goes to `<command>-<number>.log` in the folder.
    """
    running: list[Running] = []

    def start(*arguments: object, port: int = 0, **more: str) -> Running:
        log = folder / f"{command}-{len(running)}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "quickstudy", command, *map(str, arguments), *options, "--port", str(port)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=cwd,
                env={**os.environ, **environment, **more},
            )
        assert process.stdout
        address = next((found[0] for line in process.stdout if (found := re.search(r"http://[^\s/]+", line))), None)
        running.append(Running(process=process, address=address or "", log=log))
        assert address, log.read_text()
        return running[-1]

    try:
        yield start
    finally:
        for server in running:
            server.process.kill()
            server.process.wait()
            assert server.process.stdout
            server.process.stdout.close()
