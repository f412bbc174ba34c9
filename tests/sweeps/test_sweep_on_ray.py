"""Sweeps on a Ray cluster of two workers, started as its users start one."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from quickstudy.errors import ClusterError
from quickstudy.scratch.folder import RunFolder
from quickstudy.sweeps.results import TrialRow
from quickstudy.sweeps.study import Grid, Study
from quickstudy.sweeps.sweep import Planned, sweep
from quickstudy.sweeps.workers import TrialNews
from ray_processes import NO_RAY, ray_folder

FIXED = {"data": "digits", "batch": 32, "steps": 40, "widths": "24,16", "evaluate_steps": 10, "rate": 0.01}
GRID = Grid(recipe="mlp", fixed=FIXED, axes={"depth": (1, 2), "rate": (0.01, 1e30)})
STUDY = Study(name="small", grids=(GRID,))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster that `ray start --head` has begun; nothing of it is left."""
    pytest.importorskip("ray", reason=NO_RAY)
    with socket.socket() as free, ray_folder() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            f"--port={port}", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}",
            "--object-store-memory=100000000", "--disable-usage-stats",
        ]  # fmt: skip
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        )
        try:
            until = time.monotonic() + 60
            while not _answers(port):
                assert process.poll() is None, "ray start has ended"
                assert time.monotonic() < until, "ray start does not answer"
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
            process.send_signal(signal.SIGTERM)
            _, alive = psutil.wait_procs([psutil.Process(pid) for pid in family if psutil.pid_exists(pid)], 20)
            for left in alive:
                left.kill()
            process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_run_comes_back_as_it_is_here(cluster: str, tmp_path: Path) -> None:
    study = Study(name="one", grids=(dataclasses.replace(GRID, axes={"depth": (1,)}),))
    [there] = sweep(study, tmp_path / "there", ray=cluster).rows
    [here] = sweep(study, tmp_path / "here").rows
    assert there.status == here.status == "done"
    assert_same(there, here)


def assert_same(mine: TrialRow, other: TrialRow) -> None:
    assert mine.values["accuracy"] == other.values["accuracy"] > 0.5
    states = [RunFolder(row.folder).checkpoints.newest() for row in (mine, other)]
    assert states[0] is not None and states[1] is not None
    for name, value in states[0].state["network"].items():
        assert torch.equal(value, states[1].state["network"][name]), name
    assert any((mine.folder / "tensorboard" / "train").iterdir())


@pytest.mark.slow
def test_runs_come_back_as_they_are_here(cluster: str, tmp_path: Path) -> None:
    told: list[Planned | TrialNews] = []
    there = sweep(STUDY, tmp_path / "there", ray=cluster, report=told.append)
    here = sweep(STUDY, tmp_path / "here")
    assert [row.status for row in there.rows] == [row.status for row in here.rows] == ["done", "failed"] * 2
    for mine, other in zip(there.rows, here.rows, strict=True):
        assert mine.error == other.error
        if mine.status == "done":
            assert_same(mine, other)
    assert sum(isinstance(news, TrialNews) and news.ended for news in told) == 2
    again: list[Planned | TrialNews] = []
    sweep(STUDY, tmp_path / "there", ray=cluster, report=again.append)
    assert again[0] == Planned(trials=4, done=2, workers=2)


@pytest.mark.slow
def test_a_lost_worker_is_replaced(cluster: str, tmp_path: Path) -> None:
    study = Study(name="slow", grids=(Grid(recipe="mlp", fixed={**FIXED, "steps": 1500}, axes={"depth": (1, 2)}),))
    killed: list[int] = []

    def kill_one() -> None:
        until = time.monotonic() + 60
        while not killed and time.monotonic() < until:
            for process in psutil.process_iter(["cmdline"]):
                if any("ray::_carry_out" in part for part in process.info["cmdline"] or []):
                    time.sleep(1)  # it should be at work
                    process.kill()
                    killed.append(process.pid)
                    return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    result = sweep(study, tmp_path / "sweep", ray=cluster)
    killer.join()
    assert killed
    assert [row.status for row in result.rows] == ["done"] * 2
    assert [row.values["steps"] for row in result.rows] == [1500] * 2


def test_an_address_where_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"No Ray cluster answers at '127\.0\.0\.1:1'"):
        sweep(STUDY, tmp_path / "sweep", ray="127.0.0.1:1")
    assert not (tmp_path / "sweep" / "runs").exists()
