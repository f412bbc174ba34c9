"""Graphs in PyTorch: the default backbone from any cut, its weights by name, back into the graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.graphs.autograd import GraphModule
from quickstudy.backbones.graphs.cutting import keep_between
from quickstudy.backbones.graphs.runtime import open_session, optimised
from quickstudy.errors import BackboneError


def suffix_of(backbone: Backbone, cut: str) -> tuple[onnx.ModelProto, np.ndarray]:
    """The graph from a cut to the features, and activations such as might be there."""
    start, end = backbone.at(cut), backbone.at("features")
    model = keep_between(onnx.load(backbone.path), cut, start.cut_shape, "features", end.cut_shape)
    some = np.random.Generator(np.random.PCG64(3)).normal(size=(2, *start.cut_shape))
    return model, some.astype(np.float32)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("cut", ["stem", "block_5", "block_12", "block_16", "head"])
def test_every_suffix_agrees_with_onnx_runtime(backbone: Backbone, cut: str, fold: bool) -> None:
    model, x = suffix_of(backbone, cut)
    expected = open_session(model.SerializeToString()).run(None, {cut: x})[0]
    with torch.no_grad():
        found = GraphModule(optimised(model) if fold else model)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_whole_network_agrees_with_onnx_runtime(backbone: Backbone) -> None:
    size = backbone.input.size
    image = np.random.Generator(np.random.PCG64(4)).integers(0, 256, (1, size, size, 3), np.uint8)
    expected = open_session(backbone.path).run(None, {"image": image})[0]
    with torch.no_grad():
        found = GraphModule(onnx.load(backbone.path))(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_and_biases_are_trained_and_nothing_else(backbone: Backbone) -> None:
    model, _ = suffix_of(backbone, "block_15")
    module = GraphModule(model)
    kinds = {name.rsplit(".", 2)[-2] for name in module.weight_names}
    assert kinds == {"_expand_conv", "_depthwise_conv", "_project_conv", "_conv_head"}
    assert len(module.weight_names) == len(list(module.parameters())) == 4
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert [tuple(module.weight(name).shape) for name in module.weight_names] == [
        sizes[name] for name in module.weight_names
    ]


def test_changed_weights_go_back_by_name_and_the_rest_stays(backbone: Backbone) -> None:
    model, x = suffix_of(backbone, "block_15")
    model = optimised(model)
    module = GraphModule(model)
    module(torch.from_numpy(x)).sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0
            parameter -= 1e-3 * parameter.grad
    changed = module.to_onnx()
    onnx.checker.check_model(changed, full_check=True)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(
        open_session(changed.SerializeToString()).run(None, {"block_15": x})[0], expected, rtol=1e-4, atol=1e-5
    )
    for before, after in zip(model.graph.initializer, changed.graph.initializer, strict=True):
        same = before.SerializeToString() == after.SerializeToString()
        assert same == (before.name not in module.weight_names)
    assert list(changed.graph.node) == list(model.graph.node)


def test_the_graph_given_is_left_as_it_is(backbone: Backbone) -> None:
    model, _ = suffix_of(backbone, "head")
    before = model.SerializeToString(deterministic=True)
    module = GraphModule(model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    module.to_onnx()
    assert model.SerializeToString(deterministic=True) == before


def test_operators_that_cannot_be_run_are_named() -> None:
    nodes = [helper.make_node("Det", ["x"], ["d"]), helper.make_node("Sinh", ["d"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
    )
    with pytest.raises(BackboneError, match="'odd' cannot be trained: Det, Sinh cannot be run"):
        GraphModule(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
