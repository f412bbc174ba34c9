"""What tests of models' web pages share: the package that the pages carry, Node, a server of files."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quickstudy.models.web import RUNTIME

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def runtime() -> Path:
    """The archive of onnxruntime-web, which `make test` fetches where npm is at hand."""
    path = Path(os.environ.get("QUICKSTUDY_TEST_WEB_RUNTIME") or ROOT / ".venv" / f"{RUNTIME.replace('@', '-')}.tgz")
    if not path.is_file():
        pytest.skip(
            f"no {RUNTIME}: '{path}' is no file; fetch it with npm pack, or name it in QUICKSTUDY_TEST_WEB_RUNTIME"
        )
    return path


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    return found


@pytest.fixture
def serve() -> Iterator[Any]:
    """Serves a folder on the loopback device, for as long as the test takes."""
    servers = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    def start(folder: Path) -> str:
        handler = functools.partial(Handler, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
