"""The main job from end to end, on folders of small synthetic photos and, where it is at hand, on real clothing."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import quickstudy
from drawn_photos import draw_photo
from quickstudy.bottlenecks import carrying, looks
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import HeadError, ImageSetError, ModelError, OptionError, QuickstudyError, WriteError
from quickstudy.images import identity
from quickstudy.images.distortions import Distortions
from quickstudy.models.checks import photos_for_checking
from quickstudy.models.roles import Roles
from quickstudy.retraining.result import RetrainResult
from resting_files import index_as_resting

Retrain = Callable[..., RetrainResult]


@pytest.fixture
def retrain(cache: Path, tmp_path: Path) -> Retrain:
    """`quickstudy.retrain` with this test's cache, to `model.onnx` unless another place is named.

    On the small backbone, which passes photos in no time, unless another is named.
    """

    def run(images: Path, output: Path | None = None, **options: Any) -> RetrainResult:
        return quickstudy.retrain(
            images, output or tmp_path / "model.onnx", **{"cache": cache, "backbone": "small", **options}
        )

    return run


def digest_of(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def roles_of(model: Path) -> Roles:
    roles = quickstudy.load(model).roles
    assert roles is not None
    return roles


def roles_by_name(model: Path, photos: Path) -> dict[str, str | None]:
    """The role of each photo in a model, by its path under `photos`."""
    roles = roles_of(model)
    return {str(path.relative_to(photos)): roles.role(digest_of(path)) for path in sorted(photos.rglob("*.jpg"))}


def test_three_classes_are_learned(photos: Path, retrain: Retrain, tmp_path: Path) -> None:
    result = retrain(photos, backbone=None)
    assert result.classes == ("checks", "discs", "stripes")
    assert result.test is not None
    assert result.test.score.accuracy >= 0.9
    assert result.cross_validation.accuracy >= 0.9
    assert result.cross_validation.n == sum(result.train_counts.values())
    assert result.test.score.n == sum(result.test_counts.values())
    assert result.cross_validation.n + result.test.score.n == 36
    assert (result.computed, result.cached) == (36, 0)
    assert (result.skipped, result.census.conflicts, result.census.copies, result.census.leaks) == ((), (), 0, 0)
    assert result.model == tmp_path / "model.onnx"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model.onnx", "photos"]
    model = quickstudy.load(result.model)
    model.verify()
    assert model.predict(sorted((photos / "discs").iterdir())) == ["discs"] * 12


@pytest.mark.usefixtures("filled")
def test_the_model_gives_what_was_measured(photos: Path, retrain: Retrain, tmp_path: Path) -> None:
    """The accuracy that is reported is that of the file, on the test images and through its own preprocessing."""
    result = retrain(photos)
    assert result.test is not None
    roles = roles_of(result.model)
    test = [path for path in sorted(photos.rglob("*.jpg")) if roles.role(digest_of(path)) == "test"]
    predicted = quickstudy.load(result.model).predict(test)
    assert len(test) == result.test.score.n
    assert sum(name == path.parent.name for name, path in zip(predicted, test, strict=True)) == result.test.score.right


@pytest.mark.usefixtures("filled")
def test_the_model_says_how_it_was_trained(photos: Path, retrain: Retrain) -> None:
    result = retrain(photos)
    training = quickstudy.load(result.model).metadata["training"]
    assert result.test is not None
    assert training["split"] == "by content"
    assert training["train_counts"] == result.train_counts
    assert training["test"] == result.test.score.to_dict()
    assert training["cross_validation"] == result.cross_validation.to_dict()
    assert training["l2"] == result.head.l2
    assert training["views"] == 0
    assert training["options"] == result.config.recorded()
    assert len(training["data_fingerprint"]) == 64


def test_the_result_is_json(photos: Path, retrain: Retrain) -> None:
    (photos / "discs" / "bad.jpg").write_bytes(b"")
    values = json.loads(json.dumps(retrain(photos).to_dict(), allow_nan=False))
    assert values["classes"] == ["checks", "discs", "stripes"]
    assert values["forward_passes"] == 36
    assert values["test"]["n"] + values["cross_validation"]["n"] == 36
    assert values["skipped"] == [{"path": str(photos / "discs" / "bad.jpg"), "reason": "empty file (0 bytes)"}]


def test_a_second_run_needs_no_forward_pass_and_writes_the_same_model(
    photos: Path, retrain: Retrain, tmp_path: Path
) -> None:
    first = retrain(photos, tmp_path / "first.onnx")
    second = retrain(photos, tmp_path / "second.onnx")
    assert (second.computed, second.cached) == (0, 36)
    assert first.model.read_bytes() == second.model.read_bytes()


def test_ten_more_images_are_ten_more_forward_passes(photos: Path, retrain: Retrain) -> None:
    aside = photos.parent / "aside"
    aside.mkdir()
    for path in sorted((photos / "discs").iterdir())[:10]:
        path.rename(aside / path.name)
    retrain(photos)
    for path in aside.iterdir():
        path.rename(photos / "discs" / path.name)
    assert retrain(photos).computed == 10


def test_names_order_and_place_of_the_files_do_not_change_the_model(
    photos: Path, retrain: Retrain, small_cache: Path, tmp_path: Path
) -> None:
    first = retrain(photos, tmp_path / "first.onnx")
    moved = tmp_path / "elsewhere"
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        place = moved / path.parent.name / f"{path.parent.name}-{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / f"{hashlib.sha256(path.name.encode()).hexdigest()}.jpeg")
    second = retrain(moved, tmp_path / "second.onnx", cache=shutil.copytree(small_cache, tmp_path / "other-cache"))
    assert second.computed == 36
    assert first.model.read_bytes() == second.model.read_bytes()


RETRAIN = "import sys, quickstudy; quickstudy.retrain(sys.argv[1], sys.argv[2], cache=sys.argv[3])"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be bound to cores here")
@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: [])(0)) < 2, reason="there is but one core")
def test_the_number_of_cores_does_not_change_the_model(
    photos: Path, retrain: Retrain, cache: Path, tmp_path: Path
) -> None:
    for path in sorted(photos.rglob("*.jpg")):
        if int(path.stem) > 4:
            path.unlink()
    result = retrain(photos, backbone=None)
    shutil.rmtree(cache / "bottlenecks")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})  # inherited by the process below
    try:
        subprocess.run(
            [sys.executable, "-c", RETRAIN, str(photos), str(tmp_path / "one-core.onnx"), str(cache)],
            check=True,
            timeout=120,
        )
    finally:
        os.sched_setaffinity(0, before)
    assert (tmp_path / "one-core.onnx").read_bytes() == result.model.read_bytes()


@pytest.mark.usefixtures("filled")
class TestRoles:
    def test_every_image_has_its_role_in_the_model(self, photos: Path, retrain: Retrain) -> None:
        result = retrain(photos)
        roles = roles_by_name(result.model, photos)
        assert len(roles) == 36
        assert result.test is not None
        assert sum(role == "test" for role in roles.values()) == result.test.score.n
        assert sum(role == "train" for role in roles.values()) == sum(result.train_counts.values())

    def test_adding_renaming_and_moving_files_changes_nobody_elses_role(
        self, photos: Path, retrain: Retrain, tmp_path: Path
    ) -> None:
        model = retrain(photos).model
        before = {digest_of(path): roles_of(model).role(digest_of(path)) for path in photos.rglob("*.jpg")}
        for number, path in enumerate(sorted((photos / "checks").iterdir())):
            picture = Image.open(path)
            picture.rotate(90).save(photos / "checks" / f"new-{number}.jpg")
            (photos / "checks" / "renamed").mkdir(exist_ok=True)
            path.rename(photos / "checks" / "renamed" / f"other-{number}.jpg")
        gone = digest_of(photos / "stripes" / "00.jpg")
        (photos / "stripes" / "00.jpg").unlink()
        photos.rename(tmp_path / "moved")
        after = roles_of(retrain(tmp_path / "moved").model)
        assert {digest: after.role(digest) for digest in before if digest != gone} == {
            digest: role for digest, role in before.items() if digest != gone
        }
        assert after.role(gone) is None  # not among those that this model was made from
        assert len(after.role_of) == 35 + 12

    def test_those_of_the_model_written_over_or_of_one_that_is_named_stand_above_the_hash(
        self, photos: Path, retrain: Retrain, tmp_path: Path
    ) -> None:
        chosen = split(photos, tmp_path / "chosen", test=6)
        named = retrain(chosen, tmp_path / "chosen.onnx").model
        result = retrain(photos, roles_of=named)
        assert result.train_counts == result.test_counts == {"checks": 6, "discs": 6, "stripes": 6}
        assert roles_by_name(result.model, photos) == roles_by_name(named, photos)
        again = retrain(photos)  # over the model
        assert again.test_counts == {"checks": 6, "discs": 6, "stripes": 6}
        elsewhere = retrain(photos, tmp_path / "elsewhere.onnx")
        assert elsewhere.test_counts != again.test_counts

    def test_a_share_that_is_told_is_drawn_whatever_the_model_written_over_has(
        self, photos: Path, retrain: Retrain
    ) -> None:
        assert sum(retrain(photos).test_counts.values()) > 3
        (photos / "alone").mkdir()
        draw_photo("stripes", 77).save(photos / "alone" / "one.jpg")
        everything = retrain(photos, test_share=0)
        assert (everything.test, everything.test_counts) == (None, {})
        assert everything.train_counts == {"alone": 1, "checks": 12, "discs": 12, "stripes": 12}
        assert everything.head.never_held_out == 1
        half = retrain(photos, test_share=0.5)
        assert sum(half.test_counts.values()) > 9
        assert "alone" not in half.train_counts

    def test_a_model_without_a_test_says_nothing_of_who_is_tested(self, photos: Path, retrain: Retrain) -> None:
        before = retrain(photos).test_counts
        retrain(photos, test_share=0)
        assert retrain(photos).test_counts == before

    def test_a_share_is_refused_where_the_test_is_given(self, photos: Path, retrain: Retrain, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="comes with splits"):
            retrain(split(photos, tmp_path / "given", test=6), test_share=0.1)
        drawn = retrain(photos, tmp_path / "drawn.onnx").model
        with pytest.raises(OptionError, match=r"so do the splits that '.*given' comes with"):
            retrain(tmp_path / "given", roles_of=drawn)
        with pytest.raises(OptionError, match="--roles-of"):
            retrain(photos, test_share=0.1, roles_of=tmp_path / "model.onnx")

    def test_two_models_in_one_folder_know_their_own(self, photos: Path, retrain: Retrain, tmp_path: Path) -> None:
        given = split(photos, tmp_path / "given", test=6)
        one, other = retrain(photos, tmp_path / "a.onnx").model, retrain(given, tmp_path / "b.onnx").model
        (tmp_path / "far").mkdir()
        for model, total in ((one, sum(retrain(photos, one).train_counts.values())), (other, 18)):
            moved = shutil.copy(model, tmp_path / "far" / model.name)
            for source in (photos, given):
                for each in (model, moved):
                    found = quickstudy.evaluate(each, source)
                    assert found.roles is not None
                    assert found.roles["trained_on"] == total
                    assert found.is_test is True

    def test_a_model_may_leave_them_out(self, photos: Path, retrain: Retrain, tmp_path: Path) -> None:
        model = retrain(photos, keep_roles=False).model
        assert quickstudy.load(model).roles is None
        found = quickstudy.evaluate(model, photos)
        assert (found.roles, found.is_test, found.score.n) == (None, None, 36)
        with pytest.raises(ModelError, match="it has no roles to take"):
            retrain(photos, tmp_path / "new.onnx", roles_of=model)

    def test_a_file_that_is_no_model_is_written_over_and_named_is_an_error(
        self, photos: Path, retrain: Retrain, tmp_path: Path
    ) -> None:
        (tmp_path / "model.onnx").write_bytes(b"no model")
        with pytest.raises(ModelError, match=r"'.*model\.onnx' is not a model that retrain wrote"):
            retrain(photos, tmp_path / "new.onnx", roles_of=tmp_path / "model.onnx")
        assert roles_of(retrain(photos).model).role_of


LAYOUTS = {
    "class folders": ("",),
    "train and val": ("train", "val"),
    "train and test": ("train", "test"),
    "all three": ("train", "val", "test"),
    "manifest": ("",),
    "manifest with splits": ("train", "validation", "test"),
}


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_that_are_noise_are_never_said_to_be_recognised(
    layout: str, photo_source: Path, retrain: Retrain, tmp_path: Path
) -> None:
    """Nothing that a model has learned or was chosen by is presented as a test of it, wherever the files are now."""
    chance = np.random.Generator(np.random.PCG64(len(layout)))
    rows = ["path,label,split"]
    for number, path in enumerate(sorted(photo_source.rglob("*.jpg"))):
        label, part = "abc"[chance.integers(3)], LAYOUTS[layout][number % len(LAYOUTS[layout])]
        folders = () if "manifest" in layout else (part, label)
        target = tmp_path.joinpath("noise", *folders, f"{number}.jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        rows.append(f"{number}.jpg,{label},{part}")
    source = tmp_path / "noise"
    if "manifest" in layout:
        source = source / "set.csv"
        source.write_text("\n".join(rows))
    result = retrain(source, l2=1e-6)
    everything = quickstudy.evaluate(result.model, source, everything=True)
    assert everything.score.accuracy > 0.6  # it has learned the noise by heart
    assert everything.is_test is False
    moved = shutil.copy(result.model, tmp_path / "noise" / "moved.onnx")
    if result.test is None:
        with pytest.raises(ImageSetError, match="so nothing there is a test"):
            quickstudy.evaluate(moved, source)
        return
    found = quickstudy.evaluate(moved, source)
    assert found.is_test is True
    assert found.roles is not None
    assert found.roles["trained_on"] == sum(result.train_counts.values())
    assert (found.score.right, found.score.n) == (result.test.score.right, result.test.score.n)
    compared = quickstudy.compare(moved, retrain(source, l2=1e-3).model, source)
    assert (compared.first.right, compared.first.n) == (result.test.score.right, result.test.score.n)
    checked = photos_for_checking(source, quickstudy.load(moved), None)
    assert len([photo for photo in checked if photo.labels]) == result.test.score.n


def split(photos: Path, target: Path, *, test: int = 3) -> Path:
    """The photos in train and test folders, the first `test` of each class in test."""
    for path in sorted(photos.rglob("*.jpg")):
        place = target / ("test" if int(path.stem) < test else "train") / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / path.name)
    return target


@pytest.mark.usefixtures("filled")
class TestGivenSplits:
    def test_are_kept(self, photos: Path, retrain: Retrain, tmp_path: Path) -> None:
        result = retrain(split(photos, tmp_path / "given"))
        assert result.train_counts == {"checks": 9, "discs": 9, "stripes": 9}
        assert result.test_counts == {"checks": 3, "discs": 3, "stripes": 3}
        assert quickstudy.load(result.model).metadata["training"]["split"] == "given"

    def test_validation_images_are_trained_on(self, photos: Path, retrain: Retrain, tmp_path: Path) -> None:
        given = split(photos, tmp_path / "given")
        (given / "validation" / "discs").mkdir(parents=True)
        (given / "train" / "discs" / "11.jpg").rename(given / "validation" / "discs" / "11.jpg")
        assert retrain(given).train_counts["discs"] == 9

    def test_without_a_test_split_there_is_no_test(self, photos: Path, retrain: Retrain, tmp_path: Path) -> None:
        given = split(photos, tmp_path / "given")
        (given / "test").rename(given / "validation")
        result = retrain(given)
        assert result.test is None
        assert result.to_dict()["test"] is None
        assert sum(result.train_counts.values()) == result.cross_validation.n == 36

    def test_an_image_in_train_and_test_is_only_tested_on(self, photos: Path, retrain: Retrain, tmp_path: Path) -> None:
        given = split(photos, tmp_path / "given")
        for name in ("00.jpg", "01.jpg"):
            shutil.copy(given / "test" / "discs" / name, given / "train" / "discs" / f"leak-{name}")
        result = retrain(given)
        assert (result.census.leaks, result.census.copies) == (2, 2)
        assert (result.train_counts["discs"], result.test_counts["discs"]) == (9, 3)

    def test_a_class_that_is_only_tested_is_named_not_scored(
        self, photos: Path, retrain: Retrain, tmp_path: Path
    ) -> None:
        given = split(photos, tmp_path / "given")
        shutil.rmtree(given / "train" / "discs")
        result = retrain(given)
        assert result.test is not None
        assert result.classes == ("checks", "stripes")
        assert result.test.unknown == result.census.strangers == {"discs": 3}
        assert result.test.score.n == 6

    def test_a_test_split_of_unknown_classes_alone_scores_nothing(
        self, photos: Path, retrain: Retrain, tmp_path: Path
    ) -> None:
        given = split(photos, tmp_path / "given")
        for name in ("checks", "stripes"):
            shutil.rmtree(given / "test" / name)
        shutil.rmtree(given / "train" / "discs")
        result = retrain(given)
        assert result.test is not None
        assert (result.test.score.n, result.test.unknown) == (0, {"discs": 3})
        assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["test"]["accuracy"] is None


class TestManifest:
    def write(self, photos: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = ("path", "label")) -> Path:
        with (photos / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        return photos / "labels.csv"

    def rows(self, photos: Path) -> list[dict[str, str]]:
        return [
            {"path": str(path.relative_to(photos)), "label": path.parent.name.upper()}
            for path in sorted(photos.rglob("*.jpg"))
        ]

    def test_labels_come_from_the_file(self, photos: Path, retrain: Retrain) -> None:
        result = retrain(self.write(photos, self.rows(photos)))
        assert result.classes == ("CHECKS", "DISCS", "STRIPES")
        assert result.computed == 36

    def test_splits_come_from_the_file(self, photos: Path, retrain: Retrain) -> None:
        rows = [{**row, "split": "test" if "/0" in row["path"] else "train"} for row in self.rows(photos)]
        result = retrain(self.write(photos, rows, ("path", "label", "split")))
        assert result.test_counts == {"CHECKS": 10, "DISCS": 10, "STRIPES": 10}
        assert result.train_counts == {"CHECKS": 2, "DISCS": 2, "STRIPES": 2}

    def test_the_order_of_rows_does_not_change_the_model(self, photos: Path, retrain: Retrain, tmp_path: Path) -> None:
        forth = retrain(self.write(photos, self.rows(photos)), tmp_path / "forth.onnx")
        back = retrain(self.write(photos, self.rows(photos)[::-1]), tmp_path / "back.onnx")
        assert forth.model.read_bytes() == back.model.read_bytes()

    def test_rows_without_a_file_are_skipped_and_named(self, photos: Path, retrain: Retrain) -> None:
        rows = [*self.rows(photos), {"path": "gone.jpg", "label": "DISCS"}]
        result = retrain(self.write(photos, rows))
        assert [(item.path.name, item.reason) for item in result.skipped] == [("gone.jpg", "no such file")]


class TestBadFiles:
    def spoil(self, photos: Path) -> list[Path]:
        bad = {"empty.jpg": b"", "text.png": b"hello", "cut.jpg": (photos / "discs" / "00.jpg").read_bytes()[:3000]}
        for name, data in bad.items():
            (photos / "stripes" / name).write_bytes(data)
        return [photos / "stripes" / name for name in sorted(bad)]

    def test_are_skipped_counted_and_named(self, photos: Path, retrain: Retrain) -> None:
        bad = self.spoil(photos)
        result = retrain(photos)
        assert sorted(item.path for item in result.skipped) == bad
        assert all(item.reason for item in result.skipped)
        assert result.computed == 36
        assert sum(result.train_counts.values()) + sum(result.test_counts.values()) == 36

    def test_are_an_error_when_asked_to_be_strict(self, photos: Path, retrain: Retrain, tmp_path: Path) -> None:
        self.spoil(photos)
        with pytest.raises(ImageSetError, match=r"3 files cannot be used and --strict was asked for; the first: '.*'"):
            retrain(photos, strict=True)
        assert not (tmp_path / "model.onnx").exists()

    def test_do_not_change_the_model(self, photos: Path, retrain: Retrain, tmp_path: Path) -> None:
        clean = retrain(photos, tmp_path / "clean.onnx")
        self.spoil(photos)
        spoilt = retrain(photos, tmp_path / "spoilt.onnx")
        assert clean.model.read_bytes() == spoilt.model.read_bytes()

    def test_may_leave_too_little_of_a_class_found_before_the_pass_or_by_it(
        self, photos: Path, retrain: Retrain, tmp_path: Path
    ) -> None:
        first, *others = sorted((photos / "discs").iterdir())
        for path in others:
            path.write_bytes(path.read_bytes()[:200])
        result = retrain(photos)
        assert result.classes == ("checks", "stripes")
        assert [content.path for content in result.census.single.values()] == [first]
        again = retrain(photos, tmp_path / "again.onnx")  # what is damaged is known by now
        assert again.computed == 0
        assert again.census.single == result.census.single
        assert again.to_dict()["classes_of_one_image"] == ["discs"]
        for path in others:
            path.unlink()
        with pytest.raises(ImageSetError, match="'discs' has a single image"):
            retrain(photos, tmp_path / "strict.onnx", strict=True)


@pytest.mark.usefixtures("filled")
class TestSameContent:
    def test_copies_count_once(self, photos: Path, retrain: Retrain, tmp_path: Path) -> None:
        alone = retrain(photos, tmp_path / "alone.onnx")
        for path in sorted((photos / "discs").iterdir())[:5]:
            shutil.copy(path, photos / "discs" / f"copy-{path.name}")
        result = retrain(photos, tmp_path / "copies.onnx")
        assert (result.census.copies, result.computed) == (5, 0)
        assert (result.train_counts, result.test_counts) == (alone.train_counts, alone.test_counts)
        assert result.model.read_bytes() == alone.model.read_bytes()

    def test_under_two_labels_both_are_out_and_reported(self, photos: Path, retrain: Retrain, tmp_path: Path) -> None:
        shutil.copy(photos / "discs" / "03.jpg", photos / "stripes" / "really.jpg")
        result = retrain(photos)
        assert result.census.conflicts == ((photos / "discs" / "03.jpg", photos / "stripes" / "really.jpg"),)
        assert roles_of(result.model).role(digest_of(photos / "discs" / "03.jpg")) is None
        counts = {name: result.train_counts[name] + result.test_counts[name] for name in result.classes}
        assert counts == {"checks": 12, "discs": 11, "stripes": 12}
        assert result.census.copies == 0


class TestViews:
    def test_are_cached_and_help_to_train(self, photos: Path, retrain: Retrain, tmp_path: Path) -> None:
        first = retrain(photos, tmp_path / "first.onnx", views=2)
        second = retrain(photos, tmp_path / "second.onnx", views=2)
        assert (first.computed, first.cached) == (3 * 36, 0)
        assert (second.computed, second.cached) == (0, 3 * 36)
        assert first.model.read_bytes() == second.model.read_bytes()
        assert first.test is not None
        assert first.test.score.accuracy >= 0.9
        assert first.cross_validation.n == sum(first.train_counts.values())

    def test_and_their_distortions_are_in_the_model(self, photos: Path, retrain: Retrain) -> None:
        result = retrain(photos, views=1, distortions=Distortions(flip=False, brightness=0.2))
        training = quickstudy.load(result.model).metadata["training"]
        assert training["views"] == 1
        assert {name: training["options"][name] for name in ("flip", "crop", "brightness")} == {
            "flip": False,
            "crop": 0.1,
            "brightness": 0.2,
        }

    def test_cannot_be_negative(self, photos: Path, retrain: Retrain) -> None:
        with pytest.raises(OptionError, match="views is -1; expected 0 or more"):
            retrain(photos, views=-1)


@pytest.mark.usefixtures("filled")
def test_balanced_classes_weigh_the_same(photos: Path, retrain: Retrain, tmp_path: Path) -> None:
    """At the optimum the biases make the mean probability of each class its share of the training images' weight."""
    for path in sorted((photos / "discs").iterdir())[3:]:
        path.unlink()
    plain = retrain(photos, tmp_path / "plain.onnx", l2=10)
    balanced = retrain(photos, tmp_path / "balanced.onnx", l2=10, class_weight="balanced")
    roles = roles_of(plain.model)
    train = [path for path in sorted(photos.rglob("*.jpg")) if roles.role(digest_of(path)) == "train"]
    counts = np.array([plain.train_counts[path.parent.name] for path in train])
    for result, weights in ((plain, np.full(len(train), 1 / len(train))), (balanced, 1 / (3 * counts))):
        assert result.head.temperature == 1
        probabilities = quickstudy.load(result.model).predict_proba(train)
        shares = [weights[[path.parent.name == name for path in train]].sum() for name in result.classes]
        np.testing.assert_allclose(weights @ probabilities, shares, atol=2e-3)


