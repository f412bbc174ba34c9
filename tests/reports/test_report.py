"""The report: what it says is what was found, and what the user's names contain stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quickstudy import report, retrain
from quickstudy.errors import ImageSetError, ModelError, WriteError
from quickstudy.learning.calibration import Bin
from quickstudy.models.loading import load
from quickstudy.progress import silent
from quickstudy.reports.charts import reliability_chart
from quickstudy.reports.judged import judge_images
from quickstudy.retraining.record import load_record
from reported import CLASSES, Reported, make_report
from small_backbones import add_small_backbone

ONE_OR_MANY = {
    "label-errors": ("label to look at", "labels to look at"),
    "duplicates": ("group of duplicates", "groups of duplicates"),
    "outliers": ("outlier", "outliers"),
    "quality-flaws": ("quality flaw", "quality flaws"),
}


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    return make_report(tmp_path_factory)


@pytest.fixture(scope="module")
def page(reported: Reported) -> str:
    return reported.page.read_text(encoding="utf-8")


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_names_of_the_user_make_no_markup(page: str) -> None:
    parser = _Tags()
    parser.feed(page)
    assert parser.tags.count("script") == 2
    assert not {"img", "b", "i", "iframe", "object", "link"} & set(parser.tags)
    assert not [name for name, _ in parser.attributes if name.startswith("on")]
    assert not [value for name, value in parser.attributes if name in ("src", "href") and not value.startswith("#")]
    assert "window.hacked = 1</script>" not in page


def test_the_policy_allows_its_own_script_and_style_and_nothing_else(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].replace("&#39;", "'").split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        text = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(text) == 1
        digest = base64.b64encode(hashlib.sha256(text[0].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_the_data_are_those_of_the_training(reported: Reported, page: str) -> None:
    data = data_of(page)
    images = data["images"]
    assert data["classes"] == sorted(CLASSES.values())
    assert len(images["name"]) == 128
    metadata = load(reported.model).metadata["training"]
    for way, name in ((0, "cross_validation"), (2, "test")):
        rows = [row for row, by in enumerate(images["by"]) if by == way]
        assert len(rows) == metadata[name]["n"]
        assert sum(images["has"][row] == images["gets"][row] for row in rows) == metadata[name]["right"]
    assert all(0 <= place <= 1 for axis in "xy" for place in images[axis])


def test_planted_faults_are_on_the_page(page: str) -> None:
    data = data_of(page)
    names = data["images"]["name"]
    groups = [{names[member] for member in group["members"]} for group in data["duplicates"]]
    assert any("again.jpg" in group and len(group) == 2 for group in groups)
    swapped = [error for error in data["labelErrors"] if names[error[0]] == "swapped.jpg"]
    assert swapped and swapped[0][2] == CLASSES["discs"]
    assert "&lt;i&gt;broken&lt;|i&gt;.jpg" in page
    assert "an HTML page, not an image" in page


def test_one_of_a_kind_is_said_in_the_singular(page: str) -> None:
    found = re.findall(r'<a href="#([\w-]+)">([\d,]+) ([a-z ]+)</a></li>', page)
    assert len(found) >= 5
    for place, number, name in found:
        assert f'id="{place}"' in page
        one, many = ONE_OR_MANY.get(place, (name, name))
        assert name in (one if number == "1" else many, "on both sides of the split", "under several labels")


def test_every_chart_is_well_formed(page: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) >= 2
    for chart in charts:
        root = ET.fromstring(chart)
        assert root.get("aria-label")
        for element in root.iter():
            assert "nan" not in str(element.attrib)


def test_the_same_report_again(reported: Reported, tmp_path: Path) -> None:
    again = report(reported.model, output=tmp_path / "again.html", cache=reported.cache)
    assert again.read_bytes() == reported.page.read_bytes()


def test_a_report_overwrites_nothing_but_reports(reported: Reported, tmp_path: Path) -> None:
    model = Path(shutil.copy(reported.model, tmp_path / "model.onnx"))
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    for target in (model, other, tmp_path):
        with pytest.raises(WriteError, match=f"'{target}'"):
            report(model, output=target, cache=reported.cache)
    assert (model.read_bytes(), other.read_text()) == (reported.model.read_bytes(), "mine")


def test_without_memory_the_images_must_be_named_and_are_worked_out_again(reported: Reported, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(reported.cache, cache)
    shutil.rmtree(cache / "models")
    with pytest.raises(ModelError, match=r"does not know where.*quickstudy report .*model\.onnx photos/"):
        report(reported.model, cache=cache)
    remembered = judge_images(reported.model, None, reported.cache, silent)
    worked_out = judge_images(reported.model, reported.manifest, cache, silent)
    assert remembered.remembered and not worked_out.remembered
    assert remembered.unchanged and worked_out.unchanged
    assert worked_out.by == remembered.by
    difference = np.abs(worked_out.evidence.probabilities - remembered.evidence.probabilities)
    assert difference.max() < 0.05  # cross-validation fits to within a thousandth of a nat, from another start


def test_images_that_have_gone_or_changed(reported: Reported, tmp_path: Path, photos: Path) -> None:
    model, cache = tmp_path / "photos.onnx", tmp_path / "cache"
    shutil.copytree(reported.cache / "backbones", cache / "backbones")
    retrain(photos, model, cache=cache, backbone="small")
    shutil.copy(reported.folder / "swapped.jpg", photos / "discs" / "new.jpg")
    changed = judge_images(model, None, cache, silent)
    assert not changed.unchanged
    assert changed.by.count(None) == 1
    assert "some were added" in report(model, cache=cache).read_text()
    photos.rename(tmp_path / "moved")
    with pytest.raises(ImageSetError, match="no longer there"):
        report(model, cache=cache)
    moved = judge_images(model, tmp_path / "moved", cache, silent)
    assert moved.remembered
    assert moved.by == changed.by


def test_few_images_make_a_report_without_a_forecast(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    add_small_backbone(cache)
    for path in [path for path in photos.rglob("*.jpg") if int(path.stem) > 3]:
        path.unlink()
    retrain(photos, tmp_path / "few.onnx", cache=cache, backbone="small")
    text = report(tmp_path / "few.onnx", cache=cache).read_text()
    assert "What more images would bring" not in text
    assert "Leave-one-out" in text
    (judged,) = set(re.findall(r"against confidence in (\d+) bins of an image each\s+\(\1 images, cross-val", text))
    assert 3 <= int(judged) < 15


def test_a_report_on_photos_of_which_none_could_be_judged_says_so(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    add_small_backbone(cache)
    for path in [path for path in photos.rglob("*.jpg") if path.stem != "00"]:
        path.unlink()
    retrain(photos, tmp_path / "alone.onnx", cache=cache, backbone="small", test_share=0)
    text = report(tmp_path / "alone.onnx", cache=cache).read_text()
    assert "How good the model is, is not known" in text
    assert "95 % intervals" not in text
    assert "This cache does not have" not in text


def test_what_is_no_model_of_retraining(reported: Reported, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such model"):
        report(tmp_path / "nothing.onnx")
    with pytest.raises(WriteError, match="Name another place with --output"):
        report(reported.model, output=reported.model / "x.html", cache=reported.cache)


def test_a_damaged_memory_is_none(reported: Reported, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(reported.cache / "models", cache / "models")
    place = next((cache / "models").iterdir())
    whole = json.loads(place.read_text())
    assert load_record(cache, reported.model) is not None
    for damage in (
        {**whole, "version": 0},
        {**whole, "unseen": [{**whole["unseen"][0], "logits": "AAAA"}]},
        {**whole, "unseen": [{**whole["unseen"][0], "by": "guess"}]},
        [],
    ):
        place.write_text(json.dumps(damage))
        assert load_record(cache, reported.model) is None
    place.write_bytes(b"\x00{")
    assert load_record(cache, reported.model) is None


def test_a_fine_tuned_model_is_judged_by_what_it_said_itself(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    cache = tmp_path / "cache"
    add_small_backbone(cache)
    result = retrain(
        photos, tmp_path / "tuned.onnx", backbone="small", cut="block_1", l2=300.0, epochs=12, rate=5e-3, cache=cache
    )
    assert result.tuning[0]["kept"]["epoch"]
    judged = judge_images(result.model, None, cache, silent)
    assert judged.fine_tuned
    validation, test = judged.score("validation"), judged.score("test")
    assert validation is not None and test is not None and result.test is not None
    kept = result.tuning[0]["kept"]
    assert (validation.right, validation.n) == (kept["right"], kept["n"])
    assert test == result.test.score
    model = load(result.model)
    rows = judged.rows("test")
    said = model.predict_proba([judged.evidence.images[row].path for row in rows])
    np.testing.assert_allclose(judged.evidence.probabilities[rows], said, atol=5e-3)
    learned = judged.rows("cross-validation")
    assert {judged.evidence.images[row].split for row in learned} == {"train"}
    text = report(result.model, cache=cache).read_text()
    assert "before fine-tuning" in text


def test_a_chart_is_whole_whatever_its_numbers_are() -> None:
    bins = [
        Bin(low=0, high=0.001, confidence=0.0002, accuracy=0.0, n=1),
        Bin(low=0.999, high=1, confidence=0.9999, accuracy=1.0, n=2000),
    ]
    titles = [title.text for title in ET.fromstring(reliability_chart(bins, bins)).iter("title")]
    assert titles == [
        "1 image: confidence < 0.1 %, accuracy 0.0 %",
        "2,000 images: confidence > 99.9 %, accuracy 100.0 %",
    ]
