"""Makes a graph from elsewhere plain, once it is known which of its inputs is the image.

A plain graph has fixed shapes, batches of any size, channels first, and batch norms as such. ONNX Runtime's basic
optimisation does most of it. It folds everything that computes shapes, but only where it knows all of them; so a graph
is given to it for one image at a time, and set free again afterwards. Of the image, it must be known of what size it
is, of what type, and where its channels are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quickstudy.backbones.graphs.cutting import shapes_of
from quickstudy.errors import BackboneError, OptionError

BATCH = "N"
IMAGE_OUTPUTS = ("image_embeds", "last_hidden_state", "pooler_output")
"""Names of outputs, as transformers gives them, of which one is taken where there are several; best first."""
_IR_VERSION = 8  # at least: before 4, initializers had to be inputs, too


def fix_shapes(model: onnx.ModelProto, image: ImageInput, *, batch: int | None, outputs: Sequence[str]) -> None:
    """Let the graph take images of one size, and give these outputs only.

    Args:
        model: changed in place.
        image: its input.
        batch: how many images at a time; None for any number.
        outputs: tensors in it.
    """
    graph = model.graph
    sides = {"N": batch or BATCH, "C": 3, "H": image.size, "W": image.size}
    kind = next(info for info in graph.input if info.name == image.name).type.tensor_type.elem_type
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.append(helper.make_tensor_value_info(image.name, kind, [sides[letter] for letter in image.layout]))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs))
    model.ir_version = max(model.ir_version, _IR_VERSION)


def widen(model: onnx.ModelProto) -> bool:
    """Let a graph compute in float32 where it does so in half precision; whether there was anything to widen.

    Weights keep their values to the bit. Bottlenecks, cuts and heads are then those of any other network, and
    processors are no slower: ONNX Runtime computes half precision in float32 there, between casts.
    """
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    graph, found = model.graph, False
    tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]
    for tensor in tensors:
        if tensor.data_type in halves:
            wide = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
            tensor.CopyFrom(wide)
            found = True
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in halves:
                attribute.i, found = TensorProto.FLOAT, True
    for info in (*graph.input, *graph.output):
        if info.type.tensor_type.elem_type in halves:
            info.type.tensor_type.elem_type, found = TensorProto.FLOAT, True
    if found:
        del graph.value_info[:]
    return found


def choose_output(model: onnx.ModelProto, name: str | None, preferred: Sequence[str] = IMAGE_OUTPUTS) -> str:
    """Let a graph give one output alone, the one of this name, and say which of several it is.

    Left out, the name is that of the only output or, where there are several, the first of those preferred.

    Returns:
        What was chosen of what, for people; empty where there was no choice.

    Raises:
        BackboneError: there is none, or there are several and none is named or known.
    """
    outputs = {info.name: info for info in model.graph.output}
    listed = ", ".join(f"'{one}'" for one in outputs)
    name = name or next((known for known in preferred if known in outputs), None)
    if name is None and len(outputs) > 1:
        raise BackboneError(f"The network has {len(outputs)} outputs: {listed}; choose one with --output")
    if name is not None and name not in outputs:
        raise BackboneError(f"The network has no output '{name}'; it has: {listed}")
    chosen = outputs[name] if name is not None else model.graph.output[0]
    kept = onnx.ValueInfoProto()
    kept.CopyFrom(chosen)
    del model.graph.output[:]
    model.graph.output.append(kept)
    return f"'{kept.name}', of {listed}" if len(outputs) > 1 else ""


def refuse_training_mode(model: onnx.ModelProto) -> None:
    """Raise a BackboneError where a graph was exported in training mode, so that it gives something else each time."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                constants[node.output[0]] = attribute.t
    for node in model.graph.node:
        flag = constants.get(node.input[2]) if node.op_type == "Dropout" and len(node.input) > 2 else None
        training = flag is not None and bool(numpy_helper.to_array(flag))
        if node.op_type == "BatchNormalization":
            training = any(one.name == "training_mode" and one.i for one in node.attribute)
        if training:
            raise BackboneError(
                f"The network was exported in training mode: '{node.name or node.output[0]}' ({node.op_type}) does "
                "something else with each batch; export it for inference, with model.eval() in PyTorch"
            )


