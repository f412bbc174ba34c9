"""Data parallel: two replicas are one training; one that dies ends it with an error and leaves a good checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from small_runs import CLASSIC, FAST, QUIET, newest, small_data, train_until, train_whole

from quickstudy.errors import DeviceError, ImageSetError, OptionError, QuickstudyError, RunError, TrainingError
from quickstudy.process import usable_cores
from quickstudy.scratch.data import ImagesAtHand
from quickstudy.scratch.folder import METRICS, RunFolder
from quickstudy.scratch.input import Pipeline
from quickstudy.scratch.parallel import Replica, choose_device, joined, run_replicas, torchrun_replica
from quickstudy.scratch.recipe import Recipe, RunSettings
from quickstudy.scratch.train import RunTraining, train, train_recipe

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


def forked() -> set[int]:
    """Find the processes that have come from this one's fork server, as replicas do; other tests start others."""
    servers = [one for one in psutil.Process().children() if "multiprocessing.forkserver" in " ".join(one.cmdline())]
    return {one.pid for server in servers for one in server.children(recursive=True)}


@pytest.fixture
def nobody_is_left() -> Callable[[], bool]:
    """Tells whether no replica is left."""
    before = forked()
    return lambda: not forked() - before


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


def train_and_be_asked_to_end(replica: Replica, path: Path, asked: int, step: int) -> None:
    """One replica gets the signal in the midst of a step, that of the parent aside."""
    make = Pipeline.make

    def make_and_be_asked(self: Pipeline, number: int) -> object:
        if number == step and replica.rank == asked:
            signal.raise_signal(signal.SIGTERM)
        return make(self, number)

    Pipeline.make = make_and_be_asked  # type: ignore[method-assign,assignment]
    train_recipe(RECIPE, small_data(), RunFolder(path), replica=replica, settings=QUIET)


def be_asked_before_the_first_step(replica: Replica, path: Path) -> None:
    if not replica.is_first:
        signal.raise_signal(signal.SIGINT)
    train_recipe(RECIPE, small_data(), RunFolder(path), replica=replica, settings=QUIET)


def train_with_a_bias_for_a_while(replica: Replica, path: Path) -> None:
    """Train past the end of the whitening bias's epochs; both replicas come to the same parameters."""
    recipe = FAST.with_options({"batch": 20, "steps": 6, "whitening_bias_epochs": 0.6, "lookahead_every": 3})
    data, folder = small_data(), RunFolder(path)
    if replica.is_first:
        folder.begin(recipe, data.facts)
    torch.distributed.barrier()
    settings = dataclasses.replace(QUIET, checkpoint_seconds=0)
    training = RunTraining(recipe, ImagesAtHand(data, replica, threads=0), folder, replica, settings, None)
    training.run()
    flat = torch.cat([parameter.detach().flatten() for parameter in training.state.network.parameters()])
    largest, smallest = flat.clone(), flat.clone()
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
    assert torch.equal(largest, smallest)


def fail(replica: Replica) -> None:
    if not replica.is_first:
        raise ImageSetError("The images are not here; put them there\nLooked for them here and there")
    torch.distributed.barrier()


def test_two_replicas_give_what_one_gives(alone: Path, tmp_path: Path, nobody_is_left: Callable[[], bool]) -> None:
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


def test_replicas_agree_after_a_part_is_no_longer_trained(tmp_path: Path, nobody_is_left: Callable[[], bool]) -> None:
    run_replicas(2, "cpu", train_with_a_bias_for_a_while, tmp_path / "run")
    assert nobody_is_left()
    folder = RunFolder(tmp_path / "run")
    assert ["gradient_norm/first.bias" in line for line in folder.lines(METRICS)] == [True] * 3 + [False] * 3
    states = [folder.checkpoint(str(step)).state["network"] for step in (2, 3, 6)]  # type: ignore[union-attr]
    assert [torch.equal(state["first.bias"], states[-1]["first.bias"]) for state in states] == [False, True, True]
    assert not torch.equal(states[1]["linear.weight"], states[2]["linear.weight"])


def test_a_replica_that_is_killed_ends_the_training_and_leaves_a_checkpoint(
    alone: Path, tmp_path: Path, nobody_is_left: Callable[[], bool]
) -> None:
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


@pytest.mark.parametrize("asked", [0, 1])
def test_all_replicas_end_after_the_step_in_which_one_is_asked_to(
    alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], asked: int, nobody_is_left: Callable[[], bool]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_replicas(2, "cpu", train_and_be_asked_to_end, tmp_path / "run", asked, 4)
    assert caught.value.code == 128 + signal.SIGTERM
    assert nobody_is_left()
    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoints.steps() == [5]
    assert [line["step"] for line in folder.lines(METRICS)] == [1, 2, 3, 4, 5]
    assert folder.result() is None
    assert not folder.is_active()
    assert capfd.readouterr().err == ""
    train_whole(RECIPE, small_data(), folder.path)
    assert farthest(newest(folder.path).state["network"], newest(alone).state["network"]) < 1e-4


def test_a_replica_that_is_asked_to_end_before_the_first_step(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], nobody_is_left: Callable[[], bool]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_replicas(2, "cpu", be_asked_before_the_first_step, tmp_path / "run")
    assert nobody_is_left()
    assert RunFolder(tmp_path / "run").checkpoints.steps() == []
    assert capfd.readouterr().err == ""


