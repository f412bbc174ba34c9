"""Makes a backbone of any network that classifies images or gives features of them, once it is an ONNX graph.

Whatever the network takes and gives, the backbone takes `image` (uint8, N×size×size×3, RGB) and gives `probabilities`
(float32, N×classes) or, where it does not classify, `features` (float32, N×F). Its cuts are tensors with names to read.
It is run beside the network that it was made of before anybody gets it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
from onnx import helper

from quickstudy.backbones.backbone import imagenet_classes
from quickstudy.backbones.cuts import FEATURES
from quickstudy.backbones.graphs.batches import free_batch, settle_shapes
from quickstudy.backbones.graphs.cleaning import (
    ImageInput,
    fix_shapes,
    join_batch_norms,
    pool_channels_first,
    rename,
)
from quickstudy.backbones.graphs.comparison import (
    IMAGE,
    PROBABILITIES,
    TOLERANCE,
    Reference,
    largest_difference,
    with_outputs,
)
from quickstudy.backbones.graphs.cutting import Ending, block_ends, find_ending, readable_names, shapes_of
from quickstudy.backbones.graphs.preprocessing import Preprocessing, explain_preprocessings, put_before, read_from_graph
from quickstudy.backbones.graphs.runtime import optimised
from quickstudy.backbones.graphs.untrusted import foreign_operators
from quickstudy.errors import BackboneError
from quickstudy.images.decoding import InputSpec
from quickstudy.wording import count

_ORIGINAL = "original/"  # before names of the network's own that a backbone has another use for
_ATTRIBUTES: dict[str, dict[str, Any]] = {"Transpose": {"perm": [0, 3, 1, 2]}, "Softmax": {"axis": 1}}

Naming = Callable[[onnx.ModelProto, Sequence[str], Preprocessing], dict[str, str]]
"""Names cuts: takes a backbone's graph, the tensors at which it can be cut, and what becomes of bytes before the
network; what gets no name is no cut."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A network made ready to be kept with `add_backbone`."""

    name: str = ""
    """Name of the backbone unless another is given."""
    origin: str = ""
    """Where the weights come from, for people."""
    top1: float | None = None
    """Published accuracy of the weights on ImageNet, in percent; None where it is not known."""
    graph: onnx.ModelProto
    """The graph, from `image` to `probabilities` or, without classes, `features`."""
    input_spec: InputSpec
    """How an image becomes `image`."""
    cuts: tuple[str, ...]
    """Tensors at which it can be cut, from the image on; the last is `features`."""
    classes: tuple[str, ...]
    """Names in the order of the probabilities; none where it does not classify."""
    difference: float
    """Largest difference from the original on seeded images, as a share of the largest value."""
    prefix_tokens: int = 0
    """Number of a transformer's tokens that are no patches, and come first."""
    licence: str = ""
    """Licence of the weights, as their source names it; empty where it does not."""
    found: dict[str, str]
    """What was found out about the network, for people: input, preprocessing, features, classes."""


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A backbone that still gives, among its outputs, what the network gave."""

    graph: onnx.ModelProto
    """The graph, clean, from image to features."""
    ending: Ending
    """How the network ends."""
    preprocessing: Preprocessing
    """What becomes of bytes before the network."""
    preprocessing_from: str
    """How that is known, for people."""


def import_graph(
    model: onnx.ModelProto,
    image: ImageInput,
    *,
    reference: Reference,
    preprocessing: Preprocessing | None = None,
    features: str = "",
    classes: Sequence[str] | None = None,
    own_classes: Sequence[str] | None = None,
    naming: Naming | None = None,
) -> Imported:
    """Make a backbone of a graph.

    Args:
        model: the graph; its first output is what counts. Tensors in it are renamed.
        image: what it takes.
        reference: the network itself, to compare with.
        preprocessing: what becomes of bytes before the network; left out, it is read from the graph.
        features: the tensor that is the penultimate layer; empty: it is found.
        classes: names in the order of the outputs; left out, `own_classes`, or ImageNet's where there are 1,000.
        own_classes: names that the file itself has; they count where there are as many as outputs.
        naming: gives cuts names of the network's own.

    Raises:
        BackboneError: it cannot be used as it is, or the backbone differs from `reference`.
    """
    _check_tensor(model.graph, features)
    if image.batch not in (None, 1):
        raise BackboneError(f"The network is made for {image.batch} images at a time; export it for 1 or any number")
    others = _make_room(model.graph)
    image, features = replace(image, name=others.get(image.name, image.name)), others.get(features, features)
    output = model.graph.output[0].name
    differences = []
    # Most networks come out simpler for one image at a time; some, such as transformers, are then bound to one.
    for batch in (1, None) if image.batch is None else (1,):
        draft = _draft(model, image, batch, preprocessing, features, len(classes or own_classes or ()))
        differences.append(
            largest_difference(
                draft.graph,
                output,
                size=image.size,
                preprocessing=draft.preprocessing,
                reference=reference,
                softmax="Softmax" in draft.ending.softmax,
            )
        )
        if differences[-1] <= TOLERANCE:
            return _finish(draft, image, differences[-1], (classes, own_classes), naming)
    if min(differences) == math.inf:
        raise BackboneError("The network takes only one image at a time; export it for any number of images")
    raise BackboneError(
        f"The backbone differs from the network that it was made from by {min(differences):.1e} of the largest value "
        f"(tolerance {TOLERANCE:.0e}); export it with another opset, or optimise it less before"
    )


def _make_room(graph: onnx.GraphProto) -> dict[str, str]:
    """Rename the tensors that have names for which there is another use, and return their new names."""
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    ours = (IMAGE, "input", FEATURES, PROBABILITIES)
    others = {name: f"{_ORIGINAL}{name}" for name in used if name.partition("/")[0] in ours}
    rename(graph, others)
    return others


def _check_tensor(graph: onnx.GraphProto, name: str) -> None:
    names = [output for node in graph.node for output in node.output]
    if name and name not in names:
        close = difflib.get_close_matches(name, names, 3, 0.5) or names[-3:]
        raise BackboneError(f"The network has no tensor '{name}'; it has, among others: {', '.join(close)}")


def _draft(
    model: onnx.ModelProto,
    image: ImageInput,
    batch: int | None,
    preprocessing: Preprocessing | None,
    features: str,
    classes: int,
) -> _Draft:
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    output = model.graph.output[0].name
    fix_shapes(graph, image, batch=batch, outputs=[output, *([features] if features else [])])
    pool_channels_first(graph)
    graph = _plain(graph)
    known, known_from = _preprocessing_of(graph, image, preprocessing)
    ending = find_ending(graph, layout=image.layout, classes=classes, named=features)
    put_before(graph.graph, image, known)
    _append(graph.graph, ending.features, ending.pooling, FEATURES)
    if ending.scores:
        _append(graph.graph, ending.scores, ending.softmax, PROBABILITIES)
    bytes_in = ImageInput(name=IMAGE, layout="NHWC", size=image.size, as_bytes=True, batch=batch)
    fix_shapes(graph, bytes_in, batch=batch, outputs=[output, FEATURES, _result(ending)])
    graph = _plain(graph)  # again: what is before and after the network may save it transpositions
    join_batch_norms(graph)
    if batch:
        free_batch(graph)
    else:
        settle_shapes(graph)
    return _Draft(graph=graph, ending=ending, preprocessing=known, preprocessing_from=known_from)


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    # Batch norms stay apart from convolutions: their weights keep the scale that training gave them, for fine-tuning.
    plain = optimised(model, without=["ConvBNFusion", "ConvMulFusion"])
    if foreign := foreign_operators(plain.graph):
        raise BackboneError(f"The network cannot be written with ONNX's own operators only: {', '.join(foreign)}")
    return plain


def _preprocessing_of(
    model: onnx.ModelProto, image: ImageInput, given: Preprocessing | None
) -> tuple[Preprocessing, str]:
    """Find out what becomes of bytes before the network, and how that is known."""
    name = image.name.removeprefix(_ORIGINAL)
    if image.as_bytes:
        if given is not None and given != Preprocessing():
            raise BackboneError(
                f"'{name}' takes bytes, which the network scales itself; leave out --preprocessing, --range, --mean "
                "and --std"
            )
        return Preprocessing(), "in the network, which takes bytes"
    read, reason = read_from_graph(model, image)
    if given is not None:
        if read is not None and replace(given, bgr=read.bgr) != read:
            raise BackboneError(
                f"The network normalises images itself and takes values from {read.low:g} to {read.high:g}, but you "
                f"say {given}; leave out --preprocessing, --range, --mean and --std"
            )
        return given, str(given)
    if read is not None:
        return read, f"in the network, which takes values from {read.low:g} to {read.high:g}"
    raise BackboneError(
        f"The network does not say how pixel values are scaled before '{name}'{reason}; say so with --preprocessing "
        f"({explain_preprocessings()}), or with --range, --mean and --std, all of them options of "
        "quickstudy backbone add"
    )


def _append(graph: onnx.GraphProto, source: str, operators: Sequence[str], result: str) -> None:
    """Let operators follow on a tensor, one after the other; the last one gives `result`."""
    for number, operator in enumerate(operators, start=1):
        target = result if number == len(operators) else f"{result}/{operator.lower()}"
        graph.node.append(helper.make_node(operator, [source], [target], name=target, **_ATTRIBUTES.get(operator, {})))
        source = target


def _result(ending: Ending) -> str:
    return PROBABILITIES if ending.scores else FEATURES


def _finish(
    draft: _Draft,
    image: ImageInput,
    difference: float,
    classes: tuple[Sequence[str] | None, Sequence[str] | None],
    naming: Naming | None,
) -> Imported:
    graph = with_outputs(draft.graph, [_result(draft.ending)])
    ends = block_ends(graph, FEATURES)
    names = naming(graph, [tensor for tensor, _ in ends], draft.preprocessing) if naming else readable_names(ends)
    rename(graph.graph, names)
    shapes, source = shapes_of(graph), names.get(draft.ending.features, draft.ending.features)
    labels, labels_from = _labels(*classes, shapes[PROBABILITIES][0] if draft.ending.scores else 0)
    return Imported(
        graph=graph,
        input_spec=InputSpec(size=image.size),
        cuts=(*(names[tensor] for tensor, _ in ends if tensor in names), FEATURES),
        classes=labels,
        difference=difference,
        found={
            "input": f"{image.size}×{image.size} pixels, {image.layout}, {'uint8' if image.as_bytes else 'float32'}",
            "preprocessing": draft.preprocessing_from,
            "features": f"{shapes[FEATURES][0]:,}, from '{source.removeprefix(_ORIGINAL)}'",
            "classes": labels_from,
        },
    )


def _labels(given: Sequence[str] | None, own: Sequence[str] | None, outputs: int) -> tuple[tuple[str, ...], str]:
    """Choose names for a network's outputs, and say where they are from."""
    if given is not None and len(given) != outputs:
        gives = count(outputs, "class", "classes") if outputs else "features and no classes"
        names = count(len(given), "name of a class is", "names of classes are")
        raise BackboneError(f"{names} given, but the network gives {gives}")
    if not outputs:
        return (), "none: it gives features"
    if given is not None:
        return tuple(given), f"{outputs:,}, with the names given"
    if own is not None and len(own) == outputs:
        return tuple(own), f"{outputs:,}, with the names in the file"
    if outputs == len(imagenet_classes()):
        return imagenet_classes(), "ImageNet's 1,000, in their usual order"
    return tuple(f"class_{number}" for number in range(outputs)), f"{outputs:,}, without names: class_0 and so on"
