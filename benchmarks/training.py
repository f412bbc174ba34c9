"""Training from scratch: the classic network's step against its peers, what its parts cost, and the fast recipe's race.

    python benchmarks/training.py step --tensorflow TF_PYTHON [--rounds 5]
    python benchmarks/training.py parts [--rounds 6]
    python benchmarks/training.py devices [--rounds 3]
    python benchmarks/training.py race [--seeds 5]

Reads CIFAR-10 from QUICKSTUDY_DATA. The sides run in turn, and ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from common import quickstudy, run_measured, save, spread

_PEERS = Path(__file__).parent / "peers"
_STEPS = 60_000
"""Of the classic recipe."""


def main() -> None:
    """Measure one thing and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["step", "parts", "devices", "race"])
    parser.add_argument("--tensorflow", help="Python of an environment with tensorflow")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], help="option of the fast recipe, for race")
    options = parser.parse_args()
    measure = {"step": step, "parts": parts, "devices": devices, "race": race}[options.what]
    save(f"training_{options.what}", measure(options))


def step(options: argparse.Namespace) -> dict[str, Any]:
    """Examples a second: ours with its input pipeline, averages, summaries and checkpoints; peers without any."""
    sides: dict[str, list[float]] = {"quickstudy": [], "torch": [], "torch_channels_last": [], "tensorflow": []}
    gemm: dict[str, list[float]] = {"gemm": [], "convolution": []}
    for _ in range(options.rounds):
        sides["quickstudy"].append(_classic_rate())
        sides["torch"].append(_peer([sys.executable, "torch_classic.py"]))
        sides["torch_channels_last"].append(_peer([sys.executable, "torch_classic.py", "--channels-last"]))
        if options.tensorflow:
            sides["tensorflow"].append(_peer([options.tensorflow, "keras_classic.py"]))
        for name, rate in _ceilings().items():
            gemm[name].append(rate)
        print({name: rates[-1] for name, rates in (sides | gemm).items() if rates}, flush=True)
    peers = [rates for name, rates in sides.items() if name != "quickstudy" and rates]
    best = [max(rates[number] for rates in peers) for number in range(options.rounds)]
    work = _gigaflop_an_example()
    return {
        "examples_per_second": {name: spread(rates) for name, rates in sides.items() if rates},
        "times_fastest_peer": spread([q / b for q, b in zip(sides["quickstudy"], best, strict=True)]),
        "gigaflop_an_example": work,
        "gigaflop_per_second": spread([rate * work for rate in sides["quickstudy"]]),
        "ceilings_gigaflop_per_second": {name: spread(rates) for name, rates in gemm.items()},
        "share_of_gemm": spread([q * work / g for q, g in zip(sides["quickstudy"], gemm["gemm"], strict=True)]),
        "share_of_convolution": spread(
            [q * work / g for q, g in zip(sides["quickstudy"], gemm["convolution"], strict=True)]
        ),
        "hours_for_60000_steps": spread([_STEPS * 128 / rate / 3600 for rate in sides["quickstudy"]]),
    }


