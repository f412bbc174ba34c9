"""Writes a keras.applications network as the ONNX graph that a careful user would run.

The comparison with Keras needs the same network on both sides: this script gives the ONNX side. Weights are
random (speed does not depend on them), but not Keras's initial ones: with those the signal fades to 1e-12 on
its way to the output, where any two graphs agree. Batch-norm statistics are therefore measured on seeded
noise, and every export is compared with Keras's own output before it is written.

Input `image`: uint8, N x H x W x 3, N symbolic. Output `features`: float32, N x d. Preprocessing is inside.

Three things in Keras's plain export cost ONNX Runtime dearly, MobileNetV2 more than half of its speed:
- Batch norm comes out as Sub, Mul, Add, which ONNX Runtime does not fold into the convolution before it. Here
  it becomes one BatchNormalization node, which it does fold.
- With a symbolic N, padding is computed from the input's shape in every call. Here the clean-up runs with
  N = 1, so that it becomes numbers, and N is made symbolic afterwards.
- Pad has an optional third input named "", which makes ONNX Runtime leave it apart from its convolution.
  Without that input, ONNX Runtime folds the padding in.

    python export_keras.py MobileNetV2 mobilenet_v2.onnx

Needs keras, torch, onnx, onnxscript, onnxruntime. The backend is torch, whatever KERAS_BACKEND says.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

import keras

# Input side in pixels. All three families preprocess by x / 127.5 - 1.
INPUT_SIDES = {"MobileNetV2": 224, "InceptionV3": 299, "ResNet50V2": 224}
# Against the largest feature (but at least 1): rounding grows with the values. In InceptionV3, whose largest
# feature is 4.4, Keras's batch norm and torch's already differ by 4e-5.
LARGEST_DIFFERENCE = 1e-4


class FoldableBatchNormalization(keras.layers.BatchNormalization):
    """Keras's frozen batch norm for channels-first input, in the form that exports as BatchNormalization."""

    def call(self, inputs: torch.Tensor, **_: Any) -> torch.Tensor:
        gamma, beta, mean, variance = (
            None if weight is None else weight.value
            for weight in (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        )
        return torch.nn.functional.batch_norm(inputs, mean, variance, gamma, beta, False, 0.0, self.epsilon)


def build(arch: str, *, seed: int) -> keras.Model:
    """The Keras network from uint8 pixels to pooled features, seeded, with activations of ordinary size.

    It computes channels first: that is ONNX's order, and so the export needs one Transpose, at the input.
    """
    side = INPUT_SIDES[arch]
    keras.utils.set_random_seed(seed)
    keras.config.set_image_data_format("channels_first")
    pixels = keras.Input((side, side, 3), dtype="uint8", name="image")
    planes = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(keras.layers.Permute((3, 1, 2))(pixels))
    application = getattr(keras.applications, arch)
    network = application(weights=None, include_top=False, pooling="avg", input_tensor=planes)
    model = keras.Model(pixels, network.output)  # one input, where `network` takes a list of one
    calibrate_batch_norms(model, random_images(8, side, seed=seed), seed=seed)
    model.trainable = False
    return model


def calibrate_batch_norms(model: keras.Model, images: NDArray[np.uint8], *, seed: int) -> None:
    """Give each batch norm the statistics that it sees on `images`, and scales and offsets near 1 and 0."""
    random = np.random.default_rng(seed)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for norm in norms:
        if norm.scale:
            norm.gamma.assign(random.uniform(0.8, 1.2, norm.gamma.shape))
        norm.beta.assign(random.normal(0.0, 0.2, norm.beta.shape))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # the moving statistics become those of the next batch
    with torch.no_grad():
        model(images, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def random_images(count: int, side: int, *, seed: int) -> NDArray[np.uint8]:
    """Seeded images: noise on a coarse grid plus noise on the pixels, so that pooled features differ."""
    random = np.random.default_rng(seed)
    cell = -(-side // 4)
    coarse = random.integers(0, 200, (count, 4, 4, 3)).repeat(cell, axis=1).repeat(cell, axis=2)
    return (coarse[:, :side, :side] + random.integers(0, 56, (count, side, side, 3))).astype(np.uint8)


def with_foldable_batch_norms(model: keras.Model) -> keras.Model:
    """The same network, same weights, with `FoldableBatchNormalization` in place of Keras's layer."""

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        kind = FoldableBatchNormalization if type(layer) is keras.layers.BatchNormalization else type(layer)
        return kind.from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    copy.trainable = False
    copy(np.zeros((1, *model.input_shape[1:]), np.uint8))  # a model that was never called cannot be exported
    return copy


def export(model: keras.Model) -> onnx.ModelProto:
    """The network as ONNX, cleaned by ONNX Runtime's basic optimisation (standard operators only)."""
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.export(str(exported), format="onnx", verbose=False)
        graph = onnx.load(exported)
    graph = clean(graph)
    let_pads_fold(graph)
    graph = clean(graph)
    name_tensors(graph)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph after ONNX Runtime's basic optimisation at N = 1: constants and batch norms folded."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with tempfile.TemporaryDirectory() as folder:
        cleaned = Path(folder) / "cleaned.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(cleaned)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(cleaned)


def let_pads_fold(model: onnx.ModelProto) -> None:
    """Remove the empty optional input of each Pad before a convolution; it means the same as none. In place.

    Not before a MaxPool: ONNX Runtime 1.31 would fold such a Pad, too, which puts the pool's own minus
    infinity in the place of Keras's zeros. In ResNet50V2, where the pool's input may be negative, that
    changes features by 0.02.
    """
    padded = {node.input[0] for node in model.graph.node if node.op_type == "Conv"}
    for node in model.graph.node:
        if node.op_type == "Pad" and node.output[0] in padded:
            while not node.input[-1]:
                node.input.pop()


def name_tensors(model: onnx.ModelProto) -> None:
    """Name input and output `image` and `features`, make N symbolic, drop shapes of N = 1. In place."""
    graph = model.graph
    source, result = graph.input[0], graph.output[0]
    for node in graph.node:
        node.input[:] = ["image" if name == source.name else name for name in node.input]
        node.output[:] = ["features" if name == result.name else name for name in node.output]
    source.name, result.name = "image", "features"
    for value in (source, result):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del graph.value_info[:]
    used = {node.domain for node in graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def compare(graph: onnx.ModelProto, model: keras.Model, *, seed: int) -> dict[str, float]:
    """Run four seeded images through ONNX Runtime (together, and the first alone) and through Keras.

    Raises:
        SystemExit: an output differs from Keras's by `LARGEST_DIFFERENCE` or more, or is too small to tell.
    """
    images = random_images(4, model.input_shape[1], seed=seed + 1)
    expected = np.asarray(model.predict(images, verbose=0))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    together, alone = (session.run(["features"], {"image": part})[0] for part in (images, images[:1]))
    difference = float(max(np.abs(together - expected).max(), np.abs(alone - expected[:1]).max()))
    largest = float(np.abs(expected).max())
    spread = float(expected.std(axis=0).mean())
    allowed = LARGEST_DIFFERENCE * max(1.0, largest)
    if not (difference < allowed and spread > 100 * LARGEST_DIFFERENCE):
        raise SystemExit(
            f"The export does not agree with Keras: largest difference {difference:.3g} (allowed "
            f"{allowed:.3g}), features vary by {spread:.3g} between images (at least "
            f"{100 * LARGEST_DIFFERENCE:g} wanted)"
        )
    return {
        "max_abs_difference": difference,
        "features_max_abs": largest,
        "features_std_between_images": spread,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a keras.applications network as a lean ONNX graph.")
    parser.add_argument("arch", choices=sorted(INPUT_SIDES), metavar="ARCH", help=", ".join(INPUT_SIDES))
    parser.add_argument("out", type=Path, metavar="OUT.onnx")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    model = build(arguments.arch, seed=arguments.seed)
    graph = export(with_foldable_batch_norms(model))
    agreement = compare(graph, model, seed=arguments.seed)
    onnx.save(graph, arguments.out)
    report = {
        "arch": arguments.arch,
        "bytes": arguments.out.stat().st_size,
        **agreement,
        "operators": dict(collections.Counter(node.op_type for node in graph.graph.node).most_common()),
        "versions": {module.__name__: module.__version__ for module in (keras, torch, onnx, onnxruntime, np)},
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
