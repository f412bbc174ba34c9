"""Finds where a network's features end and its classifier begins.

Classifiers end alike: a layer with weights gives one score a class, perhaps followed by a softmax and by changes of
shape that change no value. What that layer takes is the penultimate layer. A network that ends otherwise is taken for
one without a classifier, and what it gives for features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from quickstudy.backbones.cut_points import shapes_of
from quickstudy.errors import BackboneError

_RESHAPING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout")
_POOLING = ("GlobalAveragePool", "ReduceMean", "AveragePool", "Relu")
_CLASSIFYING = ("Gemm", "MatMul", "Conv")

Shapes = Mapping[str, tuple[int, ...]]


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
    """Where the features and the scores are.

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
    """The layer that gives the scores, and whether a softmax follows it."""
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
        elif node.op_type not in (*_RESHAPING, "Sigmoid", "Add") or len(flowing) != 1:
            return None, False
        tensor = flowing[0]
    return None, False


def _has_weights(node: onnx.NodeProto, constants: set[str]) -> bool:
    return node.input[1] in constants and node.input[0] not in constants


def _pooling(
    tensor: str, producers: Mapping[str, onnx.NodeProto], shapes: Shapes, layout: str
) -> tuple[str, tuple[str, ...]]:
    """The tensor to start from, and the operators that make N×F features of it."""
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
