"""Surgery on ONNX graphs: parts of them, where they can be cut, and where features end and a classifier begins.

A graph can be cut at a tensor when nothing else leads from the image to the output around it. Of these, the ends of
blocks are worth a name: what a residual connection or a concatenation brings together, or, in a plain chain of layers,
what each layer gives after its normalisation, activation and pooling.

Classifiers end alike: a layer with weights gives one score a class, perhaps followed by a softmax and by what only
reshapes, casts, scales, shifts or normalises the scores. What that layer takes is the penultimate layer. A network that
ends otherwise is taken for one without a classifier, and what it gives for features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import onnx
from onnx import TensorProto, helper

from quickstudy.backbones.cuts import Cut
from quickstudy.errors import BackboneError

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators that have weights."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
"""The types of tensors that may be weights."""


def keep_until(model: onnx.ModelProto, tensor: str, shape: Sequence[int]) -> onnx.ModelProto:
    """Copy the part of `model` that leads to `tensor`, which becomes the only output (float32, N × `shape`).

    Raises:
        BackboneError: no node of the graph gives this tensor.
    """
    outputs = [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["N", *shape])]
    return _part(model, ancestors(model.graph, tensor), list(model.graph.input), outputs)


def keep_between(
    model: onnx.ModelProto, start: str, start_shape: Sequence[int], end: str, end_shape: Sequence[int]
) -> onnx.ModelProto:
    """Copy the part of `model` from the tensor `start` to the tensor `end` (both float32, N × their shape).

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
    """List the nodes that `tensor` depends on, in the graph's (topological) order.

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
    """Find the weights and biases of layers among `nodes`, and how many values each has.

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


def describe_cuts(model: onnx.ModelProto, names: Sequence[str]) -> tuple[Cut, ...]:
    """Work out what lies before and after each of these tensors; the last one is taken for the features.

    Raises:
        BackboneError: the graph has no such tensor, or its shape cannot be known.
    """
    shapes = shapes_of(model)
    before = {name: ancestors(model.graph, name) for name in names}
    weights = weights_of(model.graph, before[names[-1]])
    work = _multiply_adds(model.graph, shapes)
    cuts = []
    for name in names:
        shape = shapes.get(name)
        if shape is None:
            raise BackboneError(f"The graph '{model.graph.name}' has no tensor '{name}' of a known shape")
        cuts.append(
            Cut(
                name=name,
                shape=shape,
                multiply_adds=sum(work[node.output[0]] for node in before[name]),
                parameters_after=sum(weights.values()) - sum(weights_of(model.graph, before[name]).values()),
            )
        )
    return tuple(cuts)


def opset_of(model: onnx.ModelProto) -> int:
    """Return the opset of ONNX's own operators in a graph."""
    return int(next(entry.version for entry in model.opset_import if not entry.domain))


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Work out the shapes of one image's activations by tensor: all dimensions but the first, where they are known.

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
    """List the tensors that everything from the image to `until`, the last, passes through, in the graph's order."""
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
    """Name the tensors that depend on the image, of all that these nodes give; `data` names the graph's inputs."""
    flowing = set(data)
    for node in nodes:
        if flowing & set(node.input):
            flowing.update(node.output)
    return flowing


