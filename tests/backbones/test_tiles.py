"""Several squares of an image: the graph gives the mean of what it gives for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.cuts import FEATURES, LEVELS
from quickstudy.backbones.engines.engine import Engine
from quickstudy.backbones.engines.named import ONNX_RUNTIME, engine_for
from quickstudy.backbones.engines.tiles import prefix_graph
from quickstudy.errors import BackboneError
from quickstudy.images.fits import Fit
from small_backbones import SIDE, add_small_backbone


@pytest.fixture
def small(tmp_path: Path) -> Backbone:
    return add_small_backbone(tmp_path)


def squares(count: int, images: int = 3) -> np.ndarray:
    shape = (images, count * SIDE, SIDE, 3)
    return np.random.Generator(np.random.PCG64(count)).integers(0, 256, shape, np.uint8)


def averaged(net: Backbone, engine: Engine, images: np.ndarray, count: int) -> np.ndarray:
    """The slow way: each square by itself."""
    prefix = engine.open(net.reading(16, "crop"), net.cut, net.cut_shape)
    parts = [prefix(np.ascontiguousarray(part)) for part in np.split(images, count, axis=1)]
    prefix.close()
    return np.mean(parts, axis=0)


@pytest.mark.parametrize("cut", [FEATURES, LEVELS])
@pytest.mark.parametrize(("fit", "count"), [("tiles2", 2), ("tiles3", 3)])
def test_features_are_the_mean_of_the_squares(small: Backbone, cut: str, fit: Fit, count: int) -> None:
    net, images = small.at(cut).reading(16, fit), squares(count)
    prefix = ONNX_RUNTIME.open(net, net.cut, net.cut_shape)
    found = prefix(images)
    assert found.shape == (3, *net.cut_shape)
    np.testing.assert_allclose(found, averaged(net, ONNX_RUNTIME, images, count), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(prefix(images[1:2])[0], found[1], rtol=1e-5, atol=1e-5)


def test_other_engines_give_the_same(small: Backbone) -> None:
    net, images = small.at(LEVELS).reading(16, "tiles2"), squares(2)
    wanted = averaged(net, ONNX_RUNTIME, images, 2)
    pytest.importorskip("torch")
    from quickstudy.backbones.engines.batched import engine_on

    prefix = engine_on("cpu").open(net, net.cut, net.cut_shape)
    np.testing.assert_allclose(prefix(images), wanted, rtol=1e-4, atol=1e-4)
    prefix.close()
    pytest.importorskip("openvino")
    prefix = engine_for("openvino").open(net, net.cut, net.cut_shape)
    assert np.linalg.norm(prefix(images) - wanted) < 0.05 * np.linalg.norm(wanted)


def test_one_square_leaves_the_graph_as_it_is(small: Backbone) -> None:
    plain = prefix_graph(small, small.cut, small.cut_shape)
    squashed = prefix_graph(small.reading(16, "squash"), small.cut, small.cut_shape)
    assert plain.SerializeToString(deterministic=True) == squashed.SerializeToString(deterministic=True)
    assert "Reshape" not in {node.op_type for node in plain.graph.node}


def test_maps_have_no_mean_over_squares(small: Backbone) -> None:
    net = small.at("block_1").reading(16, "tiles2")
    with pytest.raises(BackboneError, match="cannot be cut at 'block_1' with the fit 'tiles2'"):
        prefix_graph(net, net.cut, net.cut_shape)
