"""What a model file is made of, and what it may hold: names, checksum, golden checks, and the limits of its graph.

Its metadata are properties with names of their own, whose values are JSON.

The last of them, `quickstudy.sha256`, is a checksum over every byte before it, by which any change since the file was
written is noticed before anything is run: without parsing, 11 ms for 14 MB. Protocol buffers may be put together from
pieces, so for all other readers it is a property like the others. It protects against damage, not against malice:
whoever changes a file on purpose can seal it again.

So what the graph holds is looked at, too, before ONNX Runtime sees a byte of it. ONNX Runtime trusts its graphs: it
reads weights from any file that they name, runs operators of any library that is registered, and makes room for
whatever shapes they ask for. A model file may come from anywhere. So a graph must be made of ONNX's own operators
without loops and branches, with all data inside and of the length that their shapes say, and the sizes of all that it
computes must be known beforehand and within bounds.

By the golden checks a model proves that it still gives what it gave. Their images are made from SHAKE-128 of a fixed
text, not from a generator of numbers, so that any language on any machine makes the same ones.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, numpy_helper

from quickstudy.backbones.graphs.untrusted import check_operators, first_line, tensors_of
from quickstudy.errors import BackboneError, UnsafeFileError
from quickstudy.images.decoding import InputSpec

if TYPE_CHECKING:
    import onnx


PREFIX = "quickstudy."
"""The beginning of the name of each metadata property."""
FORMAT = 3
"""The version of the format. Since 2, files end with a checksum; since 3, they carry the roles of the images that they
were made from."""
HEAD_INPUT = "head/sign"
"""Name of the node that takes the features, whatever the features are called in the graph."""
HEAD_WEIGHTS = "head/weights"
"""Name of the head's weights, features × classes."""
HEAD_NAMES = "head/names"
"""Name of what the names of the classes say, features × classes, where they count."""
STRANGENESS = "strangeness"
"""Name of the second output, where a model has it, and of its golden checks."""


def features_in(graph: onnx.ModelProto) -> str | None:
    """Find the name of the tensor that the head takes; None where there is no head of quickstudy's."""
    found = [node.input[0] for node in graph.graph.node if node.name == HEAD_INPUT and node.input]
    return found[0] if len(found) == 1 else None


# The checksum
_KEY = f"{PREFIX}sha256".encode()
_DIGITS = 64
_VALUE_BYTES = _DIGITS + 2  # in quotes, since all properties are JSON
# Field 14 of ModelProto, a message (wire type 2); in it field 1, the key, and field 2, the value.
_ENTRY = bytes([1 << 3 | 2, len(_KEY)]) + _KEY + bytes([2 << 3 | 2, _VALUE_BYTES])
_START = bytes([14 << 3 | 2, len(_ENTRY) + _VALUE_BYTES]) + _ENTRY
_SEAL_BYTES = len(_START) + _VALUE_BYTES


def sealed(graph: onnx.ModelProto) -> bytes:
    """Write a model file to bytes: the graph, and last the checksum; an older one is left out."""
    kept = [(entry.key, entry.value) for entry in graph.metadata_props if entry.key != _KEY.decode()]
    del graph.metadata_props[:]
    for key, value in kept:
        graph.metadata_props.add(key=key, value=value)
    body: bytes = graph.SerializeToString(deterministic=True)
    return body + _START + json.dumps(hashlib.sha256(body).hexdigest()).encode()


def examine_seal(data: bytes) -> Literal["intact", "broken", "missing"]:
    """Say whether a file is as it was written; `missing` where it does not end with a checksum."""
    end = memoryview(data)[-_SEAL_BYTES:]
    if len(end) < _SEAL_BYTES or end[: len(_START)] != _START:
        return "missing"
    expected = json.dumps(hashlib.sha256(memoryview(data)[:-_SEAL_BYTES]).hexdigest()).encode()
    return "intact" if end[len(_START) :] == expected else "broken"


# Golden checks
GOLDEN_COUNT = 3
"""Number of golden images."""
GOLDEN_TOLERANCE = 1e-4
"""Largest difference of a probability that counts as agreement; runtimes and processors differ by about 1e-6."""
STRANGENESS_LOOSER = 10
"""The number of times that the strangeness of a golden image may differ by more than a probability: it is a share of
images, and a small step of its scale passes several."""
LOOSEST_TOLERANCE = 0.1
"""The largest tolerance that a model may claim: rounding to 8 bits may fall the other way on another processor."""

_COARSE = 8


