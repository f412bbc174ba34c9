"""The planner chooses the cut, the views and the epochs that fit a time, from what each cut costs on this machine.

Deeper is better as long as it fits, so the deepest cut that leaves room for a short fine-tuning is taken; what time is
left then goes into epochs, up to the usual number, then into views, which need epochs to be seen.

Costs are measured, not assumed. The network is taken apart at its cuts, and each piece is timed by itself: in ONNX
Runtime on all cores at once, as extraction runs it, and in PyTorch forward and backward, as fine-tuning does. What lies
before or behind a cut is a sum of pieces. This needs torch, like fine-tuning itself, so the module is imported only
where a budget is given or costs are asked for.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import onnx
import torch

from quickstudy.backbones.autograd import GraphModule
from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.cuts import Cut
from quickstudy.backbones.graphs import keep_between, keep_until
from quickstudy.backbones.runtime import open_session, optimised
from quickstudy.errors import BackboneError, PlanError, UnusableImageError
from quickstudy.images.census import Census
from quickstudy.images.decoding import InputSpec, decode
from quickstudy.images.distortions import Distortions
from quickstudy.images.identity import read_image_file
from quickstudy.images.views import render_view
from quickstudy.learning.averages import choose_precision
from quickstudy.process import usable_cores
from quickstudy.retraining.config import RetrainConfig
from quickstudy.retraining.network import channels_last

_SAMPLE = 32


def plan_for(
    census: Census,
    net: Backbone,
    config: RetrainConfig,
) -> Plan:
    """Plan the cut, views and epochs that fit a time, which includes the seconds that planning itself takes.

    Args:
        census: the images in their roles.
        net: the backbone, with all its cuts.
        config: how long all may take, how much the store may grow, and how it will be trained.

    Raises:
        PlanError: nothing fits.
    """
    started = time.perf_counter()
    costs = measure_costs(net, batch=config.method.batch)
    decode_seconds = _decode_seconds([census.contents[digest].path for digest in census.labels], net.input)
    job = Job(
        images=len(census.labels),
        learned=len(census.digests("train")),
        compared=len(census.digests("validation")),
        decode_seconds=decode_seconds,
        bytes_a_value=np.dtype(config.dtype).itemsize,
        spent_seconds=time.perf_counter() - started,
    )
    return choose_plan(costs, job, seconds=config.budget_seconds or math.inf, disk_bytes=config.disk_bytes)


def _decode_seconds(paths: Sequence[Path], spec: InputSpec) -> float:
    """Measure the seconds to read, decode and resize an image, on the whole machine: the mean over a sample."""
    sample = paths[:: max(1, len(paths) // _SAMPLE)][:_SAMPLE]

    def carry(path: Path) -> None:
        try:
            data, digest = read_image_file(path)
            render_view(decode(data, spec), spec, digest, 1, Distortions())
        except UnusableImageError:
            pass

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(carry, sample))  # the first time, files come from the disk
        started = time.perf_counter()
        list(pool.map(carry, sample))
    return (time.perf_counter() - started) / max(len(sample), 1)


_FEWEST_EPOCHS = 6
_EPOCHS = 12
_MOST_EPOCHS = 20
_MOST_VIEWS = 4
# Seconds to start, split, fit the linear head and write the model: measured on a few thousand images.
_OTHER_SECONDS = 6.0
_SAFETY = 0.9
"""Share of the budget that is planned with, since a prediction is off by some percent either way."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The work that a plan is made for."""

    images: int
    """Number of images in all; each passes through the prefix."""
    learned: int
    """Number of images to train on."""
    compared: int
    """Number of images to validate on after each epoch."""
    decode_seconds: float = 0.0
    """Seconds to read, decode and resize one image, on the whole machine."""
    bytes_a_value: int = 2
    """Bytes that the store takes for each value of a bottleneck: 2 for float16, 4 for float32."""
    spent_seconds: float = 0.0
    """Seconds spent before, on finding out what things cost."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Says what will be done, and what it is expected to take."""

    cost: CutCost
    views: int
    epochs: int
    fill_seconds: float
    """Seconds to compute all bottlenecks at the cut, where the store has none yet."""
    epoch_seconds: float
    other_seconds: float
    """Seconds to plan, start, fit the linear head and write the model."""
    disk_bytes: int

    @property
    def seconds(self) -> float:
        """Seconds expected in all, with one epoch on top of those that are trained."""
        return self.other_seconds + self.fill_seconds + (self.epochs + 1) * self.epoch_seconds

    def to_dict(self) -> dict[str, object]:
        """Give the plan as JSON values."""
        return {
            "cut": self.cost.cut.name,
            "views": self.views,
            "epochs": self.epochs,
            "fill_seconds": self.fill_seconds,
            "epoch_seconds": self.epoch_seconds,
            "disk_bytes": self.disk_bytes,
            "seconds": self.seconds,
        }


