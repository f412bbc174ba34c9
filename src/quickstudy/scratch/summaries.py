"""What a run tells and writes while it goes: news for its caller, `metrics.jsonl`, TensorBoard events.

`RunLog` follows the steps of a training; `Summaries` writes to the files, also for the evaluator. A summary must not
cost what ten steps cost, so histograms are counted in torch over fixed, exponentially growing buckets, a hundred times
faster than by `SummaryWriter.add_histogram`.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quickstudy.images.imageset import Skipped
from quickstudy.learning.scores import Score
from quickstudy.scratch.folder import METRICS, RunFolder, append_line
from quickstudy.scratch.input import Batch, Pipeline
from quickstudy.scratch.layers import ACTIVATIONS, Cost, evaluation_mode
from quickstudy.scratch.recipe import Recipe, RunSettings
from quickstudy.scratch.state import LOSS_TERMS, Measures, TrainingState

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

_IMAGES = 8
"""Number of a batch's images that TensorBoard shows."""
_ACTIVATION_IMAGES = 16
"""Number of a batch's images whose activations are counted: enough for a histogram, and no more than one may cost."""


@dataclass(frozen=True, kw_only=True)
class RunBegun:
    """News of a run before its first step in this process."""

    recipe: Recipe
    """What is trained."""
    cost: Cost
    """Size and work of the network."""
    classes: tuple[str, ...]
    """Class names, in the order of the labels."""
    images: dict[str, int]
    """Number of images by split."""
    skipped: tuple[Skipped, ...]
    """Image files that could not be used."""
    steps: int
    """Number of steps of the whole run."""
    step: int
    """Number of steps that have been made before; 0 in a new run."""
    damaged: tuple[Path, ...]
    """Checkpoints that were damaged and had to be passed over."""
    precision: str
    """Type in which layers multiply, such as float32."""
    device: str
    """Where the first replica computes, such as cpu or cuda:0."""
    replicas: int
    """Number of processes that train together."""


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """News of the last step, and of the speed since the news before."""

    step: int
    """Number of steps that have been made."""
    loss: float
    """Loss of the last step, weight decay included."""
    smoothed_loss: float
    """Moving average of the loss, weight decay included."""
    examples_per_second: float
    """Number of images trained on in a second, over all replicas."""
    seconds_per_batch: float
    """Mean time of a step since the news before, in seconds."""


@dataclass(frozen=True, kw_only=True)
class RunEvaluation:
    """News of an evaluation within the run."""

    step: int
    """Number of steps that had been made."""
    split: str
    """`validation` or `test`: the images that were evaluated on."""
    score: Score
    """Accuracy on these images."""
    seconds: float
    """Time spent on steps until then, in seconds."""


Reporter = Callable[[RunBegun | RunProgress | RunEvaluation], None]
"""Function that a run tells its news to."""


class RunLog:
    """Tells and writes how a run goes; in replicas other than the first it does nothing."""

    def __init__(
        self,
        state: TrainingState,
        pipeline: Pipeline,
        folder: RunFolder,
        settings: RunSettings,
        *,
        writes: bool,
        report: Reporter | None,
        apart: bool = False,
    ) -> None:
        """Open the files, and drop what they hold of steps that will be made again.

        Args:
            state: what is followed; it is read, never changed.
            pipeline: source of the images that the network's graph is traced with.
            folder: the run's folder.
            settings: how often something is told and written.
            writes: whether this is the first replica.
            report: function that is told the news, or None.
            apart: whether steps do not pass through `state.network` itself, so that nobody can look into them.
        """
        self.state, self.settings, self.report = state, settings, report if writes else None
        self.batch_size = pipeline.batch
        self.apart = apart
        self.summaries: Summaries | None = None
        if not writes:
            return
        folder.forget_after(METRICS, state.step)
        events = folder.path / "tensorboard" / "train" if settings.summary_steps else None
        self.summaries = Summaries(events, folder.path / METRICS, first_step=state.step)
        if events and settings.graph and not state.step:
            self.summaries.graph(state.network, pipeline.make(0).images)

    def close(self) -> None:
        """Write out what is waiting."""
        if self.summaries is not None:
            self.summaries.close()

    @contextmanager
    def forward(self, batch: Batch) -> Iterator[None]:
        """Take the forward pass of a step: where a summary is due, its images and activations are written."""
        step = batch.step + 1
        if self.summary_is_due(step) and self.summaries is not None:
            self.summaries.images(step, "images", batch.images)
            if self.apart:  # a copy of the network does the same, and leaves what batch norms collect as it is
                network = copy.deepcopy(self.state.network)
                with torch.no_grad(), self.summaries.activations(step, network):
                    network(batch.images)
                yield
                return
            with self.summaries.activations(step, self.state.network):
                yield
        else:
            yield

    def histograms(self) -> None:
        """Write histograms of parameters and gradients, where a summary of the step just made is due."""
        if self.summary_is_due(self.state.step) and self.summaries is not None:
            self.summaries.network(self.state.step, self.state.network)

    def progress(self, measured: Measures, rate: float, *, seconds_per_batch: float) -> None:
        """Tell and write the numbers of the step just made, its learning rate, and the speed."""
        if self.summaries is None:
            return
        step, speed = self.state.step, self.batch_size / seconds_per_batch
        values = {f"loss/{name}": value for name, value in zip(LOSS_TERMS, measured.losses, strict=True)}
        values |= {f"loss_smoothed/{name}": value for name, value in zip(LOSS_TERMS, measured.smoothed, strict=True)}
        values |= {"learning_rate": rate, "examples_per_second": speed}
        values |= {f"gradient_norm/{name}": norm for name, norm in measured.gradient_norms.items()}
        self.summaries.scalars(step, values)
        if self.report:
            self.report(
                RunProgress(
                    step=step,
                    loss=measured.losses[0],
                    smoothed_loss=measured.smoothed[0],
                    examples_per_second=speed,
                    seconds_per_batch=seconds_per_batch,
                )
            )

    def evaluated(self, score: Score, *, split: str) -> None:
        """Tell and write what an evaluation after the step just made came to."""
        step, seconds = self.state.step, self.state.clock.training_seconds
        if self.summaries is not None:
            self.summaries.scalars(step, {"accuracy": score.accuracy}, split=split, n=score.n, training_seconds=seconds)
        if self.report:
            self.report(RunEvaluation(step=step, split=split, score=score, seconds=seconds))

    def summary_is_due(self, step: int) -> bool:
        """Tell whether it is the first step or one of every so many; steps count from 1 in all that is written."""
        every = self.settings.summary_steps if self.summaries is not None else 0
        return bool(every) and (step == 1 or step % every == 0)


