"""Suffix and head as a network: what the linear head gives, gradients at zero, rates by depth, deeper cuts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.named import Prefix
from quickstudy.backbones.graphs.autograd import GraphModule
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.errors import BackboneError
from quickstudy.learning.features import signed_sqrt
from quickstudy.retraining.network import SuffixNetwork, features_of, suffix_graph
from small_backbones import add_small_backbone

draws = np.random.Generator(np.random.PCG64(1))
WEIGHTS = draws.normal(0, 0.3, (24, 4)).astype(np.float32)
BIASES = draws.normal(0, 0.3, 4).astype(np.float32)


@pytest.fixture
def small(tmp_path: Path) -> Backbone:
    return add_small_backbone(tmp_path / "cache")


def network_at(net: Backbone) -> SuffixNetwork:
    return SuffixNetwork(GraphModule(suffix_graph(net)), WEIGHTS, BIASES)


def images(count: int = 3) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(2)).integers(0, 256, (count, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("cut", ["stem", "block_1", "block_2", "head"])
def test_prefix_and_suffix_give_what_the_whole_network_gives(small: Backbone, cut: str) -> None:
    features = small.at("features")
    expected = Prefix(features, "features", features.cut_shape)(images())
    net = small.at(cut)
    activations = Prefix(net, net.cut, net.cut_shape)(images())
    found = features_of(GraphModule(suffix_graph(net)), [torch.from_numpy(activations)])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    logits = network_at(net)(torch.from_numpy(activations)).detach().numpy()
    np.testing.assert_allclose(logits, signed_sqrt(expected) @ WEIGHTS + BIASES, rtol=1e-4, atol=1e-5)


def test_batch_norms_are_folded_and_the_rest_is_as_it_was(small: Backbone) -> None:
    graph = suffix_graph(small.at("block_1"))
    onnx.checker.check_model(graph, full_check=True)
    kinds = [node.op_type for node in graph.graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("Conv") == 3
    assert [entry.domain for entry in graph.opset_import] == [""]
    assert graph.ir_version == 8


def test_a_feature_of_zero_has_a_finite_gradient(small: Backbone) -> None:
    network = network_at(small.at("head"))
    zeros = torch.zeros(2, *small.at("head").cut_shape, requires_grad=True)
    logits = network(zeros)
    assert torch.equal(logits, network.biases.expand(2, 4))
    logits.square().sum().backward()
    assert torch.isfinite(zeros.grad).all()


def test_rates_grow_towards_the_head_and_only_weights_decay(small: Backbone) -> None:
    network = network_at(small.at("stem"))
    groups = network.parameter_groups(depth_decay=0.25, head_rate=2.0, weight_decay=0.1)
    factors = [group["rate_factor"] for group in groups]
    assert factors[:-2] == sorted(factors[:-2])
    assert 0.25 < factors[0] < factors[-3] == 1.0
    assert factors[-2:] == [2.0, 2.0]
    for group in groups:
        (parameter,) = group["params"]
        assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in network.parameters()}


def test_a_deeper_network_ends_with_the_layers_of_the_one_before(small: Backbone) -> None:
    late = network_at(small.at("block_2"))
    with torch.no_grad():
        for parameter in late.parameters():
            parameter.add_(0.01)
    early = late.deepened(GraphModule(suffix_graph(small.at("block_1"))))
    at = small.at("block_1")
    activations = Prefix(at, at.cut, at.cut_shape)(images())
    between = Prefix(small.at("block_2"), "block_2", small.at("block_2").cut_shape)(images())
    np.testing.assert_allclose(
        early(torch.from_numpy(activations)).detach(), late(torch.from_numpy(between)).detach(), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(BackboneError, match="has no weights"):
        early.deepened(GraphModule(suffix_graph(small.at("block_2"))))


def test_changed_weights_in_the_graph_give_what_the_network_gives(small: Backbone) -> None:
    net = small.at("block_1")
    network = network_at(net)
    activations = Prefix(net, net.cut, net.cut_shape)(images())
    network(torch.from_numpy(activations)).square().sum().backward()
    with torch.no_grad():
        for parameter in network.suffix.parameters():
            parameter -= 1e-3 * parameter.grad
    session = open_session(network.suffix.to_onnx().SerializeToString())
    found = session.run(None, {"block_1": activations})[0]
    np.testing.assert_allclose(
        found, features_of(network.suffix, [torch.from_numpy(activations)]), rtol=1e-5, atol=1e-5
    )