def block_ends(model: onnx.ModelProto, features: str) -> list[tuple[str, bool]]:
    """List the cuts worth a name, in order, without `features` itself: tensor, and whether several paths meet in it.

    Between two layers with weights, that is the smallest tensor that everything passes through. Within a chain, the
    widened inside of a block is left out: what is larger than its neighbours, or no smaller than one of the three
    before it and soon falls to half its size. Among tokens, it is the sums in which a transformer's blocks end.
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
    maps = [(name, meets) for number, (name, meets, _) in enumerate(candidates) if meets or not _inside(sizes, number)]
    sums = [name for name in names if len(shapes.get(name, ())) == 2 and _meets(producers[name], shapes, graph)]
    return [*maps, *((name, True) for name in _token_blocks(graph, sums))]


def _token_blocks(graph: onnx.GraphProto, sums: Sequence[str]) -> list[str]:
    """Choose the ends of a transformer's blocks among the sums on its way, given in order.

    A block adds twice to what it was given: what attention found, and then what the layers behind it made of each
    token. Its end is the sum that no softmax, attention's, is just before; where no sum is of that kind, all are ends.
    """
    before: set[str] = set()
    ends = []
    for name in sums:
        added = [node for node in ancestors(graph, name) if node.output[0] not in before]
        before.update(node.output[0] for node in added)
        operators = {node.op_type for node in added}
        if not operators & {"Softmax", "Attention"} and operators & {"MatMul", "Gemm"}:
            ends.append(name)
    return ends or list(sums)


def _inside(sizes: Sequence[int], number: int) -> bool:
    """Say whether one of a chain's tensors, of these sizes, is inside a block, not at its end; see `block_ends`."""
    size, before, after = sizes[number], sizes[max(0, number - 3) : number], sizes[number + 1 : number + 4]
    if not before or not after:
        return False
    soon = min(takewhile(lambda other: other <= size, after), default=size)
    return size > max(before[-1], after[0]) or min(before) <= size >= 2 * soon


def readable_names(ends: Sequence[tuple[str, bool]]) -> dict[str, str]:
    """Name block ends by tensor: `stem`, `block_1` and so on, and `head` for what follows the last block."""
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
    """Say whether paths are added up or joined here, looking through an activation that follows at once.

    Gates (squeeze-excite, swish) multiply paths and end no block.
    """
    producers = {name: other for other in graph.node for name in other.output}
    while len([name for name in node.input if name in producers]) == 1 and node.op_type not in WEIGHTED:
        node = producers[next(name for name in node.input if name in producers)]
    meeting = {name for name in node.input if name in shapes and name in producers}
    return node.op_type in ("Add", "Sum", "Concat") and len(meeting) > 1


