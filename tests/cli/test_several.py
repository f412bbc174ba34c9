"""Several labels an image, through all commands."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from starlette.testclient import TestClient

import quickstudy
from collages import KINDS, make_collages, write_manifest
from in_process import Run
from quickstudy.errors import ModelError, OptionError
from quickstudy.models.card import model_card
from quickstudy.models.conversion import convert
from quickstudy.models.format import sealed
from quickstudy.serving.app import make_app
from quickstudy.serving.limits import ServerSettings
from small_backbones import add_small_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tags.csv` with 160 collages, `new.csv` with 40 more, `m.onnx` made of the first."""
    folder = tmp_path_factory.mktemp("several")
    for name, count, first in (("tags", 160, 0), ("new", 40, 160)):
        made = make_collages(folder / "img", count, side=64, first=first)
        write_manifest(folder / f"{name}.csv", made, folder="img/")
    add_small_backbone(folder / "cache")
    quickstudy.retrain(
        folder / "tags.csv", folder / "m.onnx", cache=folder / "cache", backbone="small", levels="all", several=True
    )
    return folder


@pytest.fixture
def cached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUICKSTUDY_CACHE", str(folder / "cache"))
    return folder


def truth(folder: Path, name: str) -> dict[str, tuple[str, ...]]:
    rows = csv.DictReader((folder / f"{name}.csv").read_text().splitlines())
    return {row["path"]: tuple(filter(None, row["labels"].split("|"))) for row in rows}


def test_the_model_finds_the_parts(folder: Path) -> None:
    model = quickstudy.load(folder / "m.onnx")
    model.verify()
    assert model.classes == KINDS
    assert model.metadata["head"]["kind"] == "several"
    assert set(model.thresholds) == set(KINDS)
    expected = truth(folder, "new")
    found = model.predict_labels([folder / path for path in expected])
    right = [
        (name in labels) == (name in given)
        for labels, given in zip(expected.values(), found, strict=True)
        for name in KINDS
    ]
    assert np.mean(right) > 0.85
    shares = model.predict_proba([folder / path for path in expected])
    assert shares.sum(axis=1).max() > 1.5  # no softmax
    for row, given in zip(shares, found, strict=True):
        assert set(given) == {name for name, share in zip(KINDS, row, strict=True) if share >= model.thresholds[name]}


def test_thresholds_come_from_cross_validation_alone(folder: Path) -> None:
    model = quickstudy.load(folder / "m.onnx")
    training = model.metadata["training"]
    assert model.metadata["head"]["n"] == len(truth(folder, "tags")) - training["test"]["n"]
    assert (training["sets"], training["abstention"], training["strangeness"]) == (None, None, None)


def test_a_stated_precision_makes_thresholds_higher(folder: Path, tmp_path: Path) -> None:
    result = quickstudy.retrain(
        folder / "tags.csv",
        tmp_path / "p.onnx",
        cache=folder / "cache",
        backbone="small",
        levels="last",
        several=True,
        least_precision=0.97,
    )
    plain = quickstudy.retrain(
        folder / "tags.csv", tmp_path / "f.onnx", cache=folder / "cache", backbone="small", levels="last", several=True
    )
    before, after = quickstudy.load(plain.model).thresholds, quickstudy.load(result.model).thresholds
    assert sum(after.values()) > sum(before.values())
    assert result.to_dict()["thresholds"]["precision"] == 0.97


def test_retrain_says_figures_with_intervals(cached: Path, tmp_path: Path, run: Run) -> None:
    words = ("retrain", str(cached / "tags.csv"), "--several", "--backbone", "small", "-o", str(tmp_path / "m.onnx"))
    text = run(*words).out
    assert "160 images with 3 labels" in text
    for called in ("Mean average precision", "F1, micro", "F1, macro", "All labels right", "Thresholds chosen"):
        assert called in text
    found = json.loads(run(*words, "--json").out)
    figures = found["test"]["several"]
    low, high = figures["average_precision"]["interval_95"]
    assert 0 <= low <= figures["average_precision"]["value"] <= high <= 1
    assert set(figures["labels"]) == set(KINDS)
    assert set(figures["labels"]["discs"]) == {"average_precision", "precision", "recall", "f1"}