def predict(cost: CutCost, job: Job, *, views: int, epochs: int) -> Plan:
    """Predict what fine-tuning from a cut takes."""
    renderings = job.images * (views + 1)
    return Plan(
        cost=cost,
        views=views,
        epochs=epochs,
        fill_seconds=renderings * (cost.prefix_seconds + job.decode_seconds),
        epoch_seconds=job.learned * cost.training_seconds + job.compared * cost.evaluation_seconds,
        other_seconds=_OTHER_SECONDS + job.spent_seconds,
        disk_bytes=renderings * cost.cut.values * job.bytes_a_value,
    )


def choose_plan(costs: Sequence[CutCost], job: Job, *, seconds: float, disk_bytes: float | None = None) -> Plan:
    """Choose the deepest cut that fits, and then epochs and views.

    Args:
        costs: what each cut costs, from the image on.
        job: what there is to do.
        seconds: how long it may take.
        disk_bytes: how much the store may grow; any amount if left out.

    Raises:
        PlanError: nothing fits.
    """

    def fits(plan: Plan) -> bool:
        return plan.seconds <= _SAFETY * seconds and (disk_bytes is None or plan.disk_bytes <= disk_bytes)

    trainable = [cost for cost in costs if cost.trainable]
    quickest = [predict(cost, job, views=1, epochs=_FEWEST_EPOCHS) for cost in trainable]
    plan = next((plan for plan in quickest if fits(plan)), None)
    if plan is None:
        least = min(quickest, key=lambda plan: plan.seconds, default=None)
        allowed = f"{seconds:.0f} s" + (f" and {disk_bytes / 1e9:.2f} GB" if disk_bytes is not None else "")
        needed = f"; '{least.cost.cut.name}' would take {least.seconds / _SAFETY:.0f} s" if least is not None else ""
        needed += f" and {least.disk_bytes / 1e9:.2f} GB" if least is not None and disk_bytes is not None else ""
        raise PlanError(
            f"No fine-tuning fits {allowed}{needed}. Allow more, or leave out --budget to train the linear head alone"
        )
    for most_epochs, most_views in ((_EPOCHS, 1), (_EPOCHS, _MOST_VIEWS), (_MOST_EPOCHS, _MOST_VIEWS)):
        while plan.views < most_views and fits(more := _with(plan, job, views=plan.views + 1)):
            plan = more
        while plan.epochs < most_epochs and fits(more := _with(plan, job, epochs=plan.epochs + 1)):
            plan = more
    return plan


def _with(plan: Plan, job: Job, *, views: int | None = None, epochs: int | None = None) -> Plan:
    return predict(plan.cost, job, views=views or plan.views, epochs=epochs or plan.epochs)


_REPEATS = 5
_IMAGES_PER_CORE = 4


@dataclass(frozen=True, kw_only=True)
class CutCost:
    """What it costs to cut at one place; seconds are those of the whole machine, for one image."""

    cut: Cut
    prefix_seconds: float
    """Seconds from pixels to the cut."""
    evaluation_seconds: float
    """Seconds from the cut to the features in PyTorch, without gradients."""
    training_seconds: float
    """Seconds for forward pass, backward pass and update of everything behind the cut; infinite if it cannot be."""

    @property
    def trainable(self) -> bool:
        """Whether there is anything to train behind the cut, and it can be trained."""
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
    """Measure the seconds of one image, on a machine whose cores each carry their own."""
    session, cores = open_session(graph.SerializeToString()), usable_cores()
    feed = {graph.graph.input[0].name: one}

    def run(_core: int) -> None:
        for _ in range(_IMAGES_PER_CORE):
            session.run(None, feed)

    with ThreadPoolExecutor(cores) as pool:
        return _median_seconds(lambda: list(pool.map(run, range(cores)))) / (cores * _IMAGES_PER_CORE)


def _suffix_seconds(graph: onnx.ModelProto, batch: np.ndarray) -> tuple[float, float]:
    """Measure the seconds of one image in a batch: forward alone, and forward and backward.

    Both are infinite where the graph cannot be trained.
    """
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
    """Measure the seconds that optimiser and averages take in one step for each trained value."""
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
