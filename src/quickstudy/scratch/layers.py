"""Layers that torch lacks, or has in a form that costs more than the layers around them; and what a network costs."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
}
"""Activations by the names that recipes use."""
RISING = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU)
"""Activations that never fall, so that the largest of several values stays the largest."""


class LocalResponseNorm(nn.Module):
    """Divides each value by (bias + alpha · sum of squares of the channels within `radius`) to the power `beta`.

    As in Krizhevsky, Sutskever & Hinton, 2012, section 3.3, with TensorFlow's definition of the sum (`alpha` is not
    divided by the window's width). torch's own layer takes most of the classic network's step; here the sum over
    neighbouring channels is a 1×1 convolution with a banded matrix, and the gradient is written out: 2.9 instead of
    22.9 ms, forward and backward, for 128×64×12×12 on two cores (Zen 5, AVX-512).
    """

    band: Tensor

    def __init__(self, channels: int, *, radius: int = 4, bias: float = 1.0, alpha: float, beta: float) -> None:
        super().__init__()
        self.bias, self.alpha, self.beta = bias, alpha, beta
        places = torch.arange(channels)
        self.register_buffer("band", ((places[:, None] - places).abs() <= radius).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape, N×C×H×W."""
        if torch.onnx.is_in_onnx_export():
            scale = self.bias + self.alpha * functional.conv2d(x * x, self.band[:, :, None, None].to(x.dtype))
            return x * scale.pow(-self.beta)
        result: Tensor = _LocalResponseNorm.apply(x, self.band, self.bias, self.alpha, self.beta)  # type: ignore[no-untyped-call]
        return result

    def extra_repr(self) -> str:
        """Show the constants in `print(network)`."""
        return f"bias={self.bias}, alpha={self.alpha:.3g}, beta={self.beta}"


