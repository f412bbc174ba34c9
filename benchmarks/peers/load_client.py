"""A cheap client for HTTP servers that classify images, so that what is measured is the server.

One thread, plain sockets that are kept open, requests made ready beforehand, and of the answers no more is read than it
takes to find their ends. Its own processor time is reported, for it comes out of the same cores.

Closed loop, for throughput: every connection sends its next request when its answer is there.
Open loop, for latency: requests come at random times (a Poisson process, seeded) whether or not the server keeps up,
and latency counts from the moment at which a request was due, so that a server that falls behind cannot hide it.

    python load_client.py 8000 --images DIR --seconds 10 --connections 4
    python load_client.py 8000 --images DIR --seconds 10 --rate 120

Needs the standard library only. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import selectors
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any

BOUNDARY = b"load-client-boundary"


def main() -> None:
    """Send, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--images", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--most", type=int, default=300, help="images that are used, again and again")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=4, help="closed loop: requests under way at any time")
    parser.add_argument("--rate", type=float, help="open loop: requests a second")
    parser.add_argument("--most-connections", type=int, default=256, help="open loop: beyond, requests wait here")
    parser.add_argument("--form", help="send a form with the image under this field instead of a raw body")
    options = parser.parse_args()
    files = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    files = files[:: max(1, len(files) // options.most)][: options.most]
    load = Load(options.port, [request_of(path.read_bytes(), options.form) for path in files])
    started, cpu = time.perf_counter(), time.process_time()
    if options.rate is None:
        load.closed_loop(options.seconds, options.connections)
    else:
        load.open_loop(options.seconds, options.rate, options.most_connections)
    wall = time.perf_counter() - started
    print(json.dumps({**load.summary(wall), "client_cores": (time.process_time() - cpu) / wall}))


def request_of(image: bytes, form: str | None) -> bytes:
    """A whole request."""
    kind = b"image/jpeg"
    if form:
        head = b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="x.jpg"\r\n\r\n'
        image = head % (BOUNDARY, form.encode()) + image + b"\r\n--" + BOUNDARY + b"--\r\n"
        kind = b"multipart/form-data; boundary=" + BOUNDARY
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (kind, len(image)) + image


class Connection:
    """A connection that is kept, with the request that is under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self.received = b""
        self.under_way = self.closed = False

    def send(self, request: bytes, due: float) -> None:
        self.due, self.received, self.under_way = due, b"", True
        self.socket.settimeout(60)
        self.socket.sendall(request)

    def read(self) -> int | None:
        """The answer's status once it is whole; 0 where the connection has ended."""
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            return 0
        if not data:
            return 0
        self.received += data
        head, separator, body = self.received.partition(b"\r\n\r\n")
        if not separator:
            return None
        lower = head.lower()
        length = int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        return int(head[9:12]) if len(body) >= length else None


class Load:
    """Requests, one after the other, and what came of them."""

    def __init__(self, port: int, requests: list[bytes]) -> None:
        self.port = port
        self.requests = requests
        self.number = 0
        self.done: list[tuple[float, float, int]] = []  # when, latency, status
        self.selector = selectors.DefaultSelector()
        self.started = time.perf_counter()

    def next_request(self) -> bytes:
        self.number += 1
        return self.requests[self.number % len(self.requests)]

    def connect(self) -> Connection:
        connection = Connection(self.port)
        self.selector.register(connection.socket, selectors.EVENT_READ, connection)
        return connection

    def finished(self, timeout: float) -> list[tuple[Connection, bool]]:
        """Connections whose answers have come, and whether they are still open."""
        found = []
        for key, _ in self.selector.select(timeout):
            connection: Connection = key.data
            status = connection.read()
            if status is None:
                continue
            if status == 0:
                self.selector.unregister(connection.socket)
                connection.socket.close()
                connection.closed = True
            if not connection.under_way:  # the server has ended a connection that it had answered
                continue
            connection.under_way = False
            now = time.perf_counter()
            self.done.append((now - self.started, now - connection.due, status))
            found.append((connection, status != 0))
        return found

    def closed_loop(self, seconds: float, connections: int) -> None:
        self.started = time.perf_counter()
        for _ in range(connections):
            self.connect().send(self.next_request(), time.perf_counter())
        under_way = connections
        while under_way:
            for connection, is_open in self.finished(1):
                under_way -= 1
                if time.perf_counter() < self.started + seconds:
                    connection = connection if is_open else self.connect()
                    connection.send(self.next_request(), time.perf_counter())
                    under_way += 1

    def open_loop(self, seconds: float, rate: float, most: int) -> None:
        draw = random.Random(0)
        idle: list[Connection] = []
        waiting: deque[float] = deque()
        open_count, under_way = 0, 0
        self.started = time.perf_counter()
        due, end = self.started + draw.expovariate(rate), self.started + seconds
        while due < end or waiting or under_way:
            now = time.perf_counter()
            while due <= now and due < end:
                waiting.append(due)
                due += draw.expovariate(rate)
            left = [connection for connection in idle if not connection.closed]
            open_count, idle = open_count - (len(idle) - len(left)), left
            while waiting and (idle or open_count < most):
                if not idle:
                    idle.append(self.connect())
                    open_count += 1
                idle.pop().send(self.next_request(), waiting.popleft())
                under_way += 1
            pause = max(0.0, due - time.perf_counter()) if due < end and not waiting else 0.05
            for connection, is_open in self.finished(pause):
                under_way -= 1
                if is_open:
                    idle.append(connection)
                else:
                    open_count -= 1

    def summary(self, wall: float) -> dict[str, Any]:
        statuses: dict[str, int] = {}
        seconds: dict[int, dict[str, int]] = {}
        for when, _, status in self.done:
            statuses[str(status)] = statuses.get(str(status), 0) + 1
            second = seconds.setdefault(int(when), {})
            second[str(status)] = second.get(str(status), 0) + 1
        good = sorted(latency for _, latency, status in self.done if status == 200)
        return {
            "seconds": wall,
            "statuses": statuses,
            "good_per_second": statuses.get("200", 0) / wall,
            "milliseconds": {f"p{p}": 1000 * good[min(len(good) - 1, len(good) * p // 100)] for p in (50, 90, 99)}
            if good
            else {},
            "each_second": [seconds.get(second, {}) for second in range(max(seconds, default=-1) + 1)],
        }


if __name__ == "__main__":
    main()
