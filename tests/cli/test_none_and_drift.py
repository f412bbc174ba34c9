"""Examples of none of the classes, and photos that come to look different."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import quickstudy
from drawn_photos import draw_photo
from in_process import Run
from quickstudy.errors import ImageSetError
from quickstudy.images.census import take_census
from quickstudy.images.manifests import Labelling
from quickstudy.models.conversion import convert
from quickstudy.serving.app import make_app
from quickstudy.serving.limits import ServerSettings
from small_backbones import add_small_backbone

KINDS = ("checks", "discs")


def draw_other(number: int) -> Image.Image:
    """A photo of stripes, which are none of the kinds."""
    return draw_photo("stripes", number)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos/` with 32 of two kinds and 24 of `other`, `new/` with 8 more of each; `m.onnx` knows of `other`."""
    folder = tmp_path_factory.mktemp("none")
    for name in (*KINDS, "other"):
        for number in range(40):
            part = "photos" if number < (24 if name == "other" else 32) else "new"
            place = folder / part / name / f"{number:02}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            (draw_other(number) if name == "other" else draw_photo(name, number)).save(place, quality=90)
    add_small_backbone(folder / "cache")
    quickstudy.retrain(folder / "photos", folder / "m.onnx", cache=folder / "cache", backbone="small", none="other")
    return folder


@pytest.fixture
def cached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUICKSTUDY_CACHE", str(folder / "cache"))
    return folder


def test_examples_are_no_class_and_are_used(folder: Path) -> None:
    model = quickstudy.load(folder / "m.onnx")
    model.verify()
    assert model.classes == KINDS
    assert model.refusal is not None
    assert model.refusal.examples >= 15
    assert model.refusal.examples_refused / model.refusal.examples > 0.8
    given = {
        name: [
            model.is_none_of_these(p.strangeness) for p in model.predict_each(sorted((folder / "new" / name).iterdir()))
        ]
        for name in (*KINDS, "other")
    }
    assert np.mean(given["other"]) > 0.8
    assert np.mean([*given["checks"], *given["discs"]]) < 0.3


def test_they_tell_what_would_be_accepted_without(folder: Path, tmp_path: Path) -> None:
    for name in KINDS:
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / name).symlink_to(folder / "photos" / name)
    quickstudy.retrain(tmp_path / "two", tmp_path / "two.onnx", cache=folder / "cache", backbone="small")
    refused = []
    for path in (tmp_path / "two.onnx", folder / "m.onnx"):
        model = quickstudy.load(path)
        others = list(model.predict_each(sorted((folder / "new" / "other").iterdir())))
        refused.append(np.mean([model.is_none_of_these(one.strangeness) for one in others]))
    assert refused[1] >= refused[0]


def test_they_have_roles_and_are_never_tested_on(cached: Path, run: Run) -> None:
    model = quickstudy.load(cached / "m.onnx")
    census = take_census(cached / "photos", None, to_learn=True, labelling=Labelling(none="other"))
    assert model.roles is not None
    for role, kind in (("train", "trained_on"), ("test", "tested_on")):
        digests = census.examples_of_none(role)  # type: ignore[arg-type]
        assert digests
        assert {model.roles.relation(digest) for digest in digests} == {kind}
    found = json.loads(run("evaluate", str(cached / "m.onnx"), str(cached / "photos"), "--json").out)
    assert found["examples_refused"]["n"] == len(census.examples_of_none("test"))
    assert (found["none_images"], found["unknown_images"], found["strangers_refused"]) == (24, {}, None)


