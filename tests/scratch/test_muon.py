"""Muon against the singular value decomposition that it approximates."""

from __future__ import annotations

import copy

import pytest
import torch

from quickstudy.scratch.state import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(16, 24, 3, 3), (64, 16, 3, 3), (128, 4, 3, 3), (8, 2, 1, 1)])
def test_an_update_keeps_its_directions_and_gets_singular_values_of_about_one(shape: tuple[int, ...]) -> None:
    update = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    (result,) = orthogonalised([update], torch.float32)
    assert result.shape == update.shape
    left, values, right = torch.linalg.svd(update.flatten(1), full_matrices=False)
    aligned = left.T @ result.flatten(1) @ right.T
    assert (aligned - torch.diag(aligned.diag())).abs().max() < 1e-3
    well_conditioned = values > 0.1 * values.max()
    assert ((aligned.diag() > 0.4) & (aligned.diag() < 1.4))[well_conditioned].all()


def test_a_step_by_hand() -> None:
    torch.manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(6, 5, 3, 3))
    optimiser = Muon([weight], lr=0.1, momentum=0.6, precision=torch.float32)
    expected, velocity = weight.detach().clone(), torch.zeros_like(weight)
    for _ in range(3):
        gradient = torch.randn_like(weight)
        weight.grad = gradient.clone()
        optimiser.step()
        velocity = 0.6 * velocity + gradient
        expected = expected * (6**0.5 / expected.norm())
        expected = expected - 0.1 * orthogonalised([gradient + 0.6 * velocity], torch.float32)[0]
        torch.testing.assert_close(weight.detach(), expected)


def test_it_goes_on_from_its_state_bit_for_bit() -> None:
    torch.manual_seed(2)
    one = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    gradients = [torch.randn_like(one) for _ in range(4)]
    first = Muon([one], lr=0.1, momentum=0.6, precision=torch.float32)
    for gradient in gradients[:2]:
        one.grad = gradient
        first.step()
    other = torch.nn.Parameter(one.detach().clone())
    second = Muon([other], lr=0.1, momentum=0.6, precision=torch.float32)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for gradient in gradients[2:]:
        one.grad, other.grad = gradient, gradient.clone()
        first.step()
        second.step()
    assert torch.equal(one, other)


def test_weights_without_a_gradient_stay() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2, 1, 1))
    Muon([weight], lr=0.1, momentum=0.6, precision=torch.float32).step()
    assert torch.equal(weight, torch.ones(2, 2, 1, 1))
