"""A run's folder: one trainer at a time, one configuration, lines that a kill may have cut off."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import filelock
import numpy as np
import pytest
from PIL import Image
from small_runs import CLASSIC, FAST, hold, small_data

from quick_processes import quick_processes
from quickstudy.errors import ImageSetError, OptionError, RunError, WriteError
from quickstudy.scratch.data import DataFacts, load_training_data
from quickstudy.scratch.folder import EVALUATIONS, METRICS, RunFolder, append_line
from quickstudy.scratch.recipe import Recipe

FACTS = small_data().facts


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """The folder of a run that has begun."""
    run = RunFolder(tmp_path / "run")
    run.begin(CLASSIC, FACTS)
    return run


def test_what_was_begun_is_read_back(folder: RunFolder) -> None:
    again = RunFolder.existing(folder.path)
    assert again.recipe() == CLASSIC
    assert again.facts() == FACTS
    again.begin(CLASSIC, FACTS)  # the same run goes on


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 0.05}, "rate is 0.1 there, 0.05 here"),
        ({"contrast": "0.5,1.5"}, "contrast is [0.2, 1.8] there, [0.5, 1.5] here"),
        ({"seed": 4, "batch": 8}, "batch is 16 there, 8 here; seed is 3 there, 4 here"),
    ],
)
def test_another_configuration_is_refused_by_the_options_name(
    folder: RunFolder, options: dict[str, object], words: str
) -> None:
    before = (folder.path / "config.json").read_bytes()
    with pytest.raises(RunError) as caught:
        folder.begin(CLASSIC.with_options(options), FACTS)
    assert words in str(caught.value)
    assert "--run" in str(caught.value)
    assert (folder.path / "config.json").read_bytes() == before


def test_another_recipe_or_other_images_are_refused(folder: RunFolder) -> None:
    with pytest.raises(RunError, match="the recipe is cifar10-classic there, cifar10-fast here"):
        folder.begin(FAST, FACTS)
    with pytest.raises(RunError, match="the training images are others"):
        folder.begin(CLASSIC, small_data(train=101).facts)


@pytest.mark.parametrize(
    "text", ["", "{", "[1, 2]", "null", '"text"', '{"recipe": "cifar10-classic"}', '{"recipe": 5, "options": {}}',
             '{"recipe": "cifar10-classic", "options": 7, "data_facts": null}', "\x00\x00"]
)  # fmt: skip
def test_a_damaged_configuration_is_an_error_that_names_it(folder: RunFolder, text: str) -> None:
    (folder.path / "config.json").write_text(text)
    with pytest.raises(RunError, match=r"config\.json"):
        folder.recipe()
    with pytest.raises(RunError, match=r"config\.json"):
        folder.facts()
    with pytest.raises(RunError):
        folder.begin(CLASSIC, FACTS)


def test_a_configuration_of_another_version(folder: RunFolder) -> None:
    values = json.loads((folder.path / "config.json").read_text())
    values["options"]["teleportation"] = 1
    (folder.path / "config.json").write_text(json.dumps(values))
    with pytest.raises(RunError, match="no option 'teleportation'"):
        folder.recipe()


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run: it has no config\.json; start one with: quickstudy train"):
        RunFolder.existing(tmp_path)
    folder = RunFolder(tmp_path / "nowhere")
    assert not folder.is_active()
    assert not (tmp_path / "nowhere").exists(), "looking changes nothing"
    assert folder.result() is None
    assert folder.lines(METRICS) == []
    assert folder.best_step() is None


def test_a_place_where_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    for place in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(WriteError, match="--run"), RunFolder(place).locked():
            pass
        with pytest.raises(WriteError, match="--run"):
            RunFolder(place).begin(CLASSIC, FACTS)


def test_the_lock_keeps_a_second_process_out_until_the_first_is_killed(folder: RunFolder) -> None:
    context = quick_processes()
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(folder.path, theirs))
    process.start()
    try:
        assert ours.poll(60)
        assert ours.recv() == "locked"
        assert folder.is_active()
        with pytest.raises(RunError, match="Another process is training in"), folder.locked():
            pass
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert not folder.is_active()
        with folder.locked():
            assert folder.is_active()
        assert not folder.is_active()
    finally:
        process.kill()
        process.join()


def test_the_lock_waits_for_an_evaluator_that_looks_for_an_instant(folder: RunFolder) -> None:
    looking = filelock.FileLock(folder.path / "lock", thread_local=False)
    looking.acquire()
    end = threading.Timer(0.1, looking.release)
    end.start()
    with folder.locked():
        assert folder.is_active()
    end.join()


def test_lines_leave_out_what_was_cut_off(folder: RunFolder) -> None:
    for step in (1, 2):
        append_line(folder.path / METRICS, {"step": step})
    with (folder.path / METRICS).open("a") as file:
        file.write('{"step": 3, "lo')
    assert folder.lines(METRICS) == [{"step": 1}, {"step": 2}]


def test_a_line_after_one_that_was_cut_off_is_not_lost(folder: RunFolder) -> None:
    (folder.path / METRICS).write_text('{"step": 1}\n{"step": 2, "lo')
    append_line(folder.path / METRICS, {"step": 3})
    assert folder.lines(METRICS) == [{"step": 1}, {"step": 3}]


def test_lines_of_other_things(folder: RunFolder) -> None:
    (folder.path / METRICS).write_bytes(b'5\n\n"text"\n\xff\xfe\n{"step": 1}\n')
    assert folder.lines(METRICS) == [{"step": 1}]


def test_steps_that_will_be_made_again_are_forgotten(folder: RunFolder) -> None:
    for step in (10, 20, 30):
        append_line(folder.path / METRICS, {"step": step, "text": "é"})
    with (folder.path / METRICS).open("a") as file:
        file.write('{"step": 40')
    folder.forget_after(METRICS, 20)
    assert folder.lines(METRICS) == [{"step": 10, "text": "é"}, {"step": 20, "text": "é"}]
    append_line(folder.path / METRICS, {"step": 30})
    assert [line["step"] for line in folder.lines(METRICS)] == [10, 20, 30]
    folder.forget_after("nothing.jsonl", 1)
    assert not (folder.path / "nothing.jsonl").exists()


def test_result(folder: RunFolder) -> None:
    assert folder.result() is None
    folder.finish({"steps": 5})
    assert folder.result() == {"steps": 5}
    (folder.path / "result.json").write_text('{"steps": 5')
    assert folder.result() is None


def test_the_best_step_is_the_latest_of_the_best_on_the_validation_images(folder: RunFolder) -> None:
    for step in (10, 20, 30, 40, 50, 60):
        folder.checkpoints.save(step, {})
    folder.checkpoints.keep = 99

    def judge(step: int, accuracy: float, split: str = "validation", *, averaged: bool = True) -> None:
        line = {"step": step, "split": split, "averaged": averaged, "accuracy": accuracy}
        append_line(folder.path / EVALUATIONS, line)

    for step, accuracy in ((20, 0.5), (30, 0.75), (40, 0.75), (50, 0.25)):
        judge(step, 1 - accuracy, "test")
    assert folder.best_step() is None, "test images choose nothing"
    judge(20, 1.0, averaged=False)
    assert folder.best_step() == 20
    for step, accuracy in ((20, 0.5), (30, 0.75), (40, 0.75), (50, 0.25), (70, 1.0)):
        judge(step, accuracy)
    append_line(folder.path / EVALUATIONS, {"step": 50, "split": "validation"})
    assert folder.best_step() == 40, "of those that are there, and as evaluation and export take them"
    append_line(folder.path / METRICS, {"step": 60, "split": "validation", "accuracy": 0.8})
    append_line(folder.path / METRICS, {"step": 50, "split": "test", "accuracy": 0.9})
    assert folder.best_step() == 60
    assert folder.checkpoint("best").step == 60  # type: ignore[union-attr]
    assert folder.checkpoint("30").step == 30  # type: ignore[union-attr]
    for wrong in ("31", "-1", "latest", ""):
        with pytest.raises(OptionError, match=f"checkpoint is '{wrong}'.*20, 30, 40, 50, 60"):
            folder.checkpoint(wrong)


def test_where_nothing_was_validated_nothing_is_best(folder: RunFolder) -> None:
    folder.checkpoints.save(20, {})
    append_line(folder.path / EVALUATIONS, {"step": 20, "split": "test", "averaged": True, "accuracy": 1.0})
    with pytest.raises(OptionError, match=r"validation images.*20"):
        folder.checkpoint("best")


def test_images_are_known_by_what_they_are_not_by_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def photos(place: Path, *, seed: int = 0, test_seed: int = 1) -> None:
        for split, number in (("train", seed), ("test", test_seed)):
            draws = np.random.Generator(np.random.PCG64(number))
            for name in ("day", "night"):
                (place / split / name).mkdir(parents=True)
                for image in range(4):
                    pixels = draws.integers(0, 256, (12, 12, 3), np.uint8)
                    Image.fromarray(pixels).save(place / split / name / f"{image}.png")

    def facts(data: str) -> DataFacts:
        return load_training_data(data, image_size=12, validation=0).facts

    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    photos(Path("photos"))
    recipe = CLASSIC.with_options({"data": "photos", "image_size": 12})
    run = RunFolder(tmp_path / "run")
    run.begin(recipe, facts("photos"))
    monkeypatch.chdir(tmp_path)
    assert len(run.load_data().test) == 8, "from another folder"
    Path("home/photos").rename("elsewhere")
    with pytest.raises(ImageSetError, match=r"photos.*--data"):
        run.load_data()
    assert len(run.load_data("elsewhere").test) == 8
    run.begin(recipe.with_options({"data": "elsewhere"}), facts("elsewhere"))
    assert len(run.load_data().test) == 8, "it remembers where they were last"
    for other, words in (({"seed": 9}, "the training images are others"), ({"test_seed": 9}, "the test .*are others")):
        shutil.rmtree("elsewhere")
        photos(Path("elsewhere"), **other)
        with pytest.raises(RunError, match=words):
            run.load_data()
        with pytest.raises(RunError, match=words):
            run.begin(recipe.with_options({"data": "elsewhere"}), facts("elsewhere"))


def test_a_recipe_goes_through_the_folder_unchanged(tmp_path: Path) -> None:
    recipe: Recipe = FAST.with_options({"widths": "4,8,16", "rate": 1 / 3, "seed": 2**62 + 1})
    run = RunFolder(tmp_path / "run")
    run.begin(recipe, FACTS)
    assert run.recipe() == recipe
