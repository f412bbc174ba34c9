"""ONNX Runtime's own speed for a graph, on all cores, with nothing around it: the ceiling for extraction.

A program that computes bottlenecks also reads, decodes and stores; how close it comes to this bare loop says
how good it is. ONNX Runtime can use the cores in two ways, and which is better depends on the graph: many
one-thread sessions side by side, or one that all threads share, at several batch sizes. All are measured in
turn, several times over: a machine that is busy for a while then slows all of them alike.

    python bare_onnxruntime.py mobilenet_v2.onnx --seconds 5

Needs numpy and onnxruntime. The graph's input is `image`, uint8, N x H x W x 3. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

INPUT = "image"
SHARED_BATCHES = (1, 8, 32)


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One way to use the cores."""

    name: str
    # Python threads that call run() at the same time, each on a session of its own.
    sessions: int
    # Threads that one run() uses inside.
    threads: int
    # Images per run().
    batch: int


def configurations(cores: int, batches: Sequence[int] = SHARED_BATCHES) -> list[Configuration]:
    """One-thread sessions side by side at batch 1, then one session on all cores at each of `batches`."""
    side_by_side = Configuration(name=f"{cores} x 1 thread, batch 1", sessions=cores, threads=1, batch=1)
    together = [
        Configuration(name=f"1 x {cores} threads, batch {batch}", sessions=1, threads=cores, batch=batch)
        for batch in batches
    ]
    return [side_by_side, *together]


def available_cores() -> int:
    """Cores that this process may use; a container or taskset may allow fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_sessions(path: Path, configuration: Configuration) -> list[onnxruntime.InferenceSession]:
    """Sessions with the batch size written into the graph, so that ONNX Runtime can plan for it."""
    # The symbol's name is known only after loading; a session without optimisation is the cheap way to ask.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    symbol = image_shape(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = configuration.threads
    options.inter_op_num_threads = 1
    if isinstance(symbol, str):
        options.add_free_dimension_override_by_name(symbol, configuration.batch)
    elif symbol != configuration.batch:
        raise ValueError(
            f"The batch of {str(path)!r} is fixed to {symbol!r}; export it with a symbolic batch",
        )
    return [
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(configuration.sessions)
    ]


def image_shape(session: onnxruntime.InferenceSession) -> list[int | str | None]:
    """The shape of the input `image`.

    Raises:
        ValueError: there is no such input, there are others beside it, or it is not uint8 N x H x W x 3.
    """
    inputs = {value.name: (value.type, list(value.shape)) for value in session.get_inputs()}
    kind, shape = inputs.get(INPUT, ("none", []))
    if (
        len(inputs) != 1
        or kind != "tensor(uint8)"
        or len(shape) != 4
        or not all(isinstance(size, int) for size in shape[1:])
    ):
        raise ValueError(
            f"Expected one input '{INPUT}', uint8, N x H x W x 3 with fixed H and W; got {inputs}",
        )
    return shape


def rate(sessions: Sequence[onnxruntime.InferenceSession], batch: int, seconds: float) -> tuple[float, float]:
    """Images per second over at least `seconds`, every session in a Python thread of its own; and busy cores.

    Busy cores, CPU seconds per second, well under all cores say that something else was running.
    """
    _, height, width, _ = image_shape(sessions[0])
    images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)
    counts = [0] * len(sessions)
    cpu_start, start = time.process_time(), time.perf_counter()

    def run(index: int) -> None:
        while time.perf_counter() < start + seconds:
            sessions[index].run(None, {INPUT: images})
            counts[index] += batch

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    return sum(counts) / elapsed, (time.process_time() - cpu_start) / elapsed


def measure(
    path: Path | str,
    seconds: float = 5.0,
    rounds: int = 3,
    *,
    cores: int | None = None,
    batches: Sequence[int] = SHARED_BATCHES,
) -> dict[str, Any]:
    """Measure every configuration for `seconds` in each of `rounds` rounds; the median of the rounds counts.

    Returns a dictionary fit for JSON: `images_per_second` (of the best), `best` (its name), `configurations`
    (each with its median, its rates round by round, and the cores it got), and what was measured with.
    """
    path = Path(path)
    cores = cores or available_cores()
    candidates = configurations(cores, batches)
    sessions = [open_sessions(path, candidate) for candidate in candidates]
    for candidate, own in zip(candidates, sessions, strict=True):
        rate(own, candidate.batch, min(1.0, seconds / 2))  # warm-up: first runs allocate
    rates: list[list[tuple[float, float]]] = [[] for _ in candidates]
    for _ in range(rounds):
        for candidate, own, results in zip(candidates, sessions, rates, strict=True):
            results.append(rate(own, candidate.batch, seconds))
    results = [
        {
            "name": candidate.name,
            "sessions": candidate.sessions,
            "threads": candidate.threads,
            "batch": candidate.batch,
            "images_per_second": round(statistics.median(value for value, _ in own), 2),
            "rates": [round(value, 2) for value, _ in own],
            "busy_cores": [round(busy, 2) for _, busy in own],
        }
        for candidate, own in zip(candidates, rates, strict=True)
    ]
    best = max(results, key=lambda result: result["images_per_second"])
    return {
        "model": path.name,
        "images_per_second": best["images_per_second"],
        "best": best["name"],
        "configurations": results,
        "cores": cores,
        "seconds": seconds,
        "rounds": rounds,
        "versions": {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure ONNX Runtime's bare speed for a graph, on all cores.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--seconds", type=float, default=5.0, help="per configuration and round (default 5)")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts (default 3)")
    parser.add_argument("--cores", type=int, help="default: all that this process may use")
    arguments = parser.parse_args()
    if not arguments.model.is_file():
        raise SystemExit(f"No such file: {str(arguments.model)!r}; expected an ONNX graph")
    try:
        result = measure(arguments.model, arguments.seconds, arguments.rounds, cores=arguments.cores)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
