"""The trials of a sweep on a device that refuses tensors left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quickstudy.scratch.folder import RunFolder
from quickstudy.scratch.recipe import recipe_named
from quickstudy.sweeps.tasks import Conditions, Training, TrialProgress
from stand_in import DEVICE

FIXED = {"data": "digits", "batch": 32, "steps": 30, "widths": "24,16", "depth": 2, "evaluate_steps": 10, "rate": 0.01}


@pytest.mark.parametrize("options", [{"batch_norm": "before"}, {"activation": "tanh", "depth": 1}, {"validation": 0.2}])
def test_a_trial_is_that_of_the_processor(
    options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, told = Training(recipe_named("mlp").with_options(FIXED | options)), list[TrialProgress]()
    task.run(tmp_path / "cpu", Conditions(device="cpu"), lambda _: None)
    monkeypatch.setattr("quickstudy.sweeps.tasks.choose_device", lambda _: DEVICE)
    task.run(tmp_path / "there", Conditions(device="cuda"), told.append)
    assert (told[-1].step, told[-1].steps) == (30, 30)
    assert told[-1].accuracy is not None
    here, there = (RunFolder(tmp_path / name).checkpoints.newest() for name in ("cpu", "there"))
    assert here is not None
    assert there is not None
    for name, value in there.state["network"].items():
        assert value.device.type == "cpu"
        torch.testing.assert_close(value, here.state["network"][name], rtol=2e-3, atol=2e-4)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("cpu", "there")]
    assert abs(results[0]["test"]["right"] - results[1]["test"]["right"]) <= 1


@pytest.mark.heavy
def test_what_workers_are_forked_from_asks_nothing_of_a_gpu() -> None:
    """CUDA cannot be used in a process whose parent has used it."""
    program = """
import torch
asked = []
for name in ("is_available", "device_count", "current_device", "get_device_properties", "_lazy_init", "init"):
    setattr(torch.cuda, name, lambda *_, name=name: asked.append(name))
import quickstudy.sweeps.workers, torch._dynamo, torch.utils.tensorboard, sys, threading
print(asked, threading.active_count(), "torch._inductor.async_compile" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert found.strip() == "[] 1 False"
