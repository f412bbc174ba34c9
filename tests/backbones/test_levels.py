"""Levels: what they hold, by which rule, and several backbones side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import pytest
from small_networks import SIZE, Net
from small_transformers import save_vit

from quickstudy.backbones.backbone import Backbone, add_backbone
from quickstudy.backbones.cuts import LEVELS
from quickstudy.backbones.engines.named import Prefix
from quickstudy.backbones.graphs.cutting import describe_cuts
from quickstudy.backbones.graphs.levels import add_levels
from quickstudy.backbones.graphs.preprocessing import Preprocessing
from quickstudy.backbones.loading import load_backbone
from quickstudy.backbones.sources.adding import import_onnx
from quickstudy.errors import BackboneError
from quickstudy.images.decoding import InputSpec
from small_backbones import add_small_backbone, small_graph


def pixels(size: int, count: int = 2) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(size)).integers(0, 256, (count, size, size, 3), np.uint8)


def run(backbone: Backbone, cut: str, images: np.ndarray) -> np.ndarray:
    net = backbone.at(cut)
    return Prefix(net, net.cut, net.cut_shape)(images)


def test_levels_are_the_features_and_moments_of_the_last_block_of_each_shape(backbone: Backbone) -> None:
    images = pixels(backbone.input.size)
    found, start = run(backbone, LEVELS, images), 0
    assert found.shape == (2, 4048)
    for level in backbone.levels:
        values = found[:, start : start + level.width]
        start += level.width
        kind, _, block = level.name.rpartition(" of ")
        if level.last:
            np.testing.assert_array_equal(values, run(backbone, "features", images))
            continue
        places = run(backbone, block, images).astype(np.float64)
        expected = places.mean(axis=(2, 3)) if kind == "mean" else places.std(axis=(2, 3))
        np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-5)
    assert start == 4048
    assert [level.name for level in backbone.levels] == [
        "features",
        *(f"{kind} of block_{n}" for n in (5, 8, 11, 15, 16) for kind in ("mean", "deviation")),
        "deviation of head",
    ]


def test_a_network_without_maps_has_no_levels() -> None:
    net = Net()
    net.op("Flatten", "x", out="flat")
    net.op("MatMul", "flat", net.random(3 * SIZE * SIZE, 4), out="features")
    model = net.model("features")
    assert add_levels(model, describe_cuts(model, ["features"])) == ()


def test_two_backbones_side_by_side_give_what_each_gives(tmp_path: Path) -> None:
    """Where one takes fewer pixels, the graph makes the image smaller: of 9×9, it takes the one in the middle."""
    large, small = load_backbone("efficientnet_lite0", tmp_path), add_small_backbone(tmp_path)
    both = load_backbone(f"{large.name}+{small.name}", tmp_path)
    assert (both.input.size, both.cut_shape, both.widths) == (288, (1304,), (1280, 24))
    assert both.kept.cut_shape == (4048 + small.kept.cut_shape[0],)
    assert [level.name for level in both.levels[:3]] == [
        "efficientnet_lite0 features",
        "small features",
        "efficientnet_lite0 mean of block_5",
    ]
    images = pixels(288)
    middle = np.ascontiguousarray(images[:, 4::9, 4::9])
    first, second = run(large, LEVELS, images), run(small, LEVELS, middle)
    expected = np.hstack([first[:, :1280], second[:, :24], first[:, 1280:], second[:, 24:]])
    np.testing.assert_allclose(run(both, LEVELS, images), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(run(both, "features", images), run(both, LEVELS, images)[:, :1304])
    assert load_backbone(both.name, tmp_path) == both  # kept, not joined again
    with pytest.raises(BackboneError, match="cannot be cut at 'block_1': several backbones side by side"):
        both.at("block_1")


def test_each_of_a_pair_sees_the_part_that_it_is_for(tmp_path: Path) -> None:
    """The one takes all of the square, the other its middle 32 of 40 pixels, as many as the pair's input then has."""
    add_small_backbone(tmp_path)
    spec = InputSpec(size=SIZE, crop=SIZE / 40, resize="pillow-bicubic-1")
    cuts = ("block_2", "features")
    classes = ("a", "b", "c")
    add_backbone("middle", small_graph(classes=3), tmp_path, input_spec=spec, cuts=cuts, classes=classes, origin="here")
    pair = load_backbone("small+middle", tmp_path)
    assert (pair.input.size, pair.input.crop) == (40, 1)
    images = pixels(40)
    shown = np.ascontiguousarray(images[:, 4:36, 4:36])
    expected = run(load_backbone("middle", tmp_path), "features", shown)
    np.testing.assert_allclose(run(pair, "features", images)[:, 24:], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "small+small",
            "'small\\+small' names 2 backbones; expected 2 or 3 different ones, such as efficientnet_lite0",
        ),
        ("small+a+b+c", "names 4 backbones; expected 2 or 3 different ones"),
        ("small+nowhere", "nowhere"),
        ("small+flat", "'flat' has no feature maps"),
    ],
)
def test_what_cannot_be_joined_is_named(name: str, message: str, tmp_path: Path) -> None:
    small = add_small_backbone(tmp_path)
    net = Net(shape=("N", SIZE, SIZE, 3), dtype=onnx.TensorProto.UINT8, name="image")
    net.op("Cast", net.op("Flatten", "image"), out="features", to=onnx.TensorProto.FLOAT)
    flat = net.model("features")
    add_backbone("flat", flat, tmp_path, input_spec=small.input, cuts=("features",), classes=(), origin="here")
    with pytest.raises(BackboneError, match=message):
        load_backbone(name, tmp_path)


