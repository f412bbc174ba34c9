"""Puts a model together: backbone up to the cut, head, metadata and golden checks, in one ONNX file.

The file takes images as they come from a decoder (`image`: uint8, N × the shape of an input, RGB) and gives calibrated
`probabilities` (float32, N×classes) and, where there were images enough to tell, `strangeness` (float32, N, from 0 to
1); normalisation, features and head are all inside. It is checked before it is written: the merged graph must give what
the backbone and the head gave apart.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.tiles import prefix_graph
from quickstudy.backbones.graphs.cutting import keep_until, opset_of
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.backbones.graphs.untrusted import check_graph, parse_onnx
from quickstudy.errors import BackboneError, ModelError, WriteError
from quickstudy.files import write_bytes_atomically
from quickstudy.images.decoding import InputSpec
from quickstudy.learning.answers import Answer, Thresholds
from quickstudy.learning.links import ONE_OF, Link
from quickstudy.learning.strangeness import Strangeness
from quickstudy.models.format import (
    FORMAT,
    GOLDEN_TOLERANCE,
    HEAD_INPUT,
    HEAD_NAMES,
    HEAD_WEIGHTS,
    PREFIX,
    STRANGENESS,
    STRANGENESS_LOOSER,
    golden_images,
    sealed,
)
from quickstudy.models.roles import Roles
from quickstudy.version import VERSION

_TUNED = "tuned/"
_ROOTS, _LOGITS = "head/features", "logits"
_LEAST_LENGTH = 1e-12


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """What follows the features: the probabilities of signed_sqrt(features) · weights + biases, and what names say."""

    weights: NDArray[np.float32]
    """The weights, features × classes."""
    biases: NDArray[np.float32]
    """The biases, one a class."""
    names: NDArray[np.float32] | None = None
    """What the names of the classes say (F×K), times the first F features at length 1; None where nothing is said."""
    link: Link = ONE_OF
    """What makes probabilities of logits: the softmax, or the logistic function where there may be several labels."""

    def probabilities(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Work out class probabilities (n×K) of features (n×d), in float64."""
        values = features.astype(np.float64)
        logits = np.copysign(np.sqrt(np.abs(values)), values) @ self.weights.astype(np.float64) + self.biases
        if self.names is not None:
            seen = values[:, : len(self.names)]
            logits += seen / np.maximum(np.linalg.norm(seen, axis=1, keepdims=True), _LEAST_LENGTH) @ self.names
        return self.link.probabilities(logits)


Tail = Callable[[NDArray[np.float32]], NDArray[np.floating]]
"""What follows the cut: it takes bottlenecks (n × the cut's shape) and returns class probabilities (n×K)."""


