"""Transformers in 8-bit integers: near the bottlenecks in float32, apart from them in the store, image by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_networks import SIZE, photos
from small_transformers import save_vit

from quickstudy.backbones.backbone import Backbone, add_backbone
from quickstudy.backbones.engines.int8 import INT8
from quickstudy.backbones.engines.named import Prefix, device_of, engine_for, engine_named
from quickstudy.backbones.graphs.preprocessing import Preprocessing
from quickstudy.backbones.sources.adding import import_onnx
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import BackboneError
from quickstudy.models.loading import load
from quickstudy.retraining.retrain import retrain
from small_backbones import add_small_backbone


@pytest.fixture
def vit(tmp_path: Path, cache: Path) -> Backbone:
    found = import_onnx(save_vit(tmp_path / "vit.onnx"), preprocessing=Preprocessing(low=-1, high=1))
    return add_backbone(
        "vit",
        found.graph,
        cache,
        input_spec=found.input_spec,
        cuts=found.cuts,
        classes=(),
        origin="a test",
        prefix_tokens=found.prefix_tokens,
    )


@pytest.mark.parametrize("cut", ["block_1", "features", "levels"])
def test_they_are_near_those_in_float32(vit: Backbone, cut: str) -> None:
    at = vit.at(cut)
    expected = Prefix(at, at.cut, at.cut_shape)(photos(6, SIZE))
    found = INT8.open(at, at.cut, at.cut_shape)(photos(6, SIZE))
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    assert 0 < np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


def test_an_image_does_not_depend_on_its_company(vit: Backbone) -> None:
    prefix = INT8.open(vit, vit.cut, vit.cut_shape)
    images = photos(4, SIZE)
    images[1:] //= 8  # which would be rounded otherwise beside a brighter one
    alone = np.concatenate([prefix(image[None]) for image in images])
    np.testing.assert_array_equal(prefix(images), alone)


def test_the_store_keeps_it_apart_and_the_model_is_in_float32(
    vit: Backbone, photo_source: Path, cache: Path, tmp_path: Path
) -> None:
    paths, store = sorted(photo_source.rglob("*.jpg")), Store(cache / "bottlenecks")
    assert extract(paths, vit, store).computed == len(paths)
    result = retrain(photo_source, tmp_path / "m.onnx", backbone="vit", engine="onnxruntime-int8", cache=cache)
    assert result.computed == len(paths)
    model = load(result.model)
    assert model.metadata["training"]["engine"] == "onnxruntime-int8"
    assert model.verify() < 1e-5
    again = retrain(photo_source, tmp_path / "m.onnx", backbone="vit", engine="onnxruntime-int8", cache=cache)
    assert again.computed == 0


def test_it_is_had_by_its_name() -> None:
    assert engine_for("onnxruntime-int8") is engine_named("onnxruntime-int8") is INT8
    assert device_of("onnxruntime-int8") == "cpu"


def test_a_network_of_convolutions_is_refused_with_the_way_out(cache: Path) -> None:
    small = add_small_backbone(cache)
    with pytest.raises(BackboneError, match=r"'small' has none up to 'features'.*--engine openvino"):
        INT8.open(small, small.cut, small.cut_shape)
