"""Surgery on ONNX graphs: keep what leads to a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from quickstudy.errors import BackboneError


def keep_until(model: onnx.ModelProto, tensor: str, shape: Sequence[int]) -> onnx.ModelProto:
    """A copy of `model` whose only output is `tensor` (float32, N × `shape`), with nothing that it does not need.

    Raises:
        BackboneError: no node of the graph gives this tensor.
    """
    nodes = _ancestors(model.graph, tensor)
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        list(model.graph.input),
        [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["N", *shape])],
        [initializer for initializer in model.graph.initializer if initializer.name in used],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _ancestors(graph: onnx.GraphProto, tensor: str) -> list[onnx.NodeProto]:
    """The nodes that `tensor` depends on, in the graph's (topological) order."""
    needed, kept = {tensor}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(node.input)
    if not kept:
        names = [node.output[0] for node in graph.node if "/" not in node.output[0]]
        raise BackboneError(
            f"The graph '{graph.name}' has no tensor '{tensor}'; its cut points are: {', '.join(names)}"
        )
    return kept[::-1]
