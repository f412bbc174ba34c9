"""Comparison of an export with its original: counted by hand on models that say what they are told to."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quickstudy.errors import ImageSetError
from quickstudy.images.manifests import ONE_EACH
from quickstudy.learning.answers import MOST_PROBABLE
from quickstudy.learning.scores import Paired, Score
from quickstudy.models.checks import (
    Agreement,
    ComparedPhoto,
    Tolerance,
    agreement_of,
    images_per_second,
    photos_for_calibration,
    photos_for_checking,
)
from quickstudy.models.loading import load
from quickstudy.models.roles import Roles
from small_models import write_small_model


class Parrot:
    """Says of each path what it was told; None for those that it cannot use."""

    classes = ("a", "b")
    refusal = None

    def __init__(self, **says: float | None) -> None:
        self._says = says

    answer = MOST_PROBABLE
    thresholds = types.MappingProxyType({})
    is_none_of_these = staticmethod(lambda strangeness: False)

    def predict_each(self, paths: Iterable[Path]) -> Iterator[Any]:
        for path in paths:
            share = self._says[path.name]
            shares = None if share is None else np.array([share, 1 - share], np.float32)
            yield SimpleNamespace(image=path, probabilities=shares, strangeness=None)


def test_counts_as_by_hand() -> None:
    #                                  same and right   lost        won         both wrong   unusable    of no class
    before, after = Parrot(p=0.9, q=0.8, r=0.4, s=0.2, t=None, u=0.7), Parrot(p=0.7, q=0.1, r=0.6, s=0.1, t=0.5, u=0.7)
    labels = {"p": "a", "q": "a", "r": "a", "s": "a", "t": "a", "u": "c"}
    photos = [ComparedPhoto(path=Path(name), labels=label and (label,)) for name, label in labels.items()]
    seen = agreement_of(before, after, photos)  # type: ignore[arg-type]
    assert seen is not None
    assert (seen.n, seen.same) == (5, 3)
    assert seen.labelled is not None
    assert (seen.labelled.first, seen.labelled.second) == (Score(right=2, n=4), Score(right=2, n=4))
    assert (seen.labelled.only_first, seen.labelled.only_second) == (1, 1)
    assert seen.largest_difference == pytest.approx(0.7)
    assert seen.mean_difference == pytest.approx((0.2 + 0.7 + 0.2 + 0.1 + 0) / 5)
    assert seen.same_share == pytest.approx(0.6)
    assert seen.accuracy_loss == 0


def test_nothing_usable_is_no_agreement() -> None:
    assert agreement_of(Parrot(p=None), Parrot(p=0.5), [ComparedPhoto(path=Path("p"))]) is None  # type: ignore[arg-type]


def test_interval_of_the_loss() -> None:
    """By hand: n = 100, 7 lost, 2 won; Agresti and Min add half a picture to each and two to all."""
    seen = Agreement(
        n=100,
        same=91,
        largest_difference=1,
        mean_difference=0,
        labelled=Paired(first=Score(right=90, n=100), second=Score(right=85, n=100), only_first=7, only_second=2),
    )
    assert seen.accuracy_loss == pytest.approx(0.05)
    low, high = seen.loss_interval or (0, 0)
    half = 1.959964 * np.sqrt(7.5 + 2.5 - 25 / 102) / 102
    assert (low, high) == (pytest.approx(5 / 102 - half), pytest.approx(5 / 102 + half))
    assert low < 0.05 < high


def test_complaints_name_the_numbers() -> None:
    tolerance = Tolerance(golden=0.1, same=0.9, accuracy_loss=0.02)
    lost_one_of_ten = Paired(first=Score(right=9, n=10), second=Score(right=8, n=10), only_first=1, only_second=0)
    seen = Agreement(n=10, same=8, largest_difference=1, mean_difference=0, labelled=lost_one_of_ten)
    assert tolerance.complaints(0.1, None) == []
    assert tolerance.complaints(float("nan"), None) == ["on golden images a probability differs by nan (tolerance 0.1)"]
    assert tolerance.complaints(0.25, seen) == [
        "on golden images a probability differs by 0.25 (tolerance 0.1)",
        "8 of 10 images are taken for the same class, 80.0 % (tolerance 90 %)",
        "accuracy falls by 10.0 points (tolerance 2)",
    ]
    told_by_photos = Agreement(n=50, same=50, largest_difference=0.1, mean_difference=0)
    assert tolerance.complaints(0.25, told_by_photos) == []
    assert len(tolerance.complaints(float("nan"), told_by_photos)) == 1
    unlabelled = Agreement(n=10, same=9, largest_difference=1, mean_difference=0)
    assert unlabelled.accuracy_loss is None
    assert unlabelled.loss_interval is None
    assert tolerance.complaints(0, unlabelled) == []


def test_images_a_second_of_each_model(tmp_path: Path) -> None:
    model = load(write_small_model(tmp_path / "small.onnx"))
    assert all(speed > 0 for speed in images_per_second([model, model], rounds=2))


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = hashlib.sha256(str(path).encode()).digest()[:3]
    Image.new("RGB", (8, 8), tuple(colour)).save(path)


def test_which_photos_are_for_what(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            draw(tmp_path / "split" / split / name / "1.png")
    model: Any = SimpleNamespace(classes=("a", "b"), roles=Roles.of((), (), ()), labelling=ONE_EACH)
    checked = photos_for_checking(tmp_path / "split", model, None)
    assert sorted((p.path.relative_to(tmp_path / "split").as_posix(), p.labels) for p in checked) == [
        ("test/a/1.png", ("a",)),
        ("test/b/1.png", ("b",)),
    ]
    calibrated = photos_for_calibration(tmp_path / "split", None)
    assert sorted(p.relative_to(tmp_path / "split").as_posix() for p in calibrated) == [
        "train/a/1.png",
        "train/b/1.png",
    ]

    learned = hashlib.sha256((tmp_path / "split/test/a/1.png").read_bytes()).digest()
    for roles in (None, Roles.of([learned], (), ())):  # of accuracy nothing may be said, or not of this photo
        model.roles = roles
        checked = photos_for_checking(tmp_path / "split", model, None)
        assert all(photo.labels is None for photo in checked if roles is None or photo.path.parent.name == "a")
        assert len(checked) == (2 if roles is None else 1)

    draw(tmp_path / "flat" / "1.png")
    assert photos_for_checking(tmp_path / "flat", model, None) == [ComparedPhoto(path=tmp_path / "flat" / "1.png")]
    assert photos_for_calibration(tmp_path / "flat", None) == [tmp_path / "flat" / "1.png"]
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "No images under"), ("nowhere", "No such file or folder")):
        with pytest.raises(ImageSetError, match=message):
            photos_for_checking(tmp_path / name, model, None)
        with pytest.raises(ImageSetError, match=message):
            photos_for_calibration(tmp_path / name, None)
