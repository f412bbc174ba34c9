"""Models of transformers, with random weights, give as backbones what they give by themselves, processor included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_hub import LocalHub, Repository
from small_networks import photos, run

from quickstudy.backbones.sources import BackboneSource, add_from

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
constants = pytest.importorskip("huggingface_hub.constants", reason="the extra hub is not installed")

WIDE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = {"image_size": 32, "patch_size": 8, "intermediate_size": 48, **WIDE}
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "ViT": ("ViTModel", PATCHES, "cls"),
    "Dinov2": ("Dinov2Model", {"image_size": 56, "patch_size": 8, **WIDE}, "both"),
    "CLIPVision": ("CLIPVisionModelWithProjection", {"projection_dim": 10, **PATCHES}, "image_embeds"),
    "SiglipVision": ("SiglipVisionModel", PATCHES, "pooler_output"),
    "ConvNextV2": ("ConvNextV2Model", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}, "pooler_output"),
    # Their exporter's file differs from the model itself by some 10⁻⁴, so they are compared with the file.
    "DINOv3ViT": ("DINOv3ViTModel", {"num_register_tokens": 4, **PATCHES}, "cls"),
    "Beit": ("BeitModel", PATCHES, "mean"),
}
SIZE, TOLERANCE = 32, 1e-5  # of the largest value


def export(name: str, path: Path) -> tuple[Any, list[str]]:
    """Write a small model of a family as ONNX, with the outputs that Optimum gives it."""
    kind, options, _ = FAMILIES[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**options)).eval()
    example = torch.rand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        given = model(example, return_dict=True)
        names = [one for one in ("image_embeds", "last_hidden_state", "pooler_output") if given.get(one) is not None]

        class Outputs(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, pixel_values: Any) -> Any:
                results = self.model(pixel_values, return_dict=True)
                return tuple(results[one] for one in names)

        torch.onnx.export(
            Outputs(),
            (example,),
            str(path),
            input_names=["pixel_values"],
            output_names=names,
            opset_version=17,
            dynamo=False,
            dynamic_axes={one: {0: "batch_size"} for one in ("pixel_values", *names)},
        )
    return model, names


def features(family: str, tokens: dict[str, np.ndarray]) -> np.ndarray:
    """What the family's own classifiers take, by its models' code."""
    take = FAMILIES[family][2]
    if take in tokens:
        return tokens[take]
    states = tokens["last_hidden_state"]
    prefix = 5 if family == "DINOv3ViT" else 1
    parts = {"cls": [states[:, 0]], "mean": [states[:, prefix:].mean(axis=1)]}
    return np.concatenate(parts.get(take, [*parts["cls"], *parts["mean"]]), axis=1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_bottlenecks_equal_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    model, names = export(family, tmp_path / "model.onnx")
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size=SIZE, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3]
    )
    processor.save_pretrained(tmp_path)
    images = photos()
    with LocalHub() as hub:
        hub.repositories["somebody/model"] = Repository(
            {
                "onnx/model.onnx": (tmp_path / "model.onnx").read_bytes(),
                "config.json": json.dumps(model.config.to_dict()).encode(),
                "preprocessor_config.json": (tmp_path / "preprocessor_config.json").read_bytes(),
            }
        )
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        added, _ = add_from(BackboneSource(place="hf:somebody/model"), tmp_path / "cache")
    pixels = processor(list(images), return_tensors="np")["pixel_values"]
    if family in ("DINOv3ViT", "Beit"):
        own = {one: run(tmp_path / "model.onnx", one, pixels) for one in names}
    else:
        with torch.no_grad():
            results = model(torch.from_numpy(pixels), return_dict=True)
        own = {one: results[one].numpy() for one in names}
    given, expected = run(added.path, "features", images), features(family, own)
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() <= TOLERANCE * np.abs(expected).max()
    if family != "ConvNextV2":
        assert [cut.name for cut in added.cuts] == ["stem", "block_1", "block_2", "features"]
