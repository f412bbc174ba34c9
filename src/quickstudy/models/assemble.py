"""Puts a model together: backbone up to the cut, head, metadata and golden checks, in one ONNX file.

The file takes images as they come from a decoder (`image`: uint8, N×size×size×3 RGB) and gives calibrated
`probabilities` (float32, N×classes); normalisation, features and head are all inside. It is checked before it is
written: the merged graph must give what the backbone and the head gave apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.graph import keep_until
from quickstudy.backbones.runtime import open_session
from quickstudy.errors import ModelError
from quickstudy.files import write_bytes_atomically
from quickstudy.images.decoding import InputSpec
from quickstudy.models.golden import GOLDEN_TOLERANCE, golden_images
from quickstudy.models.metadata import FORMAT, PREFIX
from quickstudy.version import VERSION


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """What follows the cut: softmax(signed_sqrt(bottleneck) · weights + biases)."""

    weights: NDArray[np.float32]
    biases: NDArray[np.float32]


def write_model(
    path: Path, backbone: Backbone, head: LinearHead, *, classes: Sequence[str], training: dict[str, Any]
) -> None:
    """Merge, check and write a model.

    Args:
        path: the `.onnx` file to create or replace, atomically.
        backbone: what runs up to the cut.
        head: what follows.
        classes: names in the order of the head's columns.
        training: what there is to say about data, split and accuracy, as JSON values.

    Raises:
        ModelError: the merged graph does not give what its parts give, or the file cannot be written.
    """
    merged = _merge(backbone, head)
    images = golden_images(backbone.input.size)
    bottlenecks, probabilities = open_session(merged.SerializeToString()).run(
        [backbone.cut, "probabilities"], {"image": images}
    )
    expected = _apply(head, bottlenecks)
    difference = float(np.abs(probabilities - expected).max())
    if not difference <= GOLDEN_TOLERANCE:
        raise ModelError(
            f"The merged model differs from its parts by {difference:.1e}; it was not written. Please report this"
        )
    del merged.graph.output[1:]
    save_model(
        path,
        merged,
        input_spec=backbone.input,
        classes=classes,
        expected=expected,
        origin={"backbone": {"name": backbone.name, "fingerprint": backbone.fingerprint, "cut": backbone.cut}},
        training=training,
    )


def save_model(
    path: Path,
    graph: onnx.ModelProto,
    *,
    input_spec: InputSpec,
    classes: Sequence[str],
    expected: NDArray[np.floating],
    origin: dict[str, Any],
    training: dict[str, Any],
) -> None:
    """Write a checked graph as a model, with its metadata and golden checks.

    Args:
        path: the `.onnx` file to create or replace, atomically.
        graph: takes `image`, gives `probabilities`.
        input_spec: how an image becomes `image`.
        classes: names in the order of the probabilities.
        expected: the probabilities of the golden images.
        origin: where the network comes from: further properties, as JSON values.
        training: what there is to say about data, split and accuracy, as JSON values.

    Raises:
        ModelError: the file cannot be written.
    """
    properties = {
        "format": FORMAT,
        "classes": list(classes),
        "input": input_spec.to_dict(),
        **origin,
        "training": training,
        "golden": {"probabilities": [[round(float(p), 7) for p in row] for row in expected]},
        "versions": {"quickstudy": VERSION, "onnx": onnx.__version__, "numpy": np.__version__},
    }
    helper.set_model_props(graph, {PREFIX + name: json.dumps(value) for name, value in properties.items()})
    try:
        write_bytes_atomically(path, graph.SerializeToString(deterministic=True))
    except OSError as error:
        raise ModelError(
            f"Cannot write the model '{path}': {error.strerror}. Name another place with --output"
        ) from error


def _merge(backbone: Backbone, head: LinearHead) -> onnx.ModelProto:
    """The backbone's graph up to the cut with the head behind it; outputs: `probabilities` and, last, the cut."""
    original = onnx.load(backbone.path, load_external_data=False)
    model = keep_until(original, backbone.cut, backbone.cut_shape)
    graph, cut = model.graph, backbone.cut
    graph.initializer.append(numpy_helper.from_array(head.weights, "head/weights"))
    graph.initializer.append(numpy_helper.from_array(head.biases, "head/biases"))
    for operator, inputs, output in (
        ("Sign", [cut], "head/sign"),
        ("Abs", [cut], "head/magnitude"),
        ("Sqrt", ["head/magnitude"], "head/root"),
        ("Mul", ["head/sign", "head/root"], "head/features"),
        ("Gemm", ["head/features", "head/weights", "head/biases"], "logits"),
    ):
        graph.node.append(helper.make_node(operator, inputs, [output], name=output))
    graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"], name="probabilities", axis=1))
    classes = head.weights.shape[1]
    graph.output.insert(0, helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", classes]))
    return model


def _apply(head: LinearHead, bottlenecks: NDArray[np.float32]) -> NDArray[np.float64]:
    """The head in plain NumPy, in float64: what the graph must agree with."""
    values = bottlenecks.astype(np.float64)
    logits = np.copysign(np.sqrt(np.abs(values)), values) @ head.weights.astype(np.float64) + head.biases
    exponentials: NDArray[np.float64] = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
