"""Photos compared with names by two towers: the logits are transformers' own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_hub import LocalHub, Repository
from small_networks import SIZE, photos, run
from small_transformers import save_vit
from test_transformers import MIDDLE, PATCHES, SQUARE, TEXT, spread

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.loading import load_backbone
from quickstudy.backbones.names import embed_names
from quickstudy.errors import BackboneError, OptionError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")

NAMES = ("cat", "black_dog", "owl")
WORDS = ("<pad>", "<start>", "a", "photo", "of", "cat", "black", "dog", "owl", "picture", ".", "<end>")
PLACE = "hf:somebody/towers"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with LocalHub() as local:
        local.stand_in(monkeypatch, tmp_path / "hub")
        yield local


def towers(family: str) -> Any:
    torch.manual_seed(0)
    if family == "CLIP":
        text = {**TEXT, "eos_token_id": len(WORDS) - 1, "bos_token_id": 1, "pad_token_id": 0}
        config = transformers.CLIPConfig(text_config=text, vision_config=PATCHES, projection_dim=10)
        return spread(transformers.CLIPModel(config).eval())
    text = {**TEXT, "eos_token_id": len(WORDS) - 1, "pad_token_id": 0}
    config = transformers.SiglipConfig(text_config=text, vision_config=PATCHES)
    model = spread(transformers.SiglipModel(config).eval())
    with torch.no_grad():
        model.logit_bias.fill_(-3.0)
    return model


def files_of(model: Any, folder: Path) -> dict[str, bytes]:
    """Weights, processor and a tokenizer of a few words, as `save_pretrained` writes them."""
    model.save_pretrained(folder)
    siglip = model.config.model_type == "siglip"
    processor = (
        transformers.SiglipImageProcessorPil(**SQUARE) if siglip else transformers.CLIPImageProcessorPil(**MIDDLE)
    )
    processor.save_pretrained(folder)
    words = tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <end>" if siglip else "<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", len(WORDS) - 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected_logits(model: Any, images: np.ndarray, sentences: list[str]) -> np.ndarray:
    """The model's `logits_per_image`, with the tokens looked up by hand."""
    siglip = model.config.model_type == "siglip"
    processor = (
        transformers.SiglipImageProcessorPil(**SQUARE) if siglip else transformers.CLIPImageProcessorPil(**MIDDLE)
    )
    pixels = processor(list(images), return_tensors="pt", do_resize=False)["pixel_values"]
    columns = []
    for sentence in sentences:
        numbers = [WORDS.index(word) for word in sentence.split()]
        numbers = [*([] if siglip else [1]), *numbers, len(WORDS) - 1]
        numbers += [0] * (TEXT["max_position_embeddings"] - len(numbers)) if siglip else []
        with torch.no_grad():
            columns.append(model(input_ids=torch.tensor([numbers]), pixel_values=pixels).logits_per_image.numpy())
    return np.concatenate(columns, axis=1)


def features_of(backbone: Backbone, images: np.ndarray) -> np.ndarray:
    return run(backbone.path, "features", images)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["CLIP", "SigLIP"])
def test_logits_from_weights_equal_transformers_own(hub: LocalHub, tmp_path: Path, family: str) -> None:
    model = towers(family)
    hub.repositories["somebody/towers"] = Repository(files_of(model, tmp_path / "repository"))
    backbone = load_backbone(PLACE, tmp_path / "cache")
    named = embed_names(backbone, NAMES, templates=("a photo of a {}",))
    images = photos(3, SIZE)
    expected = expected_logits(model, images, [f"a photo of a {name.replace('_', ' ')}" for name in NAMES])
    given = named.logits(features_of(backbone, images))
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(given, expected, atol=1e-4)
    probabilities = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(named.probabilities(features_of(backbone, images)), probabilities, atol=1e-4)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["CLIP", "SigLIP"])
def test_towers_in_two_onnx_files_give_the_same_cosines(hub: LocalHub, tmp_path: Path, family: str) -> None:
    """The files lie as Optimum lays them out; the scale is in neither, and 100 is taken."""
    model = towers(family)
    files = files_of(model, tmp_path / "repository")
    del files["model.safetensors"]
    files["onnx/vision_model.onnx"] = exported(model, tmp_path, "pixel_values", torch.rand(1, 3, SIZE, SIZE))
    files["onnx/text_model.onnx"] = exported(model, tmp_path, "input_ids", torch.zeros(1, 16, dtype=torch.long))
    hub.repositories["somebody/towers"] = Repository(files)
    backbone = load_backbone(PLACE, tmp_path / "cache")
    templates = ("a photo of a {}", "a picture of a {}")
    named = embed_names(backbone, NAMES, templates=templates)
    images = photos(3, SIZE)
    scale, bias = float(model.logit_scale.exp()), float(getattr(model, "logit_bias", torch.zeros(1)))
    sentences = [template.format(name.replace("_", " ")) for name in NAMES for template in templates]
    cosines = (expected_logits(model, images, sentences) - bias) / scale
    # The mean of two vectors of length 1 has the mean of their cosines, times what makes its length 1 again.
    single = embed_names(backbone, [s.replace(" ", "_") for s in sentences], templates=("{}",)).vectors
    lengths = np.linalg.norm(single.reshape(len(NAMES), 2, -1).mean(axis=1), axis=1)
    expected = 100 * cosines.reshape(3, len(NAMES), 2).mean(axis=2) / lengths
    np.testing.assert_allclose(named.logits(features_of(backbone, images)), expected, atol=1e-3)


def exported(model: Any, folder: Path, given: str, example: Any) -> bytes:
    vision = given == "pixel_values"
    siglip = model.config.model_type == "siglip"

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, values: Any) -> Any:
            features = self.model.get_image_features if vision else self.model.get_text_features
            return features(values).pooler_output

    output = "pooler_output" if siglip else "image_embeds" if vision else "text_embeds"
    axes = {given: {0: "batch_size"} if vision else {0: "batch_size", 1: "length"}}
    torch.onnx.export(
        Tower().eval(),
        (example,),
        str(folder / "tower.onnx"),
        input_names=[given],
        output_names=[output],
        opset_version=17,
        dynamo=False,
        dynamic_axes=axes,
    )
    return (folder / "tower.onnx").read_bytes()


def test_networks_without_a_text_tower_are_told(hub: LocalHub, tmp_path: Path) -> None:
    path = save_vit(tmp_path / "vit.onnx")
    seen = {"preprocessor_config.json": json.dumps(SQUARE).encode()}
    hub.repositories["somebody/towers"] = Repository({"onnx/model.onnx": path.read_bytes(), **seen})
    backbone = load_backbone(PLACE, tmp_path / "cache")
    with pytest.raises(BackboneError, match=r"tokenizer\.json|tower for text"):
        embed_names(backbone, NAMES)
    hub.repositories["somebody/halves"] = Repository({"onnx/vision_model.onnx": path.read_bytes(), **seen})
    with pytest.raises(BackboneError, match="tower for text"):
        embed_names(load_backbone("hf:somebody/halves", tmp_path / "cache"), NAMES)
    with pytest.raises(BackboneError, match="tower for text"):
        embed_names(load_backbone("efficientnet_lite0", tmp_path / "cache"), NAMES)
    with pytest.raises(OptionError, match=r"no \{\} for the name"):
        embed_names(backbone, NAMES, templates=("a photo",))
