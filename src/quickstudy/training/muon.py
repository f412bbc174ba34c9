"""Muon: momentum whose update, for the weights of convolutions, is made orthogonal.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024, https://kellerjordan.github.io/posts/muon/).
The update of a weight, seen as a matrix of output channels by inputs, is replaced by the nearest matrix whose singular
values are all about one, so that no direction is learned before the others. torch's own Muon takes matrices only. As in
the CIFAR-10 record that it comes from, each weight is kept at the norm √(output channels), which batch norm allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 3


class Muon(torch.optim.Optimizer):
    """For convolution weights (outputs×inputs×height×width) that a batch norm follows."""

    def __init__(self, params: Iterable[Any], *, lr: float, momentum: float, precision: torch.dtype) -> None:
        """Args: `precision`: in which updates are made orthogonal; they need not be exact."""
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step; a closure is not used."""
        del closure
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                velocity = state["momentum"].mul_(group["momentum"]).add_(weight.grad)
                update = weight.grad.add(velocity, alpha=group["momentum"])
                weight.mul_(len(weight) ** 0.5 / weight.norm())
                weight.add_(orthogonalised(update.to(self.precision)), alpha=-group["lr"])


def orthogonalised(update: Tensor) -> Tensor:
    """About U·Vᵀ of the update's singular value decomposition, by a Newton–Schulz iteration of degree five."""
    a, b, c = _COEFFICIENTS
    matrix = update.flatten(1)
    tall = len(matrix) > matrix.shape[1]
    matrix = matrix.T if tall else matrix
    matrix = matrix / (matrix.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        products = matrix @ matrix.T
        matrix = torch.addmm(matrix, torch.addmm(products, products, products, beta=b, alpha=c), matrix, beta=a)
    return (matrix.T if tall else matrix).reshape(update.shape)
