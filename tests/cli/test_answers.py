"""None of these, and how sure: in the model file, and in all that asks it."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from starlette.testclient import TestClient

import quickstudy
from drawn_photos import draw_photo
from in_process import Run
from quickstudy.errors import ModelError, OptionError
from quickstudy.models.card import model_card
from quickstudy.models.conversion import convert
from quickstudy.models.format import STRANGENESS, sealed
from quickstudy.serving.app import make_app
from quickstudy.serving.limits import ServerSettings
from small_backbones import add_small_backbone
from small_models import write_small_model

KINDS = ("checks", "discs", "stripes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos/` with 24 of each kind, `new/` with 8 more of each, `strange/` with 3 others; `m.onnx`, `levels.onnx`."""
    folder = tmp_path_factory.mktemp("answers")
    for name in KINDS:
        for number in range(32):
            place = folder / ("photos" if number < 24 else "new") / name / f"{number:02}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            draw_photo(name, number).save(place, quality=90)
    (folder / "strange").mkdir()
    for colour in ("blue", "red", "yellow"):
        Image.new("RGB", (64, 64), colour).save(folder / "strange" / f"{colour}.png")
    add_small_backbone(folder / "cache")
    for name, levels in (("m", "last"), ("levels", "all")):
        quickstudy.retrain(
            folder / "photos",
            folder / f"{name}.onnx",
            cache=folder / "cache",
            backbone="small",
            levels=levels,
            refuse=0.05,
        )
    return folder


@pytest.fixture(scope="module", params=["m", "levels"])
def model(request: pytest.FixtureRequest, folder: Path) -> Path:
    path: Path = folder / f"{request.param}.onnx"
    return path


def files(folder: Path, part: str) -> list[Path]:
    return sorted(file for file in (folder / part).rglob("*") if file.is_file())


class TestTheFile:
    def test_tells_its_own_kind_from_what_is_strange(self, folder: Path, model: Path) -> None:
        loaded = quickstudy.load(model)
        assert loaded.refusal is not None
        assert loaded.refusal.threshold == pytest.approx(0.95)
        assert loaded.refusal.n == sum(loaded.metadata["training"]["train_counts"].values()) >= 50
        own = [prediction.strangeness for prediction in loaded.predict_each(files(folder, "new"))]
        strange = [prediction.strangeness for prediction in loaded.predict_each(files(folder, "strange"))]
        assert all(0 <= value <= 1 for value in own + strange if value is not None)
        assert np.mean([loaded.is_none_of_these(value) for value in own]) < 0.3
        assert all(loaded.is_none_of_these(value) for value in strange)

    def test_an_image_that_cannot_be_used_has_no_strangeness(self, folder: Path, model: Path) -> None:
        [prediction] = quickstudy.load(model).predict_each(folder / "m.onnx")
        assert (prediction.strangeness, prediction.features) == (None, None)

    def test_golden_checks_notice_another_strangeness(self, model: Path, tmp_path: Path) -> None:
        proto = onnx.load(model)
        quickstudy.load(model).verify()
        [steps] = [tensor for tensor in proto.graph.initializer if tensor.name == f"{STRANGENESS}/steps"]
        steps.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(steps) * np.float32(0.9), steps.name))
        (tmp_path / "other.onnx").write_bytes(sealed(proto))
        with pytest.raises(ModelError, match="strangeness of the golden images"):
            quickstudy.load(tmp_path / "other.onnx").verify()

    def test_an_output_that_is_not_announced_is_refused(self, model: Path, tmp_path: Path) -> None:
        proto = onnx.load(model)
        del proto.graph.output[1]
        (tmp_path / "other.onnx").write_bytes(sealed(proto))
        with pytest.raises(ModelError, match="not a model that quickstudy wrote"):
            quickstudy.load(tmp_path / "other.onnx")

    def test_a_set_holds_the_most_probable_and_grows_with_the_level(self, folder: Path, model: Path) -> None:
        loaded = quickstudy.load(model)
        probabilities = loaded.predict_proba(files(folder, "new"))
        before: list[tuple[str, ...]] = [()] * len(probabilities)
        for level in (0.5, 0.9, 0.999):
            sets = loaded.sets(probabilities, level)
            assert [members[0] for members in sets] == [loaded.rank(row, 1)[0][0] for row in probabilities]
            assert all(set(less) <= set(more) for less, more in zip(before, sets, strict=True))
            before = sets
        assert set(map(len, before)) == {3}  # too few images to promise more
        with pytest.raises(OptionError):
            loaded.sets(probabilities, 95)

    def test_half_precision_keeps_it(self, folder: Path, model: Path, tmp_path: Path) -> None:
        convert(model, tmp_path / "half.onnx", "fp16")
        before, after = quickstudy.load(model), quickstudy.load(tmp_path / "half.onnx")
        assert after.refusal == before.refusal
        both = [[p.strangeness for p in one.predict_each(files(folder, "new"))] for one in (before, after)]
        np.testing.assert_allclose(*np.array(both, float), atol=0.05)
        probabilities = before.predict_proba(files(folder, "new"))
        assert after.sets(probabilities, 0.9) == before.sets(probabilities, 0.9)

    def test_the_card_says_it(self, model: Path) -> None:
        text = model_card(quickstudy.load(model), "m")
        assert re.search(r"Above 0\.95, .* n = 5\d", text)

    def test_too_few_images_have_neither_and_say_so(self, folder: Path, tmp_path: Path, run: Run) -> None:
        for name in KINDS:
            for number in range(6):
                place = tmp_path / "few" / name / f"{number}.jpg"
                place.parent.mkdir(parents=True, exist_ok=True)
                draw_photo(name, number).save(place)
        cache = str(folder / "cache")
        done = run(
            "retrain", str(tmp_path / "few"), "-o", str(tmp_path / "few.onnx"), "--backbone", "small", "--cache", cache
        )
        assert done.code == 0
        assert "None of these: fewer than 50 images" in done.out
        few = quickstudy.load(tmp_path / "few.onnx")
        assert few.refusal is None
        [prediction] = few.predict_each(files(folder, "strange")[0])
        assert prediction.strangeness is None
        assert not few.is_none_of_these(prediction.strangeness)
        with pytest.raises(ModelError, match="of these there were fewer than 20"):
            few.sets(few.predict_proba([]), 0.95)

    def test_a_share_to_refuse_beyond_reason_is_refused(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="--refuse is 60 %"):
            quickstudy.retrain(folder / "photos", tmp_path / "m.onnx", refuse=0.6)


