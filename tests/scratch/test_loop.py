"""The loop: steps against steps worked out by hand, what a run leaves, and what goes wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import (
    CLASSIC,
    FAST,
    QUIET,
    RECIPES,
    News,
    differences,
    newest,
    small_data,
    train_until,
    train_whole,
)
from torch.nn import functional

from quickstudy.errors import OptionError, RunError, TrainingError
from quickstudy.images.pixels import PixelSet
from quickstudy.learning.scores import Scores
from quickstudy.scratch.evaluation import evaluate_logits, evaluation_logits
from quickstudy.scratch.folder import METRICS, RunFolder
from quickstudy.scratch.input import Batch, Pipeline, evaluation_batches
from quickstudy.scratch.parallel import Replica
from quickstudy.scratch.recipe import Recipe
from quickstudy.scratch.state import Course, TrainingState
from quickstudy.scratch.train import RunResult, train_recipe

DATA = small_data()
pytestmark = pytest.mark.usefixtures("one_thread")


def batches(recipe: Recipe, count: int) -> list[Batch]:
    pipeline = Pipeline(
        DATA.train,
        recipe.augmentation,
        batch=recipe.optimiser.batch,
        seed=recipe.seed,
        moments=DATA.facts.moments,
        threads=0,
    )
    return [pipeline.make(step) for step in range(count)]


def initial_state(recipe: Recipe) -> TrainingState:
    return TrainingState(recipe, side=DATA.side, channels=3, classes=3, device=torch.device("cpu"))


# What a run leaves


def test_the_result_is_written_and_a_finished_run_is_left_alone(classic: Path) -> None:
    values = json.loads((classic / "result.json").read_text())
    assert values["steps"] == 20
    assert values["test"]["n"] == 31
    assert values["validation"] is None
    assert values["seconds"] > 0
    before = {path: path.stat().st_mtime_ns for path in classic.rglob("*") if path.name != "lock"}
    news = News()
    result = train_recipe(CLASSIC, DATA, RunFolder(classic), settings=QUIET, report=news)
    assert result == RunResult.from_dict(classic, values)
    assert news.begun is None
    assert {path: path.stat().st_mtime_ns for path in classic.rglob("*") if path.name != "lock"} == before


def test_the_result_is_that_of_the_last_parameters_averaged(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = []

    def evaluate(logits: torch.Tensor, data: PixelSet) -> Scores:
        evaluated.append(logits)
        return evaluate_logits(logits, data)

    monkeypatch.setattr("quickstudy.scratch.evaluation.evaluate_logits", evaluate)
    result = train_whole(recipe, DATA, tmp_path / "run")
    saved = newest(tmp_path / "run").state
    state = initial_state(recipe)

    def logits_with(values: dict[str, torch.Tensor]) -> torch.Tensor:
        state.network.load_state_dict({**saved["network"], **values})
        moments = DATA.facts.moments
        return evaluation_logits(
            state.network,
            evaluation_batches(DATA.test.pixels, recipe.augmentation, moments),
            mirrored=recipe.mirrored_test,
        )

    averaged = logits_with(saved["averages"]["averages"])
    assert torch.allclose(evaluated[0], averaged, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(evaluated[0], logits_with({}), rtol=1e-3, atol=1e-3)
    assert result.test.score.right == int((averaged.argmax(1).numpy() == DATA.test.labels).sum())


LOOK = """
import sys
from pathlib import Path
from small_runs import FAST, small_data, train_whole
from quickstudy.scratch.recipe import RunSettings
train_whole(FAST.with_options({"steps": 1}), small_data(), Path(sys.argv[1]), RunSettings(summary_steps=1))
sys.exit("torch._dynamo" in sys.modules)
"""


@pytest.mark.heavy
def test_the_compiler_is_not_imported_where_it_does_not_compile(tmp_path: Path) -> None:
    """In a process that has imported nothing; with all that a run writes."""
    command = [sys.executable, "-c", LOOK, tmp_path / "run"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert RunFolder(tmp_path / "run").result() is not None


def test_validation_is_evaluated_too(tmp_path: Path) -> None:
    result = train_whole(CLASSIC, small_data(validation=17), tmp_path / "run")
    assert result.validation is not None
    assert (result.test.score.n, result.validation.score.n) == (31, 17)


def test_it_learns(tmp_path: Path) -> None:
    for number, recipe in enumerate(RECIPES.values()):
        longer = recipe.with_options({"steps": 80})
        result = train_whole(longer, DATA, tmp_path / str(number))
        assert result.test.score.right >= 26  # of 31; 10 by guessing


def test_the_reporter_is_told_the_numbers(tmp_path: Path) -> None:
    news = News()
    settings = dataclasses.replace(QUIET, log_steps=6)
    train_recipe(CLASSIC, small_data(validation=17), RunFolder(tmp_path / "run"), settings=settings, report=news)
    begun = news.begun
    assert begun is not None
    assert begun.recipe == CLASSIC
    assert begun.images == {"train": 100, "validation": 17, "test": 31}
    assert begun.classes == ("across", "down", "plain")
    assert (begun.step, begun.steps, begun.replicas, begun.damaged, begun.skipped) == (0, 20, 1, (), ())
    assert (begun.precision, begun.device) == ("float32", "cpu")
    side = 3  # 10 pixels, pooled twice
    convolutions = 3 * 25 * 64 + 64 + 64 * 25 * 64 + 64
    dense = 64 * side**2 * 384 + 384 + 384 * 192 + 192 + 192 * 3 + 3
    assert begun.cost.parameters == convolutions + dense
    assert begun.cost.multiply_adds == (
        100 * 3 * 25 * 64 + 25 * 64 * 25 * 64 + 64 * side**2 * 384 + 384 * 192 + 192 * 3
    )
    assert [progress.step for progress in news.progress] == [6, 12, 18]
    lines = RunFolder(tmp_path / "run").lines(METRICS)
    for progress, line in zip(news.progress, lines, strict=True):
        assert progress.loss == line["loss/total"]
        assert progress.smoothed_loss == line["loss_smoothed/total"]
        assert progress.examples_per_second * progress.seconds_per_batch == pytest.approx(16)


# Losses and steps, worked out by hand


def test_both_terms_of_the_loss_are_reported_and_smoothed(whole: Path, recipe: Recipe) -> None:
    lines = RunFolder(whole).lines(METRICS)
    smoothed: dict[str, float] = {}
    for line in lines:
        assert line["loss/total"] == pytest.approx(line["loss/cross_entropy"] + line["loss/weight_decay"], rel=1e-6)
        assert line["loss/weight_decay"] > 0
        for name in ("total", "cross_entropy", "weight_decay"):
            value = line[f"loss/{name}"]
            smoothed[name] = 0.9 * smoothed[name] + 0.1 * value if name in smoothed else value
            assert line[f"loss_smoothed/{name}"] == pytest.approx(smoothed[name], rel=1e-5)
    rates = [
        recipe.schedule.at(step, steps=20, steps_per_epoch=100 / recipe.optimiser.batch) for step in range(len(lines))
    ]
    assert [line["learning_rate"] for line in lines] == rates


def test_the_weight_decay_of_the_first_step(recipe: Recipe, whole: Path) -> None:
    network = initial_state(recipe).network
    if recipe.name == "cifar10-fast":
        network.prepare(first_images(recipe))
    if recipe.name == "cifar10-classic":
        decayed = [network.hidden1.weight, network.hidden2.weight]
    else:
        muon = recipe.optimiser.method == "muon"  # which keeps the norms of the convolutions' weights as they are
        decayed = [
            parameter
            for parameter in network.parameters()
            if parameter.requires_grad and not (muon and parameter.ndim == 4)
        ]
    squares = sum(float((weight.detach().double() ** 2).sum()) for weight in decayed)
    line = RunFolder(whole).lines(METRICS)[0]
    assert line["loss/weight_decay"] == pytest.approx(recipe.optimiser.weight_decay / 2 * squares, rel=1e-5)


def first_images(recipe: Recipe) -> torch.Tensor:
    """All training images as evaluation takes them; the recipes here crop or standardise, no more."""
    moments = DATA.facts.moments
    mean, deviation = np.array(moments.mean), np.array(moments.deviation)
    assert recipe.augmentation.standardise == "set"
    assert recipe.augmentation.crop == 0
    return torch.from_numpy((DATA.train.pixels - mean) / deviation).float().permute(0, 3, 1, 2)


def test_a_classic_step_by_hand(tmp_path: Path) -> None:
    train_whole(CLASSIC.with_options({"steps": 1}), DATA, tmp_path / "run")
    network = initial_state(CLASSIC).network
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    batch = batches(CLASSIC, 1)[0]
    cross_entropy = functional.cross_entropy(network(batch.images), batch.labels)
    cross_entropy.backward()  # type: ignore[no-untyped-call]
    state = newest(tmp_path / "run").state
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        decay = 0.004 if name in ("hidden1.weight", "hidden2.weight") else 0.0
        after = before[name] - 0.1 * (parameter.grad + decay * before[name])
        assert torch.allclose(state["network"][name], after, rtol=1e-5, atol=1e-7), name
        assert not torch.equal(after, before[name])
        # The first update of the averages has a decay of (1 + 0) / (10 + 0).
        averaged = 0.1 * before[name] + 0.9 * after
        assert torch.allclose(state["averages"]["averages"][name], averaged, rtol=1e-5, atol=1e-7), name
    assert state["averages"]["updates"] == 1
    total = RunFolder(tmp_path / "run").lines(METRICS)[0]["loss/cross_entropy"]
    assert total == pytest.approx(cross_entropy.item(), rel=1e-5)


def test_three_fast_steps_by_hand(tmp_path: Path) -> None:
    recipe = FAST.with_options({"steps": 3, "method": "sgd"})
    train_whole(recipe, DATA, tmp_path / "run")
    network = initial_state(recipe).network
    network.prepare(first_images(recipe))
    network.train()
    options, velocity = recipe.optimiser, dict[str, torch.Tensor]()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for batch in batches(recipe, 3):
        network.zero_grad()
        smoothing = options.label_smoothing
        log = functional.log_softmax(network(batch.images), dim=1)
        target = (1 - smoothing) * functional.one_hot(batch.labels, 3) + smoothing / 3
        (-(target * log).sum(1)).mean().backward()  # type: ignore[no-untyped-call]
        rate = recipe.schedule.at(batch.step, steps=3, steps_per_epoch=100 / 16)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if not parameter.requires_grad:
                    continue
                factor = options.bias_rate if name.endswith("bias") else 1.0
                factor *= options.head_rate if name == "linear.weight" else 1.0
                assert parameter.grad is not None
                slope = parameter.grad + options.weight_decay / factor * parameter
                velocity[name] = options.momentum * velocity[name] + slope if name in velocity else slope
                parameter -= rate * factor * (slope + options.momentum * velocity[name])  # Nesterov
    state = newest(tmp_path / "run").state
    trained = set(velocity)
    assert "linear.weight" in trained
    assert "first.weight" not in trained
    for name, parameter in network.named_parameters():
        assert torch.allclose(state["network"][name], parameter, rtol=1e-3, atol=1e-5), name
        if name in trained:
            averaged = 0.1 * before[name] + 0.9 * state["network"][name]  # updated once, after the third step
            assert torch.allclose(state["averages"]["averages"][name], averaged, rtol=1e-5, atol=1e-6), name
    assert state["averages"]["updates"] == 1
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            assert torch.allclose(state["network"][name], buffer, rtol=1e-3, atol=1e-5), name


def test_lookahead_by_hand(tmp_path: Path) -> None:
    """Seven steps, slow values after every third; what they keep rises with the cube of the share of steps made."""
    plain = FAST.with_options({"steps": 7, "method": "sgd", "average_decay": 0})
    recipe = plain.with_options({"lookahead_every": 3, "lookahead_decay": 0.9})
    train_whole(recipe, DATA, tmp_path / "run")
    state = initial_state(plain)
    state.prepare(first_images(plain))
    state.network.train()
    slow = {name: value.clone() for name, value in state.network.state_dict().items()}
    for batch in batches(plain, 7):
        state.zero_grad()
        logits = state.network(batch.images)
        loss = functional.cross_entropy(logits, batch.labels, label_smoothing=plain.optimiser.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        rate = plain.schedule.at(batch.step, steps=7, steps_per_epoch=100 / 16)
        state.update_parameters(Course(step=batch.step, steps=7, epoch=0.0, rate=rate))
        if batch.step in (2, 5):
            kept = 0.9 * ((batch.step + 1) / 7) ** 3
            for name, value in state.network.state_dict().items():
                if value.is_floating_point():
                    slow[name] = kept * slow[name] + (1 - kept) * value
                    value.copy_(slow[name])
    found = newest(tmp_path / "run").state
    for name, value in found["network"].items():
        if value.is_floating_point():
            assert torch.allclose(value, slow[name], rtol=1e-4, atol=1e-6), name
            assert torch.equal(value, found["lookahead"][name])
    assert not torch.allclose(state.network.linear.weight, slow["linear.weight"], rtol=1e-3)


def test_the_whitening_bias_stays_after_its_epochs(tmp_path: Path) -> None:
    recipe = FAST.with_options(
        {"steps": 16, "whitening_bias_epochs": 1, "whitening_bias_rate": 3, "average_decay": 0, "batch": 20}
    )
    settings = dataclasses.replace(QUIET, checkpoint_seconds=0, keep=20)
    train_whole(recipe, DATA, tmp_path / "run", settings)
    folder = RunFolder(tmp_path / "run")
    biases = {}
    for step in folder.checkpoints.steps():
        checkpoint = folder.checkpoint(str(step))
        assert checkpoint is not None
        biases[step] = checkpoint.state["network"]["first.bias"]
    assert list(biases) == list(range(1, 17))
    assert all(not torch.equal(biases[step], biases[step + 1]) for step in range(1, 5))
    assert all(torch.equal(biases[step], biases[5]) for step in range(6, 17))
    assert ["gradient_norm/first.bias" in line for line in folder.lines(METRICS)] == [True] * 5 + [False] * 11


def test_the_same_seed_gives_the_same_and_another_another(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    train_whole(recipe, DATA, tmp_path / "again")
    assert differences(newest(tmp_path / "again").state, newest(whole).state) == []
    train_whole(recipe.with_options({"seed": 4}), DATA, tmp_path / "other")
    assert differences(newest(tmp_path / "other").state["network"], newest(whole).state["network"])
    one, other = (batches(recipe.with_options({"seed": seed}), 1)[0] for seed in (3, 4))
    assert not torch.equal(one.images, other.images)
    assert not torch.equal(one.labels, other.labels)


# What goes wrong


def test_a_loss_that_is_no_number_names_step_and_images_and_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    # The rate is small in the first pass over the images, and beyond all measure in the second.
    recipe = CLASSIC.with_options({"rate": 0.01, "rate_decay": 1e32, "rate_decay_epochs": 1})
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(TrainingError) as caught:
        train_recipe(recipe, DATA, folder, settings=dataclasses.replace(QUIET, checkpoint_seconds=0))
    message = str(caught.value)
    found = re.match(r"The loss is not a number in step (\d+) \(training images ([\d, ]+)\)", message)
    assert found, message
    step = int(found[1])
    assert 7 <= step <= 8  # the first pass ends in step 6
    pipeline = Pipeline(
        DATA.train, recipe.augmentation, batch=16, seed=recipe.seed, moments=DATA.facts.moments, threads=0
    )
    assert [int(row) for row in found[2].split(", ")] == pipeline.rows(step).tolist()
    kept = folder.checkpoints.newest()
    assert kept is not None
    assert kept.step <= step
    assert f"the checkpoint of step {kept.step} is good" in message
    assert all(torch.isfinite(value).all() for value in kept.state["network"].values())
    assert not folder.checkpoints.damaged
    assert folder.result() is None
    assert not folder.is_active()


def test_a_loss_that_is_no_number_before_there_is_a_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(TrainingError, match="no checkpoint had been written"):
        train_recipe(CLASSIC.with_options({"rate": 1e38}), DATA, folder, settings=QUIET)
    assert folder.checkpoints.steps() == []


def test_parameters_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    # In the last step: its own loss is still a number, and no later one would tell.
    recipe = CLASSIC.with_options({"rate": 1e38, "weight_decay": 1e10, "steps": 1})
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(TrainingError, match="not a number in step 0"):
        train_recipe(recipe, DATA, folder, settings=QUIET)
    assert folder.checkpoints.steps() == []
    assert folder.result() is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop": 13}, "crop is 13"),
        ({"standardise": "never"}, "standardise is 'never'"),
        ({"activation": "step"}, "activation is 'step'"),
        ({"normalisation": "group"}, "normalisation is 'group'"),
        ({"top": "hat"}, "top is 'hat'"),
    ],
)
def test_options_that_these_images_cannot_have_leave_the_folder_free(
    tmp_path: Path, options: dict[str, object], words: str
) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(OptionError) as caught:
        train_recipe(CLASSIC.with_options(options), DATA, folder, settings=QUIET)
    assert words in str(caught.value)
    train_whole(CLASSIC.with_options({"steps": 1}), DATA, folder.path)


def test_too_small_for_the_fast_network(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="too small for 3 blocks"):
        train_recipe(FAST.with_options({"widths": "8,8,8"}), DATA, RunFolder(tmp_path / "run"), settings=QUIET)
    train_whole(FAST.with_options({"steps": 1}), DATA, tmp_path / "run")


def test_a_batch_that_the_devices_cannot_share(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"batch is 16\b.*\b3 devices"):
        train_recipe(CLASSIC, DATA, RunFolder(tmp_path / "run"), replica=Replica(world=3), settings=QUIET)
    assert not (tmp_path / "run").exists()


def test_another_configuration_in_the_folder(classic: Path) -> None:
    with pytest.raises(RunError, match="steps is 20 there, 21 here"):
        train_recipe(CLASSIC.with_options({"steps": 21}), DATA, RunFolder(classic), settings=QUIET)


def test_two_at_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked(), pytest.raises(RunError, match="Another process is training"):
        train_recipe(CLASSIC, DATA, RunFolder(tmp_path / "run"), settings=QUIET)
    assert not (tmp_path / "run" / "config.json").exists()


# Other images


@pytest.mark.parametrize("options", [{}, {"top": "local"}, {"normalisation": "batch_norm", "bottleneck": 8}])
def test_grey_images(tmp_path: Path, options: dict[str, object]) -> None:
    grey = small_data(channels=1)
    assert train_whole(CLASSIC.with_options(options), grey, tmp_path / "classic").test.score.n == 31
    assert newest(tmp_path / "classic").state["network"]["conv1.weight"].shape == (64, 1, 5, 5)


def test_grey_images_in_the_fast_network(tmp_path: Path) -> None:
    train_whole(FAST, small_data(channels=1), tmp_path / "fast")
    assert newest(tmp_path / "fast").state["network"]["first.weight"].shape == (8, 1, 2, 2)


def test_fewer_images_than_a_batch(tmp_path: Path) -> None:
    result = train_whole(CLASSIC.with_options({"steps": 3}), small_data(train=7, test=1), tmp_path / "run")
    assert result.test.score.n == 1


def test_without_averages(tmp_path: Path) -> None:
    recipe = CLASSIC.with_options({"average_decay": 0})
    train_until(10, recipe, DATA, tmp_path / "run")
    train_whole(recipe, DATA, tmp_path / "run")
    train_whole(recipe, DATA, tmp_path / "whole")
    assert newest(tmp_path / "run").state["averages"] is None
    assert differences(newest(tmp_path / "run").state, newest(tmp_path / "whole").state) == []


def evaluations(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["accuracy"]) for line in RunFolder(run).lines(METRICS) if "accuracy" in line]


def test_evaluating_within_a_run_changes_nothing(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    news = News()
    result = train_recipe(
        recipe.with_options({"evaluate_steps": 5}), DATA, RunFolder(tmp_path / "run"), settings=QUIET, report=news
    )
    assert result is not None
    assert differences(newest(tmp_path / "run").state, newest(whole).state) == []
    found = evaluations(tmp_path / "run")
    assert [step for step, _ in found] == [5, 10, 15, 20]
    assert found[-1][1] == result.test.score.accuracy
    assert [(told.step, told.score.accuracy, told.split) for told in news.evaluated] == [
        (step, accuracy, "test") for step, accuracy in found
    ]
    part = train_whole(recipe.with_options({"steps": 10}), DATA, tmp_path / "half")
    if recipe is CLASSIC:  # whose rate does not depend on how many steps there will be
        assert found[1][1] == part.test.score.accuracy
    assert 0 < result.training_seconds < result.seconds


def test_within_a_run_the_validation_images_are_looked_at_where_there_are_some(tmp_path: Path) -> None:
    result = train_whole(CLASSIC.with_options({"evaluate_steps": 10}), small_data(validation=17), tmp_path / "run")
    assert result.validation is not None
    lines = [line for line in RunFolder(tmp_path / "run").lines(METRICS) if "accuracy" in line]
    assert [(line["split"], line["n"]) for line in lines] == [("validation", 17)] * 2
    assert lines[-1]["accuracy"] == result.validation.score.accuracy


def test_a_run_ends_at_its_target_and_stays_ended(tmp_path: Path) -> None:
    longer = CLASSIC.with_options({"steps": 200, "evaluate_steps": 5, "target": 0.7})
    result = train_whole(longer, DATA, tmp_path / "run")
    found = evaluations(tmp_path / "run")
    assert result.steps == found[-1][0] < 200
    assert found[-1][1] >= 0.7 > max((accuracy for _, accuracy in found[:-1]), default=0)
    (tmp_path / "run" / "result.json").unlink()  # as if it had been killed before it could write it
    again = train_whole(longer, DATA, tmp_path / "run")
    assert (again.steps, again.test) == (result.steps, result.test)
    assert evaluations(tmp_path / "run") == found


@pytest.mark.parametrize("checkpoint_seconds", [0, 1e9])
def test_the_checkpoint_of_the_step_that_reaches_the_target_knows_that_the_run_has_ended(
    tmp_path: Path, checkpoint_seconds: float
) -> None:
    recipe = CLASSIC.with_options({"evaluate_steps": 5, "target": 0.01})
    settings = dataclasses.replace(QUIET, checkpoint_seconds=checkpoint_seconds)
    train_whole(recipe, DATA, tmp_path / "run", settings)
    (tmp_path / "run" / "result.json").unlink()  # as if it had been killed before it could write it
    assert newest(tmp_path / "run").state["ended"] is True
    assert train_whole(recipe, DATA, tmp_path / "run", settings).steps == 5


def test_a_run_ends_when_its_time_is_up(tmp_path: Path) -> None:
    assert train_whole(CLASSIC.with_options({"seconds": 1e-6}), DATA, tmp_path / "run").steps == 1
    assert train_whole(CLASSIC.with_options({"seconds": 1e6}), DATA, tmp_path / "long").steps == 20


def test_gradient_norms_by_hand(tmp_path: Path) -> None:
    train_whole(CLASSIC.with_options({"steps": 1}), DATA, tmp_path / "run")
    network = initial_state(CLASSIC).network
    batch = batches(CLASSIC, 1)[0]
    functional.cross_entropy(network(batch.images), batch.labels).backward()  # type: ignore[no-untyped-call]
    line = RunFolder(tmp_path / "run").lines(METRICS)[0]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert line[f"gradient_norm/{name}"] == pytest.approx(parameter.grad.norm().item(), rel=1e-4), name