def test_a_pair_is_joined_anew_when_one_of_them_has_changed(tmp_path: Path) -> None:
    small = add_small_backbone(tmp_path)
    other = small_graph(classes=3)
    spec, cuts = small.input, ("block_2", "features")
    add_backbone("other", other, tmp_path, input_spec=spec, cuts=cuts, classes=("a", "b", "c"), origin="here")
    before = load_backbone("small+other", tmp_path)
    assert load_backbone("small+other", tmp_path) == before
    for tensor in (changed := small_graph(classes=3)).graph.initializer:
        if tensor.name == "c0.kernel":
            tensor.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(tensor), "c0.kernel"))
    add_backbone("other", changed, tmp_path, input_spec=spec, cuts=cuts, classes=("a", "b", "c"), origin="here")
    after = load_backbone("small+other", tmp_path)
    assert after.fingerprint != before.fingerprint
    images = pixels(small.input.size)
    expected = run(load_backbone("other", tmp_path), "features", images)
    np.testing.assert_allclose(run(after, "features", images)[:, 24:], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("version", [11, 13, 18])
def test_graphs_of_different_versions_are_joined(tmp_path: Path, version: int) -> None:
    small, other = add_small_backbone(tmp_path), small_graph()
    other.opset_import[0].version = version
    cuts = ("block_1", "head", "features")
    added = add_backbone("other", other, tmp_path, input_spec=small.input, cuts=cuts, classes=(), origin="here")
    images = pixels(small.input.size)
    for pair in (("small", "other"), ("other", "small")):
        joined = load_backbone("+".join(pair), tmp_path)
        expected = np.concatenate([run({"small": small, "other": added}[name], "features", images) for name in pair], 1)
        np.testing.assert_allclose(run(joined, "features", images), expected, rtol=1e-5, atol=1e-6)
        assert run(joined, LEVELS, images).shape[1] == sum(level.width for level in joined.levels)


def test_reductions_and_transformers_are_raised_too(tmp_path: Path) -> None:
    """Axes and bounds became inputs meanwhile, and layer normalisation an operator."""
    small = add_small_backbone(tmp_path)
    found = import_onnx(save_vit(tmp_path / "vit.onnx", opset=17), preprocessing=Preprocessing(low=-1, high=1))
    vit = add_backbone(
        "vit", found.graph, tmp_path, input_spec=found.input_spec, cuts=found.cuts, classes=(), origin="here"
    )
    newer = small_graph()
    newer.opset_import[0].version = 20
    add_backbone("newer", newer, tmp_path, input_spec=small.input, cuts=("head", "features"), classes=(), origin="here")
    images = pixels(small.input.size)
    expected = np.concatenate([run(vit, "features", images), run(small, "features", images)], axis=1)
    np.testing.assert_allclose(run(load_backbone("vit+newer", tmp_path), "features", images), expected, atol=1e-5)


def test_what_cannot_be_raised_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, other = add_small_backbone(tmp_path), small_graph()
    other.opset_import[0].version = 13
    add_backbone("old", other, tmp_path, input_spec=small.input, cuts=("head", "features"), classes=(), origin="here")

    def convert_version(*_: object) -> None:
        raise RuntimeError("No Adapter From Version $13 for Softmax")

    monkeypatch.setattr(onnx.version_converter, "convert_version", convert_version)
    with pytest.raises(BackboneError, match=r"'old' is of opset 13 and cannot be raised to 17.*opset 17, or leave"):
        load_backbone("small+old", tmp_path)
