"""The planner chooses the cut, the views and the epochs that fit a time, from what each cut costs on this machine.

Deeper is better as long as it fits, so the deepest cut that leaves room for a short fine-tuning is taken; what time is
left then goes into epochs, up to the usual number, then into views, which need epochs to be seen.

A budget in which nothing fits is refused at once, by an estimate: the network's forward pass is timed in ONNX Runtime,
and what training from a cut costs follows from how much of the work lies behind it. Planning takes no more than a tenth
of the budget. Where that is too short to import PyTorch and measure, the estimate is the plan; else costs are measured,
from the last cut on towards the image and no farther than there is time to train from.
At its cuts the network is taken apart, and each piece timed by itself: in ONNX Runtime on all cores at once, as
extraction runs it, and in PyTorch, imported for that alone, forward and backward, as fine-tuning does.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.cuts import Cut
from quickstudy.backbones.graphs.cutting import keep_between, keep_until
from quickstudy.backbones.graphs.runtime import open_session, optimised
from quickstudy.errors import BackboneError, PlanError, UnusableImageError
from quickstudy.images.census import Census
from quickstudy.images.decoding import InputSpec, decode
from quickstudy.images.distortions import Distortions
from quickstudy.images.identity import read_image_file
from quickstudy.images.views import render_view
from quickstudy.process import usable_cores
from quickstudy.progress import Progress, silent
from quickstudy.retraining.config import RetrainConfig

_SAMPLE = 16
_PLANNING_SHARE = 0.1
"""Most of the budget that planning may take."""
_PIECE_SECONDS = 1.0
"""Seconds to time one piece of a network, roughly."""


def plan_for(
    census: Census,
    net: Backbone,
    config: RetrainConfig,
    *,
    started: float | None = None,
    progress: Progress = silent,
) -> Plan:
    """Plan the cut, views and epochs that fit a time, which includes the seconds that planning itself takes.

    Args:
        census: the images in their roles.
        net: the backbone, with all its cuts.
        config: how long all may take, how much the store may grow, and how it will be trained.
        started: when the whole job began, as `time.perf_counter` has it; now, if left out.
        progress: is told how far it has come.

    Raises:
        PlanError: nothing fits.
    """
    began = time.perf_counter()
    started, budget = began if started is None else started, config.budget_seconds or math.inf
    progress.start("planning", len(net.cuts))
    try:
        decode_seconds = _decode_seconds([census.contents[digest].path for digest in census.labels], net.input)
        job = PlannedWork(
            images=len(census.labels),
            learned=len(census.digests("train")),
            compared=len(census.digests("validation")),
            decode_seconds=decode_seconds,
            bytes_a_value=np.dtype(config.dtype).itemsize,
            spent_seconds=time.perf_counter() - started + TORCH_SECONDS,
        )
        estimated = choose_plan(estimate_costs(net), job, seconds=budget, disk_bytes=config.disk_bytes)
        latest = began + _PLANNING_SHARE * budget
        if time.perf_counter() + TORCH_SECONDS + _PIECE_SECONDS > latest:
            return estimated

        def is_enough(cost: CutCost) -> bool:
            spent = replace(job, spent_seconds=time.perf_counter() - started)
            least = predict(cost, spent, views=1, epochs=_FEWEST_EPOCHS)
            return cost.trainable and least.seconds > _SAFETY * budget

        costs = measure_costs(
            net,
            batch=config.method.batch,
            latest=latest,
            is_enough=is_enough,
            progress=progress,
        )
    finally:
        progress.finish()
    job = replace(job, spent_seconds=time.perf_counter() - started)
    return choose_plan(costs, job, seconds=budget, disk_bytes=config.disk_bytes, anyway=True)


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
# Seconds to start Python, fit the linear head, and write the model and check it: measured on hundreds of images, and
# on thousands.
_OTHER_SECONDS, _OTHER_SECONDS_AN_IMAGE = 3.0, 0.001
TORCH_SECONDS = 3.0
"""Seconds to import torch where it has not been imported."""
_SAFETY = 0.9
"""Share of the budget that is planned with, since a prediction is off by some percent either way."""


@dataclass(frozen=True, kw_only=True)
class PlannedWork:
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
    """Where to cut, and what each image costs there."""
    views: int
    """Number of augmented views of each training image, at least 0."""
    epochs: int
    """Number of epochs to train for, at least 1."""
    fill_seconds: float
    """Seconds to compute all bottlenecks at the cut, where the store has none yet."""
    epoch_seconds: float
    """Seconds of one epoch, evaluation of the validation images included."""
    other_seconds: float
    """Seconds to plan, start, fit the linear head and write the model."""
    disk_bytes: int
    """Bytes that the bottlenecks take in the store."""

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


def predict(cost: CutCost, job: PlannedWork, *, views: int, epochs: int) -> Plan:
    """Predict what fine-tuning from a cut takes."""
    renderings = job.images * (views + 1)
    return Plan(
        cost=cost,
        views=views,
        epochs=epochs,
        fill_seconds=renderings * (cost.prefix_seconds + job.decode_seconds),
        epoch_seconds=job.learned * cost.training_seconds + job.compared * cost.evaluation_seconds,
        other_seconds=_OTHER_SECONDS + _OTHER_SECONDS_AN_IMAGE * job.images + job.spent_seconds,
        disk_bytes=renderings * cost.cut.values * job.bytes_a_value,
    )


def choose_plan(
    costs: Sequence[CutCost],
    job: PlannedWork,
    *,
    seconds: float,
    disk_bytes: float | None = None,
    anyway: bool = False,
) -> Plan:
    """Choose the deepest cut that fits, and then epochs and views.

    Args:
        costs: what each cut costs, from the image on.
        job: what there is to do.
        seconds: how long it may take.
        disk_bytes: how much the store may grow; any amount if left out.
        anyway: whether the quickest that fits the disk is taken where nothing fits the time.

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
        if anyway and least is not None and (disk_bytes is None or least.disk_bytes <= disk_bytes):
            return least
        allowed = f"{seconds:.0f} s" + (f" and {disk_bytes / 1e9:.2f} GB" if disk_bytes is not None else "")
        needed = (
            f"; the least, from '{least.cost.cut.name}' on, would take {math.ceil(least.seconds / _SAFETY)} s"
            if least is not None
            else ""
        )
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


