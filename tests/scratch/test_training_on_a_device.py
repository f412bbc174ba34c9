"""Training from scratch on a device that refuses tensors left behind: all recipes, all that a run writes and reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import CLASSIC, FAST, QUIET, News, differences, newest, small_data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from quickstudy.scratch.evaluation import evaluate_state
from quickstudy.scratch.export import export
from quickstudy.scratch.folder import RunFolder
from quickstudy.scratch.input import Pipeline
from quickstudy.scratch.parallel import Replica
from quickstudy.scratch.recipe import Recipe, RunSettings, recipe_named
from quickstudy.scratch.state import TrainingState
from quickstudy.scratch.train import RunResult, train_recipe
from stand_in import DEVICE, waits

STEPS = 6  # each operator passes through Python there
DATA = small_data(validation=9)
# Not relu: before a batch norm, it lets Adam amplify rounding, which differs with what the process did before.
MLP = recipe_named("mlp").with_options(
    {"widths": "12,8", "depth": 2, "batch": 16, "steps": STEPS, "batch_norm": "after", "activation": "tanh"}
)
GPU = recipe_named("cifar10-gpu").with_options(
    {
        "widths": "8,8",
        "batch": 20,
        "steps": STEPS,
        "epochs": 0,
        "compiled": False,
        "precision": "float32",
        "shifted_test": 1,
        "unsure_lead": 0.5,
        "evaluate_steps": 4,
    }
)
RECIPES = {
    "classic": CLASSIC.with_options({"steps": STEPS}),
    "fast": FAST.with_options({"steps": STEPS}),
    "mlp": MLP,
    "gpu": GPU,
}
THERE = Replica(device_type=DEVICE)
EVERYTHING = RunSettings(threads=2, summary_steps=3, log_steps=2, checkpoint_seconds=0)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[request.param]


def run(
    recipe: Recipe, path: Path, settings: RunSettings = QUIET, replica: Replica = THERE, report: News | None = None
) -> RunResult:
    result = train_recipe(recipe, DATA, RunFolder(path), replica=replica, settings=settings, report=report)
    assert result is not None
    return result


@pytest.mark.parametrize("name", RECIPES)
def test_batches_are_those_of_the_processor(name: str) -> None:
    augmentation = RECIPES[name].augmentation
    pipelines = [
        Pipeline(
            DATA.train,
            augmentation,
            batch=16,
            seed=5,
            moments=DATA.moments,
            rank=1,
            world=2,
            device=device,
        )
        for device in ("cpu", DEVICE)
    ]
    for step in (0, 1, 2, 70, 71, 3):
        one, other = (pipeline.make(step) for pipeline in pipelines)
        assert (other.images.device.type, other.labels.device.type) == (DEVICE, DEVICE)
        assert torch.equal(other.images.cpu(), one.images)
        assert torch.equal(other.labels.cpu(), one.labels)


def test_a_run_with_all_that_it_writes_is_that_of_the_processor(recipe: Recipe, tmp_path: Path) -> None:
    here = run(recipe, tmp_path / "here", EVERYTHING, Replica())
    there = run(recipe, tmp_path / "there", EVERYTHING)
    assert there.steps == here.steps == STEPS
    assert there.cost == here.cost
    assert abs(there.test.score.right - here.test.score.right) <= 1
    ours, theirs = newest(tmp_path / "there").state["network"], newest(tmp_path / "here").state["network"]
    for name, value in ours.items():
        assert value.device.type == "cpu"
        torch.testing.assert_close(value, theirs[name], rtol=2e-3, atol=2e-4)
    events = EventAccumulator(str(tmp_path / "there" / "tensorboard" / "train"))
    events.Reload()
    tags = events.Tags()
    assert tags["graph"]
    assert any(tag.startswith("sparsity/") for tag in tags["scalars"])
    exported = export(tmp_path / "there", tmp_path / "model.onnx")
    assert exported.step == STEPS


def test_layers_multiply_in_half_precision_there(tmp_path: Path) -> None:
    lower = GPU.with_options({"precision": "bfloat16"})
    run(lower, tmp_path / "there", EVERYTHING)
    state = newest(tmp_path / "there").state
    assert all(value.dtype == torch.float32 for name, value in state["network"].items() if value.is_floating_point())
    run(GPU, tmp_path / "exact", EVERYTHING)
    assert differences(state["network"], newest(tmp_path / "exact").state["network"])


def test_half_stop_resume_half_is_the_whole_to_the_bit(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path / "whole")
    with pytest.raises(SystemExit):
        run(recipe, tmp_path / "run", report=News(stop_after=STEPS // 2))
    assert newest(tmp_path / "run").step == STEPS // 2
    run(recipe, tmp_path / "run")
    assert differences(newest(tmp_path / "run").state, newest(tmp_path / "whole").state) == []


def test_steps_do_not_wait_for_the_device(recipe: Recipe, tmp_path: Path) -> None:
    """More steps, but no more reports: nothing more is brought back."""
    settings = dataclasses.replace(QUIET, log_steps=1000)
    counts = []
    for steps in (1, 3, 8):  # the first may bring over what stays there for all runs of a process
        longer = recipe.with_options({"steps": steps, "evaluate_steps": 0})
        with waits() as found:
            run(longer, tmp_path / str(steps), settings)
        counts.append(len(found))
    assert counts[1] == counts[2]


def test_evaluation_there(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path / "run")
    found = []
    for device in ("cpu", DEVICE):
        state = TrainingState(recipe, side=12, channels=3, classes=3, device=torch.device(device))
        state.load_state_dict(newest(tmp_path / "run").state)
        assert state.is_finite()
        found.append(evaluate_state(state, recipe, DATA.test, DATA.moments).score.right)
    assert abs(found[0] - found[1]) <= 1


def test_a_batch_norm_keeps_as_much_as_the_source() -> None:
    """airbench's 0.6 is the share of the old statistics."""
    state = TrainingState(recipe_named("cifar10-gpu"), side=32, channels=3, classes=10, device=torch.device("cpu"))
    norms = [module for module in state.network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 6
    values = torch.from_numpy(np.random.Generator(np.random.PCG64(0)).normal(3, 2, (50, 64, 2, 2))).float()
    norms[0].train()(values)
    torch.testing.assert_close(norms[0].running_mean, 0.4 * values.mean((0, 2, 3)))


def test_values_are_those_of_the_source() -> None:
    """airbench94_muon takes the sum of the losses of 2,000 images, and a last layer whose weights deviate by 1."""
    recipe = recipe_named("cifar10-gpu")
    state = TrainingState(recipe, side=32, channels=3, classes=10, device=torch.device("cpu"))
    network = state.network
    assert [module.weight.shape[:2] for module in network.modules() if isinstance(module, torch.nn.Conv2d)] == [
        (24, 3), (64, 24), (64, 64), (256, 64), (256, 256), (256, 256), (256, 256),
    ]  # fmt: skip
    deviation = float(network.linear.weight.detach().std())
    assert deviation * recipe.options()["logit_scale"] == pytest.approx(1 / 256, rel=0.05)
    rates = [recipe.schedule.at(step, steps=200, steps_per_epoch=25) for step in (0, 100, 199)]
    assert rates == pytest.approx([0.24, 0.12, 0.0012])
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.update_parameters(rates[0])
    muon, descent = state.optimisers
    assert [group["lr"] for group in muon.param_groups] == [0.24]
    of = {len(group["params"]): group for group in descent.param_groups}
    biases, head = of[6], of[1]
    assert biases["lr"] == pytest.approx(0.053 * 2000, rel=0.01)
    assert head["lr"] == pytest.approx(0.67 * 2000 * deviation**2, rel=0.05)
    for group in (biases, head):
        assert group["lr"] * group["weight_decay"] == pytest.approx(2e-6 * 2000, rel=0.03)
        assert (group["momentum"], group["nesterov"]) == (0.85, True)


def test_the_last_checkpoint_is_not_part_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, clock = RunFolder(tmp_path / "run"), [0.0]
    save = folder.checkpoints.save
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def slow(*arguments: Any, **options: Any) -> Path:
        clock[0] += 10
        return save(*arguments, **options)

    monkeypatch.setattr(folder.checkpoints, "save", slow)
    settings = dataclasses.replace(QUIET, log_steps=1000)
    result = train_recipe(CLASSIC.with_options({"steps": 2}), DATA, folder, settings=settings)
    assert result is not None
    assert (result.training_seconds, result.seconds) == (0, 10)


def test_convolutions_are_tried_where_steps_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network: network)
    for compiled in (False, True):
        found: list[bool] = []
        recipe = CLASSIC.with_options({"steps": 2, "compiled": compiled})
        settings = dataclasses.replace(QUIET, log_steps=1)
        train_recipe(
            recipe,
            DATA,
            RunFolder(tmp_path / str(compiled)),
            settings=settings,
            report=lambda news, found=found: found.append(torch.backends.cudnn.benchmark),
        )
        assert found == [False, compiled, compiled]  # before the first step, and after each
        assert not torch.backends.cudnn.benchmark
