"""What a model file says about itself, read and checked, and whether the graph keeps what that promises."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quickstudy.images.decoding import InputSpec
from quickstudy.images.manifests import Labelling
from quickstudy.learning.answers import MOST_PROBABLE, Answer, Thresholds
from quickstudy.learning.conformal import Sets
from quickstudy.learning.links import link_named
from quickstudy.learning.strangeness import Refusal
from quickstudy.models.format import LARGEST_SIDE, MOST_CLASSES, PREFIX, STRANGENESS
from quickstudy.models.roles import Roles
from quickstudy.wording import count

if TYPE_CHECKING:
    import onnx
    import onnxruntime


def properties_of(graph: onnx.ModelProto) -> dict[str, Any]:
    """Read the properties of quickstudy's, JSON values by name.

    Raises:
        ValueError: a value is no JSON.
    """
    return {
        entry.key.removeprefix(PREFIX): json.loads(entry.value)
        for entry in graph.metadata_props
        if entry.key.startswith(PREFIX)
    }


def roles_in(metadata: dict[str, Any]) -> Roles | None:
    """Read which images the model was made from; None where it does not say.

    Raises:
        ValueError: they are damaged.
    """
    values = metadata.get("roles")
    return None if values is None else Roles.from_dict(values)


def refusal_in(metadata: dict[str, Any]) -> Refusal | None:
    """Read from which strangeness on images are refused; None where the model has no such output.

    Raises:
        ValueError: the values contradict each other.
    """
    values = (metadata.get("training") or {}).get(STRANGENESS)
    return None if values is None else Refusal.from_dict(values)


def sets_in(metadata: dict[str, Any], classes: int) -> Sets | None:
    """Read what prediction sets need; None where the model does not carry it.

    Raises:
        ValueError: it is damaged, or of another number of classes.
    """
    values = (metadata.get("training") or {}).get("sets")
    if values is None:
        return None
    sets = Sets.from_dict(values)
    if len(sets.given) != classes:
        raise ValueError(f"it has sets of {count(len(sets.given), 'class', 'classes')}")
    return sets


def answer_in(metadata: dict[str, Any], classes: int) -> Answer:
    """Read what the probabilities are answered by, which the kind of head decides.

    Raises:
        ValueError: there is no such kind, or it has thresholds of another number of labels.
    """
    head = metadata.get("head") or {"kind": "one"}
    if link_named(head["kind"]).kind == "one":
        return MOST_PROBABLE
    thresholds = Thresholds.from_dict(head)
    if len(thresholds.values) != classes:
        raise ValueError(f"it has thresholds of {count(len(thresholds.values), 'label')}")
    return thresholds


def labelling_in(metadata: dict[str, Any]) -> Labelling:
    """Read how the labels of images were read from which the model was made."""
    options = (metadata.get("training") or {}).get("options") or {}
    several = (metadata.get("head") or {}).get("kind") == "several"
    return Labelling(
        several=several,
        separator=options.get("separator"),
        none=options.get("none"),
        way_to_several="take a model of several labels, which retrain --several makes",
    )


def outputs_of(features: str | None, refusal: Refusal | None) -> list[str]:
    """List the outputs of a model that gives these, in their order."""
    return ["probabilities", *([STRANGENESS] if refusal else []), *([features] if features else [])]


def classes_in(metadata: dict[str, Any]) -> list[str]:
    """Read the names of the classes.

    Raises:
        ValueError: they are no names, too many, or not all different.
    """
    classes = metadata["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are not a list of names")
    if not 1 <= len(set(classes)) == len(classes) <= MOST_CLASSES:
        raise ValueError(f"it has {count(len(classes), 'class', 'classes')}, {len(set(classes)):,} of them different")
    return classes


def input_in(metadata: dict[str, Any]) -> InputSpec:
    """Read how an image becomes the model's input.

    Raises:
        ValueError: its measures are beyond what is allowed.
    """
    spec = InputSpec.from_dict(metadata["input"])
    if not (1 <= spec.size <= LARGEST_SIDE and 0 < spec.crop <= 1):
        raise ValueError(f"its input has {spec.size} pixels a side and takes {spec.crop:g} of an image")
    return spec


def output_besides(name: str) -> bytes:
    """Write the bytes that make a tensor of a model an output when they follow the model's own.

    Protocol buffers may be put together from pieces, so the model need not be written anew from what was parsed.
    """
    import onnx

    piece = onnx.ModelProto()
    piece.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    added: bytes = piece.SerializeToString()
    return added


def check_signature(
    session: onnxruntime.InferenceSession, spec: InputSpec, classes: int, expected: Sequence[str]
) -> None:
    """Check that a loaded graph takes and gives what the properties announce.

    Raises:
        ValueError: it does not.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [i.name for i in inputs] != ["image"] or inputs[0].type != "tensor(uint8)":
        raise ValueError("its input is not 'image' in uint8")
    if tuple(inputs[0].shape[1:]) != spec.shape:
        raise ValueError(f"its input has the shape {inputs[0].shape}")
    if [o.name for o in outputs] != expected or outputs[0].shape[1:] != [classes]:
        raise ValueError("its output is not 'probabilities' of its classes, or others are not as it says")
    if STRANGENESS in expected and len(outputs[1].shape) != 1:
        raise ValueError(f"its output '{STRANGENESS}' has the shape {outputs[1].shape}")
