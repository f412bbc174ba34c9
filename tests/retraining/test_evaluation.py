"""Scores against numbers from textbooks and by hand; models against folders whose classes differ from theirs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import quickstudy
from quickstudy.backbones.engines.named import Prefix
from quickstudy.backbones.loading import load_backbone
from quickstudy.errors import ImageSetError, ModelError
from quickstudy.images.decoding import decode, to_input
from quickstudy.learning.scores import Score, score_predictions
from quickstudy.learning.selection import fit_head
from quickstudy.models.assemble import LinearHead, write_model
from quickstudy.models.loading import load
from quickstudy.models.model import Model
from quickstudy.retraining.evaluation import evaluate
from quickstudy.retraining.retrain import retrain


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_the_interval_is_wilsons(right: int, n: int, low: float, high: float) -> None:
    assert Score(right=right, n=n).interval == pytest.approx((low, high), abs=6e-5)


def test_a_score_of_nothing_says_nothing() -> None:
    score = Score(right=0, n=0)
    assert np.isnan(score.accuracy)
    assert score.interval == (0.0, 1.0)
    assert score.to_dict() == {"accuracy": None, "right": 0, "n": 0, "interval_95": [0.0, 1.0]}


def test_predictions_are_scored_as_by_hand() -> None:
    truth = ["cat", "cat", "cat", "dog", "dog", "bird", "bird"]
    predicted = ["cat", "dog", "dog", "dog", "cat", "dog", "cat"]
    evaluation = score_predictions(truth, predicted, ("bird", "cat", "cow", "dog"), unknown={"fish": 3})
    assert (evaluation.score.right, evaluation.score.n) == (2, 7)
    bird, cat, cow, dog = evaluation.classes
    assert (bird.n, bird.predicted, bird.right, bird.precision, bird.recall) == (2, 0, 0, None, 0)
    assert (cat.n, cat.predicted, cat.right) == (3, 3, 1)
    assert (cat.precision, cat.recall) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (cow.n, cow.predicted, cow.precision, cow.recall) == (0, 0, None, None)
    assert (dog.n, dog.predicted, dog.precision, dog.recall) == (2, 4, 0.25, 0.5)
    assert [(c.truth, c.predicted, c.count) for c in evaluation.confusions] == [
        ("cat", "dog", 2),
        ("bird", "cat", 1),
        ("bird", "dog", 1),
        ("dog", "cat", 1),
    ]
    assert evaluation.missing == ("cow",)
    assert evaluation.unknown == {"fish": 3}
    values = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert values["classes"][3] == {
        "name": "dog",
        "n": 2,
        "predicted": 4,
        "right": 1,
        "precision": 0.25,
        "recall": 0.5,
    }


def test_no_predictions_are_no_trouble() -> None:
    evaluation = score_predictions([], [], ("a", "b"))
    assert evaluation.score.n == 0
    assert evaluation.missing == ("a", "b")
    assert evaluation.confusions == ()


@pytest.fixture(scope="module")
def path(photo_source: Path, small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the three classes that calls all its training images by their names; in an order of its own."""
    classes = ("stripes", "checks", "discs")
    backbone, photos = load_backbone("small", small_cache), photo_source
    files = [path for name in classes for path in sorted((photos / name).iterdir())[:4]]
    prefix = Prefix(backbone, backbone.cut, backbone.cut_shape)
    pixels = [to_input(decode(file.read_bytes(), backbone.input), backbone.input) for file in files]
    bottlenecks = np.concatenate([prefix(image[None]) for image in pixels])
    keys = [bytes([number]) * 32 for number in range(len(files))]
    head = fit_head(bottlenecks, np.repeat(np.arange(3), 4), keys, classes=3, l2=0.1)
    linear = LinearHead(weights=head.weights, biases=head.biases)
    path = tmp_path_factory.mktemp("evaluated") / "model.onnx"
    write_model(path, backbone, linear, classes=classes, training={})
    return path


@pytest.fixture
def model(path: Path) -> Model:
    return load(path)


def test_classes_are_matched_by_name_whatever_their_order(path: Path, photos: Path) -> None:
    evaluation = quickstudy.evaluate(path, photos)
    assert evaluation.score.n == 36
    assert evaluation.score.accuracy > 0.9
    assert [item.name for item in evaluation.classes] == ["stripes", "checks", "discs"]
    assert (evaluation.missing, evaluation.unknown, evaluation.skipped) == ((), {}, ())