def pool_channels_first(model: onnx.ModelProto) -> None:
    """Write means over rows and columns of N×H×W×C as transposition and global average pooling.

    With channels last all through the end of a network, ONNX Runtime moves transpositions there and leaves its last
    block that way; with a transposition to meet, they cancel out, and all maps have their channels first.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        axes = attributes.get("axes")
        if node.op_type == "ReduceMean" and len(node.input) > 1 and node.input[1] in constants:
            axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
        if node.op_type == "ReduceMean" and axes == [1, 2] and attributes.get("keepdims", 1) == 0:
            first, pooled = (f"{node.output[0]}/{step}" for step in ("channels_first", "pooled"))
            nodes += [
                helper.make_node("Transpose", [node.input[0]], [first], perm=[0, 3, 1, 2]),
                helper.make_node("GlobalAveragePool", [first], [pooled]),
                helper.make_node("Flatten", [pooled], [node.output[0]]),
            ]
        else:
            nodes.append(node)
    replace_nodes(model.graph, nodes)


def join_batch_norms(model: onnx.ModelProto) -> None:
    """Write what scales and shifts a map's channels, in several steps or after a convolution, as one batch norm.

    Some exporters take batch norms apart into subtraction, multiplication and addition. ONNX Runtime folds them into
    convolutions only if they are whole.
    """
    graph, shapes = model.graph, shapes_of(model)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    replaced: dict[str, onnx.NodeProto | None] = {}
    for start in graph.node:
        source, shape = start.output[0], shapes.get(start.output[0], ())
        if len(shape) != 3 or source in replaced:
            continue
        steps = list(_affine_steps(source, users, constants, shape[0], {info.name for info in graph.output}))
        whole = start.op_type == "Conv" or (len(steps) > 1 and any(step.by_channel for step in steps))
        if not steps or not whole:
            continue
        scale, shift = np.ones(shape[0]), np.zeros(shape[0])
        for step in steps:
            scale, shift = scale * step.scale, shift * step.scale + step.shift
        end = steps[-1].output
        names = [f"{end}/{part}" for part in ("scale", "shift", "mean", "variance")]
        for name, values in zip(names, (scale, shift, 0 * scale, 0 * scale + 1), strict=True):
            graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
        replaced |= dict.fromkeys(step.output for step in steps)
        replaced[end] = helper.make_node("BatchNormalization", [source, *names], [end], name=end, epsilon=0.0)
    nodes = [replaced.get(node.output[0], node) for node in graph.node]
    replace_nodes(graph, [node for node in nodes if node is not None])


def rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Give tensors other names; what has one of these names already gets another."""
    renamed, taken = dict(names), {name for node in graph.node for name in (*node.input, *node.output)}
    for name in taken & set(names.values()):
        other = name
        while other in taken:
            other += "/other"
        renamed.setdefault(name, other)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        node.name = node.output[0]  # tensors' names differ, so nodes' names do
    for part in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.name = renamed.get(part.name, part.name)


class _Step(NamedTuple):
    """What a node does to a map's channels: each is multiplied by `scale`, then `shift` is added."""

    output: str
    """Name of the tensor that the node gives."""
    scale: NDArray[np.float64]
    """Factors, one a channel."""
    shift: NDArray[np.float64]
    """Terms, one a channel."""
    by_channel: bool
    """Whether the graph has a number for each channel, not one for all."""


def _affine_steps(
    tensor: str,
    users: Mapping[str, Sequence[onnx.NodeProto]],
    constants: Mapping[str, onnx.TensorProto],
    channels: int,
    kept: set[str],
) -> Iterator[_Step]:
    """Yield the steps that scale and shift a map (N×C×H×W) one after the other, as long as nothing else takes part."""
    while tensor not in kept and len(users.get(tensor, ())) == 1:
        step = _affine(users[tensor][0], tensor, constants, channels)
        if step is None:
            return
        yield step
        tensor = step.output