def parts(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a step with and without averages, summaries and checkpoints, and with and without the pipeline.

    The time spent in each of the three is what to believe where a machine's speed varies by more than the parts cost.
    """
    variants = {
        "everything": {},
        "no averages, summaries and checkpoints": {
            "average_decay": 0.0,
            "summary_steps": 0,
            "checkpoint_seconds": 1e9,
        },
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, changes in variants.items():
            milliseconds[name].append(128_000 / _classic_rate(**changes))
        print({name: round(values[-1], 2) for name, values in milliseconds.items()}, flush=True)
    everything = milliseconds["everything"]
    with _timed() as seconds:
        started = time.perf_counter()
        for _ in range(options.rounds):
            _classic_rate()
        whole = time.perf_counter() - started
    return {
        "percent_of_the_time_spent_in": {name: 100 * spent / whole for name, spent in seconds.items()},
        "milliseconds_a_step": {name: spread(values) for name, values in milliseconds.items()},
        "cost_percent": {
            name: spread([100 * (a / b - 1) for a, b in zip(everything, values, strict=True)])
            for name, values in milliseconds.items()
            if name != "everything"
        },
        "pipeline": _pipeline(options.rounds),
        "batch_milliseconds_on_one_core": _batch_milliseconds(),
    }


def devices(options: argparse.Namespace) -> dict[str, Any]:
    """Examples a second with one process and with two, each with half of the cores."""
    rates: dict[str, list[float]] = {"1": [], "2": []}
    for _ in range(options.rounds):
        for count, values in rates.items():
            with tempfile.TemporaryDirectory() as folder:
                command = quickstudy(
                    "train", "cifar10-classic", "--steps", "200", "--devices", count, "--run", f"{folder}/run"
                )
                run_measured(command)
                values.append(_reported_rate(Path(folder) / "run"))
        print({name: values[-1] for name, values in rates.items()}, flush=True)
    return {
        "examples_per_second": {name: spread(values) for name, values in rates.items()},
        "speedup": spread([b / a for a, b in zip(rates["1"], rates["2"], strict=True)]),
    }


def race(options: argparse.Namespace) -> dict[str, Any]:
    """The fast recipe, whole processes, against the wall time that the classic one would take for 60,000 steps."""
    rows, classic = [], []
    for seed in range(options.seeds):
        classic.append(_classic_rate())
        with tempfile.TemporaryDirectory() as folder:
            chosen = [part for option in options.set for part in ("--set", option)]
            command = quickstudy(
                "train", "cifar10-fast", "--seed", str(seed), "--run", f"{folder}/run", "--json", *chosen
            )
            measured = run_measured(command)
            result = json.loads(measured["output"])
        needed = _STEPS * 128 / classic[-1]
        rows.append(
            {
                "seed": seed,
                "wall_seconds": measured["wall_seconds"],
                "precision": result["test"]["accuracy"],
                "classic_seconds": needed,
                "times_sooner": needed / measured["wall_seconds"],
            }
        )
        print(rows[-1], flush=True)
    precisions = [row["precision"] for row in rows]
    return {
        "options": options.set,
        "rows": rows,
        "precision": spread(precisions) | {"mean": statistics.mean(precisions), "deviation": _deviation(precisions)},
        "wall_seconds": spread([row["wall_seconds"] for row in rows]),
        "classic_examples_per_second": spread(classic),
        "times_sooner": spread([row["times_sooner"] for row in rows]),
    }


def _classic_rate(
    *,
    steps: int = 300,
    average_decay: float = 0.9999,
    summary_steps: int = 100,
    checkpoint_seconds: float = 10.0,
) -> float:
    """Examples a second over a short run in this process, its first 50 steps left out.

    Checkpoints come six times as often as by default, so that the short run has its share of them.
    """
    from quickstudy.scratch.data import load_training_data
    from quickstudy.scratch.folder import RunFolder
    from quickstudy.scratch.parallel import Replica, joined
    from quickstudy.scratch.recipe import RunSettings, recipe_named
    from quickstudy.scratch.summaries import RunProgress
    from quickstudy.scratch.train import train_recipe

    if "data" not in _KEPT:
        data = load_training_data("cifar10", image_size=32, validation=0)
        _KEPT["data"] = replace(
            data, test=replace(data.test, pixels=data.test.pixels[:100], labels=data.test.labels[:100])
        )
    recipe = recipe_named("cifar10-classic").with_options({"steps": steps, "average_decay": average_decay})
    times: dict[int, float] = {}

    def note(news: object) -> None:
        if isinstance(news, RunProgress):
            times[news.step] = time.perf_counter()

    settings = RunSettings(summary_steps=summary_steps, checkpoint_seconds=checkpoint_seconds)
    with tempfile.TemporaryDirectory() as folder, joined(Replica()):
        train_recipe(recipe, _KEPT["data"], RunFolder(Path(folder)), settings=settings, report=note)
    return (steps - 50) * 128 / (times[steps] - times[50])


_KEPT: dict[str, Any] = {}


@contextmanager
def _timed() -> Iterator[dict[str, float]]:
    """Adds up what the training thread spends in averages, summaries and checkpoints; what one calls counts once."""
    from quickstudy.learning.averages import ParameterAverages
    from quickstudy.learning.checkpoints import Checkpoints
    from quickstudy.scratch.summaries import Summaries

    parts = {
        "averages": [(ParameterAverages, "update")],
        "summaries": [(Summaries, name) for name in ("scalars", "images", "histogram", "network", "graph")],
        "checkpoints": [(Checkpoints, "save")],
    }
    seconds, depth = dict.fromkeys(parts, 0.0), 0

    def timed(part: str, original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal depth
            depth += 1
            started = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                depth -= 1
                if not depth:
                    seconds[part] += time.perf_counter() - started

        return call

    with ExitStack() as stack:
        for part, methods in parts.items():
            for owner, name in methods:
                stack.enter_context(mock.patch.object(owner, name, timed(part, getattr(owner, name))))
        yield seconds


def _pipeline(rounds: int) -> dict[str, Any]:
    """Milliseconds a bare step with the input pipeline and with one batch in memory, in turn, 60 steps at a time."""
    import torch
    from torch.nn import functional

    from quickstudy.scratch.input import Pipeline
    from quickstudy.scratch.recipe import recipe_named
    from quickstudy.scratch.state import Course, TrainingState

    data, recipe = _KEPT["data"], recipe_named("cifar10-classic")
    state = TrainingState(recipe, side=32, channels=3, classes=10, device=torch.device("cpu"))
    pipeline = Pipeline(data.train, recipe.augmentation, batch=128, seed=0, moments=data.moments)
    one = pipeline.make(0)

    def block(batches: Iterator[Any]) -> float:
        for number, batch in enumerate(batches):
            if number == 10:
                started = time.perf_counter()
            loss = functional.cross_entropy(state.network(batch.images), batch.labels)
            state.zero_grad()
            loss.backward()
            state.update_parameters(Course(step=0, steps=1, epoch=0.0, rate=0.01))
        return 1e3 * (time.perf_counter() - started) / 60

    with_it, without = [], []
    for _ in range(4 * rounds):
        with_it.append(block(pipeline.batches(range(70))))
        without.append(block(one for _ in range(70)))
    return {
        "with": spread(with_it),
        "without": spread(without),
        "cost_percent": spread([100 * (a / b - 1) for a, b in zip(with_it, without, strict=True)]),
    }


def _batch_milliseconds() -> float:
    """What one batch costs a core."""
    import torch

    from quickstudy.scratch.input import Pipeline
    from quickstudy.scratch.recipe import recipe_named

    data = _KEPT["data"]
    recipe = recipe_named("cifar10-classic")
    pipeline = Pipeline(data.train, recipe.augmentation, batch=128, seed=0, moments=data.moments, threads=0)
    torch.set_num_threads(1)
    seconds = []
    for number in range(200):
        started = time.perf_counter()
        pipeline.make(number)
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds)


def _reported_rate(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["examples_per_second"] for line in lines if "examples_per_second" in line)


def _peer(command: list[str]) -> float:
    python, script, *rest = command
    output = subprocess.run([python, _PEERS / script, *rest], check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.strip().splitlines()[-1])["examples_per_second"])


def _ceilings() -> dict[str, float]:
    """What the machine can do: a square float32 product in torch, and one large convolution in oneDNN, forward."""
    import torch

    def rate(work: Any, flop: float) -> float:
        seconds = []
        for _ in range(12):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        return flop / statistics.median(seconds[2:]) / 1e9

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    a = torch.randn(2048, 2048)
    images = torch.randn(64, 128, 16, 16).to(memory_format=torch.channels_last)
    convolution = torch.nn.Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last)
    with torch.no_grad():
        return {
            "gemm": rate(lambda: a @ a, 2 * 2048**3),
            "convolution": rate(lambda: convolution(images), 2 * 64 * 16 * 16 * 128 * 128 * 9),
        }


def _gigaflop_an_example() -> float:
    """Forward, and backward to weights and to inputs; the first layer's inputs need no gradient."""
    from quickstudy.scratch.layers import cost_of
    from quickstudy.scratch.networks import ClassicNetworkOptions

    forward = cost_of(ClassicNetworkOptions().build(size=24, channels=3, classes=10), size=24, channels=3).multiply_adds
    return 2 * (3 * forward - 24 * 24 * 64 * 75) / 1e9


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
