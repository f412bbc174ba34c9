"""Fixtures for tests of the main job."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from quickstudy.backbones.backbone import Backbone


@pytest.fixture
def cache(cache: Path, backbone: Backbone) -> Path:
    """A cache folder that holds the backbone already, and nothing else."""
    shutil.copytree(backbone.path.parent, cache / "backbones")
    return cache
