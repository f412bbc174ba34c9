"""Trainings killed at random moments and resumed: always resumable, and in the end the same to the bit."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import CLASSIC, FAST, differences, newest, run_in_process

from quickstudy.scratch.folder import METRICS, RunFolder
from quickstudy.scratch.recipe import Recipe, RunSettings
from quickstudy.scratch.train import train

DIGITS = {"data": "digits", "steps": 30, "batch": 32}
RECIPES = {
    "classic": CLASSIC.with_options({**DIGITS, "crop": 6}),
    "fast": FAST.with_options({**DIGITS, "widths": "4,8"}),
}
SETTINGS = RunSettings(threads=2, summary_steps=7, log_steps=5, checkpoint_seconds=0.05, keep=2)
MOMENTS = ("some time", "flush", "rename", "after a rename", "a step", "evaluation")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: Any, name: str, number: int, *, after: bool = False) -> None:
    """Kill this process at that call of a function."""
    real: Callable[..., object] = getattr(owner, name)
    calls = 0

    def replaced(*arguments: Any, **options: Any) -> object:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            die()
        result = real(*arguments, **options)
        if calls == number:
            die()
        return result

    setattr(owner, name, replaced)


def train_until_killed(name: str, path: Path, moment: str, number: int) -> None:
    """In a process of its own: train, and be killed at a moment unless there is none."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from quickstudy.scratch import evaluation
    from quickstudy.scratch.state import TrainingState

    if moment == "flush":
        at_call(os, "fsync", number)
    elif moment in ("rename", "after a rename"):
        at_call(Path, "replace", number, after=moment != "rename")
    elif moment == "a step":
        at_call(TrainingState, "update_parameters", number, after=True)
    elif moment == "evaluation":
        at_call(evaluation, "evaluation_logits", 1)
    train(RECIPES[name], path, settings=SETTINGS)


def attempt(name: str, path: Path, moment: str, draws: random.Random) -> bool:
    """Train once; whether it was killed. What is left can be gone on from."""
    process = run_in_process(train_until_killed, name, path, moment, draws.randint(1, 12))
    try:
        if moment == "some time":
            while process.is_alive() and not (path / "lock").exists():
                time.sleep(0.001)
            process.join(draws.uniform(0, 0.4))
            process.kill()
        process.join(120)
        assert process.exitcode in (0, -signal.SIGKILL)
    finally:
        process.kill()
        process.join()
    folder = RunFolder(path)
    assert not folder.is_active()
    checkpoint = folder.checkpoints.newest()
    assert folder.checkpoints.damaged == [], "a kill damages no checkpoint"
    assert (folder.result() is not None) == (process.exitcode == 0) or process.exitcode == -signal.SIGKILL
    if checkpoint is not None:
        assert 0 < checkpoint.step <= 30
    return process.exitcode != 0


def kill_often(name: str, moments: list[str], folder: Path, seed: int) -> None:
    """Kill as many trainings as there are moments, going on each time; compare each one that ends."""
    assert attempt(name, folder / "whole", "never", random.Random(0)) is False
    whole = newest(folder / "whole")
    draws, number, killed = random.Random(seed), 0, 0
    while killed < len(moments):
        path = folder / str(number)
        before = RunFolder(path).checkpoints.steps()
        if attempt(name, path, moments[killed], draws):
            killed += 1
            assert max(RunFolder(path).checkpoints.steps(), default=0) >= max(before, default=0)
        else:  # it was quicker
            assert_same(path, whole.state)
            number += 1
    assert attempt(name, folder / str(number), "never", draws) is False
    assert_same(folder / str(number), whole.state)


def assert_same(path: Path, state: dict[str, Any]) -> None:
    end = newest(path)
    assert end.step == 30
    assert differences(end.state, state) == []
    folder = RunFolder(path)
    assert [line["step"] for line in folder.lines(METRICS) if "loss/total" in line] == [5, 10, 15, 20, 25, 30]
    assert len(folder.checkpoints.steps()) <= SETTINGS.keep
    assert not list((path / "checkpoints").glob(".tmp-*")) or folder.checkpoints.steps()[-1] == 30
    result = folder.result()
    assert result is not None
    assert result["steps"] == 30


@pytest.mark.parametrize(
    "name", [pytest.param("classic", marks=pytest.mark.heavy), pytest.param("fast", marks=pytest.mark.slow)]
)
def test_three_kills(name: str, tmp_path: Path) -> None:
    moments = {"classic": ["a step", "rename", "evaluation"], "fast": ["some time", "after a rename", "flush"]}[name]
    kill_often(name, moments, tmp_path, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_twenty_kills(name: str, tmp_path: Path) -> None:
    draws = random.Random(2)
    moments = [*MOMENTS, *MOMENTS, *MOMENTS, *draws.choices(MOMENTS, k=2)]
    draws.shuffle(moments)
    kill_often(name, moments, tmp_path, seed=3)


def test_the_recipes_are_those_meant() -> None:
    kinds: dict[str, Recipe] = RECIPES
    assert kinds["classic"].optimiser.momentum == 0
    assert kinds["fast"].optimiser.momentum > 0
