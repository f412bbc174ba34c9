"""Lets graphs take any number of images, with no arithmetic on shapes left in them.

ONNX Runtime folds all that computes shapes where it knows the number of images. So most graphs are cleaned for one and
set free again (`free_batch`). Where the number of images is multiplied into other sides, as in attention that is
written for heads × images, that is not enough; then the graph for any number stays, and what follows in it from the
number of images alone, not from their pixels, is worked out for one, two and three of them (`settle_shapes`): it is a
constant, or a shape one side of which is left to be inferred, or a constant repeated for each image. What a model holds
is thus known before it is run, which loading it asks for (see `quickstudy.models.format`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from quickstudy.backbones.graphs.cleaning import BATCH, replace_nodes
from quickstudy.backbones.graphs.cutting import ancestors, opset_of, shapes_of
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.backbones.graphs.tokens import without_the_rest

_PADS_ARE_INPUTS = 11  # the first opset in which they are
_TRIED = (1, 2, 3)
_LOOKED_BACK = 40


def free_batch(model: onnx.ModelProto) -> None:
    """Let the graph of one image take any number.

    The first side of what is reshaped follows from what comes in, and constants that were joined to an image's values,
    such as a class token to the patches, are added instead, which any number of images can be.
    """
    _add_what_is_joined(model)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for number, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]])
        if not shape.size or shape[0] < 1:
            continue
        node.input[1] += f"/any_batch_{number}"
        first = 0 if -1 in shape else -1  # 0 takes over what comes in, -1 is worked out
        graph.initializer.append(numpy_helper.from_array(np.array([first, *shape[1:]]), node.input[1]))
        del node.attribute[:]  # there is only one, which would take the 0 at its word
    for info in (*graph.input, *graph.output):
        for side in info.type.tensor_type.shape.dim[:1]:
            side.dim_param = BATCH
    del graph.value_info[:]


def _add_what_is_joined(model: onnx.ModelProto) -> None:
    """Write a concatenation with constants of one image as padding with zeros and an addition, to the same bits."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    opset = opset_of(model)
    bound = [
        node
        for node in graph.node
        if node.op_type == "Concat"
        and node.attribute[0].i > 0
        and {name in constants for name in node.input} == {True, False}
        and all(constants[name].dims[:1] == [1] for name in node.input if name in constants)
    ]
    if not bound or opset < _PADS_ARE_INPUTS:
        return
    shapes = shapes_of(model)
    nodes = []
    for node in graph.node:
        if node not in bound or any(name not in shapes for name in node.input if name not in constants):
            nodes.append(node)
            continue
        axis, output = node.attribute[0].i, node.output[0]
        sides = [[1, *shapes[name]] if name not in constants else list(constants[name].dims) for name in node.input]
        parts = [
            numpy_helper.to_array(constants[name]) if name in constants else np.zeros(side, np.float32)
            for name, side in zip(node.input, sides, strict=True)
        ]
        graph.initializer.append(numpy_helper.from_array(np.concatenate(parts, axis=axis), f"{output}/joined"))
        # Zeros make room for constants: behind what comes before them or, for the first, before what comes first.
        room: list[list[Any]] = []
        waiting = 0
        for name, side in zip(node.input, sides, strict=True):
            if name not in constants:
                room.append([name, waiting, 0])
                waiting = 0
            elif room:
                room[-1][2] += side[axis]
            else:
                waiting += side[axis]
        padded = []
        for number, (name, front, behind) in enumerate(room):
            if front or behind:
                pads = np.zeros((2, len(sides[0])), np.int64)
                pads[:, axis] = front, behind
                made = f"{output}/padded_{number}"
                graph.initializer.append(numpy_helper.from_array(pads.ravel(), f"{made}/by"))
                nodes.append(helper.make_node("Pad", [name, f"{made}/by"], [made], name=made))
                name = made
            padded.append(name)
        if len(padded) > 1:
            whole = f"{output}/padded"
            nodes.append(helper.make_node("Concat", padded, [whole], name=whole, axis=axis))
            padded = [whole]
        nodes.append(helper.make_node("Add", [padded[0], f"{output}/joined"], [output], name=output))
    replace_nodes(graph, nodes)


