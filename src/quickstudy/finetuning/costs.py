"""What each cut of a backbone costs on this machine, measured: time before it and behind it, and bytes in the store.

The network is taken apart at its cuts, and each piece is timed by itself: in ONNX Runtime on all cores at once, as
extraction runs it, and in PyTorch forward and backward, as fine-tuning does. What lies before or behind a cut is a sum
of pieces.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import onnx
import torch

from quickstudy.backbones.autograd import GraphModule
from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.cuts import Cut
from quickstudy.backbones.graph import keep_between, keep_until
from quickstudy.backbones.runtime import open_session, optimised
from quickstudy.cores import usable_cores
from quickstudy.errors import BackboneError
from quickstudy.finetuning.network import channels_last
from quickstudy.optimisation.precision import choose_precision

_REPEATS = 5
_IMAGES_PER_CORE = 4


@dataclass(frozen=True, kw_only=True)
class CutCost:
    """What it costs to cut here; seconds are those of the whole machine, for one image."""

    cut: Cut
    prefix_seconds: float
    """From pixels to the cut."""
    evaluation_seconds: float
    """From the cut to the features in PyTorch, without gradients."""
    training_seconds: float
    """Forward, backward and update of everything behind the cut."""

    @property
    def trainable(self) -> bool:
        """Whether there is anything to train behind it, and it can be."""
        return self.cut.parameters_after > 0 and self.training_seconds < float("inf")


def measure_costs(backbone: Backbone, *, batch: int = 32) -> tuple[CutCost, ...]:
    """Time the pieces of a backbone, from its first cut to the features; takes some ten seconds.

    Args:
        backbone: with its cuts.
        batch: images in a step of training.

    Raises:
        BackboneError: the graph cannot be run.
    """
    model = onnx.load(backbone.path, load_external_data=False)
    cuts = backbone.cuts
    pixels = np.zeros((1, backbone.input.size, backbone.input.size, 3), np.uint8)
    first = keep_until(model, cuts[0].name, cuts[0].shape)
    forward = [_inference_seconds(first, pixels)]
    behind = []
    for start, end in pairwise(cuts):
        piece = keep_between(model, start.name, start.shape, end.name, end.shape)
        some = np.abs(np.random.Generator(np.random.PCG64(0)).normal(size=start.shape)).astype(np.float32)
        forward.append(_inference_seconds(piece, some[None]))
        behind.append(_suffix_seconds(piece, np.stack([some] * batch)))
    update = _update_seconds() / batch
    evaluating, training = (
        list(accumulate(reversed(pieces), initial=0.0))[::-1] for pieces in zip(*behind, strict=True)
    )
    return tuple(
        CutCost(
            cut=cut,
            prefix_seconds=before,
            evaluation_seconds=without_gradients,
            training_seconds=with_gradients + update * cut.parameters_after,
        )
        for cut, before, without_gradients, with_gradients in zip(
            cuts, accumulate(forward), evaluating, training, strict=True
        )
    )


def _inference_seconds(graph: onnx.ModelProto, one: np.ndarray) -> float:
    """For one image, of a machine whose cores each carry their own."""
    session, cores = open_session(graph.SerializeToString()), usable_cores()
    feed = {graph.graph.input[0].name: one}

    def run(_core: int) -> None:
        for _ in range(_IMAGES_PER_CORE):
            session.run(None, feed)

    with ThreadPoolExecutor(cores) as pool:
        return _median_seconds(lambda: list(pool.map(run, range(cores)))) / (cores * _IMAGES_PER_CORE)


def _suffix_seconds(graph: onnx.ModelProto, batch: np.ndarray) -> tuple[float, float]:
    """For one image of a batch, forward alone, and forward and backward; infinite where the graph cannot be trained."""
    try:
        module = GraphModule(optimised(graph))
    except BackboneError:
        return float("inf"), float("inf")
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = channels_last(torch.from_numpy(batch)).requires_grad_()
    precision = choose_precision("auto", "cpu")

    def evaluate() -> None:
        with torch.inference_mode():
            module(x)

    def train() -> None:
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
            y = module(x)
        y.float().sum().backward()

    return _median_seconds(evaluate) / len(batch), _median_seconds(train) / len(batch)


def _update_seconds(values: int = 1 << 20) -> float:
    """For each trained value, in one step: optimiser and averages."""
    parameter, average = torch.zeros(values, requires_grad=True), torch.zeros(values)
    parameter.grad = torch.zeros(values)
    optimiser = torch.optim.AdamW([parameter], fused=True)

    def step() -> None:
        optimiser.step()
        torch._foreach_lerp_([average], [parameter.detach()], 0.01)

    return _median_seconds(step) / values


def _median_seconds(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
