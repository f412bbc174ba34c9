"""Operators of the ONNX standard in PyTorch: what networks for images are made of (see also `token_operators.py`).

Each is a function of a node's inputs and attributes; `opset` is among the attributes, as some have changed their
meaning. The specification is at https://onnx.ai/onnx/operators/.

Depthwise convolutions have a gradient of their own. oneDNN has fast code for the weights' gradient of 3×3 kernels but
not of larger ones: for 5×5 in bfloat16 it takes 37 ms where 3×3 takes 0.3 (32×1152×9×9, two cores), more than all else
in a block together. A larger kernel is a set of 3×3 ones that overlap, each seeing a shifted part of the image, so its
gradient is put together from theirs. With four overlapping tiles a training step from `block_12` of EfficientNet-Lite0
is twice as fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from onnx import helper
from torch import Tensor
from torch.nn import functional

from quickstudy.backbones.graphs.token_operators import TOKEN_OPERATORS, Attributes, Inputs, Operator, plain
from quickstudy.errors import BackboneError

# Depthwise convolutions
_TILE = 3


def depthwise_convolution(
    x: Tensor, kernel: Tensor, bias: Tensor | None, strides: list[int], pads: list[int]
) -> Tensor:
    """Convolve N×C×H×W with C×1×k×l, k and l of at least 3, as `conv2d` does with C groups."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, kernel, bias = x.to(dtype), kernel.to(dtype), None if bias is None else bias.to(dtype)
    result: Tensor = _Depthwise.apply(x, kernel, bias, strides, pads)  # type: ignore[no-untyped-call]
    return result


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor | None, strides: list[int], pads: list[int]
    ) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.strides, ctx.pads = strides, pads
        return functional.conv2d(x, kernel, bias, strides, pads, groups=len(kernel))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        needs_x, needs_kernel, needs_bias = ctx.needs_input_grad[:3]
        of_x = _backward(gradient, x, kernel, ctx.strides, ctx.pads, (True, False))[0] if needs_x else None
        of_kernel = _kernel_gradient(gradient, x, kernel, ctx.strides, ctx.pads) if needs_kernel else None
        return of_x, of_kernel, gradient.sum((0, 2, 3)) if needs_bias else None, None, None


def _kernel_gradient(gradient: Tensor, x: Tensor, kernel: Tensor, strides: list[int], pads: list[int]) -> Tensor:
    result = torch.empty_like(kernel)
    padded = functional.pad(x, [pads[1], pads[1], pads[0], pads[0]])
    # What one 3×3 kernel sees.
    height, width = ((side - 1) * stride + _TILE for side, stride in zip(gradient.shape[2:], strides, strict=True))
    for top in _tiles(kernel.shape[2]):
        for left in _tiles(kernel.shape[3]):
            seen = padded[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
            tile = kernel[:, :, top : top + _TILE, left : left + _TILE].contiguous()
            found = _backward(gradient, seen, tile, strides, [0, 0], (False, True))[1]
            result[:, :, top : top + _TILE, left : left + _TILE] = found
    return result


def _tiles(size: int) -> list[int]:
    """Say where tiles begin that cover `size` places; the last two may overlap."""
    return [*range(0, size - _TILE, _TILE), size - _TILE]


def _backward(
    gradient: Tensor, x: Tensor, kernel: Tensor, strides: list[int], pads: list[int], wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, x, kernel, None, strides, pads, [1, 1], False, [0, 0], len(kernel), [*wanted, False]
    )
    return found


# Operators
def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """Make an operator on any number of inputs, taken two at a time."""
    return lambda inputs, _attributes: reduce(function, inputs)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def _activation(function: Callable[..., Tensor], **defaults: float) -> Operator:
    """Make an operator with one input and numbers as attributes, which the function takes in this order."""
    return lambda inputs, attributes: function(inputs[0], *(attributes.get(n, d) for n, d in defaults.items()))


def _clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    low, high = (*inputs[1:3], None, None)[:2] if len(inputs) > 1 else (attributes.get("min"), attributes.get("max"))
    # Numbers rather than tensors: PyTorch then takes its quick way, forward and backward.
    if low is not None and high is not None:
        # The gradient of hardtanh is one pass over memory, that of clamp five.
        return functional.hardtanh(inputs[0], float(low), float(high))
    return torch.clamp(inputs[0], *(None if limit is None else float(limit) for limit in (low, high)))


def _selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * (torch.exp(x) - 1))


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def _gelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    return functional.gelu(inputs[0], approximate=_text(attributes.get("approximate", b"none")))


