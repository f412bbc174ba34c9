"""Backbones from timm, the collection of PyTorch image models.

It needs timm, which needs torchvision. timm knows how each of its networks was trained to see images, and that goes
into the graph.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.cleaning import find_image_input
from quickstudy.backbones.graph_import import Imported, import_graph
from quickstudy.backbones.preprocessing import Preprocessing
from quickstudy.backbones.torch_export import export_module
from quickstudy.backbones.untrusted import first_line
from quickstudy.errors import BackboneError
from quickstudy.extras import installation_of

if TYPE_CHECKING:
    import torch


def import_timm(
    name: str,
    *,
    weights: Path | None = None,
    top: bool = True,
    size: int | None = None,
    classes: Sequence[str] | None = None,
) -> Imported:
    """Make a backbone of one of timm's networks.

    Args:
        name: name of the network as timm has it, such as `resnet18.a1_in1k`.
        weights: a file with a state dict; left out, timm's own, which it downloads once.
        top: whether the backbone shall have the classifier.
        size: side of the input in pixels; left out, that of the network's training.
        classes: names of the classes; left out, ImageNet's where there are 1,000.

    Raises:
        BackboneError: timm is missing or has no such network, or weights cannot be had or do not fit.
    """
    timm = _timm()
    import torch

    if not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), 5)
        raise BackboneError(f"timm has no network '{name}'; there are: {', '.join(close) or 'see timm.list_models()'}")
    arguments: dict[str, Any] = {"pretrained": weights is None, "exportable": True}
    if not top:
        arguments["num_classes"] = 0
    elif classes is not None and weights is not None:
        arguments["num_classes"] = len(classes)
    try:
        model = timm.create_model(name, **arguments)
    except Exception as error:  # timm and the hub raise many kinds
        raise BackboneError(
            f"timm cannot build '{name}': {first_line(error)}. Without a network, name a file with --weights"
        ) from None
    if weights is not None:
        _load_weights(model, weights)
    config = timm.data.resolve_model_data_config(model)
    size = size or int(config["input_size"][1])
    mean, std = (tuple(float(value) for value in config[part]) for part in ("mean", "std"))
    graph = export_module(model, torch.zeros(1, 3, size, size))

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        with torch.no_grad():
            return np.concatenate([model(one[None]).numpy() for one in batch])

    imported = import_graph(
        graph,
        find_image_input(graph, layout="NCHW"),
        reference=run,
        preprocessing=Preprocessing(low=0, high=1, mean=mean, std=std),
        classes=classes,
    )
    return replace(
        imported,
        name=re.sub(r"[^a-z0-9]+", "_", name.lower()),
        origin=f"timm:{name}" + (f" with the weights of {weights.name}" if weights else ""),
    )


def _timm() -> Any:
    try:
        import timm
        import timm.data
    except Exception as error:  # torchvision without its compiled part raises RuntimeError
        raise BackboneError(
            f"timm: needs timm with torch and torchvision, which cannot be imported here ({first_line(error)}); "
            f"install them: {installation_of('timm')}"
        ) from None
    return timm


def _load_weights(model: torch.nn.Module, path: Path) -> None:
    """Load a network's weights, reading only tensors from the file: torch's restricted unpickler refuses all else."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state.get("state_dict", state))
    except Exception as error:  # torch raises many kinds
        raise BackboneError(f"'{path}' does not hold the network's weights: {first_line(error)}") from None
