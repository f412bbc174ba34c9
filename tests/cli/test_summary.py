"""What `retrain` says at its end: what was there before, too few photos, what was chosen."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from in_process import Run
from quickstudy import load
from quickstudy.models.card import model_card


@pytest.fixture
def here(tmp_path: Path, photos: Path, known_photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `photos/` and a cache that knows them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUICKSTUDY_CACHE", str(tmp_path / "cache"))
    shutil.copytree(known_photos, tmp_path / "cache")
    return tmp_path


def test_a_model_that_is_written_over_is_kept_and_compared(here: Path, run: Run) -> None:
    assert "Before:" not in run("retrain", "photos").out
    first = (here / "photos.onnx").read_bytes()
    assert "Before:" not in run("retrain", "photos").out  # the same to the byte
    assert not (here / "photos.previous.onnx").exists()
    shutil.rmtree(here / "photos" / "stripes")
    (here / "photos.report.html").touch()
    done = run("retrain", "photos")
    assert "Before: 100.0 % on its test with 3 classes; kept as photos.previous.onnx" in done.out
    assert "        on 6 photos that test both: 100.0 % before, 100.0 % now" in done.out
    assert done.out.endswith("(photos.report.html is about the previous model)\n")
    assert (here / "photos.previous.onnx").read_bytes() == first
    shutil.rmtree(here / "cache" / "models")
    (here / "photos" / "discs" / "00.jpg").unlink()
    said = json.loads(run("retrain", "photos", "--json").out)["previous"]
    assert said["classes"] == ["checks", "discs"]
    assert said["common"] is None  # nothing is remembered of what the model before said


def test_another_file_in_its_place_is_kept_too(here: Path, run: Run) -> None:
    (here / "photos.onnx").write_bytes(b"something else")
    assert "Before: kept as photos.previous.onnx" in run("retrain", "photos").out
    assert (here / "photos.previous.onnx").read_bytes() == b"something else"
    run("retrain", "photos", "--test-share", "0")
    assert "No images were kept to test it" in model_card(load(here / "photos.onnx"), "photos.onnx")
    assert "Before: without a test; kept as photos.previous.onnx" in run("retrain", "photos").out


def test_few_photos_are_said(here: Path, run: Run) -> None:
    done = run("retrain", "photos")
    assert "Fewer than 10 photos to train on: 'checks' (7), 'stripes' (8)" in done.out
    assert "Fewer than 5 photos to test: 'discs' (1), 'stripes' (4)" in done.out
    assert "10 photos are kept for the test; with --test-share 0, the model would learn from all\n" in done.out
    assert "in 19 of 20 cases" in done.out
    assert "None of these: fewer than 50 images to tell by what is strange" in done.out
    assert "10 test" in run("census", "photos").out.splitlines()[0]
    for command in ("census", "retrain"):
        assert "--test-share is 0.2 %; expected 0, or 1 to 50 %" in run(command, "photos", "--test-share", "0.2").err
    assert "cross-validation says too little" not in done.out
    told = run("retrain", "photos", "--roles-of", "photos.onnx", "-o", "other.onnx").out
    assert "with --test-share 0 in place of --roles-of, the model would" in told
    unknown = run("retrain", "photos", "--no-roles", "-o", "unknown.onnx")
    assert (unknown.code, run("census", "photos", "--roles-of", "unknown.onnx").code) == (0, 2)
    done = run("retrain", "photos", "--test-share", "0")
    assert "kept for the test" not in done.out
    assert "Test accuracy             not known (no images)\n" in done.out
    assert run("census", "photos", "--test-share", "0").out.startswith("photos: 36 different images; 36 train\n")
    for path in sorted((here / "photos" / "discs").iterdir())[3:]:
        path.unlink()
    assert "Of classes with 2 to 4 photos, cross-validation says too little" in run("retrain", "photos").out


def test_a_class_of_one_photo_may_be_learned_without_a_test(here: Path, run: Run) -> None:
    (here / "photos" / "single").mkdir()
    (here / "photos" / "discs" / "00.jpg").rename(here / "photos" / "single" / "00.jpg")
    lines = run("census", "photos").out.splitlines()
    shutil.copytree(here / "photos" / "single", here / "alone" / "one")
    (here / "alone" / "other").mkdir()
    shutil.copy(here / "photos" / "discs" / "01.jpg", here / "alone" / "other")
    told = run("retrain", "alone").err
    assert told.endswith(
        "'other' has a single usable image, add more, or learn from what there is with --test-share 0\n"
    )
    assert any("'single' has a single image" in line and "with --test-share 0" in line for line in lines)
    assert re.search(r"^  single +1 +0 +0$", run("census", "photos", "--test-share", "0").out, re.MULTILINE)


def test_images_that_cross_validation_cannot_judge_are_told(here: Path, run: Run) -> None:
    for name in ("checks", "discs"):
        for path in sorted((here / "photos" / name).iterdir()):
            (here / "set" / "train" / name).mkdir(parents=True, exist_ok=True)
            path.rename(here / "set" / "train" / name / path.name)
    stripes = sorted((here / "photos" / "stripes").iterdir())
    for number, part in enumerate(("train", "test", "test")):
        (here / "set" / part / "stripes").mkdir(parents=True, exist_ok=True)
        stripes[number].rename(here / "set" / part / "stripes" / stripes[number].name)
    done = run("retrain", "set", "--report")
    assert "n = 24)\n" + 26 * " " + "1 of 25 images is not in it, since it is the only one of its class\n" in done.out
    assert "1 of 25 images is not in it" in (here / "set.report.html").read_text()
    said = json.loads(run("retrain", "set", "--json").out)
    assert (said["cross_validation"]["n"], said["never_held_out"]) == (24, 1)
    assert "n = 24); 1 of 25 images is not in it" in model_card(load(here / "set.onnx"), "set.onnx")
    shutil.rmtree(here / "set" / "train" / "stripes")
    assert "not in it" not in run("retrain", "set").out
    assert json.loads(run("retrain", "set", "--json").out)["never_held_out"] == 0


def test_a_class_that_nothing_tests_is_said_to_be_one(here: Path, run: Run) -> None:
    for name in ("checks", "discs", "stripes"):
        for path in sorted((here / "photos" / name).iterdir()):
            part = "test" if path.name < "04" and name != "discs" else "train"
            (here / "set" / part / name).mkdir(parents=True, exist_ok=True)
            path.rename(here / "set" / part / name / path.name)
    done = run("retrain", "set")
    assert "No photos to test: 'discs'; the test accuracy says nothing of them" in done.out
    assert "Fewer than 5 photos to test: 'checks' (4), 'stripes' (4)" in done.out
    assert "would show of the classes that were tested\n" in done.out


def test_the_choice_of_regularisation_is_a_word(here: Path, run: Run) -> None:
    done = run("retrain", "photos")
    assert re.search(r"^Regularisation chosen: 0\.\d+$", done.out, re.MULTILINE)
    assert "Log losses" not in done.out
    assert re.search(r"^Log losses: (.*, )?0\.1: ", run("retrain", "photos", "--verbose").out, re.MULTILINE)
    assert "Regularisation: 0.05\n" in run("retrain", "photos", "--l2", "0.05").out
