"""Depthwise convolutions whose weights' gradient is quick on a CPU.

oneDNN has fast code for the weights' gradient of 3×3 kernels but not of larger ones: for 5×5 in bfloat16 it takes 37 ms
where 3×3 takes 0.3 (32×1152×9×9, two cores), more than all else in a block together. A larger kernel is a set of 3×3
ones that overlap, each seeing a shifted part of the image, so its gradient is put together from theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_TILE = 3


def depthwise_convolution(
    x: Tensor, kernel: Tensor, bias: Tensor | None, strides: list[int], pads: list[int]
) -> Tensor:
    """N×C×H×W by C×1×k×l, k and l of at least 3; as `conv2d` with C groups."""
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
    """Where tiles begin that cover `size` places; the last two may overlap."""
    return [*range(0, size - _TILE, _TILE), size - _TILE]


def _backward(
    gradient: Tensor, x: Tensor, kernel: Tensor, strides: list[int], pads: list[int], wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, x, kernel, None, strides, pads, [1, 1], False, [0, 0], len(kernel), [*wanted, False]
    )
    return found
