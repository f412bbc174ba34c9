"""Cutting graphs: the same values at the cut, and nothing left that it does not need."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.graph import keep_until
from quickstudy.backbones.runtime import open_session
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
def test_a_tensor_that_no_node_gives_is_an_error_that_lists_the_cut_points(name: str) -> None:
    with pytest.raises(BackboneError) as caught:
        keep_until(small_graph(), name, [2])
    assert str(caught.value) == f"The graph 'small' has no tensor '{name}'; its cut points are: double, other, sum, out"


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


def test_an_unknown_cut_of_the_backbone_lists_its_blocks(backbone: Backbone) -> None:
    with pytest.raises(BackboneError) as caught:
        keep_until(onnx.load(backbone.path), "block_17", [1])
    blocks = ", ".join(f"block_{number}" for number in range(1, 17))
    assert f"has no tensor 'block_17'; its cut points are: input, stem, {blocks}, head, features" in str(caught.value)
