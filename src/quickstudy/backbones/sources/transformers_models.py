"""Networks of the library transformers, from their weights alone: a safetensors file and `config.json`.

transformers' own code builds the network and knows its weights by name; it is exported as ONNX here, with the names
that Optimum gives outputs, and from there on it is any file from the hub. Nothing is unpickled: weights are read as
safetensors, and only as tensors. No code of a repository is run: what `config.json` says of any (`auto_map`, kernels,
quantisers) is left out before transformers sees it, and only families that transformers itself has are built.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.graphs.comparison import TOLERANCE, sample_images
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.errors import BackboneError, first_line
from quickstudy.extras import require

if TYPE_CHECKING:
    import onnx
    import torch

# What would lead elsewhere: to code or kernels of a repository, to other weights, to another number type.
_LEFT_OUT = (
    "_attn_implementation",
    "attn_implementation",
    "auto_map",
    "backbone",
    "dtype",
    "experts_implementation",
    "quantization_config",
    "torch_dtype",
    "use_kernels",
    "use_pretrained_backbone",
    "use_timm_backbone",
)
_OUTPUTS = ("image_embeds", "logits", "last_hidden_state", "pooler_output")


def export_transformers(config: Mapping[str, Any], weights: Path, target: Path, *, size: int | None, name: str) -> None:
    """Write a network of transformers as an ONNX file, with `pixel_values` as input and Optimum's names of outputs.

    Args:
        config: what `config.json` holds.
        weights: the safetensors file.
        target: the file to write.
        size: side of the input in pixels; left out, what `config` says.
        name: of the repository, for messages.

    Raises:
        MissingExtraError: transformers or torch is not installed.
        BackboneError: transformers has no such family or no network for images in it, the weights do not fit, or what
            was exported differs from the network.
    """
    require("transformers", extra="transformers", what=f"'{name}' has no ONNX file, and making one")
    import onnx
    import torch

    from quickstudy.backbones.sources.torch_export import export_module

    network: Any = _load(config, weights, name)
    own_size = _whole(getattr(getattr(network.config, "vision_config", network.config), "image_size", None))
    size = size or own_size
    if size is None:
        raise BackboneError(
            f"'{name}' does not say of what size its images are; choose one with --size, as in: quickstudy backbone "
            f"add hf:{name} --size 224"
        )
    images = torch.from_numpy(sample_images(size).transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
    # Positions are interpolated where images are of another size than in training, and the network can do it.
    call: Callable[..., Any] = getattr(network, "get_image_features" if _has_towers(config) else "forward")
    more = {"interpolate_pos_encoding": True} if size != own_size and _takes(call, "interpolate_pos_encoding") else {}
    try:
        with torch.no_grad():
            given = _named(call(pixel_values=images[:1], **more), config)
    except Exception as error:  # of whatever the network does with images of this size
        raise BackboneError(
            f"The network of '{name}' cannot be run on an image of {size}×{size} pixels: {first_line(error)}. Take "
            "another repository, or another --size"
        ) from None

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            results = _named(call(pixel_values=pixel_values, **more), config)
            return tuple(results[name] for name in given)

    # In inference mode as a whole: the exporter brings back the mode of what it is given, down to the last layer.
    graph = export_module(Module().eval(), images[1:], any_batch=True)
    for info, output in zip(list(graph.graph.output), given, strict=True):
        _rename(graph, info.name, output)
    _rename(graph, graph.graph.input[0].name, "pixel_values")
    exported = open_session(graph.SerializeToString()).run(list(given), {"pixel_values": images[:1].numpy()})
    pairs = [(found, tensor.numpy()) for found, tensor in zip(exported, given.values(), strict=True)]
    far = max(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30) for found, expected in pairs)
    if not far <= TOLERANCE:
        raise BackboneError(
            f"torch exports the network of '{name}' wrongly: it differs by {far:.1e} of the largest value (tolerance "
            f"{TOLERANCE:.0e}); look on the hub for an ONNX export of it"
        )
    onnx.save(graph, target)


def embed_texts(
    config: Mapping[str, Any], weights: Path, tokens: Sequence[NDArray[np.int64]], *, name: str
) -> tuple[NDArray[np.float32], float, float]:
    """Run the text tower of a network on texts one by one.

    Args:
        config: what `config.json` holds.
        weights: the safetensors file.
        tokens: numbers of each text's tokens (1×T), K texts.
        name: of the repository, for messages.

    Returns:
        The texts' vectors (K×F), and what a cosine is multiplied by, and what is then added, to be a logit.

    Raises:
        BackboneError: the network cannot be built, or has no text tower.
    """
    import torch

    network: Any = _load(config, weights, name)
    if not _has_towers(config):
        raise BackboneError(f"'{name}' has no tower for text; take a network that has one, such as CLIP or SigLIP")
    results = []
    with torch.no_grad():
        for numbers in map(torch.from_numpy, tokens):
            given = network.get_text_features(input_ids=numbers)
            results.append(getattr(given, "pooler_output", given).numpy())
        bias = getattr(network, "logit_bias", None)
        return np.concatenate(results), float(network.logit_scale.exp()), 0.0 if bias is None else float(bias)


def _load(config: Mapping[str, Any], weights: Path, name: str) -> torch.nn.Module:
    """Build a network in inference mode and load its weights."""
    import torch
    import transformers
    from safetensors.torch import load_file
    from transformers.models.auto import modeling_auto as known
    from transformers.utils import logging

    kind = str(config.get("model_type", ""))
    families = {*known.MODEL_FOR_IMAGE_MAPPING_NAMES, *known.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES}
    sees = _has_towers(config) or kind in families or kind.endswith("vision_model")
    if kind not in transformers.CONFIG_MAPPING or not sees:
        family = f"is of the family '{kind}'" if kind else "names no family in config.json"
        raise BackboneError(
            f"'{name}' {family}, of which transformers {transformers.__version__} has no network for images; take "
            "another repository, or one with an ONNX file"
        )
    if kind.startswith("siglip2"):
        raise BackboneError(
            f"'{name}' is SigLIP 2 in its form for any number of patches, which takes no plain images; take one of its "
            "repositories of a fixed size, such as google/siglip2-base-patch16-224"
        )
    named = str(next(iter(config.get("architectures") or ()), ""))
    usable = named.endswith(("Model", "WithProjection", "ForImageClassification")) and not _has_towers(config)
    options = transformers.CONFIG_MAPPING[kind]
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        built = getattr(transformers, named) if usable else transformers.MODEL_MAPPING[options]
        network, told = built.from_pretrained(
            None,
            config=options.from_dict(_plain(config)),
            state_dict=load_file(weights),
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # transformers, torch and safetensors raise many kinds
        raise BackboneError(
            f"The network of '{name}' cannot be built: {first_line(error)}. Take another repository, or one "
            "with an ONNX file"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    # Many repositories have no weights for the layer on top of ViT's, whose output nobody takes.
    missing = sorted(key for key in told["missing_keys"] if not key.startswith("pooler."))
    if missing:
        others = f" and {len(missing) - 1:,} more" if missing[1:] else ""
        raise BackboneError(f"The weights of '{name}' do not fit its config.json: '{missing[0]}'{others} are missing")
    if len(missing) < len(told["missing_keys"]):
        network.pooler = None
    return network.eval()  # type: ignore[no-any-return]


def _has_towers(config: Mapping[str, Any]) -> bool:
    """Say whether a network has a tower for images beside one for text, as CLIP and SigLIP have."""
    from transformers.models.auto import modeling_auto as known

    return config.get("model_type") in known.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES


def _named(given: Any, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Give what a network has given for images by the names that Optimum has for its outputs."""
    if _has_towers(config):
        return {_OUTPUTS[0]: getattr(given, "pooler_output", given)}
    return {name: given[name] for name in _OUTPUTS if given.get(name) is not None}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a configuration, and of those inside it, what would lead elsewhere."""
    return {
        name: _plain(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if name not in _LEFT_OUT
    }


def _takes(function: Callable[..., Any], argument: str) -> bool:
    return argument in inspect.signature(function).parameters


def _whole(side: Any) -> int | None:
    return side if isinstance(side, int) and side > 0 else None


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    graph = model.graph
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for info in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        info.name = new if info.name == old else info.name
