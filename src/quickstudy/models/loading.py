"""Loads a model from its file: reads it, checks it before anything of it is run, and opens it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.backbones.graphs.untrusted import MOST_GRAPH_BYTES, check_graph, parse_onnx
from quickstudy.errors import BackboneError, ModelError, WriteError, first_line
from quickstudy.files import as_path
from quickstudy.models.format import (
    FORMAT,
    examine_seal,
    features_in,
)
from quickstudy.models.model import Model
from quickstudy.models.properties import (
    answer_in,
    check_signature,
    classes_in,
    input_in,
    labelling_in,
    output_besides,
    outputs_of,
    properties_of,
    refusal_in,
    roles_in,
    sets_in,
)
from quickstudy.models.roles import Roles


def load(path: str | Path, *, with_features: bool = False) -> Model:
    """Load a model file that quickstudy wrote.

    Args:
        path: the `.onnx` file.
        with_features: let it give what its head sees besides the probabilities, in the same pass.

    Raises:
        ModelError: there is no such file, or it is not such a model.
    """
    path = as_path(path)
    return load_bytes(read_model_file(path), path, with_features=with_features)


def read_model_file(path: Path) -> bytes:
    """Read the bytes of a file that may be a model.

    Raises:
        ModelError: there is no such file, or it is too large, or cannot be read.
    """
    if path.is_dir():
        raise ModelError(f"'{path}' is a folder, no model; name a file, such as photos.onnx")
    if not path.is_file():
        raise ModelError(f"No such model: '{path}'; make one with: quickstudy retrain photos/")
    if path.stat().st_size > MOST_GRAPH_BYTES:
        raise ModelError(f"'{path}' is larger than {MOST_GRAPH_BYTES >> 30} GiB; no model of quickstudy's is")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"Cannot read '{path}': {error.strerror}") from None


def load_bytes(data: bytes, path: Path, *, with_features: bool = False) -> Model:
    """Load a model from a file's bytes, as `load` does; `path` is for messages.

    Nothing is run, and ONNX Runtime sees nothing, before the checksum fits and the graph is found harmless.

    Raises:
        ModelError: it is not such a model, or has changed since it was written, or holds what is not allowed.
    """
    state = examine_seal(data)
    if state == "broken":
        raise ModelError(
            f"'{path}' has changed since it was written: its checksum does not fit. It was not run; copy it anew"
        )
    try:
        graph = parse_onnx(data, path)
        metadata = properties_of(graph)
        if metadata.get("format") in range(1, FORMAT):
            raise ModelError(
                f"'{path}' was written by an earlier version of quickstudy (format {metadata['format']}), which does "
                "not say which images it was made from. Make it again with quickstudy retrain; bottlenecks in the "
                "cache make it a matter of seconds"
            )
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, this version reads {FORMAT}")
        if state == "missing":
            raise ValueError("it does not end with a checksum")
        classes, spec, roles = classes_in(metadata), input_in(metadata), roles_in(metadata)
        features, refusal = features_in(graph) if with_features else None, refusal_in(metadata)
        answer, sets = answer_in(metadata, len(classes)), sets_in(metadata, len(classes))
        labelling_in(metadata)
        check_graph(graph, path)
        session = open_session(data if features is None else data + output_besides(features))
        check_signature(session, spec, len(classes), outputs_of(features, refusal))
        return Model(
            session,
            classes=classes,
            input_spec=spec,
            metadata=metadata,
            again=partial(load_bytes, data, path, with_features=with_features),
            roles=roles,
            features=features,
            refusal=refusal,
            sets=sets,
            answer=answer,
        )
    except BackboneError as error:
        reason = str(error)
        raise ModelError(reason if str(path) in reason else f"'{path}' cannot be loaded: {reason}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ModelError(
            f"'{path}' is an ONNX file, but not a model that quickstudy wrote ({first_line(error)}); "
            "retrain, or use its own tools"
        ) from None


def roles_of_file(path: Path) -> Roles | None:
    """Read the roles that a model file carries, without running anything; None where it carries none.

    Raises:
        ModelError: there is no such file, or it is not a whole model of this version.
    """
    try:
        return roles_in(metadata_of_file(path))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"'{path}' is not a model that retrain wrote ({first_line(error)}); name one") from None


def roles_of_named(path: Path) -> Roles:
    """Read the roles of a model that was named for them.

    Raises:
        ModelError: as for `roles_of_file`; or it carries none.
    """
    if (roles := roles_of_file(path)) is None:
        raise ModelError(
            f"'{path}' does not say which images it was made from, so it has no roles to take; name another model, or "
            "leave out --roles-of"
        )
    return roles


def metadata_of_file(path: Path) -> dict[str, Any]:
    """Read what a model file says about itself, without running anything.

    Raises:
        ModelError: there is no such file, or it is not a whole model of this version.
    """
    data = read_model_file(path)
    try:
        if examine_seal(data) != "intact":
            raise ValueError("its checksum is missing or does not fit")
        metadata = properties_of(parse_onnx(data, path))
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, this version reads {FORMAT}")
        return metadata
    except (BackboneError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"'{path}' is not a model that retrain wrote ({first_line(error)}); name one") from None


def require_own_place(path: Path, what: str, own: Callable[[dict[str, Any]], object]) -> None:
    """Refuse to write over a model that cannot be made again by the same command, before anything is worked out.

    Args:
        path: the file to create or replace.
        what: what is to be written, for the message.
        own: tells by what a model says of itself whether it is such a one.

    Raises:
        WriteError: there is another file.
    """
    if not path.exists():
        return
    try:
        replaceable = bool(own(metadata_of_file(path)))
    except (ModelError, AttributeError):
        replaceable = False
    if not replaceable:
        raise WriteError(
            f"There is a '{path}' already, which is no {what} and would be lost; name another file with --output, or "
            "delete it"
        )


def from_backbone(backbone: Backbone) -> Model:
    """Make a model of a backbone as it stands, a classifier of its own classes."""
    return Model(
        open_session(backbone.path),
        classes=backbone.classes,
        input_spec=backbone.input,
        metadata={"format": FORMAT},
        again=partial(from_backbone, backbone),
    )