def test_without_a_test_cross_validation_says_the_figures(cached: Path, tmp_path: Path, run: Run) -> None:
    words = ("retrain", str(cached / "tags.csv"), "--several", "--backbone", "small", "-o", str(tmp_path / "m.onnx"))
    words = (*words, "--test-share", "0")
    text = run(*words).out
    assert re.search(r"^  label +train +test +precision +recall$", text, re.MULTILINE)
    assert "Test accuracy" not in text
    found = json.loads(run(*words, "--json").out)
    assert found["test"] is None
    assert found["cross_validated"]["n"] == 160
    figure = found["cross_validated"]["several"]["average_precision"]
    assert re.search(rf"^Mean average precision +{100 * figure['value']:.1f} % \(", text, re.MULTILINE)
    assert "all labels right where each is given from 50 % on: " in model_card(
        quickstudy.load(tmp_path / "m.onnx"), "m"
    )


def test_two_photos_are_too_few_to_choose_or_judge_by(cached: Path, tmp_path: Path, run: Run) -> None:
    labels = truth(cached, "tags")
    rows = [f"{cached / next(path for path, have in labels.items() if have == (name,))},{name}\n" for name in KINDS[:2]]
    (tmp_path / "two.csv").write_text("path,labels\n" + "".join(rows))
    words = ("retrain", str(tmp_path / "two.csv"), "--several", "--backbone", "small", "-o", str(tmp_path / "m.onnx"))
    text = run(*words, "--test-share", "0").out
    assert "How good it is, is not known" in text
    assert "Thresholds: labels are given from 50 % on, as there are too few images" in text
    found = json.loads(run(*words, "--test-share", "0", "--json").out)
    assert (found["cross_validated"], found["test"], found["never_held_out"]) == (None, None, 2)


def test_photos_kept_for_the_test_are_counted_once_each(cached: Path, tmp_path: Path, run: Run) -> None:
    few = list(truth(cached, "tags").items())[:16]
    (tmp_path / "few.csv").write_text(
        "path,labels\n" + "".join(f"{cached / path},{'|'.join(labels)}\n" for path, labels in few)
    )
    words = ("retrain", str(tmp_path / "few.csv"), "--several", "--backbone", "small", "-o", str(tmp_path / "m.onnx"))
    text, found = run(*words).out, json.loads(run(*words, "--json").out)
    tested = found["test"]["n"]
    assert sum(found["test_counts"].values()) > tested > 1
    assert f"\n{tested} photos are kept for the test; with --test-share 0" in text


def test_retraining_again_compares_with_the_one_before(cached: Path, tmp_path: Path, run: Run) -> None:
    shutil.copy(cached / "m.onnx", tmp_path / "m.onnx")
    words = ("retrain", str(cached / "tags.csv"), "--several", "--backbone", "small", "--levels", "last")
    assert "that test both" in run(*words, "-o", str(tmp_path / "m.onnx")).out


def test_predict_writes_text_json_and_csv(cached: Path, run: Run) -> None:
    paths = [path for path, labels in truth(cached, "new").items()][:12]
    words = ("predict", str(cached / "m.onnx"), *(str(cached / path) for path in paths), "missing.jpg")
    rows = json.loads(run(*words, "--json").out)
    assert [[p["label"] for p in row["predictions"]] for row in rows[:12]] == [row["labels"] for row in rows[:12]]
    lines = run(*words).out.splitlines()
    for row, line in zip(rows, lines, strict=False):
        name = row["labels"][0] if row["labels"] else "none of the labels (nearest:"
        assert f": {name}" in line
    table = list(csv.DictReader(io.StringIO(run(*words, "--csv").out)))
    assert {row["image"] for row in table} == {str(cached / path) for path in paths} | {"missing.jpg"}
    by_image = {row["image"]: row["labels"] for row in table}
    assert [by_image[row["image"]] for row in rows[:12]] == ["|".join(row["labels"]) for row in rows[:12]]
    top = json.loads(run(*words, "--json", "--top", "3").out)
    assert all(len(row["predictions"]) == 3 for row in top[:12])


