"""timm's own networks, with random weights, give as backbones what they give by themselves, transform included.

They run where timm can be imported, which needs torchvision.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_networks import run
from test_transformers import add, assert_trains_after_its_first_cut, drawn_photos

from quickstudy.backbones.graphs.untrusted import check_graph
from quickstudy.images.decoding import to_input

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm", reason="timm is not installed")
data = pytest.importorskip("timm.data", reason="timm cannot be imported", exc_type=Exception)
safetensors = pytest.importorskip("safetensors.torch")

SIZE, TOLERANCE = 64, 1e-5  # of the largest value
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": SIZE}
NETWORKS: dict[str, dict[str, Any]] = {
    "mobilenetv4_conv_small": {},
    "tf_efficientnetv2_b0": {"channel_multiplier": 0.25},
    "convnextv2_atto": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
    "vit_small_patch14_dinov2": {**SMALL, "img_size": 70},
    "vit_small_patch14_reg4_dinov2": {**SMALL, "img_size": 70},
    "vit_small_patch16_dinov3": SMALL,
    "vit_base_patch16_siglip_224": SMALL,
    "vit_base_patch16_clip_224": SMALL,
    "beit_base_patch16_224": SMALL,
    "beitv2_base_patch16_224": SMALL,
    "eva02_tiny_patch14_224": {**SMALL, "img_size": 70},
    "swinv2_tiny_window8_256": {
        "embed_dim": 12,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "img_size": 64,
        "window_size": 4,
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_timm_equals_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    torch.manual_seed(0)
    options = NETWORKS[name]
    model = timm.create_model(name, pretrained=False, num_classes=5, **options)
    size = options.get("img_size", SIZE)
    config = {**model.pretrained_cfg, "input_size": [3, size, size], "crop_pct": 0.9, "num_classes": 5}
    transform = data.create_transform(**data.resolve_data_config(pretrained_cfg=config))
    images = drawn_photos()
    pixels = torch.stack([transform(image) for image in images])
    # Far enough from the start to be like trained ones, where rounding does not yet grow from layer to layer.
    plain = not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules())
    with torch.no_grad():
        for weights in model.parameters():
            weights += (0.05 if plain else 0.01) * torch.randn_like(weights)
    model.eval()
    described = {"architecture": name, "num_classes": 5, "model_args": options, "pretrained_cfg": config}
    weights = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    files = {"model.safetensors": safetensors.save(weights), "config.json": json.dumps(described).encode()}
    added = add(files, tmp_path, monkeypatch)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True).numpy()
        scores = model(pixels).softmax(1).numpy()
    shown = np.stack([to_input(np.asarray(image), added.input) for image in images])
    given = run(added.path, "features", shown)
    assert np.abs(given - expected).max() <= TOLERANCE * np.abs(expected).max()
    np.testing.assert_allclose(run(added.path, "probabilities", shown), scores, atol=1e-5)
    assert_trains_after_its_first_cut(added)
    check_graph(onnx.load(added.path), added.path)
