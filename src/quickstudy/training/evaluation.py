"""Precision of a network on a whole pixel set: every image counts, with averaged parameters unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quickstudy.images.pixels import PixelSet
from quickstudy.retraining.evaluation import Evaluation, score_predictions
from quickstudy.training.distortions import Distortions, Moments
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
    data: PixelSet,
    distortions: Distortions,
    moments: Moments,
    *,
    mirrored: bool = False,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """The logits of all images, N×classes in float32 on the CPU; with `mirrored`, averaged with the mirror images'."""
    device = next(network.parameters()).device
    rows = []
    with evaluating(network), torch.autocast(device.type, precision, enabled=precision is not torch.float32):
        for images in evaluation_batches(data.pixels, distortions, moments, device=device):
            logits = network(images).float()
            if mirrored:
                logits = (logits + network(images.flip(-1)).float()) / 2
            rows.append(logits.cpu())
    return torch.cat(rows)


def evaluate_state(
    state: TrainingState, recipe: Recipe, data: PixelSet, moments: Moments, *, averaged: bool = True
) -> Evaluation:
    """How good a network is as it stands: as its recipe evaluates, with averaged parameters where it has them."""
    with state.averages_applied(averaged):
        logits = logits_of(
            state.network,
            data,
            recipe.distortions,
            moments,
            mirrored=recipe.mirrored_test,
            precision=state.precision,
        )
    return evaluate_logits(logits, data)


def evaluate_logits(logits: Tensor, data: PixelSet) -> Evaluation:
    """Compare the most probable classes with the labels."""
    names = data.classes
    return score_predictions(
        [names[label] for label in data.labels.tolist()],
        [names[label] for label in logits.argmax(dim=1).tolist()],
        names,
    )