def _cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    dtype = torch.from_numpy(np.empty(0, helper.tensor_dtype_to_np_dtype(attributes["to"]))).dtype
    x: Tensor = inputs[0]
    # Under mixed precision a graph's float32 is whatever the layers before have given.
    return x if x.is_floating_point() and dtype.is_floating_point else x.to(dtype)


def _conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, kernel = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    rank = kernel.ndim - 2
    strides, dilations = _each(attributes, "strides", rank), _each(attributes, "dilations", rank)
    begin, end = _padding(attributes, x.shape[2:], kernel.shape[2:], strides, dilations)
    if begin != end:
        x, begin = functional.pad(x, _torch_padding(begin, end)), [0] * rank
    groups = attributes.get("group", 1)
    if _is_large_depthwise(x, kernel, groups, dilations):
        return depthwise_convolution(x, kernel, bias, strides, begin)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    return convolve(x, kernel, bias, strides, begin, dilations, groups)


def _is_large_depthwise(x: Tensor, kernel: Tensor, groups: int, dilations: list[int]) -> bool:
    """Say whether the gradient of these weights is slow in PyTorch itself."""
    return (
        kernel.ndim == 4
        and groups == x.shape[1] == kernel.shape[0]
        and min(kernel.shape[2:]) >= 3
        and max(kernel.shape[2:]) > 3
        and dilations == [1, 1]
        and x.device.type == "cpu"
        and kernel.requires_grad
        and torch.is_grad_enabled()
    )


def _conv_transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, kernel = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    rank = kernel.ndim - 2
    pads = list(attributes.get("pads", [0] * 2 * rank))
    if pads[:rank] != pads[rank:] or "output_shape" in attributes or _auto_pad(attributes) != "NOTSET":
        raise BackboneError("A ConvTranspose with uneven or automatic padding cannot be run in PyTorch here")
    convolve = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
    return convolve(
        x,
        kernel,
        bias,
        _each(attributes, "strides", rank),
        pads[:rank],
        list(attributes.get("output_padding", [0] * rank)),
        attributes.get("group", 1),
        _each(attributes, "dilations", rank),
    )


def _batch_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, scale, shift, mean, variance = inputs[:5]
    return functional.batch_norm(x, mean, variance, scale, shift, training=False, eps=attributes.get("epsilon", 1e-5))


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, scale = inputs[0], inputs[1]
    shift = inputs[2] if len(inputs) > 2 else None
    axis = attributes.get("axis", -1) % x.ndim
    return functional.layer_norm(x, x.shape[axis:], scale, shift, attributes.get("epsilon", 1e-5))


def _instance_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    return functional.instance_norm(inputs[0], weight=inputs[1], bias=inputs[2], eps=attributes.get("epsilon", 1e-5))


def _local_response_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    return functional.local_response_norm(
        inputs[0],
        attributes["size"],
        attributes.get("alpha", 1e-4),
        attributes.get("beta", 0.75),
        attributes.get("bias", 1.0),
    )


def _max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, kernel = inputs[0], list(attributes["kernel_shape"])
    rank = len(kernel)
    strides, dilations = _each(attributes, "strides", rank), _each(attributes, "dilations", rank)
    begin, end = _padding(attributes, x.shape[2:], kernel, strides, dilations)
    if any(begin) or any(end):
        x = functional.pad(x, _torch_padding(begin, end), value=-math.inf)
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
    return pool(x, kernel, strides, 0, dilations, ceil_mode=bool(attributes.get("ceil_mode", 0)))


