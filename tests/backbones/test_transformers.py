"""Models of transformers, with random weights, give as backbones what they give by themselves, processor included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from local_hub import LocalHub, Repository
from PIL import Image
from small_networks import photos, run

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.named import Prefix
from quickstudy.backbones.graphs.cutting import keep_between
from quickstudy.backbones.graphs.untrusted import check_graph
from quickstudy.backbones.sources.adding import BackboneSource, add_from
from quickstudy.errors import BackboneError
from quickstudy.images.decoding import to_input

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
from quickstudy.backbones.engines.batched import BatchedPrefix  # noqa: E402
from quickstudy.backbones.graphs.autograd import GraphModule  # noqa: E402

SIZE, TOLERANCE = 32, 1e-5  # of the largest value
NAME = "somebody/model"
WIDE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = {"image_size": SIZE, "patch_size": 8, "intermediate_size": 48, **WIDE}
TEXT = {"vocab_size": 40, "intermediate_size": 48, "max_position_embeddings": 16, **WIDE}
MAPS = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
COLOURS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
MIDDLE = {"size": {"shortest_edge": 37}, "crop_size": {"height": SIZE, "width": SIZE}, **COLOURS}
SQUARE = {"size": {"height": SIZE, "width": SIZE}, **COLOURS}
# For each family: configuration and model, their options, image processor, its options, what its classifiers take of
# the outputs, and the number of tokens before the patches.
# One of each kind: tokens with one first, tokens with registers, maps, two towers.
QUICK = ("ViT", "DINOv3ViT", "DINOv3ConvNext", "CLIPVision", "SiglipVision")

FAMILIES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], str, int]] = {
    "ViT": ("ViTModel", PATCHES, "ViT", SQUARE, "cls", 1),
    "Dinov2": ("Dinov2Model", {"image_size": 56, "patch_size": 8, **WIDE}, "Bit", MIDDLE, "both", 1),
    "Dinov2WithRegisters": (
        "Dinov2WithRegistersModel",
        {**PATCHES, "num_register_tokens": 4},
        "Bit",
        MIDDLE,
        "both",
        5,
    ),
    "DINOv3ViT": ("DINOv3ViTModel", {**PATCHES, "num_register_tokens": 4}, "ViT", SQUARE, "cls", 5),
    "DINOv3ConvNext": ("DINOv3ConvNextModel", MAPS, "ViT", SQUARE, "pooler_output", 0),
    "CLIPVision": (
        "CLIPVisionModelWithProjection",
        {"projection_dim": 10, **PATCHES},
        "CLIP",
        MIDDLE,
        "image_embeds",
        1,
    ),
    "SiglipVision": ("SiglipVisionModel", PATCHES, "Siglip", SQUARE, "pooler_output", 0),
    "ConvNextV2": (
        "ConvNextV2Model",
        MAPS,
        "ConvNext",
        {"size": {"shortest_edge": SIZE}, **COLOURS},
        "pooler_output",
        0,
    ),
    "Beit": ("BeitModel", {"use_relative_position_bias": True, **PATCHES}, "Beit", SQUARE, "mean", 1),
    "Swinv2": (
        "Swinv2Model",
        {"image_size": SIZE, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4},
        "ViT",
        {**SQUARE, "resample": 3},
        "pooler_output",
        0,
    ),
    "EfficientNet": (
        "EfficientNetModel",
        {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320, "image_size": SIZE},
        "EfficientNet",
        {**SQUARE, "resample": 0},
        "pooler_output",
        0,
    ),
}
TOKENS = {"ViT", "Dinov2", "Dinov2WithRegisters", "DINOv3ViT", "CLIPVision", "SiglipVision", "Beit"}


def make(family: str) -> tuple[Any, Any]:
    """A small model of a family, with random weights as far apart as trained ones, and its image processor."""
    kind, options, processor, seen, _, _ = FAMILIES[family]
    model = getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**options)).eval()
    return spread(model), getattr(transformers, f"{processor}ImageProcessorPil")(**seen)


def spread(model: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.1 * torch.randn_like(weights)
    return model


def drawn_photos() -> list[Image.Image]:
    """Photos of several shapes: waves and a little grain."""
    draws = np.random.Generator(np.random.PCG64(3))
    found = []
    for width, height in ((70, 53), (45, 64), (52, 52), (40, 90)):
        rows, columns = np.mgrid[0:height, 0:width]
        waves = [np.sin(rows / a + columns / b + c) for a, b, c in draws.uniform(3, 30, (3, 3))]
        values = 128 + 90 * np.stack(waves, axis=-1) + draws.normal(0, 5, (height, width, 3))
        found.append(Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)))
    return found


def files_of(model: Any, processor: Any, folder: Path) -> dict[str, bytes]:
    """A repository with weights and no graph, as `save_pretrained` writes it."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def add(files: Mapping[str, bytes], folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Backbone:
    """Add what a repository of the imitation holds as a backbone."""
    with LocalHub() as hub:
        hub.repositories[NAME] = Repository(files)
        hub.stand_in(monkeypatch, folder / "hub")
        return add_from(BackboneSource(place=f"hf:{NAME}", **options), folder / "cache")[0]


