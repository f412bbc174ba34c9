"""Precision of a network on a whole pixel set: every image counts, with averaged parameters unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quickstudy.images.pixels import PixelSet
from quickstudy.retraining.evaluation import Evaluation, score_predictions
from quickstudy.training.distortions import Moments
from quickstudy.training.networks.mode import evaluation_mode
from quickstudy.training.pipeline import evaluation_batches
from quickstudy.training.recipe import Recipe
from quickstudy.training.state import TrainingState


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network is in evaluation mode, without gradients, inside this context."""
    with evaluation_mode(network), torch.inference_mode():
        yield


def logits_of(
    network: nn.Module,
    batches: Iterable[Tensor],
    *,
    mirrored: bool = False,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """The logits of all images in `batches`, N×classes in float32 on the CPU.

    With `mirrored`, they are averaged with the mirror images'.
    """
    device = next(network.parameters()).device
    rows = []
    with evaluating(network), torch.autocast(device.type, precision, enabled=precision is not torch.float32):
        for images in batches:
            logits = network(images).float()
            if mirrored:
                logits = (logits + network(images.flip(-1)).float()) / 2
            rows.append(logits.cpu())
    return torch.cat(rows)


def evaluate_state(
    state: TrainingState,
    recipe: Recipe,
    data: PixelSet,
    moments: Moments,
    *,
    averaged: bool = True,
    batches: Iterable[Tensor] | None = None,
) -> Evaluation:
    """How good a network is as it stands: as its recipe evaluates, with averaged parameters where it has them.

    `batches` are those that `undistorted` gives of the same data, where they are at hand.
    """
    if batches is None:
        batches = undistorted(data, recipe, moments, device=next(state.network.parameters()).device)
    with state.averages_applied(averaged):
        logits = logits_of(
            state.network,
            batches,
            mirrored=recipe.mirrored_test,
            precision=state.precision,
        )
    return evaluate_logits(logits, data)


def undistorted(
    data: PixelSet, recipe: Recipe, moments: Moments, *, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """All images of a set, in order, as the network takes them in evaluation."""
    return evaluation_batches(data.pixels, recipe.distortions, moments, device=device)


def evaluate_logits(logits: Tensor, data: PixelSet) -> Evaluation:
    """Compare the most probable classes with the labels."""
    names = data.classes
    return score_predictions(
        [names[label] for label in data.labels.tolist()],
        [names[label] for label in logits.argmax(dim=1).tolist()],
        names,
    )
