"""Precision of a network on a whole pixel set: every image counts, with averaged parameters unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

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
    shifted: int = 0,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """The logits of all images in `batches`, N×classes in float32 on the CPU; see `averaged_logits`."""
    device = next(network.parameters()).device
    with evaluating(network), torch.autocast(device.type, precision, enabled=precision is not torch.float32):
        rows = [averaged_logits(network, images, mirrored=mirrored, shifted=shifted).cpu() for images in batches]
    return torch.cat(rows)


def averaged_logits(network: nn.Module, images: Tensor, *, mirrored: bool, shifted: int) -> Tensor:
    """Logits (N×classes, float32) of images (N×C×S×S): means over an image and what else it could have looked like.

    Args:
        network: in evaluation mode.
        images: as it takes them.
        mirrored: average with the mirror image.
        shifted: average with copies that are shifted by so many pixels, borders mirrored (Jordan, 2024,
            arXiv:2404.00498, whose weights these are).
    """

    def logits_at(view: Tensor) -> Tensor:
        logits: Tensor = network(view).float()
        return (logits + network(view.flip(-1)).float()) / 2 if mirrored else logits

    logits, side = logits_at(images), images.shape[-1]
    if not shifted:
        return logits
    wider = functional.pad(images, [shifted] * 4, mode="reflect")
    copies = [logits_at(wider[:, :, at : at + side, at : at + side]) for at in (0, 2 * shifted)]
    return logits / 2 + (copies[0] + copies[1]) / 4


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
            shifted=recipe.shifted_test,
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
