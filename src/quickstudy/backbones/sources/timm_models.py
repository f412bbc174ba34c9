"""Backbones from timm, the collection of PyTorch image models.

It needs timm, which needs torchvision. timm knows how each of its networks was trained to see images: scale, size, the
part of an image, and the filter by which it is resized. That goes into the graph and the input specification. timm's
weights are on the hub, and are fetched from there as safetensors, as those of any repository of timm's form are.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import name_of
from quickstudy.backbones.graphs.cleaning import find_image_input
from quickstudy.backbones.sources.graph_import import Imported, import_graph
from quickstudy.backbones.sources.hub import WEIGHTS, Fetched, HubPlace, fetched
from quickstudy.backbones.sources.hub_configs import read_configs
from quickstudy.backbones.sources.torch_export import export_module
from quickstudy.errors import BackboneError, MissingExtraError, first_line
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
        weights: a file with a state dict; left out, timm's own, which come from the hub.
        top: whether the backbone shall have the classifier.
        size: side of the input in pixels; left out, that of the network's training.
        classes: names of the classes; left out, ImageNet's where there are 1,000.

    Raises:
        MissingExtraError: timm is missing, or the weights are on the hub and `huggingface_hub` is.
        BackboneError: timm has no such network, or weights cannot be had or do not fit.
        DownloadError: the hub cannot be reached.
    """
    timm = _timm()
    if not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), 5)
        raise BackboneError(f"timm has no network '{name}'; there are: {', '.join(close) or 'see timm.list_models()'}")
    if weights is None:
        known = timm.get_pretrained_cfg(name)
        repository = known.hf_hub_id if known is not None else None
        if not repository:
            raise BackboneError(f"timm knows no weights on the hub for '{name}'; name a file of yours with --weights")
        with fetched(HubPlace(repository=repository, path=WEIGHTS)) as hub:
            imported = import_timm_from_hub(hub, top=top, size=size, classes=classes)
        return replace(imported, name=name_of(name), origin=f"timm:{name}, {hub.origin}", licence=hub.licence)
    number = {"num_classes": 0} if not top else {"num_classes": len(classes)} if classes is not None else {}
    model = _created(name, pretrained=False, **number)
    _load_weights(model, weights)
    imported = _import(model, timm.data.resolve_model_data_config(model), size, classes)
    return replace(imported, name=name_of(name), origin=f"timm:{name} with the weights of {weights.name}")


def import_timm_from_hub(
    hub: Fetched, *, top: bool = True, size: int | None = None, classes: Sequence[str] | None = None
) -> Imported:
    """Make a backbone of a repository that timm's `push_to_hf_hub` has written.

    Args:
        hub: its `config.json`, which names the architecture, and its weights.
        top: whether the backbone shall have the classifier.
        size: side of the input in pixels; left out, what `pretrained_cfg` says.
        classes: names of the classes; left out, those in `config.json`, or ImageNet's where there are 1,000.

    Raises:
        MissingExtraError: timm is missing.
        BackboneError: timm has no such architecture, or the weights do not fit.
    """
    timm = _timm()
    name, config = str(hub.config.get("architecture")), dict(hub.config.get("pretrained_cfg") or {})
    if not timm.is_model(name):
        raise BackboneError(f"timm {timm.__version__} has no network '{name}', which config.json names; upgrade timm")
    # From this file, whatever else the configuration says of where weights are.
    known = {key: config.get(key) for key in ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")}
    fixed = {key: config[key] for key in ("first_conv", "classifier", "pool_size", "fixed_input_size") if key in config}
    known |= {"num_classes": hub.config.get("num_classes", config.get("num_classes")), "file": str(hub.file), **fixed}
    arguments = dict(hub.config.get("model_args") or {})
    if pooling := hub.config.get("global_pool"):
        arguments["global_pool"] = pooling
    if not top:
        arguments["num_classes"] = 0
    if size is not None and config.get("fixed_input_size"):
        arguments["img_size"] = size
    wanted = {key: value for key, value in known.items() if value is not None}
    model = _created(name, pretrained=True, pretrained_cfg=wanted, **arguments)
    labels = hub.config.get("label_names")
    own = tuple(map(str, labels)) if isinstance(labels, list) and not classes else None
    return _import(model, timm.data.resolve_model_data_config(model), size, classes, own)


def _import(
    model: torch.nn.Module,
    config: Mapping[str, Any],
    size: int | None,
    classes: Sequence[str] | None,
    own_classes: Sequence[str] | None = None,
) -> Imported:
    import torch

    told = read_configs({"pretrained_cfg": config}, {})
    size = size or told.size or 224
    graph = export_module(model, torch.zeros(1, 3, size, size), any_batch=True)

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        with torch.no_grad():
            return np.concatenate([model(one[None]).numpy() for one in batch])

    imported = import_graph(
        graph,
        find_image_input(graph, layout="NCHW"),
        reference=run,
        preprocessing=told.preprocessing,
        classes=classes,
        own_classes=own_classes,
    )
    return replace(
        imported,
        input_spec=replace(imported.input_spec, crop=told.crop, fit=told.fit, resize=told.resize),
        prefix_tokens=int(getattr(model, "num_prefix_tokens", 0)),
        found={**imported.found, "resizing": told.resizing},
    )


def _created(name: str, **arguments: Any) -> torch.nn.Module:
    try:
        model: torch.nn.Module = _timm().create_model(name, exportable=True, **arguments)
    except Exception as error:  # timm, torch and safetensors raise many kinds
        raise BackboneError(f"timm cannot build '{name}': {first_line(error)}") from None
    return model.eval()


def _timm() -> Any:
    try:
        import timm
        import timm.data
    except Exception as error:  # torchvision without its compiled part raises RuntimeError
        raise MissingExtraError(
            f"timm: needs timm with torch and torchvision, which cannot be imported here ({first_line(error)}); "
            f"install them: {installation_of('timm')}"
        ) from None
    return timm


def _load_weights(model: torch.nn.Module, path: Path) -> None:
    """Load a network's weights, reading only tensors from the file: torch's restricted unpickler refuses all else."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state.get("state_dict", state))
    except Exception as error:  # torch raises many kinds
        raise BackboneError(f"'{path}' does not hold the network's weights: {first_line(error)}") from None