def features(family: str, given: Any) -> np.ndarray:
    """What the family's own classifiers take, by its models' code."""
    *_, take, prefix = FAMILIES[family]
    if take in given:
        return given[take].numpy()
    states = given["last_hidden_state"].numpy()
    parts = {"cls": [states[:, 0]], "mean": [states[:, prefix:].mean(axis=1)]}
    return np.concatenate(parts.get(take, [*parts["cls"], *parts["mean"]]), axis=1)


def assert_equal_on_photos(added: Backbone, family: str, model: Any, processor: Any) -> None:
    """Compare the family's own image processor and model with decoded pixels and the backbone."""
    images = drawn_photos()
    with torch.no_grad():
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        expected = features(family, model(pixels, return_dict=True))
    spec = added.reading(16).input
    given = run(added.path, "features", np.stack([to_input(np.asarray(image), spec) for image in images]))
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() <= TOLERANCE * np.abs(expected).max()


def assert_trains_after_its_first_cut(added: Backbone) -> None:
    """What follows the cut gives in PyTorch what it gives in ONNX Runtime, and gradients reach all its weights."""
    cut = added.cuts[0]
    suffix = keep_between(onnx.load(added.path), cut.name, cut.shape, "features", added.cut_shape)
    activations = np.random.Generator(np.random.PCG64(0)).normal(size=(2, *cut.shape)).astype(np.float32)
    expected = run(suffix, "features", activations)
    module = GraphModule(suffix)
    module.lay_channels_last()
    found = module(torch.from_numpy(activations))
    assert np.abs(found.detach().numpy() - expected).max() <= TOLERANCE * np.abs(expected).max()
    found.square().sum().backward()
    assert len(module.weight_names) > 8
    assert all(module.weight(name).grad is not None for name in module.weight_names)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.heavy) for name in FAMILIES]
)
def test_weights_become_a_backbone_that_equals_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    model, processor = make(family)
    added = add(files_of(model, processor, tmp_path / "repository"), tmp_path, monkeypatch)
    squashes = "height" in processor.size or family == "ConvNextV2"
    assert added.input.fit == ("squash" if squashes and added.input.crop == 1 else "crop")
    assert_equal_on_photos(added, family, model, processor)
    if family in TOKENS:
        assert [cut.name for cut in added.cuts] == ["stem", "block_1", "block_2", "features"]
    assert len(added.levels) > 2
    assert added.origin.endswith(":model.safetensors")
    assert_trains_after_its_first_cut(added)
    check_graph(onnx.load(added.path), added.path)  # as models that hold it are checked before they are run
    kept = added.kept
    expected = Prefix(kept, kept.cut, kept.cut_shape)(photos())
    found = BatchedPrefix(kept, kept.cut, kept.cut_shape, device="cpu", precision=torch.float32, batch=4)(photos())
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["Dinov2", "CLIPVision", "SiglipVision"])
def test_a_graph_from_an_exporter_becomes_a_backbone_that_equals_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """The graph has the outputs that Optimum gives it, and takes batches of any size."""
    model, processor = make(family)
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
        Outputs().eval(),  # as a whole: the exporter brings back the mode of what it is given, down to the last layer
        (example,),
        str(tmp_path / "model.onnx"),
        input_names=["pixel_values"],
        output_names=names,
        opset_version=17,
        dynamo=False,
        dynamic_axes={one: {0: "batch_size"} for one in ("pixel_values", *names)},
    )
    files = files_of(model, processor, tmp_path / "repository")
    files["onnx/model.onnx"] = (tmp_path / "model.onnx").read_bytes()
    added = add(files, tmp_path, monkeypatch)
    assert added.origin.endswith(":onnx/model.onnx")
    check_graph(onnx.load(added.path), added.path)
    assert_equal_on_photos(added, family, model, processor)


