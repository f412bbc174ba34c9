"""The API behind the page: what it answers, to whom, and that nothing that is sent makes it fail."""

from __future__ import annotations

import base64
import csv
import io
import json
import string
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient
from tests_of_labelling import TOKEN, act, state, truth_of, wait_for

from quickstudy.labelling.journal import Act
from quickstudy.labelling.session import Session
from quickstudy.records import read_record


def test_the_token_in_the_address_becomes_a_cookie(client: TestClient) -> None:
    client.cookies.clear()
    assert client.get("/api/state").status_code == 401
    assert client.get("/", params={"token": "another-token-of-some-length"}).status_code == 401
    answer = client.get("/", params={"token": TOKEN}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/api/state").status_code == 200
    client.cookies.clear()
    assert client.get("/api/state", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    for path in ("/photo/0", "/sheet?photos=0", "/api/photos", "/api/map", "/report"):
        assert client.get(path).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Origin": "http://127.0.0.1:8640"}, 200),
    ],
)
def test_other_sites_are_refused(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.get("/api/state", headers=headers).status_code == status


def test_forms_of_other_sites_are_refused(client: TestClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = client.post("/api/act", content=b'{"kind":"class","names":["x"]}', headers={"Content-Type": kind})
        assert answer.status_code == 415


def test_pages_of_the_shell_tell_nothing_and_load_nothing_from_elsewhere(client: TestClient) -> None:
    client.cookies.clear()
    answer = client.get("/")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http" not in answer.text.replace("http-equiv", "")


def test_labels_a_pile_and_learns(client: TestClient, session: Session, answers: dict[str, str]) -> None:
    found = wait_for(client, lambda s: s["extracted"])
    for _ in range(30):
        photo = state(client)["next"][0]
        assert act(client, photo, truth_of(photo["name"]), way="one").json()["number"] > 0
    found = wait_for(client, lambda s: s["cross"] and s["control"] and s["learned_from"] >= 20)
    assert {one["name"] for one in found["classes"]} == {"checks", "discs", "stripes"}
    assert sum(one["labels"] for one in found["classes"]) == found["labelled"] == 30
    assert found["cross"]["share"] > 0.8
    assert found["control"]["n"] >= 5
    assert set(found["milliseconds"]) == {"fit", "suggest", "choose"}
    suggested = client.get("/api/photos", params={"view": "suggested", "class": "discs"}).json()
    assert all(truth_of(photo["name"]) == "discs" for photo in suggested["photos"])
    assert found["next"][0]["reason"] in {"between", "few", "unlike", "any", "check", "typical"}
    wait_for(client, lambda s: s["map"])
    places = client.get("/api/map").json()
    assert places["n"] == 36
    label = np.frombuffer(base64.b64decode(places["label"]), "<i2")
    assert int((label >= 0).sum()) == 30
    x = np.frombuffer(base64.b64decode(places["x"]), "<u2")
    assert len(x) == 36
    first = places["ids"][:16]
    assert client.get("/api/photos", params={"view": "some", "ids": first}).json()["photos"][0]["id"] == first


def test_nothing_is_suggested_for_a_check_that_waits(client: TestClient, session: Session) -> None:
    wait_for(client, lambda s: s["map"])
    checks = {session.photos.photos[number].name for number in session.candidates}
    others = {photo.name for photo in session.photos.photos} - checks
    labelled = set(sorted(others)[:20])
    for photo in session.photos.photos:
        if photo.name in labelled:
            act(client, {"id": photo.name, "seen": 0}, truth_of(photo.path.name))
    found = wait_for(client, lambda s: s["learned_from"] == 20)
    assert len(checks) == 7

    def listed(**query: str) -> list[dict[str, Any]]:
        return list(client.get("/api/photos", params={**query, "count": "48"}).json()["photos"])

    suggested = [one for name in ("checks", "discs", "stripes") for one in listed(view="suggested", **{"class": name})]
    assert {one["id"] for one in suggested} == others - labelled
    assert sum(one["waiting"] for one in found["classes"]) == 9
    first = next(iter(checks))
    assert not checks & {one["id"] for one in listed(view="alike", to=first)}
    assert all(one["guess"] == one["given"] == [] for one in listed(view="some", ids=",".join(checks)))
    places = client.get("/api/map").json()
    label = np.frombuffer(base64.b64decode(places["label"]), "<i2")
    assert {places["ids"][16 * k : 16 * k + 16] for k in np.flatnonzero(label == -2).tolist()} == checks
    act(client, {"id": first, "seen": 0}, "discs")
    assert listed(view="some", ids=first)[0]["guess"] != []


def test_the_reason_check_comes_without_a_suggestion(client: TestClient) -> None:
    wait_for(client, lambda s: s["extracted"])
    seen = 0
    for _ in range(20):
        for photo in state(client)["next"]:
            assert photo["check"] == (photo["reason"] == "check")
            if photo["check"]:
                assert photo["guess"] == []
                seen += 1
        photo = state(client)["next"][0]
        act(client, photo, truth_of(photo["name"]))
    assert seen


def test_undo_goes_back_one_by_one(client: TestClient) -> None:
    photos = state(client)["next"][:2]
    numbers = [act(client, photo, "hat").json()["number"] for photo in photos]
    numbers.append(act(client, {**photos[0], "seen": numbers[0]}, kind="none").json()["number"])
    values = {"who": "me"}
    undone = [client.post("/api/undo", json=values).json() for _ in range(4)]
    assert [one["number"] for one in undone] == [*reversed(numbers), 0]
    assert [one.get("kind") for one in undone] == ["none", "label", "label", None]
    assert undone[0]["photos"] == [photos[0]["id"]]
    assert state(client)["classes"] == []  # a name that was typed by mistake is gone with its last label


def test_two_windows_see_each_others_labels_and_contradictions(client: TestClient) -> None:
    photo = state(client, who="me")["next"][0]
    version = state(client, who="you")["version"]
    act(client, photo, "hat", who="me")
    news = client.get("/api/state", params={"who": "you", "since": version}).json()
    assert [one["name"] for one in news["classes"]] == ["hat"]
    assert photo["id"] not in {one["id"] for one in news["next"]}
    act(client, photo, "shoe", who="you")  # which had not seen it
    found = state(client)
    assert (found["conflicts"], found["labelled"]) == (1, 0)
    listed = client.get("/api/photos", params={"view": "conflicts"}).json()["photos"][0]
    assert [one["names"] for one in listed["said"]] == [["hat"], ["shoe"]]
    act(client, listed, "shoe", who="me", way="review")
    assert (state(client)["conflicts"], state(client)["labelled"]) == (0, 1)


def test_photos_come_encoded_anew_and_small(client: TestClient, session: Session) -> None:
    ids = [photo.name for photo in session.photos.photos[:9]]
    answer = client.get(f"/photo/{ids[0]}")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.content != session.photos.photos[0].path.read_bytes()
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.size == (320, 280)
    sheet = client.get("/sheet", params={"photos": ",".join(ids)})
    with Image.open(io.BytesIO(sheet.content)) as picture:
        assert picture.size == (8 * 128, 2 * 128)
        assert len({picture.getpixel((64 + 128 * k, 64)) for k in range(8)}) > 1


def test_a_broken_photo_is_told_and_asked_for_no_more(client: TestClient, session: Session) -> None:
    session.photos.photos[5].path.write_bytes(b"no longer a photo")
    name = session.photos.photos[5].name
    assert client.get(f"/photo/{name}").status_code == 422
    found = state(client)
    assert found["unusable"][0]["reason"].startswith("changed")
    assert found["total"] == 35
    assert name not in {photo["id"] for photo in found["next"]}


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "%2e%2e%2fetc%2fpasswd", "/etc/passwd", "0" * 16, "x", "pile/discs-00.jpg", "\u00e9"]
)
def test_no_path_that_is_sent_is_opened(client: TestClient, name: str) -> None:
    assert client.get(f"/photo/{name}").status_code in (400, 404)
    assert client.get("/sheet", params={"photos": name}).status_code == 400
    assert act(client, {"id": name, "seen": 0}, "hat").status_code == 400
    assert client.get("/api/photos", params={"view": "alike", "to": name}).status_code == 400


