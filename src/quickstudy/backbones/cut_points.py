"""Where a graph can be cut: tensors through which everything passes, what they hold, what lies before and after them.

A graph can be cut at a tensor when nothing else leads from the image to the output around it. Of these, the ends of
blocks are worth a name: what a residual connection or a concatenation brings together, or, in a plain chain of layers,
what each layer gives after its normalisation, activation and pooling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile

import numpy as np
import onnx

from quickstudy.backbones.cuts import Cut
from quickstudy.backbones.graph import WEIGHTED, ancestors, weights_of
from quickstudy.errors import BackboneError


def describe_cuts(model: onnx.ModelProto, names: Sequence[str]) -> tuple[Cut, ...]:
    """What lies before and after each of these tensors; the last one is taken for the features.

    Raises:
        BackboneError: the graph has no such tensor, or its shape cannot be known.
    """
    shapes = shapes_of(model)
    before = {name: ancestors(model.graph, name) for name in names}
    weights = weights_of(model.graph, before[names[-1]])
    cuts = []
    for name in names:
        shape = shapes.get(name)
        if shape is None:
            raise BackboneError(f"The graph '{model.graph.name}' has no tensor '{name}' of a known shape")
        cuts.append(
            Cut(
                name=name,
                shape=shape,
                multiply_adds=sum(_multiply_adds(node, shapes, model.graph) for node in before[name]),
                parameters_after=sum(weights.values()) - sum(weights_of(model.graph, before[name]).values()),
            )
        )
    return tuple(cuts)


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of one image's activations by tensor: all dimensions but the first, where they are known.

    Raises:
        BackboneError: the shapes contradict each other.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except Exception as error:  # onnx raises its own, unexported kinds
        raise BackboneError(f"The shapes in the graph '{model.graph.name}' cannot be worked out: {error}") from None
    found = {}
    for info in (*graph.input, *graph.value_info, *graph.output):
        sides = [d.dim_value for d in info.type.tensor_type.shape.dim]
        if len(sides) > 1 and all(sides[1:]):
            found[info.name] = tuple(sides[1:])
    return found


def articulations(graph: onnx.GraphProto, until: str) -> list[str]:
    """Tensors that everything from the image to `until` passes through, in the graph's order; `until` is the last."""
    nodes = ancestors(graph, until)
    data = {info.name for info in graph.input} - {tensor.name for tensor in graph.initializer}
    flowing = _flowing(nodes, data)
    last_use = {name: number for number, node in enumerate(nodes) for name in node.input}
    alive = set(data & last_use.keys())
    found = []
    for number, node in enumerate(nodes):
        alive |= {
            name for name in node.output if name == until or (name in flowing and last_use.get(name, -1) > number)
        }
        alive -= {name for name in node.input if last_use[name] <= number}
        if len(alive) == 1 and node.output[0] in alive:
            found.append(node.output[0])
    return found


def _flowing(nodes: Sequence[onnx.NodeProto], data: set[str]) -> set[str]:
    """What depends on the image, of all that these nodes give; `data` names the graph's inputs."""
    flowing = set(data)
    for node in nodes:
        if flowing & set(node.input):
            flowing.update(node.output)
    return flowing


def block_ends(model: onnx.ModelProto, features: str) -> list[tuple[str, bool]]:
    """The cuts worth a name, in order, without `features` itself: tensor, and whether several paths meet in it.

    Between two layers with weights, that is the smallest tensor that everything passes through. Within a chain, the
    widened inside of a block is left out: what is larger than its neighbours, or no smaller than one of the three
    before it and soon falls to half its size.
    """
    graph, shapes = model.graph, shapes_of(model)
    producers = {name: node for node in graph.node for name in node.output}
    candidates: list[tuple[str, bool, int]] = []
    work = -1
    names = articulations(graph, features)
    for name, cut in zip(names, _work_until(model, names, shapes), strict=True):
        shape = shapes.get(name, ())
        if len(shape) != 3 or shape[1:] == (1, 1) or not cut:  # what is pooled already is features
            continue
        meets = _meets(producers[name], shapes, graph)
        size = int(np.prod(shape))
        if candidates and cut == work:
            before = candidates[-1]
            if size <= before[2]:
                candidates[-1] = (name, before[1] or meets, size)
        else:
            candidates.append((name, meets, size))
        work = cut
    sizes = [size for _, _, size in candidates]
    return [(name, meets) for number, (name, meets, _) in enumerate(candidates) if meets or not _inside(sizes, number)]


def _inside(sizes: Sequence[int], number: int) -> bool:
    """Whether one of a chain's tensors, whose sizes these are, is inside a block, not at its end; see `block_ends`."""
    size, before, after = sizes[number], sizes[max(0, number - 3) : number], sizes[number + 1 : number + 4]
    if not before or not after:
        return False
    soon = min(takewhile(lambda other: other <= size, after), default=size)
    return size > max(before[-1], after[0]) or min(before) <= size >= 2 * soon


def readable_names(ends: Sequence[tuple[str, bool]]) -> dict[str, str]:
    """Names for block ends by tensor: `stem`, `block_1` and so on, and `head` for what follows the last block."""
    meeting = [number for number, (_, meets) in enumerate(ends) if meets]
    names, blocks = {}, 0
    for number, (tensor, _) in enumerate(ends):
        if meeting and number == 0 and number != meeting[0]:
            names[tensor] = "stem"
        elif meeting and number == len(ends) - 1 and number > meeting[-1]:
            names[tensor] = "head"
        else:
            blocks += 1
            names[tensor] = f"block_{blocks}"
    return names


def _meets(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], graph: onnx.GraphProto) -> bool:
    """Whether paths are added up or joined here, looking through an activation that follows at once.

    Gates (squeeze-excite, swish) multiply paths and end no block.
    """
    producers = {name: other for other in graph.node for name in other.output}
    while len([name for name in node.input if name in producers]) == 1 and node.op_type not in WEIGHTED:
        node = producers[next(name for name in node.input if name in producers)]
    meeting = {name for name in node.input if name in shapes and name in producers}
    return node.op_type in ("Add", "Sum", "Concat") and len(meeting) > 1


def _work_until(model: onnx.ModelProto, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[int]:
    """Multiply-adds before each of some tensors that lie one behind the other."""
    places = {name: number for number, node in enumerate(model.graph.node) for name in node.output}
    costs = np.cumsum([_multiply_adds(node, shapes, model.graph) for node in model.graph.node])
    for name in names:
        yield int(costs[places[name]])


def _multiply_adds(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], graph: onnx.GraphProto) -> int:
    """Of one node for one image; only layers with weights count, as is usual."""
    if node.op_type not in WEIGHTED:
        return 0
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    kernel, given = dims.get(node.input[1]), shapes.get(node.output[0])
    if kernel is None or given is None:
        return 0
    if node.op_type == "Conv":
        return int(np.prod(given)) * int(np.prod(kernel[1:]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(shapes.get(node.input[0], (0,)))) * int(np.prod(kernel[1:]))
    return int(np.prod(kernel)) * int(np.prod(given[:-1]))
