"""Reads ONNX files that come from others: all that is refused for safety is refused here, before anything else looks.

A file may name other files as homes of its weights, and libraries as homes of its operators. ONNX Runtime would follow
both from wherever the process stands. Here weights are read from the file's own folder only, and put into the graph;
operators are ONNX's own.

What backbones and models may hold is stricter, since a model file may come from anywhere, and ONNX Runtime makes room
for whatever shapes its graph asks for: no loops and branches, all data inside and of the length that their shapes say,
and the sizes of all that is computed known beforehand and within bounds. A backbone is checked when it is added, so
that no model of it is refused later.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, defs, numpy_helper

from quickstudy.errors import BackboneError, UnsafeFileError, first_line

MOST_GRAPH_BYTES = 2 << 30
"""The largest size of a file and the weights beside it together, in bytes; protocol buffers hold no more."""
CLASSES_KEY = "quickstudy.classes"
"""Name of the property in which a model of quickstudy has the names of its classes, as JSON."""
_OLDEST_OPSET = 7  # the oldest that ONNX Runtime promises to run
_ENDLESS = ("Loop", "Scan")


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with everything that belongs to it; what comes back refers to no other file.

    Its metadata are left in it, unread.

    Raises:
        BackboneError: there is no such file, it is no ONNX file or damaged, or its operators cannot be used.
        UnsafeFileError: it is too large, or asks for files outside its folder or operators of libraries.
    """
    if not path.is_file():
        raise BackboneError(f"No such file: '{path}'; expected an .onnx file")
    if path.stat().st_size > MOST_GRAPH_BYTES:
        raise UnsafeFileError(f"'{path}' is larger than {MOST_GRAPH_BYTES >> 30} GiB; it was not read")
    try:
        model = parse_onnx(path.read_bytes(), path)
    except OSError as error:
        raise BackboneError(f"Cannot read '{path}': {error.strerror}") from None
    check_operators(model, path)
    _embed_external_data(model, path)
    del model.training_info[:]
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # onnx raises its own, unexported kinds
        raise BackboneError(f"'{path}' is not valid ONNX: {first_line(error)}") from None
    return model


def parse_onnx(data: bytes, path: Path) -> onnx.ModelProto:
    """Parse the bytes of an ONNX file; nothing of what it says is followed or run.

    Args:
        data: the file's bytes.
        path: where they come from, for messages.

    Raises:
        BackboneError: they are no ONNX file.
    """
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(data)
        _check_text(model)
    except Exception:  # protobuf's own kinds
        raise BackboneError(f"'{path}' is not an ONNX file, or it is damaged or cut short") from None
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise BackboneError(f"'{path}' is not an ONNX file, or it is cut short: it has no graph, outputs or opset")
    return model


def own_class_names(model: onnx.ModelProto) -> tuple[str, ...] | None:
    """Read the names of classes that a model of quickstudy carries; None where there are none that could be names.

    They are data from a file that need not be trusted: texts, each once, and no more is made of them.
    """
    for entry in model.metadata_props:
        if entry.key == CLASSES_KEY:
            try:
                names = json.loads(entry.value)
            except (ValueError, RecursionError):
                return None
            texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
            return tuple(names) if texts and len(set(names)) == len(names) else None
    return None


def foreign_operators(graph: onnx.GraphProto) -> list[str]:
    """List the operators that are not ONNX's own, sorted, each once."""
    return sorted({f"{node.domain}.{node.op_type}" for node in _nodes(graph) if node.domain})


def _normalise_domains(model: onnx.ModelProto) -> None:
    """Write the domain of ONNX's own operators, which is also called `ai.onnx`, as an empty name everywhere."""
    for part in (*model.opset_import, *_nodes(model.graph)):
        if part.domain == "ai.onnx":
            part.domain = ""


def check_operators(model: onnx.ModelProto, path: Path) -> None:
    """Check that a graph needs nothing but ONNX's own operators, without loops.

    Raises:
        BackboneError: it uses functions, loops, or operators or an opset that are not known.
        UnsafeFileError: it uses operators of libraries.
    """
    _normalise_domains(model)
    if model.functions:
        names = ", ".join(f"{function.domain}.{function.name}" for function in model.functions[:5])
        raise BackboneError(
            f"'{path}' defines functions of its own ({names}); write it anew with onnx.inliner.inline_local_functions"
        )
    if foreign := foreign_operators(model.graph):
        raise UnsafeFileError(
            f"'{path}' uses operators that need libraries: {', '.join(foreign)}; "
            "export it with ONNX's own operators, before any optimisation for a runtime"
        )
    opset = max((imported.version for imported in model.opset_import if not imported.domain), default=0)
    newest = defs.onnx_opset_version()
    if not _OLDEST_OPSET <= opset <= newest:
        raise BackboneError(
            f"'{path}' is of opset {opset}; expected {_OLDEST_OPSET} to {newest}. "
            "Export it with another, or change it with onnx.version_converter"
        )
    operators = {node.op_type for node in _nodes(model.graph)}
    unknown = sorted(operator for operator in operators if not _is_known(operator, opset))
    if unknown:
        raise BackboneError(f"'{path}' uses operators that opset {opset} does not have: {', '.join(unknown)}")
    if endless := sorted(operators & set(_ENDLESS)):
        raise BackboneError(
            f"'{path}' uses {', '.join(endless)}; networks with loops cannot be used. Export it with loops unrolled"
        )


