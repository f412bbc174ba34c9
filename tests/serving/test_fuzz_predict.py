"""Whatever comes over the wire, the server answers with a reason or hangs up: no 5xx but the intended 503, no growth.

The requests are drawn by Hypothesis and sent over plain sockets: whole, cut off, with lies about lengths and types, in
one piece or dripping, with images that are whole, damaged, bombs or none at all.
"""

from __future__ import annotations

import io
import re
import socket
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests_of_serving import metric

from servers import Running, Start

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A request over the wire."""

    pieces: list[bytes]
    ends: bool
    """Whether the server can tell that it is over; if not, nothing is waited for."""


def encoded(kind: str, side: int, **options: object) -> bytes:
    file = io.BytesIO()
    y, x = np.mgrid[:side, :side]
    Image.fromarray(np.stack([x % 256, y % 256, (x ^ y) % 256], 2).astype(np.uint8)).save(file, kind, **options)
    return file.getvalue()


def announcing(side: int) -> bytes:
    """A PNG that says that it has side×side pixels, and has few."""
    data = bytearray(encoded("PNG", 16))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def bomb(side: int) -> bytes:
    """A PNG of side×side pixels, all the same, in a thousandth of the bytes."""
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG", compress_level=9)
    return file.getvalue()


def scans(count: int) -> bytes:
    data = encoded("JPEG", 64, progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


WHOLE = [
    encoded("JPEG", 300),
    encoded("PNG", 90),
    encoded("GIF", 64),
    encoded("WEBP", 80),
    encoded("TIFF", 40),
    encoded("BMP", 30),
]
EVIL = [
    announcing(60_000),
    announcing(2**31 - 1),
    announcing(7_000),
    announcing(0),
    bomb(3_000),
    scans(2_000),
    b"GIF89a\xff\xff\xff\xff\x00\x00\x00" + bytes(100),
    b"BM" + bytes(12) + (40).to_bytes(4, "little") + b"\xff\xff\xff\x7f" * 2 + bytes(60),
    b"II*\x00\xff\xff\xff\xff",
    b"<svg/>",
    b'{"url": "http://127.0.0.1/"}',
]


@st.composite
def images(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["whole", "cut", "flipped", "evil", "noise", "none"]))
    if kind == "none":
        return b""
    if kind == "noise":
        return draw(st.binary(max_size=2000))
    if kind == "evil":
        return draw(st.sampled_from(EVIL))
    data = draw(st.sampled_from(WHOLE))
    if kind == "cut":
        return data[: draw(st.integers(0, len(data)))]
    if kind == "flipped":
        damaged = bytearray(data)
        for _ in range(draw(st.integers(1, 8))):
            damaged[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(damaged)
    return data


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A Content-Type and a body."""
    if draw(st.booleans()):
        kinds = [
            b"",
            b"image/jpeg",
            b"application/json",
            b"text/html; charset=\xff",
            b"x" * 3000,
            b"multipart/form-data",
        ]
        return draw(st.sampled_from(kinds)), draw(images())
    boundary = draw(st.sampled_from([b"b", b"-" * 60, b"x" * 256, b"x" * 300, b'"quoted"', b""]))
    parts = b""
    for image in draw(st.lists(images(), max_size=4)):
        name = draw(
            st.sampled_from(
                [
                    b'; filename="a.jpg"',
                    b"",
                    b'; filename="\xff\x00"',
                    b"; filename*=x''y",
                    b';filename="' + b"n" * 5000,
                ]
            )
        )
        parts += b"--%s\r\nContent-Disposition: form-data; name=x%s\r\n\r\n%s\r\n" % (boundary, name, image)
    parts += draw(
        st.sampled_from([b"--%s--\r\n" % boundary, b"--%s--" % boundary, b"--%s\r\n" % boundary, b"", b"\r\n" * 500])
    )
    return b"multipart/form-data; boundary=" + boundary, parts[: draw(st.sampled_from([None, -3, 5]))]


