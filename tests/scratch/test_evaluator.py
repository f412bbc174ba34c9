"""The evaluator: every image counts, the last checkpoint is never missed, and it ends when the run does."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import CLASSIC, FAST, QUIET, hold, newest, small_data, train_until, train_whole

from quick_processes import quick_processes
from quickstudy.errors import ImageSetError, RunError
from quickstudy.learning.checkpoints import Checkpoints
from quickstudy.learning.scores import Scores
from quickstudy.scratch.data import TrainingData
from quickstudy.scratch.evaluation import Evaluator, evaluate_state
from quickstudy.scratch.folder import EVALUATIONS, RunFolder
from quickstudy.scratch.input import augment, centred
from quickstudy.scratch.recipe import Recipe
from quickstudy.scratch.state import TrainingState

DATA = small_data(test=530, validation=23)  # more than a batch of 500, and not a multiple


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The runs here train on images in memory, so the evaluator is given them, too."""
    monkeypatch.setattr("quickstudy.scratch.folder.load_training_data", lambda *_, **__: DATA)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["classic", "fast"])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return {"classic": CLASSIC, "fast": FAST}[request.param]


@pytest.fixture
def run_of_each(recipe: Recipe, tmp_path: Path) -> Path:
    """A run of each recipe that was stopped after 10 steps; nobody trains in it."""
    train_until(10, recipe, DATA, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was stopped after 10 steps; nobody trains in it, and which recipe it is plays no part."""
    train_until(10, CLASSIC, DATA, tmp_path / "run")
    return tmp_path / "run"


def right_of(recipe: Recipe, state: dict[str, object], data: TrainingData, *, averaged: bool) -> int:
    """How many test images are classified rightly, one image at a time."""
    training = TrainingState(recipe, side=data.side, channels=3, classes=3, device=torch.device("cpu"))
    training.load_state_dict(state)
    network = training.network.eval()
    if averaged:
        values = {**network.state_dict(), **state["averages"]["averages"]}  # type: ignore[index,dict-item]
        network.load_state_dict(values)
    right, pixels = 0, torch.from_numpy(data.test.pixels)
    draws = centred(recipe.augmentation, 1, side=data.side)
    with torch.no_grad():
        for number in range(len(data.test)):
            image = augment(
                pixels,
                torch.tensor([number]),
                draws,
                recipe.augmentation,
                data.facts.moments,
                side=recipe.augmentation.output_side(data.side),
            )
            logits = network(image)
            if recipe.mirrored_test:
                logits = logits + network(image.flip(-1))
            right += int(logits.argmax()) == data.test.labels[number]
    return right


@pytest.mark.parametrize("averaged", [True, False])
def test_all_images_count_one_by_one(recipe: Recipe, run_of_each: Path, averaged: bool) -> None:
    result = Evaluator(run_of_each, split="test", averaged=averaged).evaluate()
    assert (result.step, result.split, result.averaged) == (10, "test", averaged)
    assert result.score.n == 530
    assert sum(score.n for score in result.scores.classes) == 530
    assert result.score.right == right_of(recipe, newest(run_of_each).state, DATA, averaged=averaged)


def test_averaged_parameters_unless_told_otherwise(recipe: Recipe, run_of_each: Path) -> None:
    run, state = run_of_each, newest(run_of_each).state
    averages = state["averages"]["averages"]
    for value in averages.values():
        value.zero_()  # then all classes are equally probable, and the first is taken
    RunFolder(run).checkpoints.save(11, state)
    averaged = Evaluator(run, split="test").evaluate()
    assert averaged.step == 11
    assert [score.predicted for score in averaged.scores.classes] == [530, 0, 0]
    own = Evaluator(run, split="test", averaged=False).evaluate()
    assert own.score.right == right_of(recipe, state, DATA, averaged=False)
    assert own.scores != averaged.scores


def test_without_averages_in_the_recipe_there_is_one_way_only(tmp_path: Path) -> None:
    train_until(5, CLASSIC.with_options({"average_decay": 0}), DATA, tmp_path / "run")
    result = Evaluator(tmp_path / "run").evaluate()
    assert not result.averaged


def test_validation_where_there_is_one_and_the_test_images_on_request(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Evaluator(run).evaluate().score.n == 23
    assert Evaluator(run, split="validation").evaluate().split == "validation"
    assert Evaluator(run, split="test").evaluate().score.n == 530
    without = dataclasses.replace(DATA, validation=None)
    monkeypatch.setattr("quickstudy.scratch.folder.load_training_data", lambda *_, **__: without)
    assert Evaluator(run).evaluate().split == "test"
    with pytest.raises(ImageSetError, match=r"no validation images; train with --set validation=0\.1"):
        Evaluator(run, split="validation")


def test_no_run_and_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run"):
        Evaluator(tmp_path)
    RunFolder(tmp_path / "run").begin(CLASSIC, DATA.facts)
    with pytest.raises(RunError, match="has no checkpoint yet; wait for one with --watch"):
        Evaluator(tmp_path / "run").evaluate()


class Trainer:
    """Stands for a training: holds the lock and does one thing each time that the evaluator waits."""

    def __init__(self, run: Path, monkeypatch: pytest.MonkeyPatch, *todo: Callable[[Trainer], object]) -> None:
        self.folder, self.state, self.todo = RunFolder(run), newest(run).state, list(todo)
        self.lock = self.folder.locked()
        self.lock.__enter__()
        monkeypatch.setattr("quickstudy.scratch.evaluation.time.sleep", self.next)

    def next(self, _seconds: float) -> None:
        assert self.todo, "the evaluator waits although the run has ended"
        self.todo.pop(0)(self)

    def save(self, step: int) -> None:
        self.folder.checkpoints.save(step, {**self.state, "step": step})

    def end(self) -> None:
        self.lock.__exit__(None, None, None)


def save(*steps: int) -> Callable[[Trainer], object]:
    return lambda trainer: [trainer.save(step) for step in steps]


def follow(run: Path) -> list[int]:
    return [result.step for result in Evaluator(run, split="test").follow()]


def test_it_follows_to_the_end(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def last(trainer: Trainer) -> None:
        trainer.save(60)
        trainer.folder.finish({"steps": 60})
        trainer.end()

    trainer = Trainer(run, monkeypatch, save(20), lambda _: None, save(30, 40), lambda _: None, last)
    assert follow(run) == [10, 20, 40, 60]
    assert trainer.todo == []


def test_a_finished_run_has_its_last_checkpoint_evaluated(run: Path) -> None:
    train_whole(CLASSIC, DATA, run)
    assert follow(run) == [20]
    assert follow(run) == []


def test_the_last_checkpoint_comes_while_it_looks_whether_the_run_has_ended(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(folder: RunFolder) -> bool:
        if 20 not in folder.checkpoints.steps():
            folder.checkpoints.save(20, {**newest(run).state, "step": 20})
        return False

    Evaluator(run).evaluate()
    monkeypatch.setattr(RunFolder, "is_active", ask)
    assert follow(run) == [20]


def test_the_last_checkpoint_comes_just_after_it_has_looked_for_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(run, monkeypatch, lambda _: None)
    real = Checkpoints.newest

    def look(self: Checkpoints, *, after: int = -1) -> object:
        found = real(self, after=after)
        if found is None and 20 not in self.steps():
            trainer.save(20)
            trainer.end()
        return found

    monkeypatch.setattr(Checkpoints, "newest", look)
    assert follow(run) == [10, 20]


def test_half_written_and_damaged_ones_are_not_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_written(trainer: Trainer) -> None:
        folder = trainer.folder.checkpoints.folder
        whole = trainer.folder.checkpoints.path(10).read_bytes()
        (folder / ".tmp-abc").write_bytes(whole[:1000])
        (folder / "step-000020.json").write_text('{"sha256": "')

    def without_hash(trainer: Trainer) -> None:
        path = trainer.folder.checkpoints.path(20)
        path.with_suffix(".json").unlink()
        path.write_bytes(trainer.folder.checkpoints.path(10).read_bytes())

    def cut(trainer: Trainer) -> None:
        trainer.save(40)
        path = trainer.folder.checkpoints.path(40)
        path.write_bytes(path.read_bytes()[:-1])

    trainer = Trainer(run, monkeypatch, half_written, without_hash, save(30), cut, lambda trainer: trainer.end())
    assert follow(run) == [10, 30]
    assert trainer.todo == []


def test_a_checkpoint_that_was_damaged_is_evaluated_once_it_has_been_made_again(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(trainer: Trainer) -> None:
        trainer.save(20)
        path = trainer.folder.checkpoints.path(20)
        path.write_bytes(path.read_bytes()[:-1])

    Trainer(run, monkeypatch, cut, lambda _: None, save(20), lambda trainer: trainer.end())
    assert follow(run) == [10, 20]


@pytest.mark.heavy
def test_it_ends_when_the_trainer_was_killed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = quick_processes()
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(run, theirs))
    process.start()
    try:
        assert ours.poll(60)
        waits = []

        def wait(_seconds: float) -> None:
            waits.append(process.exitcode)
            if len(waits) == 3:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                process.join(60)

        monkeypatch.setattr("quickstudy.scratch.evaluation.time.sleep", wait)
        assert follow(run) == [10]
        assert waits == [None, None, None]
    finally:
        process.kill()
        process.join()


def test_what_has_been_evaluated_is_written_and_not_repeated(run: Path) -> None:
    first = list(Evaluator(run).follow())
    assert [(result.step, result.split) for result in first] == [(10, "validation")]
    assert RunFolder(run).lines(EVALUATIONS) == [
        {"step": 10, "split": "validation", "averaged": True, "n": 23, "accuracy": first[0].score.accuracy}
    ]
    assert list(Evaluator(run).follow()) == []
    # Another question is no repetition.
    assert [result.averaged for result in Evaluator(run, averaged=False).follow()] == [False]
    assert [result.split for result in Evaluator(run, split="test").follow()] == ["test"]
    assert list(Evaluator(run, averaged=False).follow()) == []
    assert len(RunFolder(run).lines(EVALUATIONS)) == 3
    for curve in ("validation", "validation_own_parameters", "test"):
        assert list((run / "tensorboard" / f"evaluation_{curve}").glob("events*")), curve


def test_the_best_checkpoint_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(QUIET, checkpoint_seconds=0, keep=2)
    train_until(3, CLASSIC, DATA, tmp_path / "run", settings)

    def precise(*arguments: Any, **options: Any) -> Scores:
        scores = evaluate_state(*arguments, **options)
        return dataclasses.replace(scores, score=dataclasses.replace(scores.score, right=scores.score.n))

    monkeypatch.setattr("quickstudy.scratch.evaluation.evaluate_state", precise)
    assert [result.score.accuracy for result in Evaluator(tmp_path / "run").follow()] == [1.0]
    train_until(8, CLASSIC, DATA, tmp_path / "run", settings)
    assert RunFolder(tmp_path / "run").checkpoints.steps() == [3, 7, 8]


@pytest.mark.slow
def test_train_and_evaluate_as_two_processes(tmp_path: Path) -> None:
    quickstudy = [sys.executable, "-m", "quickstudy"]
    options = ["--data", "digits", "--set", "crop=6", "--batch", "32", "--steps", "60", "--summary-steps", "0"]

    def on_one_core() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    trainer = subprocess.Popen(
        [*quickstudy, "train", "cifar10-classic", *options, "--run", "run", "--checkpoint-seconds", "0.05"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=on_one_core,
    )
    evaluator = None
    try:
        while not (tmp_path / "run" / "config.json").exists() and trainer.poll() is None:
            time.sleep(0.02)
        evaluator = subprocess.Popen(
            [*quickstudy, "evaluate", "run", "--watch", "--interval", "0.1"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=on_one_core,
        )
        told = trainer.communicate(timeout=300)[0]
        assert trainer.returncode == 0, told
        evaluated = evaluator.communicate(timeout=300)[0]
        assert evaluator.returncode == 0, evaluated
    finally:
        for process in (trainer, evaluator):
            if process is not None:
                process.kill()
                process.communicate()
    found = re.findall(r"accuracy = (\d\.\d{3}) \(step (\d+) of 60, 385 test images\)", evaluated)
    assert len(found) == len(evaluated.splitlines()) >= 1
    steps = [int(step) for _, step in found]
    assert steps == sorted(set(steps))
    assert steps[-1] == 60
    assert f"\naccuracy = {found[-1][0]}\n" in told
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    lines = RunFolder(tmp_path / "run").lines(EVALUATIONS)
    assert [line["step"] for line in lines] == steps
    assert lines[-1]["accuracy"] == result["test"]["accuracy"]
