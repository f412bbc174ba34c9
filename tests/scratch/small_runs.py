"""What tests of runs share: a hundred images that are easy to tell apart, recipes of a few steps, comparisons."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quick_processes import quick_processes
from quickstudy.images.pixels import PixelSet
from quickstudy.learning.checkpoints import Checkpoint
from quickstudy.scratch.data import TrainingData
from quickstudy.scratch.folder import RunFolder
from quickstudy.scratch.recipe import RunSettings, recipe_named
from quickstudy.scratch.summaries import RunBegun, RunEvaluation, RunProgress
from quickstudy.scratch.train import RunResult, train_recipe

CLASSES = ("across", "down", "plain")
CLASSIC = recipe_named("cifar10-classic").with_options({"crop": 10, "batch": 16, "steps": 20, "seed": 3})
FAST = recipe_named("cifar10-fast").with_options(
    {
        "widths": "8,16",
        "pad": 1,
        "batch": 16,
        "steps": 20,
        "precision": "float32",
        "seed": 3,
        "average_decay": 0.95,
        "average_every": 3,
        "momentum": 0.85,
        "nesterov": True,
        "rate": 0.05,
        "bias_rate": 4,
        "head_rate": 2,
        "weight_decay": 0.003,
        "label_smoothing": 0.2,
        "mirrored_test": True,
        "shifted_test": 0,
    }
)
"""All that an optimiser can do, and little of it."""
RECIPES = {"classic": CLASSIC, "fast": FAST}
QUIET = RunSettings(threads=0, summary_steps=0, log_steps=1, checkpoint_seconds=1e9)
"""Nothing in the background, no checkpoint but at the end or when asked to stop."""


def pixel_set(n: int, *, seed: int, side: int = 12, channels: int = 3) -> PixelSet:
    draws = np.random.Generator(np.random.PCG64(seed))
    labels = np.arange(n, dtype=np.int64) % len(CLASSES)
    base = np.full((n, side, side, channels), 110.0)
    lines = np.where(np.arange(side) % 4 < 2, 50, -50)
    base[labels == 0] += lines[:, None, None]
    base[labels == 1] += lines[None, :, None]
    noise = draws.normal(0, 30, base.shape)
    return PixelSet(pixels=(base + noise).clip(0, 255).astype(np.uint8), labels=labels, classes=CLASSES)


def small_data(
    *, train: int = 100, test: int = 31, validation: int = 0, side: int = 12, channels: int = 3
) -> TrainingData:
    return TrainingData(
        train=pixel_set(train, seed=1, side=side, channels=channels),
        validation=pixel_set(validation, seed=2, side=side, channels=channels) if validation else None,
        test=pixel_set(test, seed=3, side=side, channels=channels),
    )


class News:
    """Keeps what a run reports; asks for the end with `number` once `stop_after` steps have been made."""

    def __init__(self, stop_after: int | None = None, number: int = signal.SIGTERM) -> None:
        self.begun: RunBegun | None = None
        self.progress: list[RunProgress] = []
        self.evaluated: list[RunEvaluation] = []
        self.stop_after, self.number = stop_after, number

    def __call__(self, news: RunBegun | RunProgress | RunEvaluation) -> None:
        if isinstance(news, RunBegun):
            self.begun = news
            return
        if isinstance(news, RunEvaluation):
            self.evaluated.append(news)
            return
        self.progress.append(news)
        if news.step == self.stop_after:
            os.kill(os.getpid(), self.number)


def train_until(step: int, recipe: Any, data: TrainingData, path: Path, settings: RunSettings = QUIET) -> News:
    """Train until SIGTERM comes in the midst of a step; `fit` saves and ends."""
    news = News(stop_after=step)
    with contextlib.suppress(SystemExit):
        train_recipe(recipe, data, RunFolder(path, keep=settings.keep), settings=settings, report=news)
        raise AssertionError(f"the run went on after step {step}")
    return news


def train_whole(recipe: Any, data: TrainingData, path: Path, settings: RunSettings = QUIET) -> RunResult:
    result = train_recipe(recipe, data, RunFolder(path, keep=settings.keep), settings=settings)
    assert result is not None
    return result


def newest(path: Path) -> Checkpoint:
    checkpoint = RunFolder(path).checkpoints.newest()
    assert checkpoint is not None
    return checkpoint


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two nested states differ, to the bit; the time that they took left out."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = (one.keys() | other.keys()) - ({"seconds", "idle_seconds"} if not place else set())
        return [
            found
            for name in sorted(names, key=str)
            for found in differences(one.get(name), other.get(name), f"{place}/{name}")
        ]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for number, (a, b) in pairs for found in differences(a, b, f"{place}/{number}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [place]
    return [] if type(one) is type(other) and one == other else [place]


def run_in_process(work: Callable[..., object], *arguments: object) -> multiprocessing.process.BaseProcess:
    process = quick_processes().Process(target=work, args=arguments)
    process.start()
    return process


def hold(path: Path, ready: Connection) -> None:
    """Hold the lock of a run, as who trains there does, until somebody sends something."""
    with RunFolder(path).locked():
        ready.send("locked")
        ready.recv()
