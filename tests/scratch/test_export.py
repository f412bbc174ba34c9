"""A run as a model: the same probabilities on real pixels, in ONNX Runtime alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from small_runs import CLASSES, CLASSIC, FAST, differences, newest, small_data, train_until, train_whole

from quickstudy.backbones.graphs.autograd import GraphModule
from quickstudy.errors import RunError
from quickstudy.models.loading import load
from quickstudy.scratch.data import TrainingData
from quickstudy.scratch.evaluation import evaluation_logits
from quickstudy.scratch.export import export
from quickstudy.scratch.folder import RunFolder
from quickstudy.scratch.input import evaluation_batches
from quickstudy.scratch.recipe import Recipe
from quickstudy.scratch.state import TrainingState

VARIANTS: dict[str, tuple[Recipe, dict[str, object], int]] = {
    "classic": (CLASSIC, {}, 3),
    "classic, grey": (CLASSIC, {"activation": "elu"}, 1),
    "classic, odd side, as it is": (CLASSIC, {"crop": 7, "standardise": "none", "normalisation": "none"}, 3),
    "batch norm": (CLASSIC, {"normalisation": "batch_norm", "standardise": "set", "crop": 0}, 3),
    "local": (CLASSIC, {"top": "local"}, 3),
    "bottleneck": (CLASSIC, {"bottleneck": 16, "average_decay": 0, "normalisation": "batch_norm"}, 3),
    "fast, mirrored": (FAST, {}, 3),
    "fast, mirrored and shifted": (FAST, {"shifted_test": 1, "unsure_lead": 1}, 3),
    "fast, shifted where unsure": (FAST, {"shifted_test": 1, "unsure_lead": 0.3}, 3),
    "fast, grey": (FAST, {"whitening": "off", "mirrored_test": "off", "standardise": "image"}, 1),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def torch_probabilities(recipe: Recipe, run: Path, data: TrainingData) -> np.ndarray:
    """As evaluation has them, averaged parameters included."""
    state = TrainingState(recipe, side=data.side, channels=data.channels, classes=3, device=torch.device("cpu"))
    values = newest(run).state
    state.load_state_dict(values)
    if values["averages"] is not None:
        state.network.load_state_dict({**state.network.state_dict(), **values["averages"]["averages"]})
    moments = data.facts.moments
    batches = evaluation_batches(data.test.pixels, recipe.augmentation, moments)
    logits = evaluation_logits(
        state.network,
        batches,
        mirrored=recipe.mirrored_test,
        shifted=recipe.shifted_test,
        lead=recipe.unsure_lead,
    )
    return logits.softmax(1).numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_gives_what_torch_gives(variant: str, tmp_path: Path) -> None:
    base, options, channels = VARIANTS[variant]
    recipe, data = base.with_options({"steps": 12, **options}), small_data(channels=channels)
    result = train_whole(recipe, data, tmp_path / "run")
    path = export(tmp_path / "run").model
    assert path == tmp_path / "run" / "model.onnx"

    pixels = np.repeat(data.test.pixels, 3 // channels, axis=3)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.run(["probabilities"], {"image": pixels})
    expected = torch_probabilities(recipe, tmp_path / "run", data)
    assert given.shape == (31, 3)
    assert np.ptp(expected, axis=0).max() > 1e-3, "the network tells images apart"
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(session.run(None, {"image": pixels[:1]})[0], expected[:1], rtol=0, atol=1e-5)
    assert int((given.argmax(1) == data.test.labels).sum()) == result.test.score.right

    model = load(path)
    assert model.classes == CLASSES
    assert model.verify() <= 1e-4
    assert model.metadata["training"]["steps"] == 12
    assert model.metadata["training"]["finished"] is True
    assert model.metadata["training"]["test"]["right"] == result.test.score.right
    for number in (0, 1, 2):
        image = Image.fromarray(data.test.pixels[number].squeeze())
        image.save(tmp_path / f"{number}.png")
    predicted = model.predict([tmp_path / f"{number}.png" for number in (0, 1, 2)])
    assert predicted == [CLASSES[place] for place in expected[:3].argmax(1)]


def test_a_graph_with_unsure_images_runs_in_torch_too(tmp_path: Path) -> None:
    """Run the model's graph in PyTorch, as Core ML's form of a model is made."""
    recipe = FAST.with_options({"steps": 12, "shifted_test": 1, "unsure_lead": 0.3})
    data = small_data()
    train_whole(recipe, data, tmp_path / "run")
    model = onnx.load(export(tmp_path / "run").model)
    with torch.inference_mode():
        given = GraphModule(model)(torch.from_numpy(data.test.pixels))
    expected = torch_probabilities(recipe, tmp_path / "run", data)
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5)
    everywhere, nowhere = (
        torch_probabilities(recipe.with_options({"unsure_lead": lead}), tmp_path / "run", data) for lead in (1, 0)
    )
    of_copies, of_one = (np.abs(expected - other).max(axis=1) < 1e-6 for other in (everywhere, nowhere))
    assert (of_copies | of_one).all()
    assert not of_copies.all() and not of_one.all()


def test_a_run_that_has_not_ended(tmp_path: Path) -> None:
    train_until(5, FAST, small_data(), tmp_path / "run")
    before = newest(tmp_path / "run").state
    path = export(tmp_path / "run", tmp_path / "deep" / "five.onnx").model
    assert path == tmp_path / "deep" / "five.onnx"
    training = load(path).metadata["training"]
    assert (training["steps"], training["finished"], training["test"]) == (5, False, None)
    assert differences(newest(tmp_path / "run").state, before) == []
    # The newest is damaged: the one before it.
    checkpoints = RunFolder(tmp_path / "run").checkpoints
    checkpoints.save(9, {**before, "step": 9})
    checkpoints.path(9).write_bytes(b"")
    assert load(export(tmp_path / "run").model).metadata["training"]["steps"] == 5


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run"):
        export(tmp_path / "run")
    RunFolder(tmp_path / "run").begin(CLASSIC, small_data().facts)
    with pytest.raises(RunError, match="has no checkpoint that is whole; nothing can be exported yet"):
        export(tmp_path / "run")
    assert not (tmp_path / "run" / "model.onnx").exists()


def test_it_needs_nothing_but_the_run(tmp_path: Path) -> None:
    """Neither the images nor the data set by its name."""
    recipe = dataclasses.replace(CLASSIC.with_options({"steps": 2, "normalisation": "none"}), data="gone")
    train_whole(recipe, small_data(), tmp_path / "run")
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert load(export(moved).model).metadata["training"]["data"] == "gone"