def write_model(
    path: Path,
    backbone: Backbone,
    head: LinearHead,
    *,
    suffix: onnx.ModelProto | None = None,
    tail: Tail | None = None,
    classes: Sequence[str],
    training: dict[str, Any],
    roles: Roles | None = None,
    strangeness: Strangeness | None = None,
    answer: Answer | None = None,
) -> None:
    """Merge, check and write a model.

    Args:
        path: the `.onnx` file to create or replace, atomically.
        backbone: what runs up to the cut, frozen.
        head: what follows the features.
        suffix: what lies between the cut and the features; none where the cut is the features.
        tail: suffix and head as the training computes them, with which the merged graph must agree; the head alone if
            left out.
        classes: names in the order of the head's columns.
        training: what there is to say about data, split and accuracy, as JSON values.
        roles: which images it was made from; left out, the file does not say.
        strangeness: what tells strange images from its own, by the last features; left out, the model has no such
            output.
        answer: what probabilities are answered by; the most probable class if left out.

    Raises:
        ModelError: the merged graph does not give what its parts give, or what was frozen has changed.
        WriteError: the file cannot be written.
    """
    prefix = prefix_graph(backbone, backbone.cut, backbone.cut_shape)
    merged = _merge(prefix, backbone.cut, suffix, head)
    if strangeness:
        _add_strangeness(merged, strangeness, len(head.weights))
    images = golden_images(backbone.input)
    outputs = [backbone.cut, "probabilities", *([_ROOTS, _LOGITS, STRANGENESS] if strangeness else [])]
    values = open_session(merged.SerializeToString()).run(outputs, {"image": images})
    bottlenecks, probabilities = values[:2]
    expected = (tail or head.probabilities)(bottlenecks)
    difference = float(np.abs(probabilities - expected).max())
    if not difference <= GOLDEN_TOLERANCE:
        raise ModelError(
            f"The merged model differs from its parts by {difference:.1e}; it was not written. Please report this"
        )
    strange = _golden_strangeness(strangeness, *values[2:]) if strangeness else None
    frozen = fingerprint_of(keep_until(merged, backbone.cut, backbone.cut_shape))
    if frozen != fingerprint_of(prefix):
        raise ModelError("What was frozen has changed in the merged model; it was not written. Please report this")
    kept = [output for output in merged.graph.output if output.name in ("probabilities", STRANGENESS)]
    del merged.graph.output[:]
    merged.graph.output.extend(kept)
    save_model(
        path,
        merged,
        input_spec=backbone.input,
        classes=classes,
        expected=expected,
        origin={
            "backbone": {
                "name": backbone.name,
                "fingerprint": backbone.fingerprint,
                "cut": backbone.cut,
                "prefix_sha256": frozen,
            },
            "head": {"kind": head.link.kind, **(answer.to_dict() if isinstance(answer, Thresholds) else {})},
        },
        training=training,
        roles=roles,
        strange=strange,
    )


