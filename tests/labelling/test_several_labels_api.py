"""Labelling where a photo may have several labels: what stands, what is learned and suggested, and what is written."""

from __future__ import annotations

import base64
import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient
from tests_of_labelling import act, state, wait_for

from collages import make_collages, write_manifest
from quickstudy.errors import LabellingError
from quickstudy.images.imageset import load_image_set
from quickstudy.images.manifests import ONE_EACH, Labelling
from quickstudy.labelling.choosing import doubtful_rows
from quickstudy.labelling.session import Session
from quickstudy.labelling.teacher import (
    choose_answer,
    cross_validate,
    find_mistakes,
    find_space,
    fit_live,
    judge_checks,
)
from quickstudy.learning.answers import Thresholds

SEVERAL = Labelling(several=True)
Open = Callable[..., Session]


@pytest.fixture
def tags(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    """60 collages in a folder, and which kinds are in each."""
    return make_collages(tmp_path / "collages", 60, side=80)


@pytest.fixture
def opened(tmp_path: Path, label_cache: Path) -> Open:
    def open_session(source: Path, labelling: Labelling = SEVERAL) -> Session:
        places = tmp_path / "x.labels.csv", tmp_path / "x.onnx"
        return Session(
            source,
            *places,
            cache=label_cache,
            backbone="efficientnet_lite0",
            engine="onnxruntime",
            labelling=labelling,
        )

    return open_session


@pytest.fixture
def session(opened: Open, tags: dict[str, tuple[str, ...]], tmp_path: Path) -> Iterator[Session]:
    session = opened(tmp_path / "collages")
    yield session
    session.close()


def test_an_answer_is_a_whole_set_and_an_empty_one_is_none_of_these(session: Session, opened: Open) -> None:
    ids = [photo.id for photo in session.photos.photos]
    for number, names in enumerate([["discs", "checks", "discs"], [], ["stripes"]]):
        session.act("label", [ids[number]], names=names, seen=[0], who="me")
    assert [session.labels_of(n) for n in range(4)] == [("checks", "discs"), (), ("stripes",), None]
    assert session.labels.mark(ids[1]) is not None
    assert session.training_rows()[0].tolist() == [0, 1, 2]
    assert session.targets(np.arange(3), [0, 1]).tolist() == [[1, 1], [0, 0], [0, 0]]
    assert [(name, n) for _, name, n in session.classes()] == [("discs", 1), ("checks", 1), ("stripes", 1)]
    found = {file.path.name: file.labels for file in load_image_set(session.write_manifest(), labelling=SEVERAL).files}
    assert found == {session.photos.title(n): session.labels_of(n) for n in range(3)}
    with session.photos.manifest.open(newline="") as file:
        assert next(iter(csv.DictReader(file))).keys() == {"path", "labels", "split"}
    session.undo(who="me")
    session.undo(who="me")
    assert [session.labels_of(n) for n in range(3)] == [("checks", "discs"), None, None]
    session.journal.close()
    again = opened(session.photos.source, ONE_EACH)  # the journal knows that photos have several labels
    assert again.several
    assert again.labels_of(0) == ("checks", "discs")
    session.journal = again.journal


def test_new_labels_keep_the_order_in_which_they_were_typed(session: Session, opened: Open) -> None:
    ids = [photo.id for photo in session.photos.photos]
    session.act("label", [ids[0]], names=["stripes", "hat", "Ä", "hat"], seen=[0], who="me")
    session.act("label", [ids[1]], names=["stripes", "checks", "Ä", "a"], seen=[0], who="me")
    order = ["stripes", "hat", "Ä", "checks", "a"]
    assert [name for _, name, _ in session.classes()] == order
    assert session.labels_of(0) == ("hat", "stripes", "Ä")
    session.journal.close()
    session.journal = (again := opened(session.photos.source)).journal
    assert [name for _, name, _ in again.classes()] == order


def test_a_journal_of_one_class_each_goes_on_with_several(opened: Open, session: Session) -> None:
    source = session.photos.source
    session.journal.close()
    session.journal.path.unlink()
    one = opened(source, ONE_EACH)
    ids = [photo.id for photo in one.photos.photos]
    one.act("label", [ids[0]], names=["discs"], seen=[0], who="me")
    one.act("none", [ids[1]], seen=[0], who="me")
    assert one.labels_of(1) is None
    with pytest.raises(LabellingError, match="--several"):
        one.act("label", [ids[2]], names=["discs", "checks"], seen=[0], who="me")
    one.close()
    more = opened(source)
    more.act("label", [ids[0]], names=["discs", "checks"], seen=[1], who="me")
    assert [more.labels_of(n) for n in (0, 1)] == [("checks", "discs"), ()]
    session.journal = more.journal


@pytest.mark.parametrize("separator", ["|", ";"])
def test_a_manifest_of_several_labels_is_labelled_as_one(
    opened: Open, tags: dict[str, tuple[str, ...]], tmp_path: Path, separator: str
) -> None:
    source = write_manifest(tmp_path / "given.csv", tags, folder="collages/", separator=separator)
    session = opened(source, ONE_EACH if separator == "|" else Labelling(several=True, separator=separator))
    assert session.several
    assert {session.photos.photos[n].path.name: session.labels_of(n) for n in range(60)} == tags
    assert session.photos.separator == separator
    with pytest.raises(LabellingError, match="stands between"):
        session.act("label", [session.photos.photos[0].id], names=["a;b"], seen=[0], who="me")
    assert session.write_manifest().read_text().count(separator) > 20
    session.close()
    title = session.photos.title(0)
    text = session.photos.manifest.read_text()
    line = next(line for line in text.splitlines() if title in line)
    session.photos.manifest.write_text(text.replace(line, f"{title},discs{separator}hat,train"))
    again = opened(source, session.photos.labelling)
    assert again.labels_of(0) == ("discs", "hat")  # what others wrote is taken over
    again.close()


def test_a_row_that_is_deleted_takes_all_labels_and_an_empty_cell_is_an_answer(
    opened: Open, tags: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    session = opened(tmp_path / "collages")
    for number in range(3):
        session.act("label", [session.photos.photos[number].id], names=["hat", "shoe"], seen=[0], who="me")
    session.close()
    header, *lines = session.photos.manifest.read_text().splitlines()
    kept = {number: next(line for line in lines if session.photos.title(number) in line) for number in (1, 2)}
    text = "\n".join([header, kept[1].replace("hat|shoe", ""), kept[2], ""])
    session.photos.manifest.write_text(text)
    again = opened(tmp_path / "collages")
    assert [again.labels_of(number) for number in range(3)] == [None, (), ("hat", "shoe")]
    assert (again.taken_over.given, again.taken_over.cleared) == (1, 1)
    again.close()


@pytest.mark.heavy
def test_learns_suggests_and_trains(
    client: TestClient, session: Session, tags: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    found = wait_for(client, lambda s: s["extracted"])
    assert (found["several"], found["can_train"]) == (True, False)
    for _ in range(44):
        photo = state(client)["next"][0]
        if photo["reason"] == "check":
            assert photo["given"] == []
        assert act(client, photo, *tags[photo["name"]], way="one").json()["number"] > 0
    found = wait_for(client, lambda s: s["learned_from"] >= 40 and s["cross"] and s["cross"]["n"] >= 40)
    assert {photo["reason"] for photo in found["next"]} <= {"whether", "few", "unlike", "any", "check", "typical"}
    assert found["cross"]["share"] > 0.6
    assert found["cross"]["precision"]["share"] > 0.6
    assert {one["name"] for one in found["classes"]} == {"checks", "discs", "stripes"}
    assert sum(one["labels"] for one in found["classes"]) > found["labelled"] == 44
    assert all(one["waiting"] <= found["total"] - 44 for one in found["classes"])
    listed = client.get("/api/photos", params={"view": "suggested", "class": "discs"}).json()["photos"]
    assert listed
    assert all("discs" in photo["given"] and photo["labels"] is None for photo in listed)
    labelled = client.get("/api/photos", params={"view": "labelled", "class": "discs", "count": 96}).json()["photos"]
    assert len(labelled) == sum("discs" in tags[photo["name"]] for photo in labelled)
    none = client.get("/api/photos", params={"view": "none"}).json()["photos"]
    assert {photo["labels"] == [] for photo in none} <= {True}
    wait_for(client, lambda s: s["map"])
    label = np.frombuffer(base64.b64decode(client.get("/api/map").json()["label"]), "<i2")
    assert int((label >= 0).sum()) == sum(bool(session.labels_of(n)) for n in range(60))
    client.post("/api/train", json={})
    told = wait_for(client, lambda s: s["training"]["state"] in ("done", "failed"))["training"]
    assert told["state"] == "done", told
    assert told["classes"] == ["checks", "discs", "stripes"]
    picture = (tmp_path / "collages" / "00003.jpg").read_bytes()
    tried = client.post("/api/try", content=picture).json()
    assert set(tried["given"]) <= set(told["classes"])
    query = [("who", "me"), ("name", "discs"), ("name", "hat")]
    kept = client.post("/api/keep", params=query, content=picture + b"\0").json()["photo"]
    number = session.photos.number_by_name(kept)
    assert number is not None
    assert session.labels_of(number) == ("discs", "hat")


def drawn(n: int = 200, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Features of photos with up to three labels, and these as marks."""
    random = np.random.Generator(np.random.Philox(seed))
    marks = (random.random((n, 3)) < 0.4).astype(np.intp)
    directions = random.standard_normal((3, 40)) * 2
    return np.abs(4 + marks @ directions + random.standard_normal((n, 40))).astype(np.float32), marks


NAMES = ("a", "b", "c")


def keys(n: int) -> list[bytes]:
    return [int(k).to_bytes(32, "big") for k in np.random.Generator(np.random.Philox(6)).permutation(n)]


def test_thresholds_checks_and_mistakes_are_of_fits_that_had_not_seen_the_photo() -> None:
    features, truth = drawn()
    space = find_space(features)
    assert space is not None
    rows, checks = space.project(features), np.arange(0, 200, 5)
    for given, least, most in ((truth, 0.9, 1.0), (np.random.default_rng(1).permutation(truth), 0.4, 0.68)):
        head = fit_live(rows, given, NAMES, space)
        assert np.mean((head.probabilities(rows) > 0.5) == given) > 0.69
        judged = cross_validate(rows, given, keys(200), head)
        assert judged is not None
        answer = choose_answer(judged, 3, checks)
        assert isinstance(answer, Thresholds)
        assert answer.n == 160  # those that are no checks
        shares = judge_checks(rows, given, checks, head)
        assert least <= np.mean((shares > 0.5) == given[checks]) <= most
    planted = truth.copy()
    planted[[7, 90], [0, 2]] ^= 1
    judged = cross_validate(rows, planted, keys(200), fit_live(rows, planted, NAMES, space))
    assert judged is not None
    found = {mistake.row: mistake.suggested for mistake in find_mistakes(judged)}
    for row in (7, 90):
        assert found[row] == tuple(np.flatnonzero(truth[row]).tolist())
    alone = truth.copy()
    alone[:, 2] = 0
    alone[5, 2] = 1  # a check that alone tells a label: nobody could know it
    shares = judge_checks(rows, alone, checks, fit_live(rows, alone, NAMES, space))
    assert shares[1, 2] == 0


def test_a_photo_is_asked_for_since_one_label_is_in_doubt() -> None:
    rows = np.eye(4, dtype=np.float32)
    shares = np.array([[0.9, 0.1], [0.9, 0.3], [0.5, 0.02], [0.99, 0.01]], np.float32)
    free = np.ones(4, np.bool_)
    picks = doubtful_rows(
        rows, shares, free, np.zeros(0, np.intp), np.array([9, 9]), ("a", "b"), 3, thresholds=(0.5, 0.3)
    )
    assert {picks[0].row, picks[1].row} == {1, 2}
    assert {(pick.row, pick.reason, pick.of) for pick in picks[:2]} == {(1, "whether", ("b",)), (2, "whether", ("a",))}
