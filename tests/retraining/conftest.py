"""Fixtures for tests of the main job."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from quickstudy.backbones.backbone import Backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store


@pytest.fixture
def cache(cache: Path, backbone: Backbone) -> Path:
    """A cache folder that holds the backbone already, and nothing else."""
    shutil.copytree(backbone.path.parent, cache / "backbones")
    return cache


@pytest.fixture(scope="session")
def bottlenecks_of_photos(photo_source: Path, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the bottlenecks of `photo_source`, made once."""
    folder = tmp_path_factory.mktemp("filled") / "bottlenecks"
    extract(sorted(photo_source.rglob("*.jpg")), backbone, Store(folder))
    return folder


@pytest.fixture
def filled(cache: Path, bottlenecks_of_photos: Path) -> None:
    """Put them into the cache folder, for tests of what comes after the extraction."""
    shutil.copytree(bottlenecks_of_photos, cache / "bottlenecks")
