"""Evaluation of a network on whole sets of images, within the training loop and by the evaluator beside it.

Every image counts, with averaged parameters unless told otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from quickstudy.errors import RunError
from quickstudy.files import as_path
from quickstudy.images.pixels import PixelSet
from quickstudy.learning.checkpoints import Checkpoint
from quickstudy.learning.scores import Score, Scores, score_numbers
from quickstudy.scratch.data import TrainingData
from quickstudy.scratch.folder import EVALUATIONS, RunFolder
from quickstudy.scratch.input import Moments, evaluation_batches
from quickstudy.scratch.layers import evaluation_mode
from quickstudy.scratch.parallel import Replica, choose_device
from quickstudy.scratch.recipe import Recipe
from quickstudy.scratch.state import TrainingState
from quickstudy.scratch.summaries import Summaries


def evaluation_logits(
    network: nn.Module,
    batches: Iterable[Tensor],
    *,
    mirrored: bool = False,
    shifted: int = 0,
    lead: float = 1.0,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """Work out the logits of all images in `batches`, N×classes in float32 on the CPU; see `averaged_logits`.

    A network of several side by side gives as many rows of them, R×N×classes.
    """
    device = next(network.parameters()).device
    autocast = torch.autocast(device.type, precision, enabled=precision is not torch.float32)
    with evaluation_mode(network), torch.no_grad(), autocast:
        rows = [averaged_logits(network, images, mirrored=mirrored, shifted=shifted, lead=lead) for images in batches]
        return torch.cat(rows, dim=-2).cpu()  # in one piece: a GPU waits for each


def averaged_logits(network: nn.Module, images: Tensor, *, mirrored: bool, shifted: int, lead: float = 1.0) -> Tensor:
    """Work out logits (N×classes, float32) of images (N×C×S×S), means over an image and what it could have looked like.

    Args:
        network: a network in evaluation mode.
        images: what the network takes.
        mirrored: whether the mirror image counts, as much as the image.
        shifted: number of pixels by which two copies are shifted, borders mirrored (Jordan, 2024, arXiv:2404.00498,
            whose weights these are); 0: no copies.
        lead: how far, in probability, the first class may be ahead of the second without the copies for an image to be
            unsure; only the copies of unsure images count. 1: all are. What an image's logits are does not depend on
            the images beside it.
    """

    def logits_at(view: Tensor) -> Tensor:
        logits: Tensor = network(view).float()
        return (logits + network(view.flip(-1)).float()) / 2 if mirrored else logits

    def with_copies(views: Tensor, own: Tensor) -> Tensor:
        side = int(views.shape[-1])  # not what a tracer follows
        wider = functional.pad(views, [shifted] * 4, mode="reflect")
        copies = [logits_at(wider[:, :, at : at + side, at : at + side]) for at in (0, 2 * shifted)]
        return own / 2 + (copies[0] + copies[1]) / 4

    logits = logits_at(images)
    if not shifted:
        return logits
    if lead >= 1 or int(logits.shape[1]) < 2:
        return with_copies(images, logits)
    probabilities = logits.softmax(dim=1)
    first = probabilities.amax(dim=1, keepdim=True)
    if torch.onnx.is_in_onnx_export():  # a graph has all images' copies, and operators that its other forms know, too
        second = (probabilities * (first - probabilities).sign()).amax(dim=1, keepdim=True)
        is_unsure = ((lead - (first - second)).sign() + 1) / 2
        return logits + is_unsure * (with_copies(images, logits) - logits)
    second = probabilities.topk(2).values[:, 1:]
    rows = (first - second <= lead).flatten().nonzero().flatten()
    return logits.index_copy(0, rows, with_copies(images[rows], logits[rows])) if len(rows) else logits


def evaluate_state(
    state: TrainingState,
    recipe: Recipe,
    data: PixelSet,
    moments: Moments,
    *,
    averaged: bool = True,
    batches: Iterable[Tensor] | None = None,
) -> Scores:
    """Scores of a network as it stands, evaluated as its recipe says.

    Args:
        state: what holds the network.
        recipe: how images are taken, and what is averaged over.
        data: images to evaluate on, and their labels.
        moments: mean and deviation of the channels of the images trained on.
        averaged: whether the averaged parameters are used, where there are some.
        batches: what `evaluation_batches` gives of these images, where it is at hand.
    """
    if batches is None:
        device = next(state.network.parameters()).device
        batches = evaluation_batches(data.pixels, recipe.augmentation, moments, device=device)
    with state.averages_applied(averaged):
        logits = evaluation_logits(
            state.network,
            batches,
            mirrored=recipe.mirrored_test,
            shifted=recipe.shifted_test,
            lead=recipe.unsure_lead,
            precision=state.precision,
        )
    return evaluate_logits(logits, data)


def evaluate_logits(logits: Tensor, data: PixelSet) -> Scores:
    """Compare the most probable classes with the labels."""
    return score_numbers(data.labels, logits.argmax(dim=1).numpy(), data.classes)


_CELL = 16
"""Side of a cell in the confusion matrix's picture, in pixels."""