def _average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, kernel = inputs[0], list(attributes["kernel_shape"])
    rank = len(kernel)
    strides = _each(attributes, "strides", rank)
    begin, end = _padding(attributes, x.shape[2:], kernel, strides, [1] * rank)
    ceil_mode = bool(attributes.get("ceil_mode", 0))
    pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    if begin == end and not (ceil_mode and any(begin)):
        counted = bool(attributes.get("count_include_pad", 0))
        return pool(x, kernel, strides, begin, ceil_mode=ceil_mode, count_include_pad=counted)
    padding = _torch_padding(begin, end)
    total = pool(functional.pad(x, padding), kernel, strides, ceil_mode=ceil_mode)
    if attributes.get("count_include_pad", 0):
        return total
    # The share of each window that is not padding.
    share = pool(functional.pad(torch.ones_like(x[:1, :1]), padding), kernel, strides, ceil_mode=ceil_mode)
    return total / share


def _global_pool(function: Callable[..., Tensor]) -> Operator:
    return lambda inputs, _attributes: function(inputs[0], dim=tuple(range(2, inputs[0].ndim)), keepdim=True)


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def run(inputs: Inputs, attributes: Attributes) -> Tensor:
        axes = inputs[1].tolist() if len(inputs) > 1 and inputs[1] is not None else attributes.get("axes")
        x: Tensor = inputs[0]
        if axes is None or not len(axes):
            if attributes.get("noop_with_empty_axes", 0):
                return x
            axes = range(x.ndim)
        return function(x, dim=tuple(axes), keepdim=bool(attributes.get("keepdims", 1)))

    return run


def _softmax(function: Callable[..., Tensor]) -> Operator:
    def run(inputs: Inputs, attributes: Attributes) -> Tensor:
        x: Tensor = inputs[0]
        if attributes["opset"] >= 13:
            return function(x, dim=attributes.get("axis", -1))
        rows = x.flatten(attributes.get("axis", 1))  # older ones see a matrix
        return function(rows, dim=-1).reshape(x.shape)

    return run


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    a = inputs[0].T if attributes.get("transA", 0) else inputs[0]
    b = inputs[1].T if attributes.get("transB", 0) else inputs[1]
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    product: Tensor = a @ b if alpha == 1 else alpha * (a @ b)
    if len(inputs) < 3 or inputs[2] is None:
        return product
    bias: Tensor = inputs[2]
    return product + (bias if beta == 1 else beta * bias)


def _flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Tensor = inputs[0]
    axis = attributes.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    # Without asking for sizes in the usual case, so that a traced network does not either.
    return x.flatten(1) if axis == 1 else x.reshape(math.prod(x.shape[:axis]), -1)


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Tensor = inputs[0]
    sides = inputs[1].tolist()
    if not attributes.get("allowzero", 0):
        sides = [x.shape[number] if side == 0 else side for number, side in enumerate(sides)]
    return x.reshape(sides)


def _transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Tensor = inputs[0]
    return x.permute(tuple(attributes.get("perm", range(x.ndim)[::-1])))


def _squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Tensor = inputs[0]
    axes = _axes(inputs, attributes)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Tensor = inputs[0]
    axes = _axes(inputs, attributes) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _slice(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Tensor = inputs[0]
    given: list[Any] = [attributes.get("starts"), attributes.get("ends"), attributes.get("axes"), None]
    if len(inputs) > 1:
        given = [value.tolist() if value is not None else None for value in (*inputs[1:], None, None)[:4]]
    starts, ends, axes, steps = given
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = range(x.shape[axis])[slice(start, end if end > -x.shape[axis] - 1 else None, step)]
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(places.start, places.stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(places), device=x.device))
    return x