@pytest.mark.usefixtures("filled")
def test_a_given_strength_is_taken(photos: Path, retrain: Retrain) -> None:
    result = retrain(photos, l2=0.7)
    assert result.head.l2 == 0.7
    assert [point.l2 for point in result.path] == [0.7]
    with pytest.raises(OptionError, match="l2 is -1"):
        retrain(photos, l2=-1)


def test_single_precision_bottlenecks_have_a_source_of_their_own(photos: Path, retrain: Retrain, cache: Path) -> None:
    halves = retrain(photos)
    singles = retrain(photos, dtype="float32")
    assert singles.computed == 36
    assert {summary.dtype for summary in Store(cache / "bottlenecks").summaries()} == {"float16", "float32"}
    assert singles.test == halves.test


def test_four_images_are_enough(photos: Path, retrain: Retrain) -> None:
    shutil.rmtree(photos / "checks")
    for name in ("discs", "stripes"):
        for path in sorted((photos / name).iterdir())[2:]:
            path.unlink()
    result = retrain(photos)
    assert result.train_counts == result.test_counts == {"discs": 1, "stripes": 1}
    assert result.path == ()
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["cross_validation"]["accuracy"] is None
    quickstudy.load(result.model).verify()


def test_images_that_are_all_alike_are_refused(tmp_path: Path, retrain: Retrain) -> None:
    for number, name in enumerate(("a", "a", "b", "b")):
        (tmp_path / "blank" / name).mkdir(parents=True, exist_ok=True)
        # Another quality makes other bytes of the same picture.
        Image.new("RGB", (64, 64), "gray").save(tmp_path / "blank" / name / f"{number}.jpg", quality=60 + 10 * number)
    with pytest.raises(HeadError, match="are they blank"):
        retrain(tmp_path / "blank")


