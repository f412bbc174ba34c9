"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

# Test processes share the cores, and threads that wait for each other burn what the others need: one each, in what they
# start, too, and where tests ask for several, they soon sleep. Read when NumPy and torch are first imported.
os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"} | os.environ)

import pytest
from hypothesis import settings

import quickstudy
from drawn_photos import draw_photo
from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.loading import load_backbone

# The same examples in every run, and none of them timed: a red build means a change, not bad luck.
settings.register_profile("quickstudy", derandomize=True, deadline=None, database=None)
settings.load_profile("quickstudy")

# No machine loses its power here, so nothing has to wait for its disk.
os.fsync, os.sync = lambda _descriptor: None, lambda: None

# The collector finds next to nothing among the million objects that are imported here, and usually looks often.
gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Tests that need a browser or a cluster are heavy, each of them."""
    for item in items:
        if {"browser", "cluster"} & set(item.fixturenames):
            item.add_marker("heavy")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data that the project does not carry; tests that need it are skipped without it."""
    folder = Path(os.environ.get("QUICKSTUDY_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no test data: '{folder}' is no folder; set QUICKSTUDY_TEST_DATA to one")
    return folder


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The default backbone, built once."""
    return load_backbone("efficientnet_lite0", tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def known_photos(photo_source: Path, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the default backbone and all that an audit of `photo_source` keeps; nothing may change it."""
    folder = tmp_path_factory.mktemp("known") / "cache"
    shutil.copytree(backbone.path.parent, folder / "backbones")
    quickstudy.audit(photo_source, cache=folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache folder."""
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path, photo_source: Path) -> Path:
    """A copy of `photo_source` that a test may change."""
    return Path(shutil.copytree(photo_source, tmp_path / "photos"))


@pytest.fixture(scope="session")
def photo_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders `checks`, `discs` and `stripes` of 12 JPEGs each, 320×280 pixels, easy to tell apart."""
    folder = tmp_path_factory.mktemp("source") / "photos"
    for name in ("checks", "discs", "stripes"):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            draw_photo(name, number).save(folder / name / f"{number:02}.jpg", quality=90)
    return folder
