"""Precision of a network on a whole pixel set: every image counts, with averaged parameters unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quickstudy.images.pixels import PixelSet
from quickstudy.retraining.evaluation import Evaluation, score_predictions
from quickstudy.training.distortions import Distortions, Moments
from quickstudy.training.pipeline import evaluation_batches


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network is in evaluation mode, without gradients, inside this context."""
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(training)


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


def evaluate_logits(logits: Tensor, data: PixelSet) -> Evaluation:
    """Compare the most probable classes with the labels."""
    names = data.classes
    return score_predictions(
        [names[label] for label in data.labels.tolist()],
        [names[label] for label in logits.argmax(dim=1).tolist()],
        names,
    )