def test_evaluate_tells_examples_of_none_from_classes_that_are_not_known(
    cached: Path, tmp_path: Path, run: Run
) -> None:
    held_out = tmp_path / "held_out"
    for place, name in (("new/checks", "checks"), ("new/other", "other"), ("new/discs", "rings")):
        (held_out / name).mkdir(parents=True)
        for file in sorted((cached / place).iterdir())[: 3 if name == "rings" else None]:
            (held_out / name / file.name).write_bytes(file.read_bytes())
    found = json.loads(run("evaluate", str(cached / "m.onnx"), str(held_out), "--json").out)
    assert (found["n"], found["unknown_images"], found["none_images"]) == (8, {"rings": 3}, 16)
    assert (found["strangers_refused"]["n"], found["examples_refused"]["n"]) == (3, 16)
    assert found["examples_refused"]["right"] > 12
    text = run("evaluate", str(cached / "m.onnx"), str(held_out)).out
    refused = found["examples_refused"]["right"]
    assert f"Of 16 images labelled as of none of its classes, it takes {refused} for none of these" in text
    assert "Of 3 images of classes that it does not know" in text
    assert "does not know their classes: 'rings' (3)" in text
    assert "of none of the classes: 16 images\n" in text
    learned = run("evaluate", str(cached / "m.onnx"), str(cached / "photos"), "--all", "--json").out
    assert json.loads(learned)["examples_refused"]["n"] == 24


def test_compare_tells_examples_of_none_whichever_model_knows_of_them(cached: Path, tmp_path: Path, run: Run) -> None:
    for name in KINDS:
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / name).symlink_to(cached / "photos" / name)
    quickstudy.retrain(tmp_path / "two", tmp_path / "two.onnx", cache=cached / "cache", backbone="small")
    models = [str(cached / "m.onnx"), str(tmp_path / "two.onnx")]
    for first, second in (models, models[::-1]):
        found = json.loads(run("compare", first, second, str(cached / "new"), "--json").out)
        assert (found["first"]["n"], found["unknown_images"], found["none_images"]) == (16, {}, 16)
    held_out = tmp_path / "held_out"
    for place, name in (("new/checks", "checks"), ("new/discs", "rings")):
        (held_out / name).mkdir(parents=True)
        for file in (cached / place).iterdir():
            (held_out / name / file.name).write_bytes(file.read_bytes())
    text = run("compare", *models, str(held_out)).out
    assert "Not scored, since not both models know their classes: 'rings' (8)" in text
    (held_out / "checks").rename(held_out / "squares")
    done = run("compare", *models, str(held_out))
    assert "is of a class that both models know: both know 'checks', 'discs'; the images are of" in done.err


def test_a_census_as_a_manifest_keeps_the_examples(cached: Path, tmp_path: Path, run: Run) -> None:
    table = str(tmp_path / "census.csv")
    first = json.loads(run("census", str(cached / "photos"), "--none", "other", "--csv", table, "--json").out)
    again = json.loads(run("census", table, "--none", "other", "--json").out)
    assert [file["label"] for file in again["files"]].count("other") > 10
    assert again["fingerprint"] == first["fingerprint"]


def test_the_share_to_refuse_may_be_said(folder: Path, tmp_path: Path) -> None:
    result = quickstudy.retrain(
        folder / "photos", tmp_path / "m.onnx", cache=folder / "cache", backbone="small", none="other", refuse=0.25
    )
    assert result.refusal is not None
    assert result.refusal.threshold == 0.75
    assert result.refusal.share == pytest.approx(0.25, abs=0.05)
    assert result.examples is not None
    assert result.examples.n == len(result.census.examples_of_none("test"))


def test_retrain_and_report_and_predict_tell(cached: Path, tmp_path: Path, run: Run) -> None:
    text = run(
        "retrain", str(cached / "photos"), "--none", "other", "--backbone", "small", "-o", str(tmp_path / "m.onnx")
    ).out
    assert re.search(r"photos: 64 images of 2 classes and 24 examples of none of them;", text)
    assert "and of the examples, each judged without itself," in text
    assert run("report", str(tmp_path / "m.onnx")).code == 0
    assert "examples of none of the classes, each judged without itself" in (tmp_path / "m.report.html").read_text()
    assert "none of these (nearest:" in run("predict", str(tmp_path / "m.onnx"), str(cached / "new" / "other")).out


def test_exports_keep_it(folder: Path, tmp_path: Path) -> None:
    convert(folder / "m.onnx", tmp_path / "half.onnx", "fp16")
    assert quickstudy.load(tmp_path / "half.onnx").refusal == quickstudy.load(folder / "m.onnx").refusal


