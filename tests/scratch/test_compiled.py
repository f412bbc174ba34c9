"""Training with torch.compile, through its back end for processors: summaries, interrupts, checkpoints, resumption."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small_runs import FAST, News, differences, newest, small_data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from quickstudy.scratch.data import ImagesAtHand
from quickstudy.scratch.evaluation import evaluate_state
from quickstudy.scratch.export import export
from quickstudy.scratch.folder import RunFolder
from quickstudy.scratch.parallel import Replica
from quickstudy.scratch.recipe import RunSettings, recipe_named
from quickstudy.scratch.state import TrainingState
from quickstudy.scratch.train import train_recipe

DATA = small_data()
PLAIN = FAST.with_options({"evaluate_steps": 5, "whitening_bias_epochs": 1.5, "lookahead_every": 4})
COMPILED = PLAIN.with_options({"compiled": True})
SETTINGS = RunSettings(threads=0, summary_steps=6, log_steps=1, checkpoint_seconds=0)

# The compiler's first step takes some twenty seconds of two busy cores.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
]


def run(path: Path, settings: RunSettings = SETTINGS, report: News | None = None) -> RunFolder:
    folder = RunFolder(path)
    train_recipe(COMPILED, DATA, folder, replica=Replica(), settings=settings, report=report)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("compiled") / "run").path


def test_all_is_written_that_is_written_without(whole: Path, tmp_path: Path) -> None:
    train_recipe(PLAIN, DATA, RunFolder(tmp_path / "plain"), settings=SETTINGS)
    tags = []
    for folder in (whole, tmp_path / "plain"):
        events = EventAccumulator(str(folder / "tensorboard" / "train"))
        events.Reload()
        tags.append(
            {kind: sorted(names) if isinstance(names, list) else names for kind, names in events.Tags().items()}
        )
    assert tags[0] == tags[1]
    assert tags[0]["graph"]
    ours, theirs = newest(whole).state, newest(tmp_path / "plain").state
    assert ours["network"].keys() == theirs["network"].keys()
    for name, value in ours["network"].items():
        torch.testing.assert_close(value, theirs["network"][name], rtol=0.02, atol=0.02)


def test_summaries_change_nothing(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", RunSettings(threads=0, summary_steps=0, log_steps=1, checkpoint_seconds=1e9))
    assert differences(newest(tmp_path / "run").state, newest(whole).state) == []


def test_half_stop_resume_half_is_the_whole_to_the_bit(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path / "run", report=News(stop_after=10))
    assert newest(tmp_path / "run").step == 10
    run(tmp_path / "run")
    assert differences(newest(tmp_path / "run").state, newest(whole).state) == []


def test_its_checkpoints_are_evaluated_and_exported(whole: Path, tmp_path: Path) -> None:
    result = RunFolder(whole).result()
    assert result is not None
    state = TrainingState(COMPILED, side=12, channels=3, classes=3, device=torch.device("cpu"))
    state.load_state_dict(newest(whole).state)
    assert evaluate_state(state, COMPILED, DATA.test, DATA.moments).to_dict() == result["test"]
    assert export(whole, tmp_path / "model.onnx").step == 20


def test_gradients_in_bfloat16_are_those_without_the_compiler() -> None:
    """The compiler rounds at other places forward than backward, where values must not be compared to be found."""
    recipe = recipe_named("cifar10-gpu").with_options({"widths": "8,8", "batch": 20, "precision": "bfloat16"})
    state = TrainingState(recipe, side=12, channels=3, classes=3, device=torch.device("cpu"))
    images = ImagesAtHand(DATA, Replica(), threads=0)
    state.prepare(images.to_prepare(recipe))
    batch = images.pipeline(recipe).make(0)
    found = []
    for network in (state.network, torch.compile(state.network)):
        state.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch.images)
        torch.nn.functional.cross_entropy(logits.float(), batch.labels).backward()
        found.append({name: p.grad for name, p in state.network.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=0.25 * float(gradient.abs().max()))
