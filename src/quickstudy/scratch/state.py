"""What a training is at one moment: network, optimiser, averages, and how they go to a checkpoint and back.

Muon: momentum whose update, for the weights of convolutions, is made orthogonal.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024, https://kellerjordan.github.io/posts/muon/).
The update of a weight, seen as a matrix of output channels by inputs, is replaced by the nearest matrix whose singular
values are all about one, so that no direction is learned before the others. torch's own Muon takes matrices only. As in
the CIFAR-10 record that it comes from, each weight is kept at the norm √(output channels), which batch norm allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from quickstudy.learning.averages import ParameterAverages, choose_precision
from quickstudy.scratch.recipe import Optimiser, Recipe

_LOSS_DECAY = 0.9


class TrainingState:
    """Everything that changes from step to step."""

    def __init__(self, recipe: Recipe, *, side: int, channels: int, classes: int, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        network = recipe.network.build(size=recipe.distortions.output_side(side), channels=channels, classes=classes)
        self.network = network.to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        muon = recipe.optimiser.method == "muon"  # which keeps its weights' norms as they are
        self.precision = choose_precision(recipe.optimiser.precision, device.type)
        """In which layers multiply."""
        self.decayed = [weight for weight in self.network.decayed() if not (muon and weight.ndim == 4)]
        self.optimisers = _optimisers(self.network, self.decayed, recipe.optimiser, self.precision)
        self.averages = (
            ParameterAverages(self.network, recipe.optimiser.average_decay) if recipe.optimiser.average_decay else None
        )
        self.smoothed = torch.zeros(0, device=device)
        """Moving averages of the loss and its terms, for display only."""
        self.step = 0
        """How many steps have been made."""
        self.ended = False
        """Whether the run has reached its target, or used up its time."""
        self.seconds = 0.0
        """Spent on the run until the checkpoint that this process goes on from."""
        self.idle_seconds = 0.0
        """Of these, spent on other things than steps: starting and evaluating."""

    def prepare(self, images: Tensor) -> None:
        """Let the network take from images what it does not train; the averages begin after that."""
        self.network.prepare(images)
        if self.averages is not None:
            self.averages.restart()

    def zero_grad(self) -> None:
        """Forget the gradients of the step before."""
        self.network.zero_grad()

    def learn(self, rate: float) -> None:
        """Change the parameters by their gradients, at this learning rate."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["rate_factor"]
            optimiser.step()
        self.step += 1

    def decay_loss(self, weight_decay: float) -> Tensor:
        """What weight decay adds to the loss: its factor times half the sum of squares."""
        flat = [weight.detach().flatten() for weight in self.decayed] if weight_decay else []
        squares = [weights.dot(weights) for weights in flat]
        return weight_decay / 2 * torch.stack(squares).sum() if squares else torch.zeros(())

    def gradient_norms(self) -> dict[str, float]:
        """Of each trained parameter, in the last step; brought from a GPU in one piece."""
        with_gradient = {name: p.grad for name, p in self.network.named_parameters() if p.grad is not None}
        norms = torch._foreach_norm(list(with_gradient.values()))
        return dict(zip(with_gradient, torch.stack(norms).tolist() if norms else [], strict=True))

    def smooth(self, losses: Tensor) -> None:
        """Take the losses of one step into their moving averages."""
        self.smoothed = torch.lerp(losses, self.smoothed, _LOSS_DECAY) if len(self.smoothed) else losses.clone()

    def is_finite(self) -> bool:
        """Whether all parameters are numbers."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.network.parameters())

    def averages_applied(self, wanted: bool = True) -> AbstractContextManager[None]:
        """The network has the averages inside this context, where the recipe has them and they are wanted."""
        return self.averages.applied() if wanted and self.averages is not None else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "step": self.step,
            "ended": self.ended,
            "seconds": self.seconds,
            "idle_seconds": self.idle_seconds,
            "network": self.network.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "averages": None if self.averages is None else self.averages.state_dict(),
            "smoothed": self.smoothed,
            "generator": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.step, self.ended = int(state["step"]), bool(state["ended"])
        self.seconds, self.idle_seconds = float(state["seconds"]), float(state["idle_seconds"])
        self.network.load_state_dict(state["network"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        if self.averages is not None:
            self.averages.load_state_dict(state["averages"])
        self.smoothed = state["smoothed"].to(self.smoothed.device)
        torch.set_rng_state(state["generator"])


def _optimisers(
    network: nn.Module, decayed: list[Tensor], options: Optimiser, precision: torch.dtype
) -> list[torch.optim.Optimizer]:
    """One for all parameters; with `muon` that for the convolutions' weights, descent for the others."""
    chosen = {id(parameter) for parameter in decayed}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    convolutions: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if options.method == "muon" and parameter.ndim == 4:
            convolutions.append(parameter)
            continue
        head_rate = options.head_rate if name.startswith("linear.") else 1.0
        factor = head_rate * (options.bias_rate if name.endswith("bias") else 1.0)
        # Divided by the factor, so that all that decays shrinks equally fast.
        decay = options.weight_decay / factor if id(parameter) in chosen else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    members = [
        {"params": parameters, "rate_factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
    if options.method == "adam":
        return [torch.optim.Adam(members, lr=0.0, fused=True)]
    descent = torch.optim.SGD(
        members,
        lr=0.0,
        momentum=options.momentum,
        nesterov=options.nesterov,
        fused=True,
    )
    if not convolutions:
        return [descent]
    group = [{"params": convolutions, "rate_factor": 1.0}]
    return [Muon(group, lr=0.0, momentum=options.muon_momentum, precision=precision), descent]


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
