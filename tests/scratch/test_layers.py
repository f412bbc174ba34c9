"""The layers that torch lacks, against slow obvious versions, against torch's own, and against convolutions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from quickstudy.scratch.layers import (
    ACTIVATIONS,
    LocallyConnected,
    LocalResponseNorm,
    Whitening,
    after_pooling,
    truncated_normal,
)

BETAS = (0.5, 0.75, 1.0, 1.3)

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def slow_norm(x: Tensor, *, radius: int, bias: float, alpha: float, beta: float) -> Tensor:
    """One value after the other, by the formula of section 3.3."""
    result = torch.empty_like(x)
    for n, c, row, column in np.ndindex(*x.shape):
        near = range(max(c - radius, 0), min(c + radius, x.shape[1] - 1) + 1)
        total = sum(float(x[n, other, row, column]) ** 2 for other in near)
        result[n, c, row, column] = float(x[n, c, row, column]) / (bias + alpha * total) ** beta
    return result


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("channels", "radius"), [(1, 0), (1, 4), (3, 1), (5, 4), (12, 4), (7, 2)])
def test_response_norm_is_the_formula(channels: int, radius: int, beta: float) -> None:
    x = 2 * noise(2, channels, 3, 2)
    layer = LocalResponseNorm(channels, radius=radius, bias=1.5, alpha=0.3, beta=beta)
    torch.testing.assert_close(layer(x), slow_norm(x, radius=radius, bias=1.5, alpha=0.3, beta=beta))


def test_response_norm_by_hand_at_the_borders() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    layer = LocalResponseNorm(4, radius=1, bias=1.0, alpha=1.0, beta=1.0)
    # Sums of squares within one channel: 1+4, 1+4+9, 4+9+16, 9+16; and one for the bias.
    expected = torch.tensor([1 / 6, 2 / 15, 3 / 30, 4 / 26])
    torch.testing.assert_close(layer(x).flatten(), expected)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
def test_response_norm_is_torchs_own_forward_and_backward(layout: torch.memory_format, beta: float) -> None:
    values = (3 * noise(3, 16, 5, 4)).contiguous(memory_format=layout)
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    weights = noise(3, 16, 5, 4, seed=1).contiguous(memory_format=layout)
    # torch divides alpha by the width of the window, 9.
    out = LocalResponseNorm(16, radius=4, bias=2.0, alpha=0.05, beta=beta)(ours)
    reference = nn.LocalResponseNorm(9, alpha=0.05 * 9, beta=beta, k=2.0)(theirs)
    torch.testing.assert_close(out, reference)
    (out * weights).sum().backward()
    (reference * weights).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("beta", BETAS)
def test_response_norm_has_the_right_gradient(beta: float) -> None:
    layer = LocalResponseNorm(5, radius=2, bias=0.7, alpha=0.4, beta=beta)
    x = noise(2, 5, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradcheck(layer, (x.detach().contiguous(memory_format=torch.channels_last).requires_grad_(),))


def test_response_norm_leaves_its_input_and_the_gradient_it_is_given_alone() -> None:
    layer = LocalResponseNorm(6, radius=2, alpha=0.5, beta=0.75)
    x = noise(2, 6, 3, 3, dtype=torch.float32).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = noise(2, 6, 3, 3, seed=1, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    before, gradient_before = x.detach().clone(), gradient.clone()
    out = layer(x)
    kept = out.detach().clone()
    out.backward(gradient)
    for now, then in ((x.detach(), before), (gradient, gradient_before), (out.detach(), kept)):
        assert torch.equal(now, then)


def test_response_norm_keeps_channels_last() -> None:
    x = noise(2, 8, 4, 4, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    out = LocalResponseNorm(8, alpha=0.1, beta=0.75)(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert not out.is_contiguous()


def test_response_norm_in_bfloat16_is_near() -> None:
    x = 4 * noise(2, 16, 4, 4)
    layer = LocalResponseNorm(16, radius=4, alpha=0.02, beta=0.75)
    rounded = x.to(torch.bfloat16).requires_grad_()
    exact = rounded.detach().double().requires_grad_()
    out, reference = layer(rounded), layer(exact)
    out.float().sum().backward()
    reference.sum().backward()
    assert out.dtype == torch.bfloat16
    assert rounded.grad is not None and exact.grad is not None and rounded.grad.dtype == torch.bfloat16
    # 8 bits: 0.4 % a rounding, and a handful of them.
    torch.testing.assert_close(out.double(), reference, rtol=0.02, atol=0.01)
    torch.testing.assert_close(rounded.grad.double(), exact.grad, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("beta", BETAS)
def test_response_norm_exports_what_it_computes(monkeypatch: pytest.MonkeyPatch, beta: float) -> None:
    layer = LocalResponseNorm(10, radius=3, bias=1.2, alpha=0.2, beta=beta)
    x = noise(2, 10, 4, 3)
    eager = layer(x)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    exported = layer(x.requires_grad_())
    assert "_LocalResponseNorm" not in type(exported.grad_fn).__name__  # operators that the exporter knows
    torch.testing.assert_close(exported.detach(), eager)


def test_response_norms_band_is_no_parameter_and_not_saved() -> None:
    layer = LocalResponseNorm(10, alpha=0.2, beta=0.75)
    assert not list(layer.parameters())
    assert not layer.state_dict()


def filled(in_channels: int, channels: int, *, size: int, kernel: int) -> LocallyConnected:
    layer = LocallyConnected(in_channels, channels, size=size, kernel=kernel).double()
    for number, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(noise(*parameter.shape, seed=number + 10))
    return layer


@pytest.mark.parametrize(("size", "kernel"), [(4, 3), (5, 3), (5, 5), (3, 1), (1, 3)])
def test_locally_connected_is_a_loop_over_places(size: int, kernel: int) -> None:
    layer = filled(2, 3, size=size, kernel=kernel)
    x = noise(2, 2, size, size)
    half = kernel // 2
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (half, half), (half, half)))
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    expected = np.zeros((2, 3, size, size))
    for n, channel, row, column in np.ndindex(*expected.shape):
        filters = weight[row * size + column, :, channel].reshape(2, kernel, kernel)
        patch = padded[n, :, row : row + kernel, column : column + kernel]
        expected[n, channel, row, column] = (patch * filters).sum() + bias[channel, row, column]
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_locally_connected_with_the_same_filters_everywhere_is_a_convolution() -> None:
    layer = filled(4, 6, size=5, kernel=3)
    convolution = nn.Conv2d(4, 6, 3, padding=1).double()
    layer.weight.data.copy_(convolution.weight.data.reshape(6, -1).T.expand_as(layer.weight))
    assert convolution.bias is not None
    layer.bias.data.copy_(convolution.bias.data[:, None, None].expand_as(layer.bias))
    x = noise(3, 4, 5, 5)
    torch.testing.assert_close(layer(x), convolution(x))


def test_locally_connected_has_the_right_gradient() -> None:
    layer = filled(2, 2, size=3, kernel=3)
    x = noise(2, 2, 3, 3).requires_grad_()

    def apply(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(apply, (x, layer.weight, layer.bias), fast_mode=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_are_uncorrelated_with_unit_variance(channels: int) -> None:
    layer = Whitening(channels, kernel=2, directions=99)
    # Neighbours and channels that have much in common, as in photos, about a mean of zero.
    images = functional.avg_pool2d(noise(100, channels, 12, 12, dtype=torch.float32), 3, 1)
    images = images + 0.5 * images.mean(dim=1, keepdim=True)
    layer.take_filters(images, floor=0.0)
    out = layer(images).detach().double()[:, :, ::2, ::2]  # the patches that were fitted: every other place
    values, count = out.permute(1, 0, 2, 3).flatten(1), 4 * channels
    second = values @ values.T / values.shape[1]
    torch.testing.assert_close(second[:count, :count], torch.eye(count).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(values[count:], -values[:count])
    before = functional.unfold(images, 2, stride=2).transpose(1, 2).flatten(0, 1).double()
    mixed = before.T @ before / len(before)
    assert (mixed - mixed.diag().diag()).abs().max() > 0.3 * mixed.diag().max()  # there was something to undo


def test_whitening_orders_its_filters_from_much_variance_to_little() -> None:
    layer = Whitening(1, kernel=2, directions=4)
    layer.take_filters(functional.avg_pool2d(noise(100, 1, 14, 14, dtype=torch.float32), 3, 1))
    lengths = layer.weight.flatten(1).norm(dim=1)[:4]
    assert (lengths.diff() > 0).all()  # the less variance, the larger the factor


def test_the_strongest_directions_are_those_of_all() -> None:
    images = functional.avg_pool2d(noise(100, 3, 14, 14, dtype=torch.float32), 3, 1)
    every, some = Whitening(3, kernel=2, directions=12), Whitening(3, kernel=2, directions=5)
    every.take_filters(images)
    some.take_filters(images)
    assert some.weight.shape == (10, 3, 2, 2)
    assert torch.equal(some.weight[:5], every.weight[:5])
    assert torch.equal(some.weight[5:], -every.weight[:5])


def test_whitening_does_not_blow_up_what_never_varies() -> None:
    layer = Whitening(3, kernel=2, directions=12)
    layer.take_filters(torch.full((10, 3, 8, 8), 0.5), floor=5e-4)
    lengths = layer.weight.flatten(1).norm(dim=1)
    assert lengths.isfinite().all()
    assert lengths.max() <= 1 / math.sqrt(5e-4) * 1.01


def test_whitening_is_not_trained_and_passes_a_gradient_on() -> None:
    layer = Whitening(3, kernel=2, directions=12)
    layer.take_filters(noise(20, 3, 8, 8, dtype=torch.float32))
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    x = noise(2, 3, 8, 8, dtype=torch.float32).requires_grad_()
    layer(x).square().sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None and x.grad.any()


@given(st.floats(1e-4, 10.0))
def test_truncated_normal_stays_within_two_deviations(deviation: float) -> None:
    values = torch.empty(20_000)
    truncated_normal(values, deviation)
    assert values.abs().max() <= 2 * deviation * (1 + 1e-6)
    assert values.abs().max() > 1.8 * deviation
    # A normal cut off at two deviations keeps 0.8796 of its own deviation.
    assert values.std().item() == pytest.approx(0.8796 * deviation, rel=0.03)
    assert abs(values.mean().item()) < 0.03 * deviation


@pytest.mark.parametrize(("size", "pooled"), [(1, 1), (2, 1), (3, 2), (24, 12), (25, 13), (7, 4)])
def test_pooling_keeps_a_last_odd_row(size: int, pooled: int) -> None:
    assert after_pooling(size) == pooled


def test_the_activations_are_those_of_their_names() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0])
    for name, layer in ACTIVATIONS.items():
        torch.testing.assert_close(layer()(x), getattr(functional, name, getattr(torch, name, None))(x))
