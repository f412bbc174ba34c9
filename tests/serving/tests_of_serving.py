"""Helpers that tests of serving import."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server of its own."""

    process: subprocess.Popen[str]
    address: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.address}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


Start = Callable[..., Running]
"""Starts a server with the arguments of `quickstudy serve`; names are environment variables."""


def raw_request(body: bytes, *, announced: int | None = None, headers: bytes = b"", path: bytes = b"/predict") -> bytes:
    """A POST as it goes over the wire, announcing as many bytes as there are unless told otherwise."""
    length = len(body) if announced is None else announced
    return b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n%s\r\n%s" % (path, length, headers, body)


def wait_until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    """Until the condition holds; long before the limit, or something is broken."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)