@pytest.mark.filterwarnings("ignore")
def test_of_two_towers_the_one_for_images_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=PATCHES, projection_dim=10)
    model, processor = spread(transformers.CLIPModel(config).eval()), transformers.CLIPImageProcessorPil(**MIDDLE)
    added = add(files_of(model, processor, tmp_path / "repository"), tmp_path, monkeypatch)
    images = photos()
    pixels = processor(list(images), return_tensors="pt", do_resize=False)["pixel_values"]
    with torch.no_grad():
        expected = model.get_image_features(pixels).pooler_output.numpy()
    given = run(added.path, "features", images)
    assert np.abs(given - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_keeps_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.ViTConfig(**PATCHES, id2label={0: "cat", 1: "dog", 2: "owl"})
    model = spread(transformers.ViTForImageClassification(config).eval())
    processor = transformers.ViTImageProcessorPil(**SQUARE)
    added = add(files_of(model, processor, tmp_path / "repository"), tmp_path, monkeypatch)
    images = photos()
    with torch.no_grad():
        scores = model(processor(list(images), return_tensors="pt")["pixel_values"]).logits
    assert added.classes == ("cat", "dog", "owl")
    np.testing.assert_allclose(run(added.path, "probabilities", images), scores.softmax(1).numpy(), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_another_size_interpolates_positions_as_the_model_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = make("ViT")
    added = add(files_of(model, processor, tmp_path / "repository"), tmp_path, monkeypatch, size=48)
    images = photos(2, 48)
    pixels = processor(list(images), return_tensors="pt", do_resize=False)["pixel_values"]
    with torch.no_grad():
        expected = model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0].numpy()
    assert added.input.size == 48
    given = run(added.path, "features", images)
    assert np.abs(given - expected).max() <= TOLERANCE * np.abs(expected).max()


def changed(files: Mapping[str, bytes], **values: Any) -> dict[str, bytes]:
    return {**files, "config.json": json.dumps({**json.loads(files["config.json"]), **values}).encode()}


@pytest.mark.filterwarnings("ignore")
def test_what_does_not_fit_is_told_and_no_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = make("ViT")
    files = files_of(model, processor, tmp_path / "repository")
    for wrong, told in (
        ({"model_type": "bert"}, "no network for images"),
        ({"model_type": "my_own"}, "no network for images"),
        ({"model_type": "siglip2"}, "siglip2-base-patch16-224"),
        ({"num_hidden_layers": 3}, "do not fit its config"),
        ({"hidden_size": "wide"}, "cannot be built"),
    ):
        with pytest.raises(BackboneError, match=told):
            add(changed(files, **wrong), tmp_path, monkeypatch)
    with pytest.raises(BackboneError, match="cannot be built"):
        add({**files, "model.safetensors": b"\x80\x04K\x01."}, tmp_path, monkeypatch)  # a pickle
    # Of what is no network for images, the family is told, though nobody says of what size images are either.
    for family in ("bert", "whisper"):
        alone = {"model.safetensors": b"", "config.json": json.dumps({"model_type": family}).encode()}
        with pytest.raises(BackboneError, match=f"is of the family '{family}'.*take another repository"):
            add(alone, tmp_path, monkeypatch)
    code = {
        **changed(files, auto_map={"AutoModel": "mine.Model"}, attn_implementation="somebody/kernels"),
        "mine.py": f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n".encode(),
    }
    assert add(code, tmp_path, monkeypatch).cut_shape == (24,)
    assert not (tmp_path / "ran").exists()
