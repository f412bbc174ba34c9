"""What a run writes for people to watch: TensorBoard events, `metrics.jsonl`, histograms of what goes on inside.

Histograms are counted in torch over fixed, exponentially growing buckets, a hundred times faster than
`SummaryWriter.add_histogram`, which matters: a summary must not cost what ten steps cost.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quickstudy.scratch.folder import append_line
from quickstudy.scratch.layers import ACTIVATIONS, evaluation_mode

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

_IMAGES = 8
_ACTIVATION_IMAGES = 16
"""Of a batch: enough for a histogram, and not more than a summary may cost."""


class Summaries:
    """Writes to TensorBoard and to a .jsonl file; `close` writes out what is waiting."""

    def __init__(self, events: Path | None, lines: Path, *, first_step: int = 0) -> None:
        self.lines = lines
        self.writer: SummaryWriter | None = None
        if events is not None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self.writer = SummaryWriter(
                str(events), purge_step=first_step + 1 if first_step else None, max_queue=1000, flush_secs=10
            )

    def close(self) -> None:
        """Write out what is waiting."""
        if self.writer is not None:
            self.writer.close()

    def scalars(self, step: int, values: Mapping[str, float], **facts: object) -> None:
        """Numbers, by name; `facts` go with them into the .jsonl file only."""
        append_line(self.lines, {"step": step, **facts, **values})
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def images(self, step: int, name: str, batch: Tensor) -> None:
        """The first images of a distorted batch (N×C×H×W), each stretched to its own range."""
        if self.writer is None:
            return
        shown = batch[:_IMAGES].float()
        low, high = shown.amin((1, 2, 3), keepdim=True), shown.amax((1, 2, 3), keepdim=True)
        self.writer.add_images(name, (shown - low) / (high - low).clamp(min=1e-6), step)

    def picture(self, step: int, name: str, picture: Tensor) -> None:
        """One picture, C×H×W from 0 to 1."""
        if self.writer is not None:
            self.writer.add_image(name, picture, step)

    def histogram(self, step: int, name: str, values: Tensor) -> None:
        """The distribution of a tensor's values."""
        if self.writer is None or not values.numel():
            return
        flat = values.detach().flatten().float()
        flat = flat[torch.isfinite(flat)]
        if not flat.numel():
            return
        counts = torch.bincount(_bucket(flat), minlength=len(_LIMITS)).cpu()
        used = counts.nonzero().flatten()
        first, last = max(int(used[0]) - 1, 0), int(used[-1])
        self.writer.add_histogram_raw(
            name,
            min=flat.min().item(),
            max=flat.max().item(),
            num=flat.numel(),
            sum=flat.sum().item(),
            sum_squares=flat.square().sum().item(),
            bucket_limits=_LIMITS[first : last + 1],
            bucket_counts=counts[first : last + 1].tolist(),
            global_step=step,
        )

    def network(self, step: int, network: nn.Module) -> None:
        """Histograms of parameters and gradients."""
        for name, parameter in network.named_parameters():
            self.histogram(step, f"parameters/{name}", parameter)
            if parameter.grad is not None:
                self.histogram(step, f"gradients/{name}", parameter.grad)

    @contextmanager
    def watching(self, step: int, network: nn.Module) -> Iterator[None]:
        """Histograms and sparsity (share of zeros) of all activations in a forward pass inside this context."""
        sparsity: dict[str, float] = {}

        def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
                part = output.detach()[:_ACTIVATION_IMAGES]
                self.histogram(step, f"activations/{name}", part)
                sparsity[f"sparsity/{name}"] = (part == 0).float().mean().item()

            return hook

        handles = [
            module.register_forward_hook(watch(name))
            for name, module in network.named_modules()
            if type(module) in ACTIVATIONS.values()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self.scalars(step, sparsity)

    def graph(self, network: nn.Module, images: Tensor) -> None:
        """The network's graph, traced with one image in evaluation mode."""
        if self.writer is None:
            return
        with evaluation_mode(network), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer: shapes become constants, as they should in a picture
            self.writer.add_graph(network, images[:1])


def _bucket(values: Tensor) -> Tensor:
    """Which bucket each value is in: worked out, since a search takes five times as long."""
    power = (values.abs().clamp_(min=_SMALLEST).log_().sub_(math.log(_SMALLEST)).div_(math.log(_GROWTH))).ceil_()
    return torch.where(values > 0, power.clamp_(max=_POWERS - 1) + 1, -power).long().add_(_POWERS)


_SMALLEST, _GROWTH, _POWERS = 1e-8, 1.1, 500
_LIMITS = [-_SMALLEST * _GROWTH**power for power in reversed(range(_POWERS))]
_LIMITS = [*_LIMITS, 0.0, *(-limit for limit in reversed(_LIMITS))]
"""Upper ends of the buckets: zero in the midst, and 10 % from one to the next on both sides."""