def test_evaluate_and_compare(cached: Path, tmp_path: Path, run: Run) -> None:
    model = str(cached / "m.onnx")
    found = json.loads(run("evaluate", model, str(cached / "new.csv"), "--json").out)
    assert (found["n"], found["is_test"], found["answered"]) == (40, True, None)
    assert found["several"]["average_precision"]["value"] > 0.8
    assert "Mean average precision" in run("evaluate", model, str(cached / "new.csv")).out
    trained = json.loads(run("evaluate", model, str(cached / "tags.csv"), "--json").out)
    assert trained["n"] == quickstudy.load(model).metadata["training"]["test"]["n"]
    half = str(tmp_path / "half.onnx")
    run("export", model, "--fp16", "--output", half)
    alike = json.loads(run("compare", model, half, str(cached / "new.csv"), "--json").out)
    assert (alike["first"]["n"], alike["differences"]) == (40, [])
    assert alike["average_precision_difference"]["value"] == pytest.approx(0, abs=0.01)
    assert "paired bootstrap" in run("compare", model, half, str(cached / "new.csv")).out


def test_one_class_and_several_labels_are_not_compared(cached: Path, tmp_path: Path, run: Run) -> None:
    one = tmp_path / "photos"
    for number, kind in enumerate(KINDS):
        (one / kind).mkdir(parents=True)
        for place in range(6):
            shutil.copy(cached / "img" / f"{6 * number + place:05}.jpg", one / kind)
    run("retrain", str(one), "--backbone", "small", "-o", str(tmp_path / "one.onnx"))
    done = run("compare", str(tmp_path / "one.onnx"), str(cached / "m.onnx"), str(cached / "new.csv"))
    assert done.code != 0
    assert "compare two of a kind" in done.err


def test_exports_keep_it(cached: Path, tmp_path: Path, run: Run) -> None:
    done = convert(cached / "m.onnx", tmp_path / "half.onnx", "fp16")
    assert done.golden_difference < 0.02
    half = quickstudy.load(tmp_path / "half.onnx")
    assert half.thresholds == quickstudy.load(cached / "m.onnx").thresholds
    assert run("verify", str(tmp_path / "half.onnx")).code == 0
    card = model_card(half, "m")
    assert "any number of 3 labels" in card
    assert "Mean average precision, on the test split" in card
    labels = tmp_path / "labels.txt"
    run("export", str(cached / "m.onnx"), "--labels", str(labels))
    assert labels.read_text().split() == list(KINDS)


def test_golden_checks_notice_another_kind_of_head(cached: Path, tmp_path: Path) -> None:
    proto = onnx.load(cached / "m.onnx")
    [last] = [node for node in proto.graph.node if "probabilities" in node.output]
    last.op_type = "Softmax"
    (tmp_path / "other.onnx").write_bytes(sealed(proto))
    with pytest.raises(ModelError, match="golden checks"):
        quickstudy.load(tmp_path / "other.onnx").verify()


@pytest.mark.parametrize(
    "value", ['{"kind": "ranked"}', '{"kind": "several", "values": [0.5], "precision": null, "n": 1}']
)
def test_a_head_that_contradicts_the_classes_is_refused(cached: Path, tmp_path: Path, value: str) -> None:
    proto = onnx.load(cached / "m.onnx")
    [entry] = [entry for entry in proto.metadata_props if entry.key == "quickstudy.head"]
    entry.value = value
    (tmp_path / "other.onnx").write_bytes(sealed(proto))
    with pytest.raises(ModelError, match="not a model that quickstudy wrote"):
        quickstudy.load(tmp_path / "other.onnx")


