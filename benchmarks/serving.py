"""The server under load: how near to a bare loop, latencies, overload, and beside other servers.

    python benchmarks/serving.py FOLDER --model photos.onnx
    python benchmarks/serving.py FOLDER --model photos.onnx --peers --export KERAS_TORCH/bin/python \
        --tensorflow FASTAPI_TF/bin/python --litserve LITSERVE/bin/python

The bare loop decodes the same JPEGs and runs the same model in as many threads as cores, without HTTP. Server and
client share the cores, so what the client takes is missing: its share is reported, and the throughput with the client's
cores left out of the count. Ratios are taken round by round, the bare loop before and after.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from common import backbone_from_graph, photos, quickstudy, save, spread
from quickstudy.models.assemble import LinearHead, write_model
from quickstudy.models.loading import load
from quickstudy.models.model import Model
from quickstudy.process import usable_cores

_PEERS = Path(__file__).parent / "peers"
_ARCHITECTURE, _SIDE, _FEATURES = "MobileNetV2", 224, 1280
_CLASSES = 10


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="photos to send")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load; latencies take three times as long")
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--peers", action="store_true", help="measure the other servers instead")
    parser.add_argument("--export", help="Python with keras on torch and onnx, to export the peers' network")
    parser.add_argument("--tensorflow", help="Python with tensorflow, keras and fastapi")
    parser.add_argument("--litserve", help="Python with litserve and onnxruntime")
    options = parser.parse_args()
    if options.peers:
        save("serving_peers", compare(options))
        return
    throughput = measure_throughput(options)
    capacity = throughput["server"]["median"]
    save(
        "serving",
        {
            "cores": usable_cores(),
            "throughput": throughput,
            "latency": {share: measure_latency(options, capacity * share / 100) for share in (50, 80)},
            "overload": measure_overload(options, 3 * capacity),
            "batching": measure_batching(options),
        },
    )


def measure_throughput(options: argparse.Namespace) -> dict[str, Any]:
    """Images a second: the bare loop, and the server asked by as few connections as keep it busy."""
    model, images = load(options.model), [path.read_bytes() for path in sample(options.folder)]
    rows: dict[str, list[float]] = {"bare": [], "server": [], "client_cores": []}
    with serving(quickstudy("serve", str(options.model))) as (port, _):
        for round_ in range(options.rounds + 1):
            before = bare_rate(model, images, options.seconds / 2)
            loaded = client(options, port, "--connections", 2 * usable_cores())
            assert set(loaded["statuses"]) == {"200"}, loaded["statuses"]
            if round_:  # the first one warms up
                rows["bare"].append((before + bare_rate(model, images, options.seconds / 2)) / 2)
                rows["server"].append(loaded["good_per_second"])
                rows["client_cores"].append(loaded["client_cores"])
    cores = usable_cores()
    sides = list(zip(rows["server"], rows["bare"], rows["client_cores"], strict=True))
    return {
        **{side: spread(values) for side, values in rows.items()},
        "share_of_bare": spread([server / bare for server, bare, _ in sides]),
        "share_of_bare_without_client": spread([s / (b * (cores - c) / cores) for s, b, c in sides]),
    }


def bare_rate(model: Model, images: Sequence[bytes], seconds: float) -> float:
    """Images a second, decoded and classified by as many threads as there are cores."""
    counts = [0] * usable_cores()
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        while time.perf_counter() < end:
            model.classify(images[(number + counts[number] * len(counts)) % len(images)])
            counts[number] += 1

    started = time.perf_counter()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def measure_latency(options: argparse.Namespace, rate: float) -> dict[str, Any]:
    """Milliseconds at a rate of requests that come at random times."""
    with serving(quickstudy("serve", str(options.model))) as (port, _):
        client(options, port, "--connections", 2, seconds=2)  # warms up
        loaded = client(options, port, "--rate", rate, seconds=3 * options.seconds)
    return {"rate": rate, **{name: loaded[name] for name in ("milliseconds", "statuses", "client_cores")}}


def measure_overload(options: argparse.Namespace, rate: float) -> dict[str, Any]:
    """What becomes of a server that is asked for three times what it can do, and how soon it has recovered."""
    with serving(quickstudy("serve", str(options.model))) as (port, process):
        client(options, port, "--connections", 2 * usable_cores(), seconds=3)
        memory = [process.memory_info().rss]
        stop = threading.Event()

        def sample_memory() -> None:
            while not stop.wait(0.2):
                memory.append(process.memory_info().rss)

        sampler = threading.Thread(target=sample_memory)
        sampler.start()
        loaded = client(options, port, "--rate", rate, seconds=options.overload_seconds)
        stop.set()
        sampler.join()
        started = time.perf_counter()
        afterwards = client(options, port, "--connections", 1, seconds=1)
        seconds = loaded.pop("each_second")
        return {
            "rate": rate,
            **loaded,
            "answered_each_second": spread([second.get("200", 0) for second in seconds[1:-1]]),
            "memory_megabytes": {
                "before": memory[0] / 2**20,
                "largest": max(memory) / 2**20,
                "end": memory[-1] / 2**20,
            },
            "afterwards": {
                "milliseconds": afterwards["milliseconds"],
                "statuses": afterwards["statuses"],
                "seconds_later": time.perf_counter() - started - afterwards["seconds"],
            },
            "alive": process.is_running(),
        }


def measure_batching(options: argparse.Namespace) -> dict[str, Any]:
    """Images a second of the model alone, one at a time in each of the cores' threads, and in batches over all."""
    command = [sys.executable, _PEERS / "bare_onnxruntime.py", options.model, "--seconds", options.seconds / 2]
    measured = output_of(command)
    return {row["name"]: row["images_per_second"] for row in measured["configurations"]}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """The same network behind quickstudy, FastAPI with Keras, and LitServe, in turn, round by round."""
    with tempfile.TemporaryDirectory() as temporary:
        graph, model = Path(temporary) / "network.onnx", Path(temporary) / "model.onnx"
        subprocess.run(
            [options.export, _PEERS / "export_keras.py", _ARCHITECTURE, graph], check=True, stdout=sys.stderr
        )
        head = np.random.default_rng(0).normal(0, 0.05, (_FEATURES, _CLASSES)).astype(np.float32)
        write_model(
            model,
            backbone_from_graph(graph, size=_SIDE, features=_FEATURES),
            LinearHead(weights=head, biases=np.zeros(_CLASSES, np.float32)),
            classes=[str(number) for number in range(_CLASSES)],
            training={},
        )
        sides: dict[str, tuple[list[Any], list[str]]] = {"quickstudy": (quickstudy("serve", str(model)), [])}
        if options.tensorflow:
            sides["fastapi_keras"] = ([options.tensorflow, _PEERS / "fastapi_keras.py", "--arch", _ARCHITECTURE], [])
        if options.litserve:
            sides["litserve"] = ([options.litserve, _PEERS / "litserve_onnx.py", model], ["--form", "image"])
        rows: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side, (command, form) in sides.items():
                with serving(command) as (port, _):
                    client(options, port, "--connections", 2, *form, seconds=3)  # warms up
                    rows[side].append(client(options, port, "--connections", 2 * usable_cores(), *form))
                print(side, rows[side][-1]["good_per_second"], flush=True)
    rates = {side: [row["good_per_second"] for row in values] for side, values in rows.items()}
    return {
        "network": f"{_ARCHITECTURE}, {_SIDE} pixels, {_CLASSES} classes",
        "images_per_second": {side: spread(values) for side, values in rates.items()},
        "milliseconds_p99": {side: spread([r["milliseconds"]["p99"] for r in values]) for side, values in rows.items()},
        "ratio": {
            side: spread([q / p for q, p in zip(rates["quickstudy"], values, strict=True)])
            for side, values in rates.items()
            if side != "quickstudy"
        },
    }