def test_more_like_one_photo(client: TestClient, session: Session) -> None:
    wait_for(client, lambda s: s["map"])
    photo = next(photo for photo in session.photos.photos if photo.path.name.startswith("stripes"))
    found = client.get("/api/photos", params={"view": "alike", "to": photo.name, "count": 8}).json()["photos"]
    assert sum(truth_of(one["name"]) == "stripes" for one in found) >= 7


def test_a_wrong_label_is_among_the_mistakes_until_it_is_confirmed(client: TestClient, session: Session) -> None:
    wait_for(client, lambda s: s["extracted"])
    wrong = session.photos.photos[20]
    for photo in session.photos.photos:
        name = truth_of(photo.path.name)
        if photo is wrong:
            name = "checks" if name != "checks" else "discs"
        act(client, {"id": photo.name, "seen": 0}, name)
    wait_for(client, lambda s: s["mistakes"])
    listed = client.get("/api/photos", params={"view": "mistakes"}).json()["photos"]
    assert listed[0]["id"] == wrong.name
    assert listed[0]["suggested"] == [truth_of(wrong.path.name)]
    act(client, listed[0], *listed[0]["labels"], way="review")
    wait_for(client, lambda s: wrong.name not in json.dumps(client.get("/api/photos?view=mistakes").json()))