def _is_known(operator: str, opset: int) -> bool:
    try:
        defs.get_schema(operator, opset, "")
    except defs.SchemaError:
        return False
    return True


def _embed_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Move weights that lie in other files of the same folder into the graph."""
    room = MOST_GRAPH_BYTES - path.stat().st_size
    for tensor in tensors_of(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            del tensor.external_data[:]
            continue
        facts = {entry.key: entry.value for entry in tensor.external_data}
        file = _beside(path, facts.get("location", ""))
        try:
            offset = int(facts.get("offset", 0))
            length = int(facts.get("length", file.stat().st_size - offset))
        except ValueError:
            offset = length = -1
        if offset < 0 or length < 0 or offset + length > file.stat().st_size:
            raise UnsafeFileError(
                f"'{path}': tensor '{tensor.name}' lies outside of '{file.name}' "
                f"(offset {facts.get('offset')}, length {facts.get('length')})"
            )
        room -= length
        if room < 0:
            raise UnsafeFileError(f"'{path}' and its weights are larger than {MOST_GRAPH_BYTES >> 30} GiB together")
        with file.open("rb") as weights:
            weights.seek(offset)
            data = weights.read(length)
        tensor.ClearField("data_location")
        del tensor.external_data[:]
        tensor.raw_data = data


def outside_files(model: onnx.ModelProto) -> list[str]:
    """List the files that a graph names as homes of its weights, as it names them, each once."""
    found = {
        entry.value: None
        for tensor in tensors_of(model)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return list(found)


def _beside(path: Path, location: str) -> Path:
    """Find the file that `location` names, in the folder of `path` or in one below.

    Raises:
        UnsafeFileError: it leads elsewhere, or to nothing.
    """
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    folder = path.parent.resolve()
    if not location or absolute or ".." in parts:
        raise UnsafeFileError(f"'{path}' asks for weights in '{location}', outside its folder; they were not read")
    try:
        file = (folder / location).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a name that cannot be one
        raise UnsafeFileError(f"'{path}' asks for weights in '{location}': {error}") from None
    if not file.is_relative_to(folder):
        raise UnsafeFileError(
            f"'{path}' asks for weights in '{location}', a link out of its folder; they were not read"
        )
    if not file.is_file():
        raise BackboneError(f"The weights of '{path}' are missing: '{folder / location}'; put them beside it")
    return file


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the graph's nodes, and those of the graphs inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _check_text(message: Any) -> None:
    """Check that all names are text, which nobody has looked at so far.

    Raises:
        ValueError: one is not.
    """
    for field, value in message.ListFields():
        for part in _parts(value):
            if field.message_type is not None:
                _check_text(part)
            elif field.type == field.TYPE_STRING and not isinstance(part, str):
                raise ValueError(f"'{field.name}' is not text")


def tensors_of(message: Any) -> Iterator[onnx.TensorProto]:
    """Yield all tensors in a message, wherever they are."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in _parts(value):
                if isinstance(part, onnx.TensorProto):
                    yield part
                else:
                    yield from tensors_of(part)


def _parts(value: Any) -> Sequence[Any]:
    """Return the values that a field holds, be it repeated or not."""
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)


# What backbones and models may hold
MOST_VALUES = 1 << 29
"""The most values in all activations of one image together. EfficientNet-Lite0 has 34 million."""
_MOST_NODES = 100_000
_LARGEST_NUMBER = 1 << 24
"""The largest number in attributes and in constants that steer: pads, strides, axes, shapes. Beyond, arithmetic on them
may overflow."""
_MOST_STEERING = 64
"""The most values of a tensor of fractions from which the shape of another one may follow."""
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
        raise UnsafeFileError("it holds sparse weights or instructions for training; no graph of quickstudy's does")
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
        # What steers is whole numbers, or a few others, such as a resizing's scales; without the rest, the weights, it
        # takes half the time.
        if tensor.data_type != TensorProto.INT64 and math.prod(tensor.dims) > _MOST_STEERING:
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
