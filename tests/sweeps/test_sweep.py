import dataclasses
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from quick_processes import quick_processes
from quickstudy.errors import BackboneError, ImageSetError, OptionError
from quickstudy.process import settle_own_process, usable_cores
from quickstudy.scratch.data import load_training_data
from quickstudy.scratch.folder import METRICS, RunFolder
from quickstudy.scratch.parallel import Replica, joined
from quickstudy.scratch.recipe import RunSettings, recipe_named
from quickstudy.scratch.train import train_recipe
from quickstudy.sweeps.pictures import draw_all
from quickstudy.sweeps.results import TrialRow
from quickstudy.sweeps.study import Grid, Study
from quickstudy.sweeps.sweep import Planned, SweepResult, show, sweep
from quickstudy.sweeps.tasks import Conditions
from quickstudy.sweeps.workers import TrialNews, run_locally

HERE = str(Path(__file__).parent)
FIXED = {"data": "digits", "batch": 32, "steps": 40, "widths": "24,16", "depth": 2, "evaluate_steps": 10, "rate": 0.01}
STUDY = Study(
    name="small",
    title="A small study",
    grids=(Grid(recipe="mlp", fixed=FIXED, axes={"depth": (1, 2), "batch_norm": ("off", "before")}),),
    lines="batch_norm",
)


class News:
    """What a sweep told."""

    def __init__(self) -> None:
        self.planned: Planned | None = None
        self.went: list[TrialNews] = []

    def __call__(self, news: Planned | TrialNews) -> None:
        if isinstance(news, Planned):
            self.planned = news
        else:
            self.went.append(news)

    def ended(self) -> list[str]:
        return sorted(went.trial.folder for went in self.went if went.ended)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """The study, carried out by two workers."""
    return sweep(STUDY, tmp_path_factory.mktemp("sweep") / "whole", workers=usable_cores())


def parameters(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = RunFolder(run).checkpoints.newest()
    assert checkpoint is not None
    network: dict[str, torch.Tensor] = checkpoint.state["network"]
    return network


def assert_same(one: Path, other: Path) -> None:
    mine, others = parameters(one), parameters(other)
    assert mine.keys() == others.keys()
    for name, value in mine.items():
        assert torch.equal(value, others[name]), name


def test_each_run_is_a_run_like_any_other(whole: SweepResult, tmp_path: Path) -> None:
    assert [row.status for row in whole.rows] == ["done"] * 4
    row = whole.rows[-1]
    run = RunFolder(row.folder)
    recipe = recipe_named("mlp").with_options({**FIXED, "depth": 2, "batch_norm": "before", "seed": 0})
    assert run.recipe() == recipe
    data = load_training_data("digits", image_size=32, validation=0)
    with joined(Replica(local_world=usable_cores())):  # with as many threads as each of two workers has
        result = train_recipe(recipe, data, RunFolder(tmp_path / "alone"), settings=RunSettings(threads=0))
    assert result is not None
    assert_same(row.folder, tmp_path / "alone")
    assert row.values["accuracy"] == result.test.score.accuracy
    assert any((row.folder / "tensorboard" / "train").iterdir())
    assert [line["step"] for line in run.lines(METRICS) if "accuracy" in line] == [10, 20, 30, 40]


def test_the_table_has_what_the_runs_came_to(whole: SweepResult) -> None:
    rows = whole.table.to_pylist()
    assert [(row["depth"], row["batch_norm"], row["seed"]) for row in rows] == [
        (1, "off", 0), (1, "before", 0), (2, "off", 0), (2, "before", 0),
    ]  # fmt: skip
    assert rows[0]["parameters"] == 64 * 24 + 24 + 24 * 10 + 10
    for row in rows:
        result = json.loads((whole.folder / "runs" / row["run"] / "result.json").read_text())
        assert row["accuracy"] == result["test"]["accuracy"] > 0.5
        assert row["steps"] == 40
        assert row["milliseconds_a_step"] == pytest.approx(result["training_seconds"] / 40 * 1e3)
        assert 0 < result["training_seconds"] < result["seconds"]
    assert (whole.folder / "results.csv").read_text().splitlines()[0].startswith('"depth","batch_norm","seed","status"')


def test_pictures_are_pictures(whole: SweepResult) -> None:
    assert {path.stem for path in whole.pictures} == {
        "accuracy", "seconds", "parameters", "learning_curves", "gradient_norms",
    }  # fmt: skip
    for path in whole.pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 300
        assert path.with_suffix(".svg").read_text().startswith("<?xml")


def test_norms_known_once_only_make_no_picture(whole: SweepResult, tmp_path: Path) -> None:
    def once(row: TrialRow) -> TrialRow:
        norms = {layer: points[:1] for layer, points in row.curve.norms.items()}
        other = dataclasses.replace(row)
        vars(other)["curve"] = dataclasses.replace(row.curve, norms=norms)
        return other

    drawn = draw_all(STUDY, [once(row) for row in whole.rows], tmp_path)
    assert {path.stem for path in drawn} == {"accuracy", "seconds", "parameters", "learning_curves"}


@pytest.mark.heavy
def test_what_has_ended_is_not_done_again(whole: SweepResult) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.folder.rglob("checkpoints/*")}
    news = News()
    grid = dataclasses.replace(STUDY.grids[0], axes={"batch_norm": ("before",), "depth": (0, 2)})
    again = sweep(dataclasses.replace(STUDY, grids=(grid,)), whole.folder, workers=1, report=news)
    assert news.planned == Planned(trials=2, done=1, workers=1)
    assert news.ended() == [again.rows[0].trial.folder]
    assert [row.status for row in again.rows] == ["done", "done"]
    assert all(path.stat().st_mtime_ns == seen for path, seen in before.items())
    assert show(whole.folder).table == again.table
    sweep(STUDY, whole.folder, report=news)  # as it was before
    assert show(whole.folder).table == whole.table


