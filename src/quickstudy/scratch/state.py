"""What a checkpoint of a run holds: its network, optimisers, averages and clock; the Muon optimiser stands here, too.

The training loop (train.py) changes a `TrainingState` step by step; the evaluator and the export read one from a
checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quickstudy.learning.averages import Lookahead, ParameterAverages, choose_precision
from quickstudy.learning.optimisers import Adam, Descent, PlainOptimiser
from quickstudy.scratch.networks import ClassicNet, FastNet, Mlp
from quickstudy.scratch.recipe import OptimiserOptions, Recipe

LOSS_TERMS = ("total", "cross_entropy", "weight_decay")
"""Names of the three numbers that `smooth_losses` gives, in their order."""
_LOSS_DECAY = 0.9
"""Share of the old value in the moving averages of the losses."""


class Clock:
    """The one keeper of a run's time; it starts as it is made, and the training loop alone tells it what happens.

    All times are in seconds. They add up over the processes that take part in a run one after the other, since a
    checkpoint holds them.
    """

    def __init__(self, now: Callable[[], float] | None = None) -> None:
        """Args: `now`: gives the time in seconds, which runs that are trained together share; None: the system's."""
        self._now = now or time.perf_counter
        self._started = self._now()
        self._seconds_before = 0.0
        self._idle_seconds = 0.0
        self._lap_started, self._lap_step = self._started, 0
        self._checkpoint_at = self._started

    @property
    def run_seconds(self) -> float:
        """Time spent on the run so far, start-up and evaluations included."""
        return self._seconds_before + self._now() - self._started

    @property
    def training_seconds(self) -> float:
        """Time spent on steps so far; start-up and evaluations do not count."""
        return self.run_seconds - self._idle_seconds

    @property
    def seconds_since_checkpoint(self) -> float:
        """Time since the newest checkpoint of this process, or since its first step where it has written none."""
        return self._now() - self._checkpoint_at

    def begin_steps(self, step: int) -> None:
        """End the start-up, which does not count as training; `step` steps have been made before."""
        now = self._now()
        self._idle_seconds += now - self._started
        self._lap_started, self._lap_step = now, step
        self._checkpoint_at = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing inside this context as training."""
        started = self._now()
        yield
        spent = self._now() - started
        self._idle_seconds += spent
        self._lap_started += spent

    def lap(self, step: int) -> float:
        """End a lap after this step and begin the next one; the result is the lap's mean time of a step."""
        now = self._now()
        seconds = (now - self._lap_started) / max(step - self._lap_step, 1)
        self._lap_started, self._lap_step = now, step
        return seconds

    def checkpoint_written(self) -> None:
        """Count the time since the newest checkpoint from now on."""
        self._checkpoint_at = self._now()

    def state_dict(self) -> dict[str, float]:
        """Give the times as they go to a checkpoint."""
        return {"seconds": self.run_seconds, "idle_seconds": self._idle_seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the times of a checkpoint."""
        self._seconds_before, self._idle_seconds = float(state["seconds"]), float(state["idle_seconds"])


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The numbers of one step, as reports have them."""

    losses: list[float]
    """Losses of the step, as in `LOSS_TERMS`."""
    smoothed: list[float]
    """Their moving averages."""
    gradient_norms: dict[str, float]
    """Norm of each trained parameter's gradient, by name."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """Says where in its run a step is."""

    step: int
    """Number of the step, counted from 0."""
    steps: int
    """Number of steps of the whole run."""
    epoch: float
    """Passes over the training images before the step."""
    rate: float
    """Its learning rate."""

    @property
    def is_last(self) -> bool:
        """Whether it is the last step."""
        return self.step + 1 == self.steps


class TrainingState:
    """Everything that changes from step to step, and nothing else."""

    def __init__(self, recipe: Recipe, *, side: int, channels: int, classes: int, device: torch.device) -> None:
        """Make the state before the first step.

        Args:
            recipe: what decides the network, its initial values and its optimisers.
            side: height and width of the images, in pixels, before the recipe crops them.
            channels: 1 for grey images, 3 for RGB.
            classes: number of classes.
            device: where the network computes.
        """
        torch.manual_seed(recipe.seed)
        network = recipe.network.build(size=recipe.augmentation.output_side(side), channels=channels, classes=classes)
        network = network.to(device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        muon = recipe.optimiser.method == "muon"  # which keeps its weights' norms as they are
        decayed = [weight for weight in network.decayed() if not (muon and weight.ndim == 4)]
        self._hold(recipe, network, decayed, device)

    def _hold(
        self, recipe: Recipe, network: ClassicNet | FastNet | Mlp, decayed: list[Tensor], device: torch.device
    ) -> None:
        """Keep this network, and make all that goes with it."""
        self.recipe = recipe
        """What is trained, and how."""
        self.clock = Clock()
        """Time that the run takes; only the training loop tells it anything."""
        self.network = network
        """What is trained, itself."""
        self.precision = choose_precision(recipe.optimiser.precision, device.type)
        """Type in which layers multiply."""
        self.decayed = decayed
        """Weights that weight decay makes smaller."""
        self.optimisers = _optimisers(self.network, self.decayed, recipe.optimiser, self.precision)
        """One optimiser for all parameters, or Muon and the one for all that Muon does not change."""
        self.averages = (
            ParameterAverages(self.network, recipe.optimiser.average_decay) if recipe.optimiser.average_decay else None
        )
        """Moving averages of the parameters; None where the recipe has none."""
        self.lookahead = Lookahead(self.network) if recipe.optimiser.lookahead_every else None
        """Slow values of the parameters; None where the recipe has none."""
        self.smoothed = torch.zeros(0, device=device)
        """Moving averages of the losses in `LOSS_TERMS`, for display only; empty before the first step."""
        self.step = 0
        """Number of steps that have been made."""
        self.ended = False
        """Whether the run has reached its target, or used up its time."""

    def prepare(self, images: Tensor) -> None:
        """Let the network take from images what it does not train; the averages begin after that."""
        self.network.prepare(images)
        for averages in (self.averages, self.lookahead):
            if averages is not None:
                averages.restart()

    def zero_grad(self) -> None:
        """Forget the gradients of the step before."""
        self.network.zero_grad()

    def update_parameters(self, course: Course) -> None:
        """Change the parameters by their gradients, at the rate of this step; this makes it a step."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                rate = course.rate
                if fall := group.get("fall_epochs"):
                    rate = self.recipe.schedule.rate * max(0.0, 1 - course.epoch / fall)
                group["lr"] = rate * group["rate_factor"]
            optimiser.step()
        self.step += 1

    def follow_gradients(self, course: Course, cross_entropy: Tensor) -> Tensor:
        """Make a step by the gradients that are there; the result is the step's losses, as in `LOSS_TERMS`.

        Args:
            course: where in its run the step is.
            cross_entropy: the loss that the gradients are of.
        """
        options = self.recipe.optimiser
        decay = self.decay_loss(options.weight_decay)
        self.update_parameters(course)
        if self.lookahead is not None:
            if self.step % options.lookahead_every == 0:
                self.lookahead.update(options.lookahead_decay * (self.step / course.steps) ** 3)
            if course.is_last:
                self.lookahead.update(1.0)
        if self.averages is not None and (course.is_last or self.step % options.average_every == 0):
            self.averages.update()
        return self.smooth_losses(cross_entropy.detach(), decay)

    def decay_loss(self, weight_decay: float) -> Tensor:
        """Work out what weight decay adds to the loss: its factor times half the sum of squares."""
        flat = [weight.detach().flatten() for weight in self.decayed] if weight_decay else []
        if not flat:
            return torch.zeros((), device=self.smoothed.device)
        return weight_decay / 2 * torch.stack([weights.dot(weights) for weights in flat]).sum()

    def measured(self, losses: Tensor) -> Measures:
        """Give the numbers of the step just made, whose losses these are."""
        with_gradient = {name: p.grad for name, p in self.network.named_parameters() if p.grad is not None}
        norms = torch._foreach_norm(list(with_gradient.values()))
        return Measures(
            losses=losses.tolist(),
            smoothed=self.smoothed.tolist(),
            gradient_norms=dict(zip(with_gradient, torch.stack(norms).tolist() if norms else [], strict=True)),
        )

    def smooth_losses(self, cross_entropy: Tensor, decay: Tensor) -> Tensor:
        """Take a step's losses into their moving averages; the result is the losses themselves, as in `LOSS_TERMS`."""
        losses = torch.stack((cross_entropy + decay, cross_entropy, decay))
        self.smoothed = torch.lerp(losses, self.smoothed, _LOSS_DECAY) if len(self.smoothed) else losses.clone()
        return losses

    def is_finite(self) -> bool:
        """Tell whether all parameters are numbers."""
        return bool(torch.stack([torch.isfinite(parameter).all() for parameter in self.network.parameters()]).all())

    def averages_applied(self, wanted: bool = True) -> AbstractContextManager[None]:
        """Give the network the averages inside this context, where the recipe has them and they are wanted."""
        return self.averages.applied() if wanted and self.averages is not None else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Give the state as it goes to a checkpoint."""
        return {
            **self.values(),
            "ended": self.ended,
            **self.clock.state_dict(),
            "generator": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a checkpoint."""
        self.take(state)
        self.ended = bool(state["ended"])
        self.clock.load_state_dict(state)
        torch.set_rng_state(state["generator"])

    def values(self) -> dict[str, Any]:
        """Give all that a step changes, by name."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "averages": None if self.averages is None else self.averages.state_dict(),
            "smoothed": self.smoothed,
            **({} if self.lookahead is None else {"lookahead": self.lookahead.state_dict()}),
        }

    def take(self, values: Mapping[str, Any]) -> None:
        """Take over what `values` gave."""
        self.step = int(values["step"])
        self.network.load_state_dict(values["network"])
        for optimiser, saved in zip(self.optimisers, values["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        if self.averages is not None:
            self.averages.load_state_dict(values["averages"])
        if self.lookahead is not None:
            self.lookahead.load_state_dict(values["lookahead"])
        self.smoothed = values["smoothed"].to(self.smoothed.device)


def _optimisers(
    network: nn.Module, decayed: list[Tensor], options: OptimiserOptions, precision: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Make one optimiser for all parameters; with `muon`, Muon for the convolutions' weights, sgd for the rest."""
    chosen = {id(parameter) for parameter in decayed}
    groups: dict[tuple[float, float, float], list[nn.Parameter]] = {}
    convolutions: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if options.method == "muon" and parameter.ndim == 4:
            convolutions.append(parameter)
            continue
        head_rate = options.head_rate if name.startswith("linear.") else 1.0
        factor, fall = head_rate * (options.bias_rate if name.endswith("bias") else 1.0), 0.0
        if isinstance(network, FastNet) and parameter is network.whitening_bias:
            factor = network.options.whitening_bias_rate
            fall = network.options.whitening_bias_epochs if network.options.whitening_bias_fall else 0.0
        # Divided by the factor, so that all that decays shrinks equally fast.
        decay = options.weight_decay / factor if id(parameter) in chosen else 0.0
        groups.setdefault((factor, decay, fall), []).append(parameter)
    members = [
        {"params": parameters, "rate_factor": factor, "weight_decay": decay} | ({"fall_epochs": fall} if fall else {})
        for (factor, decay, fall), parameters in groups.items()
    ]
    if options.method == "adam":
        return [Adam(members, lr=0.0, fused=True)]
    descent = Descent(
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
"""Factors of the first, third and fifth power in the Newton–Schulz iteration, as Jordan has them."""
_ITERATIONS = 3


class Muon(PlainOptimiser):
    """Momentum with orthogonal updates, for weights (outputs×inputs×height×width) that a batch norm follows.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024,
    https://kellerjordan.github.io/posts/muon/). The update of a weight, seen as a matrix of output channels by inputs,
    is replaced by the nearest matrix whose singular values are all about one, so that no direction is learned before
    the others. torch's own Muon takes matrices only. As in the CIFAR-10 record that it comes from, each weight is kept
    at the norm √(output channels), which batch norm allows.
    """

    def __init__(self, params: Iterable[Any], *, lr: float, momentum: float, precision: torch.dtype) -> None:
        """Args: `precision`: type in which updates are made orthogonal; they need not be exact."""
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step; a closure is not used."""
        del closure
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad for weight in weights]
            for weight in weights:
                if "momentum" not in self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            velocities = [self.state[weight]["momentum"] for weight in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, gradients)
            updates = torch._foreach_add(gradients, velocities, alpha=group["momentum"])
            torch._foreach_div_(weights, torch._foreach_norm(weights))
            torch._foreach_mul_(weights, [len(weight) ** 0.5 for weight in weights])
            for weight, update in zip(weights, orthogonalised(updates, self.precision), strict=True):
                weight.add_(update, alpha=-group["lr"])


def orthogonalised(updates: Sequence[Tensor], precision: torch.dtype) -> list[Tensor]:
    """About U·Vᵀ of each update's singular value decomposition, by a Newton–Schulz iteration of degree five.

    On a GPU, which takes about as long for several small matrices as for one, those with as many rows pass together;
    narrower ones get further columns of zeros, which stay zeros and change nothing else.

    Args:
        updates: weights' updates, outputs×inputs×height×width; each is a matrix of outputs by all others.
        precision: type in which they are computed, and given.
    """
    a, b, c = _COEFFICIENTS
    matrices = [update.flatten(1).to(precision) for update in updates]
    lying = [matrix.T if len(matrix) > matrix.shape[1] else matrix for matrix in matrices]
    groups: dict[int, list[int]] = {}
    for number, matrix in enumerate(lying):
        groups.setdefault(number if matrix.device.type == "cpu" else len(matrix), []).append(number)
    found = list(lying)
    for members in groups.values():
        stack = nn.utils.rnn.pad_sequence([lying[number].T for number in members], batch_first=True).mT
        stack = stack / (stack.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(_ITERATIONS):
            products = stack @ stack.mT
            stack = torch.baddbmm(stack, torch.baddbmm(products, products, products, beta=b, alpha=c), stack, beta=a)
        for number, matrix in zip(members, stack, strict=True):
            found[number] = matrix[:, : lying[number].shape[1]]
    return [
        (matrix.T if len(matrix) < len(update) else matrix).reshape(update.shape)
        for matrix, update in zip(found, updates, strict=True)
    ]
