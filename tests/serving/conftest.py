"""What the tests of serving share: small models, and servers as processes of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import quickstudy
from drawn_photos import draw_photo
from quickstudy.serving.app import make_app
from quickstudy.serving.limits import ServerSettings
from servers import Start, servers
from small_backbones import add_small_backbone


@pytest.fixture(scope="session")
def trained(photo_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos.onnx` (checks, discs, stripes), its thumbnails, and `two.onnx` (checks, discs)."""
    folder = tmp_path_factory.mktemp("served")
    quickstudy.retrain(photo_source, folder / "photos.onnx", cache=folder / "cache", keep_thumbnails=True)
    for name in ("checks", "discs"):
        shutil.copytree(photo_source / name, folder / "two" / name)
    quickstudy.retrain(folder / "two", folder / "two.onnx", cache=folder / "cache")
    return folder


@pytest.fixture(scope="session")
def wary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learned from enough photos to tell what is strange."""
    folder = tmp_path_factory.mktemp("wary")
    for kind in ("checks", "discs"):
        (folder / "photos" / kind).mkdir(parents=True)
        for number in range(40):
            draw_photo(kind, number).save(folder / "photos" / kind / f"{number}.jpg")
    add_small_backbone(folder / "cache")
    return quickstudy.retrain(folder / "photos", folder / "m.onnx", cache=folder / "cache", backbone="small").model


@pytest.fixture
def model_file(trained: Path, tmp_path: Path) -> Path:
    """A copy of `photos.onnx` with its thumbnails that a test may change."""
    for name in ("photos.onnx", "photos.neighbours.arrow"):
        shutil.copy(trained / name, tmp_path / name)
    return tmp_path / "photos.onnx"


@pytest.fixture(scope="session")
def client(trained: Path) -> Iterator[TestClient]:
    """A client of both models, `photos` being the default; nothing is listened on."""
    app = make_app({"photos": trained / "photos.onnx", "other": trained / "two.onnx"}, ServerSettings())
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.fixture(scope="session")
def photo(photo_source: Path) -> Path:
    """One photo, of class `discs`."""
    return photo_source / "discs" / "03.jpg"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `quickstudy serve` with these arguments on a free port; ends what is left at the end."""
    with servers("serve", tmp_path) as start_server:
        yield start_server
