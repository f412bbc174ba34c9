"""Listens: the application behind uvicorn, until SIGTERM or Ctrl-C, then no longer than it takes to finish."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import uvicorn

from quickstudy.errors import ServingError
from quickstudy.serving.app import make_app
from quickstudy.serving.protocol import limited_protocol
from quickstudy.serving.settings import Settings

_BACKLOG = 512


def serve(models: Mapping[str, Path], settings: Settings, *, announce: Callable[[str], object] = print) -> None:
    """Serve models until the process is told to end; requests that were accepted by then are answered.

    Args:
        models: files by name; the first is asked where no name is given.
        settings: where and how.
        announce: is told the address once requests are taken.

    Raises:
        ModelError: a model is missing, damaged or fails its golden checks.
        ServingError: the address cannot be listened on.
    """
    app = make_app(models, settings)
    listener = _listen(settings)
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
    uvicorn.Server(config).run(sockets=[listener])


def _listen(settings: Settings) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason: object = error
        if isinstance(error, OSError):  # its `strerror` may say once more what could not be bound
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ServingError(
            f"Cannot listen on {settings.host}, port {settings.port}: {reason}; choose others with --host and --port"
        ) from None


def _shown(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