def fingerprint_of(graph: onnx.ModelProto) -> str:
    """Hash a graph's nodes and weights with SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest()


def save_model(
    path: Path,
    graph: onnx.ModelProto,
    *,
    input_spec: InputSpec,
    classes: Sequence[str],
    expected: NDArray[np.floating],
    origin: dict[str, Any],
    training: dict[str, Any],
    roles: Roles | None = None,
    strange: NDArray[np.floating] | None = None,
) -> None:
    """Write a checked graph as a model, with its metadata, golden checks and checksum, if it is one that can be loaded.

    Args:
        path: the `.onnx` file to create or replace, atomically.
        graph: takes `image`, gives `probabilities` and, where `strange` is given, `strangeness`.
        input_spec: how an image becomes `image`.
        classes: names in the order of the probabilities.
        expected: the probabilities of the golden images.
        origin: where the network comes from: further properties, as JSON values.
        training: what there is to say about data, split and accuracy, as JSON values.
        roles: which images it was made from; left out, the file does not say.
        strange: the strangeness of the golden images.

    Raises:
        ModelError: the graph holds what no model may hold.
        WriteError: the file cannot be written.
    """
    properties = {
        "format": FORMAT,
        "classes": list(classes),
        "input": input_spec.to_dict(),
        **origin,
        "training": training,
        **({"roles": roles.to_dict()} if roles else {}),
    }
    data = model_bytes(graph, properties, expected, strange=strange)
    try:
        check_graph(parse_onnx(data, path), path)
    except BackboneError as error:
        raise ModelError(
            f"The model could not be loaded again ({error}); it was not written. Please report this"
        ) from None
    write_model_file(path, data)


def model_bytes(
    graph: onnx.ModelProto,
    properties: dict[str, Any],
    expected: NDArray[np.floating],
    *,
    tolerance: float = GOLDEN_TOLERANCE,
    strange: NDArray[np.floating] | None = None,
) -> bytes:
    """Write a model file to bytes.

    Args:
        graph: takes `image`, gives `probabilities` and perhaps `strangeness`; what it has of metadata is replaced.
        properties: all that the file says about itself but golden checks and versions, as JSON values.
        expected: the probabilities of the golden images.
        tolerance: by how much another machine's may differ.
        strange: the strangeness of the golden images, where the graph gives it.
    """
    golden: dict[str, Any] = {"probabilities": [[round(float(p), 7) for p in row] for row in expected]}
    if strange is not None:
        golden[STRANGENESS] = [round(float(value), 7) for value in strange]
    if tolerance != GOLDEN_TOLERANCE:
        golden["tolerance"] = tolerance
    versions = {
        name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime", "numpy", "pillow", "simplejpeg")
    }
    versions["quickstudy"] = VERSION
    properties = {**properties, "golden": golden, "versions": versions}
    helper.set_model_props(graph, {PREFIX + name: json.dumps(value) for name, value in properties.items()})
    return sealed(graph)


def write_model_file(path: Path, data: bytes) -> None:
    """Create or replace a model file, atomically.

    Raises:
        WriteError: the file cannot be written.
    """
    try:
        write_bytes_atomically(path, data)
    except OSError as error:
        raise WriteError(
            f"Cannot write the model '{path}': {error.strerror}. Name another place with --output"
        ) from error


def _merge(prefix: onnx.ModelProto, cut: str, suffix: onnx.ModelProto | None, head: LinearHead) -> onnx.ModelProto:
    """Merge prefix, suffix and head into one graph, whose outputs are `probabilities` and, last, the cut."""
    model = onnx.ModelProto()
    model.CopyFrom(prefix)
    graph, features = model.graph, cut
    if suffix is not None:
        # Apart from the cut itself, names of both parts must not meet; the trained weights are another network's.
        behind = compose.add_prefix(suffix, _TUNED, rename_inputs=False)
        graph.node.extend(behind.graph.node)
        graph.initializer.extend(behind.graph.initializer)
        features = behind.graph.output[0].name
    graph.initializer.append(numpy_helper.from_array(head.weights, HEAD_WEIGHTS))
    graph.initializer.append(numpy_helper.from_array(head.biases, "head/biases"))
    for operator, inputs, output in (
        ("Sign", [features], HEAD_INPUT),
        ("Abs", [features], "head/magnitude"),
        ("Sqrt", ["head/magnitude"], "head/root"),
        ("Mul", [HEAD_INPUT, "head/root"], _ROOTS),
        ("Gemm", [_ROOTS, HEAD_WEIGHTS, "head/biases"], _LOGITS if head.names is None else "head/learned"),
    ):
        graph.node.append(helper.make_node(operator, inputs, [output], name=output))
    if head.names is not None:
        _add_names(model, features, head.names, len(head.weights))
    if head.link.kind == "one":
        graph.node.append(helper.make_node("Softmax", [_LOGITS], ["probabilities"], name="probabilities", axis=1))
    else:
        graph.node.append(helper.make_node("Sigmoid", [_LOGITS], ["probabilities"], name="probabilities"))
    classes = head.weights.shape[1]
    graph.output.insert(0, helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", classes]))
    return model


def _add_names(model: onnx.ModelProto, features: str, names: NDArray[np.float32], width: int) -> None:
    """Add to the logits what names say of the last features, scaled to length 1; the head sees `width` features."""
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(names, HEAD_NAMES))
    graph.initializer.append(numpy_helper.from_array(np.array([_LEAST_LENGTH], np.float32), "head/least_length"))
    if len(names) < width:  # of all levels, those of the last features, with which they begin
        for name, value in (("head/from", 0), ("head/to", len(names)), ("head/axis", 1)):
            graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
        inputs = [features, "head/from", "head/to", "head/axis"]
        graph.node.append(helper.make_node("Slice", inputs, ["head/last"], name="head/last"))
        features = "head/last"
    _over_rows(model, "ReduceL2", features, "head/length")
    for operator, inputs, output in (
        ("Max", ["head/length", "head/least_length"], "head/at_least"),
        ("Div", [features, "head/at_least"], "head/unit"),
        ("Gemm", ["head/unit", HEAD_NAMES, "head/learned"], _LOGITS),
    ):
        graph.node.append(helper.make_node(operator, inputs, [output], name=output))


def _over_rows(model: onnx.ModelProto, operator: str, given: str, output: str) -> str:
    """Add what makes one value of each row of a tensor (N×d), N×1, and return its name."""
    if opset_of(model) < 18:  # since then, axes are an input
        node = helper.make_node(operator, [given], [output], name=output, axes=[1], keepdims=1)
    else:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1]), f"{output}/axes"))
        node = helper.make_node(operator, [given, f"{output}/axes"], [output], name=output, keepdims=1)
    model.graph.node.append(node)
    return output


def _add_strangeness(model: onnx.ModelProto, strangeness: Strangeness, width: int) -> None:
    """Add what computes strangeness to a graph with a head, and the output; the head sees `width` features."""
    graph = model.graph

    def constant(name: str, values: Any, kind: Any = np.float32) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(values, kind), f"{STRANGENESS}/{name}"))
        return f"{STRANGENESS}/{name}"

    def add(operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        output = name if name == STRANGENESS else f"{STRANGENESS}/{name}"
        graph.node.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def over_row(operator: str, given: str, name: str) -> str:
        return _over_rows(model, operator, given, f"{STRANGENESS}/{name}")

    seen = _ROOTS
    if len(strangeness.centre) < width:  # of all levels, those of the last features, with which they begin
        bounds = [constant(name, [value], np.int64) for name, value in (("from", 0), ("to", len(strangeness.centre)))]
        seen = add("Slice", [seen, *bounds, constant("axis", [1], np.int64)], "features")
    placed = add(
        "Gemm",
        [seen, constant("directions", strangeness.directions), constant("offsets", strangeness.offsets)],
        "placed",
    )
    lengths = (strangeness.means.astype(np.float64) ** 2).sum(axis=1)
    to_means = add(
        "Gemm", [placed, constant("means", -2 * strangeness.means.T), constant("lengths", lengths)], "to_means"
    )
    nearest = over_row("ReduceMin", to_means, "nearest")
    squares = add("Mul", [placed, placed], "squares")
    background = add("MatMul", [squares, constant("kept", strangeness.kept[:, None])], "background")
    centred = add("Sub", [seen, constant("centre", strangeness.centre)], "centred")
    scaled = add("Mul", [centred, constant("scales", strangeness.scales)], "scaled")
    spread = over_row("ReduceSumSquare", scaled, "spread")
    energy = add(
        "Mul", [over_row("ReduceLogSumExp", _LOGITS, "evidence"), constant("energy", [-strangeness.energy])], "energies"
    )
    distance = add("Add", [add("Add", [nearest, background], "relative"), spread], "distance")
    score = add("Add", [distance, energy], "score")
    if strangeness.odds is not None:
        weights, bias = constant("odds", strangeness.odds[:, None]), constant("odds_bias", [strangeness.odds_bias])
        score = add("Add", [score, add("Gemm", [seen, weights, bias], "of_examples")], "score_by_examples")
    # The share of own images below the score: from knot to knot it grows evenly.
    gaps = np.diff(strangeness.knots.astype(np.float64))
    above = add(
        "Mul",
        [add("Sub", [score, constant("knots", strangeness.knots[:-1])], "above"), constant("steepness", 1 / gaps)],
        "passed",
    )
    within = add("Max", [add("Min", [above, constant("one", [1])], "up_to_one"), constant("zero", [0])], "within")
    share = add("MatMul", [within, constant("steps", np.diff(strangeness.shares.astype(np.float64))[:, None])], "share")
    add("Reshape", [share, constant("shape", [-1], np.int64)], STRANGENESS)
    graph.output.insert(1, helper.make_tensor_value_info(STRANGENESS, TensorProto.FLOAT, ["N"]))
    # By these it is checked; they are outputs until then.
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (_ROOTS, _LOGITS))


def _golden_strangeness(
    strangeness: Strangeness, roots: NDArray[np.float32], logits: NDArray[np.float32], given: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Work out the strangeness of the golden images apart from the graph, and check that the graph gives the same."""
    seen = np.copysign(roots**2, roots)[:, : len(strangeness.centre)]  # the features, of which these are the roots
    expected = strangeness.of(seen, logits)
    difference = float(np.abs(given - expected).max())
    if not difference <= STRANGENESS_LOOSER * GOLDEN_TOLERANCE:
        raise ModelError(
            f"The merged model's strangeness differs from that of its parts by {difference:.1e}; it was not written. "
            "Please report this"
        )
    return expected
