"""Reads ONNX files that come from others: all that is refused for safety is refused here, before anything else looks.

A file may name other files as homes of its weights, and libraries as homes of its operators. ONNX Runtime would follow
both from wherever the process stands. Here weights are read from the file's own folder only, and put into the graph;
operators are ONNX's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx
from onnx import TensorProto, defs

from quickstudy.errors import BackboneError, UnsafeFileError

MOST_BYTES = 2 << 30
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
    if path.stat().st_size > MOST_BYTES:
        raise UnsafeFileError(f"'{path}' is larger than {MOST_BYTES >> 30} GiB; it was not read")
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


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without colours; libraries append pages to it."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().partition("\n")[0]


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
    room = MOST_BYTES - path.stat().st_size
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
            raise UnsafeFileError(f"'{path}' and its weights are larger than {MOST_BYTES >> 30} GiB together")
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
