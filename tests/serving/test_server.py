"""A server as a process of its own: slow and endless callers, overload, reloads under load, the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest
import uvicorn
from tests_of_serving import metric, raw_request, wait_until

from quickstudy.cli.main import run as quickstudy
from quickstudy.serving.app import make_app
from quickstudy.serving.limits import ServerSettings
from quickstudy.serving.server import limited_protocol
from servers import Running, Start, servers

TOKEN = "correct-horse-battery"
SERVE = [sys.executable, "-m", "quickstudy", "serve"]


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    received = b""
    with connection:
        try:
            while piece := connection.recv(1 << 16):
                received += piece
        except ConnectionResetError:
            pass
    return received


class TestSlowAndEndlessCallers:
    @pytest.fixture(scope="class")
    def impatient(self, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
        options = ("--timeout", "0.5", "--max-connections", "20", "--max-bytes", "1MB")
        with servers("serve", tmp_path_factory.mktemp("impatient")) as start:
            yield start(trained / "photos.onnx", *options)

    def test_a_body_that_does_not_come_is_408(self, impatient: Running, photo: Path) -> None:
        with connect(impatient.port) as connection:
            connection.sendall(raw_request(b"half of it", announced=100))
            assert connection.recv(100).startswith(b"HTTP/1.1 408")

    def test_headers_that_do_not_end_are_cut_off(self, impatient: Running) -> None:
        connection = connect(impatient.port)
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        try:
            for number in range(40_000):
                connection.sendall(b"X-%d: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" % number)
        except OSError:
            pass
        answer = read_all(connection)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431")
        assert httpx.get(f"{impatient.address}/healthz").status_code == 200

    def test_more_connections_than_allowed_are_turned_away_and_then_not(self, impatient: Running) -> None:
        idle = [connect(impatient.port) for _ in range(20)]
        try:
            assert read_all(connect(impatient.port)).startswith(
                b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"
            )
        finally:
            for connection in idle:
                connection.close()
        wait_until(lambda: not read_all_or_none(impatient.port))

    def test_what_follows_a_refusal_is_read_only_so_far(self, impatient: Running) -> None:
        """The sender gets to see the refusal; one who goes on and on is cut off."""
        with connect(impatient.port) as connection:
            connection.sendall(raw_request(b"", announced=1 << 40))
            assert connection.recv(100).startswith(b"HTTP/1.1 413")
            with pytest.raises(OSError):
                for _ in range(1000):
                    connection.sendall(bytes(1 << 16))


def read_all_or_none(port: int) -> bytes:
    """What a connection is told without having asked; nothing if it may stay."""
    with connect(port) as connection:
        connection.settimeout(0.1)
        try:
            return connection.recv(100)
        except TimeoutError:
            return b""


class TestLimitsOfTheProtocol:
    """In this process, for these times are no options of the command."""

    def serve(self, trained: Path, scenario: Callable[[uvicorn.Server, int], Awaitable[object]]) -> object:
        limits = ServerSettings(head_seconds=0.2, body_seconds=0.3, idle_seconds=1)
        app = make_app({"photos": trained / "photos.onnx"}, limits)
        config = uvicorn.Config(app, http=limited_protocol(limits), log_config=None, timeout_keep_alive=1)

        async def run() -> object:
            server = uvicorn.Server(config)
            listener = socket.create_server(("127.0.0.1", 0))
            running = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0.01)
            try:
                return await asyncio.wait_for(scenario(server, listener.getsockname()[1]), 30)
            finally:
                server.should_exit = True
                await running

        return asyncio.run(run())

    @pytest.mark.parametrize(
        ("sent", "answer"),
        [
            (b"", b""),
            (b"\r\n", b"HTTP/1.1 408"),
            (b"POST /pre", b"HTTP/1.1 408"),
            (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ", b"HTTP/1.1 408"),
        ],
    )
    def test_headers_that_do_not_come_are_waited_for_so_long(self, trained: Path, sent: bytes, answer: bytes) -> None:
        async def scenario(_: uvicorn.Server, port: int) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            received = await reader.read()
            writer.close()
            return received

        received = self.serve(trained, scenario)
        assert isinstance(received, bytes)
        assert received[:12] == answer

    def test_nor_those_of_a_second_request(self, trained: Path) -> None:
        async def scenario(_: uvicorn.Server, port: int) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            await reader.readuntil(b"}")
            writer.write(b"\r\n")
            received = await reader.read()
            writer.close()
            return received

        received = self.serve(trained, scenario)
        assert isinstance(received, bytes)
        assert received[:12] in (b"", b"HTTP/1.1 408")  # the time between requests may end first

    def test_a_caller_who_does_not_read_the_answers_is_cut_off(self, trained: Path) -> None:
        async def scenario(server: uvicorn.Server, port: int) -> int:
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 10)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            with contextlib.suppress(OSError):
                while server.server_state.connections or not server.server_state.total_requests:
                    writer.write(b"GET /page.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 200)
                    await asyncio.sleep(0.05)
            writer.close()
            return len(server.server_state.connections)

        assert self.serve(trained, scenario) == 0


class TestOverload:
    def test_what_has_no_room_is_503_with_retry_after_and_the_rest_is_answered(
        self, start: Start, trained: Path, photo: Path
    ) -> None:
        server = start(trained / "photos.onnx", "--threads", 1, "--queue", 4)
        data = photo.read_bytes()

        def ask(_: int) -> httpx.Response:
            return httpx.post(f"{server.address}/predict", content=data, timeout=60, verify=False)

        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(ask, range(150)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 503}
        assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} == {"1"}
        labels = {answer.json()["predictions"][0]["label"] for answer in answers if answer.status_code == 200}
        assert labels == {"discs"}
        assert ask(0).status_code == 200
        assert metric(server, "quickstudy_pending_images") == metric(server, "quickstudy_held_bytes") == 0

    @pytest.mark.heavy
    def test_bodies_together_are_bounded(self, start: Start, trained: Path) -> None:
        """Each within its limit, all of them together are not; memory stays far below their sum."""
        server = start(trained / "photos.onnx", "--max-bytes", "100MB", "--timeout", 20)
        before = psutil.Process(server.process.pid).memory_info().rss
        connections = [connect(server.port) for _ in range(8)]

        def fill(connection: socket.socket) -> bytes:
            try:
                connection.sendall(raw_request(b"", announced=99_000_000))
                connection.sendall(bytes(90_000_000))
            except OSError:
                return b""
            connection.settimeout(2)
            try:
                return connection.recv(100)
            except OSError:
                return b""

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(fill, connections))
        used = psutil.Process(server.process.pid).memory_info().rss - before
        for connection in connections:
            connection.close()
        assert sum(answer.startswith(b"HTTP/1.1 503") for answer in answers) >= 5
        assert used < 500 << 20
        wait_until(lambda: metric(server, "quickstudy_held_bytes") == 0)


class TestReload:
    @pytest.mark.heavy
    def test_a_model_is_replaced_under_load_without_a_failed_request(
        self, start: Start, model_file: Path, trained: Path, photo: Path
    ) -> None:
        server = start(model_file)
        data, answers, stop = photo.read_bytes(), [], threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=server.address) as client:
                while not stop.is_set():
                    answers.append(client.post("/predict", content=data))

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            model_file.write_bytes(b"broken")
            wait_until(lambda: metric(server, 'quickstudy_reloads_total{model="photos",result="refused"}') == 1)
            ready = httpx.get(f"{server.address}/readyz")
            assert (ready.status_code, ready.json()) == (200, {"ready": True, "models_current": False})
            assert "not an onnx file" in httpx.get(f"{server.address}/model").json()["problem"].lower()
            shutil.copy(trained / "two.onnx", model_file.with_suffix(".new"))
            model_file.with_suffix(".new").replace(model_file)
            wait_until(lambda: metric(server, 'quickstudy_reloads_total{model="photos",result="reloaded"}') == 1)
            seen = len(answers)
            wait_until(lambda: len(answers) > seen + 1)
        finally:
            stop.set()
            asking.join()
        assert {answer.status_code for answer in answers} == {200}
        counts = [len(answer.json()["predictions"][0]["classes"]) for answer in answers]
        assert counts == sorted(counts, reverse=True)
        assert (counts[0], counts[-1]) == (3, 2)
        assert "the old model goes on" in server.log.read_text()
        assert "passed its checks" in server.log.read_text()


class TestTheEnd:
    def test_requests_that_were_accepted_are_answered(self, start: Start, trained: Path, photo: Path) -> None:
        """One whose body is still on its way when the server is told to end."""
        server = start(trained / "photos.onnx")
        data = photo.read_bytes()
        connection = connect(server.port)
        connection.sendall(raw_request(data[:5000], announced=len(data)))
        wait_until(lambda: metric(server, "quickstudy_held_bytes") > 0)
        server.process.terminate()
        wait_until(lambda: not can_connect(server.port))
        connection.sendall(data[5000:])
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"label":"discs"' in answer
        assert server.process.wait(30) == 0

    @pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
    def test_an_idle_server_ends_at_once_and_well(self, start: Start, trained: Path, signal_name: str) -> None:
        server = start(trained / "photos.onnx")
        with httpx.Client(base_url=server.address) as client:  # a connection that is kept
            client.get("/healthz")
            assert server.stop(getattr(signal, signal_name)) == 0
        assert server.log.read_text() == ""


def can_connect(port: int) -> bool:
    try:
        connect(port).close()
    except OSError:
        return False
    return True


def test_nothing_of_images_and_callers_is_logged(start: Start, trained: Path, photo: Path) -> None:
    server = start(trained / "photos.onnx", "--token", TOKEN)
    headers = {"authorization": f"Bearer {TOKEN}"}
    files = [("i", ("private-name.jpg", photo.read_bytes())), ("i", ("private-too.jpg", photo.read_bytes()[:3000]))]
    assert httpx.post(f"{server.address}/predict", files=files, headers=headers).status_code == 200
    form = {**headers, "content-type": "multipart/form-data; boundary=x"}
    httpx.post(f"{server.address}/predict", content=b"private noise", headers=form)
    httpx.get(f"{server.address}/private?private=1")
    with connect(server.port) as connection:
        connection.sendall(b"private\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert server.stop() == 0
    assert server.process.stdout.read() + server.log.read_text() == ""


class TestTheCommand:
    def refused(self, *arguments: str, **environment: str) -> str:
        result = subprocess.run(
            [*SERVE, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
        )
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
        return result.stderr

    def test_refuses_what_is_careless(
        self, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refused(*arguments: str) -> str:
            monkeypatch.setattr(sys, "argv", ["quickstudy", "serve", *arguments])
            with pytest.raises(SystemExit) as end:
                quickstudy()
            assert end.value.code == 2
            told = capsys.readouterr().err
            assert "Traceback" not in told
            return told

        model = str(trained / "photos.onnx")
        assert "--token" in refused(model, "--host", "0.0.0.0")
        assert "at least 16" in refused(model, "--token", "short")
        assert "No such model" in refused("nowhere.onnx")
        assert "Two models" in refused(model, model)
        assert "Cannot listen on 192.0.2.1" in refused(model, "--host", "192.0.2.1", "--no-auth", "--port", "0")

    def test_says_that_a_port_is_taken(self, trained: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            told = self.refused(str(trained / "photos.onnx"), "--port", port)
        assert told == (
            f"quickstudy: Cannot listen on 127.0.0.1, port {port}: Address already in use; "
            "choose others with --host and --port\n"
        )

    def test_takes_the_token_from_the_environment(self, start: Start, trained: Path) -> None:
        server = start(trained / "photos.onnx", QUICKSTUDY_TOKEN=TOKEN)
        assert httpx.get(f"{server.address}/model").status_code == 401
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"{server.address}/model", headers=headers).status_code == 200
