"""What is done beside the steps of a training: reports, summaries, checkpoints, and a check that the loss is finite."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from quickstudy.errors import TrainingError
from quickstudy.learning.scores import Score
from quickstudy.scratch.folder import METRICS, RunFolder
from quickstudy.scratch.input import Batch, Pipeline
from quickstudy.scratch.settings import Evaluated, Progressed, Report, Settings
from quickstudy.scratch.state import TrainingState
from quickstudy.scratch.summaries import Summaries

LOSSES = ("total", "cross_entropy", "weight_decay")
_ROWS_NAMED = 16


class Watch:
    """Follows the steps of one run; only the first replica's writes anything."""

    def __init__(
        self,
        state: TrainingState,
        pipeline: Pipeline,
        folder: RunFolder,
        settings: Settings,
        *,
        writes: bool,
        report: Report | None,
        started: float,
    ) -> None:
        self.state, self.pipeline, self.folder, self.settings = state, pipeline, folder, settings
        self.writes, self.report = writes, report
        self.summaries: Summaries | None = None
        if writes:
            folder.forget_after(METRICS, state.step)
            events = folder.path / "tensorboard" / "train" if settings.summary_steps else None
            self.summaries = Summaries(events, folder.path / METRICS, first_step=state.step)
            if events and settings.graph and not state.step:
                self.summaries.graph(state.network, pipeline.make(0).images)
        # A look at the loss makes a GPU wait, so there it is only looked at when it is reported.
        self._look_every = 1 if pipeline.pixels.device.type == "cpu" else settings.log_steps
        self._unseen: list[tuple[int, Tensor]] = []
        self._seconds_before = state.seconds
        self._started, self._reported_at = started, time.perf_counter()
        state.idle_seconds += self._reported_at - started
        self._reported_step = state.step
        self._saved_at = time.monotonic()
        # A run that goes on has the checkpoint of its step; to write it again would endanger it.
        self._saved_step = state.step or -1

    def close(self) -> None:
        """Write out what is waiting."""
        if self.summaries is not None:
            self.summaries.close()

    @contextmanager
    def forward(self, batch: Batch) -> Iterator[None]:
        """Around the forward pass of a step: where a summary is due, the activations go into it."""
        step = batch.step + 1
        if self.summaries is not None and self._summary_is_due(step):
            self.summaries.images(step, "images", batch.images)
            with self.summaries.watching(step, self.state.network):
                yield
        else:
            yield

    def after(self, batch: Batch, rate: float, cross_entropy: Tensor, decay: Tensor) -> None:
        """After a step, `state.step` having been counted up."""
        state, settings = self.state, self.settings
        losses = torch.stack((cross_entropy + decay, cross_entropy, decay.to(cross_entropy.device)))
        state.smooth(losses)
        self._unseen.append((batch.step, losses[0]))
        if state.step % self._look_every == 0:
            self._check()
        if self.summaries is not None and self._summary_is_due(state.step):
            self.summaries.network(state.step, state.network)
        if state.step % settings.log_steps == 0 and self.writes:
            self._tell(losses, rate)
        if self.writes and time.monotonic() - self._saved_at >= settings.checkpoint_seconds:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, unless there is one of this step, or the parameters are not numbers."""
        self._check()
        if not self.writes or self._saved_step == self.state.step:
            return
        if not self.state.is_finite():
            raise self._diverged(self.state.step - 1)
        self.state.seconds = self.seconds()
        self.folder.checkpoints.save(self.state.step, self.state.state_dict(), best=self.folder.best_step())
        self._saved_at, self._saved_step = time.monotonic(), self.state.step

    @contextmanager
    def idling(self) -> Iterator[None]:
        """Time spent in here does not count as training."""
        started = time.perf_counter()
        yield
        spent = time.perf_counter() - started
        self.state.idle_seconds += spent
        self._reported_at += spent

    def evaluated(self, score: Score, *, split: str) -> None:
        """The network has been evaluated after this step."""
        step, seconds = self.state.step, self.training_seconds()
        if self.summaries is not None:
            self.summaries.scalars(
                step, {"precision": score.accuracy}, split=split, n=score.n, training_seconds=seconds
            )
        if self.report:
            self.report(Evaluated(step=step, split=split, score=score, seconds=seconds))

    def training_seconds(self) -> float:
        """Spent on steps so far, by all processes that took part one after the other."""
        return self.seconds() - self.state.idle_seconds

    def seconds(self) -> float:
        """Spent on this run so far, by all processes that took part one after the other."""
        return self._seconds_before + time.perf_counter() - self._started

    def _summary_is_due(self, step: int) -> bool:
        """Of the first step and every so many after it; steps count from 1 in all that is written."""
        every = self.settings.summary_steps
        return bool(every) and (step == 1 or step % every == 0)

    def _tell(self, losses: Tensor, rate: float) -> None:
        now, step = time.perf_counter(), self.state.step
        per_batch = (now - self._reported_at) / max(step - self._reported_step, 1)
        raw, smoothed = losses.tolist(), self.state.smoothed.tolist()
        values = {f"loss/{name}": value for name, value in zip(LOSSES, raw, strict=True)}
        values |= {f"loss_smoothed/{name}": value for name, value in zip(LOSSES, smoothed, strict=True)}
        values |= {"learning_rate": rate, "examples_per_second": self.pipeline.batch / per_batch}
        values |= {f"gradient_norm/{name}": norm for name, norm in self.state.gradient_norms().items()}
        if self.summaries is not None:
            self.summaries.scalars(step, values)
        if self.report:
            self.report(
                Progressed(
                    step=step,
                    loss=raw[0],
                    smoothed_loss=smoothed[0],
                    examples_per_second=self.pipeline.batch / per_batch,
                    seconds_per_batch=per_batch,
                )
            )
        self._reported_at, self._reported_step = now, step

    def _check(self) -> None:
        unseen, self._unseen = self._unseen, []
        if unseen:
            finite = torch.isfinite(torch.stack([loss for _, loss in unseen])).tolist()
            for (step, _), is_finite in zip(unseen, finite, strict=True):
                if not is_finite:
                    raise self._diverged(step)

    def _diverged(self, step: int) -> TrainingError:
        rows = self.pipeline.rows(step).tolist()
        shown = ", ".join(str(row) for row in rows[:_ROWS_NAMED])
        rest = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
        kept = self.folder.checkpoints.steps()
        good = f"the checkpoint of step {kept[-1]} is good" if kept else "no checkpoint had been written"
        return TrainingError(
            f"The loss is not a number in step {step} (training images {shown}{rest}); {good}. "
            "Lower the rate (--set rate=…), or look at these images"
        )
