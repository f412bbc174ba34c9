"""Runs killed at random moments, as `benchmarks/faults.py` does it: nothing is lost, nothing stands half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"


def find_faults(folder: Path, work: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), "--folder", str(folder), "--json", str(work / "faults.json"), *options]
    process = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert process.returncode in (0, 1), process.stderr
    values: dict[str, Any] = json.loads((work / "faults.json").read_text())
    return values


def assert_right(values: dict[str, Any], kills: int) -> None:
    assert values["kills"]["failed_runs"] == []
    assert values["kills"]["kills"] == kills
    assert values["kills"]["damaged_shards"] == 0
    assert values["kills"]["half_written_files"] == 0
    assert values["kills"]["lost_shards"] == 0
    assert values["kills"]["identical_models"] == values["kills"]["finished_runs"] > 0
    assert values["kills"]["is_right"]
    assert values["processes"]["is_right"], values["processes"]


@pytest.mark.parametrize(
    ("kills", "copies"), [pytest.param(1, 1, marks=pytest.mark.heavy), pytest.param(3, 7, marks=pytest.mark.slow)]
)
def test_killed_runs_lose_nothing_that_was_stored_and_the_next_writes_the_same_model(
    photos: Path, tmp_path: Path, kills: int, copies: int
) -> None:
    for path in sorted(photos.rglob("*.jpg")):  # enough of them to be flushed to the store while extraction goes on
        for number in range(copies):
            copy = path.with_name(f"{path.stem}-{number}.jpg")
            copy.write_bytes(path.read_bytes() + bytes([number]))  # a picture ends before its file does
    assert_right(find_faults(photos, tmp_path, "--kills", str(kills), "--processes", "2", "--seed", "6"), kills)


@pytest.mark.slow
def test_thirty_kills_on_real_photos(test_data: Path, tmp_path: Path) -> None:
    assert_right(find_faults(test_data / "clothing", tmp_path, "--limit", "600", "--kills", "30"), 30)
