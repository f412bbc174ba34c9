"""What a network costs: parameters and multiply-adds, counted on the network itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quickstudy.training.networks.layers import LocallyConnected
from quickstudy.training.networks.mode import evaluation_mode


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Parameters of a network and multiply-adds of its convolutions and dense layers for one image, forward."""

    parameters: int
    multiply_adds: int


def cost_of(network: nn.Module, *, size: int, channels: int) -> Cost:
    """Count, by passing one image of `channels`×`size`×`size` through."""
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