def test_a_target_ends_runs_early(tmp_path: Path) -> None:
    grid = Grid(
        recipe="mlp",
        fixed={**FIXED, "steps": 60, "evaluate_steps": 5},
        axes={"rate": (0.01, 1e-6)},
    )
    study = Study(name="rates", grids=(grid,)).changed(fixed={"target": 0.6})
    fast, slow = sweep(study, tmp_path / "sweep", workers=2).rows
    curve = fast.curve
    assert fast.values["steps_to_target"] == curve.steps[-1] == fast.values["steps"] < 60
    assert curve.accuracy[-1] >= 0.6 > max(curve.accuracy[:-1], default=0)
    assert fast.values["seconds_to_target"] == curve.seconds[-1]
    assert (slow.values["steps_to_target"], slow.values["seconds_to_target"]) == (None, None)
    assert slow.values["steps"] == 60


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    grid = Grid(recipe="mlp", fixed={**FIXED, "method": "sgd"}, axes={"rate": (1e30, 0.1)})
    study = Study(name="rates", grids=(grid,))
    result = sweep(study, tmp_path / "sweep", workers=1)
    assert [row.status for row in result.rows] == ["failed", "done"]
    assert "The loss is not a number in step" in str(result.failed[0].error)
    assert "Failed: rate 1e+30, seed 0: The loss is not a number" in result.conclusion
    assert result.table.to_pylist()[0]["error"].startswith("The loss")
    news = News()
    again = sweep(study, tmp_path / "sweep", workers=1, report=news)
    assert news.planned == Planned(trials=2, done=1, workers=1)  # what failed is tried again
    assert [row.status for row in again.rows] == ["failed", "done"]


@pytest.mark.heavy
def test_retraining_can_be_varied(photos: Path, tmp_path: Path, cache: Path) -> None:
    grid = Grid(
        recipe="retrain", fixed={"data": str(photos)}, axes={"views": (0, 1), "class_weight": ("none", "balanced")}
    )
    result = sweep(Study(name="views", grids=(grid,)), tmp_path / "sweep", workers=1, cache=cache)
    assert [row.trial.seed for row in result.rows] == [None] * 4
    rows = result.table.to_pylist()
    assert [row["accuracy"] for row in rows] == [1.0] * 4
    assert all(row["cross_validation"] > 0.9 for row in rows)
    for row, values in zip(result.rows, rows, strict=True):
        assert len(row.judged) == row.chosen_by.n  # type: ignore[union-attr]
        assert sum(row.judged.values()) / len(row.judged) == pytest.approx(values["cross_validation"])
    assert "Best cross-validated accuracy" in result.conclusion
    assert result.conclusion.count("Test accuracy of the best") == 1
    assert all((result.folder / "runs" / row["run"] / "model.onnx").is_file() for row in rows)


