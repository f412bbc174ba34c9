"""Ways in which images and addresses reach the server: base64, data addresses, a damaged body, a proxy's prefix."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from starlette.testclient import TestClient

from quickstudy.errors import OptionError
from quickstudy.serving.app import make_app
from quickstudy.serving.limits import ServerSettings, as_image_file

CURL = {"Content-Type": "application/x-www-form-urlencoded"}


def test_base64_and_data_addresses_are_the_file(client: TestClient, photo: Path) -> None:
    data = photo.read_bytes()
    expected = client.post("/predict", content=data).json()
    plain = base64.b64encode(data)
    for body in (plain, base64.encodebytes(data), b"data:image/jpeg;base64," + plain):
        assert client.post("/predict", content=body).json() == expected


@pytest.mark.parametrize("body", [b"\xff\xd8\xff", b"data:image/png,raw", b"abc", b"!!!!", b"data:image/png;base64,a"])
def test_all_else_stays_as_it_is(body: bytes) -> None:
    assert as_image_file(body) == body


def test_what_curl_damages_is_answered_with_the_way_out(client: TestClient, photo: Path) -> None:
    data = photo.read_bytes()
    assert client.post("/predict", content=data, headers=CURL).status_code == 200  # as --data-binary sends it
    damaged = data.replace(b"\n", b"").replace(b"\r", b"").replace(b"\0", b"")
    answer = client.post("/predict", content=damaged, headers=CURL)
    assert answer.status_code == 422
    assert "--data-binary @photo.jpg" in answer.json()["error"]
    assert "--data-binary" not in client.post("/predict", content=damaged).json()["error"]


def test_an_unexpected_error_is_json(trained: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("within")

    app = make_app({"photos": trained / "photos.onnx"}, ServerSettings())
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        monkeypatch.setattr("quickstudy.models.model.Model.examine", fail)
        answer = client.post("/predict", content=photo.read_bytes())
        assert answer.status_code == 500
        assert answer.json() == {"error": "the server failed while it answered; its log says why"}
        monkeypatch.undo()
        assert client.post("/predict", content=photo.read_bytes()).status_code == 200


@pytest.mark.parametrize("prefix", ["", "/photos"])
def test_behind_a_prefix_all_addresses_are_below_it(trained: Path, photo: Path, prefix: str) -> None:
    settings = ServerSettings(root_path=prefix, token="t" * 16)
    with TestClient(make_app({"photos": trained / "photos.onnx"}, settings), base_url="http://127.0.0.1") as client:
        for place in ("/", "/docs"):
            page = client.get(prefix + place)
            assert page.status_code == 200
            for link in re.findall(r'(?:href|src)="([^"#]+)"', page.text):
                if not link.startswith("data:"):
                    there = urljoin(f"http://127.0.0.1{prefix}{place}", link)
                    assert there.startswith(f"http://127.0.0.1{prefix}/")
                    assert client.get(there).status_code == 200, link
        for name in ("page.js", "classifier.js"):
            assert not re.search(r"[\"'`]/(?!/)", client.get(f"{prefix}/{name}").text)
        assert client.get(f"{prefix}/models").status_code == 401
        allowed = {"Authorization": f"Bearer {'t' * 16}"}
        assert client.post(f"{prefix}/predict", content=photo.read_bytes(), headers=allowed).status_code == 200
        assert client.get("/model", headers=allowed).status_code == 200  # where the proxy takes the prefix off
        assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": prefix or "/"}]


def test_a_prefix_without_its_slash_leads_to_the_page(trained: Path) -> None:
    settings = ServerSettings(root_path="/photos", token="t" * 16)
    with TestClient(make_app({"photos": trained / "photos.onnx"}, settings), base_url="http://127.0.0.1") as client:
        answer = client.get("/photos", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (308, "/photos/")
        assert "page.js" in client.get("/photos").text
        assert client.get("/photosx", follow_redirects=False).status_code == 401


@pytest.mark.parametrize("prefix", ["photos", "/photos/", "/a b", "//x"])
def test_a_prefix_that_is_none(prefix: str) -> None:
    with pytest.raises(OptionError, match="expected a prefix such as /photos"):
        ServerSettings(root_path=prefix)
