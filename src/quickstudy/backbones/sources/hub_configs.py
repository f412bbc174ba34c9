"""Reads what repositories on the hub say of their networks: `config.json` and `preprocessor_config.json`.

They are transformers' (its image processors' and models' options) or timm's (`pretrained_cfg`). They say what becomes
of bytes, of which part of an image, by which of Pillow's filters it is resized, and what the tokens are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quickstudy.backbones.graphs.cleaning import IMAGE_OUTPUTS
from quickstudy.backbones.graphs.preprocessing import Preprocessing
from quickstudy.backbones.graphs.tokens import Tokens
from quickstudy.errors import BackboneError
from quickstudy.images.decoding import OWN_RESIZE, Resize
from quickstudy.images.fits import Fit

# What each family's own classifiers and published linear heads take of the tokens, in transformers' code.
_TAKES = {
    "vit": "cls",
    "deit": "cls",
    "clip": "cls",
    "clip_vision_model": "cls",
    "dinov3_vit": "cls",
    "dinov2": "both",
    "dinov2_with_registers": "both",
    "beit": "mean",
    "data2vec-vision": "mean",
}
# What their classifiers take is `pooler_output`: attention over all tokens, or a normalisation of the pooled map.
_POOLERS = (
    *("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model"),
    *("convnext", "convnextv2", "dinov3_convnext", "efficientnet", "regnet", "resnet", "swin", "swinv2"),
)
FILTERS: dict[str, Resize] = {
    "own": OWN_RESIZE,
    "nearest": "pillow-nearest-1",
    "bilinear": "pillow-bilinear-1",
    "bicubic": "pillow-bicubic-1",
    "lanczos": "pillow-lanczos-1",
}
"""The ways to resize, by the names that people have for them; all but quickstudy's own are Pillow's."""
_FILTERS_OF_TIMM: dict[str, Resize] = {
    "bilinear": "torchvision-bilinear-1",
    "bicubic": "torchvision-bicubic-1",
    "random": "torchvision-bilinear-1",
}
_PILLOWS_NUMBERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_LARGEST_CROPPED = 384  # ConvNeXt's processors crop below it, and squash from it on


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a repository says of its network."""

    size: int | None
    """Side of the input in pixels; None where nothing is said."""
    crop: float
    """Side of the centred square that the network is for, as a share of the image's shorter side."""
    fit: Fit
    """What becomes of images that are not square: `squash` where they are resized to a square whatever their shape."""
    resize: Resize
    """The arithmetic by which images are resized; quickstudy's own where nothing is said."""
    preprocessing: Preprocessing | None
    """What becomes of bytes; None where nothing is said."""
    tokens: Tokens
    """What the tokens are and which of them the family takes."""
    outputs: tuple[str, ...]
    """Names of outputs of which one is taken where there are several, best first."""
    classes: tuple[str, ...] | None
    """Names of classes in the order of scores; None where nothing is said."""
    resizing: str
    """How images are resized, and what quickstudy does otherwise, for people; empty where nothing is said."""


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """How a network sees images, as a repository says it; the fields are those of `Described`."""

    size: int | None = None
    crop: float = 1.0
    fit: Fit = "crop"
    resize: Resize = OWN_RESIZE
    preprocessing: Preprocessing | None = None
    resizing: str = ""


def read_configs(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> Described:
    """Gather what the two files say.

    Args:
        config: what `config.json` holds; empty where there is none.
        preprocessor: what `preprocessor_config.json` holds; empty where there is none.

    Raises:
        BackboneError: a value is none that can be meant.
    """
    timm = config.get("pretrained_cfg")
    try:
        by_timm = isinstance(timm, Mapping) and not preprocessor
        seen = _read_timm(timm) if by_timm else _read_processor(preprocessor)  # type: ignore[arg-type]
        vision = config.get("vision_config", config)
        family = str(config.get("model_type", ""))
        return Described(
            size=seen.size or _whole(vision.get("image_size")),
            crop=seen.crop,
            fit=seen.fit,
            resize=seen.resize,
            preprocessing=seen.preprocessing,
            tokens=Tokens(
                usual=_TAKES.get(str(vision.get("model_type", family)), _TAKES.get(family, "both")),
                patch=_whole(vision.get("patch_size")),
                registers=_whole(vision.get("num_register_tokens")),
            ),
            outputs=IMAGE_OUTPUTS[::-1] if family in _POOLERS else IMAGE_OUTPUTS,
            classes=_classes(config.get("id2label")),
            resizing=seen.resizing,
        )
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, ZeroDivisionError) as error:
        raise BackboneError(
            f"config.json or preprocessor_config.json of the repository cannot be understood: {error}; name another "
            "repository, or add its .onnx file by itself with --size and --preprocessing"
        ) from None