def _resize(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Interpolate linearly between pixel centres, by scales, in the last two dimensions."""
    x, scales = inputs[0], inputs[2] if len(inputs) > 2 else None
    plain = _text(attributes.get("mode", "nearest")) == "linear" and not attributes.get("antialias", 0)
    centres = _text(attributes.get("coordinate_transformation_mode", "half_pixel")) == "half_pixel"
    if scales is None or x.ndim != 4 or scales[:2].tolist() != [1, 1] or not (plain and centres):
        raise BackboneError(
            "Resize is run where it is linear, between pixel centres, and by scales of a map's two sides"
        )
    resized: Tensor = functional.interpolate(
        x, scale_factor=tuple(scales[2:].tolist()), mode="bilinear", align_corners=False, recompute_scale_factor=False
    )
    return resized


def _split(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    x, axis = inputs[0], attributes.get("axis", 0)
    sizes = inputs[1].tolist() if len(inputs) > 1 and inputs[1] is not None else attributes.get("split")
    if sizes is None:
        sizes = -(-x.shape[axis] // attributes["num_outputs"])
    return tuple(torch.split(x, sizes, dim=axis))


def _concat(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.cat(list(inputs), dim=attributes["axis"])


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, indices, axis = inputs[0], inputs[1], attributes.get("axis", 0)
    axis %= x.ndim
    picked: Tensor = x.index_select(axis, indices.flatten() % x.shape[axis])
    return picked.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _pad(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Tensor = inputs[0]
    pads = inputs[1].tolist() if len(inputs) > 1 else list(attributes["pads"])
    value = inputs[2] if len(inputs) > 2 and inputs[2] is not None else attributes.get("value", 0.0)
    axes = inputs[3].tolist() if len(inputs) > 3 and inputs[3] is not None else range(x.ndim)
    begin, end = [0] * x.ndim, [0] * x.ndim
    for axis, before, after in zip(axes, pads[: len(pads) // 2], pads[len(pads) // 2 :], strict=True):
        begin[axis], end[axis] = before, after
    mode = _text(attributes.get("mode", b"constant"))
    if mode == "constant":
        return functional.pad(x, _torch_padding(begin, end), value=float(value))
    return functional.pad(x, _torch_padding(begin[2:], end[2:]), mode={"edge": "replicate"}.get(mode, mode))


def _each(attributes: Attributes, name: str, rank: int) -> list[int]:
    return list(attributes.get(name, [1] * rank))


def _axes(inputs: Inputs, attributes: Attributes) -> list[int] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return [int(axis) for axis in inputs[1].tolist()]
    return list(attributes["axes"]) if "axes" in attributes else None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _auto_pad(attributes: Attributes) -> str:
    return _text(attributes.get("auto_pad", b"NOTSET"))


def _padding(
    attributes: Attributes, sides: Sequence[int], kernel: Sequence[int], strides: list[int], dilations: list[int]
) -> tuple[list[int], list[int]]:
    """Work out the number of zeros before and after, for each spatial dimension."""
    rank, automatic = len(kernel), _auto_pad(attributes)
    if automatic == "NOTSET":
        pads = list(attributes.get("pads", [0] * 2 * rank))
        return pads[:rank], pads[rank:]
    if automatic == "VALID":
        return [0] * rank, [0] * rank
    totals = [
        max((-(-side // stride) - 1) * stride + (size - 1) * dilation + 1 - side, 0)
        for side, size, stride, dilation in zip(sides, kernel, strides, dilations, strict=True)
    ]
    smaller, larger = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (smaller, larger) if automatic == "SAME_UPPER" else (larger, smaller)


def _torch_padding(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Write a padding as PyTorch wants it: the last dimension first, before and after by turns."""
    return [size for pair in zip(reversed(begin), reversed(end), strict=True) for size in pair]


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "Div": _divide,
    "Dropout": lambda x, *_rates: x,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "HardSwish": functional.hardswish,
    "Identity": lambda x: x,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Mish": functional.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
}

OPERATORS: dict[str, Operator] = {
    **{name: plain(function) for name, function in _ELEMENTWISE.items()},
    **TOKEN_OPERATORS,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Celu": _activation(functional.celu, alpha=1.0),
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Elu": _activation(functional.elu, alpha=1.0),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool(torch.mean),
    "GlobalMaxPool": _global_pool(torch.amax),
    "HardSigmoid": _activation(_hard_sigmoid, alpha=0.2, beta=0.5),
    "InstanceNormalization": _instance_norm,
    "LRN": _local_response_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _activation(functional.leaky_relu, alpha=0.01),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Max": _fold(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _fold(torch.minimum),
    "Pad": _pad,
    "ReduceL2": _reduce(torch.linalg.vector_norm),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Reshape": _reshape,
    "Resize": _resize,
    "Selu": _activation(_selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Slice": _slice,
    "Softmax": _softmax(torch.softmax),
    "Split": _split,
    "Squeeze": _squeeze,
    "Sum": _fold(torch.add),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""The operators that can be run, by the names that the ONNX standard gives them."""
