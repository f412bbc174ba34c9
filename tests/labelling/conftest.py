"""What the tests of labelling share: drawn photos in one folder, sessions, servers as processes of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from starlette.testclient import TestClient
from tests_of_labelling import TOKEN, truth_of

from quickstudy.backbones.backbone import Backbone
from quickstudy.labelling.app import make_label_app
from quickstudy.labelling.session import Session
from quickstudy.serving.limits import ServerSettings
from servers import Start, servers


@pytest.fixture(scope="session")
def label_cache(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Path:
    """A cache folder that all tests of labelling share, with the backbone in it."""
    folder = tmp_path_factory.mktemp("label-cache")
    shutil.copytree(backbone.path.parent, folder / "backbones")
    return folder


@pytest.fixture
def pile(tmp_path: Path, photo_source: Path) -> Path:
    """A folder of 36 photos without labels, each with its class at the beginning of its name.

    Each has a disc of its own in one place or another, so that no two are found to be of the same picture, which
    would be labelled at once.
    """
    folder = tmp_path / "pile"
    folder.mkdir()
    for number, path in enumerate(sorted(photo_source.rglob("*.jpg"))):
        with Image.open(path) as photo:
            left, top = 40 * (number % 6), 35 * (number // 6)
            ImageDraw.Draw(photo).ellipse(
                (left, top, left + 100, top + 90), fill=(20 + 5 * number, 230, 200 - 5 * number)
            )
            photo.save(folder / f"{path.parent.name}-{path.name}", quality=90)
    return folder


@pytest.fixture
def session(pile: Path, tmp_path: Path, label_cache: Path) -> Iterator[Session]:
    """A session on the pile; no thread runs."""
    session = Session(
        pile,
        tmp_path / "pile.labels.csv",
        tmp_path / "pile.onnx",
        cache=label_cache,
        backbone="efficientnet_lite0",
        engine="onnxruntime",
    )
    yield session
    session.close()


@pytest.fixture
def client(session: Session) -> Iterator[TestClient]:
    """A client with the token, on the session with all its threads; the app closes the session."""
    app, end = make_label_app(session, ServerSettings(port=8640, token=TOKEN))
    session.close = lambda: None  # type: ignore[method-assign]  # the fixture of the session closes it
    with TestClient(app, base_url="http://127.0.0.1:8640") as client:
        client.get("/", params={"token": TOKEN})
        yield client
        end()
    del session.close


@pytest.fixture
def start(tmp_path: Path, label_cache: Path) -> Iterator[Start]:
    """Starts `quickstudy label` in the test's folder on a free port; ends what is left at the end."""
    told = {"QUICKSTUDY_CACHE": str(label_cache), "QUICKSTUDY_TOKEN": TOKEN}
    with servers("label", tmp_path, "--no-open", cwd=tmp_path, **told) as start_server:
        yield start_server


@pytest.fixture
def answers(pile: Path) -> dict[str, str]:
    """The class of each photo of the pile by file name."""
    return {path.name: truth_of(path.name) for path in pile.iterdir()}
