"""The model card says what the file says, and nothing that it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from quickstudy.backbones.backbone import Backbone
from quickstudy.models.card import model_card
from quickstudy.models.conversion import convert
from quickstudy.models.loading import from_backbone, load
from small_models import write_small_model


def test_holds_what_the_model_says_about_itself(tmp_path: Path) -> None:
    text = model_card(load(write_small_model(tmp_path / "small.onnx")), "Patterns")
    assert text.startswith("# Patterns\n")
    for line in (
        "An image classifier of 4 classes, made by quickstudy.",
        "- On the test split, looked at once: 75.0 % (95 % interval 46.8 to 91.1 %, n = 12).",
        "- Cross-validated on the training images: 50.0 % (95 % interval 23.7 to 76.3 %, n = 10).",
        "| stripes | 12 |",
        "| Äpfel \\| &lt;b> | 1300 |",  # no column of its own, no markup
        f"- Fingerprint of data, labels and split (SHA-256): {'ab' * 32}",
        "- Split: by content",
        "- Backbone `small`, frozen up to `features`.",
        f"- numpy {np.__version__}",
    ):
        assert line in text.splitlines()
    assert "N×32×32×3" in text
    assert "exported from" not in text
    assert "images like those of the test split; for others" in text


def test_an_export_says_whose_scores_these_are(tmp_path: Path) -> None:
    source = write_small_model(tmp_path / "small.onnx")
    convert(source, tmp_path / "half.onnx", "fp16", force=True)
    text = model_card(load(tmp_path / "half.onnx"), "half")
    assert "These are the scores of the model that it was exported from." in text
    assert "Exported as fp16 from the model with the checksum" in text


def test_says_what_is_not_known(backbone: Backbone) -> None:
    text = model_card(from_backbone(backbone), "A backbone")
    assert "Not known: the file holds no score." in text
    assert "Not known: the file does not say." in text
    assert "- Its accuracy is not known; measure it: `quickstudy evaluate MODEL IMAGES`." in text


def test_says_by_which_filter_images_are_resized(tmp_path: Path, backbone: Backbone) -> None:
    assert "resized bilinearly, not antialiased" in model_card(from_backbone(backbone), "own")
    spec = replace(backbone.input, resize="pillow-bicubic-1")
    assert "Pillow's bicubic filter" in model_card(from_backbone(replace(backbone, input=spec)), "theirs")
