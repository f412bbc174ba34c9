"""Networks that are alike as one, with a row for each: the network itself, and the state of runs that it stands for.

What torch.func's `vmap` makes of a network has one more dimension in each tensor, and otherwise the same operators: a
step of many networks asks the device for hardly more than that of one. Here, too, is what `vmap` does not do by itself:
another activation for some rows, and the way between the states of single runs and the state of all.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from quickstudy.scratch.layers import ACTIVATIONS
from quickstudy.scratch.state import Measures, TrainingState


class StackedNetwork(nn.Module):
    """Networks of one architecture side by side; it takes N×C×S×S images, the same for all, or R×N×C×S×S."""

    def __init__(self, networks: Sequence[nn.Module], activations: Sequence[str]) -> None:
        """Args: `activations`: the name of each network's activation, those that are equal one after the other."""
        super().__init__()
        self.runs = len(networks)
        tensors = [_tensors(network) for network in networks]
        self.inside = _with_tensors(
            networks[0], {name: torch.stack([one[name].detach() for one in tensors]) for name in tensors[0]}
        )
        if len(set(activations)) > 1:
            runs = [(ACTIVATIONS[name](), len(list(found))) for name, found in groupby(activations)]
            for name, module in list(self.inside.named_modules()):
                if type(module) in ACTIVATIONS.values():
                    self.inside.set_submodule(name, _Activations(runs))
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Pass images through all networks; gives R×N×classes."""
        parameters, buffers = dict(self.inside.named_parameters()), dict(self.inside.named_buffers())
        own = None if images.ndim == 4 else 0
        if self.runs == 1:  # without what `vmap` costs, which is a third of a step
            first = images if own is None else images.squeeze(0)
            alone: Tensor = self._one(
                {name: value.squeeze(0) for name, value in parameters.items()},
                {name: value.squeeze(0) for name, value in buffers.items()},
                first,
            )
            return alone.unsqueeze(0)
        logits: Tensor = vmap(self._one, in_dims=(0, 0, own))(parameters, buffers, images)
        return logits

    def _one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Any:
        return functional_call(self.inside, (parameters, buffers), (images,))


class _Activations(nn.Module):
    """Another activation for some rows than for others."""

    def __init__(self, runs: Sequence[tuple[nn.Module, int]]) -> None:
        super().__init__()
        self.kinds, self.counts = nn.ModuleList(kind for kind, _ in runs), [count for _, count in runs]

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        result: Tensor = _EachItsOwn.apply(x, self)  # type: ignore[no-untyped-call]
        return result


class _EachItsOwn(torch.autograd.Function):
    """What `_Activations` does where `vmap` lets rows be told apart; gradients are those of its operators."""

    @staticmethod
    def forward(x: Tensor, kinds: _Activations) -> Tensor:
        raise NotImplementedError  # `vmap` never comes here

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing for a backward pass."""

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[int, None], x: Tensor, kinds: _Activations) -> tuple[Tensor, int]:
        """Split the rows, and put them together again."""
        parts = torch.split(x.movedim(in_dims[0], 0), kinds.counts)
        return torch.cat([kind(part) for kind, part in zip(kinds.kinds, parts, strict=True)]), 0