@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        (Grid(recipe="mlp", axes={"depth": (1, 9)}), OptionError, "depth is 9; expected 0 to 7"),
        (Grid(recipe="mlp", axes={"activation": ("relu", "rely")}), OptionError, "activation is 'rely'"),
        (Grid(recipe="mlp", axes={"batch_norm": ("on",)}), OptionError, "batch_norm is 'on'; expected one of off"),
        (Grid(recipe="mlp", axes={"crop": (0, 99)}), OptionError, "crop is 99; expected 0 "),
        (Grid(recipe="mlp", fixed={"target": 0.9}), OptionError, "target is 0.9, but evaluate_steps is 0"),
        (Grid(recipe="mlp", fixed={"data": "gone"}), ImageSetError, "gone"),
        (Grid(recipe="retrain"), OptionError, "A retraining needs images; name them with --set data="),
        (Grid(recipe="retrain", fixed={"data": "gone"}), OptionError, "data is 'gone'; there is no such"),
        (
            Grid(recipe="retrain", fixed={"data": HERE}, axes={"cut": ("block_12", "block_99")}),
            BackboneError,
            "'efficientnet_lite0' cannot be cut at 'block_99'; its cuts are: stem, block_1",
        ),
        (Grid(recipe="retrain", fixed={"data": HERE, "backbone": "mine"}), BackboneError, "Unknown backbone 'mine'"),
        (Grid(recipe="mpl"), OptionError, "There is no recipe 'mpl'; there are: .*mlp, retrain"),
    ],
)
def test_nothing_is_begun_where_something_is_wrong(
    tmp_path: Path, cache: Path, grid: Grid, error: type[Exception], message: str
) -> None:
    if grid.recipe == "mlp":
        grid = dataclasses.replace(grid, fixed={"data": "digits"} | dict(grid.fixed))
    with pytest.raises(error, match=message):
        sweep(Study(name="wrong", grids=(grid,)), tmp_path / "sweep", cache=cache)
    assert not (tmp_path / "sweep").exists()


def test_workers(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="workers is 0"):
        sweep(STUDY, tmp_path / "sweep", workers=0)


# Killed


SLOW = Study(
    name="slow",
    grids=(Grid(recipe="mlp", fixed={**FIXED, "steps": 200}, axes={"depth": (1, 2), "rate": (0.001, 0.002)}),),
)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """What the slow study comes to when nobody disturbs it."""
    return sweep(SLOW, tmp_path_factory.mktemp("sweep") / "slow", workers=2)


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 300
    while not what():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)


def sweep_in_process(folder: Path) -> None:
    settle_own_process()
    quick_processes()
    sweep(SLOW, folder, workers=2)


def metrics(folder: Path) -> list[Path]:
    return list(folder.glob("runs/*/metrics.jsonl"))


@pytest.mark.heavy
def test_a_killed_worker_is_replaced(tmp_path: Path, slow: SweepResult) -> None:
    killed = []

    def kill_one(news: Planned | TrialNews) -> None:
        if isinstance(news, TrialNews) and news.progress is not None and news.progress.step >= 20 and len(killed) < 2:
            for process in psutil.Process().children(recursive=True):
                if process.pid not in killed and _is_training(process, tmp_path / "sweep"):
                    process.kill()
                    killed.append(process.pid)
                    return

    result = sweep(SLOW, tmp_path / "sweep", workers=2, report=kill_one)
    assert killed
    assert [row.status for row in result.rows] == ["done"] * 4
    for row, undisturbed in zip(result.rows, slow.rows, strict=True):
        assert_same(row.folder, undisturbed.folder)