class TestPredict:
    def test_text(self, folder: Path, run: Run) -> None:
        done = run("predict", str(folder / "m.onnx"), str(folder / "strange"), str(folder / "new" / "discs"))
        lines = done.out.splitlines()
        assert all(re.search(r": none of these \(nearest: \w+ (> )?[\d.]+ %\)$", line) for line in lines[:3])
        assert sum("none of these" in line for line in lines[3:]) < 4

    def test_sets(self, folder: Path, run: Run) -> None:
        done = run("predict", str(folder / "m.onnx"), str(folder / "new" / "discs"), "--sets", "99.9")
        assert re.search(r"\{discs, \w+, \w+\}", done.out)

    def test_json(self, folder: Path, run: Run) -> None:
        words = ("predict", str(folder / "m.onnx"), str(folder / "strange" / "blue.png"), "missing.jpg", "--json")
        [row, missing] = json.loads(run(*words, "--sets", "50").out)
        assert (row["none_of_these"], row["set"]) == (True, [row["predictions"][0]["label"]])
        assert 0.95 < row["strangeness"] <= 1
        assert set(missing) == {"image", "error"}
        assert "set" not in json.loads(run(*words).out)[0]

    def test_csv(self, folder: Path, run: Run) -> None:
        words = ("predict", str(folder / "m.onnx"), str(folder / "strange" / "blue.png"), "missing.jpg", "--csv")
        [row, missing] = csv.DictReader(io.StringIO(run(*words, "--sets", "99.9").out))
        assert row["none_of_these"] == "yes"
        assert sorted(row["set"].split("|")) == list(KINDS)
        assert 0.95 < float(row["strangeness"]) <= 1
        assert (missing["strangeness"], missing["none_of_these"], missing["set"]) == ("", "", "")

    def test_a_model_without_either_says_nothing_of_it(self, folder: Path, tmp_path: Path, run: Run) -> None:
        model, image = str(write_small_model(tmp_path / "plain.onnx")), str(folder / "strange" / "blue.png")
        [row] = json.loads(run("predict", model, image, "--json").out)
        assert set(row) == {"image", "predictions"}
        told = run("predict", model, image, "--sets", "95").err
        assert told.startswith("quickstudy: The model cannot give sets: it is a network as it stands, or was written")

    @pytest.mark.parametrize(
        ("words", "said"), [(("--by-class",), "--sets"), (("--sets", "0"), "0 %"), (("--sets", "100"), "100 %")]
    )
    def test_what_cannot_be_asked_is_refused(self, folder: Path, run: Run, words: tuple[str, ...], said: str) -> None:
        done = run("predict", str(folder / "m.onnx"), str(folder / "strange"), *words)
        assert done.code != 0
        assert said in done.err


