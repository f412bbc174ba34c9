"""Processes that are asked to end at random moments: one line, the right exit status, the same model afterwards."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from small_backbones import add_small_backbone

LINE = "quickstudy: interrupted; what has been computed stays in the cache, and the same command continues from there"
COMMANDS = {
    "extraction": ("retrain", "photos", "--views", "3"),
    "fine-tuning": ("retrain", "photos", "--backbone", "small", "--cut", "block_1", "--epochs", "60"),
}
CACHES = 5


def start(folder: Path, cache: int, *arguments: str) -> subprocess.Popen[str]:
    """Start `quickstudy` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "quickstudy", *arguments, "--cache", f"cache-{cache}"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_asked_to_end_at_random(name: str, photos: Path) -> None:
    folder, draws, command = photos.parent, random.Random(name), COMMANDS[name]
    for cache in range(CACHES + 1):
        add_small_backbone(folder / f"cache-{cache}")
    begun = time.monotonic()
    assert start(folder, CACHES, *command, "-o", "whole.onnx").wait() == 0
    seconds = time.monotonic() - begun
    ended = 0
    for trial in range(25):
        number, to_group = draws.choice((signal.SIGTERM, signal.SIGINT)), draws.random() < 0.5
        process = start(folder, trial % CACHES, *command, "-o", f"{trial}.onnx")
        time.sleep(draws.uniform(0.4, 1.0) * seconds)
        (os.killpg if to_group else os.kill)(process.pid, number)
        _, said = process.communicate(timeout=60)
        if (folder / f"{trial}.onnx").exists():  # it was done, and Python was leaving, which no handler outlives
            assert process.returncode in (0, 128 + number, -number)
            shutil.rmtree(folder / f"cache-{trial % CACHES}")  # in which the next ones would find all done
            add_small_backbone(folder / f"cache-{trial % CACHES}")
        else:
            assert (process.returncode in (128 + number, -number), said.strip()) == (True, LINE)
            ended += 1
    assert ended, "no signal came while it computed"
    for cache in range(CACHES):
        assert start(folder, cache, *command, "-o", "last.onnx").wait() == 0
        assert (folder / "last.onnx").read_bytes() == (folder / "whole.onnx").read_bytes()
