"""Two models compared: McNemar against the definition, the interval against a table, images that were trained on."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from quickstudy import compare, retrain
from quickstudy.errors import ImageSetError, ModelError
from quickstudy.learning.scores import Score, mcnemar
from quickstudy.models.loading import load
from quickstudy.models.roles import Judgement
from quickstudy.retraining.evaluation import Comparison


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (5, 1), (3, 3), (0, 7), (2, 9)])
def test_mcnemar_is_the_sign_test_over_all_divisions(first: int, second: int) -> None:
    n = first + second
    uneven = abs(first - second)
    divisions = [sum(sides) for sides in itertools.product((0, 1), repeat=n)]
    expected = sum(abs(2 * ones - n) >= uneven for ones in divisions) / len(divisions)
    assert mcnemar(first, second) == pytest.approx(expected)


def test_mcnemar_of_many_images() -> None:
    assert mcnemar(400, 600) == pytest.approx(2.7e-10, rel=0.05)
    assert mcnemar(5000, 5000) == 1


def comparison(n: int, first: int, only_first: int, only_second: int) -> Comparison:
    return Comparison(
        first=Score(right=first, n=n),
        second=Score(right=first - only_first + only_second, n=n),
        only_first=only_first,
        only_second=only_second,
        differences=(),
        judgement=Judgement(contents=(), roles=None, is_test=None, left_out=0, unknown={}),
        skipped=(),
    )


def test_interval_of_the_difference_by_hand() -> None:
    found = comparison(100, 80, 5, 15)
    assert found.difference == pytest.approx(0.10)
    # Half an image is added to each of the four cells: (15.5 - 5.5) / 102, variance (21 - 100 / 102) / 102².
    centre, half = 10 / 102, 1.959964 * (21 - 100 / 102) ** 0.5 / 102
    assert found.interval == pytest.approx((centre - half, centre + half))


def test_interval_of_equal_models_holds_nothing_and_has_a_width() -> None:
    low, high = comparison(50, 50, 0, 0).interval
    assert low < 0 < high


@pytest.fixture
def two_models(photos: Path, cache: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A model of the photos, and one that takes discs for checks and checks for discs."""
    retrain(photos, tmp_path / "good.onnx", cache=cache, backbone="small")
    swapped = Path(shutil.copytree(photos, tmp_path / "swapped"))
    (swapped / "checks").rename(swapped / "was checks")
    (swapped / "discs").rename(swapped / "checks")
    (swapped / "was checks").rename(swapped / "discs")
    (tmp_path / "other").mkdir()
    retrain(swapped, tmp_path / "other" / "bad.onnx", cache=cache, backbone="small")
    return tmp_path / "good.onnx", tmp_path / "other" / "bad.onnx"


def test_a_model_is_not_compared_with_itself(two_models: tuple[Path, Path], photos: Path, tmp_path: Path) -> None:
    good, _ = two_models
    copy = Path(shutil.copy(good, tmp_path / "copy.onnx"))
    for second in (good, copy):
        with pytest.raises(ModelError, match=f"the same, byte for byte.*'{second}'"):
            compare(good, second, photos)
    model = load(good)
    with pytest.raises(ModelError, match="byte for byte"):
        compare(model, model, photos)


def test_images_of_training_are_left_out_where_others_are_there(two_models: tuple[Path, Path], photos: Path) -> None:
    good, bad = two_models
    found = compare(good, bad, photos)
    judged = found.judgement
    assert judged.is_test is True
    assert judged.left_out + found.first.n == 36
    assert judged.roles == {"trained_on": judged.left_out, "chosen_by": 0, "tested_on": found.first.n, "new": 0}
    assert found.first.accuracy == 1
    wrong = [item for item in found.differences if item.label in ("checks", "discs")]
    assert len(wrong) == len(found.differences) == found.only_first
    assert found.only_second == 0
    assert found.difference == -found.only_first / found.first.n
    values = found.to_dict()
    assert values["p_value"] == mcnemar(found.only_first, 0)
    assert len(values["differences"]) == found.only_first


def test_where_both_have_learned_everything_that_is_an_error_unless_all_is_asked_for(
    two_models: tuple[Path, Path], photos: Path, tmp_path: Path
) -> None:
    good, bad = two_models
    left = {item.path for item in compare(good, bad, photos).differences}
    seen = [path for path in (photos / "checks").iterdir() if path not in left][:2]
    target = tmp_path / "seen" / "checks"
    target.mkdir(parents=True)
    for path in seen:
        shutil.copy(path, target)
    with pytest.raises(ImageSetError, match="all 2 usable images"):
        compare(good, bad, tmp_path / "seen")
    found = compare(good, bad, tmp_path / "seen", everything=True)
    assert (found.first.n, found.judgement.is_test) == (2, False)
    assert found.to_dict()["is_test"] is False


def test_a_test_split_is_used_alone(two_models: tuple[Path, Path], photos: Path, tmp_path: Path) -> None:
    good, bad = two_models
    left_out = compare(good, bad, photos).judgement
    stripes = [content for content in left_out.contents if content.label == "stripes"]
    shutil.copytree(photos, tmp_path / "split" / "train")
    shutil.copytree(photos / "stripes", tmp_path / "split" / "test" / "stripes")
    found = compare(good, bad, tmp_path / "split")
    assert (found.first.n, found.differences) == (len(stripes), ())


def test_unknown_classes_and_broken_files_are_named(
    two_models: tuple[Path, Path], photos: Path, tmp_path: Path
) -> None:
    good, bad = two_models
    held_out = tmp_path / "held_out"
    shutil.copytree(photos / "stripes", held_out / "stripes")
    shutil.copytree(photos / "discs", held_out / "rings")
    (held_out / "stripes" / "broken.jpg").write_bytes(b"<html>")
    found = compare(good, bad, held_out, everything=True)
    assert found.judgement.unknown == {"rings": 12}
    assert found.first.n == 12
    assert [item.path.name for item in found.skipped] == ["broken.jpg"]
    shutil.rmtree(held_out / "stripes")
    with pytest.raises(ImageSetError, match="'rings'"):
        compare(good, bad, held_out)