def _read_processor(values: Mapping[str, Any]) -> _Seen:
    """Read the options of one of transformers' image processors."""
    if not values:
        return _Seen()
    factor = float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0
    low = -1.0 if values.get("rescale_offset") else 0.0
    normalises = values.get("do_normalize", True) and values.get("image_mean") is not None
    std = _numbers(values["image_std"]) if normalises else (1.0,)
    if values.get("include_top") and normalises:  # EfficientNet's, which divides twice
        std = tuple(number * number for number in std)
    preprocessing = Preprocessing(
        low=low,
        high=low + 255 * factor,
        mean=_numbers(values["image_mean"]) if normalises else (0.0,),
        std=std,
        bgr=bool(values.get("do_flip_channel_order", False)),
    )
    cropped = _side(values["crop_size"]) if values.get("do_center_crop") and values.get("crop_size") else None
    given = values.get("size")
    if not values.get("do_resize", True) or given is None:
        return _Seen(size=cropped, preprocessing=preprocessing)
    shortest = given.get("shortest_edge") if isinstance(given, Mapping) else given if cropped else None
    side = int(shortest) if shortest else _side(given)
    how = _PILLOWS_NUMBERS.get(values.get("resample", 2), "bilinear")
    if shortest and "crop_pct" in values:
        cropped, side = side, (side if side >= _LARGEST_CROPPED else int(side / float(values["crop_pct"])))
        if side == cropped:
            return _seen(how, FILTERS, side, side, preprocessing, squashes=True)
    return _seen(how, FILTERS, side, min(cropped or side, side), preprocessing, squashes=not shortest)


def _read_timm(values: Mapping[str, Any]) -> _Seen:
    """Read timm's `pretrained_cfg`: its transform for evaluation (`transforms_imagenet_eval`)."""
    side, crop = int(values["input_size"][1]), float(values.get("crop_pct") or 1)
    preprocessing = Preprocessing(low=0, high=1, mean=_numbers(values["mean"]), std=_numbers(values["std"]))
    how = str(values.get("interpolation", "bicubic"))
    squashes = values.get("crop_mode") == "squash"
    return _seen(how, _FILTERS_OF_TIMM, max(side, math.floor(side / crop)), side, preprocessing, squashes=squashes)


def _seen(
    how: str, filters: Mapping[str, Resize], edge: int, middle: int, preprocessing: Preprocessing, *, squashes: bool
) -> _Seen:
    """Describe a resize to `edge` pixels, on the shorter side or both, of which the middle is then cut out."""
    told = f"{how}, to {edge}×{edge} pixels, whatever the shape" if squashes else f"{how}, to {edge} pixels"
    told += "" if squashes else " on the shorter side"
    told += f", of which the middle {middle}" if middle < edge else ""
    resize = filters.get(how)
    if resize is None:
        told += "; quickstudy resizes by its own arithmetic"
    if squashes and middle < edge:
        told += "; quickstudy takes the middle of the centred square, and retrain --fit squash all of it"
    elif squashes:
        told += ", as quickstudy does; retrain --fit crop takes the centred square"
    return _Seen(
        size=middle,
        crop=middle / edge,
        fit="squash" if squashes and middle == edge else "crop",
        resize=resize or OWN_RESIZE,
        preprocessing=preprocessing,
        resizing=told,
    )


def _side(value: Any) -> int:
    """Read the side of a square: a number, or height and width that agree.

    Raises:
        ValueError: it is no square.
    """
    if not isinstance(value, Mapping):
        return int(value)
    height, width = int(value["height"]), int(value["width"])
    if height != width:
        raise ValueError(f"images of {height}×{width} pixels are asked for, and only squares can be used")
    return height


def _whole(value: Any) -> int | None:
    """Return a whole number, and None for all else, such as sides given one by one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _numbers(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in (values if isinstance(values, Sequence) else [values]))
    if len(numbers) not in (1, 3) or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{values} are no values for three channels")
    return numbers


def _classes(labels: Any) -> tuple[str, ...] | None:
    """Read names of classes by number; None where they are none, or stand-ins such as LABEL_0."""
    if not isinstance(labels, Mapping):
        return None
    names = tuple(labels.get(str(number)) for number in range(len(labels)))
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        return None
    return None if names[:1] == ("LABEL_0",) else tuple(str(name) for name in names)