def test_it_agrees_with_predict(model: Model, photos: Path) -> None:
    files = sorted(photos.rglob("*.jpg"))
    truth = [file.parent.name for file in files]
    found, expected = evaluate(model, photos), score_predictions(truth, model.predict(files), model.classes)
    assert (found.score, found.classes, found.confusions) == (expected.score, expected.classes, expected.confusions)


def test_missing_and_unknown_classes_are_named(model: Model, photos: Path) -> None:
    (photos / "checks").rename(photos / "tartan")
    shutil.rmtree(photos / "discs")
    evaluation = evaluate(model, photos)
    assert evaluation.score.n == evaluation.score.right == 12
    assert evaluation.missing == ("checks", "discs")
    assert evaluation.unknown == {"tartan": 12}


def test_no_known_class_at_all_is_an_error_that_lists_both_sides(model: Model, photos: Path) -> None:
    for name in ("checks", "discs", "stripes"):
        (photos / name).rename(photos / name.upper())
    with pytest.raises(
        ImageSetError, match=r"knows 'checks', 'discs', 'stripes'; the images are of 'CHECKS', 'DISCS', 'STRIPES'"
    ):
        evaluate(model, photos)


def test_a_set_with_splits_is_scored_on_its_test_split_alone(model: Model, photos: Path, tmp_path: Path) -> None:
    for part, numbers in {"train": range(3, 12), "test": range(3)}.items():
        for name in ("checks", "discs", "stripes"):
            (tmp_path / "given" / part / name).mkdir(parents=True)
            for number in numbers:
                shutil.copy(photos / name / f"{number:02}.jpg", tmp_path / "given" / part / name)
    assert evaluate(model, tmp_path / "given").score.n == 9


def test_files_that_cannot_be_used_are_skipped_and_named(model: Model, photos: Path) -> None:
    (photos / "discs" / "bad.jpg").write_bytes(b"<html></html>")
    (photos / "discs" / "phone.heic").write_bytes(b"")
    evaluation = evaluate(model, photos)
    assert evaluation.score.n == 36
    assert sorted(item.path.name for item in evaluation.skipped) == ["bad.jpg", "phone.heic"]
    assert "an HTML page" in {item.path.name: item.reason for item in evaluation.skipped}["bad.jpg"]


def test_a_missing_model_or_folder_is_named(model: Model, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such model"):
        evaluate(tmp_path / "none.onnx", photos)
    with pytest.raises(ImageSetError, match="No such file or folder"):
        evaluate(model, tmp_path / "none")


def test_images_that_were_trained_on_are_left_out_and_counted(photos: Path, cache: Path, tmp_path: Path) -> None:
    result = retrain(photos, tmp_path / "m.onnx", backbone="small", cache=cache)
    assert result.test is not None
    found = evaluate(result.model, photos, cache=cache)
    trained = sum(result.train_counts.values())
    assert (found.score.n, found.left_out, found.is_test) == (36 - trained, trained, True)
    assert found.roles == {"trained_on": trained, "chosen_by": 0, "tested_on": 36 - trained, "new": 0}
    assert found.score == result.test.score
    assert found.to_dict()["roles"] == found.roles
    all_of_them = evaluate(result.model, photos, everything=True, cache=cache)
    assert (all_of_them.score.n, all_of_them.left_out, all_of_them.is_test) == (36, 0, False)
    shutil.copytree(photos, tmp_path / "changed")
    for path in (tmp_path / "changed").rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"\0")
    new = evaluate(result.model, tmp_path / "changed", cache=cache)
    assert (new.score.n, new.left_out) == (36, 0)
    assert new.roles == {"trained_on": 0, "chosen_by": 0, "tested_on": 0, "new": 36}


def test_copies_count_once_and_contradictions_not_at_all(model: Model, photos: Path) -> None:
    shutil.copy(photos / "discs" / "00.jpg", photos / "discs" / "again.jpg")
    shutil.copy(photos / "discs" / "01.jpg", photos / "stripes" / "wrong.jpg")
    assert evaluate(model, photos).score.n == 35
