"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, with a make-believe camera; what needs it is skipped, visibly, without it or Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium to drive")
    sync_api.expect.set_options(timeout=60_000)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch with one thread: on several, operations as small as those of tests only wait for one another."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
