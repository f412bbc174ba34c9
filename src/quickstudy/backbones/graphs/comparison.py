"""Runs a backbone beside the network that it was made of, since what differs fails nowhere: accuracy only sinks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from quickstudy.backbones.cuts import FEATURES
from quickstudy.backbones.graphs.cleaning import BATCH
from quickstudy.backbones.graphs.cutting import ancestors, shapes_of
from quickstudy.backbones.graphs.preprocessing import Preprocessing
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.errors import BackboneError, first_line

IMAGE = "image"
PROBABILITIES = "probabilities"
TOLERANCE = 1e-4
"""Largest difference between a network and the backbone made of it, as a share of the largest value."""

Reference = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""The network itself: it takes images with their channels last (N×H×W×3), and returns what it gives."""


def sample_images(size: int) -> NDArray[np.uint8]:
    """Make two images to compare networks on (2×size×size×3): seeded noise, fine and in 8×8 tiles."""
    draws = np.random.Generator(np.random.PCG64(0))
    fine, coarse = (draws.integers(0, 256, (side, side, 3), np.uint8) for side in (size, 8))
    places = np.arange(size) * 8 // size
    return np.stack([fine, coarse[places][:, places]])


def largest_difference(
    model: onnx.ModelProto, output: str, *, size: int, preprocessing: Preprocessing, reference: Reference, softmax: bool
) -> float:
    """Measure how far a backbone is from its network on the sample images, as a share of the largest value.

    Args:
        model: the backbone, with the tensor `output`; with `probabilities` if it classifies.
        output: what the network gives.
        size: side of the input, in pixels.
        preprocessing: what becomes of bytes before the network.
        reference: the network.
        softmax: whether probabilities are the softmax of `output`.

    Returns:
        The difference; infinite where the backbone does not run, or gives something of another shape.

    Raises:
        BackboneError: the network itself does not run, or gives no numbers.
    """
    images = sample_images(size)
    try:
        expected = reference(preprocessing.apply(images)).astype(np.float64)
    except Exception as error:  # of whatever runs the network
        raise BackboneError(f"The network cannot be run: {first_line(error)}") from None
    if not np.isfinite(expected).all():
        raise BackboneError("The network gives values that are not finite; is its preprocessing right?")
    classifies = any(info.name == PROBABILITIES for info in model.graph.output)
    try:
        given, *rest = run_until(model, [output, *([PROBABILITIES] if classifies else [])], images)
    except Exception:  # ONNX Runtime's own kinds, as where a shape is made for one image at a time
        return math.inf
    if given.shape != expected.shape:
        return math.inf
    if not rest:
        return _share(given, expected)
    scores = expected.reshape(rest[0].shape)
    if softmax:
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    else:  # by their logarithms: where a network is sure of itself, all probabilities but one are nearly 0
        given, expected = (np.log(np.maximum(values, 1e-30)) for values in (given, expected))
    return max(_share(given, expected), _share(rest[0], scores))


def run_until(model: onnx.ModelProto, tensors: Sequence[str], images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Run a backbone on images (uint8, N×size×size×3): what some of its tensors hold."""
    session = open_session(with_outputs(model, tensors).SerializeToString())
    results: list[NDArray[np.float32]] = session.run(list(tensors), {IMAGE: images})
    return results


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return the graph with these outputs (float32), and without what neither they nor the features need."""
    needed = {node.output[0] for name in (*names, FEATURES) for node in ancestors(model.graph, name)}
    nodes = [node for node in model.graph.node if node.output[0] in needed]
    used = {name for node in nodes for name in node.input}
    shapes = shapes_of(model)
    graph = helper.make_graph(
        nodes,
        "backbone",
        model.graph.input,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shapes[name]]) for name in names],
        [tensor for tensor in model.graph.initializer if tensor.name in used],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _share(given: NDArray[np.floating], expected: NDArray[np.float64]) -> float:
    return float(np.abs(given - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
