"""Reads what repositories on the hub say of their networks: `config.json` and `preprocessor_config.json`.

They are transformers' (its image processors' and models' options) or timm's (`pretrained_cfg`). They say what becomes
of bytes, of which part of an image, and what the tokens are. quickstudy resizes by its own arithmetic (see
`quickstudy.images.decoding`), so an image of another size than the network's comes out near to theirs, not equal to
the bit; what differs is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quickstudy.backbones.cleaning import IMAGE_OUTPUTS
from quickstudy.backbones.preprocessing import Preprocessing
from quickstudy.backbones.tokens import Tokens
from quickstudy.errors import BackboneError

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
_POOLERS = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model", "convnext", "convnextv2")
_RESAMPLINGS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers
_LARGEST_CROPPED = 384  # ConvNeXt's processors crop below it, and squash from it on


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a repository says of its network."""

    size: int | None
    """Side of the input in pixels; None where nothing is said."""
    crop: float
    """Side of the centred square that the network is for, as a share of the image's shorter side."""
    preprocessing: Preprocessing | None
    """What becomes of bytes; None where nothing is said."""
    tokens: Tokens
    """What the tokens are and which of them the family takes."""
    outputs: tuple[str, ...]
    """Names of outputs of which one is taken where there are several, best first."""
    classes: tuple[str, ...] | None
    """Names of classes in the order of scores; None where nothing is said."""
    resizing: str
    """How images are asked to be resized, and what quickstudy does instead, for people; empty where nothing is said."""


def describe(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> Described:
    """Gather what the two files say.

    Args:
        config: what `config.json` holds; empty where there is none.
        preprocessor: what `preprocessor_config.json` holds; empty where there is none.

    Raises:
        BackboneError: a value is none that can be meant.
    """
    timm = config.get("pretrained_cfg")
    try:
        if isinstance(timm, Mapping) and not preprocessor:
            size, crop, preprocessing, resizing = _read_timm(timm)
        else:
            size, crop, preprocessing, resizing = _read_processor(preprocessor)
        vision = config.get("vision_config", config)
        family = str(config.get("model_type", ""))
        return Described(
            size=size or _whole(vision.get("image_size")),
            crop=crop,
            preprocessing=preprocessing,
            tokens=Tokens(
                usual=_TAKES.get(str(vision.get("model_type", family)), _TAKES.get(family, "both")),
                patch=_whole(vision.get("patch_size")),
                registers=_whole(vision.get("num_register_tokens")),
            ),
            outputs=IMAGE_OUTPUTS[::-1] if family in _POOLERS else IMAGE_OUTPUTS,
            classes=_classes(config.get("id2label")),
            resizing=resizing,
        )
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, ZeroDivisionError) as error:
        raise BackboneError(
            f"config.json or preprocessor_config.json of the repository cannot be understood: {error}; name another "
            "repository, or add its .onnx file by itself with --size and --preprocessing"
        ) from None


def _read_processor(values: Mapping[str, Any]) -> tuple[int | None, float, Preprocessing | None, str]:
    """Read transformers' image processors: size, crop, preprocessing, and how images are resized."""
    if not values:
        return None, 1.0, None, ""
    factor = float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0
    low = -1.0 if values.get("rescale_offset") else 0.0
    normalises = values.get("do_normalize", True) and values.get("image_mean") is not None
    preprocessing = Preprocessing(
        low=low,
        high=low + 255 * factor,
        mean=_numbers(values["image_mean"]) if normalises else (0.0,),
        std=_numbers(values["image_std"]) if normalises else (1.0,),
        bgr=bool(values.get("do_flip_channel_order", False)),
    )
    cropped = _side(values["crop_size"]) if values.get("do_center_crop") and values.get("crop_size") else None
    given = values.get("size")
    if not values.get("do_resize", True) or given is None:
        return cropped, 1.0, preprocessing, ""
    shortest = given.get("shortest_edge") if isinstance(given, Mapping) else given if cropped else None
    side = int(shortest) if shortest else _side(given)
    how = _RESAMPLINGS.get(values.get("resample", 2), "bilinear")
    if shortest and "crop_pct" in values:
        cropped, side = side, (side if side >= _LARGEST_CROPPED else int(side / float(values["crop_pct"])))
        if side == cropped:
            return side, 1.0, preprocessing, _resizing(how, "to the square, whatever the shape", squashes=True)
    if shortest:
        crop = min(1.0, (cropped or side) / side)
        return cropped or side, crop, preprocessing, _resizing(how, _edges(side, cropped or side))
    told = f"to {side}×{side} pixels, whatever the shape"
    if cropped and cropped < side:
        return cropped, cropped / side, preprocessing, _resizing(how, f"{told}, of which the middle {cropped}")
    return side, 1.0, preprocessing, _resizing(how, told, squashes=True)


def _read_timm(values: Mapping[str, Any]) -> tuple[int | None, float, Preprocessing | None, str]:
    """Read timm's `pretrained_cfg`, as `_read_processor` reads transformers' files."""
    side, crop = int(values["input_size"][1]), float(values.get("crop_pct") or 1)
    preprocessing = Preprocessing(low=0, high=1, mean=_numbers(values["mean"]), std=_numbers(values["std"]))
    how = str(values.get("interpolation", "bicubic"))
    if values.get("crop_mode") == "squash":
        return side, 1.0, preprocessing, _resizing(how, "to the square, whatever the shape", squashes=True)
    return side, min(1.0, crop), preprocessing, _resizing(how, _edges(math.floor(side / crop), side))


def _edges(shorter: int, middle: int) -> str:
    return f"to {shorter} pixels on the shorter side" + (f", of which the middle {middle}" if middle < shorter else "")


def _resizing(how: str, told: str, *, squashes: bool = False) -> str:
    instead = "quickstudy takes the same part, bilinearly by its own arithmetic"
    if squashes:
        instead = "quickstudy takes the centred square, bilinearly; retrain --fit squash takes all"
    return f"asked for: {how}, {told}; {instead}: near to it, not equal to the bit"


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