def test_the_parent_hands_on_what_it_is_asked(tmp_path: Path) -> None:
    """Between two steps of a training that would go on for ever."""
    folder, recipe = RunFolder(tmp_path / "run"), RECIPE.with_options({"steps": 1_000_000})

    def ask() -> None:
        while len(folder.lines(METRICS)) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool, pytest.raises(SystemExit) as caught:
        pool.submit(ask)
        run_replicas(2, "cpu", train_replica_of, recipe, folder.path)
    assert caught.value.code == 128 + signal.SIGTERM
    [step] = folder.checkpoints.steps()
    assert step == folder.lines(METRICS)[-1]["step"] >= 3


def train_replica_of(replica: Replica, recipe: Recipe, path: Path) -> None:
    train_recipe(recipe, small_data(), RunFolder(path), replica=replica, settings=QUIET)


def test_the_error_of_a_replica_is_told_as_it_is(nobody_is_left: Callable[[], bool]) -> None:
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


def test_torch_has_as_many_threads_afterwards_as_before() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with joined(Replica(local_world=usable_cores())):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    counts = (("devices", 0), ("threads", -1), ("log_steps", 0), ("summary_steps", -1), ("keep", 0))
    for name, value in (*counts, ("checkpoint_seconds", -1), ("checkpoint_seconds", float("nan"))):
        with pytest.raises(OptionError, match=f"{name} is {value}\\b"):
            train(CLASSIC, tmp_path / "run", settings=dataclasses.replace(QUIET, **{name: value}))


def test_the_place_that_torchrun_gives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "TORCHELASTIC_RUN_ID",
        "RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
    ):
        monkeypatch.delenv(name, raising=False)
    assert torchrun_replica("cpu") is None
    places = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert torchrun_replica("cpu") == Replica(rank=5, world=8, local_rank=1, local_world=4)
    with pytest.raises(OptionError, match=r"devices is 2\b.*torchrun has started 8\b"):
        train(CLASSIC, tmp_path / "run", settings=dataclasses.replace(QUIET, devices=2))
    for name, value in (
        ("RANK", "five"),
        ("RANK", "8"),
        ("WORLD_SIZE", ""),
        ("LOCAL_RANK", "-1"),
        ("MASTER_PORT", "x"),
    ):
        with monkeypatch.context() as patch, pytest.raises(OptionError, match=f"{name} is .*{value}"):
            patch.setenv(name, value)
            torchrun_replica("cpu")


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
def test_replicas_save_and_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    # fmt: off
    command = [
        sys.executable, "-m", "quickstudy", "train", "cifar10-classic", "--data", "digits", "--run", "run", "--set",
        "crop=6", "--batch", "32", "--steps", "1000000", "--summary-steps", "0", "--threads", "1", "--devices", "2",
    ]
    # fmt: on
    folder = RunFolder(tmp_path / "run")
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as started:
        try:
            while not folder.lines(METRICS) and started.poll() is None:
                time.sleep(0.05)
            replicas = psutil.Process(started.pid).children(recursive=True)
        finally:
            started.kill()
    _, alive = psutil.wait_procs(replicas, 60)
    assert alive == []
    [step] = folder.checkpoints.steps()
    assert step >= folder.lines(METRICS)[-1]["step"]


@pytest.mark.slow
def test_torchrun_that_is_asked_to_end(tmp_path: Path) -> None:
    """It hands SIGTERM on to its processes, which save and say so once; its own trace is its own."""
    # fmt: off
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
        "--nproc-per-node", "2", "-m", "--", "quickstudy", "train", "cifar10-classic", "--data", "digits", "--run",
        "run", "--set", "crop=6", "--batch", "32", "--steps", "1000000", "--summary-steps", "0", "--threads", "1",
    ]
    # fmt: on
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    folder = RunFolder(tmp_path / "run")
    try:
        while not folder.lines(METRICS) and started.poll() is None:
            time.sleep(0.05)
        started.terminate()
        told = started.communicate(timeout=300)[1]
    finally:
        started.kill()
        started.communicate()
    assert told.count("quickstudy: interrupted") == 1, told
    [step] = folder.checkpoints.steps()
    assert step >= folder.lines(METRICS)[-1]["step"]


@pytest.mark.slow
def test_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quickstudy.scratch.parallel.usable_cores", lambda: 1)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2")
    together = quickstudy_train(tmp_path, "together", *torchrun)
    assert together.returncode == 0, together.stderr
    assert "float32 on cpu ×2" in together.stdout
    assert len(re.findall(r"^accuracy = ", together.stdout, re.MULTILINE)) == 1, "the first replica speaks"
    recipe: Recipe = RunFolder.existing(tmp_path / "together").recipe()
    train(recipe, tmp_path / "alone", settings=QUIET)
    one, two = newest(tmp_path / "alone"), newest(tmp_path / "together")
    assert one.step == two.step == 12
    assert farthest(two.state["network"], one.state["network"]) < 1e-4
    result = json.loads((tmp_path / "together" / "result.json").read_text())
    assert result["test"]["n"] == 385
