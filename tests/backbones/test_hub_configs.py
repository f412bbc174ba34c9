"""What repositories say of their networks, in the forms that transformers and timm have given it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quickstudy.backbones.graphs.preprocessing import PREPROCESSINGS, Preprocessing
from quickstudy.backbones.sources.hub_configs import FILTERS, read_configs
from quickstudy.errors import BackboneError

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
DINO = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_rescale": True,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
    **IMAGENET,
}
TIMM = {
    "architecture": "mobilenetv4_conv_small",
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": IMAGENET["image_mean"],
        "std": IMAGENET["image_std"],
    },
}


@pytest.mark.parametrize(
    ("values", "size", "crop", "filter_", "told"),
    [
        (DINO, 224, 224 / 256, "bicubic", "bicubic, to 256 pixels on the shorter side, of which the middle 224"),
        ({"size": {"height": 224, "width": 224}, "resample": 2, **HALVES}, 224, 1, "bilinear", "as quickstudy does"),
        ({"size": 224, "resample": 2, **HALVES}, 224, 1, "bilinear", "as quickstudy does"),  # ViT's first form
        (
            {"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 1, **HALVES},
            224,
            1,
            "lanczos",
            "shorter side",
        ),  # CLIP's form
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3, **IMAGENET},
            224,
            0.875,
            "bicubic",
            "256 pixels",
        ),
        (
            {"size": {"shortest_edge": 384}, "crop_pct": 1.0, "resample": 0, **IMAGENET},
            384,
            1,
            "nearest",
            "as quickstudy does",
        ),
        ({"size": {"shortest_edge": 224}, "resample": 5, **HALVES}, 224, 1, "own", "its own arithmetic"),
        ({"do_resize": False, **HALVES}, None, 1, "own", ""),
        ({}, None, 1, "own", ""),
    ],
)
def test_sizes_crops_and_filters(
    values: dict[str, Any], size: int | None, crop: float, filter_: str, told: str
) -> None:
    described = read_configs({}, values)
    assert described.size == size
    assert described.crop == crop
    assert described.resize == FILTERS[filter_]
    assert told in described.resizing
    assert (described.fit == "squash") == ("as quickstudy does" in told)


def test_scales() -> None:
    black, white = (np.full((1, 1, 1, 3), level, np.uint8) for level in (0, 255))
    cases: list[tuple[dict[str, Any], Preprocessing | None]] = [
        (DINO, PREPROCESSINGS["torch"]),
        ({"size": 224, **HALVES}, PREPROCESSINGS["tf"]),
        ({"size": 224, "do_normalize": False}, Preprocessing(low=0, high=1)),
        ({"size": 224, "do_rescale": False, "do_normalize": False}, PREPROCESSINGS["none"]),
        (
            {"size": 224, "rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False},
            PREPROCESSINGS["tf"],
        ),
        # EfficientNet's divides by the deviation twice.
        (
            {"size": 224, "include_top": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            Preprocessing(low=0, high=1, mean=(0.5,), std=(0.25,)),
        ),
        ({"size": 224, "do_normalize": False, "do_flip_channel_order": True}, Preprocessing(low=0, high=1, bgr=True)),
    ]
    for values, expected in cases:
        found = read_configs({}, values).preprocessing
        assert found is not None
        assert expected is not None
        assert found.bgr == expected.bgr
        for image in (black, white):
            np.testing.assert_allclose(found.apply(image), expected.apply(image), atol=1e-6)
    assert read_configs({}, {}).preprocessing is None


def test_timm_says_it_in_its_own_way() -> None:
    described = read_configs(TIMM, {})
    assert (described.size, described.crop, described.preprocessing) == (224, 0.875, PREPROCESSINGS["torch"])
    assert "bicubic, to 256 pixels" in described.resizing


@pytest.mark.parametrize(
    ("config", "take", "patch", "registers", "first"),
    [
        ({"model_type": "vit", "patch_size": 16}, "cls", 16, None, "image_embeds"),
        ({"model_type": "dinov2", "patch_size": 14}, "both", 14, None, "image_embeds"),
        ({"model_type": "dinov3_vit", "patch_size": 16, "num_register_tokens": 4}, "cls", 16, 4, "image_embeds"),
        ({"model_type": "siglip", "vision_config": {"patch_size": 16}}, "both", 16, None, "pooler_output"),
        ({"model_type": "clip", "vision_config": {"patch_size": 32}}, "cls", 32, None, "image_embeds"),
        ({"model_type": "beit", "patch_size": 16}, "mean", 16, None, "image_embeds"),
        ({"model_type": "something_new"}, "both", None, None, "image_embeds"),
    ],
)
def test_families_and_their_tokens(
    config: dict[str, Any], take: str, patch: int | None, registers: int | None, first: str
) -> None:
    described = read_configs(config, {})
    assert (described.tokens.usual, described.tokens.patch, described.tokens.registers) == (take, patch, registers)
    assert described.outputs[0] == first


@pytest.mark.parametrize(
    ("changes", "size", "crop", "filter_"),
    [
        ({}, 224, 224 / 256, "bicubic"),
        ({"crop_pct": 0.9}, 224, 224 / 248, "bicubic"),  # 248.9, rounded down
        ({"crop_mode": "squash", "crop_pct": 0.9}, 224, 224 / 248, "bicubic"),  # the middle of a squeezed photo
        ({"crop_pct": 1.0, "interpolation": "bilinear"}, 224, 1, "bilinear"),
        ({"crop_mode": "squash", "crop_pct": 1.0}, 224, 1, "bicubic"),
        ({"interpolation": "random"}, 224, 224 / 256, "bilinear"),
    ],
)
def test_what_timm_says_is_what_its_transform_does(
    changes: dict[str, Any], size: int, crop: float, filter_: str
) -> None:
    described = read_configs({"pretrained_cfg": {**TIMM["pretrained_cfg"], **changes}}, {})
    assert (described.size, described.crop, described.resize) == (size, crop, f"torchvision-{filter_}-1")
    assert described.fit == ("squash" if changes.get("crop_mode") == "squash" and crop == 1 else "crop")


def test_names_of_classes() -> None:
    assert read_configs({"id2label": {"0": "cat", "1": "dog"}}, {}).classes == ("cat", "dog")
    assert read_configs({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, {}).classes is None
    assert read_configs({"id2label": {"0": "cat", "2": "dog"}}, {}).classes is None


@pytest.mark.parametrize(
    "values",
    [
        {"size": {"height": 224, "width": 112}, **HALVES},
        {"size": "large", **HALVES},
        {"size": 224, "image_mean": [0.5, 0.5], "image_std": [0.5, 0.5]},
        {"size": 224, "image_mean": [0.5], "image_std": "none"},
    ],
)
def test_what_cannot_be_meant_is_told(values: dict[str, Any]) -> None:
    with pytest.raises(BackboneError, match=r"preprocessor_config\.json"):
        read_configs({}, values)
