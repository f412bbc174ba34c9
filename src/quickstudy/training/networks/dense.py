"""Dense layers through whichever library multiplies faster on this processor.

PyTorch's products of float32 matrices go to MKL, which keeps to AVX2 on processors that are not Intel's. oneDNN, which
PyTorch takes for convolutions, uses AVX-512 wherever it is: 190 instead of 95 GFLOP/s a core on a Zen 5.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn


class Dense(nn.Linear):
    """As `nn.Linear`, N×inputs to N×outputs, and as fast as this processor can."""

    def forward(self, x: Tensor) -> Tensor:
        """N×inputs to N×outputs."""
        if x.ndim != 2 or x.dtype is not torch.float32 or x.device.type != "cpu" or not _onednn_is_faster():
            return super().forward(x)
        if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch._C._get_tracing_state():
            return super().forward(x)  # a graph for others has the standard operator
        result: Tensor = _Product.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _multiply(gradient, weight.t()) if needs_x else None,
            _multiply(gradient.t(), x.t()) if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
        )


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product x · weightᵀ + bias; what PyTorch's own compiler calls for dense layers."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


@functools.cache
def _onednn_is_faster() -> bool:
    able = torch.cpu.get_capabilities()
    there = bool(torch.backends.mkldnn.enabled) and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and bool(able.get("avx512_f")) and "intel" not in str(able.get("cpu_name", "intel")).lower()