def test_evaluate_counts_with_and_without_refusal(folder: Path, run: Run, tmp_path: Path) -> None:
    for name in KINDS:
        (tmp_path / "set" / name).mkdir(parents=True)
        for file in files(folder, f"new/{name}"):
            (tmp_path / "set" / name / file.name).write_bytes(file.read_bytes())
    (tmp_path / "set" / "colour").mkdir()
    for file in files(folder, "strange"):
        (tmp_path / "set" / "colour" / file.name).write_bytes(file.read_bytes())
    loaded = quickstudy.load(folder / "m.onnx")
    answered = right = 0
    for name in KINDS:
        for prediction in loaded.predict_each(files(folder, f"new/{name}")):
            assert prediction.probabilities is not None
            if not loaded.is_none_of_these(prediction.strangeness):
                answered += 1
                right += loaded.rank(prediction.probabilities, 1)[0][0] == name
    found: dict[str, Any] = json.loads(run("evaluate", str(folder / "m.onnx"), str(tmp_path / "set"), "--json").out)
    assert (found["answered"]["right"], found["answered"]["n"]) == (right, answered)
    assert (found["strangers_refused"]["right"], found["strangers_refused"]["n"]) == (3, 3)
    assert found["n"] == 24
    text = run("evaluate", str(folder / "m.onnx"), str(tmp_path / "set")).out
    assert f"Without {24 - answered} that it takes for none of these" in text
    assert "Of 3 images of classes that it does not know, it takes 3 for none of these" in text


class TestServe:
    @pytest.fixture(scope="class")
    @staticmethod
    def client(folder: Path) -> Any:
        app = make_app({"m": folder / "m.onnx"}, ServerSettings())
        with TestClient(app, base_url="http://127.0.0.1:8000") as client:
            yield client

    def test_answers_tell_strangeness_and_sets(self, folder: Path, client: TestClient) -> None:
        blue = (folder / "strange" / "blue.png").read_bytes()
        [plain] = client.post("/predict", content=blue).json()["predictions"]
        assert plain["none_of_these"] is True
        assert 0.95 < plain["strangeness"] <= 1
        assert "set" not in plain
        [asked] = client.post("/predict?sets=99.9&by_class=1", content=blue).json()["predictions"]
        assert sorted(asked["set"]) == list(KINDS)
        described = client.get("/model").json()["strangeness"]
        assert described == quickstudy.load(folder / "m.onnx").metadata["training"]["strangeness"]

    @pytest.mark.parametrize("query", ["sets=x", "sets=0", "sets=100", "sets=", "sets=nan", "by_class=1"])
    def test_impossible_sets_are_400(self, folder: Path, client: TestClient, query: str) -> None:
        answer = client.post(f"/predict?{query}", content=(folder / "strange" / "blue.png").read_bytes())
        assert answer.status_code == 400
        assert "sets" in answer.json()["error"]


def test_after_fine_tuning_the_validation_images_are_judged(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    for name in KINDS:
        for number in range(40):
            split = "validation" if number % 2 else "train"
            place = tmp_path / "photos" / split / name / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            draw_photo(name, number).save(place)
    result = quickstudy.retrain(
        tmp_path / "photos",
        tmp_path / "tuned.onnx",
        cache=folder / "cache",
        backbone="small",
        cut="block_2",
        epochs=2,
    )
    assert result.refusal is not None
    tuned = quickstudy.load(tmp_path / "tuned.onnx")
    tuned.verify()
    judged = {row["kept"]["epoch"] for row in result.tuning} != {0}
    assert tuned.refusal is not None
    assert tuned.refusal.n == (60 if judged else 120)
    assert tuned.metadata["training"]["sets"]["by"] == ("validation" if judged else "cross-validation")