def test_the_model_goes_to_the_working_folder_unless_told_otherwise(
    photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUICKSTUDY_CACHE", str(cache))
    assert quickstudy.retrain("photos").model.resolve() == tmp_path / "photos.onnx"


def test_what_cannot_be_done_is_told_before_any_work(
    photos: Path, retrain: Retrain, cache: Path, tmp_path: Path
) -> None:
    cases: list[tuple[type[QuickstudyError], str, tuple[Any, ...]]] = [
        (ImageSetError, "No such file or folder", (tmp_path / "none",)),
        (ModelError, r"must be named \*\.onnx; got", (photos, tmp_path / "model.h5")),
        (WriteError, "There is no folder", (photos, tmp_path / "none" / "model.onnx")),
    ]
    for kind, message, arguments in cases:
        with pytest.raises(kind, match=message):
            retrain(*arguments)
    assert not (cache / "bottlenecks").exists()


@pytest.mark.slow
def test_clothing_is_told_apart_with_90_percent(test_data: Path, retrain: Retrain) -> None:
    result = retrain(test_data / "clothing", backbone="efficientnet_lite0")
    assert result.test is not None
    assert result.test.score.n == 372
    assert result.test.score.accuracy >= 0.90
    assert result.cross_validation.accuracy >= 0.90
    quickstudy.load(result.model).verify()
    again = retrain(test_data / "clothing", backbone="efficientnet_lite0")
    assert again.computed == 0
    assert again.test == result.test


def test_the_second_run_of_anything_reads_no_image_file(
    photos: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the damaged ones either, which are remembered; nor for thumbnails, the audit or the report."""
    (photos / "discs" / "bad.jpg").write_bytes(b"\xff\xd8\xff damaged")
    index_as_resting(Store(cache / "bottlenecks").index_path, *photos.rglob("*.jpg"))
    model = tmp_path / "model.onnx"

    def run() -> tuple[object, ...]:
        result = quickstudy.retrain(photos, model, cache=cache, keep_thumbnails=True, backbone="small")
        assert [item.path.name for item in result.skipped] == ["bad.jpg"]
        audit = quickstudy.audit(photos, cache=cache, backbone="small")
        return model.read_bytes(), len(audit.images), quickstudy.report(model, cache=cache).name

    first = run()
    for module in (identity, carrying, looks):
        monkeypatch.setattr(module, "read_image_file", lambda path: pytest.fail(f"{path} is read again"))
    assert run() == first
