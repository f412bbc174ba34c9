"""Runs that are trained together are those that are trained alone, but for rounding; each has all that is its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from quickstudy.errors import QuickstudyError, TrainingError
from quickstudy.scratch.data import TrainingData
from quickstudy.scratch.folder import METRICS, RESULT, RunFolder
from quickstudy.scratch.parallel import Replica
from quickstudy.scratch.recipe import Recipe, RunSettings, recipe_named
from quickstudy.scratch.state import Clock
from quickstudy.scratch.summaries import Reporter, RunProgress
from quickstudy.scratch.together import SharedTime, train_together, why_apart
from quickstudy.scratch.train import train_recipe
from quickstudy.sweeps.conclusion import conclude
from quickstudy.sweeps.results import COLUMNS, SweepFolder, table_of
from quickstudy.sweeps.study import Grid, Study, Trial
from quickstudy.sweeps.sweep import Planned, conclude_sweep, jobs_of, sweep
from quickstudy.sweeps.tasks import Conditions
from quickstudy.sweeps.workers import TrialNews, run_locally

FIXED = {"data": "digits", "batch": 32, "steps": 25, "widths": "24,16", "depth": 2, "evaluate_steps": 10, "rate": 0.01}
SETTINGS = RunSettings(threads=0, graph=False, summary_steps=20)
CPU, SILENT = Replica(), lambda _: None
CONVOLUTIONAL = recipe_named("cifar10-fast").with_options(
    {"data": "digits", "batch": 16, "steps": 6, "widths": "4", "convolutions": 2, "pad": 1, "whitening": False}
    | {"method": "sgd", "precision": "float32", "evaluate_steps": 3, "average_decay": 0.9}
    | {"lookahead_every": 2, "cutout": 2}
)

pytestmark = pytest.mark.usefixtures("one_thread")


def mlp(**options: object) -> Recipe:
    return recipe_named("mlp").with_options(FIXED | options)


class Together:
    """Trains recipes together, and notes how each ended."""

    def __init__(
        self,
        recipes: list[Recipe],
        data: TrainingData,
        place: Path,
        replica: Replica = CPU,
        report: Callable[[int], Reporter] = lambda _: SILENT,
        settings: RunSettings = SETTINGS,
    ) -> None:
        self.runs = [RunFolder(place / str(number)) for number in range(len(recipes))]
        self.errors: dict[int, QuickstudyError | None] = {}
        with contextlib.suppress(SystemExit):
            train_together(
                recipes,
                data,
                self.runs,
                replica=replica,
                settings=settings,
                reports=[report(number) for number in range(len(recipes))],
                ended=self.errors.__setitem__,
            )


def network_of(run: RunFolder) -> Mapping[str, torch.Tensor]:
    checkpoint = run.checkpoints.newest()
    assert checkpoint is not None
    network: Mapping[str, torch.Tensor] = checkpoint.state["network"]
    return network


def result_of(run: RunFolder) -> dict[str, Any]:
    found = run.result()
    assert found is not None
    return found


def assert_alike(one: RunFolder, other: RunFolder, tolerance: float = 1e-4) -> None:
    mine, others = network_of(one), network_of(other)
    assert mine.keys() == others.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, others[name], rtol=tolerance, atol=tolerance, msg=name)
    first, second = result_of(one), result_of(other)
    assert first["steps"] == second["steps"]
    assert abs(first["test"]["right"] - second["test"]["right"]) <= 1
    told = [one.lines(METRICS), other.lines(METRICS)]
    assert [line.keys() for line in told[0]] == [line.keys() for line in told[1]]
    for line, expected in zip(*told, strict=True):
        for name in (name for name in line if "second" not in name):
            assert line[name] == (
                expected[name] if name == "split" else pytest.approx(expected[name], rel=1e-3, abs=1e-3)
            )
    assert any((one.path / "tensorboard" / "train").iterdir())


AXES = {
    "seeds": [mlp(seed=seed) for seed in (0, 1, 2)],
    "rates": [mlp(rate=rate) for rate in (0.001, 0.01)],
    # With relu before a batch norm, Adam amplifies rounding a hundred thousand times, however the run is made.
    "norms": [
        mlp(batch_norm=place, seed=seed, activation="tanh") for place in ("off", "before", "after") for seed in (0, 5)
    ],
    "activations": [mlp(activation=name) for name in ("relu", "sigmoid", "tanh", "leaky_relu", "elu")],
    "depths": [mlp(depth=depth, batch_norm="before") for depth in (0, 1, 2)],
    "descent": [
        mlp(method="sgd", seed=seed, **options)
        for options in ({"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "average_decay": 0.9}, {})
        for seed in (0, 1)
    ],
    "lengths": [mlp(steps=steps, evaluate_steps=every) for steps in (7, 12) for every in (0, 5)],
    "convolutions": [
        CONVOLUTIONAL.with_options({"seed": seed, "activation": name}) for seed in (0, 1) for name in ("silu", "relu")
    ],
}  # fmt: skip


@pytest.mark.parametrize("axis", AXES)
def test_together_is_as_alone(axis: str, data: TrainingData, tmp_path: Path) -> None:
    recipes = AXES[axis]
    found = Together(recipes, data, tmp_path / "together")
    assert found.errors == dict.fromkeys(range(len(recipes)))
    for number, (recipe, run) in enumerate(zip(recipes, found.runs, strict=True)):
        alone = RunFolder(tmp_path / f"alone-{number}")
        train_recipe(recipe, data, alone, settings=SETTINGS)
        assert run.recipe() == recipe
        assert_alike(run, alone)
        assert (result_of(run)["together"], result_of(alone)["together"]) == (len(recipes), 1)


def test_seconds_are_shares_of_those_that_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    time = SharedTime(3)
    clock = Clock(time)
    now[0] += 30
    clock.begin_steps(0)
    time.share(2)
    now[0] += 8
    assert (clock.run_seconds, clock.training_seconds) == (14, 4)
    assert clock.lap(2) == 2


def test_a_target_ends_one_and_the_others_go_on(data: TrainingData, tmp_path: Path) -> None:
    recipes = [mlp(target=target, rate=rate) for target, rate in ((0.3, 0.01), (0.0, 0.01), (0.999, 1e-6))]
    found = Together(recipes, data, tmp_path)
    steps = [result_of(run)["steps"] for run in found.runs]
    assert steps[0] in (10, 20)
    assert steps[1:] == [25, 25]
    assert [line["step"] for line in found.runs[0].lines(METRICS) if "accuracy" in line][-1] == steps[0]


def test_a_run_whose_loss_is_no_number_fails_alone(data: TrainingData, tmp_path: Path) -> None:
    recipes = [mlp(method="sgd", rate=rate, seed=seed) for rate in (0.1, 1e30) for seed in (0, 1)]
    found = Together(recipes, data, tmp_path / "together")
    assert [type(found.errors[number]) for number in range(4)] == [type(None)] * 2 + [TrainingError] * 2
    alone = RunFolder(tmp_path / "alone")
    with pytest.raises(TrainingError) as error:
        train_recipe(recipes[2], data, alone, settings=SETTINGS)
    assert str(found.errors[2]) == str(error.value)
    assert found.runs[2].result() is None
    train_recipe(recipes[1], data, RunFolder(tmp_path / "well"), settings=SETTINGS)
    assert_alike(found.runs[1], RunFolder(tmp_path / "well"))


def test_a_folder_that_cannot_be_used_fails_alone(data: TrainingData, tmp_path: Path) -> None:
    train_recipe(mlp(seed=7, steps=2), data, RunFolder(tmp_path / "0"), settings=SETTINGS)
    found = Together([mlp(), mlp(seed=1)], data, tmp_path)
    assert "seed is 7 there, 0 here" in str(found.errors[0])
    assert found.errors[1] is None


def stopping(at: int) -> Callable[[int], Reporter]:
    """Ask for the end once the first run has made so many steps."""

    def report(news: object) -> None:
        if isinstance(news, RunProgress) and news.step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    return lambda number: report if number == 0 else SILENT


@pytest.fixture
def _sigterm_exits() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_what_was_stopped_goes_on_where_it_was(data: TrainingData, tmp_path: Path) -> None:
    recipes = [mlp(seed=seed, batch_norm="before", average_decay=0.9) for seed in (0, 1)] + [mlp(steps=8)]
    whole = Together(recipes, data, tmp_path / "whole")
    stopped = Together(recipes, data, tmp_path / "stopped", report=stopping(10))
    assert [run.checkpoints.steps() for run in stopped.runs] == [[10], [10], [8]]
    assert stopped.errors == {2: None}
    went_on = Together(recipes, data, tmp_path / "stopped")
    assert went_on.errors == dict.fromkeys((0, 1, 2))
    for one, other in zip(went_on.runs, whole.runs, strict=True):
        assert_alike(one, other, tolerance=1e-6)


def test_runs_at_different_steps_go_on_together(data: TrainingData, tmp_path: Path) -> None:
    recipes = [mlp(seed=seed) for seed in (0, 1)]
    Together(recipes[:1], data, tmp_path / "together", report=stopping(10))
    found = Together(recipes, data, tmp_path / "together")
    for recipe, run in zip(recipes, found.runs, strict=True):
        alone = RunFolder(tmp_path / str(recipe.seed))
        train_recipe(recipe, data, alone, settings=SETTINGS)
        assert_alike(run, alone)


def test_checkpoints_are_written_meanwhile(data: TrainingData, tmp_path: Path) -> None:
    often = dataclasses.replace(SETTINGS, checkpoint_seconds=0)
    found = Together([mlp(steps=4), mlp(steps=6)], data, tmp_path, settings=often)
    assert [run.checkpoints.steps() for run in found.runs] == [[1, 2, 3, 4], [2, 3, 4, 5, 6]]


# In sweeps


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"recipe": "cifar10-fast"}, "Muon"),
        ({"recipe": "cifar10-fast", "method": "sgd", "precision": "bfloat16"}, "bfloat16"),
        ({"recipe": "cifar10-fast", "method": "sgd", "precision": "float32", "compiled": True}, "compiled"),
        ({"recipe": "mlp", "seconds": 3}, "time"),
        ({"recipe": "cifar10-fast", "method": "sgd", "precision": "float32"}, "unsure"),
        ({"recipe": "cifar10-classic"}, "local response"),
        (
            {"recipe": "cifar10-fast", "method": "sgd", "precision": "float32", "unsure_lead": 1}
            | {"whitening_bias_epochs": 1},
            "whitening bias",
        ),
    ],
)
def test_what_is_not_trained_together(options: dict[str, object], reason: str) -> None:
    name = str(options.pop("recipe"))
    assert reason in why_apart(recipe_named(name).with_options(options))


def trials_of(*grids: Grid, seeds: int = 1) -> list[Trial]:
    return Study(name="some", grids=grids, seeds=seeds).trials()


def test_trainings_on_the_same_images_are_one_job() -> None:
    grids = (
        Grid(recipe="mlp", case="mlp", fixed=FIXED, axes={"depth": (1, 2), "activation": ("relu", "tanh")}),
        Grid(recipe="mlp", case="held out", fixed=FIXED | {"validation": 0.2}),
        Grid(recipe="mlp", case="timed", fixed=FIXED | {"seconds": 5}),
        Grid(recipe="retrain", case="retrain", fixed={"data": "photos"}),
    )
    jobs, apart = jobs_of(trials_of(*grids))
    assert [len(job) for job in jobs] == [4, 1, 1, 1]
    assert dict(apart) == {"it ends by its own time": 1, "it is a retraining": 1}
    jobs, _ = jobs_of(trials_of(grids[0], seeds=40))
    assert [len(job) for job in jobs] == [128, 32]


STUDY = Study(
    name="small",
    grids=(Grid(recipe="mlp", fixed=FIXED, axes={"depth": (1, 2), "batch_norm": ("off", "before")}),),
    seeds=2,
    panels="batch_norm",
).changed(fixed={"target": 0.8})


def carried_out(jobs: list[list[Trial]], place: Path) -> SweepFolder:
    folder = SweepFolder(place)
    folder.begin(STUDY)
    for news in run_locally(jobs, folder.runs, Conditions(device="cpu")):
        assert news.error is None
        assert news.halved is None
    return folder


@pytest.mark.heavy
def test_the_table_is_that_of_separate_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials, told = STUDY.trials(), list[Planned | TrialNews]()
    with monkeypatch.context() as patch:  # the workers compute on the processor all the same
        patch.setattr("quickstudy.sweeps.sweep.choose_device", lambda _: "cuda")
        sweep(STUDY, tmp_path / "one", report=told.append)
    assert told[0] == Planned(trials=8, done=0, workers=1, together=8)
    assert sorted(news.trial.folder for news in told[1:] if isinstance(news, TrialNews) and news.ended) == sorted(
        trial.folder for trial in trials
    )
    folders = [SweepFolder(tmp_path / "one"), carried_out([[trial] for trial in trials], tmp_path / "many")]
    tables = [table_of(STUDY, folder.rows(trials)).to_pylist() for folder in folders]
    same = {*STUDY.axes, "seed", "status", "error", "run"} | {
        name for name in COLUMNS if "second" not in name and name not in ("accuracy", "together")
    }
    for together, alone in zip(*tables, strict=True):
        assert {name: together[name] for name in same} == {name: alone[name] for name in same}
        assert together["accuracy"] == pytest.approx(alone["accuracy"], abs=0.003)
        assert (together["together"], alone["together"]) == (8, 1)
    said = [conclude(STUDY, folder.rows(trials)) for folder in folders]
    assert ["in seconds of training" in text for text in said] == [False, True]
    drawn = {path.stem for path in conclude_sweep(folders[0], STUDY, trials).pictures}
    assert "steps_to_target" in drawn
    assert not drawn & {"seconds_to_target", "step_cost", "seconds"}


def test_what_goes_wrong_as_a_whole_is_tried_in_halves(tmp_path: Path) -> None:
    short = FIXED | {"steps": 5, "widths": "8,8"}
    grids = (
        Grid(recipe="mlp", case="well", fixed=short, axes={"rate": (0.01, 0.02, 0.03)}),
        Grid(recipe="mlp", case="too large for any memory", fixed=short | {"widths": "10000000000000", "depth": 1}),
    )
    trials = trials_of(*grids)
    news = list(run_locally([trials], tmp_path, Conditions(device="cpu")))
    assert len([one for one in news if one.halved]) == 2
    assert [one.trial for one in news if one.error] == [trials[3]]
    assert {one.trial.folder for one in news if one.ended} == {trial.folder for trial in trials[:3]}
    assert all((tmp_path / trial.folder / RESULT).is_file() for trial in trials[:3])


def test_a_worker_that_dies_is_replaced_and_its_job_halved(tmp_path: Path) -> None:
    trials, halved, ended = trials_of(Grid(recipe="mlp", fixed=FIXED), seeds=2), 0, 0
    for news in run_locally([trials], tmp_path, Conditions(device="cpu")):
        if news.progress is not None and news.progress.step == 10 and not halved:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if any(Path(file.path).is_relative_to(tmp_path) for file in process.open_files()):
                        process.kill()
        halved, ended = halved + (news.halved is not None), ended + news.ended
    assert (halved, ended) == (1, 2)