def test_train_writes_the_model_its_report_and_it_can_be_tried(
    client: TestClient, session: Session, photo: bytes
) -> None:
    assert client.post("/api/try", content=photo).status_code == 422
    assert client.get("/report").status_code == 404
    for one in session.photos.photos:
        act(client, {"id": one.name, "seen": 0}, truth_of(one.path.name))
    assert client.post("/api/train", json={}).json() == {"started": True}
    found = wait_for(client, lambda s: s["training"]["state"] in ("done", "failed"))["training"]
    assert found["state"] == "done", found
    assert found["test"]["n"] == 7
    assert session.model.is_file()
    report = client.get("/report")
    assert "sandbox" in report.headers["content-security-policy"]
    assert "<html" in report.text
    tried = client.post("/api/try", content=photo).json()
    assert tried["classes"][0][0] == "discs"
    kept = client.post("/api/keep", params={"who": "me", "name": "discs"}, content=photo).json()["photo"]
    assert client.get(f"/photo/{kept}").status_code == 200
    session.write_manifest()
    with session.photos.manifest.open(newline="") as file:
        assert sum("pile.added" in row["path"] for row in csv.DictReader(file)) == 1
    assert client.post("/api/keep", params={"who": "me", "name": "discs"}, content=b"no photo").status_code == 422


def test_too_little_to_train_is_told(client: TestClient) -> None:
    client.post("/api/train", json={})
    found = wait_for(client, lambda s: s["training"]["state"] == "failed")
    assert found["training"]["error"]


@pytest.fixture
def photo() -> bytes:
    from drawn_photos import draw_photo

    target = io.BytesIO()
    draw_photo("discs", 99).save(target, "JPEG")
    return target.getvalue()


WORDS = st.text(max_size=70) | st.sampled_from(["me", "hat", "label", "0" * 16])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(["kind", "photos", "seen", "names", "who", "key", "way", "of", "x"])
KINDS = st.sampled_from(["label", "none", "skip", "clear", "class", "undo", "manifest", ""])
BODIES = (
    st.dictionaries(FIELDS, VALUES, max_size=8)
    | st.fixed_dictionaries(
        {
            "kind": KINDS,
            "photos": st.lists(WORDS | st.just("FIRST"), max_size=3),
            "seen": st.lists(st.integers(0, 9) | VALUES, max_size=3),
        },
        optional={"names": st.lists(WORDS, max_size=3) | VALUES, "who": VALUES, "key": VALUES, "way": VALUES},
    )
    | VALUES
)
QUERIES = st.dictionaries(
    st.sampled_from(
        ["view", "class", "to", "ids", "least", "from", "count", "since", "who", "shown", "photos", "token"]
    ),
    st.text(string.printable, max_size=40)
    | st.sampled_from(["suggested", "alike", "some", "labelled", "0", "-1", "1e9"]),
    max_size=5,
)
PATHS = st.sampled_from(
    [
        "/",
        "/api/act",
        "/api/undo",
        "/api/photos",
        "/api/map",
        "/api/train2",
        "/api/try",
        "/sheet",
        "/photo/x",
        "/report",
    ]
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=PATHS, body=BODIES, query=QUERIES, method=st.sampled_from(["GET", "POST", "PUT", "DELETE"]), raw=st.binary()
)
def test_whatever_is_sent_is_answered_and_never_by_a_failure(
    client: TestClient, session: Session, path: str, body: Any, query: dict[str, str], method: str, raw: bytes
) -> None:
    first = session.photos.photos[0].name
    if isinstance(body, dict) and isinstance(body.get("photos"), list):
        body["photos"] = [first if one == "FIRST" else one for one in body["photos"]]
    for content in (json.dumps(body, allow_nan=True).encode("utf-8", "surrogatepass"), raw):
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
        answer = client.request(method, path, params=query, content=content, headers=headers, follow_redirects=False)
        assert answer.status_code < 500, (answer.status_code, answer.text)
    for line in session.journal.path.read_bytes().splitlines()[1:][-3:]:
        read_record(Act, json.loads(line))  # whatever was written can be read again
    assert client.get("/api/state").status_code == 200
