"""Helpers that tests of serving import."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx2 as httpx

from servers import Running


def metric(server: Running, name: str) -> float:
    # Without certificates of the world's authorities, which take longer to read than the answer.
    lines = httpx.get(f"{server.address}/metrics", verify=False).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


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
