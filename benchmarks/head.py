"""How long the head takes with this version and with another, in turn, in passes, and how far from GEMM's rate it is.

    python benchmarks/head.py --before OTHER_CHECKOUT/src [--sizes 3409x10,12000x200] [--real BOTTLENECKS.npz]

Each size is images × classes of 1,280 features. Each version has a process of its own, which fits the head, the choice
of the regularisation and five folds included, each time that it is told to; the two take turns, so that whatever else
the machine does slows both. A pass is the product of all rows with the weights of all classes and back, 4·n·d·K
operations, for one training set. The rate of products is measured between the turns, on square matrices in float32.

The bottlenecks are drawn: classes that overlap, a spectrum that falls as a network's does, cut off at 0. `--real` adds
bottlenecks from files, with commas between them, that hold the arrays `b` (n×d), `l` (class numbers) and `k` (content
hashes, in hexadecimal).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEATURES = 1280


def drawn(n: int, classes: int) -> tuple[NDArray[np.float16], NDArray[np.intp], list[bytes]]:
    """Draw bottlenecks, their class numbers and keys."""
    rng = np.random.Generator(np.random.PCG64([n, classes]))
    turn = np.linalg.qr(rng.standard_normal((_FEATURES, _FEATURES), np.float32))[0]
    spread = (1 + np.arange(_FEATURES, dtype=np.float32)) ** -0.5
    centres = rng.standard_normal((classes, _FEATURES), np.float32) * (np.arange(_FEATURES) < 60) * np.float32(0.45)
    labels = rng.integers(classes, size=n)
    values = np.empty((n, _FEATURES), np.float16)
    for i in range(0, n, 8192):
        rows = centres[labels[i : i + 8192]] + rng.standard_normal((len(labels[i : i + 8192]), _FEATURES), np.float32)
        values[i : i + 8192] = np.square(np.maximum((rows * spread) @ turn * 8 - 0.3, 0))
    unclear = rng.random(n) < 0.05  # no classifier tells these
    labels[unclear] = rng.integers(classes, size=int(unclear.sum()))
    return values, labels, [number.to_bytes(8, "big") for number in rng.permutation(n).tolist()]


def load(size: str) -> tuple[NDArray[Any], NDArray[np.intp], list[bytes]]:
    """Draw what a size says, or read a file."""
    if not size.endswith(".npz"):
        n, classes = map(int, size.split("x"))
        return drawn(n, classes)
    held = np.load(size)
    return held["b"], held["l"].astype(np.intp), [bytes.fromhex(key) for key in held["k"]]


def worker(size: str) -> None:
    """Fit the head once for each line that comes; print seconds, passes and what came out."""
    from quickstudy.learning import selection, softmax

    values, labels, keys = load(size)
    passes = 0.0
    problem: Any = softmax._Problem
    step, state = problem.newton_step, problem.state

    def trained(mine: Any) -> float:
        """Count the training sets, each by its share of the rows that go through the products."""
        blocks = getattr(mine, "blocks", None)
        if blocks is None:
            return float(mine.sets)
        return sum(len(block.training) * len(block.labels) for block in blocks) / len(values)

    def share(mine: Any) -> float:
        """Count problems in fewer features, the main directions or the row space, by their share of them."""
        width = mine.x.shape[1] if hasattr(mine, "x") else mine.features.width  # earlier versions have the rows as x
        return float(width / (values.shape[1] + 1))

    def counted_step(mine: Any, *arguments: Any) -> Any:
        nonlocal passes
        result = step(mine, *arguments)
        passes += result[-1] * trained(mine) * share(mine)
        return result

    def counted_state(mine: Any, *arguments: Any, **known: Any) -> Any:
        nonlocal passes
        passes += 0.5 * trained(mine) * share(mine)
        if not known and len(arguments) < 3 and hasattr(mine, "blocks"):
            passes += 0.5 * trained(mine) * share(mine)  # the logits of a start
        return state(mine, *arguments, **known)

    problem.newton_step, problem.state = counted_step, counted_state
    for _ in sys.stdin:
        passes, started, cpu = 0.0, time.perf_counter(), time.process_time()
        head = selection.fit_head(values, labels, keys, classes=int(labels.max()) + 1)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        [chosen] = [point for point in head.path if point.l2 == head.l2]
        print(
            json.dumps(
                {
                    "seconds": seconds,
                    "cpu_seconds": cpu,
                    "passes": passes,
                    "operations": passes * 4 * len(labels) * values.shape[1] * (int(labels.max()) + 1),
                    "l2": head.l2,
                    "log_loss": chosen.log_loss,
                    "accuracy": chosen.accuracy,
                    "gap": head.gap,
                    "strengths": [[point.l2, point.log_loss] for point in head.path],
                }
            ),
            flush=True,
        )


def products_per_second() -> float:
    """Measure operations a second in products of square matrices in float32, the best of five."""
    a = np.ones((2048, 2048), np.float32)
    best = np.inf
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best


def measure(size: str, sources: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Let the versions take turns at one size."""
    pipes = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--worker", size],
            env={**os.environ, "PYTHONPATH": str(source)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, source in sources.items()
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in pipes}
    rates = [products_per_second()]
    for number in range(rounds):
        for name in list(pipes) if number % 2 == 0 else list(pipes)[::-1]:
            pipe = pipes[name]
            assert pipe.stdin and pipe.stdout
            pipe.stdin.write("\n")
            pipe.stdin.flush()
            found[name].append(json.loads(pipe.stdout.readline()))
            rates.append(products_per_second())
    for pipe in pipes.values():
        assert pipe.stdin
        pipe.stdin.close()
        pipe.wait()
    rate = max(rates)
    result: dict[str, Any] = {"size": Path(size).stem, "gigaflops": rate / 1e9, "gigaflops_least": min(rates) / 1e9}
    for name, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        result[name] = {
            **runs[-1],
            "seconds": seconds,
            "all_seconds": [run["seconds"] for run in runs],
            "cpu_seconds": statistics.median(run["cpu_seconds"] for run in runs),
            "share_of_rate": runs[-1]["operations"] / seconds / rate,
        }
    if len(found) == 2:
        pairs = list(zip(found["before"], found["now"], strict=True))
        for clock in ("seconds", "cpu_seconds"):
            result[f"ratio_of_{clock}"] = statistics.median(before[clock] / now[clock] for before, now in pairs)
    return result


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="the other version's src")
    parser.add_argument("--sizes", default="3409x10,12000x200,20000x101,100000x10")
    parser.add_argument("--real", default="", help="bottlenecks from files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, help="of each version; beside other programs only 1 tells their work apart"
    )
    parser.add_argument("--name", default="head", help="of the result")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.worker:
        worker(told.worker)
        return
    if told.threads:
        os.environ["OPENBLAS_NUM_THREADS"] = str(told.threads)
    from common import save

    sources = {"before": told.before} if told.before else {}
    sources["now"] = Path(__file__).resolve().parent.parent / "src"
    rows = []
    for size in filter(None, [*told.real.split(","), *told.sizes.split(",")]):
        rows.append(measure(size, sources, told.rounds))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    save(told.name, {"features": _FEATURES, "rounds": told.rounds, "threads": told.threads, "rows": rows})


if __name__ == "__main__":
    main()