def _with(plan: Plan, job: PlannedWork, *, views: int | None = None, epochs: int | None = None) -> Plan:
    return predict(plan.cost, job, views=views or plan.views, epochs=epochs or plan.epochs)


_REPEATS = 3
_IMAGES_PER_CORE = 4
_UPDATED = 1 << 20  # trained values whose update is timed
# What a step of training from a cut costs, in forward passes of ONNX Runtime through what lies behind it: 3.2 from
# 'block_12' and 3.5 from 'block_16' on two cores, 10 where the whole network is trained.
_TRAINING_PASSES = 3.2
_EVALUATION_PASSES = 1.0


@dataclass(frozen=True, kw_only=True)
class CutCost:
    """What it costs to cut at one place; seconds are those of the whole machine, for one image."""

    cut: Cut
    """Place in the network, with its shape."""
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


def estimate_costs(backbone: Backbone) -> tuple[CutCost, ...]:
    """Estimate what each cut costs from one timing of the whole network, in some tenths of a second, without torch.

    Raises:
        BackboneError: the graph cannot be run.
    """
    model, last = onnx.load(backbone.path, load_external_data=False), backbone.cuts[-1]
    whole = _prefix_seconds(model, backbone, last)
    shares = [cut.multiply_adds / max(last.multiply_adds, 1) for cut in backbone.cuts]
    return tuple(
        CutCost(
            cut=cut,
            prefix_seconds=share * whole,
            evaluation_seconds=_EVALUATION_PASSES * (1 - share) * whole,
            training_seconds=_TRAINING_PASSES * (1 - share) * whole,
        )
        for cut, share in zip(backbone.cuts, shares, strict=True)
    )


def measure_costs(
    backbone: Backbone,
    *,
    batch: int = 32,
    latest: float = math.inf,
    is_enough: Callable[[CutCost], bool] = lambda _cost: False,
    progress: Progress = silent,
) -> tuple[CutCost, ...]:
    """Time a backbone from its last cut on, piece by piece towards the image; all of it takes some ten seconds.

    Args:
        backbone: with its cuts.
        batch: images in a step of training.
        latest: when to stop, as `time.perf_counter` has it; one piece that can be trained is timed in any case, and
            another one only where it would be done by then if it takes as long as the one before.
        is_enough: whether nothing farther from the end is of interest, given what a cut costs.
        progress: is told how many cuts are done.

    Returns:
        The costs of the cuts that were come to, in the network's order.

    Raises:
        BackboneError: the graph cannot be run.
    """
    model, cuts = onnx.load(backbone.path, load_external_data=False), backbone.cuts
    update = _update_seconds() / batch
    costs = [
        CutCost(
            cut=cuts[-1],
            prefix_seconds=_prefix_seconds(model, backbone, cuts[-1]),
            evaluation_seconds=0.0,
            training_seconds=update * cuts[-1].parameters_after,
        )
    ]
    evaluating = training = 0.0
    for number, (cut, end) in enumerate(zip(cuts[-2::-1], cuts[:0:-1], strict=True)):
        began = time.perf_counter()
        piece = keep_between(model, cut.name, cut.shape, end.name, end.shape)
        some = np.abs(np.random.Generator(np.random.PCG64(0)).normal(size=cut.shape)).astype(np.float32)
        without_gradients, with_gradients = _suffix_seconds(piece, np.stack([some] * batch))
        evaluating, training = evaluating + without_gradients, training + with_gradients
        cost = CutCost(
            cut=cut,
            # What a part of the way takes cannot be more than the whole, but for the noise of the two timings.
            prefix_seconds=min(_prefix_seconds(model, backbone, cut), costs[0].prefix_seconds),
            evaluation_seconds=evaluating,
            training_seconds=training + update * cut.parameters_after,
        )
        costs.insert(0, cost)
        progress.update(done=number + 1, note=f"'{cut.name}'")
        now = time.perf_counter()
        if cost.trainable and (now + (now - began) > latest or is_enough(cost)):
            break
    return tuple(costs)


def _prefix_seconds(model: onnx.ModelProto, backbone: Backbone, cut: Cut) -> float:
    """Measure the seconds of one image from pixels to a cut."""
    pixels = np.zeros((1, backbone.input.size, backbone.input.size, 3), np.uint8)
    return _inference_seconds(keep_until(model, cut.name, cut.shape), pixels)


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
    import torch

    from quickstudy.backbones.graphs.autograd import GraphModule
    from quickstudy.learning.averages import choose_precision
    from quickstudy.retraining.network import channels_last

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


def _update_seconds() -> float:
    """Measure the seconds that optimiser and averages take in one step for each trained value."""
    import torch

    parameter, average = torch.zeros(_UPDATED, requires_grad=True), torch.zeros(_UPDATED)
    parameter.grad = torch.zeros(_UPDATED)
    optimiser = torch.optim.AdamW([parameter], fused=True)

    def step() -> None:
        optimiser.step()
        torch._foreach_lerp_([average], [parameter.detach()], 0.01)

    return _median_seconds(step) / _UPDATED


def _median_seconds(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