class _LocalResponseNorm(torch.autograd.Function):
    """Local response normalisation with its gradient written out.

    y = x · s^-β with s = k + α · B(x²); dx = g · s^-β − 2αβ · x · B(g · x · s^-(β+1)), B being symmetric.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, band: Tensor, bias: float, alpha: float, beta: float) -> Tensor:
        # As a 1×1 convolution the product runs in oneDNN, at twice the rate of torch's matrix product.
        kernel = (alpha * band)[:, :, None, None].to(x.dtype)
        scale = functional.conv2d(x.square(), kernel, x.new_full((len(band),), bias))
        power = _negative_power(scale, beta)
        ctx.save_for_backward(x, scale, power, kernel)
        ctx.beta = beta
        return x * power

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, scale, power, kernel = ctx.saved_tensors
        passed = gradients[0] * power
        spread = functional.conv2d((passed * x).div_(scale), kernel)
        return passed.addcmul_(x, spread, value=-2 * ctx.beta), None, None, None, None


def _negative_power(scale: Tensor, beta: float) -> Tensor:
    if beta == 0.75:  # a power costs ten times as much as two square roots
        root = scale.rsqrt()
        return root.mul_(root.sqrt())
    return scale.pow(-beta)


class LocallyConnected(nn.Module):
    """A convolution whose filters differ from place to place, as in cuda-convnet's local layers.

    It takes N×C×H×W to N×`channels`×H×W; beyond the border there are zeros.
    """

    def __init__(self, in_channels: int, channels: int, *, size: int, kernel: int) -> None:
        super().__init__()
        self.kernel, self.size = kernel, size
        self.weight = nn.Parameter(torch.empty(size * size, in_channels * kernel * kernel, channels))
        self.bias = nn.Parameter(torch.empty(channels, size, size))

    def forward(self, x: Tensor) -> Tensor:
        """Make one matrix product for each place."""
        patches = (
            self._shifted(x)
            if torch.onnx.is_in_onnx_export()
            else functional.unfold(x, self.kernel, padding=self.kernel // 2)
        )
        products = torch.bmm(patches.permute(2, 0, 1), self.weight)
        return products.permute(1, 2, 0).reshape(-1, len(self.bias), self.size, self.size) + self.bias

    def _shifted(self, x: Tensor) -> Tensor:
        """Give what `unfold` gives, in operators whose sizes ONNX can tell before it runs them."""
        padded = functional.pad(x, [self.kernel // 2] * 4)
        shifts = [
            padded[:, :, top : top + self.size, left : left + self.size]
            for top in range(self.kernel)
            for left in range(self.kernel)
        ]
        return torch.stack(shifts, dim=2).reshape(-1, self.weight.shape[1], self.size * self.size)

    def extra_repr(self) -> str:
        """Show the shape in `print(network)`."""
        return f"size={self.size}, kernel={self.kernel}, channels={self.weight.shape[2]}"


class Whitening(nn.Conv2d):
    """A first convolution that turns image patches into uncorrelated values of unit variance; its filters stay.

    Its filters are the eigenvectors of the patches' covariance over the root of their eigenvalues, each with both signs
    (Page, 2019; Jordan, 2024, https://arxiv.org/abs/2404.00498, section 3.2). Where nothing before a layer is trained,
    its gradient need not be passed on, which saves a tenth of the fast network's step.
    """

    def __init__(self, channels: int, *, kernel: int, directions: int, bias: bool = False) -> None:
        """Prepare for filters, which `take_filters` takes.

        Args:
            channels: number of channels of the images.
            kernel: side of the patches, in pixels.
            directions: number of eigenvectors to use, the largest eigenvalues first; there are C·kernel².
            bias: whether there is a bias, which begins at 0 and can be trained.
        """
        super().__init__(channels, 2 * min(directions, channels * kernel * kernel), kernel, bias=bias)
        self.weight.requires_grad = False
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def take_filters(self, images: Tensor, *, floor: float = 5e-4) -> None:
        """Take the filters from images (N×C×H×W, as the network gets them); `floor` bounds what flat patches become."""
        kernel = self.kernel_size[0]
        # Views, since threads of `functional.unfold` wait for each other at every image, on busy cores for seconds.
        places = images.unfold(2, kernel, 2).unfold(3, kernel, 2)  # N×C×rows×columns×kernel×kernel
        patches = places.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2).double()
        # On the processor, since a GPU would first have to load a library of hundreds of megabytes for a few numbers.
        values, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).cpu())
        filters = (vectors / (values + floor).sqrt()).T.flip(0).reshape(-1, images.shape[1], kernel, kernel)
        filters = filters[: self.out_channels // 2]
        self.weight.copy_(torch.cat([filters, -filters]))


def truncated_normal(tensor: Tensor, deviation: float) -> None:
    """Fill with normal values, redrawn beyond two deviations (TensorFlow's truncated_normal_initializer)."""
    nn.init.trunc_normal_(tensor, std=deviation, a=-2 * deviation, b=2 * deviation)


def after_pooling(size: int) -> int:
    """Side of a map after pooling by two, a last odd row included."""
    return math.ceil(size / 2)


class Dense(nn.Linear):
    """An `nn.Linear` through whichever library multiplies faster on this processor.

    PyTorch's products of float32 matrices go to MKL, which keeps to AVX2 on processors that are not Intel's. oneDNN,
    which PyTorch takes for convolutions, uses AVX-512 wherever it is: 190 instead of 95 GFLOP/s a core on a Zen 5.
    Forward, and both products of the backward pass, take 5.2 instead of 11.6 ms for 784×500 at batch 500 on two cores.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Take N×inputs to N×outputs."""
        if x.ndim != 2 or x.dtype is not torch.float32 or x.device.type != "cpu" or not onednn_is_faster():
            return super().forward(x)
        if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch._C._get_tracing_state():
            return super().forward(x)  # a graph for others has the standard operator
        if torch._C._functorch.is_batchedtensor(self.weight):  # of several networks: their products are one
            return super().forward(x)
        result: Tensor = _Product.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result


class _Product(torch.autograd.Function):
    """The product x · weightᵀ + bias in oneDNN, and its gradients."""

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
    """Work out x · weightᵀ + bias, which PyTorch's own compiler calls for dense layers."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


@functools.cache
def onednn_is_faster() -> bool:
    """Say whether dense layers are to multiply in oneDNN on this processor, since MKL is slower there."""
    able = torch.cpu.get_capabilities()
    there = bool(torch.backends.mkldnn.enabled) and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and bool(able.get("avx512_f")) and "intel" not in str(able.get("cpu_name", "intel")).lower()


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put the network in evaluation mode inside this context, and back in its own mode after it."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Size and work of a network."""

    parameters: int
    """Number of parameters, those that are not trained included."""
    multiply_adds: int
    """Number of multiply-adds of convolutions and dense layers in the forward pass of one image."""


def cost_of(network: nn.Module, *, size: int, channels: int) -> Cost:
    """Count on the network itself, by passing one image of `channels`×`size`×`size` through."""
    total = 0

    def count(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, LocallyConnected):
            total += module.weight.numel()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            total += output.numel() * module.weight[0].numel()

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    try:
        with evaluation_mode(network), torch.no_grad():
            parameter = next(network.parameters())
            network(torch.zeros(1, channels, size, size, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return Cost(parameters=sum(p.numel() for p in network.parameters()), multiply_adds=total)
