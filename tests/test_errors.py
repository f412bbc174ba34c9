"""Errors say by their class where to look: the input, the installation, or this machine."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import quickstudy
from quickstudy import errors

CAUSES = (errors.InputError, errors.InstallationError, errors.MachineError)


def test_every_error_has_exactly_one_cause() -> None:
    for name, error in inspect.getmembers(errors, inspect.isclass):
        if error is not errors.QuickstudyError:
            assert sum(issubclass(error, cause) for cause in CAUSES) == 1, name


def test_a_caller_can_tell_them_apart(tmp_path: Path) -> None:
    with pytest.raises(quickstudy.InputError):
        quickstudy.retrain(tmp_path / "gone")
    with pytest.raises(quickstudy.InputError):
        quickstudy.retrain(tmp_path, views=-1)
    (tmp_path / "occupied").write_text("a file where the folder should be")
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    with pytest.raises(quickstudy.MachineError):
        quickstudy.retrain(tmp_path / "photos", cache=tmp_path / "occupied" / "cache")
