"""A model whose head sees all levels is like any other: checked, judged, exported, reported on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest

import quickstudy
from drawn_photos import draw_photo
from quickstudy.backbones.backbone import add_backbone
from quickstudy.backbones.cuts import LEVELS
from quickstudy.backbones.loading import load_backbone
from quickstudy.errors import BackboneError
from quickstudy.models.conversion import convert
from quickstudy.models.format import HEAD_WEIGHTS
from quickstudy.progress import silent
from quickstudy.reports.judged import judge_images
from small_backbones import SIDE, add_small_backbone


@pytest.fixture
def model(photos: Path, cache: Path, tmp_path: Path) -> Path:
    add_small_backbone(cache)
    path = tmp_path / "m.onnx"
    quickstudy.retrain(photos, path, cache=cache, backbone="small", levels="all", keep_thumbnails=True)
    return path


def test_the_model_has_all_levels_inside(model: Path, photos: Path, cache: Path) -> None:
    loaded = quickstudy.load(model)
    net = load_backbone("small", cache).at(LEVELS)
    assert net.cut_shape == (24 + 2 * 8 + 2 * 16 + 24,)  # the features, two blocks' moments, the last map's deviation
    assert loaded.metadata["backbone"]["cut"] == LEVELS
    [weights] = [t for t in onnx.load(model).graph.initializer if t.name == HEAD_WEIGHTS]
    assert tuple(weights.dims) == (96, 3)
    assert loaded.verify() < 1e-5
    assert quickstudy.evaluate(model, photos, cache=cache).score.accuracy > 0.5


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_it_is_written_in_other_forms(model: Path, photos: Path, tmp_path: Path, kind: Literal["int8", "fp16"]) -> None:
    files = sorted(photos.rglob("*.jpg"))
    convert(model, tmp_path / "other.onnx", kind, calibrate=files, force=True)
    before, after = (quickstudy.load(path).predict_proba(files) for path in (model, tmp_path / "other.onnx"))
    assert np.mean(before.argmax(axis=1) == after.argmax(axis=1)) > 0.9


def test_it_is_reported_on_by_what_its_head_sees(model: Path, photos: Path, cache: Path) -> None:
    for path in (cache / "models").iterdir():
        path.unlink()  # so that all is worked out again
    judged = judge_images(model, photos, cache, silent)
    assert (judged.bottlenecks.shape[1], judged.widths) == (96, (24, 8, 8, 16, 16, 24))
    assert judged.evidence.features.shape[1] == 24
    assert judged.evidence.computed == 0
    found, told = judged.score("cross-validation"), judged.metadata["training"]["cross_validation"]
    assert found is not None
    assert (found.right, found.n) == (told["right"], told["n"])


def test_few_images_leave_nothing_to_choose_by(photos: Path, cache: Path, tmp_path: Path) -> None:
    add_small_backbone(cache)
    result = quickstudy.retrain(photos, tmp_path / "m.onnx", cache=cache, backbone="small")
    assert result.cross_validation.n < 50
    assert json.loads(json.dumps(result.to_dict()))["head"]["levels"] is None
    assert result.cut == "features"


def test_a_choice_is_told(cache: Path, tmp_path: Path) -> None:
    add_small_backbone(cache)
    for name in ("checks", "discs", "stripes"):
        (tmp_path / "more" / name).mkdir(parents=True)
        for number in range(30):
            draw_photo(name, number).save(tmp_path / "more" / name / f"{number:02}.jpg")
    result = quickstudy.retrain(tmp_path / "more", tmp_path / "m.onnx", cache=cache, backbone="small")
    told = json.loads(json.dumps(result.to_dict()))["head"]["levels"]
    pay = told["log_loss_last"] - told["log_loss_all"] > told["standard_error"]
    assert told["chosen"] == ("all" if pay else "last")
    assert result.cut == ("levels" if pay else "features")
    metadata = quickstudy.load(result.model).metadata
    assert metadata["training"]["levels"] == told
    assert metadata["backbone"]["cut"] == result.cut


def test_levels_cannot_be_had_of_a_network_without_maps(photos: Path, cache: Path, tmp_path: Path) -> None:
    small = add_small_backbone(cache)
    pixels = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["N", SIDE, SIDE, 3])
    out = onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["N", SIDE * SIDE * 3])
    nodes = [
        onnx.helper.make_node("Flatten", ["image"], ["flat"]),
        onnx.helper.make_node("Cast", ["flat"], ["features"], to=onnx.TensorProto.FLOAT),
    ]
    flat = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "flat", [pixels], [out]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    add_backbone("flat", flat, cache, input_spec=small.input, cuts=("features",), classes=(), origin="a test")
    result = quickstudy.retrain(photos, tmp_path / "m.onnx", cache=cache, backbone="flat")
    assert (result.cut, result.compared) == ("features", None)
    with pytest.raises(BackboneError, match="'flat' has no feature maps, so it has no levels"):
        quickstudy.retrain(photos, tmp_path / "m.onnx", cache=cache, backbone="flat", levels="all")