def _is_training(process: psutil.Process, folder: Path) -> bool:
    """Whether a process holds the lock of a run in the sweep's folder."""
    try:
        return any(Path(file.path).is_relative_to(folder / "runs") for file in process.open_files())
    except psutil.Error:
        return False


@pytest.mark.heavy
def test_a_trial_that_kills_its_workers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(recipe="mlp", fixed={**FIXED, "rate": 0.01}, axes={"depth": (1, 2)})
    study = Study(name="deadly", grids=(grid,))
    trials = study.trials()
    trials[0] = dataclasses.replace(trials[0], task=Deadly())
    news = list(run_locally([[trial] for trial in trials], tmp_path, Conditions(workers=1)))
    errors = {went.trial.seed: went.error for went in news if went.error}
    assert list(errors.values()) == ["The process that ran it died 3 times (signal SIGKILL)"]
    assert [went.trial for went in news if went.ended] == [trials[1]]


@dataclasses.dataclass(frozen=True)
class Deadly:
    """A task that ends its process."""

    name: str = "mlp"

    def options(self) -> dict[str, object]:
        return recipe_named("mlp").options()

    def check(self, conditions: Conditions) -> None: ...

    def work(self, conditions: Conditions) -> float:
        return 0.0

    def why_apart(self) -> str:
        return "it is deadly"

    def run(self, folder: Path, conditions: Conditions, note: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.heavy
def test_a_worker_whose_gpu_is_lost_is_replaced(tmp_path: Path) -> None:
    grid = Grid(recipe="mlp", fixed={**FIXED, "rate": 0.01}, axes={"depth": (1, 2)})
    trials = Study(name="lost", grids=(grid,)).trials()
    trials[0] = dataclasses.replace(trials[0], task=LosesItsGpu())
    trials[1] = dataclasses.replace(trials[1], task=TellsItsProcess())
    news = list(run_locally([[trial] for trial in trials], tmp_path, Conditions(workers=1)))
    first, second = (went.error or "" for went in news if went.error)
    assert "device-side assert" in first
    number = (tmp_path / "process").read_text()
    assert number not in second
    assert "process " in second


class LosesItsGpu(Deadly):
    """A task after which the GPU answers nothing any more."""

    def run(self, folder: Path, conditions: Conditions, note: object) -> None:
        def synchronize() -> None:
            raise RuntimeError("CUDA error: device-side assert triggered")

        (folder.parent / "process").write_text(f"process {os.getpid()}.")
        torch.cuda.is_initialized, torch.cuda.synchronize = (lambda: True), synchronize
        synchronize()


class TellsItsProcess(Deadly):
    """A task that fails and tells in which process."""

    def run(self, folder: Path, conditions: Conditions, note: object) -> None:
        raise RuntimeError(f"process {os.getpid()}.")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(signal.SIGKILL, marks=pytest.mark.heavy),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in (signal.SIGTERM, signal.SIGINT)),
    ],
)
def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path, slow: SweepResult, kind: signal.Signals) -> None:
    folder = tmp_path / "sweep"
    process = multiprocessing.get_context("spawn").Process(target=sweep_in_process, args=(folder,))
    process.start()
    try:
        wait_for(lambda: len(metrics(folder)) >= 2 and any(path.stat().st_size > 3000 for path in metrics(folder)))
        assert process.pid is not None
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, kind)
        process.join(60)
        assert process.exitcode not in (None, 0)
        _, alive = psutil.wait_procs(family, 60)
        assert alive == [], "a worker outlived its sweep"
        if kind != signal.SIGKILL:
            for path in metrics(folder):
                run = RunFolder(path.parent)
                assert run.checkpoints.steps()[-1] >= run.lines(METRICS)[-1]["step"], "what runs is saved"
    finally:
        process.kill()
        process.join()
    result = sweep(SLOW, folder, workers=2)
    assert [row.status for row in result.rows] == ["done"] * 4
    for row, undisturbed in zip(result.rows, slow.rows, strict=True):
        assert_same(row.folder, undisturbed.folder)
