"""Operators in PyTorch: values against ONNX Runtime, gradients against finite differences in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from quickstudy.backbones.graphs.autograd import GraphModule
from quickstudy.backbones.graphs.operators import OPERATORS
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.errors import BackboneError

Array = np.ndarray
draws = np.random.Generator(np.random.PCG64(7))


def some(*shape: int, low: float = -2.0, high: float = 2.0) -> Array:
    """Values that are far from each other and from the places where functions have kinks, as near as can be."""
    count = int(np.prod(shape))
    values = np.linspace(low, high, count) + 0.01
    return draws.permutation(values).reshape(shape).astype(np.float32)


def whole(*values: int) -> Array:
    return np.array(values, np.int64)


@dataclass
class Case:
    """One node; `others` are its inputs besides `x`, which is the one at `place`."""

    operator: str
    x: Array
    others: list[Array | None] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    smooth: bool = True
    note: str = ""
    place: int | None = 0
    """Which of the inputs `x` is; None where it is none: then the result is added to it."""
    floats: bool = True
    """Whether the operator gives floats; what else it gives is cast."""

    @property
    def name(self) -> str:
        return f"{self.operator}{'-' if self.note else ''}{self.note}"

    def model(self) -> onnx.ModelProto:
        names = ["" if other is None else f"c{number}" for number, other in enumerate(self.others)]
        if self.place is not None:
            names.insert(self.place, "x")
        outputs = [f"y{number}" for number in range(self.outputs)]
        nodes, plain = [], self.floats and self.place is not None
        nodes.append(helper.make_node(self.operator, names, outputs if plain else ["raw"], **self.attributes))
        if not plain:
            nodes.append(helper.make_node("Cast", ["raw"], ["given"], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Add", ["x", "given"], ["y0"]))
        graph = helper.make_graph(
            nodes,
            "case",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.x.shape[1:]])],
            [helper.make_tensor_value_info("y0", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(o, f"c{n}") for n, o in enumerate(self.others) if o is not None],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


IMAGE = (2, 4, 7, 6)
EVEN, ODD = [1, 1, 1, 1], [0, 1, 1, 2]
kernel = some(6, 4, 3, 3)
CASES = [
    *(
        Case(name, some(2, 5))
        for name in ("Abs", "Erf", "Exp", "HardSwish", "Identity", "Neg", "Relu", "Sigmoid", "Softplus", "Softsign")
    ),
    *(Case(name, some(2, 5)) for name in ("Tanh", "Elu", "LeakyRelu", "Selu", "Celu", "HardSigmoid")),
    Case("Sign", some(2, 5), smooth=False),
    Case("Round", some(2, 5), smooth=False),
    Case("Elu", some(2, 5), [], {"alpha": 0.3}, note="alpha"),
    Case("LeakyRelu", some(2, 5), [], {"alpha": 0.2}, note="alpha"),
    Case("Selu", some(2, 5), [], {"alpha": 1.1, "gamma": 0.9}, note="values"),
    Case("HardSigmoid", some(2, 5), [], {"alpha": 0.3, "beta": 0.4}, note="values"),
    Case("Mish", some(2, 5), opset=18),
    Case("Gelu", some(2, 5), opset=20),
    Case("Gelu", some(2, 5), [], {"approximate": "tanh"}, opset=20, note="tanh"),
    *(Case(name, some(2, 5, low=0.1)) for name in ("Log", "Sqrt", "Reciprocal")),
    *(Case(name, some(2, 5), [some(5, low=0.5)]) for name in ("Add", "Sub", "Mul", "Div", "PRelu", "Max", "Min")),
    Case("Sum", some(2, 5), [some(5)]),
    Case("Sum", some(2, 5), [some(2, 5), some(5)], note="three"),
    Case("Pow", some(2, 5, low=0.1), [np.array(1.5, np.float32)]),
    Case("Dropout", some(2, 5)),
    Case("Clip", some(2, 5), [np.array(-1, np.float32), np.array(1, np.float32)]),
    Case("Clip", some(2, 5), [None, np.array(1, np.float32)], note="one-sided"),
    Case("Clip", some(2, 5), [], {"min": 0.0, "max": 1.0}, opset=6, note="attributes"),
    Case("Cast", some(2, 5), [], {"to": TensorProto.FLOAT}),
    Case("Conv", some(*IMAGE), [kernel, some(6)], {"pads": EVEN}),
    Case("Conv", some(*IMAGE), [kernel], {"pads": ODD, "strides": [2, 1]}, note="uneven"),
    Case("Conv", some(*IMAGE), [kernel], {"dilations": [2, 1]}, note="dilated"),
    Case("Conv", some(*IMAGE), [some(8, 1, 3, 3), some(8)], {"group": 4, "pads": EVEN}, note="depthwise"),
    Case("Conv", some(*IMAGE), [some(4, 1, 5, 5), some(4)], {"group": 4, "pads": [2] * 4}, note="depthwise-5"),
    Case("Conv", some(*IMAGE), [some(4, 1, 5, 5)], {"group": 4, "pads": [1, 2, 2, 2], "strides": [2, 2]}, note="5-2"),
    Case("Conv", some(2, 4, 9, 8), [some(4, 1, 7, 4)], {"group": 4, "pads": [3, 1, 3, 1]}, note="depthwise-7x4"),
    Case("Conv", some(*IMAGE), [kernel], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, note="same-upper"),
    Case("Conv", some(*IMAGE), [kernel], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, note="same-lower"),
    Case("Conv", some(*IMAGE), [kernel], {"auto_pad": "VALID"}, note="valid"),
    Case("Conv", some(2, 4, 9), [some(6, 4, 3)], {"pads": [1, 1]}, note="1d"),
    Case("ConvTranspose", some(*IMAGE), [some(4, 3, 2, 2), some(3)], {"strides": [2, 2]}),
    Case("BatchNormalization", some(*IMAGE), [some(4), some(4), some(4), some(4, low=0.5)], {"epsilon": 1e-3}),
    Case("LayerNormalization", some(2, 3, 5), [some(5), some(5)]),
    Case("LayerNormalization", some(2, 3, 5), [some(3, 5)], {"axis": 1, "epsilon": 1e-3}, note="two"),
    Case("InstanceNormalization", some(*IMAGE), [some(4), some(4)]),
    Case("LRN", some(*IMAGE), [], {"size": 3, "alpha": 0.1, "beta": 0.6, "bias": 2.0}),
    Case("MaxPool", some(*IMAGE), [], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": EVEN}),
    Case("MaxPool", some(*IMAGE), [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": ODD}, note="uneven"),
    Case("MaxPool", some(*IMAGE), [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, note="ceil"),
    Case("MaxPool", some(*IMAGE), [], {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}, note="same"),
    Case("AveragePool", some(*IMAGE), [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": EVEN}),
    Case("AveragePool", some(*IMAGE), [], {"kernel_shape": [3, 3], "pads": EVEN, "count_include_pad": 1}, note="all"),
    Case("AveragePool", some(*IMAGE), [], {"kernel_shape": [3, 3], "pads": ODD}, note="uneven"),
    Case("AveragePool", some(*IMAGE), [], {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}, note="same"),
    Case("AveragePool", some(*IMAGE), [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, note="ceil"),
    Case("GlobalAveragePool", some(*IMAGE)),
    Case("GlobalMaxPool", some(*IMAGE)),
    *(Case(name, some(2, 3, 4), [], {"axes": [2]}) for name in ("ReduceMean", "ReduceMax", "ReduceL2")),
    Case("ReduceMean", some(2, 3, 4), [], {"axes": [1, -1], "keepdims": 0}, note="two"),
    Case("ReduceMean", some(2, 3, 4), [whole(2)], opset=18, note="input"),
    Case("ReduceMean", some(2, 3, 4), note="all"),
    Case("ReduceSum", some(2, 3, 4), [whole(1)], {"keepdims": 0}),
    Case("ReduceSum", some(2, 3, 4), [], {"noop_with_empty_axes": 1}, note="none"),
    Case("Softmax", some(2, 3, 4), [], {"axis": 1}),
    Case("Softmax", some(2, 3, 4), [], {"axis": 1}, opset=11, note="old"),
    Case("LogSoftmax", some(2, 5)),
    Case("MatMul", some(2, 5), [some(5, 3)]),
    Case("MatMul", some(2, 3, 5), [some(5, 3)], note="many"),
    Case("Gemm", some(2, 5), [some(3, 5), some(3)], {"transB": 1}),
    Case("Gemm", some(2, 5), [some(5, 3), some(1, 3)], {"alpha": 0.5, "beta": 2.0}, note="scaled"),
    Case("Gemm", some(5, 2), [some(5, 3)], {"transA": 1}, note="transposed"),
    Case("Flatten", some(*IMAGE)),
    Case("Flatten", some(*IMAGE), [], {"axis": -2}, note="axis"),
    Case("Reshape", some(*IMAGE), [whole(0, 2, -1)]),
    Case("Reshape", some(1, 1), [whole()], note="scalar"),
    Case("Transpose", some(*IMAGE), [], {"perm": [0, 2, 3, 1]}),
    Case("Transpose", some(2, 5), note="reversed"),
    Case("Squeeze", some(2, 1, 3, 1), [whole(1, -1)]),
    Case("Squeeze", some(2, 1, 3, 1), note="all"),
    Case("Squeeze", some(2, 1, 3, 1), [], {"axes": [3]}, opset=11, note="attribute"),
    Case("Unsqueeze", some(2, 3), [whole(1, -1)]),
    Case("Unsqueeze", some(2, 3), [], {"axes": [0, 2]}, opset=11, note="attribute"),
    Case("Concat", some(2, 3), [some(2, 4)], {"axis": -1}),
    Case("Split", some(2, 6), [whole(2, 4)], {"axis": 1}, outputs=2),
    Case("Split", some(2, 6), [], {"axis": 1}, outputs=2, note="even"),
    Case("Resize", some(2, 3, 10, 9), [None, np.array([1, 1, 0.8, 2], np.float32)], {"mode": "linear"}),
    Case("Slice", some(2, 6, 5), [whole(1, 0), whole(6, 4), whole(1, 2), whole(2, 1)]),
    Case("Slice", some(2, 6, 5), [whole(-3), whole(np.iinfo(np.int64).max), whole(-2)], note="to-the-end"),
    Case("Slice", some(2, 6, 5), [whole(-1), whole(np.iinfo(np.int64).min), whole(1), whole(-1)], note="backwards"),
    Case("Slice", some(2, 6), [], {"starts": [1], "ends": [4], "axes": [1]}, opset=9, note="attributes"),
    Case("Gather", some(2, 6), [whole(3, -1, 3)], {"axis": 1}),
    Case("Gather", some(2, 6), [np.array(2)], {"axis": 1}, note="one"),
    Case("Gather", some(2, 2), [whole(5, 6), np.array(1)], place=None, note="scalar"),
    Case("Pad", some(2, 3, 4, 4), [whole(0, 0, 1, 0, 0, 0, 2, 1), np.array(0.5, np.float32)]),
    Case("Pad", some(2, 3, 4, 4), [whole(0, 0, 1, 0, 0, 0, 2, 1)], {"mode": "reflect"}, note="reflect"),
    Case("Pad", some(2, 3, 4, 4), [whole(0, 0, 1, 0, 0, 0, 2, 1)], {"mode": "edge"}, note="edge"),
    Case("Pad", some(2, 3, 4, 4), [], {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "value": 2.0}, opset=10, note="attribute"),
    # What transformers have besides.
    *(Case(name, some(2, 5)) for name in ("Sin", "Cos")),
    Case("Floor", some(2, 5), smooth=False),
    Case("Attention", some(2, 2, 5, 4), [some(2, 2, 6, 4), some(2, 2, 6, 3)], opset=23),
    Case(
        "Attention", some(2, 2, 5, 4), [some(2, 2, 5, 4), some(2, 2, 5, 4)], {"is_causal": 1}, opset=23, note="causal"
    ),
    Case("Attention", some(2, 2, 5, 4), [some(2, 2, 6, 4), some(2, 2, 6, 3), some(5, 6)], opset=23, note="mask"),
    Case("Attention", some(2, 4, 5, 4), [some(2, 2, 5, 4), some(2, 2, 5, 4)], {"scale": 0.3}, opset=23, note="shared"),
    Case(
        "Attention",
        some(2, 5, 8),
        [some(2, 6, 8), some(2, 6, 8)],
        {"q_num_heads": 2, "kv_num_heads": 2},
        opset=23,
        note="flat",
    ),
    Case("Attention", some(2, 2, 6, 3), [some(2, 2, 5, 4), some(2, 2, 6, 4)], opset=23, place=2, note="values"),
    Case("RotaryEmbedding", some(2, 3, 5, 8), [some(2, 5, 4), some(2, 5, 4)], opset=23),
    Case(
        "RotaryEmbedding", some(2, 3, 5, 8), [some(2, 5, 4), some(2, 5, 4)], {"interleaved": 1}, opset=23, note="pairs"
    ),
    Case(
        "RotaryEmbedding",
        some(2, 5, 16),
        [some(7, 2), some(7, 2), np.array([[0, 1, 2, 3, 4], [2, 6, 4, 1, 5]])],
        {"num_heads": 2, "rotary_embedding_dim": 4},
        opset=23,
        note="positions",
    ),
    Case("RMSNormalization", some(2, 3, 5), [some(5)], opset=23),
    Case("RMSNormalization", some(2, 3, 5), [some(3, 5)], {"axis": 1, "epsilon": 1e-3}, opset=23, note="two"),
    Case("Einsum", some(2, 3, 5), [some(2, 4, 5)], {"equation": "bhd,bkd->bhk"}),
    Case("Expand", some(2, 1, 3), [whole(2, 4, 1)]),
    Case("Tile", some(2, 3), [whole(1, 3)]),
    Case("Where", some(2, 3), [np.array([True, False, True]), some(2, 3)], place=1),
    Case("Mod", some(2, 5), [np.array(1.5, np.float32)], {"fmod": 1}),
    Case("Mod", some(2, 5), [whole(7, -7, 6, 5, 4), whole(3, 3, -4, 5, 3)], note="whole", place=None),
    Case("Shape", some(2, 1, 4), [], {"start": -1}, floats=False, smooth=False),
    Case("Range", some(2, 3), [np.array(2), np.array(8), np.array(2)], place=None),
    Case("ConstantOfShape", some(2, 3), [whole(2, 3)], {"value": numpy_helper.from_array(whole(5))}, place=None),
    Case("ConstantOfShape", some(2, 3), [whole(1, 3)], place=None, note="zeros"),
    *(
        Case(name, some(2, 5), [np.array(0, np.float32)], floats=False)
        for name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    Case("Equal", some(2, 5), [whole(1, 2, 3, 4, 5), whole(1, 3, 3, 5, 5)], place=None),
    *(
        Case(name, some(2, 2), [np.array([True, False]), np.array([[True], [False]])], place=None)
        for name in ("And", "Or")
    ),
    Case("Not", some(2, 2), [np.array([True, False])], place=None),
]


def test_every_operator_has_a_case() -> None:
    assert set(OPERATORS) == {case.operator for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_are_those_of_onnx_runtime(case: Case) -> None:
    model = case.model()
    expected = open_session(model.SerializeToString()).run(["y0"], {"x": case.x})[0]
    module = GraphModule(model)
    with torch.no_grad():
        found = module(torch.from_numpy(case.x)).numpy()
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.smooth], ids=lambda case: case.name)
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    module = GraphModule(case.model()).double()
    x = torch.from_numpy(case.x).double().requires_grad_()
    weights = list(module.parameters())

    def run(x: torch.Tensor, *_weights: torch.Tensor) -> torch.Tensor:
        return module(x)

    # Of many values, a random direction tells as surely as each by itself, in a hundredth of the time.
    many = x.numel() + sum(weight.numel() for weight in weights) > 300
    assert torch.autograd.gradcheck(run, (x, *weights), eps=1e-6, atol=1e-5, fast_mode=many)


def test_attention_to_what_came_before_is_refused() -> None:
    x = some(2, 2, 5, 4)
    case = Case("Attention", x, [x, x, None, x, x], opset=23)
    with pytest.raises(BackboneError, match="past_key"):
        GraphModule(case.model())(torch.from_numpy(x))


def test_automatic_output_padding_of_transposed_convolutions_is_refused() -> None:
    case = Case("ConvTranspose", some(*IMAGE), [some(4, 3, 2, 2)], {"pads": ODD})
    with pytest.raises(BackboneError, match="uneven or automatic padding"):
        GraphModule(case.model())(torch.from_numpy(case.x))
