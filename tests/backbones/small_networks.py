"""Small networks as ONNX graphs, written down operator by operator, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 32
CLASSES = 5
Array = np.ndarray


class Net:
    """Collects nodes and constants; `op` and the layers made of it return their output's name."""

    def __init__(
        self, *, shape: Sequence[int | str] = ("N", 3, SIZE, SIZE), dtype: int = TensorProto.FLOAT, name: str = "x"
    ) -> None:
        self.draws = np.random.Generator(np.random.PCG64(0))
        self.input = helper.make_tensor_value_info(name, dtype, list(shape))
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.count = 0

    def op(self, operator: str, *inputs: str | Array, out: str | None = None, **attributes: Any) -> str:
        names = [self.constant(value) if not isinstance(value, str) else value for value in inputs]
        self.count += 1
        output = out or f"t{self.count}"
        self.nodes.append(helper.make_node(operator, names, [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        self.count += 1
        array = np.asarray(value, np.float32) if np.asarray(value).dtype.kind == "f" else np.asarray(value, np.int64)
        self.constants.append(numpy_helper.from_array(array, f"c{self.count}"))
        return f"c{self.count}"

    def random(self, *shape: int) -> Array:
        return self.draws.normal(0, (2 / max(1, np.prod(shape[1:]))) ** 0.5, shape).astype(np.float32)

    def conv(self, x: str, before: int, after: int, *, side: int = 3, stride: int = 1, **out: Any) -> str:
        pad = side // 2
        kernel, bias = self.random(after, before, side, side), self.random(after) / 10
        return self.op("Conv", x, kernel, bias, strides=[stride] * 2, pads=[pad] * 4, kernel_shape=[side] * 2, **out)

    def relu(self, x: str, **out: Any) -> str:
        return self.op("Relu", x, **out)

    def body(self, x: str) -> str:
        """A stem, a residual block and a head: N×3×32×32 to N×16×8×8."""
        x = self.relu(self.conv(x, 3, 8, stride=2))
        y = self.conv(self.relu(self.conv(x, 8, 8)), 8, 8)
        x = self.relu(self.op("Add", x, y))
        return self.relu(self.conv(x, 8, 16, stride=2))

    def pooled(self, x: str) -> str:
        """N×16×8×8 to N×16."""
        return self.op("Flatten", self.op("GlobalAveragePool", x))

    def logits(self, x: str, *, before: int = 16, classes: int = CLASSES, **out: Any) -> str:
        return self.op("Gemm", x, self.random(classes, before), self.random(classes), transB=1, **out)

    def model(self, output: str, *, opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "net", [self.input], [onnx.ValueInfoProto(name=output)], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
        return onnx.shape_inference.infer_shapes(model)

    def save(self, path: Path, output: str, **versions: int) -> Path:
        onnx.save(self.model(output, **versions), path)
        return path


def classifier(**input_options: Any) -> tuple[Net, str]:
    """The plainest one: N×3×32×32 to N×5 logits."""
    net = Net(**input_options)
    return net, net.logits(net.pooled(net.body(net.input.name)))


def photos(count: int = 3, size: int = SIZE) -> Array:
    """Images (uint8, N×size×size×3)."""
    return np.random.Generator(np.random.PCG64(5)).integers(0, 256, (count, size, size, 3), np.uint8)


def run(model: onnx.ModelProto | Path, tensor: str, given: Array | dict[str, Array]) -> Array:
    """What a tensor of a graph holds, in ONNX Runtime, without any of quickstudy's code; inputs go by name or alone."""
    import onnxruntime

    model = onnx.load(model) if isinstance(model, Path) else model
    if tensor not in {info.name for info in model.graph.output}:
        model = onnx.ModelProto.FromString(model.SerializeToString())
        model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([tensor], given if isinstance(given, dict) else {session.get_inputs()[0].name: given})[0]


def softmax(x: Array) -> Array:
    exponents = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)
