"""Core ML packages, as far as they can be looked at off Apple's systems."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lazily import lazily
from quickstudy.errors import ModelError, WriteError
from quickstudy.images.fits import Fit
from quickstudy.models.assemble import LinearHead, write_model
from small_backbones import add_small_backbone
from small_models import CLASSES, write_small_model

coremltools = lazily("coremltools")

from quickstudy.models import coreml  # noqa: E402
from quickstudy.models.coreml import write_core_ml  # noqa: E402


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("coreml") / "small.onnx")


@pytest.mark.heavy
def test_the_package_takes_an_image_and_gives_the_models_classes(path: Path, tmp_path: Path) -> None:
    done = write_core_ml(path, tmp_path / "apps" / "small.mlpackage")
    assert done.traced_difference < 1e-5
    assert done.program_difference is not None
    assert done.program_difference < 1e-5
    assert done.unknown_operators == ()
    assert "Apple's devices only" in done.checked
    package = coremltools.models.MLModel(str(done.path), skip_model_load=True)
    spec = package.get_spec()
    [image] = spec.description.input
    assert (image.name, image.type.imageType.width, image.type.imageType.height) == ("image", 32, 32)
    assert [output.name for output in spec.description.output] == ["classLabel", "classLabel_probs"]
    for name in CLASSES:
        assert name.encode() in spec.SerializeToString()
    # Again, over the first one.
    write_core_ml(path, done.path)
    assert [entry.name for entry in done.path.parent.iterdir()] == ["small.mlpackage"]


@pytest.mark.heavy
@pytest.mark.parametrize(("fit", "option"), [("crop", "centerCrop"), ("pad", "scaleFit"), ("squash", "scaleFill")])
def test_it_says_how_vision_is_to_fit_photos(fit: Fit, option: str, tmp_path: Path) -> None:
    done = write_core_ml(fitted(tmp_path, fit), tmp_path / "small.mlpackage")
    assert (done.crop_and_scale, done.to_dict()["image_crop_and_scale_option"]) == (option, option)
    assert f"imageCropAndScaleOption .{option}" in done.checked
    assert ("margins of grey" in done.checked) == (fit == "pad")
    package = coremltools.models.MLModel(str(done.path), skip_model_load=True)
    assert f"imageCropAndScaleOption is .{option}" in package.short_description


def test_several_squares_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="takes 2 squares of each photo, which Vision does not cut out; retrain with"):
        write_core_ml(fitted(tmp_path, "tiles2"), tmp_path / "small.mlpackage")


def test_the_middle_of_the_square_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the middle 87.5 % of each photo, which Vision does not cut out; retrain"):
        write_core_ml(fitted(tmp_path, "crop", crop=0.875), tmp_path / "small.mlpackage")


def test_what_names_say_is_converted_too(tmp_path: Path) -> None:
    done = write_core_ml(fitted(tmp_path, "crop", names=True), tmp_path / "small.mlpackage")
    assert done.unknown_operators == ()
    assert done.program_difference is not None
    assert done.program_difference < 1e-5


def fitted(folder: Path, fit: Fit, *, crop: float = 1, names: bool = False) -> Path:
    """A model of the small backbone with this fit, and a head of random weights, in which names may count."""
    net = add_small_backbone(folder / "cache").reading(16, fit)
    net = replace(net, input=replace(net.input, crop=crop))
    draws = np.random.Generator(np.random.PCG64(0))
    weights, said = draws.normal(size=(2, 24, 3)).astype(np.float32)
    head = LinearHead(weights=weights, biases=np.zeros(3, np.float32), names=said if names else None)
    write_model(folder / "fitted.onnx", net, head, classes=("a", "b", "c"), training={})
    return folder / "fitted.onnx"


def test_a_program_that_computes_something_else_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(coreml.PROGRAM_OPERATORS, "clip", lambda x, alpha, beta: x.clamp(0, 1))
    with pytest.raises(ModelError, match="The MIL program differs from the model by"):
        write_core_ml(path, tmp_path / "small.mlpackage")
    assert list(tmp_path.iterdir()) == []


def test_operators_that_are_not_known_here_are_named(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(coreml.PROGRAM_OPERATORS, "clip")
    done = write_core_ml(path, tmp_path / "small.mlpackage")
    assert (done.program_difference, done.unknown_operators) == (None, ("clip",))
    assert "the MIL program was not run: it has clip" in done.checked


def test_the_operators_do_what_mil_says() -> None:
    """Padding by hand: (before, after) for each axis from the first on."""
    import torch

    x = torch.ones(1, 1, 1, 2)
    padded = coreml._pad(x, np.array([0, 0, 0, 0, 1, 0, 0, 2]), "constant", 7.0)
    assert padded.tolist() == [[[[7, 7, 7, 7], [1, 1, 7, 7]]]]
    with pytest.raises(ModelError, match="pads in a way that is not known here: reflect"):
        coreml._pad(x, np.zeros(8), "reflect", 0.0)
    pooled = coreml._max_pool(-x, [1, 2], [1, 2], "custom", [0, 0, 1, 1])
    assert pooled.tolist() == [[[[-1, -1]]]], "padding is not zero"


def test_nothing_else_is_written_over(path: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.mlpackage").mkdir()
    (tmp_path / "mine.mlpackage" / "notes.txt").write_text("mine")
    (tmp_path / "file.mlpackage").write_text("mine")
    for name in ("mine", "file"):
        with pytest.raises(WriteError, match=f"'.*{name}.mlpackage' already, which is no Core ML package"):
            write_core_ml(path, tmp_path / f"{name}.mlpackage")
    assert (
        (tmp_path / "mine.mlpackage" / "notes.txt").read_text() == (tmp_path / "file.mlpackage").read_text() == "mine"
    )


def test_the_name_must_fit(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must be named \*\.mlpackage; got '.*small\.mlmodel'"):
        write_core_ml(path, tmp_path / "small.mlmodel")


def test_what_coremltools_cannot_convert(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise NotImplementedError("no such operator\nmany more lines")

    monkeypatch.setattr("coremltools.convert", fail)
    with pytest.raises(ModelError, match=r"coremltools cannot convert the model: no such operator$"):
        write_core_ml(path, tmp_path / "small.mlpackage")
