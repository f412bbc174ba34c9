"""What becomes of trainings that are asked to end, at random moments and by different ways.

    python benchmarks/signals.py --trials 50

Each trial starts `quickstudy train --devices 2` in a group of its own, sends SIGTERM or SIGINT at a random moment to
the group, to the parent or to one replica, and looks at what is left: the exit status (143 or 130), one line on
standard error, a checkpoint of the last step that was told (where a step had been made), nobody left behind. The same
for a sweep of two workers, whose signals go to group or parent. Expected before it was run: all as it should be.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from common import save
from quickstudy.scratch.folder import METRICS, RunFolder

# fmt: off
TRAIN = [
    "train", "cifar10-classic", "--data", "digits", "--set", "crop=6", "--batch", "32", "--steps", "1000000",
    "--summary-steps", "0", "--threads", "1", "--devices", "2",
]
SWEEP = [
    "sweep", "mlp", "--set", "data=digits", "--grid", "depth=1,2", "--steps", "1000000", "--workers", "2",
]
# fmt: on
WAYS = ("group", "parent", "replica")
_LATEST_SECONDS = 1.5
"""Latest moment of a signal, counted from the first sign of the run's folder or of its first step."""


def main() -> int:
    """Make the trials and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # A shell that starts this in the background ignores SIGINT, which processes started here would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chance = random.Random(options.seed)
    found: Counter[str] = Counter()
    wrong: list[str] = []
    started = time.perf_counter()
    for number in range(options.trials + options.sweeps):
        sweeps = number >= options.trials
        way = chance.choice(WAYS[:2] if sweeps else WAYS)
        sent = chance.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGINT))
        early = not sweeps and chance.random() < 0.2
        with tempfile.TemporaryDirectory() as folder:
            name, problems = trial(Path(folder), way, sent, sweeps=sweeps, early=early, chance=chance)
        found[name] += 1
        wrong += [f"{name}: {problem}" for problem in problems]
        print(f"{number + 1}: {name}" + "".join(f"\n    {problem}" for problem in problems), flush=True)
    seconds = round(time.perf_counter() - started)
    save("signals", {"seed": options.seed, "trials": dict(sorted(found.items())), "wrong": wrong, "seconds": seconds})
    return 1 if wrong else 0


def trial(
    folder: Path, way: str, sent: signal.Signals, *, sweeps: bool, early: bool, chance: random.Random
) -> tuple[str, list[str]]:
    """Start a training or a sweep, send the signal, and tell what it was and what is not as it should be."""
    words = [*SWEEP, "--results", str(folder / "run")] if sweeps else [*TRAIN, "--run", str(folder / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "quickstudy", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    sign = "**/config.json" if early else f"**/{METRICS}"
    while process.poll() is None and not list((folder / "run").glob(sign)):
        time.sleep(0.02)
    time.sleep(chance.uniform(0, _LATEST_SECONDS))
    below = psutil.Process(process.pid).children(recursive=True)
    replicas = [one for one in below if one.ppid() != process.pid]  # of the process that they are forked from
    if way == "group":
        os.killpg(process.pid, sent)
    else:
        os.kill(process.pid if way == "parent" else chance.choice(replicas).pid, sent)
    _, told = process.communicate(timeout=120)
    time.sleep(0.2)
    name = f"{'sweep' if sweeps else 'replicas'}, {sent.name} to {way}, {'before' if early else 'after'} the first step"
    return name, problems_of(folder / "run", process.returncode, told, sent, below)


def problems_of(run: Path, status: int, told: str, sent: signal.Signals, below: list[psutil.Process]) -> list[str]:
    """List what is not as it should be."""
    found = []
    if status != 128 + sent:
        found.append(f"exit status {status}")
    lines = [line for line in told.splitlines() if line.strip()]
    if len(lines) != 1 or "interrupted" not in lines[0]:
        found.append(f"said {told[-2000:]!r}")
    for config in run.glob("**/config.json"):
        folder = RunFolder(config.parent)
        steps = [line["step"] for line in folder.lines(METRICS)]
        newest = folder.checkpoints.newest()
        if steps and (newest is None or newest.step < steps[-1] or folder.checkpoints.damaged):
            found.append(f"step {steps[-1]} had been made, the newest checkpoint is {newest and newest.step}")
    left = [one.pid for one in below if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    if left:
        found.append(f"{len(left)} processes were left")
        for one in below:
            if one.pid in left:
                one.kill()
    return found


if __name__ == "__main__":
    raise SystemExit(main())
