"""Graphs made plain compute what they computed before."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from small_networks import SIZE, Net, photos, run

from quickstudy.backbones.graphs.cleaning import join_batch_norms, pool_channels_first, rename


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def given() -> np.ndarray:
    return (photos().transpose(0, 3, 1, 2) / 255).astype(np.float32)


def test_batch_norms_taken_apart_are_whole_again() -> None:
    net = Net()
    mean, scale, shift = (net.random(1, 8, 1, 1) for _ in range(3))
    x = net.op("Sub", net.conv("x", 3, 8), mean)
    x = net.op("Add", net.op("Mul", x, scale), shift)
    x = net.op("Div", net.op("Sub", np.array(2.0), x), np.array(4.0))
    output = net.relu(x)
    model = net.model(output)
    before = run(model, output, given())
    join_batch_norms(model)
    assert operators(model) == ["Conv", "BatchNormalization", "Relu"]
    onnx.checker.check_model(model)
    np.testing.assert_allclose(run(model, output, given()), before, atol=1e-5)


def test_those_without_a_convolution_before_them_too() -> None:
    net = Net()
    x = net.relu(net.op("MaxPool", net.conv("x", 3, 8), kernel_shape=[2, 2]))
    output = net.op("Mul", net.op("Sub", x, net.random(8, 1, 1)), net.random(8, 1, 1))
    model = net.model(output)
    before = run(model, output, given())
    join_batch_norms(model)
    assert operators(model) == ["Conv", "MaxPool", "Relu", "BatchNormalization"]
    np.testing.assert_allclose(run(model, output, given()), before, atol=1e-5)


def unlike() -> dict[str, Net]:
    """What looks like a batch norm taken apart and is none."""
    nets = {name: Net() for name in ("used twice", "by place", "two maps", "divides", "one step", "numbers only")}
    net = nets["used twice"]
    x = net.conv("x", 3, 8)
    net.op("Add", net.relu(net.op("Mul", x, net.random(8, 1, 1))), x, out="out")
    net = nets["by place"]
    net.op("Mul", net.conv("x", 3, 8), net.random(1, 1, 1, SIZE), out="out")
    net = nets["two maps"]
    net.op("Mul", net.conv("x", 3, 8), net.conv("x", 3, 8), out="out")
    net = nets["divides"]
    net.op("Div", np.array(1.0), net.op("Sigmoid", net.conv("x", 3, 8)), out="out")
    net = nets["one step"]
    net.op("Add", net.relu(net.conv("x", 3, 8)), net.random(8, 1, 1), out="out")
    net = nets["numbers only"]
    net.op("Mul", net.op("Sub", net.relu(net.conv("x", 3, 8)), np.array(0.5)), np.array(2.0), out="out")
    return nets


@pytest.mark.parametrize("kind", list(unlike()))
def test_what_is_no_batch_norm_stays(kind: str) -> None:
    model = unlike()[kind].model("out")
    before = model.SerializeToString()
    join_batch_norms(model)
    assert model.SerializeToString() == before


def test_a_tensor_that_the_graph_gives_stays() -> None:
    net = Net()
    middle = net.op("Mul", net.conv("x", 3, 8), net.random(8, 1, 1))
    output = net.op("Add", middle, net.random(8, 1, 1))
    model = net.model(output)
    model.graph.output.append(onnx.ValueInfoProto(name=middle))
    before = run(model, middle, given())
    join_batch_norms(model)
    assert operators(model) == ["Conv", "BatchNormalization", "Add"]
    np.testing.assert_allclose(run(model, middle, given()), before, atol=1e-6)


@pytest.mark.parametrize(("opset", "keepdims", "changed"), [(13, 0, True), (18, 0, True), (13, 1, False)])
def test_averages_with_channels_last_are_written_with_channels_first(opset: int, keepdims: int, changed: bool) -> None:
    net = Net(shape=("N", SIZE, SIZE, 3))
    if opset == 13:
        output = net.op("ReduceMean", "x", axes=[1, 2], keepdims=keepdims)
    else:
        output = net.op("ReduceMean", "x", np.array([1, 2]), keepdims=keepdims)
    model = net.model(output, opset=opset)
    images = photos().astype(np.float32)
    before = run(model, output, images)
    pool_channels_first(model)
    assert operators(model) == (["Transpose", "GlobalAveragePool", "Flatten"] if changed else ["ReduceMean"])
    np.testing.assert_allclose(run(model, output, images), before, rtol=1e-5)


def test_tensors_change_names_and_make_room() -> None:
    net = Net(name="a")
    net.relu(net.relu("a", out="b"), out="c")
    model = net.model("c")
    rename(model.graph, {"a": "b", "c": "d", "nothing": "e"})
    assert [(*node.input, *node.output) for node in model.graph.node] == [("b", "b/other"), ("b/other", "d")]
    assert [model.graph.input[0].name, model.graph.output[0].name] == ["b", "d"]
    onnx.checker.check_model(model)


def test_names_may_be_exchanged() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["b"])], "net", [], []
    )
    rename(graph, {"a": "b", "b": "a"})
    assert [(*node.input, *node.output) for node in graph.node] == [("x", "b"), ("b", "a")]
