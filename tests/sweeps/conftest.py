"""What tests of sweeps share."""

from __future__ import annotations

import pytest

from quick_processes import quick_processes
from quickstudy.scratch.data import TrainingData, load_training_data


@pytest.fixture(scope="session", autouse=True)
def _quick_workers() -> None:
    """Workers would each import for seconds what trains for tenths of one."""
    quick_processes()


@pytest.fixture(scope="module")
def data() -> TrainingData:
    """The digits, all to train on but the tests."""
    return load_training_data("digits", image_size=32, validation=0)
