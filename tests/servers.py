"""Servers as processes of their own, for tests of what they answer."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import nursery


class Nursery:
    """The process that others are forked from, and what became of them."""

    def __init__(self) -> None:
        self._connection, other = multiprocessing.Pipe()
        self._ended: dict[int, int] = {}
        with other:
            command = [sys.executable, nursery.__file__, str(other.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[other.fileno()])
        atexit.register(self._end)

    def _end(self) -> None:
        self._connection.close()
        self._process.wait()

    def fork(self, asked: nursery.Asked) -> Forked:
        """Run a command in a process of its own."""
        os.mkfifo(asked.output)
        self._connection.send(asked)
        while (news := self._connection.recv())[1] is not None:
            self._ended[news[0]] = news[1]
        return Forked(news[0], asked.output.open(), self)

    def ended(self, pid: int) -> int | None:
        """The exit status of a process; None while it runs."""
        while self._connection.poll():
            other, status = self._connection.recv()
            self._ended[other] = status
        return self._ended.get(pid)


@dataclass(frozen=True)
class Forked:
    """A process that was forked; a `subprocess.Popen` as far as tests need one."""

    pid: int
    stdout: TextIO
    nursery: Nursery

    def poll(self) -> int | None:
        return self.nursery.ended(self.pid)

    def wait(self, seconds: float = 60) -> int:
        until = time.monotonic() + seconds
        while (status := self.poll()) is None:
            assert time.monotonic() < until, f"{self.pid} runs on"
            time.sleep(0.01)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


the_nursery = functools.cache(Nursery)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that runs."""

    process: Forked
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
        place = folder / f"{command}-{len(running)}.log"
        process = the_nursery().fork(
            nursery.Asked(
                arguments=[command, *map(str, arguments), *options, "--port", str(port)],
                folder=cwd or Path.cwd(),
                environment={**os.environ, **environment, **more},
                output=place.with_suffix(".out"),
                errors=place,
            )
        )
        address = next((found[0] for line in process.stdout if (found := re.search(r"http://[^\s/]+", line))), None)
        running.append(Running(process=process, address=address or "", log=place))
        assert address, place.read_text()
        return running[-1]

    try:
        yield start
    finally:
        for server in running:
            server.process.kill()
            server.process.wait()
            server.process.stdout.close()
