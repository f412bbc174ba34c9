"""Packs backbones into one file each, for machines without a network, and adds them there.

The file is a ZIP archive, stored without compression, of two members: `backbone.onnx`, the graph with its weights, and
`backbone.json`, what is known of it: name, SHA-256 of the graph, input, cuts, levels, classes, origin, licence. Nothing
is unpacked by a name that the archive chooses, and nothing in it is believed: the graph has to have the hash that is
noted, and is checked as any ONNX file from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import onnx

from quickstudy.backbones.backbone import JOINED, Backbone, add_backbone, check_name, imagenet_classes
from quickstudy.backbones.cuts import FEATURES, LEVELS, Level
from quickstudy.backbones.graphs.comparison import IMAGE
from quickstudy.backbones.graphs.cutting import shapes_of
from quickstudy.backbones.graphs.untrusted import MOST_GRAPH_BYTES, check_operators, outside_files, parse_onnx
from quickstudy.errors import BackboneError, UnsafeFileError, WriteError, first_line
from quickstudy.files import require_place_for, write_atomically
from quickstudy.images.decoding import InputSpec
from quickstudy.records import as_values, read_record

_FORMAT = 1
_GRAPH, _NOTE = "backbone.onnx", "backbone.json"
_ZIP = b"PK\x03\x04"
_MOST_NOTE_BYTES = 64 << 20
_DATE = (1980, 1, 1, 0, 0, 0)  # the same for all, so that the same backbone gives the same file


def pack_backbone(backbone: Backbone, path: Path) -> None:
    """Write a backbone, with all that is known of it, to one file, which is created or replaced.

    Raises:
        BackboneError: it consists of several, which are to be packed one by one.
        WriteError: the file cannot be written.
    """
    if JOINED in backbone.name:
        raise BackboneError(
            f"'{backbone.name}' is several backbones side by side; pack each of them: {backbone.origin}"
        )
    require_place_for("packed backbone", path, own=lambda start: start.startswith(_ZIP) and _NOTE.encode() in start)
    note = {
        "format": _FORMAT,
        "name": backbone.name,
        "sha256": backbone.fingerprint,
        "origin": backbone.origin,
        "licence": backbone.licence,
        "top1": backbone.top1,
        "input": backbone.input.to_dict(),
        "cuts": [cut.name for cut in backbone.cuts],
        "levels": [as_values(level) for level in backbone.levels],
        "classes": "imagenet" if backbone.classes == imagenet_classes() else list(backbone.classes),
    }
    members = {_NOTE: json.dumps(note, indent=1, ensure_ascii=False).encode(), _GRAPH: backbone.path.read_bytes()}

    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in members.items():
                archive.writestr(zipfile.ZipInfo(name, _DATE), data)

    try:
        write_atomically(path, write)
    except OSError as error:
        raise WriteError(f"Cannot write '{path}': {error.strerror}; name another file with --output") from error


def is_packed(path: Path) -> bool:
    """Say whether a file is an archive, as `pack_backbone` writes them."""
    return path.is_file() and zipfile.is_zipfile(path)


def add_packed(path: Path, cache: Path, *, name: str | None = None) -> Backbone:
    """Keep a packed backbone in the cache.

    Args:
        path: the file, which need not be trusted.
        cache: the folder for everything that can be made again.
        name: by which it will be asked for; left out, the one under which it was packed.

    Raises:
        BackboneError: the file is damaged, of a newer version, or no packed backbone.
        UnsafeFileError: it is too large, or its graph asks for something that is refused.
    """
    data, note = _read(path)
    graph = _checked_graph(data, path)
    try:
        cuts = [str(cut) for cut in note["cuts"]]
        levels = tuple(read_record(Level, values) for values in note["levels"])
        classes = imagenet_classes() if note["classes"] == "imagenet" else tuple(str(one) for one in note["classes"])
        spec = InputSpec.from_dict(note["input"])
        chosen, top1 = str(name or note["name"]), None if note["top1"] is None else float(note["top1"])
        origin, licence = str(note["origin"]), str(note["licence"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BackboneError(f"'{path}': what is noted of the backbone cannot be read ({error}); pack it anew") from None
    _check_note(graph, path, cuts=cuts, levels=levels, classes=classes, spec=spec)
    return add_backbone(
        check_name(chosen),
        graph,
        cache,
        input_spec=spec,
        cuts=cuts,
        classes=classes,
        origin=origin,
        top1=top1,
        levels=levels,
        licence=licence,
    )


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Read the two members, and compare the graph with its hash."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            if sorted(infos) != sorted((_GRAPH, _NOTE)) or len(archive.infolist()) != len(infos):
                raise BackboneError(
                    f"'{path}' is an archive of {', '.join(list(infos)[:5]) or 'nothing'}; expected one that "
                    "'quickstudy backbone pack' has written"
                )
            for name, most in ((_GRAPH, MOST_GRAPH_BYTES), (_NOTE, _MOST_NOTE_BYTES)):
                # Stored, not compressed: no member can be larger than the file itself.
                if infos[name].compress_type != zipfile.ZIP_STORED or infos[name].file_size > most:
                    raise UnsafeFileError(
                        f"'{path}': '{name}' is compressed, or larger than {most >> 20:,} MiB; it was not read"
                    )
            data, note = archive.read(_GRAPH), json.loads(archive.read(_NOTE))
    except (OSError, zipfile.BadZipFile, ValueError, RecursionError, NotImplementedError, EOFError) as error:
        raise BackboneError(f"'{path}' is damaged or cut short ({first_line(error)}); copy it again") from None
    if not isinstance(note, dict) or note.get("format") != _FORMAT:
        version = note.get("format") if isinstance(note, dict) else None
        raise BackboneError(f"'{path}' is of format {version}; expected {_FORMAT}. Pack it with this version")
    if hashlib.sha256(data).hexdigest() != note.get("sha256"):
        raise BackboneError(f"'{path}': the graph has not the hash that is noted of it; copy or pack it again")
    return data, note


def _checked_graph(data: bytes, path: Path) -> onnx.ModelProto:
    graph = parse_onnx(data, path)
    check_operators(graph, path)
    if outside := outside_files(graph):
        raise UnsafeFileError(f"'{path}' asks for weights in '{outside[0]}', outside of it; they were not read")
    try:
        onnx.checker.check_model(graph)
    except Exception as error:  # onnx raises its own, unexported kinds
        raise BackboneError(f"'{path}' does not hold valid ONNX: {first_line(error)}") from None
    return graph


def _check_note(
    graph: onnx.ModelProto,
    path: Path,
    *,
    cuts: list[str],
    levels: tuple[Level, ...],
    classes: tuple[str, ...],
    spec: InputSpec,
) -> None:
    """Compare what is noted with the graph.

    Raises:
        BackboneError: they contradict each other.
    """
    shapes = shapes_of(graph)
    widths = sum(level.width for level in levels)
    outputs = {info.name for info in graph.graph.output}
    right = (
        shapes.get(IMAGE) == (spec.size, spec.size, 3)
        and cuts[-1:] == [FEATURES]
        and (not levels or shapes.get(LEVELS) == (widths,))
        and (not classes or shapes.get("probabilities") == (len(classes),))
        and outputs <= {"probabilities", FEATURES}
    )
    if not right:
        raise BackboneError(f"'{path}': what is noted of the backbone contradicts its graph; pack it anew")