class StackedState(TrainingState):
    """The state of runs with the same optimiser and rates: as one run's, but tensors have a row for each.

    A run's own state is brought up to date when somebody looks at it.
    """

    def __init__(self, states: Sequence[TrainingState], rows: slice, whole: StackedNetwork) -> None:
        """Take over the states of runs that are at the same step.

        Args:
            states: one for each run.
            rows: those of `whole` that are these runs'; parameters and buffers here are views of them.
            whole: the network that steps go through.
        """
        first = states[0]
        self.states, self.rows, self.whole = states, rows, whole
        network = _with_tensors(first.network, {name: t.detach()[rows] for name, t in _tensors(whole.inside).items()})
        decayed = {id(weight) for weight in first.decayed}
        names = [name for name, weight in first.network.named_parameters() if id(weight) in decayed]
        weights = dict(network.named_parameters())
        self._hold(first.recipe, network, [weights[name] for name in names], first.smoothed.device)
        self.take(_joined([state.values() for state in states]))

    def take_gradients(self) -> None:
        """Take the gradients that the whole network has."""
        for mine, whole in zip(self.network.parameters(), self.whole.inside.parameters(), strict=True):
            mine.grad = None if whole.grad is None else whole.grad[self.rows]

    def decay_loss(self, weight_decay: float) -> Tensor:
        """Work out what weight decay adds to the loss of each run."""
        if not weight_decay or not self.decayed:
            return torch.zeros(len(self.states), device=self.smoothed.device)
        squares = [weight.detach().flatten(1).square().sum(dim=1) for weight in self.decayed]
        return weight_decay / 2 * torch.stack(squares).sum(dim=0)

    def measured_of_each(self, losses: Tensor) -> list[Measures]:
        """Give the numbers of the step just made, whose losses (3×runs) these are; brought from a GPU in one piece."""
        gradients = {name: p.grad.flatten(1) for name, p in self.network.named_parameters() if p.grad is not None}
        norms = [gradient.norm(dim=1) for gradient in gradients.values()]
        count = len(losses)
        return [
            Measures(
                losses=column[:count],
                smoothed=column[count : 2 * count],
                gradient_norms=dict(zip(gradients, column[2 * count :], strict=True)),
            )
            for column in torch.cat([losses, self.smoothed, torch.stack(norms)]).T.tolist()
        ]

    def give(self, row: int) -> None:
        """Bring a run's own state up to date."""
        self.states[row].take(_one_of(self.values(), row))

    def show(self, row: int) -> None:
        """Bring a run's own network up to date, gradients included: what histograms show."""
        network = self.states[row].network
        network.load_state_dict({name: value[row] for name, value in self.network.state_dict().items()})
        for own, mine in zip(network.parameters(), self.network.parameters(), strict=True):
            own.grad = None if mine.grad is None else mine.grad[row].clone()


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _with_tensors(network: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Copy a network, with these parameters and buffers in place of its own."""
    other = copy.deepcopy(network)
    for name, value in tensors.items():
        place, _, last = name.rpartition(".")
        module = other.get_submodule(place)
        old = getattr(module, last)
        new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
        setattr(module, last, new)
    return other


_ROWWISE = ("step", "optimisers", "averages", "lookahead")
"""Parts of `TrainingState.values`, where they are there, whose tensors have a row for each run first."""


def _joined(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put what `TrainingState.values` gave of several runs, all at the same step, side by side."""
    first = states[0]
    names, parts = first["network"], [state["network"] for state in states]
    return {
        **_rowwise([{name: state[name] for name in _ROWWISE if name in state} for state in states]),
        "network": {name: torch.stack([part[name] for part in parts]) for name in names},
        "smoothed": torch.stack([state["smoothed"] for state in states], dim=-1),
    }


def _rowwise(values: Sequence[Any]) -> Any:
    """Stack tensors; of numbers, and of optimisers' own counts of steps, the first stands for all."""
    first = values[0]
    if isinstance(first, dict):
        return {name: _rowwise([value[name] for value in values]) for name in first}
    if isinstance(first, list):
        return [_rowwise(list(found)) for found in zip(*values, strict=True)]
    return torch.stack(list(values)) if isinstance(first, Tensor) and first.ndim else copy.deepcopy(first)


def _one_of(values: dict[str, Any], row: int) -> dict[str, Any]:
    """Take one run's part of what `_joined` gave."""
    return {
        **_row({name: values[name] for name in _ROWWISE if name in values}, row),
        "network": {name: value[row].clone() for name, value in values["network"].items()},
        "smoothed": values["smoothed"][..., row].clone(),
    }


def _row(value: Any, row: int) -> Any:
    if isinstance(value, dict):
        return {name: _row(one, row) for name, one in value.items()}
    if isinstance(value, list):
        return [_row(one, row) for one in value]
    return value[row].clone() if isinstance(value, Tensor) and value.ndim else copy.deepcopy(value)
