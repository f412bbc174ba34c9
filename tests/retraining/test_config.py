"""What `retrain` may be told is said once: the command line, Python, sweeps and the record follow from it."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import quickstudy
from quickstudy.cli.options import offering
from quickstudy.errors import OptionError
from quickstudy.images.distortions import Distortions
from quickstudy.options import fields_of
from quickstudy.retraining.config import Method, RetrainConfig
from quickstudy.sweeps.tasks import task_named

CONFIGS = [
    RetrainConfig(),
    RetrainConfig(cut="block_2", views=3, distortions=Distortions(flip=False, crop=0.25), class_weight="balanced"),
    RetrainConfig(cut="block_2", method=Method(epochs=3, mixup=0.2, seed=7), l2=0.25, dtype="float32"),
    RetrainConfig(budget_seconds=90, disk_bytes=2e9, strict=True, keep_roles=False),
    RetrainConfig(progressive=True, engine="openvino", keep_thumbnails=True, roles_of=Path("old.onnx")),
]


def as_the_command_line_reads(words: list[str]) -> RetrainConfig:
    app, found = typer.Typer(), []

    @app.command()
    @offering(RetrainConfig())
    def command(*, given: dict[str, Any], options: list[str] = typer.Option([], "--set")) -> None:  # noqa: B008
        found.append(RetrainConfig.told(given | dict(option.split("=") for option in options)))

    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (result.output, result.exception)
    return found[0]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_command_line_reads_what_it_is_told_to_repeat(config: RetrainConfig) -> None:
    words = config.command_line()
    written = {"disk_bytes": "2GB"}  # a size has a unit
    words = [written["disk_bytes"] if word == "2000000000" else word for word in words]
    assert as_the_command_line_reads(words) == config


@pytest.mark.parametrize("config", CONFIGS)
def test_the_record_gives_the_configuration_again_but_for_what_changes_nothing(config: RetrainConfig) -> None:
    recorded = json.loads(json.dumps(config.recorded()))
    assert "roles_of" not in recorded
    assert RetrainConfig.recalled(recorded).recorded() == config.recorded()


def test_python_names_all_with_their_defaults() -> None:
    parameters = inspect.signature(quickstudy.retrain).parameters
    for field in fields(RetrainConfig):
        assert parameters[field.name].default == getattr(RetrainConfig(), field.name)


def test_a_sweep_has_all_as_axes() -> None:
    assert set(task_named("retrain", {}).options()) == {"data"} | {one.name for one in fields_of(RetrainConfig())}
    task = task_named("retrain", {"views": "auto", "budget_seconds": "1m", "class_weight": "none", "mixup": "0.5"})
    assert task.options()["budget_seconds"] == 60
    assert task.options()["views"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vews": 1}, "did you mean 'views'"),
        ({"views": 1.5}, "views is '1.5'; expected a whole number"),
        ({"dtype": "float64"}, "dtype is 'float64'; expected float16 or float32"),
        ({"method": 3}, "method is 3; expected a Method"),
        ({"crop": 0.2}, "--random-crop distorts views"),
        ({"crop": 1.2, "views": 1}, "--random-crop is 120 %"),
        ({"method": Method(epochs=3)}, "--epochs is for fine-tuning"),
        ({"cut": "b", "budget_seconds": 60}, "--budget chooses the cut"),
        ({"epochs": 3, "budget_seconds": 60}, "--budget chooses the cut"),
        ({"disk_bytes": 1e9}, "--disk only works with --budget"),
        ({"budget_seconds": -1}, "budget_seconds is -1"),
        ({"epochs": 0, "cut": "b"}, "epochs is 0"),
        ({"rate": float("nan"), "cut": "b"}, "rate is nan"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as raised:
        RetrainConfig.told(options)
    assert words in str(raised.value)


def test_what_does_nothing_is_as_by_default_in_a_sweep() -> None:
    config = RetrainConfig(method=Method(epochs=3), distortions=Distortions(crop=0.3))
    assert config.acting() == RetrainConfig()
    assert RetrainConfig(cut="b", method=Method(epochs=3)).acting().method.epochs == 3


@pytest.mark.parametrize(
    ("options", "network", "seen"),
    [
        ({}, "efficientnet_lite0", "auto"),
        ({"preset": "fast"}, "efficientnet_lite0", "last"),
        ({"preset": "best"}, "efficientnet_lite0+efficientnet_lite2", "auto"),
        ({"preset": "best", "levels": "all"}, "efficientnet_lite0+efficientnet_lite2", "all"),
        ({"preset": "fast", "backbone": "other"}, "other", "last"),
        ({"backbone": "other", "levels": "all"}, "other", "all"),
        ({"cut": "block_12"}, "efficientnet_lite0", "last"),
    ],
)
def test_a_preset_gives_what_is_not_named(options: dict[str, Any], network: str, seen: str) -> None:
    config = RetrainConfig.told(options)
    assert (config.network, config.seen) == (network, seen)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "fast", "backbone": "a", "levels": "all"}, "--preset chooses the backbone and the levels"),
        ({"preset": "best", "backbone": "a", "cut": "b"}, "--preset chooses the backbone and the levels"),
        ({"levels": "all", "cut": "b"}, "--levels is for the linear head"),
        ({"preset": "better"}, "preset is 'better'; expected fast, good or best"),
    ],
)
def test_presets_and_levels_that_do_nothing_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as raised:
        RetrainConfig.told(options)
    assert words in str(raised.value)
