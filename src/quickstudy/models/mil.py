"""Runs MIL programs, Core ML's own language, in PyTorch, operator by operator.

For checking conversions where there is no Core ML. The operators are those that convolutional networks are made of, by
the definitions in coremltools' documentation of MIL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from quickstudy.errors import ModelError


def unknown_operators(program: Any) -> tuple[str, ...]:
    """Those of a program that cannot be run here, sorted."""
    return tuple(sorted({step.op_type for step in program.operations} - OPERATORS.keys() - {"const", "classify"}))


def run_program(program: Any, image: Tensor) -> Tensor:
    """The probabilities that a MIL program gives, operator by operator."""
    [name] = program.inputs
    values: dict[str, Any] = {name: image}

    def value_of(operand: Any) -> Any:
        if isinstance(operand, (list, tuple)):
            return [value_of(part) for part in operand]
        if operand.val is None:
            return values[operand.name]
        known = operand.val
        return torch.from_numpy(known.copy()) if isinstance(known, np.ndarray) and known.dtype == np.float32 else known

    for step in program.operations:
        if step.op_type == "classify":
            result: Tensor = value_of(step.inputs["probabilities"])
            return result
        if step.op_type != "const":
            inputs = {key: value_of(operand) for key, operand in step.inputs.items() if operand is not None}
            values[step.outputs[0].name] = OPERATORS[step.op_type](**inputs)
    raise ModelError("The MIL program does not end with a classification. Please report this")


def _ints(values: Any) -> list[int]:
    return [int(value) for value in np.asarray(values).ravel()]


def _padding(x: Tensor, pad_type: Any, pad: Any, value: float) -> Tensor:
    """MIL lists (before, after) for each axis from the first on, PyTorch from the last on."""
    if str(pad_type) not in ("custom", "valid"):
        raise ModelError(f"The MIL program pads in a way that is not known here: {pad_type}. Please report this")
    if str(pad_type) == "valid":
        return x
    pairs = np.asarray(pad).reshape(-1, 2)[::-1]
    return functional.pad(x, _ints(pairs), value=value)


def _conv(
    x: Tensor, weight: Tensor, strides: Any, pad_type: Any, pad: Any, dilations: Any, groups: Any, bias: Any = None
) -> Tensor:
    x = _padding(x, pad_type, pad, 0.0)
    return functional.conv2d(x, weight, bias, _ints(strides), 0, _ints(dilations), int(groups))


def _pad(x: Tensor, pad: Any, mode: Any, constant_val: Any) -> Tensor:
    if str(mode) != "constant":
        raise ModelError(f"The MIL program pads in a way that is not known here: {mode}. Please report this")
    return _padding(x, "custom", pad, float(constant_val))


def _max_pool(x: Tensor, kernel_sizes: Any, strides: Any, pad_type: Any, pad: Any, ceil_mode: Any = False) -> Tensor:
    x = _padding(x, pad_type, pad, -torch.inf)
    return functional.max_pool2d(x, _ints(kernel_sizes), _ints(strides), ceil_mode=bool(ceil_mode))


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "abs": lambda x: x.abs(),
    "add": lambda x, y: x + y,
    "cast": lambda x, dtype: x.float() if str(dtype) == "fp32" else x.to(getattr(torch, str(dtype))),
    "clip": lambda x, alpha, beta: x.clamp(float(alpha), float(beta)),
    "concat": lambda values, axis, interleave: torch.cat(values, int(axis)),  # noqa: ARG005 (never set here)
    "conv": _conv,
    "linear": lambda x, weight, bias=None: functional.linear(x, weight, bias),
    "max_pool": _max_pool,
    "mul": lambda x, y: x * y,
    "pad": _pad,
    "real_div": lambda x, y: x / y,
    "reduce_mean": lambda x, axes, keep_dims: x.mean(_ints(axes), keepdim=bool(keep_dims)),
    "relu": lambda x: x.relu(),
    "reshape": lambda x, shape: x.reshape(_ints(shape)),
    "sigmoid": lambda x: x.sigmoid(),
    "sign": lambda x: x.sign(),
    "silu": lambda x: functional.silu(x),
    "softmax": lambda x, axis: x.softmax(int(axis)),
    "sqrt": lambda x: x.sqrt(),
    "squeeze": lambda x, axes: x.squeeze(_ints(axes)),
    "sub": lambda x, y: x - y,
    "transpose": lambda x, perm: x.permute(_ints(perm)),
}
