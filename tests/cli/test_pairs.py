"""Two backbones side by side, of which one takes fewer pixels, from the training to a model in other forms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from in_process import Run
from quickstudy import load
from quickstudy.backbones.backbone import add_backbone
from quickstudy.backbones.graphs.autograd import GraphModule
from quickstudy.images.decoding import InputSpec
from quickstudy.models.format import golden_images
from small_backbones import SIDE, add_small_backbone, small_graph


@pytest.fixture
def here(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with photos and `pair.onnx`, whose backbones see 32 pixels and the middle 32 of 40."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUICKSTUDY_CACHE", str(tmp_path / "cache"))
    small = add_small_backbone(tmp_path / "cache")
    middle = InputSpec(size=SIDE, crop=SIDE / 40)
    cuts = ("block_2", "features")
    add_backbone("middle", small_graph(), tmp_path / "cache", input_spec=middle, cuts=cuts, classes=(), origin="here")
    assert small.input.size == SIDE
    return photos


def test_a_model_of_a_pair_answers_everywhere_as_it_was_trained(run: Run, here: Path) -> None:
    trained = run("retrain", str(here), "--backbone", "small+middle", "-o", "pair.onnx", "--json")
    assert trained.code == 0, trained.err
    test = json.loads(trained.out)["test"]
    judged = run("evaluate", "pair.onnx", str(here), "--json")
    assert judged.code == 0, judged.err
    found = json.loads(judged.out)
    assert (found["right"], found["n"]) == (test["right"], test["n"])
    for words in (("--fp16",), ("--int8", "--calibrate", str(here))):
        exported = run("export", "pair.onnx", *words, "-o", "other.onnx", "--force", "--json")
        assert exported.code == 0, exported.err
        assert json.loads(run("evaluate", "other.onnx", str(here), "--json").out)["n"] == test["n"]
        Path("other.onnx").unlink()
    model, images = load("pair.onnx"), golden_images(InputSpec(size=40))
    with torch.inference_mode():
        in_torch = GraphModule(onnx.load("pair.onnx"))(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(in_torch, model.predict_pixels(images), atol=1e-5)