@dataclass(frozen=True, kw_only=True)
class CheckpointEvaluation:
    """How good a checkpoint is."""

    step: int
    """Number of steps that had been made."""
    split: str
    """Images that it was evaluated on: `validation` or `test`."""
    averaged: bool
    """Whether the averaged parameters were used."""
    scores: Scores
    """Scores of all classes, and what was confused."""

    @property
    def score(self) -> Score:
        """Accuracy: the share of images whose most probable class is the right one."""
        return self.scores.score


class Evaluator:
    """Follows a run's newest checkpoint, mostly in a process of its own, and says how good it is.

    It reads whole checkpoints only, never misses the last one, and ends when the run has ended.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        split: str | None = None,
        averaged: bool = True,
        data: str | None = None,
        data_folder: Path | None = None,
        device: str = "auto",
    ) -> None:
        """Prepare to evaluate.

        Args:
            run: the run's folder.
            split: `validation` or `test`; None: the validation images where the run has some, else the test images.
            averaged: whether the moving averages of the parameters are used, where the recipe has them.
            data: where the run's images are now; None: where they were.
            data_folder: where named data sets lie.
            device: kind of device to compute on: auto, cpu or cuda.

        Raises:
            RunError: there is no such run, or these are other images than its own.
            ImageSetError: its data is not there.
        """
        self.folder = RunFolder.existing(as_path(run))
        self.recipe = self.folder.recipe()
        self.data: TrainingData = self.folder.load_data(data, folder=data_folder)
        self.split = split or ("test" if self.data.validation is None else "validation")
        self.images = self.data.split(self.split)
        self.moments = self.folder.facts().moments
        replica = Replica(device_type=choose_device(device))
        self.state = TrainingState(
            self.recipe,
            side=self.data.side,
            channels=self.data.channels,
            classes=len(self.data.classes),
            device=replica.device,
        )
        self.averaged = averaged and self.state.averages is not None
        self.steps = self.recipe.total_steps(len(self.data.train))
        """Number of steps of the whole run."""

    def evaluate(self, which: str = "newest") -> CheckpointEvaluation:
        """Evaluate a checkpoint: the `newest`, the `best` on the validation images, or that of a step.

        Raises:
            OptionError: there is no such checkpoint.
            RunError: there is none that is whole.
        """
        checkpoint = self.folder.checkpoint(which)
        if checkpoint is None:
            raise RunError(f"'{self.folder.path}' has no checkpoint yet; wait for one with --watch")
        return self._evaluate(checkpoint)

    def follow(self, *, interval_seconds: float = 5.0) -> Iterator[CheckpointEvaluation]:
        """Evaluate each newest checkpoint as it comes, the last one included; ends when the run has ended."""
        name = f"evaluation_{self.split}" + ("" if self.averaged else "_own_parameters")
        done = {line["step"] for line in self._written()}
        last = max(done, default=-1)
        with closing(Summaries(self.folder.path / "tensorboard" / name, self.folder.path / EVALUATIONS)) as summaries:
            while True:
                # Asked before looking, so that a checkpoint written in between is not missed.
                ended = self.folder.result() is not None or not self.folder.is_active()
                checkpoint = self.folder.checkpoints.newest(after=last)
                if checkpoint is not None:
                    last = checkpoint.step
                    result = self._evaluate(checkpoint)
                    self._write(result, summaries)
                    yield result
                elif ended:
                    return
                else:
                    time.sleep(interval_seconds)

    def _evaluate(self, checkpoint: Checkpoint) -> CheckpointEvaluation:
        self.state.load_state_dict(checkpoint.state)
        scores = evaluate_state(self.state, self.recipe, self.images, self.moments, averaged=self.averaged)
        return CheckpointEvaluation(step=checkpoint.step, split=self.split, averaged=self.averaged, scores=scores)

    def _written(self) -> list[dict[str, Any]]:
        """Read what an evaluator with the same question has written before."""
        mine = {"split": self.split, "averaged": self.averaged}
        lines = self.folder.lines(EVALUATIONS)
        return [line for line in lines if {name: line.get(name) for name in mine} == mine]

    def _write(self, result: CheckpointEvaluation, summaries: Summaries) -> None:
        summaries.scalars(
            result.step,
            {"accuracy": result.score.accuracy},
            split=result.split,
            averaged=result.averaged,
            n=result.score.n,
        )
        summaries.picture(result.step, "confusion", _confusion_picture(result.scores))


def _confusion_picture(scores: Scores) -> torch.Tensor:
    """Draw the confusion matrix, 1×height×width from 0 to 1.

    Rows are true classes, columns predicted ones; the darker a cell, the more of the class.
    """
    places = {score.name: number for number, score in enumerate(scores.classes)}
    counts = np.zeros((len(places), len(places)))
    for score in scores.classes:
        counts[places[score.name], places[score.name]] = score.right
    for pair in scores.confusions:
        counts[places[pair.truth], places[pair.predicted]] = pair.count
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return torch.from_numpy(1 - np.kron(np.sqrt(shares), np.ones((_CELL, _CELL))))[None].float()
