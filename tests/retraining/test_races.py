"""The fit and the backbone, named or chosen: what cross-validation prefers, by how much, and what follows from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from PIL import Image

import quickstudy
from quickstudy.backbones.backbone import add_backbone, check_name
from quickstudy.backbones.loading import load_backbone
from quickstudy.backbones.published import PUBLISHED
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import BackboneError, InstallationError, OptionError
from quickstudy.images.decoding import InputSpec
from quickstudy.models.conversion import convert
from quickstudy.progress import silent
from quickstudy.reports.judged import judge_images
from quickstudy.retraining.config import RetrainConfig
from quickstudy.retraining.race import NEARLY_SQUARE, SAMPLE, Choice
from small_backbones import CUTS, SIDE, add_small_backbone, small_graph

COLOURS = {"amber": (230, 150, 40), "blue": (50, 70, 220), "green": (40, 180, 70)}


def draw(folder: Path, *, width: int, height: int, images: int = 24) -> Path:
    """Grey noise, and a patch at the left end whose colour says the class; the centre of long images says nothing."""
    for number, (name, colour) in enumerate(COLOURS.items()):
        (folder / name).mkdir(parents=True)
        for image in range(images):
            draws = np.random.Generator(np.random.PCG64([number, image]))
            pixels = draws.integers(60, 200, (height, width, 3))
            lost = (width - height) // 2  # of the centred square
            pixels[: height // 2, : lost if lost > 8 else width // 2] = colour + draws.integers(-25, 25, 3)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{image:02}.png")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache folder with the small backbone."""
    add_small_backbone(tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """Images three times as wide as high, whose class stands at their left end."""
    return draw(tmp_path / "long", width=96, height=32)


def retrain(images: Path, model: Path, cache: Path, **options: Any) -> quickstudy.RetrainResult:
    return quickstudy.retrain(images, model, cache=cache, **{"backbone": "small", "levels": "last", **options})


def test_what_the_crop_loses_is_found_by_another_fit(long: Path, cache: Path, tmp_path: Path) -> None:
    result = retrain(long, tmp_path / "m.onnx", cache, fit="auto")
    [choice] = result.choices
    assert (choice.what, choice.chosen != "crop") == ("fit", True)
    assert [runner.name for runner in choice.runners] == ["crop", "pad", "squash", "tiles3"]
    crop, won = (next(one for one in choice.runners if one.name == name) for name in ("crop", choice.chosen))
    assert crop.behind == pytest.approx(crop.log_loss - won.log_loss)
    assert crop.behind > 2.5 * crop.standard_error > 0
    assert (won.behind, won.standard_error) == (0, 0)
    assert result.cross_validation.accuracy > 0.9
    model = quickstudy.load(result.model)
    assert model.input == InputSpec(size=SIDE, fit=choice.chosen)
    told = json.loads(json.dumps(result.to_dict()))
    assert told["choices"] == model.metadata["training"]["choices"] == [choice.to_dict()]
    assert told["options"]["fit"] == "auto"
    # What the race has computed is not computed again.
    again = retrain(long, tmp_path / "again.onnx", cache, fit=choice.chosen)
    assert (again.computed, again.choices) == (0, ())
    assert retrain(long, tmp_path / "crop.onnx", cache).cross_validation.accuracy < 0.6


def test_nearly_square_images_cost_nothing(cache: Path, tmp_path: Path) -> None:
    images = draw(tmp_path / "square", width=50, height=48)
    result = retrain(images, tmp_path / "m.onnx", cache, fit="auto")
    [choice] = result.choices
    assert NEARLY_SQUARE > 50 / 48
    assert (choice.chosen, choice.runners, choice.images) == ("crop", (), 0)
    assert "1.04 times" in choice.told
    assert result.computed == 72
    assert quickstudy.load(result.model).input == InputSpec(size=SIDE)


def test_few_images_tell_nothing(cache: Path, tmp_path: Path) -> None:
    images = draw(tmp_path / "few", width=96, height=32, images=8)
    [choice] = retrain(images, tmp_path / "m.onnx", cache, fit="auto").choices
    assert (choice.chosen, choice.images) == ("crop", 0)
    assert "too few to compare" in choice.why


@pytest.mark.parametrize("fit", ["pad", "squash", "tiles", "tiles2"])
def test_a_model_keeps_its_fit(fit: str, long: Path, cache: Path, tmp_path: Path) -> None:
    result = retrain(long, tmp_path / "m.onnx", cache, fit=fit, keep_thumbnails=True)
    named = "tiles3" if fit == "tiles" else fit
    model = quickstudy.load(result.model)
    assert model.input == InputSpec(size=SIDE, fit=named)
    assert model.verify() < 1e-5
    assert (result.computed, result.cached) == (72 * model.input.tiles, 0)
    assert result.cross_validation.accuracy > 0.8
    assert quickstudy.evaluate(model, long, cache=cache).score.accuracy > 0.8
    files = sorted(long.rglob("*.png"))
    probabilities = model.predict_proba(files)
    np.testing.assert_allclose(model.predict_proba([path.read_bytes() for path in files]), probabilities, atol=1e-5)
    judged = judge_images(result.model, long, cache, silent)
    assert judged.evidence.computed == 0
    examined = quickstudy.load(result.model, with_features=True).examine(files[0].read_bytes())
    assert examined.probabilities is not None
    np.testing.assert_allclose(examined.probabilities, probabilities[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_several_squares_are_written_in_other_forms(
    kind: Literal["int8", "fp16"], long: Path, cache: Path, tmp_path: Path
) -> None:
    retrain(long, tmp_path / "m.onnx", cache, fit="tiles2")
    files = sorted(long.rglob("*.png"))
    convert(tmp_path / "m.onnx", tmp_path / "other.onnx", kind, calibrate=files, force=True)
    before, after = (quickstudy.load(tmp_path / name).predict_proba(files) for name in ("m.onnx", "other.onnx"))
    assert np.mean(before.argmax(axis=1) == after.argmax(axis=1)) > 0.9


def test_a_transformer_has_fits(long: Path, cache: Path) -> None:
    files = sorted(long.rglob("*.png"))[:2]
    found = {
        fit: quickstudy.Bottleneck("small", image_fit=fit, cache=cache).transform(files) for fit in ("crop", "pad")
    }
    assert not np.allclose(found["crop"], found["pad"])
    with pytest.raises(OptionError, match="image_fit is 'auto'; expected crop, pad"):
        quickstudy.Bottleneck("small", image_fit="auto", cache=cache).transform(files)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fit": "tiles", "cut": "block_1"}, "--fit tiles averages the features of several squares"),
        ({"fit": "tiles3", "views": 1}, "--fit tiles3 averages the features of several squares"),
        ({"fit": "auto", "budget_seconds": 60}, "--fit auto takes time that --budget"),
        ({"fit": "stretch"}, "fit is 'stretch'; expected crop, pad, squash"),
        ({"backbone": "auto", "cut": "block_1"}, "--backbone auto compares networks by the linear head"),
        ({"race_seconds": 5}, "--race goes with --backbone auto"),
        ({"race_seconds": 0, "backbone": "auto"}, "race_seconds is 0"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as raised:
        RetrainConfig.told(options)
    assert words in str(raised.value)


def test_auto_is_a_value_where_it_is_one() -> None:
    assert RetrainConfig.told({"backbone": "auto"}).chooses_backbone
    assert RetrainConfig.told({"preset": "fast", "levels": "auto"}).seen == "auto"
    assert RetrainConfig.told({"views": "auto"}).views is None
    assert RetrainConfig.told({"backbone": "none"}).backbone is None
    with pytest.raises(BackboneError, match="'auto' asks retrain to choose"):
        check_name("auto")


def test_fine_tuning_has_a_fit_but_no_squares(long: Path, cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    images = draw(tmp_path / "longer", width=96, height=32, images=40)
    result = retrain(images, tmp_path / "m.onnx", cache, levels=None, fit="auto", cut="block_1", epochs=1, views=0)
    [choice] = result.choices
    assert [runner.name for runner in choice.runners] == ["crop", "pad", "squash"]
    assert choice.chosen != "crop"
    assert quickstudy.load(result.model).input.fit == choice.chosen
    # The validation images chose nothing beforehand.
    assert choice.images <= len(result.census.digests("train"))


def add_other(cache: Path, name: str, *, flat: bool = False) -> None:
    """Add the small network under another name; with `flat`, its first layer sees edges only, and no plain colours."""
    graph = small_graph()
    for tensor in graph.graph.initializer:
        if flat and tensor.name == "c0.kernel":
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values - values.mean(axis=(2, 3), keepdims=True), tensor.name))
    add_backbone(
        name, graph, cache, input_spec=InputSpec(size=SIDE), cuts=CUTS, classes=("a", "b", "c", "d"), origin="a test"
    )


@pytest.fixture
def none_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the packages with the weights of quickstudy's own backbones not be installed."""
    for name in PUBLISHED.values():
        monkeypatch.setitem(sys.modules, name.module, None)


@pytest.mark.usefixtures("none_of_our_own")
def test_the_better_backbone_wins_the_race(cache: Path, tmp_path: Path) -> None:
    add_other(cache, "blind", flat=True)
    images = draw(tmp_path / "square", width=48, height=48, images=36)
    result = retrain(images, tmp_path / "m.onnx", cache, backbone="auto")
    [choice] = result.choices
    assert (choice.what, choice.chosen, choice.not_tried) == ("backbone", "small", ())
    assert {runner.name for runner in choice.runners} == {"small", "blind"}
    loser = next(runner for runner in choice.runners if runner.name == "blind")
    assert loser.interval[0] > 0
    assert f"blind {loser.behind:+.3f}" in choice.told
    assert quickstudy.load(result.model).metadata["backbone"]["name"] == "small"
    # The same again, from the store.
    again = retrain(images, tmp_path / "again.onnx", cache, backbone="auto")
    assert (again.computed, again.choices) == (0, result.choices)


@pytest.mark.usefixtures("none_of_our_own")
def test_of_equal_ones_the_first_is_taken(cache: Path, tmp_path: Path) -> None:
    images = draw(tmp_path / "square", width=48, height=48)
    add_other(cache, "a_twin")
    [choice] = retrain(images, tmp_path / "m.onnx", cache, backbone="auto").choices
    assert (choice.chosen, [runner.name for runner in choice.runners]) == ("a_twin", ["a_twin", "small"])
    assert all((runner.behind, runner.standard_error) == (0, 0) for runner in choice.runners)


@pytest.mark.usefixtures("none_of_our_own")
def test_what_there_is_no_time_for_is_named(cache: Path, tmp_path: Path) -> None:
    images = draw(tmp_path / "square", width=48, height=48)
    add_other(cache, "twin")
    [choice] = retrain(images, tmp_path / "m.onnx", cache, backbone="auto", race_seconds=1e-6).choices
    assert (choice.chosen, choice.not_tried) == ("small", ("twin",))
    assert "not tried for lack of time: twin" in choice.told


@pytest.mark.usefixtures("none_of_our_own")
def test_without_any_backbone_what_is_missing_is_named(tmp_path: Path) -> None:
    images = draw(tmp_path / "square", width=48, height=48)
    with pytest.raises(InstallationError, match="The weights of efficientnet_lite0 are missing"):
        retrain(images, tmp_path / "m.onnx", tmp_path / "empty", backbone="auto")


@pytest.mark.heavy
def test_a_race_is_run_on_as_many_of_each_class_as_its_share(cache: Path, tmp_path: Path) -> None:
    images = draw(tmp_path / "many", width=64, height=32, images=300)
    result = retrain(images, tmp_path / "m.onnx", cache, fit="auto")
    [choice] = result.choices
    assert abs(choice.images - SAMPLE) <= 3
    sizes = {summary.bottlenecks for summary in Store(cache / "bottlenecks").summaries()}
    assert choice.images in sizes
    assert load_backbone("small", cache).input.fit == "crop"


def test_a_choice_says_what_it_was_made_by() -> None:
    told = Choice(what="fit", chosen="crop", images=0, why="nothing to compare").told
    assert told == "crop (nothing to compare)"
