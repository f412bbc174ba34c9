"""`compare`, `report`, `retrain --report` and `predict --abstain` as a user types them."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drawn_photos import draw_photo
from in_process import Run
from quickstudy.cli.report import sees_browser
from quickstudy.errors import ModelError
from quickstudy.models.loading import load
from small_backbones import add_small_backbone
from small_models import write_small_model

SMALL = ("--backbone", "small")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos of which some are half of one class and half of another, so that not all is right."""
    folder = tmp_path_factory.mktemp("trust")
    names = ("checks", "discs", "stripes")
    for name in names:
        (folder / "photos" / name).mkdir(parents=True)
    for name in names:
        for number in range(20):
            picture, label = draw_photo(name, number), name
            if number % 4 == 0:
                another = names[(names.index(name) + 1) % 3]
                picture = Image.blend(picture, draw_photo(another, number), 0.5)
                label = name if number % 8 else another
            picture.save(folder / "photos" / label / f"{name}{number:02}.jpg", quality=90)
    add_small_backbone(folder / "cache")
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("QUICKSTUDY_CACHE", str(place / "cache"))
    return place


def test_retrain_points_to_the_report_and_writes_it(run: Run, here: Path) -> None:
    done = run("retrain", "photos/", *SMALL)
    assert done.code == 0, done.err
    assert done.out.endswith("Report: quickstudy report photos.onnx\n")
    done = run("retrain", "photos/", *SMALL, "--report")
    assert done.out.endswith("Report: photos.report.html\n")
    assert (here / "photos.report.html").read_text().startswith("<!doctype html>")
    assert json.loads(run("retrain", "photos/", *SMALL, "--report", "--json").out)["report"] == "photos.report.html"
    assert json.loads(run("retrain", "photos/", *SMALL, "--json").out)["report"] is None


def test_report_finds_the_images_itself(run: Run, here: Path) -> None:
    run("retrain", "photos/", *SMALL)
    done = run("report", "photos.onnx", "--output", "elsewhere.html", "--no-open")
    assert done.code == 0, done.err
    assert done.out.startswith("Report: elsewhere.html (")
    done = run("report", "photos.onnx", "--cache", "empty")
    assert done.code == 2
    assert "quickstudy report photos.onnx photos/" in done.err


def test_the_browser_is_opened_only_where_somebody_sees_it(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    run("retrain", "photos/", *SMALL)
    run("report", "photos.onnx")  # not a terminal
    assert not opened
    assert not sees_browser()
    run("report", "photos.onnx", "--open")
    assert opened == [(here / "photos.report.html").resolve().as_uri()]


def test_abstain_in_all_its_forms(run: Run, here: Path) -> None:
    run("retrain", "photos/", *SMALL, "--refuse", "0")  # or the one image that it is unsure of would be none of these
    model = json.loads(run("retrain", "photos/", *SMALL, "--refuse", "0", "--json").out)["model"]
    from quickstudy import load

    classifier = load(model)
    threshold = classifier.threshold()
    said = classifier.metadata["training"]["abstention"]
    assert said["by"] == "cross-validation"
    wrong = classifier.metadata["training"]["cross_validation"]
    assert 1 - said["right"] / said["answered"] <= (1 - wrong["accuracy"]) / 2
    images = [str(path) for path in sorted((here / "photos").rglob("*.jpg"))]
    (here / "broken.jpg").write_bytes(b"<html>")
    sure = [bool(row.max() >= threshold) for row in classifier.predict_proba(images)]
    assert 0 < sum(sure) < len(sure)
    lines = run("predict", model, *images, "--abstain").out.splitlines()
    assert [": don't know (best guess " in line for line in lines] == [not one for one in sure]
    rows = json.loads(run("predict", model, *images, "broken.jpg", "--abstain", "--json").out)
    assert [row.get("answered") for row in rows] == [*sure, None]
    table = list(csv.DictReader(io.StringIO(run("predict", model, *images, "broken.jpg", "--abstain", "--csv").out)))
    assert [row["answered"] for row in table] == [*("yes" if one else "no" for one in sure), "no"]
    names = classifier.predict(images, abstain=True)
    assert [name is not None for name in names] == sure
    assert "answered" not in run("predict", model, images[0], "--json").out


def test_a_model_without_a_threshold_says_so(run: Run, here: Path, photo_source: Path) -> None:
    shutil.copytree(photo_source, here / "easy", dirs_exist_ok=True)
    run("retrain", "easy", *SMALL)
    few = load(here / "easy.onnx").metadata["training"]["cross_validation"]["n"]
    assert f"judged by in cross-validation, and there were {few}. Retrain with more images" in (
        run("predict", "easy.onnx", "easy", "--abstain").err
    )
    run("retrain", "easy", *SMALL, "--test-share", "0")
    done = run("predict", "easy.onnx", "easy", "--abstain")
    assert done.code == 2
    assert "no threshold for 'don't know': its cross-validation made no mistake" in done.err
    assert run("predict", "easy.onnx", "easy").code == 0


def test_compare_prints_and_gives_json(run: Run, here: Path, photo_source: Path) -> None:
    run("retrain", "photos/", *SMALL)
    shutil.copytree(photo_source, here / "easy", dirs_exist_ok=True)
    (here / "other").mkdir(exist_ok=True)
    run("retrain", "easy", *SMALL, "--output", "other/easy.onnx")
    done = run("compare", "photos.onnx", "other/easy.onnx", "photos")
    assert done.code == 0, done.err
    for words in ("95 % interval", "paired", "McNemar's exact p = ", "Difference: "):
        assert words in done.out
    found = json.loads(run("compare", "photos.onnx", "other/easy.onnx", "photos", "--json").out)
    assert found["first"]["n"] == found["second"]["n"] < 60
    assert found["difference"] == pytest.approx(found["second"]["accuracy"] - found["first"]["accuracy"])
    run("retrain", "photos/", *SMALL, "--no-roles", "--output", "other/same.onnx")
    alike = run("compare", "photos.onnx", "other/same.onnx", "photos").out
    assert ("Both are right on the same images" in alike, "may be chance" in alike) == (True, False)
    assert run("compare", "photos.onnx", "missing.onnx", "photos").code == 2


@pytest.mark.parametrize(
    ("training", "cause"),
    [
        ({}, "written before quickstudy set thresholds"),
        ({"abstention": None, "cross_validation": {"accuracy": 1.0}}, "its cross-validation made no mistake"),
        ({"abstention": None, "cross_validation": {"accuracy": 0.9}}, "at none are 30 or more"),
        ({"abstention": None, "cross_validation": {"accuracy": 1.0, "n": 4}}, "at least 30 images"),
        ({"abstention": None, "cross_validation": {"accuracy": None, "n": 0}}, "and there were 0. Retrain with more"),
        (
            {"abstention": None, "cross_validation": {"accuracy": 1.0}, "fine_tuning": {"kept_epoch": 1}},
            "at none are 30 or more",
        ),
    ],
)
def test_why_there_is_no_threshold(tmp_path: Path, training: dict[str, Any], cause: str) -> None:
    model = load(write_small_model(tmp_path / "m.onnx"))
    model.metadata["training"] = training
    with pytest.raises(ModelError) as caught:
        model.threshold()
    assert str(caught.value).startswith("The model has no threshold for 'don't know': ")
    assert cause in str(caught.value)