def test_serve(cached: Path) -> None:
    model = quickstudy.load(cached / "m.onnx")
    with TestClient(make_app({"m": cached / "m.onnx"}, ServerSettings()), base_url="http://127.0.0.1:8000") as client:
        photo = (cached / "img" / "00161.jpg").read_bytes()
        [answer] = client.post("/predict", content=photo).json()["predictions"]
        assert answer["labels"] == list(model.predict_labels(photo)[0])
        described = client.get("/model").json()
        assert described["thresholds"] == pytest.approx(model.thresholds)
        assert (described["drift"], described["strangeness"]) == (None, None)
        refused = client.post("/predict?sets=95", content=photo)
        assert refused.status_code == 400
        assert "any number of labels" in refused.json()["error"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cut", "block_2"), "--cut trains a network for one class an image"),
        (("--class-weight", "balanced"), "--class-weight weighs classes"),
        (("--refuse", "5"), "--refuse is about images of none of the classes"),
        (("--least-precision", "0"), "--least-precision is 0 %"),
        (("--least-precision", "0.9"), "--least-precision is 0.9 %; expected 1 to below 100 %"),
    ],
)
def test_what_means_nothing_beside_it_is_an_error(cached: Path, run: Run, words: tuple[str, ...], said: str) -> None:
    done = run("retrain", str(cached / "tags.csv"), "--several", "--backbone", "small", *words)
    assert done.code != 0
    assert said in done.err


def test_its_options_alone_are_an_error(cached: Path, run: Run) -> None:
    for command in ("retrain", "census", "audit"):
        done = run(command, str(cached / "tags.csv"), "--separator", "|")
        assert done.code != 0
        assert "--separator goes with --several" in done.err
    for words in (("--sets", "95"), ("--abstain",)):
        assert "any number of labels" in run("predict", str(cached / "m.onnx"), str(cached / "img"), *words).err
    model = quickstudy.load(cached / "m.onnx")
    with pytest.raises(ModelError, match="predict_labels"):
        model.predict(cached / "img" / "00000.jpg")
    with pytest.raises(OptionError):
        quickstudy.retrain(cached / "tags.csv", least_precision=0.9)


def test_audit_names_single_tags(cached: Path, tmp_path: Path, run: Run) -> None:
    labels = truth(cached, "tags")
    wrong = dict(labels)
    some = next(path for path, names in labels.items() if names == ("discs",))
    other = next(path for path, names in labels.items() if "stripes" in names and len(names) > 1)
    wrong[some] = ("checks", "discs")
    wrong[other] = tuple(name for name in labels[other] if name != "stripes")
    shutil.copytree(cached / "img", tmp_path / "img")
    write_manifest(tmp_path / "tags.csv", wrong)
    found = json.loads(run("audit", str(tmp_path / "tags.csv"), "--several", "--backbone", "small", "--json").out)
    named = {(Path(e["image"]).name, e["given"], e["suggested"]) for e in found["label_errors"]}
    assert (Path(some).name, "checks", "not checks") in named or (Path(other).name, "not stripes", "stripes") in named
    assert {share["name"]: share["images"] for share in found["classes"]} == {
        name: sum(name in names for names in wrong.values()) for name in KINDS
    }
    refused = run("audit", str(tmp_path / "tags.csv"), "--several", "--fix", str(tmp_path / "plan.csv"))
    assert refused.code == 2


def test_the_report_has_what_is_missed_with_what(cached: Path, tmp_path: Path, run: Run) -> None:
    target = tmp_path / "r.html"
    assert run("report", str(cached / "m.onnx"), "-o", str(target)).code == 0
    page = target.read_text(encoding="utf-8")
    assert "What is missed with what" in page
    assert "where none was missed; choose a cell" in page
    assert "Mean average precision" in page
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    expected = truth(cached, "tags")
    has = [tuple(KINDS[number] for number in row) for row in data["images"]["has"]]
    assert dict(zip(data["images"]["name"], has, strict=True)) == expected
    assert all(row is not None for row in data["images"]["gets"])


def test_census_counts_each_label(cached: Path, tmp_path: Path, run: Run) -> None:
    found = json.loads(run("census", str(cached / "tags.csv"), "--several", "--json").out)
    assert sum(found["counts"]["train"].values()) > 128
    run("census", str(cached / "tags.csv"), "--several", "--csv", str(tmp_path / "all.csv"))
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert {row["label"] for row in rows} >= {"checks|discs", ""}