def _work_until(model: onnx.ModelProto, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[int]:
    """Count the multiply-adds before each of some tensors that lie one behind the other."""
    places = {name: number for number, node in enumerate(model.graph.node) for name in node.output}
    costs = np.cumsum(list(_multiply_adds(model.graph, shapes).values()))
    for name in names:
        yield int(costs[places[name]])


def _multiply_adds(graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Count the multiply-adds for one image by node, in the graph's order, each named by its first output.

    Only layers with weights count, as is usual.
    """
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        layer = node.op_type in WEIGHTED
        kernel, given = (dims.get(node.input[1]), shapes.get(node.output[0])) if layer else (None, None)
        if kernel is None or given is None:
            work = 0
        elif node.op_type == "Conv":
            work = int(np.prod(given)) * int(np.prod(kernel[1:]))
        elif node.op_type == "ConvTranspose":
            work = int(np.prod(shapes.get(node.input[0], (0,)))) * int(np.prod(kernel[1:]))
        else:
            work = int(np.prod(kernel)) * int(np.prod(given[:-1]))
        found[node.output[0]] = work
    return found


# Where features end and a classifier begins
_RESHAPING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout")
_SCALING = ("Add", "Sub", "Mul", "Div", "Cast", "BatchNormalization", "LayerNormalization", "LpNormalization")
"""Operators that, with constants, only shift, scale, cast or normalise what the classifier gives."""
_POOLING = ("GlobalAveragePool", "ReduceMean", "AveragePool", "Relu")
_CLASSIFYING = ("Gemm", "MatMul", "Conv")

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of one image's activations by tensor, without the number of images."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a network ends."""

    features: str
    """The tensor that the features are made of."""
    pooling: tuple[str, ...]
    """The operators that make N×F features of it."""
    scores: str | None
    """The tensor with a value for each class; None where the network does not classify."""
    softmax: tuple[str, ...]
    """The operators that make N×classes probabilities of it."""


def find_ending(model: onnx.ModelProto, *, layout: str, classes: int, named: str) -> Ending:
    """Find where in a network the features and the scores are.

    Args:
        model: its first output is what the network gives.
        layout: `NCHW` or `NHWC`; says which axis of a map holds the channels.
        classes: how many classes there are, where somebody knows; 0 otherwise.
        named: the tensor that is to be the features; empty: find it.

    Raises:
        BackboneError: the features are of a shape that cannot be used.
    """
    shapes, output = shapes_of(model), model.graph.output[0].name
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    classifier, softmax = None, False
    if named != output:
        classifier, softmax = _find_classifier(output, producers, constants, shapes, classes)
    tensor = named or (classifier.input[0] if classifier else output)
    features, pooling = _pooling(tensor, producers, shapes, layout)
    scores = None
    if classifier is not None and max(shapes[output]) > 1 and producers[output].op_type != "Sigmoid":
        scores = output  # a single value, or values each with a sigmoid, are no distribution over classes
    flatten = ("Flatten",) if len(shapes.get(output, ())) > 1 else ()
    last = (*flatten, *(() if softmax else ("Softmax",))) or ("Identity",)
    return Ending(features=features, pooling=pooling, scores=scores, softmax=last)


def _find_classifier(
    output: str, producers: Mapping[str, onnx.NodeProto], constants: set[str], shapes: Shapes, classes: int
) -> tuple[onnx.NodeProto | None, bool]:
    """Find the layer that gives the scores, None where there is none, and whether a softmax follows it."""
    shape = shapes.get(output, ())
    if sum(side > 1 for side in shape) > 1:
        return None, False  # a map, not a list of scores
    softmax, tensor, pooled = False, output, False
    sure = max(shape, default=1) in (1000, classes)
    while tensor in producers:
        node = producers[tensor]
        if node.op_type in _CLASSIFYING and _has_weights(node, constants):
            kernel_covers_all = node.op_type != "Conv" or set(shapes.get(node.output[0], (0, 0))[1:]) == {1}
            return (node, softmax) if kernel_covers_all or (pooled and sure) else (None, False)
        flowing = [name for name in node.input if name not in constants and name]
        if node.op_type in ("Softmax", "LogSoftmax"):
            softmax, sure = node.op_type == "Softmax", True
        elif node.op_type in _POOLING and sure:
            pooled = True  # as in SqueezeNet, which classifies every place and averages
        elif node.op_type not in (*_RESHAPING, *_SCALING, "Sigmoid") or len(flowing) != 1:
            return None, False
        elif node.op_type in ("Div", "Sub") and flowing[0] != node.input[0]:
            return None, False  # one over it
        tensor = flowing[0]
    return None, False


def _has_weights(node: onnx.NodeProto, constants: set[str]) -> bool:
    return node.input[1] in constants and node.input[0] not in constants


def _pooling(
    tensor: str, producers: Mapping[str, onnx.NodeProto], shapes: Shapes, layout: str
) -> tuple[str, tuple[str, ...]]:
    """Choose the tensor to start from, and the operators that make N×F features of it."""
    shape, node = shapes.get(tensor, ()), producers.get(tensor)
    if len(shape) == 1:
        return tensor, ("Identity",)
    if len(shape) > 1 and sum(side > 1 for side in shape) <= 1:
        return tensor, ("Flatten",)
    if len(shape) != 3:
        known = "×".join(str(side) for side in ("N", *shape)) if shape else "an unknown shape"
        raise BackboneError(
            f"The features would be '{tensor}' of {known}; expected N×features or N×channels×height×width. "
            "Name another tensor with --features"
        )
    if layout == "NCHW":
        return tensor, ("GlobalAveragePool", "Flatten")
    if node is not None and node.op_type == "Transpose" and [list(a.ints) for a in node.attribute] == [[0, 2, 3, 1]]:
        return node.input[0], ("GlobalAveragePool", "Flatten")  # the map as convolutions gave it
    return tensor, ("Transpose", "GlobalAveragePool", "Flatten")
