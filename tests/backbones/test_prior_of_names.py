"""`--prior names`: a network of two towers, whose text tower knows the classes or does not, from the local hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from local_hub import LocalHub, Repository
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from small_transformers import save_vit

import quickstudy
from drawn_photos import draw_photo
from quickstudy.backbones.loading import load_backbone
from quickstudy.backbones.names import embed_names
from quickstudy.backbones.sources.packing import add_packed
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.cli.backbone import pack
from quickstudy.errors import BackboneError, DownloadError, OptionError
from quickstudy.learning.features import unit_rows
from quickstudy.models.card import model_card
from quickstudy.models.conversion import convert
from quickstudy.models.format import HEAD_NAMES
from quickstudy.progress import silent
from quickstudy.reports.judged import judge_images

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")

NAMES = ("checks", "discs", "stripes")
WORDS = ("<pad>", *NAMES)
NETWORK = "hf:somebody/towers"
PREPROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}


def draw_noisy(name: str, number: int, path: Path) -> None:
    """A photo of a class, half of it noise."""
    pixels = np.asarray(draw_photo(name, number).resize((32, 32)), float)
    noise = np.random.Generator(np.random.PCG64([number, len(name)])).integers(0, 256, pixels.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((pixels + noise) / 2).astype(np.uint8)).save(path)


def text_tower(vectors: np.ndarray, path: Path) -> bytes:
    """A tower whose sentence is the sum of its words' vectors, of which all but the names' are zeros."""
    table = np.concatenate([np.zeros((1, vectors.shape[1])), vectors]).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("ReduceSum", ["words", "axes"], ["text_embeds"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("text_embeds", TensorProto.FLOAT, ["batch", vectors.shape[1]])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A hub with `towers`, whose names tell the classes apart, and `strangers`, whose names are anything; photos."""
    folder = tmp_path_factory.mktemp("prior")
    for split, numbers in (("train", range(4)), ("test", range(40, 52))):
        for name in NAMES:
            for number in numbers:
                draw_noisy(name, number, folder / "photos" / split / name / f"{number:02}.png")
    vision = save_vit(folder / "vision.onnx", projects=True).read_bytes()
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    files = {
        "onnx/vision_model.onnx": vision,
        "onnx/text_model.onnx": text_tower(np.ones((3, 10)), folder / "text.onnx"),
        "preprocessor_config.json": json.dumps(PREPROCESSOR).encode(),
        "config.json": json.dumps({"model_type": "clip"}).encode(),
        "tokenizer.json": tokenizer.to_str().encode(),
    }
    with LocalHub() as hub, pytest.MonkeyPatch.context() as patched:
        hub.stand_in(patched, folder / "hub")
        patched.setenv("QUICKSTUDY_CACHE", str(folder / "cache"))
        hub.repositories["somebody/images"] = Repository(files)
        net = load_backbone("hf:somebody/images", folder / "cache")
        seen = [folder / "seen" / f"{name}{number}.png" for name in NAMES for number in range(60, 99)]
        for path in seen:
            draw_noisy(path.stem[:-2], int(path.stem[-2:]), path)
        found = extract(seen, net, Store(folder / "other"))
        units = unit_rows(found.gather([digest for digest in found.digests if digest]).astype(np.float32))
        directions = np.linalg.lstsq(units, np.repeat(np.eye(3), 39, axis=0) - 1 / 3, rcond=None)[0].T
        draws = np.random.Generator(np.random.PCG64(3)).normal(size=(3, 10))
        for name, vectors in (("towers", directions), ("strangers", draws)):
            tower = text_tower(vectors, folder / "text.onnx")
            hub.repositories[f"somebody/{name}"] = Repository({**files, "onnx/text_model.onnx": tower})
        yield folder


def names_in(model: Path) -> list[np.ndarray]:
    return [numpy_helper.to_array(one) for one in onnx.load(model).graph.initializer if one.name == HEAD_NAMES]


@pytest.mark.parametrize("levels", ["last", "all"])
def test_names_that_fit_count(folder: Path, tmp_path: Path, levels: Literal["last", "all"]) -> None:
    photos, cache = folder / "photos", folder / "cache"
    options = {"cache": cache, "backbone": NETWORK, "levels": levels}
    plain = quickstudy.retrain(photos, tmp_path / "plain.onnx", **options)
    result = quickstudy.retrain(photos, tmp_path / "m.onnx", prior="names", **options)
    assert result.prior is not None
    assert plain.prior is None
    assert result.prior.share > 0
    assert result.test is not None
    assert plain.test is not None
    assert result.test.score.right >= plain.test.score.right
    assert result.computed == 0  # the bottlenecks are those of the other model
    [weights] = names_in(result.model)
    assert weights.shape == (10, 3)
    loaded = quickstudy.load(result.model)
    assert loaded.verify() < 1e-5
    assert loaded.metadata["training"]["prior"] == result.prior.to_dict()
    assert f"a share of {result.prior.share} of its logits" in model_card(loaded, "m")
    assert result.to_dict()["head"]["prior"]["share"] == result.prior.share
    # The file says what was judged: the test's figures are its own.
    files = sorted((photos / "test").rglob("*.png"))
    right = sum(label == path.parent.name for label, path in zip(loaded.predict(files), files, strict=True))
    assert right == result.test.score.right


