"""Who is answered: hosts, origins, tokens; and the settings that refuse to be careless."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from quickstudy.errors import OptionError
from quickstudy.serving.app import make_app
from quickstudy.serving.limits import ServerSettings, is_loopback

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def guarded(trained: Path) -> TestClient:
    app = make_app({"photos": trained / "photos.onnx"}, ServerSettings(host="0.0.0.0", token=TOKEN))
    return TestClient(app, base_url="http://192.0.2.7:8000")


class TestHosts:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:9", "LOCALHOST", "[::1]:8000"])
    def test_the_machines_own_names_are_answered(self, client: TestClient, host: str) -> None:
        assert client.get("/model", headers={"host": host}).status_code == 200

    @pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::2]", "["])
    def test_others_are_not_lest_a_site_point_its_name_here(self, client: TestClient, host: str) -> None:
        for path in ("/model", "/", "/healthz", "/predict"):
            assert client.get(path, headers={"host": host}).status_code == 421

    def test_a_proxys_name_can_be_allowed(self, trained: Path) -> None:
        settings = ServerSettings(allowed_hosts=("Photos.example.org",))
        with TestClient(make_app({"photos": trained / "photos.onnx"}, settings)) as proxied:
            assert proxied.get("/model", headers={"host": "photos.example.org"}).status_code == 200
            assert proxied.get("/model", headers={"host": "127.0.0.1:8000"}).status_code == 200
            assert proxied.get("/model", headers={"host": "example.org"}).status_code == 421
            own = {"host": "127.0.0.1:8000", "origin": "https://photos.example.org"}
            assert proxied.get("/model", headers=own).status_code == 200

    def test_on_an_address_for_others_every_name_is_answered(self, guarded: TestClient) -> None:
        assert guarded.get("/healthz", headers={"host": "anything.example"}).status_code == 200


class TestOrigins:
    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://[", ""])
    def test_pages_of_other_sites_are_refused(self, client: TestClient, origin: str) -> None:
        answer = client.post("/predict", content=b"x", headers={"origin": origin})
        assert answer.status_code == 403
        assert not any(name.startswith("access-control") for name in answer.headers)

    def test_the_servers_own_page_is_answered(self, client: TestClient) -> None:
        assert client.get("/model", headers={"origin": "http://127.0.0.1:8000"}).status_code == 200


class TestTokens:
    @pytest.mark.parametrize("path", ["/model", "/models", "/models/photos", "/metrics", "/nothing", "/predict"])
    @pytest.mark.parametrize(
        "given", [None, TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ", "Bearer \xff"]
    )
    def test_whoever_has_none_gets_401(self, guarded: TestClient, path: str, given: str | None) -> None:
        headers = {} if given is None else {"authorization": given.encode("latin-1")}
        answer = guarded.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"

    def test_whoever_has_it_is_answered(self, guarded: TestClient, photo: Path) -> None:
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert guarded.get("/model", headers=headers).status_code == 200
        assert guarded.post("/predict", content=photo.read_bytes(), headers=headers).status_code == 200

    @pytest.mark.parametrize(
        "path", ["/", "/page.js", "/page.css", "/classifier.js", "/docs", "/openapi.json", "/healthz", "/readyz"]
    )
    def test_what_tells_nothing_takes_none(self, guarded: TestClient, path: str) -> None:
        answer = guarded.get(path)
        assert answer.status_code == 200
        assert "checks" not in answer.text.replace("health checks", "")


class TestHeaders:
    @pytest.mark.parametrize("path", ["/", "/docs", "/model", "/nothing", "/metrics"])
    def test_every_answer_is_fenced_in(self, client: TestClient, path: str) -> None:
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"

    def test_refusals_too(self, client: TestClient) -> None:
        assert "content-security-policy" in client.get("/", headers={"host": "evil.example"}).headers


class TestSettings:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "photos.example.org", "127.0.0.1.example.org"])
    def test_another_address_takes_a_token_or_an_explicit_no(self, host: str) -> None:
        with pytest.raises(OptionError, match="--token"):
            ServerSettings(host=host)
        assert ServerSettings(host=host, token=TOKEN).names is None
        assert ServerSettings(host=host, no_auth=True).names is None

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
    def test_this_machines_own_takes_nothing(self, host: str) -> None:
        assert is_loopback(host)
        assert ServerSettings(host=host).names

    @pytest.mark.parametrize(
        "token", ["short", "with space in it all", "with\nline break in it", "ümläute-und-mehr-davon"]
    )
    def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(self, token: str) -> None:
        with pytest.raises(OptionError, match="openssl rand"):
            ServerSettings(token=token)

    def test_contradictions_are_refused(self) -> None:
        with pytest.raises(OptionError, match="contradict"):
            ServerSettings(token=TOKEN, no_auth=True)
        with pytest.raises(OptionError, match="'threads' must be at least 1; got 0"):
            ServerSettings(threads=0)
