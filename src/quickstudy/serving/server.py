"""The application listens behind uvicorn, until SIGTERM or Ctrl-C, then no longer than it takes to finish.

HTTP is read by httptools. uvicorn's connection is subclassed, since it limits no time of headers, bodies and unread
answers: it waits for a request's headers for as long as they take, and reads the rest of a body that was refused for as
long as it comes. Here headers, bodies and connections have their time, size and number; who exceeds them is cut off.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from quickstudy.errors import ServingError
from quickstudy.serving.app import make_app
from quickstudy.serving.limits import ServerSettings

_BACKLOG = 512


def serve(models: Mapping[str, Path], settings: ServerSettings, *, announce: Callable[[str], object] = print) -> None:
    """Serve models until the process is told to end; requests that were accepted by then are answered.

    Args:
        models: files by name; the first is asked where no name is given.
        settings: where to listen, and within which limits.
        announce: is told the address once requests are taken.

    Raises:
        ModelError: a model is missing, damaged or fails its golden checks.
        ServingError: the address cannot be listened on.
    """
    run(make_app(models, settings), settings, announce=announce)


def run(
    app: ASGIApp,
    settings: ServerSettings,
    *,
    announce: Callable[[str], object],
    ending: Callable[[], object] = lambda: None,
    listener: socket.socket | None = None,
) -> None:
    """Run an application until the process is told to end; see `serve`.

    Args:
        app: the application.
        settings: where to listen, and within which limits.
        announce: is told the address once requests are taken.
        ending: is called when the process is told to end, so that answers that wait for news need not wait any more.
        listener: what `listen` gave; None to listen now.

    Raises:
        ServingError: the address cannot be listened on.
    """
    listener = listener or listen(settings)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it quotes what it cannot parse
    config = uvicorn.Config(
        app,
        http=limited_protocol(settings),
        ws="none",
        lifespan="on",
        access_log=False,  # callers and what they ask are nobody's business
        log_config=None,
        log_level=logging.ERROR,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=round(settings.idle_seconds),
        timeout_graceful_shutdown=round(settings.body_seconds + settings.answer_seconds),
    )
    # uvicorn repeats the signal that ended it once it is done; then, and before it has begun, this ends the process.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    announce(f"http://{_shown(listener)}")

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            super().handle_exit(sig, frame)
            ending()

    Server(config).run(sockets=[listener])


def listen(settings: ServerSettings, *, hint: str = "choose others with --host and --port") -> socket.socket:
    """Begin to listen, so that the address is taken; callers wait until `run` answers them.

    Args:
        settings: where to listen.
        hint: what to do where that is not possible.

    Raises:
        ServingError: the address cannot be listened on.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason: object = error
        if isinstance(error, OSError):  # its `strerror` may say once more what could not be bound
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ServingError(f"Cannot listen on {settings.host}, port {settings.port}: {reason}; {hint}") from None


def _shown(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


MOST_HEAD_BYTES = 64 << 10
# The application answers a slow body with 408; the connection ends a little later, if need be.
_GRACE_SECONDS = 5.0


def limited_protocol(settings: ServerSettings) -> type[HttpToolsProtocol]:
    """Make the class of connections with these limits, as uvicorn wants it."""

    class LimitedProtocol(HttpToolsProtocol):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._deadline: asyncio.TimerHandle | None = None
            self._write_deadline: asyncio.TimerHandle | None = None
            self._reads_head = True
            self._head_bytes = 0
            self._body_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > settings.most_connections:
                self._turn_away(b"503 Service Unavailable", b"Retry-After: 1\r\n")
                return
            self._within(settings.head_seconds)

        def connection_lost(self, exc: Exception | None) -> None:
            self._within(None)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self._reads_head:
                self._head_bytes += len(data)
                if self._deadline is None:  # also for line ends that begin no request
                    self._within(settings.head_seconds)
            super().data_received(data)
            if self._reads_head and self._head_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
                self._turn_away(b"431 Request Header Fields Too Large")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._reads_head = True
            self._within(settings.head_seconds)

        def on_headers_complete(self) -> None:
            self._reads_head = False
            self._head_bytes = self._body_bytes = 0
            self._within(settings.body_seconds + _GRACE_SECONDS)
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._body_bytes += len(body)
            if self._body_bytes > settings.most_bytes and self.cycle.response_complete:
                # Until here what follows a refusal was read and dropped, so that the sender gets to see the refusal.
                self._close()
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._reads_head = True
            self._within(None)
            super().on_message_complete()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self.loop.call_later(_GRACE_SECONDS, self.transport.abort)

        def pause_writing(self) -> None:
            # The caller does not read its answers.
            super().pause_writing()
            self._write_deadline = self.loop.call_later(settings.body_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._write_deadline is not None:
                self._write_deadline.cancel()

        def _within(self, seconds: float | None) -> None:
            """Set the time after which the connection is cut, or none."""
            if self._deadline is not None:
                self._deadline.cancel()
            self._deadline = self.loop.call_later(seconds, self._give_up) if seconds is not None else None

        def _give_up(self) -> None:
            if not self._reads_head:
                self.transport.abort()
            elif self.cycle is not None and not self.cycle.response_complete:
                self._within(settings.head_seconds)  # the answer to the request before is on its way
            elif self._head_bytes:
                self._turn_away(b"408 Request Timeout")
            else:
                self.transport.abort()

        def _turn_away(self, status: bytes, header: bytes = b"") -> None:
            self.transport.write(
                b"HTTP/1.1 " + status + b"\r\n" + header + b"Content-Length: 0\r\nConnection: close\r\n\r\n"
            )
            self._close()

        def _close(self) -> None:
            """Close once all is sent, or soon if the caller does not read it."""
            self.transport.close()
            self.loop.call_later(_GRACE_SECONDS, self.transport.abort)

    return LimitedProtocol
