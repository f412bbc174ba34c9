"""Training from scratch on a device that refuses tensors left behind: all recipes, all that a run writes and reads."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import CLASSIC, FAST, QUIET, News, differences, newest, small_data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from quickstudy.errors import DeviceError
from quickstudy.scratch.evaluation import evaluate_state
from quickstudy.scratch.export import export
from quickstudy.scratch.folder import RunFolder
from quickstudy.scratch.input import Pipeline
from quickstudy.scratch.parallel import Replica
from quickstudy.scratch.recipe import Recipe, RunSettings, recipe_named
from quickstudy.scratch.state import Course, TrainingState, orthogonalised
from quickstudy.scratch.train import RunResult, train_recipe
from stand_in import DEVICE, waits

STEPS = 6  # each operator passes through Python there
DATA = small_data(validation=9)
# Not relu: before a batch norm, it lets Adam amplify rounding, which differs with what the process did before.
MLP = recipe_named("mlp").with_options(
    {"widths": "12,8", "depth": 2, "batch": 16, "steps": STEPS, "batch_norm": "after", "activation": "tanh"}
)
SMALL = {"widths": "8,8", "batch": 20, "steps": STEPS, "epochs": 0, "compiled": False, "precision": "float32"}
GPU = recipe_named("cifar10-gpu").with_options(
    {
        **SMALL,
        "shifted_test": 1,
        "unsure_lead": 0.5,
        "evaluate_steps": 4,
        "whitening_bias_epochs": 0.4,  # two steps
    }
)
LONGER = {**SMALL, "rate": 0.1, "whitening_bias_epochs": 0.8}
GPU95 = recipe_named("cifar10-gpu95").with_options({**LONGER, "lookahead_every": 2})
GPU96 = recipe_named("cifar10-gpu96").with_options({**LONGER, "lookahead_every": 5, "cutout": 4})
RECIPES = {
    "classic": CLASSIC.with_options({"steps": STEPS}),
    "fast": FAST.with_options({"steps": STEPS}),
    "mlp": MLP,
    "gpu": GPU,
    "gpu95": GPU95,
    "gpu96": GPU96,
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


def made(name: str) -> TrainingState:
    return TrainingState(recipe_named(name), side=32, channels=3, classes=10, device=torch.device("cpu"))


def convolutions(state: TrainingState) -> list[tuple[int, ...]]:
    """Channels of all convolutions, those that go out and those that come in."""
    layers = [module for module in state.network.modules() if isinstance(module, torch.nn.Conv2d)]
    return [tuple(layer.weight.shape[:2]) for layer in layers]


def groups_at(state: TrainingState, step: int, *, steps: int, steps_per_epoch: float) -> dict[str, dict[str, Any]]:
    """What the optimisers do to each parameter in a step, by name; gradients are nothing."""
    epoch = step / steps_per_epoch
    rate = state.recipe.schedule.at(step, steps=steps, steps_per_epoch=steps_per_epoch)
    state.network.stop_training_at(epoch)
    for parameter in state.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.update_parameters(Course(step=step, steps=steps, epoch=epoch, rate=rate))
    names = {id(parameter): name for name, parameter in state.network.named_parameters()}
    found = [group for optimiser in state.optimisers for group in optimiser.param_groups]
    return {names[id(parameter)]: group for group in found for parameter in group["params"]}


def test_values_are_those_of_the_source() -> None:
    """airbench94_muon takes the sum of the losses of 2,000 images, and a last layer whose weights deviate by 1."""
    state = made("cifar10-gpu")
    assert convolutions(state) == [(24, 3), (64, 24), (64, 64), (256, 64), (256, 256), (256, 256), (256, 256)]
    deviation = float(state.network.linear.weight.detach().std())
    assert deviation * state.recipe.options()["logit_scale"] == pytest.approx(1 / 256, rel=0.05)
    for step, left, bias_left in ((0, 1.0, 1.0), (30, 0.85, 0.6), (74, 0.63, 1 / 75), (150, 0.25, 0.0)):
        groups = groups_at(state, step, steps=200, steps_per_epoch=25)
        assert groups["blocks.1.convolutions.0.weight"]["lr"] == pytest.approx(0.24 * left)
        biases, head, first = groups["blocks.2.norms.1.bias"], groups["linear.weight"], groups["first.bias"]
        assert biases["lr"] == pytest.approx(0.053 * 2000 * left, rel=0.01)
        assert head["lr"] == pytest.approx(0.67 * 2000 * deviation**2 * left, rel=0.05)
        assert first["lr"] == pytest.approx(0.053 * 2000 * bias_left, rel=0.01)
        assert state.network.whitening_bias.requires_grad == (step < 75)
        for group, share in ((biases, left), (head, left), (first, bias_left)):
            assert group["lr"] * group["weight_decay"] == pytest.approx(2e-6 * 2000 * share, rel=0.03)
            assert (group["momentum"], group["nesterov"]) == (0.85, True)


@pytest.mark.parametrize(
    ("name", "epochs", "rate", "decay", "widths", "each", "warmup", "end", "new_share"),
    [
        ("cifar10-gpu95", 15, 10.0, 0.0153, (128, 384, 384), 2, 0.23, 0.07, 0.4),
        ("cifar10-gpu96", 37, 9.0, 0.012, (128, 384, 512), 3, 0.1, 0.0, 0.1),
    ],
)
def test_values_of_the_longer_recipes_are_those_of_the_source(
    name: str,
    epochs: int,
    rate: float,
    decay: float,
    widths: tuple[int, ...],
    each: int,
    warmup: float,
    end: float,
    new_share: float,
) -> None:
    """airbench95 and airbench96 take sums over 1,024 images, and divide their rates and decays by 1,024 · 7.67."""
    state = made(name)
    options, momentum_sum = state.recipe.options(), 1 + 1 / (1 - 0.85)
    steps = state.recipe.total_steps(50_000)
    assert steps == 48 * epochs  # the source leaves the last 848 images of a pass out
    expected, before = [(24, 3)], 24
    for width in widths:
        expected += [(width, before), *[(width, width)] * (each - 1)]
        before = width
    assert convolutions(state) == expected
    assert options["logit_scale"] == pytest.approx(1 / 9)
    norms = [module for module in state.network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {new_share}
    peak = int(warmup * steps)
    for step, share in ((0, 0.2), (peak, 1.0), (steps - 1, end)):
        groups = groups_at(state, step, steps=steps, steps_per_epoch=50_000 / 1024)
        for parameter, factor in (("blocks.1.convolutions.0.weight", 1), ("linear.weight", 1), ("first.bias", 1),
                                  ("blocks.2.norms.1.bias", 64)):  # fmt: skip
            group = groups[parameter]
            assert group["lr"] == pytest.approx(1024 * factor * share * rate / (1024 * momentum_sum), abs=0.01 * factor)
            assert group["lr"] * group["weight_decay"] == pytest.approx(share * decay / momentum_sum, abs=1e-5)
            assert (group["momentum"], group["nesterov"]) == (0.85, True)
        assert state.network.whitening_bias.requires_grad == (step < 3 * 50_000 / 1024)
    same = {
        "batch": 1024, "method": "sgd", "label_smoothing": 0.2, "lookahead_every": 5, "flip": True, "alternate": True,
        "mirrored_test": True, "shifted_test": 1, "unsure_lead": 1, "activation": "gelu", "standardise": "set",
    }  # fmt: skip
    assert {name: options[name] for name in same} == same
    assert options["lookahead_decay"] == pytest.approx(0.95**5)
    assert (options["pad"], options["cutout"], options["residual"], options["activate_sum"]) == (
        (4, 12, True, True) if each == 3 else (2, 0, False, False)
    )


def test_squares_are_cut_out_there() -> None:
    pipeline = Pipeline(DATA.train, GPU96.augmentation, batch=20, seed=5, moments=DATA.moments, device=DEVICE)
    images = pipeline.make(3).images.cpu()
    assert ((images == 0).all(dim=1).sum(dim=(1, 2)) >= 4 * 4).all()


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


def test_updates_that_muon_makes_orthogonal_together_come_out_as_alone() -> None:
    shapes = [(16, 24, 3, 3), (16, 16, 3, 3), (16, 2, 2, 2), (64, 4, 2, 2), (8, 2, 1, 1), (16, 24, 3, 3)]
    generator = torch.Generator().manual_seed(3)
    updates = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    updates[2].zero_()
    together = [one.cpu() for one in orthogonalised([update.to(DEVICE) for update in updates], torch.float64)]
    assert [tuple(one.shape) for one in together] == shapes
    for one, update in zip(together, updates, strict=True):
        torch.testing.assert_close(one, orthogonalised([update], torch.float64)[0], rtol=0, atol=1e-12)
    assert not together[2].any()


def no_room(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_too_little_memory_is_an_error_that_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingState, "follow_gradients", no_room)
    with pytest.raises(DeviceError, match=rf"^'{DEVICE}:0' has too little free memory for this; train in smaller"):
        train_recipe(GPU, DATA, RunFolder(tmp_path / "run"), replica=Replica(device_type=DEVICE), settings=QUIET)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nAnd more"),
        subprocess.CalledProcessError(1, ["gcc", "main.c"]),
        PermissionError(13, "Permission denied"),
        KeyError("getpwuid(): uid not found: 1234"),
    ],
)
def test_a_network_that_cannot_be_compiled_says_what_is_missing(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(torch.nn.Module):
        def forward(self, _images: torch.Tensor) -> torch.Tensor:
            raise error

    monkeypatch.setattr(torch, "compile", lambda _network: Failing())
    compiled = GPU.with_options({"compiled": True})
    with pytest.raises(DeviceError) as raised:
        train_recipe(compiled, DATA, RunFolder(tmp_path / "run"), replica=Replica(device_type=DEVICE), settings=QUIET)
    told = str(raised.value)
    assert type(error).__name__ in told
    assert "compiled=off" in told
    assert "And more" not in told


def test_too_little_memory_for_a_compiled_network_is_no_fault_of_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Large(torch.nn.Module):
        def forward(self, _images: torch.Tensor) -> None:
            no_room()

    monkeypatch.setattr(torch, "compile", lambda _network: Large())
    compiled = GPU.with_options({"compiled": True})
    with pytest.raises(DeviceError, match="smaller batches"):
        train_recipe(compiled, DATA, RunFolder(tmp_path / "run"), replica=Replica(device_type=DEVICE), settings=QUIET)