def test_names_that_say_nothing_do_not_count(folder: Path, tmp_path: Path) -> None:
    photos, cache = folder / "photos", folder / "cache"
    options = {"cache": cache, "backbone": "hf:somebody/strangers"}
    plain = quickstudy.retrain(photos, tmp_path / "plain.onnx", **options)
    result = quickstudy.retrain(photos, tmp_path / "m.onnx", prior="names", **options)
    assert result.prior is not None
    assert result.prior.share == 0
    assert names_in(result.model) == []
    assert (result.test, result.cross_validation) == (plain.test, plain.cross_validation)


def test_photos_are_squeezed_as_the_network_was_trained_unless_somebody_says_otherwise(
    folder: Path, tmp_path: Path
) -> None:
    options = {"cache": folder / "cache", "backbone": NETWORK}
    result = quickstudy.retrain(folder / "photos", tmp_path / "m.onnx", **options)
    [choice] = result.choices
    assert (choice.what, choice.chosen, choice.images) == ("fit", "squash", 0)
    assert quickstudy.load(result.model).input.fit == "squash"
    for fit in ("crop", "pad"):
        other = quickstudy.retrain(folder / "photos", tmp_path / "other.onnx", fit=fit, **options)
        assert other.choices == ()
        assert quickstudy.load(other.model).input.fit == fit
    assert quickstudy.load(result.model).metadata["training"]["options"]["fit"] is None


def test_other_forms_say_the_same(folder: Path, tmp_path: Path) -> None:
    photos, cache = folder / "photos", folder / "cache"
    result = quickstudy.retrain(photos, tmp_path / "m.onnx", cache=cache, backbone=NETWORK, prior="names")
    files = sorted((photos / "test").rglob("*.png"))
    convert(result.model, tmp_path / "half.onnx", "fp16")
    before, after = (quickstudy.load(path).predict_proba(files) for path in (result.model, tmp_path / "half.onnx"))
    np.testing.assert_allclose(after, before, atol=0.05)


def test_what_was_forgotten_is_worked_out_with_names(folder: Path, tmp_path: Path) -> None:
    photos, cache = folder / "photos", folder / "cache"
    result = quickstudy.retrain(photos, tmp_path / "m.onnx", cache=cache, backbone=NETWORK, prior="names")
    for path in (cache / "models").iterdir():
        path.unlink()
    judged = judge_images(result.model, photos, cache, silent)
    found = judged.score("cross-validation")
    assert found == result.cross_validation


def test_where_there_is_nothing_to_read_names_by_it_is_told(folder: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="tower for text"):
        quickstudy.retrain(photos, tmp_path / "m.onnx", cache=folder / "cache", prior="names")
    with pytest.raises(OptionError, match="--backbone auto"):
        quickstudy.retrain(photos, tmp_path / "m.onnx", backbone="auto", prior="names")
    with pytest.raises(OptionError, match="--prior is for the linear head"):
        quickstudy.retrain(photos, tmp_path / "m.onnx", backbone=NETWORK, prior="names", cut="block_1")
    with pytest.raises(OptionError, match="--prior asks which of the names fits best"):
        quickstudy.retrain(photos, tmp_path / "m.onnx", backbone=NETWORK, prior="names", several=True)


def test_a_packed_backbone_is_without_its_names_which_is_said_here_and_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    net, packed = load_backbone(NETWORK, folder / "cache"), tmp_path / "towers.backbone"
    named = embed_names(net, NAMES)
    pack(net.name, packed, cache=folder / "cache")
    told = capsys.readouterr().out
    assert "Left out: the tower for text" in told
    added = add_packed(packed, tmp_path / "cache")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(DownloadError) as caught:
        embed_names(added, NAMES)
    for part in ("models--somebody--towers", str(tmp_path / "hub"), "A packed backbone is without its tower for text"):
        assert part in str(caught.value)
    shutil.copytree(folder / "hub" / "models--somebody--towers", tmp_path / "hub" / "models--somebody--towers")
    np.testing.assert_array_equal(embed_names(added, NAMES).vectors, named.vectors)
    for lacking in ("tokenizer.json", "text_model.onnx"):  # as where only the image tower was ever fetched
        [file] = (tmp_path / "hub").rglob(lacking)
        file.rename(tmp_path / lacking)
        with pytest.raises(DownloadError, match=f"has not got '.*{lacking}' of it"):
            embed_names(added, NAMES)
        (tmp_path / lacking).rename(file)
