"""Data parallel: two replicas are one training; one that dies ends it with an error and leaves a good checkpoint."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import CLASSIC, QUIET, newest, small_data, train_until, train_whole

from quickstudy.errors import DeviceError, ImageSetError, OptionError, QuickstudyError, RunError, TrainingError
from quickstudy.scratch.folder import METRICS, RunFolder
from quickstudy.scratch.input import Pipeline
from quickstudy.scratch.parallel import Replica, choose_device, run_replicas, torchrun_replica
from quickstudy.scratch.recipe import Recipe, RunSettings
from quickstudy.scratch.train import train, train_recipe

RECIPE = CLASSIC.with_options({"batch": 32, "steps": 12})


def farthest(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of two networks' parameters, over the largest parameter of their tensor."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max() / other[name].abs().max()) for name in one)


@pytest.fixture(autouse=True)
def rubbish_goes_with_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch leaves a file with the traceback of each replica that fails."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training in one process."""
    path = tmp_path_factory.mktemp("alone") / "run"
    train_whole(RECIPE, small_data(), path)
    return path


def nobody_is_left() -> bool:
    """Whether this process has no children that run what replicas run."""
    if multiprocessing.active_children():
        return False
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            command = (place / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if parent == os.getpid() and b"spawn_main" in command:
            return False
    return True


# What replicas run, as functions of a module so that other processes find them


def train_twice(replica: Replica, path: Path) -> None:
    """Train; then come again, to a run that has ended."""
    result = train_recipe(RECIPE, small_data(), RunFolder(path), replica=replica, settings=QUIET)
    assert (result is not None) == replica.is_first
    torch.distributed.barrier()
    again = train_recipe(RECIPE, small_data(), RunFolder(path), replica=replica, settings=QUIET)
    assert again == result
    torch.distributed.barrier()
    # The first replica finds the target reached; the others have to end in the same step.
    wanted = RECIPE.with_options({"evaluate_steps": 2, "target": 0.01})
    early = train_recipe(wanted, small_data(), RunFolder(path / "target"), replica=replica, settings=QUIET)
    assert early is None or early.steps == 2
    torch.distributed.barrier()


def train_and_die(replica: Replica, path: Path) -> None:
    """Replica 1 is killed in the seventh step."""
    make = Pipeline.make

    def make_or_die(self: Pipeline, step: int) -> object:
        if step == 6 and not replica.is_first:
            os.kill(os.getpid(), signal.SIGKILL)
        return make(self, step)

    Pipeline.make = make_or_die  # type: ignore[method-assign,assignment]
    settings = dataclasses.replace(QUIET, checkpoint_seconds=0)
    train_recipe(RECIPE, small_data(), RunFolder(path), replica=replica, settings=settings)


def fail(replica: Replica) -> None:
    if not replica.is_first:
        raise ImageSetError("The images are not here; put them there\nLooked for them here and there")
    torch.distributed.barrier()


def test_two_replicas_give_what_one_gives(alone: Path, tmp_path: Path) -> None:
    run_replicas(2, "cpu", train_twice, tmp_path / "run")
    assert nobody_is_left()
    one, two = newest(alone), newest(tmp_path / "run")
    assert one.step == two.step == 12
    assert farthest(two.state["network"], one.state["network"]) < 1e-4
    assert farthest(two.state["averages"]["averages"], one.state["averages"]["averages"]) < 1e-4
    assert RunFolder(tmp_path / "run").result()["steps"] == 12  # type: ignore[index]
    assert [line["step"] for line in RunFolder(tmp_path / "run").lines(METRICS)] == list(range(1, 13))
    # And that is nearer than a training that sees half of each batch.
    train_whole(CLASSIC.with_options({"steps": 12}), small_data(), tmp_path / "half")
    assert farthest(newest(tmp_path / "half").state["network"], one.state["network"]) > 1e-2


def test_a_replica_that_is_killed_ends_the_training_and_leaves_a_checkpoint(alone: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        run_replicas(2, "cpu", train_and_die, tmp_path / "run")
    assert "Replica 1 died (signal SIGKILL)" in str(caught.value)
    assert nobody_is_left()
    folder = RunFolder(tmp_path / "run")
    assert not folder.is_active()
    checkpoint = folder.checkpoints.newest()
    assert checkpoint is not None
    assert 1 <= checkpoint.step <= 6
    assert folder.checkpoints.damaged == []
    train_whole(RECIPE, small_data(), folder.path)
    assert farthest(newest(folder.path).state["network"], newest(alone).state["network"]) < 1e-4


def test_the_error_of_a_replica_is_told_as_it_is() -> None:
    with pytest.raises(QuickstudyError) as caught:
        run_replicas(2, "cpu", fail)
    assert nobody_is_left()
    assert isinstance(caught.value, ImageSetError)
    assert str(caught.value) == "The images are not here; put them there\nLooked for them here and there"


def test_a_batch_that_two_cannot_share(tmp_path: Path) -> None:
    recipe = CLASSIC.with_options({"batch": 33, "data": "digits", "crop": 6})
    with pytest.raises(OptionError, match=r"batch is 33\b.*\b2 devices"):
        train(recipe, tmp_path / "run", settings=dataclasses.replace(QUIET, devices=2))
    assert not (tmp_path / "run" / "config.json").exists()


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="device is 'gpu'"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(DeviceError, match="device is 'cuda'"):
        train(CLASSIC, tmp_path / "run", settings=RunSettings(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto") == "cuda"
    with pytest.raises(OptionError, match=r"devices is 2\b.*\b1 GPU"):
        train(CLASSIC, tmp_path / "run", settings=RunSettings(devices=2, device="cuda"))
    assert not (tmp_path / "run").exists()


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    for name, value in (("devices", 0), ("threads", -1), ("log_steps", 0), ("summary_steps", -1), ("keep", 0)):
        with pytest.raises(OptionError, match=f"{name} is {value}\\b"):
            train(CLASSIC, tmp_path / "run", settings=dataclasses.replace(QUIET, **{name: value}))


def test_the_place_that_torchrun_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "MASTER_ADDR", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert torchrun_replica("cpu") is None
    places = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    assert torchrun_replica("cpu") == Replica(rank=5, world=8, local_rank=1, local_world=4)


def test_a_replica_that_finds_another_checkpoint_than_the_first_is_no_silent_mistake(tmp_path: Path) -> None:
    """As on several machines that do not share the run's folder."""
    train_until(6, RECIPE, small_data(), tmp_path / "0")
    with pytest.raises(RunError, match="share"):
        run_replicas(2, "cpu", train_elsewhere, tmp_path)


def train_elsewhere(replica: Replica, path: Path) -> None:
    train_recipe(RECIPE, small_data(), RunFolder(path / str(replica.rank)), replica=replica, settings=QUIET)


def quickstudy_train(folder: Path, run: str, *launcher: str) -> subprocess.CompletedProcess[str]:
    # fmt: off
    command = [
        sys.executable, *launcher, "-m", "--", "quickstudy", "train", "cifar10-classic", "--data", "digits",
        "--run", run, "--set", "crop=6", "--batch", "32", "--steps", "12", "--summary-steps", "0", "--threads", "1",
    ]
    # fmt: on
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.slow
def test_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quickstudy.scratch.parallel.usable_cores", lambda: 1)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2")
    together = quickstudy_train(tmp_path, "together", *torchrun)
    assert together.returncode == 0, together.stderr
    assert "float32 on cpu ×2" in together.stdout
    assert len(re.findall(r"^precision @ 1 = ", together.stdout, re.MULTILINE)) == 1, "the first replica speaks"
    recipe: Recipe = RunFolder.existing(tmp_path / "together").recipe()
    train(recipe, tmp_path / "alone", settings=QUIET)
    one, two = newest(tmp_path / "alone"), newest(tmp_path / "together")
    assert one.step == two.step == 12
    assert farthest(two.state["network"], one.state["network"]) < 1e-4
    result = json.loads((tmp_path / "together" / "result.json").read_text())
    assert result["test"]["n"] == 385