def settle_shapes(model: onnx.ModelProto) -> None:
    """Replace what follows from the number of images alone by constants, as far as it can be.

    Args:
        model: takes any number of images of one size; changed in place.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    image = next(info for info in graph.input if info.name not in constants)
    seen = {image.name}  # what depends on pixels
    for node in graph.node:
        if node.op_type not in ("Shape", "Size") and seen & set(node.input):
            seen.update(node.output)
    made = {name for node in graph.node for name in node.output} - seen
    reshapes = [node for node in graph.node if node.op_type == "Reshape" and node.output[0] in seen]
    reshapes = [node for node in reshapes if node.input[1] in made]
    found = _tried(model, image, [node.output[0] for node in reshapes])
    for node in reshapes:
        sides = np.array([value.shape for value in found[node.output[0]]])
        differs = np.flatnonzero((sides != sides[0]).any(axis=0))
        if len(differs) <= 1:
            shape = sides[0].copy()
            shape[differs] = -1
            node.input[1] = f"{node.output[0]}/settled"
            graph.initializer.append(numpy_helper.from_array(shape, node.input[1]))
            del node.attribute[:]
    borders = {name for node in graph.node if seen & set(node.output) for name in node.input}
    wanted = sorted((borders | {info.name for info in graph.output}) & made)
    values = _tried(model, image, wanted)
    rows = {name: _one_each(model, image, name, seen) for name in wanted if not _is_constant(values[name])}
    settled = {
        name: _settled(graph, rows.get(name), name, values[name], f"settled/{number}")
        for number, name in enumerate(wanted)
    }
    done = {name for name, nodes in settled.items() if nodes} | {tensor.name for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if not set(node.output) & done:
            for name in node.input:
                nodes += settled.pop(name, ())
            nodes.append(node)
    replace_nodes(graph, nodes)
    without_the_rest(model)
    del graph.value_info[:]


def _tried(model: onnx.ModelProto, image: onnx.ValueInfoProto, wanted: Sequence[str]) -> dict[str, list[NDArray[Any]]]:
    """Work out tensors for one, two and three images, which are black: what is asked does not depend on pixels."""
    if not wanted:
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    session = open_session(probe.SerializeToString())
    kind = helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type)
    sides = [side.dim_value for side in image.type.tensor_type.shape.dim[1:]]
    results = [session.run(list(wanted), {image.name: np.zeros((count, *sides), kind)}) for count in _TRIED]
    return {name: [np.asarray(result[place]) for result in results] for place, name in enumerate(wanted)}


def _is_constant(values: Sequence[NDArray[Any]]) -> bool:
    return all(value.shape == values[0].shape and (value == values[0]).all() for value in values)


def _one_each(model: onnx.ModelProto, image: onnx.ValueInfoProto, name: str, seen: set[str]) -> tuple[str, int] | None:
    """Find the last tensor of floats, one row an image, that leads to where a tensor is used; with its rank.

    The last, so that no way leads around the blocks before, which are cuts.
    """
    graph = model.graph
    user = next((node for node in graph.node if name in node.input and seen & set(node.output)), None)
    beside = [given for given in user.input if given in seen] if user is not None else []
    if not beside:
        return None
    before = [node.output[0] for node in ancestors(graph, beside[0]) if node.output[0] in seen][-_LOOKED_BACK:]
    found = _tried(model, image, before)
    for given in reversed(before):
        values = found[given]
        if values[0].dtype == np.float32 and all(v.shape[:1] == (n,) for n, v in zip(_TRIED, values, strict=True)):
            return given, values[0].ndim
    return None


def _settled(
    graph: onnx.GraphProto,
    one_each: tuple[str, int] | None,
    name: str,
    values: Sequence[NDArray[Any]],
    prefix: str,
) -> list[onnx.NodeProto]:
    """Give the nodes that make a tensor of what it was found to be; none where it is a constant, or no rule is known.

    Args:
        graph: gets constants.
        one_each: name and rank of a tensor with one row an image; None where there is none.
        name: of the tensor.
        values: of the tensor, for one, two and three images.
        prefix: begins the names of new tensors.
    """
    first = values[0]

    def constant(value: NDArray[Any], called: str) -> str:
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), called))
        return called

    def repeats(axis: int) -> bool:
        """Say whether each value is the first one, as often as there are images; products round in the last place."""
        expected = [np.concatenate([first] * count, axis) for count in _TRIED]
        pairs = list(zip(values, expected, strict=True))
        return all(a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in pairs)

    if _is_constant(values):
        constant(first, name)
        return []
    axes = [axis for axis in range(first.ndim) if values[1].shape[axis] != first.shape[axis]]
    if one_each is None or len(axes) != 1 or first.dtype == np.bool_ or not repeats(axes[0]):
        return []
    source, rank = one_each
    axis, sides = axes[0], list(first.shape)
    kind = helper.np_dtype_to_tensor_dtype(first.dtype)
    beside = [1] * (first.ndim + 1)
    beside[axis] = sides[axis] = -1
    places = {"starts": [0] * (rank - 1), "ends": [1] * (rank - 1), "axes": list(range(1, rank))}
    bounds = [constant(np.array(where), f"{prefix}/{what}") for what, where in places.items()]
    # Added to zeros, one an image, made of a corner of each: unlike those of Expand, shapes can then be told.
    made: dict[str, tuple[str, list[str], dict[str, Any]]] = {
        f"{prefix}/corner": ("Slice", [source, *bounds], {}),
        f"{prefix}/cast": ("Cast", [f"{prefix}/corner"], {"to": kind}),
        f"{prefix}/zero": ("Mul", [f"{prefix}/cast", constant(np.zeros((), first.dtype), f"{prefix}/nought")], {}),
        f"{prefix}/zeros": ("Reshape", [f"{prefix}/zero", constant(np.array(beside), f"{prefix}/beside")], {}),
        f"{prefix}/many": ("Add", [constant(np.expand_dims(first, axis), f"{prefix}/one"), f"{prefix}/zeros"], {}),
        name: ("Reshape", [f"{prefix}/many", constant(np.array(sides), f"{prefix}/joined")], {}),
    }
    return [
        helper.make_node(operator, inputs, [output], name=output, **attributes)
        for output, (operator, inputs, attributes) in made.items()
    ]
