"""Runs that are trained together, on a device that refuses tensors left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quickstudy.scratch.data import TrainingData
from quickstudy.scratch.folder import RunFolder
from quickstudy.scratch.parallel import Replica
from quickstudy.scratch.recipe import RunSettings, recipe_named
from quickstudy.scratch.together import train_together
from quickstudy.sweeps.study import Grid, Study
from quickstudy.sweeps.tasks import Conditions, Training, run_together
from stand_in import DEVICE, waits

FIXED = {"data": "digits", "batch": 32, "steps": 10, "widths": "12,8", "depth": 2, "rate": 0.01}


def test_together_there_is_alone_on_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = {"activation": ("relu", "elu"), "batch_norm": ("off", "before"), "rate": (0.01, 0.02)}
    fixed = FIXED | {"evaluate_steps": 5, "validation": 0.2, "average_decay": 0.9}
    trials = Study(name="some", grids=(Grid(recipe="mlp", fixed=fixed, axes=axes),)).trials()
    tasks = [trial.task for trial in trials if isinstance(trial.task, Training)]
    for task, trial in zip(tasks, trials, strict=True):
        task.run(tmp_path / "here" / trial.folder, Conditions(device="cpu"), lambda _: None)
    monkeypatch.setattr("quickstudy.sweeps.tasks.choose_device", lambda _: DEVICE)
    ended: dict[int, object] = {}
    folders = [tmp_path / "there" / trial.folder for trial in trials]
    conditions = Conditions(device="cuda")
    run_together(tasks, folders, conditions, [lambda _: None] * len(tasks), ended.__setitem__)
    assert ended == dict.fromkeys(range(8))
    for folder in folders:
        there, here = (RunFolder(place / folder.name) for place in (folder.parent, tmp_path / "here"))
        newest = [run.checkpoints.newest() for run in (there, here)]
        assert newest[0] is not None
        assert newest[1] is not None
        for name, value in newest[0].state["network"].items():
            assert value.device.type == "cpu"
            torch.testing.assert_close(value, newest[1].state["network"][name], rtol=1e-4, atol=1e-4)
        results = [run.result() or {} for run in (there, here)]
        assert abs(results[0]["test"]["right"] - results[1]["test"]["right"]) <= 1
        assert abs(results[0]["validation"]["right"] - results[1]["validation"]["right"]) <= 1


def test_steps_do_not_wait_for_the_device(data: TrainingData, tmp_path: Path) -> None:
    quiet, counts = RunSettings(threads=0, summary_steps=0, log_steps=1000), []
    for steps in (4, 9):
        recipes = [recipe_named("mlp").with_options(FIXED | {"steps": steps, "seed": seed}) for seed in (0, 1)]
        folders = [RunFolder(tmp_path / f"{steps}-{seed}") for seed in (0, 1)]
        with waits() as found:
            train_together(
                recipes,
                data,
                folders,
                replica=Replica(device_type=DEVICE),
                settings=quiet,
                reports=[lambda _: None] * 2,
                ended=lambda number, error: None,
            )
        assert all(folder.result() is not None for folder in folders)
        counts.append(len(found))
    assert counts[0] == counts[1]