def _affine(
    node: onnx.NodeProto, tensor: str, constants: Mapping[str, onnx.TensorProto], channels: int
) -> _Step | None:
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    first = node.input[0] == tensor
    other = constants.get(node.input[1] if first else node.input[0])
    if other is None or (node.op_type == "Div" and not first):
        return None
    value = numpy_helper.to_array(other).astype(np.float64)
    by_channel = value.ndim in (3, 4) and value.shape[-3:] == (channels, 1, 1)
    if value.size != 1 and not by_channel:
        return None
    value, one = np.broadcast_to(value.reshape(-1), channels), np.ones(channels)
    match node.op_type:
        case "Add":
            scale, shift = one, value
        case "Sub":
            scale, shift = (one, -value) if first else (-one, value)
        case "Mul":
            scale, shift = value, 0 * one
        case _:
            scale, shift = 1 / value, 0 * one
    return _Step(node.output[0], scale, shift, by_channel)


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Let a graph have these nodes instead of its own."""
    del graph.node[:]
    graph.node.extend(nodes)


# What a network takes
LAYOUTS = ("NCHW", "NHWC")
"""The orders of an image's axes: N images, C channels, H rows, W columns."""
_LARGEST_SIDE = 4096
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids")


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """The input of a network that takes images."""

    name: str
    """Name of the tensor."""
    layout: str
    """The order of its axes, `NCHW` or `NHWC`."""
    size: int
    """Side of the square that it takes, in pixels."""
    as_bytes: bool
    """Whether it takes uint8; it takes float32 otherwise."""
    batch: int | None
    """The number of images at a time that the file is made for; None for any."""


def find_image_input(
    model: onnx.ModelProto, *, size: int | None = None, usual_size: int | None = None, layout: str | None = None
) -> ImageInput:
    """Find the one input of a network that takes images.

    Args:
        model: as it came.
        size: side of the square in pixels, where the file leaves it open.
        usual_size: the same, where nobody says it.
        layout: `NCHW` or `NHWC`, where the shape leaves it open.

    Raises:
        BackboneError: there is none, or several, or one that no colour image fits into, or something is left open.
        OptionError: there is no such layout.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in constants]
    described = ", ".join(f"'{info.name}' ({'×'.join(str(side) for side in _sides(info))})" for info in inputs)
    if texts := [info.name for info in inputs if info.name in _TEXT_INPUTS]:
        raise BackboneError(
            f"The network takes {described}: '{texts[0]}' is text. Expected a network for images alone; take a file "
            "with the image tower, such as vision_model.onnx, or name an output of it with --output"
        )
    if len(inputs) != 1:
        raise BackboneError(f"The network takes {len(inputs)} inputs: {described or 'none'}; expected one, the image")
    sides, name, kind = _sides(inputs[0]), inputs[0].name, inputs[0].type.tensor_type.elem_type
    if len(sides) != 4:
        raise BackboneError(f"The network takes {described}; expected images: N×3×height×width or N×height×width×3")
    if kind not in (TensorProto.FLOAT, TensorProto.UINT8):
        raise BackboneError(
            f"The network takes {described} in {TensorProto.DataType.Name(kind).lower()}; "
            "expected float32 or uint8. Export it in float32"
        )
    layout = layout or _layout_of(sides, described)
    if layout not in LAYOUTS:
        raise OptionError(f"Unknown layout '{layout}'; there are: {', '.join(LAYOUTS)}")
    channels = sides[layout.index("C")]
    height, width = sides[layout.index("H")], sides[layout.index("W")]
    if isinstance(channels, int) and channels != 3:
        raise BackboneError(f"The network takes {described}, {channels} channels in {layout}; expected 3, RGB")
    known = {side for side in (height, width) if isinstance(side, int)}
    if len(known) > 1:
        raise BackboneError(f"The network takes {described}; expected squares. Export it with a square input")
    if size is None and not known:
        size = usual_size
    if size is None and not known:
        raise BackboneError(
            f"The network takes {described}, of any size; choose one with --size, as in: quickstudy backbone add … "
            "--size 224"
        )
    if size is not None and known not in (set(), {size}):
        raise BackboneError(
            f"--size is {size}, but the file is made for {known.pop()} pixels; leave --size out, or export it anew"
        )
    side = size or known.pop()
    if not 1 < side <= _LARGEST_SIDE:
        raise BackboneError(f"The input would be {side} pixels a side; expected at most {_LARGEST_SIDE}")
    batch = sides[0] if isinstance(sides[0], int) else None
    return ImageInput(name=name, layout=layout, size=side, as_bytes=kind == TensorProto.UINT8, batch=batch)


def _sides(info: onnx.ValueInfoProto) -> list[int | str]:
    sides = info.type.tensor_type.shape.dim
    return [side.dim_value if side.dim_value > 0 else side.dim_param or "?" for side in sides]


def _layout_of(sides: Sequence[int | str], described: str) -> str:
    first, last = (side in (1, 3) or (isinstance(side, str) and "channel" in side) for side in (sides[1], sides[3]))
    if first == last:
        raise BackboneError(
            f"The network takes {described}; say which side the channels are with --layout NCHW or NHWC"
        )
    return "NCHW" if first else "NHWC"