def test_without_the_option_it_is_a_class_and_a_line_says_so(cached: Path, run: Run) -> None:
    text = run("census", str(cached / "photos")).out
    assert text.count("add: --none other\n") == text.count("--none other") == 1
    assert "other" in json.loads(run("census", str(cached / "photos"), "--json").out)["classes"]
    with_option = run("census", str(cached / "photos"), "--none", "other")
    assert "--none" not in with_option.out
    assert re.search(r"\(none\) +\d+", with_option.out)


def test_examples_of_few_photos_are_said_to_teach_nothing(cached: Path, tmp_path: Path, run: Run) -> None:
    for name in (*KINDS, "other"):
        shutil.copytree(cached / "new" / name, tmp_path / "few" / name)
    for number in range(4):
        shutil.copy(cached / "photos" / "other" / f"{number:02}.jpg", tmp_path / "few" / "other")
    words = ("--none", "other", "--test-share", "0", "--backbone", "small", "-o", str(tmp_path / "m.onnx"))
    told = run("retrain", str(tmp_path / "few"), *words).out
    assert re.search(r"^None of these: fewer than 50 images .*, and \d+ examples teach it nothing$", told, re.MULTILINE)


def test_a_name_that_is_not_there_and_too_few_are_errors(folder: Path, tmp_path: Path, run: Run) -> None:
    cache = folder / "cache"
    with pytest.raises(ImageSetError, match="labelled 'nothing'"):
        quickstudy.retrain(folder / "photos", tmp_path / "m.onnx", cache=cache, backbone="small", none="nothing")
    for name in (*KINDS, "other"):
        (tmp_path / "few" / name).mkdir(parents=True)
        for file in sorted((folder / "photos" / name).iterdir())[: 5 if name == "other" else 20]:
            (tmp_path / "few" / name / file.name).write_bytes(file.read_bytes())
    told = run("census", str(tmp_path / "few")).out
    assert re.search(
        r"--none other would need 10 of them and 50 of the classes .* there are [345] and \d\d, so that", told
    )
    with pytest.raises(ImageSetError, match="at least 10 are needed"):
        quickstudy.retrain(
            tmp_path / "few", tmp_path / "m.onnx", cache=folder / "cache", backbone="small", none="other"
        )


def test_after_fine_tuning_they_are_used_as_well(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    result = quickstudy.retrain(
        folder / "photos",
        tmp_path / "tuned.onnx",
        cache=folder / "cache",
        backbone="small",
        none="other",
        cut="block_2",
        epochs=2,
    )
    tuned = quickstudy.load(tmp_path / "tuned.onnx")
    tuned.verify()
    if result.refusal is not None:  # with few validation images there is no strangeness
        assert result.refusal.examples > 0


@pytest.fixture(scope="module")
def watched(folder: Path) -> Any:
    app = make_app({"m": folder / "m.onnx"}, ServerSettings())
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


def test_the_server_tells_since_when_photos_look_different(folder: Path, watched: TestClient) -> None:
    ordinary = [file.read_bytes() for name in KINDS for file in sorted((folder / "new" / name).iterdir())]
    strange = [file.read_bytes() for file in sorted((folder / "new" / "other").iterdir())]
    for photo in ordinary:
        watched.post("/predict", content=photo)
    before = watched.get("/model").json()["drift"]
    assert (before["images"], before["since"], before["noticed_after"]) == (len(ordinary), None, None)
    assert 'quickstudy_drift_since_timestamp_seconds{model="m"} 0.0' in watched.get("/metrics").text
    for _ in range(6):
        for photo in strange:
            watched.post("/predict", content=photo)
    after = watched.get("/model").json()["drift"]
    assert after["evidence"] > after["limit"] == 1_000_000
    assert len(ordinary) < after["noticed_after"] <= len(ordinary) + 6 * len(strange)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", after["since"])
    metrics = watched.get("/metrics").text
    assert not re.search(r'drift_since_timestamp_seconds\{model="m"\} 0\.0', metrics)
    assert float(re.findall(r'drift_evidence\{model="m"\} (\S+)', metrics)[0]) > 1_000_000
