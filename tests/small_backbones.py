"""A backbone that is small enough to be trained in a second: three blocks on 32×32 pixels, with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quickstudy.backbones.backbone import Backbone, add_backbone
from quickstudy.images.decoding import InputSpec
from quickstudy.options import with_options
from quickstudy.retraining.config import Method

SIDE = 32
CUTS = ("stem", "block_1", "block_2", "head", "features")
SEED = 11


def small_graph(*, classes: int = 4) -> onnx.ModelProto:
    """`image` to `probabilities`: a stem, a residual block with a depthwise 5×5 convolution, a strided one, a head."""
    draws = np.random.Generator(np.random.PCG64(SEED))
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(name: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def add(operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def convolution(
        x: str, output: str, filters: int, channels: int, size: int, *, stride: int = 1, groups: int = 1
    ) -> str:
        fan_in = channels // groups * size**2
        kernel = draws.normal(0, (2 / fan_in) ** 0.5, (filters, channels // groups, size, size))
        names = [constant(f"{output}.kernel", kernel)]
        y = add("Conv", [x, *names], f"{output}/conv", pads=[size // 2] * 4, strides=[stride] * 2, group=groups)
        norms = [
            constant(f"{output}.{part}", value)
            for part, value in (
                ("scale", draws.uniform(0.8, 1.2, filters)),
                ("shift", draws.normal(0, 0.1, filters)),
                ("mean", draws.normal(0, 0.1, filters)),
                ("variance", draws.uniform(0.8, 1.2, filters)),
            )
        ]
        return add("BatchNormalization", [y, *norms], f"{output}/bn", epsilon=1e-3)

    constant("zero", np.array(0))
    constant("six", np.array(6))
    x = add("Transpose", ["image"], "input/nchw", perm=[0, 3, 1, 2])
    x = add("Cast", [x], "input/float", to=TensorProto.FLOAT)
    x = add("Sub", [x, constant("input/mean", np.array(127))], "input/centred")
    x = add("Mul", [x, constant("input/scale", np.array(1 / 128))], "input")
    x = add("Clip", [convolution(x, "c0", 8, 3, 3, stride=2), "zero", "six"], "stem")
    y = add("Clip", [convolution(x, "c1", 8, 8, 5, groups=8), "zero", "six"], "block_1/depthwise")
    x = add("Add", [convolution(y, "c2", 8, 8, 1), x], "block_1")
    y = add("Clip", [convolution(x, "c3", 16, 8, 3, stride=2), "zero", "six"], "block_2/strided")
    x = add("Clip", [convolution(y, "c4", 16, 16, 3), "zero", "six"], "block_2")
    x = add("Relu", [convolution(x, "c5", 24, 16, 1)], "head")
    x = add("GlobalAveragePool", [x], "head/pooled")
    x = add("Flatten", [x], "features")
    matrix = constant("dense.weights", draws.normal(0, 0.2, (24, classes)))
    x = add("Gemm", [x, matrix, constant("dense.biases", np.zeros(classes))], "logits")
    add("Softmax", [x], "probabilities", axis=1)
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", classes])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def add_small_backbone(cache: Path) -> Backbone:
    """Keep it as `small` in a cache folder."""
    return add_backbone(
        "small",
        small_graph(),
        cache,
        input_spec=InputSpec(size=SIDE),
        cuts=CUTS,
        classes=("a", "b", "c", "d"),
        origin="a test",
    )


def method_of(*, epochs: int, rate: float = 1e-3) -> Method:
    """The usual method of fine-tuning, but for so many epochs at this rate."""
    return with_options(Method(), {"epochs": epochs, "rate": rate}, owner="A method")
