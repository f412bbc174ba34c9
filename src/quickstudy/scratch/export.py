"""Export of a run as the same kind of `.onnx` model that retraining gives: crop, standardisation and softmax inside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from quickstudy.backbones.graphs.cleaning import BATCH, rename
from quickstudy.backbones.graphs.runtime import open_session, optimised
from quickstudy.backbones.sources.torch_export import export_module
from quickstudy.errors import ModelError, RunError
from quickstudy.files import as_path
from quickstudy.images.decoding import InputSpec
from quickstudy.models.assemble import save_model
from quickstudy.models.format import GOLDEN_TOLERANCE, golden_images, model_path
from quickstudy.models.loading import require_own_place
from quickstudy.scratch.data import DataFacts
from quickstudy.scratch.evaluation import averaged_logits
from quickstudy.scratch.folder import RunFolder
from quickstudy.scratch.layers import evaluation_mode
from quickstudy.scratch.recipe import Recipe
from quickstudy.scratch.state import TrainingState

_GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601), as Pillow converts to grey."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A model that a checkpoint of a run was written as."""

    model: Path
    """Path of the model."""
    step: int
    """Number of steps that had been made."""
    steps: int | None
    """Number of steps of the whole run; None where the run does not say."""


def export(run: str | Path, output: str | Path | None = None, *, checkpoint: str = "newest") -> Exported:
    """Write a checkpoint of a run as a model, with averaged parameters where the recipe has them.

    Args:
        run: the run's folder.
        output: path of the model; None: `model.onnx` in the run's folder.
        checkpoint: `newest`, `best` (on the validation images), or the number of a step.

    Raises:
        OptionError: there is no such checkpoint.
        RunError: there is no such run, or it has no checkpoint that is whole.
        BackboneError: torch cannot export the network.
        ModelError: the model does not give what torch gives, or cannot be written.
        WriteError: there is another file in its place.
    """
    place = None if output is None else model_path(output)
    folder = RunFolder.existing(as_path(run))
    path = place or folder.path / "model.onnx"
    require_own_place(path, "model of a run", lambda said: "recipe" in said)
    recipe, facts = folder.recipe(), folder.facts()
    chosen = folder.checkpoint(checkpoint)
    if chosen is None:
        raise RunError(f"'{run}' has no checkpoint that is whole; nothing can be exported yet")
    state = TrainingState(
        recipe, side=facts.side, channels=facts.channels, classes=len(facts.classes), device=torch.device("cpu")
    )
    state.load_state_dict(chosen.state)
    spec = InputSpec(size=facts.side)
    images = golden_images(spec)
    with state.averages_applied():
        classifier = _Classifier(state.network, recipe, facts)
        with evaluation_mode(classifier), torch.inference_mode():
            expected = classifier(torch.from_numpy(images)).numpy()
        graph = _to_onnx(classifier, torch.from_numpy(images))
    session = open_session(graph.SerializeToString())
    # One by one and all together: the exporter can take the number of images for a constant.
    given = [session.run(["probabilities"], {"image": some})[0] for some in (images, *np.split(images, len(images)))]
    difference = float(np.abs(np.concatenate(given) - np.concatenate([expected, expected])).max())
    if not difference <= GOLDEN_TOLERANCE:
        raise ModelError(
            f"The exported model differs from torch by {difference:.1e}; it was not written. Please report this"
        )
    result = folder.result()
    last = result is not None and result["steps"] == chosen.step
    save_model(
        path,
        graph,
        input_spec=spec,
        classes=facts.classes,
        expected=expected,
        origin={"recipe": recipe.to_dict()},
        training={
            "data": recipe.data,
            "data_fingerprint": facts.fingerprint,
            "steps": chosen.step,
            "finished": last,
            "test": result["test"] if result is not None and last else None,
        },
        roles=facts.roles,
    )
    return Exported(model=path, step=chosen.step, steps=result["steps"] if result else recipe.steps or None)


class _Classifier(nn.Module):
    """Takes uint8 images as they come from a decoder (N×S×S×3) to probabilities (N×classes)."""

    grey: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, recipe: Recipe, facts: DataFacts) -> None:
        super().__init__()
        self.network, self.recipe, self.facts = network, recipe, facts
        self.augmentation = recipe.augmentation
        self.register_buffer("grey", torch.tensor(_GREY).reshape(1, 3, 1, 1))
        self.register_buffer("mean", torch.tensor(facts.moments.mean).reshape(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(facts.moments.deviation).reshape(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Do what evaluation does."""
        side = self.augmentation.output_side(self.facts.side)
        start = (self.facts.side - side) // 2
        x = image[:, start : start + side, start : start + side].permute(0, 3, 1, 2).float()
        if self.facts.channels == 1:
            x = (x * self.grey).sum(dim=1, keepdim=True)
        if self.augmentation.standardise == "image":
            x = x - x.mean(dim=(1, 2, 3), keepdim=True)
            deviation = x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            x = x / deviation.clamp(min=1 / math.sqrt(x[0].numel()))
        elif self.augmentation.standardise == "set":
            x = (x - self.mean) / self.deviation
        else:
            x = x / 255
        logits = averaged_logits(
            self.network,
            x,
            mirrored=self.recipe.mirrored_test,
            shifted=self.recipe.shifted_test,
            lead=self.recipe.unsure_lead,
        )
        probabilities: Tensor = logits.softmax(dim=1)
        return probabilities


def _to_onnx(classifier: nn.Module, images: Tensor) -> onnx.ModelProto:
    with evaluation_mode(classifier):
        model = optimised(export_module(classifier, images, any_batch=True))
    [given], [made] = model.graph.input, model.graph.output
    for info in (given, made):
        info.type.tensor_type.shape.dim[0].dim_param = BATCH
    del model.graph.value_info[:]  # with other names of the batch
    rename(model.graph, {given.name: "image", made.name: "probabilities"})
    return model