def sample(folder: Path, most: int = 300) -> list[Path]:
    """The photos that the client sends, too."""
    files = photos(folder)
    return files[:: max(1, len(files) // most)][:most]


def client(options: argparse.Namespace, port: int, *arguments: object, seconds: float | None = None) -> dict[str, Any]:
    """One run of the client."""
    command = [sys.executable, _PEERS / "load_client.py", port, "--images", options.folder]
    return output_of([*command, "--seconds", seconds or options.seconds, *arguments])


def output_of(command: Sequence[object]) -> dict[str, Any]:
    """The JSON object that a command prints."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr[-3000:]}")
    values: dict[str, Any] = json.loads(done.stdout)
    return values


@contextlib.contextmanager
def serving(command: Sequence[object]) -> Iterator[tuple[int, psutil.Process]]:
    """A server on a free port until the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([*map(str, command), "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not is_ready(port):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{command} does not serve")
            time.sleep(0.2)
        yield port, psutil.Process(process.pid)
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        _, left = psutil.wait_procs(family, timeout=20)
        for one in left:
            one.kill()


def is_ready(port: int) -> bool:
    """Whether a server takes requests; LitServe tells under another name."""
    for path in ("healthz", "health"):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5):
            return True
    return False


if __name__ == "__main__":
    main()
