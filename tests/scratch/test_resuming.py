"""Runs that were stopped and go on, against a run in one go: the same to the bit, whatever happens to the disk."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import pytest
from small_runs import (
    CLASSIC,
    QUIET,
    News,
    differences,
    newest,
    small_data,
    train_until,
    train_whole,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from quickstudy.errors import WriteError
from quickstudy.scratch.folder import METRICS, RunFolder
from quickstudy.scratch.recipe import Recipe, RunSettings
from quickstudy.scratch.train import train_recipe

DATA = small_data()
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("threads", [0, 1, 16])
def test_half_stop_resume_half_is_the_whole_to_the_bit(
    recipe: Recipe, whole: Path, tmp_path: Path, threads: int
) -> None:
    settings = dataclasses.replace(QUIET, threads=threads)
    train_until(10, recipe, DATA, tmp_path / "run", settings)
    half = newest(tmp_path / "run")
    assert half.step == 10
    assert differences(half.state, newest(whole).state), "the comparison sees that half a training is another state"
    news = News()
    train_recipe(recipe, DATA, RunFolder(tmp_path / "run"), settings=settings, report=news)
    assert news.begun is not None
    assert (news.begun.step, news.begun.steps) == (10, 20)
    assert [progress.step for progress in news.progress] == list(range(11, 21))
    one, other = newest(tmp_path / "run"), newest(whole)
    assert one.step == other.step == 20
    assert {"network", "optimisers", "averages", "smoothed", "generator"} <= one.state.keys()
    assert len(one.state["smoothed"]) == 3
    assert differences(one.state, other.state) == []
    assert RunFolder(tmp_path / "run").result()["test"] == RunFolder(whole).result()["test"]  # type: ignore[index]


def test_summaries_and_checkpoints_change_nothing(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    settings = RunSettings(threads=2, summary_steps=3, log_steps=4, checkpoint_seconds=0)
    train_whole(recipe, DATA, tmp_path / "run", settings)
    assert differences(newest(tmp_path / "run").state, newest(whole).state) == []
    assert list((tmp_path / "run" / "tensorboard" / "train").iterdir())


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_ends_the_run_after_the_step_and_a_checkpoint(
    tmp_path: Path, number: int, error: type[BaseException]
) -> None:
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    news, folder = News(stop_after=7, number=number), RunFolder(tmp_path / "run")
    with pytest.raises(error) as caught:
        train_recipe(CLASSIC, DATA, folder, settings=QUIET, report=news)
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 128 + signal.SIGTERM
    assert news.progress[-1].step == 7
    assert folder.checkpoints.steps() == [7]
    assert folder.result() is None
    assert not folder.is_active()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    class Twice(News):
        def __call__(self, news: object) -> None:
            super().__call__(news)  # type: ignore[arg-type]
            if self.progress and self.progress[-1].step == self.stop_after:
                signal.raise_signal(self.number)

    folder = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train_recipe(CLASSIC, DATA, folder, settings=QUIET, report=Twice(stop_after=7, number=signal.SIGINT))
    assert folder.checkpoints.steps() == []


def test_damaged_checkpoints_are_passed_over_and_nothing_is_counted_twice(classic: Path, tmp_path: Path) -> None:
    often = dataclasses.replace(QUIET, checkpoint_seconds=0)
    train_until(12, CLASSIC, DATA, tmp_path / "run", often)
    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoints.steps() == [8, 9, 10, 11, 12]
    for step in (11, 12):
        path = folder.checkpoints.path(step)
        path.write_bytes(path.read_bytes()[:-1])
    news = News()
    train_recipe(CLASSIC, DATA, folder, settings=QUIET, report=news)
    assert news.begun is not None
    assert news.begun.step == 10
    assert news.begun.damaged == (folder.checkpoints.path(12), folder.checkpoints.path(11))
    assert differences(newest(tmp_path / "run").state, newest(classic).state) == []

    def made(path: Path) -> list[dict[str, float]]:
        lines = RunFolder(path).lines(METRICS)
        return [{name: value for name, value in line.items() if name != "examples_per_second"} for line in lines]

    assert [line["step"] for line in made(tmp_path / "run")] == list(range(1, 21))
    assert made(tmp_path / "run") == made(classic)


def test_when_all_checkpoints_are_damaged_the_run_starts_again(tmp_path: Path, classic: Path) -> None:
    train_until(5, CLASSIC, DATA, tmp_path / "run")
    RunFolder(tmp_path / "run").checkpoints.path(5).write_bytes(b"")
    news = News()
    train_recipe(CLASSIC, DATA, RunFolder(tmp_path / "run"), settings=QUIET, report=news)
    assert news.begun is not None
    assert news.begun.step == 0
    assert differences(newest(tmp_path / "run").state, newest(classic).state) == []


def test_no_step_is_twice_in_tensorboard_after_a_kill_before_the_first_checkpoint(tmp_path: Path) -> None:
    class Killed(News):
        def __call__(self, news: object) -> None:
            super().__call__(news)  # type: ignore[arg-type]
            if self.progress and self.progress[-1].step == 7:
                raise MemoryError

    settings = dataclasses.replace(QUIET, summary_steps=1, graph=False)
    recipe = CLASSIC.with_options({"steps": 9})
    with pytest.raises(MemoryError):
        train_recipe(recipe, DATA, RunFolder(tmp_path / "run"), settings=settings, report=Killed())
    assert RunFolder(tmp_path / "run").checkpoints.steps() == []
    train_whole(recipe, DATA, tmp_path / "run", settings)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "train")).Reload()
    for name in ("loss/total", "learning_rate"):
        assert [event.step for event in events.Scalars(name)] == list(range(1, 10))


def test_the_last_checkpoint_is_not_written_again_where_only_the_evaluation_was_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run", keep=1)
    with monkeypatch.context() as patch, pytest.raises(KeyError):  # killed while it evaluates
        patch.setattr("quickstudy.scratch.evaluation.evaluate_logits", lambda *_: {}["killed"])
        train_recipe(CLASSIC, DATA, folder, settings=dataclasses.replace(QUIET, keep=1))
    assert folder.checkpoints.steps() == [20]
    before = folder.checkpoints.path(20).stat().st_mtime_ns

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("quickstudy.learning.checkpoints.write_bytes_atomically", full)
        train_recipe(CLASSIC, DATA, folder, settings=dataclasses.replace(QUIET, keep=1))
    assert folder.checkpoints.path(20).stat().st_mtime_ns == before
    assert folder.checkpoints.load(20).step == 20
    assert folder.result() is not None


@pytest.mark.parametrize("place", ["write_bytes_atomically", "write_json_atomically"])
def test_disk_full_while_saving_is_an_error_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classic: Path, place: str
) -> None:
    folder = RunFolder(tmp_path / "run")
    train_until(5, CLASSIC, DATA, folder.path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(WriteError, match="No space left on device"):
        patch.setattr(f"quickstudy.learning.checkpoints.{place}", full)
        train_recipe(CLASSIC, DATA, folder, settings=dataclasses.replace(QUIET, checkpoint_seconds=0))
    assert folder.checkpoints.newest().step == 5  # type: ignore[union-attr]
    assert not folder.is_active()
    train_whole(CLASSIC, DATA, folder.path)
    assert differences(newest(folder.path).state, newest(classic).state) == []


@pytest.mark.parametrize("name", ["append_line", "write_json_atomically"])
def test_disk_full_while_writing_anything_else_is_no_defect_of_ours_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = RunFolder(tmp_path / "run")
    train_until(5, CLASSIC, DATA, folder.path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(WriteError, match="No space left on device"):
        module = "summaries" if name == "append_line" else "folder"
        patch.setattr(f"quickstudy.scratch.{module}.{name}", full)
        train_recipe(CLASSIC, DATA, folder, settings=QUIET)
    assert not folder.is_active()
    train_whole(CLASSIC, DATA, folder.path)
