"""Cutting graphs: the same values at the cut, and nothing left that it does not need."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.graphs.cutting import keep_between, keep_until, weights_of
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.errors import BackboneError


def small_graph() -> onnx.ModelProto:
    """x → double → sum (of both) → out, and a branch aside → other that nothing else needs."""
    constants = {"two": 2.0, "three": 3.0, "unused": 4.0}
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["double"]),
        helper.make_node("Add", ["x", "three"], ["block/inner"]),
        helper.make_node("Mul", ["block/inner", "three"], ["other"]),
        helper.make_node("Add", ["x", "double"], ["sum"]),
        helper.make_node("Sqrt", ["sum"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, tensor: str, x: np.ndarray) -> np.ndarray:
    return open_session(model.SerializeToString()).run([tensor], {model.graph.input[0].name: x})[0]


def test_what_leads_to_the_tensor_stays_and_nothing_else() -> None:
    model = small_graph()
    cut = keep_until(model, "sum", [2])
    assert [node.output[0] for node in cut.graph.node] == ["double", "sum"]
    assert [initializer.name for initializer in cut.graph.initializer] == ["two"]
    assert [info.name for info in cut.graph.output] == ["sum"]
    assert [info.name for info in cut.graph.input] == ["x"]
    onnx.checker.check_model(cut, full_check=True)
    assert run(cut, "sum", np.array([[1, 2]], np.float32)).tolist() == [[3, 6]]
    branch = keep_until(model, "other", [2])
    assert [node.output[0] for node in branch.graph.node] == ["block/inner", "other"]
    assert run(branch, "other", np.array([[1, 2]], np.float32)).tolist() == [[12, 15]]


def test_the_graph_given_is_left_as_it_is() -> None:
    model = small_graph()
    before = model.SerializeToString(deterministic=True)
    keep_until(model, "double", [2])
    assert model.SerializeToString(deterministic=True) == before


def test_versions_are_kept() -> None:
    cut = keep_until(small_graph(), "double", [2])
    assert (cut.ir_version, [(opset.domain, opset.version) for opset in cut.opset_import]) == (8, [("", 17)])


@pytest.mark.parametrize("name", ["nothing", "x", "two", ""])
def test_a_tensor_that_no_node_gives_is_an_error(name: str) -> None:
    with pytest.raises(BackboneError) as caught:
        keep_until(small_graph(), name, [2])
    assert str(caught.value) == f"The graph 'small' has no tensor '{name}'"


def test_what_follows_from_a_tensor() -> None:
    rest = keep_between(small_graph(), "sum", [2], "out", [2])
    assert [node.output[0] for node in rest.graph.node] == ["out"]
    assert [info.name for info in rest.graph.input] == ["sum"]
    onnx.checker.check_model(rest, full_check=True)
    assert run(rest, "out", np.array([[4, 9]], np.float32)).tolist() == [[2, 3]]


def test_what_leads_around_a_cut_is_named() -> None:
    with pytest.raises(BackboneError) as caught:
        keep_between(small_graph(), "double", [2], "out", [2])
    assert str(caught.value) == (
        "The graph 'small' cannot be cut at 'double': 'sum' also takes 'x', which leads around it"
    )


def test_before_and_after_a_cut_are_the_whole(backbone: Backbone) -> None:
    model = onnx.load(backbone.path)
    image = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (1, 288, 288, 3), np.uint8)
    for cut in (backbone.cuts[0], backbone.cuts[9]):
        before = keep_until(model, cut.name, cut.shape)
        after = keep_between(model, cut.name, cut.shape, "features", (1280,))
        assert len(before.graph.node) + len(after.graph.node) == len(keep_until(model, "features", (1280,)).graph.node)
        found = run(after, "features", run(before, cut.name, image))
        np.testing.assert_allclose(found, run(keep_until(model, "features", (1280,)), "features", image), atol=1e-4)


def test_weights_are_those_of_layers() -> None:
    """Not a batch norm's, not the limits of an activation; a product's bias is a layer's."""
    shapes = {"k": (4, 3, 1, 1), "b": (4,), "scale": (4,), "six": (), "m": (4, 5), "mb": (5,), "other": (5,)}
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "scale", "scale", "scale", "scale"], ["n"]),
        helper.make_node("Clip", ["n", "", "six"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["p"]),
        helper.make_node("Add", ["p", "mb"], ["q"]),
        helper.make_node("Add", ["q", "other"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [],
        [],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in shapes.items()],
    )
    assert weights_of(graph, graph.node) == {"k": 12, "b": 4, "m": 20, "mb": 5}
    assert weights_of(graph, graph.node[:2]) == {"k": 12, "b": 4}


@pytest.mark.parametrize(
    ("tensor", "shape", "nodes"),
    [("stem", (32, 144, 144), 7), ("block_1", (16, 144, 144), 12), ("block_12", (192, 9, 9), None)],
)
def test_a_cut_backbone_gives_the_whole_ones_values(
    backbone: Backbone, tensor: str, shape: tuple[int, ...], nodes: int | None
) -> None:
    model = onnx.load(backbone.path)
    cut = keep_until(model, tensor, shape)
    onnx.checker.check_model(cut, full_check=True)
    assert nodes is None or len(cut.graph.node) == nodes
    image = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (1, 288, 288, 3), np.uint8)
    model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    found = run(cut, tensor, image)
    assert found.shape == (1, *shape)
    np.testing.assert_allclose(found, run(model, tensor, image), atol=1e-4)


def test_the_default_cut_leaves_the_classifier_behind(backbone: Backbone) -> None:
    cut = keep_until(onnx.load(backbone.path), backbone.cut, backbone.cut_shape)
    names = {initializer.name for initializer in cut.graph.initializer}
    assert "_fc.weight" not in names
    assert "_conv_head.weight" in names
    assert names == {name for node in cut.graph.node for name in node.input} & names
    assert not {"Gemm", "Softmax"} & {node.op_type for node in cut.graph.node}
    assert len(cut.SerializeToString()) < backbone.path.stat().st_size - 4 * 1000 * 1280
