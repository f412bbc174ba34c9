"""Fixtures for tests of the main job."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from quickstudy.backbones.backbone import Backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from small_backbones import add_small_backbone


@pytest.fixture(scope="session")
def small_cache(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the default backbone and the small one, which nothing may change."""
    folder = tmp_path_factory.mktemp("small") / "cache"
    shutil.copytree(backbone.path.parent, folder / "backbones")
    add_small_backbone(folder)
    return folder


@pytest.fixture
def cache(cache: Path, small_cache: Path) -> Path:
    """A cache folder that holds the default backbone and the small one already, and nothing else."""
    return Path(shutil.copytree(small_cache, cache))


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