PATHS = [b"/models/photos/predict", b"/predict?top=2&neighbours=3", b"/predict?top=\xff", b"/%00", b"/" + b"p" * 9000]
HEADERS = {
    "large": [b"X-Large: " + b"l" * 100_000],
    "many": [b"X-%d: y" % number for number in range(3000)],
    "odd": [b"X Y: z", b": nothing", b"\x00"],
    "expect": [b"Expect: 100-continue"],
    "two hosts": [b"Host: evil.example"],
    "upgrade": [b"Connection: Upgrade", b"Upgrade: websocket"],
}


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    """A request with at most one oddity besides what its body holds, so that many get as far as the images."""
    content_type, body = draw(bodies())
    oddity = draw(st.sampled_from(["none", "none", "none", "method", "path", "headers", "framing", "cut", "drip"]))
    method = draw(st.sampled_from([b"GET", b"PUT", b"HEAD", b"BREW"])) if oddity == "method" else b"POST"
    path = draw(st.sampled_from(PATHS)) if oddity == "path" else b"/predict"
    headers = [b"Host: 127.0.0.1", b"Connection: close", b"Content-Type: " + content_type]
    if oddity == "headers":
        headers += HEADERS[draw(st.sampled_from(sorted(HEADERS)))]
    framings = ["chunked", "bad chunks", "too long", "too short", "both", "negative", "none"]
    framing = draw(st.sampled_from(framings)) if oddity == "framing" else "true"
    if framing in ("chunked", "bad chunks", "both"):
        headers.append(b"Transfer-Encoding: chunked")
        size = b"%x" % len(body) if framing != "bad chunks" else b"fffffffffffffffffff"
        framed = size + b"\r\n" + body + b"\r\n" + (b"0\r\n\r\n" if body else b"\r\n")
    else:
        framed = body
    if framing in ("true", "too long", "too short", "both", "negative"):
        length = {"too long": len(body) + 50, "too short": len(body) // 2, "negative": -1}.get(framing, len(body))
        headers.append(b"Content-Length: %d" % length)
    whole = method + b" " + path + b" HTTP/1.1\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + framed
    if oddity == "cut":
        return Sent(pieces=[whole[: draw(st.integers(0, len(whole)))]], ends=False)
    step = max(1, len(whole) // 8) if oddity == "drip" else len(whole)
    pieces = [whole[start : start + step] for start in range(0, len(whole), step)]
    return Sent(pieces=pieces, ends=framing != "too long")


def send(port: int, sent: Sent) -> bytes:
    """What comes back until the server hangs up; nothing where it hangs up at once, or nothing is waited for."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            for piece in sent.pieces:
                connection.sendall(piece)
                if len(sent.pieces) > 1:
                    time.sleep(0.002)
            if sent.ends:
                while data := connection.recv(1 << 16):
                    received += data
        except (ConnectionResetError, BrokenPipeError):
            pass
    return received


def run_fuzz(server: Running, count: int) -> dict[int, int]:
    """Send so many requests; how often each status came (0: none)."""
    statuses: dict[int, int] = {}

    @settings(max_examples=count, suppress_health_check=list(HealthCheck))
    @given(requests())
    def ask(sent: Sent) -> None:
        answer = send(server.port, sent)
        found = [int(status) for status in STATUS.findall(answer)]
        for status in found or [0]:
            assert status < 500 or status == 503, (status, sent)
            statuses[status] = statuses.get(status, 0) + 1
        assert server.process.poll() is None

    ask()
    return statuses


@pytest.fixture
def server(start: Start, trained: Path) -> Running:
    return start(trained / "photos.onnx", "--timeout", "5", "--max-bytes", "1MB", "--max-megapixels", "10")


def check_health(server: Running, photo: Path) -> None:
    """It works as on the first day, says nothing, and holds nothing."""
    answer = httpx.post(f"{server.address}/predict", content=photo.read_bytes())
    assert answer.json()["predictions"][0]["label"] == "discs"
    assert metric(server, "quickstudy_pending_images") == metric(server, "quickstudy_held_bytes") == 0
    assert server.log.read_text() == ""


@pytest.mark.heavy
def test_hundreds_of_odd_requests(server: Running, photo: Path) -> None:
    statuses = run_fuzz(server, 300)
    assert {200, 400, 422} <= set(statuses), statuses  # odd, but not so odd that nothing gets through
    check_health(server, photo)


@pytest.mark.slow
def test_thousands_of_odd_requests_and_memory_does_not_grow(server: Running, photo: Path) -> None:
    process = psutil.Process(server.process.pid)
    # Every thread has once had as much memory as the largest image takes; the allocator keeps it for the next.
    for _ in range(3):
        httpx.post(f"{server.address}/predict", files=[("image", ("bomb", bomb(3_000)))] * 20, timeout=60)
    run_fuzz(server, 800)
    before = process.memory_info().rss
    statuses = run_fuzz(server, 3000)
    assert sum(statuses.values()) >= 2000
    assert process.memory_info().rss < before + (48 << 20)
    assert process.num_fds() < 60
    check_health(server, photo)