class Summaries:
    """Writes to TensorBoard and to a .jsonl file; `close` writes out what is waiting."""

    def __init__(self, events: Path | None, lines: Path, *, first_step: int | None = None) -> None:
        """Open the files.

        Args:
            events: folder for TensorBoard's events; None: there will be none.
            lines: the .jsonl file.
            first_step: step after which the run goes on, 0 where it begins; TensorBoard drops the events of later
                steps, which a run that was killed may have left. None: it keeps them all.
        """
        self.lines = lines
        self.writer: SummaryWriter | None = None
        if events is not None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self.writer = SummaryWriter(
                str(events), purge_step=None if first_step is None else first_step + 1, max_queue=1000, flush_secs=10
            )

    def close(self) -> None:
        """Write out what is waiting."""
        if self.writer is not None:
            self.writer.close()

    def scalars(self, step: int, values: Mapping[str, float], **facts: object) -> None:
        """Write numbers by name; `facts` go with them into the .jsonl file only."""
        append_line(self.lines, {"step": step, **facts, **values})
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def images(self, step: int, name: str, batch: Tensor) -> None:
        """Write the first images of a distorted batch (N×C×H×W), each stretched to its own range."""
        if self.writer is None:
            return
        shown = batch[:_IMAGES].float()
        low, high = shown.amin((1, 2, 3), keepdim=True), shown.amax((1, 2, 3), keepdim=True)
        self.writer.add_images(name, (shown - low) / (high - low).clamp(min=1e-6), step)

    def picture(self, step: int, name: str, picture: Tensor) -> None:
        """Write one picture, C×H×W from 0 to 1."""
        if self.writer is not None:
            self.writer.add_image(name, picture, step)

    def histogram(self, step: int, name: str, values: Tensor) -> None:
        """Write the distribution of a tensor's values; those that are no numbers are left out."""
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
        """Write histograms of parameters and gradients."""
        for name, parameter in network.named_parameters():
            self.histogram(step, f"parameters/{name}", parameter)
            if parameter.grad is not None:
                self.histogram(step, f"gradients/{name}", parameter.grad)

    @contextmanager
    def activations(self, step: int, network: nn.Module) -> Iterator[None]:
        """Write histograms and sparsity (share of zeros) of all activations in a forward pass inside this context."""
        sparsity: dict[str, float] = {}

        def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
                part = output.detach()[:_ACTIVATION_IMAGES]
                self.histogram(step, f"activations/{name}", part)
                sparsity[f"sparsity/{name}"] = (part == 0).float().mean().item()

            return hook

        handles = [
            module.register_forward_hook(hook_for(name))
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
        """Write the network's graph, traced on the processor with one image in evaluation mode."""
        if self.writer is None:
            return
        network = copy.deepcopy(network).to("cpu")
        with evaluation_mode(network), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer: shapes become constants, as they should in a picture
            # Traced here, since the writer would trace it twice and compare the two, which takes two seconds.
            example = images[:1].cpu()
            traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
            self.writer.add_graph(traced, example)


def _bucket(values: Tensor) -> Tensor:
    """Work out the number of each value's bucket, since a search takes five times as long."""
    power = (values.abs().clamp_(min=_SMALLEST).log_().sub_(math.log(_SMALLEST)).div_(math.log(_GROWTH))).ceil_()
    return torch.where(values > 0, power.clamp_(max=_POWERS - 1) + 1, -power).long().add_(_POWERS)


_SMALLEST, _GROWTH, _POWERS = 1e-8, 1.1, 500
_LIMITS = [-_SMALLEST * _GROWTH**power for power in reversed(range(_POWERS))]
_LIMITS = [*_LIMITS, 0.0, *(-limit for limit in reversed(_LIMITS))]
"""Upper ends of the buckets: zero in the midst, and 10 % from one to the next on both sides."""
