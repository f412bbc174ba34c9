"""Surgery on ONNX graphs: keep what leads to a tensor, or what follows from one."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from quickstudy.errors import BackboneError

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with weights."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def keep_until(model: onnx.ModelProto, tensor: str, shape: Sequence[int]) -> onnx.ModelProto:
    """A copy of `model` whose only output is `tensor` (float32, N × `shape`), with nothing that it does not need.

    Raises:
        BackboneError: no node of the graph gives this tensor.
    """
    outputs = [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["N", *shape])]
    return _part(model, ancestors(model.graph, tensor), list(model.graph.input), outputs)


def keep_between(
    model: onnx.ModelProto, start: str, start_shape: Sequence[int], end: str, end_shape: Sequence[int]
) -> onnx.ModelProto:
    """A copy of `model` from the tensor `start` to the tensor `end` (both float32, N × their shape).

    Raises:
        BackboneError: there is no such tensor, or `end` depends on more than `start`.
    """
    before = {node.output[0] for node in ancestors(model.graph, start)}
    nodes = [node for node in ancestors(model.graph, end) if node.output[0] not in before]
    known = {start, "", *(tensor.name for tensor in model.graph.initializer)}
    for node in nodes:
        for name in node.input:
            if name not in known:
                raise BackboneError(
                    f"The graph '{model.graph.name}' cannot be cut at '{start}': '{node.name or node.output[0]}' "
                    f"also takes '{name}', which leads around it"
                )
        known.update(node.output)
    inputs = [helper.make_tensor_value_info(start, TensorProto.FLOAT, ["N", *start_shape])]
    outputs = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["N", *end_shape])]
    return _part(model, nodes, inputs, outputs)


def ancestors(graph: onnx.GraphProto, tensor: str) -> list[onnx.NodeProto]:
    """The nodes that `tensor` depends on, in the graph's (topological) order.

    Raises:
        BackboneError: no node of the graph gives this tensor.
    """
    needed, kept = {tensor}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(node.input)
    if not kept:
        raise BackboneError(f"The graph '{graph.name}' has no tensor '{tensor}'")
    return kept[::-1]


def weights_of(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> dict[str, int]:
    """The weights and biases of layers among `nodes`, and how many values each has.

    Scales and shifts of batch norms are none of them, nor are constants such as an activation's limits.
    """
    sizes = {}
    for tensor in graph.initializer:
        if tensor.data_type in FLOATS:
            size = 1
            for side in tensor.dims:
                size *= side
            sizes[tensor.name] = size
    found: dict[str, int] = {}
    products: set[str] = set()
    for node in nodes:
        adds_bias = node.op_type == "Add" and products & set(node.input)
        if node.op_type in WEIGHTED or adds_bias:
            found.update({name: sizes[name] for name in node.input if name in sizes})
        if node.op_type == "MatMul":
            products.update(node.output)
    return found


def _part(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        inputs,
        outputs,
        [initializer for initializer in model.graph.initializer if initializer.name in used],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
