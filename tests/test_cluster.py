"""Joining Ray: clear errors within seconds, and nothing left running that was started here."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from quickstudy.cluster import connected
from quickstudy.errors import ClusterError, OptionError
from ray_processes import NO_RAY

pytest.importorskip("ray", reason=NO_RAY)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine at which nobody answers: taken, but not listening."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_an_address_where_nobody_answers_is_named(closed_port: int, form: str) -> None:
    address = form.format(closed_port)
    with (
        pytest.raises(ClusterError, match=rf"No Ray cluster answers at '{address}'.*ray start --head"),
        connected(address),
    ):
        pass


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None])
def test_what_answers_but_is_no_ray_is_named(answer: bytes | None) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def serve() -> None:
            connection, _ = server.accept()
            with closing(connection):
                connection.recv(1000)
                if answer is None:  # silence, until the other side gives up
                    connection.recv(1000)
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ClusterError, match=rf"at '{address}'.*expected auto"), connected(address):
            pass
        thread.join()


@pytest.mark.parametrize("address", ["", "here", "127.0.0.1", "127.0.0.1:port", "127.0.0.1:99999999", "ray://host"])
def test_what_is_no_address_is_named_with_what_is_expected(address: str) -> None:
    with (
        pytest.raises(OptionError, match=rf"'{address}' is not the address of a Ray cluster; expected auto"),
        connected(address),
    ):
        pass


def test_ray_address_is_what_auto_means(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(ClusterError, match=f"127.0.0.1:{closed_port}"), connected("auto"):
        pass


def test_the_module_imports_no_ray() -> None:
    code = (
        "import sys, quickstudy.cluster, quickstudy.bottlenecks.distributed, quickstudy.cli.main\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