def golden_images(spec: InputSpec) -> NDArray[np.uint8]:
    """Make the images (GOLDEN_COUNT × `spec.shape`): 8×8 random tiles, each plus fine noise, like a coarse picture."""
    images, (height, width, _) = [], spec.shape
    for number in range(GOLDEN_COUNT):
        stream = hashlib.shake_128(f"quickstudy golden {number}".encode()).digest(_COARSE**2 * 3 + height * width * 3)
        tiles = np.frombuffer(stream[: _COARSE**2 * 3], np.uint8).reshape(_COARSE, _COARSE, 3)
        noise = np.frombuffer(stream[_COARSE**2 * 3 :], np.uint8).reshape(spec.shape)
        rows, columns = (np.arange(side) * _COARSE // side for side in (height, width))
        images.append((tiles[rows][:, columns] // 2 + noise // 4 + 16).astype(np.uint8))
    return np.stack(images)


# What a graph may hold
MOST_BYTES = 2 << 30
"""The largest size of a file, in bytes; protocol buffers hold no more."""
MOST_VALUES = 1 << 29
"""The most values in all activations of one image together. EfficientNet-Lite0 has 34 million."""
MOST_CLASSES = 1 << 20
"""The most classes."""
LARGEST_SIDE = 4096
"""The largest side of the input, in pixels."""
_MOST_NODES = 100_000
_LARGEST_NUMBER = 1 << 24
"""The largest number in attributes and in constants that steer: pads, strides, axes, shapes. Beyond, arithmetic on them
may overflow."""
_ENDS = (2**63 - 1, -(2**63), -(2**63) + 1, 2**31 - 1, -(2**31), -(2**31) + 1)
"""The numbers that stand for "to the end" in slices, however large."""
_AT_LEAST_ONE = ("group", "strides", "dilations", "kernel_shape", "num_outputs", "blocksize", "num_groups")
_INTEGERS = (AttributeProto.INT, AttributeProto.INTS)
# By kind of values: bytes of one, and where they lie when they are not raw.
_KINDS: dict[int, tuple[int, str]] = {
    TensorProto.FLOAT: (4, "float_data"),
    TensorProto.DOUBLE: (8, "double_data"),
    TensorProto.FLOAT16: (2, "int32_data"),
    TensorProto.BOOL: (1, "int32_data"),
    TensorProto.UINT8: (1, "int32_data"),
    TensorProto.INT8: (1, "int32_data"),
    TensorProto.INT32: (4, "int32_data"),
    TensorProto.INT64: (8, "int64_data"),
}


def check_graph(model: onnx.ModelProto, path: Path) -> None:
    """Check that ONNX Runtime can be given this graph.

    Args:
        model: of no use afterwards: it loses its weights and what it declares of shapes.
        path: where it comes from, for messages.

    Raises:
        BackboneError: it is not valid ONNX.
        UnsafeFileError: it holds something that is not allowed; the message says what.
    """
    if len(model.graph.node) > _MOST_NODES:
        raise UnsafeFileError(f"it has {len(model.graph.node):,} operators; the limit is {_MOST_NODES:,}")
    if model.graph.sparse_initializer or model.training_info:
        raise UnsafeFileError("it holds sparse weights or instructions for training; no model of quickstudy's does")
    for tensor in tensors_of(model):
        _check_tensor(tensor)
    check_operators(model, path)
    for node in model.graph.node:
        _check_attributes(node)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # onnx raises its own, unexported kinds
        raise BackboneError(f"it is not valid ONNX: {first_line(error)}") from None
    _check_sizes(model)


def _check_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise UnsafeFileError("it refers to data in other files, which are not read")
    if tensor.data_type not in _KINDS:
        raise UnsafeFileError(f"'{_short(tensor.name)}' holds values of kind {tensor.data_type}, which is not known")
    size, field = _KINDS[tensor.data_type]
    wanted = math.prod(tensor.dims)
    given = len(tensor.raw_data) / size if tensor.HasField("raw_data") else len(getattr(tensor, field))
    if min(tensor.dims, default=1) < 0 or wanted != given:
        raise UnsafeFileError(
            f"'{_short(tensor.name)}' should be of shape {_short(list(tensor.dims))}, but holds {given:,g} values"
        )
    if tensor.data_type == TensorProto.INT64:
        steering = numpy_helper.to_array(tensor)
        if ((np.abs(steering // 2) > _LARGEST_NUMBER // 2) & ~np.isin(steering, _ENDS)).any():
            raise UnsafeFileError(f"'{_short(tensor.name)}' holds numbers beyond {_LARGEST_NUMBER:,}")


def _check_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) or attribute.HasField("g"):
            raise UnsafeFileError(f"'{_short(node.name)}' ({node.op_type}) holds graphs; branches are not allowed")
        numbers = (attribute.i, *attribute.ints) if attribute.type in _INTEGERS else ()
        if any(abs(number) > _LARGEST_NUMBER and number not in _ENDS for number in numbers):
            raise UnsafeFileError(
                f"'{attribute.name}' of '{_short(node.name)}' ({node.op_type}) is beyond {_LARGEST_NUMBER:,}"
            )
        if attribute.name in _AT_LEAST_ONE and min(attribute.ints or [attribute.i]) < 1:
            raise UnsafeFileError(f"'{attribute.name}' of '{_short(node.name)}' ({node.op_type}) is less than 1")


def _check_sizes(model: onnx.ModelProto) -> None:
    """Work out the shape of everything for one image."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.INT64:  # only these steer; without the others it takes half the time
            tensor.ClearField("raw_data")
    del graph.value_info[:]
    weights = {tensor.name for tensor in graph.initializer}
    for given in graph.input:
        dims = given.type.tensor_type.shape.dim
        if dims and given.name not in weights:
            dims[0].dim_value = 1
    for result in graph.output:
        result.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    except Exception as error:  # onnx raises its own, unexported kinds
        raise BackboneError(f"its shapes contradict each other: {first_line(error)}") from None
    shapes = {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*inferred.input, *inferred.value_info, *inferred.output)
        if info.type.tensor_type.HasField("shape")
    }
    names = {name for node in graph.node for name in node.output if name} | {info.name for info in graph.input}
    total = 0
    for name in names:
        if name not in shapes or min(shapes[name], default=1) < 1:
            raise UnsafeFileError(f"the size of '{_short(name)}' cannot be told before it is run")
        total += math.prod(shapes[name])
    if total > MOST_VALUES:
        raise UnsafeFileError(f"it computes {total:,} values for one image; the limit is {MOST_VALUES:,}")


def _short(value: object) -> str:
    """Shorten what a stranger wrote to no more than a line."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
