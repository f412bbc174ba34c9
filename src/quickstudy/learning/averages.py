"""Averages of parameters, for evaluation or on the way; the precision of layers; the way to a device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quickstudy.errors import DeviceError


class ParameterAverages:
    """Exponential moving averages of all parameters and of what batch norms collect.

    The decay is min(decay, (1 + n) / (10 + n)) at the n-th update, so that the first values are soon forgotten
    (TensorFlow's ExponentialMovingAverage with `num_updates`). Polyak & Juditsky, 1992, say why averages are better.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._sources = _averaged(network)
        self._names = list(self._sources)
        self._averages = [value.detach().clone() for value in self._sources.values()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self._averages, [value.detach() for value in self._sources.values()], 1 - decay)

    def restart(self) -> None:
        """Begin again with the parameters as they are now."""
        self.updates = 0
        _copy(self._sources.values(), self._averages)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the averages inside this context, and its own parameters again after it."""
        own = [value.detach().clone() for value in self._sources.values()]
        _copy(self._averages, self._sources.values())
        try:
            yield
        finally:
            _copy(own, self._sources.values())

    def state_dict(self) -> dict[str, object]:
        """Give the averages and the number of updates, for a checkpoint."""
        return {"updates": self.updates, "averages": dict(zip(self._names, self._averages, strict=True))}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over what `state_dict` gave, from a checkpoint."""
        self.updates = int(state["updates"])  # type: ignore[call-overload]
        saved: Mapping[str, Tensor] = state["averages"]  # type: ignore[assignment]
        _copy((saved[name] for name in self._names), self._averages)


class Lookahead:
    """Slow values of all parameters and of what batch norms collect, to which these are set back every some steps.

    Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back" (2019, https://arxiv.org/abs/1907.08610): the slow
    values go a part of the way to the fast ones, which then go on from there.
    """

    def __init__(self, network: nn.Module) -> None:
        sources = _averaged(network)
        self._names, self._fast = list(sources), [value.detach() for value in sources.values()]
        self._slow = [value.clone() for value in self._fast]

    @torch.no_grad()
    def update(self, kept: float) -> None:
        """Let the slow values keep this share of themselves and take the rest from the fast ones, which become them."""
        torch._foreach_lerp_(self._slow, self._fast, 1 - kept)
        torch._foreach_copy_(self._fast, self._slow)

    def restart(self) -> None:
        """Begin again with the parameters as they are now."""
        _copy(self._fast, self._slow)

    def state_dict(self) -> dict[str, Tensor]:
        """Give the slow values by name, for a checkpoint."""
        return dict(zip(self._names, self._slow, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave, from a checkpoint."""
        _copy((state[name] for name in self._names), self._slow)


@torch.no_grad()
def _copy(values: Iterable[Tensor], targets: Iterable[Tensor]) -> None:
    for value, target in zip(values, targets, strict=True):
        target.copy_(value)


def _averaged(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if value.is_floating_point()}


def choose_precision(name: str, device_type: str) -> torch.dtype:
    """Choose the type in which layers multiply; `auto` is bfloat16 where the machine is faster in it than in float32.

    Processors with bfloat16's matrix tiles are; of those that have it in their vectors alone, AMD's are, while Intel's
    multiply as many float32 in the same time: one convolution took 0.6 of bfloat16's time on a Xeon without tiles.
    """
    if name == "auto":
        if device_type == "cpu":
            able = torch.cpu.get_capabilities()
            intel = "intel" in str(able.get("cpu_name", "")).lower()
            fast = bool(able.get("amx_bf16") or (able.get("avx512_bf16") and not intel))
        else:
            fast = device_type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


@contextmanager
def exactly() -> Iterator[None]:
    """Multiply float32 as such inside this context: a GPU's convolutions keep ten binary digits (TF32) by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def computing_on(device: torch.device, *, otherwise: str) -> Iterator[None]:
    """Say in a DeviceError where a device's memory is too small for what is computed inside this context.

    Args:
        device: the one that computes.
        otherwise: what takes less memory, as a command to whoever reads the message.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"'{device}' has too little free memory for this; {otherwise}, or end what else uses it"
        ) from error


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Send the processor's values to a device; a GPU is not waited for, which `Tensor.to` does by itself.

    A GPU takes them from memory that it reads directly. PyTorch keeps that until the GPU has read it. Values that are
    there already stay as they are.
    """
    if device.type == "cpu" or values.device.type != "cpu":
        return values.to(device)
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)
