"""A session: what it takes over, what it learns from and what it does not, and the manifest that it writes."""

from __future__ import annotations

import csv
import hashlib
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quickstudy.cli.main import run as quickstudy
from quickstudy.errors import ImageSetError, LabellingError, ModelError, WriteError
from quickstudy.images.census import take_census
from quickstudy.labelling.journal import LONGEST_NAME, class_name, class_names
from quickstudy.labelling.photos import places_beside
from quickstudy.labelling.session import Session

Open = Callable[..., Session]


@pytest.fixture
def opened(tmp_path: Path, label_cache: Path) -> Open:
    def open_session(source: Path) -> Session:
        places = tmp_path / "x.labels.csv", tmp_path / "x.onnx"
        return Session(source, *places, cache=label_cache, backbone="efficientnet_lite0", engine="onnxruntime")

    return open_session


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_labels_are_there_again_after_a_restart(opened: Open, pile: Path, tmp_path: Path) -> None:
    session = opened(pile)
    ids = [photo.id for photo in session.photos.photos]
    for number, name in enumerate(["hat", "shoe", "hat"]):
        session.act("label", [ids[number]], names=[name], seen=[0], who="me")
    session.act("none", [ids[3]], seen=[0], who="me")
    session.undo(who="me")
    session.close()
    again = opened(pile)
    assert [again.labels_of(number) for number in range(4)] == [("hat",), ("shoe",), ("hat",), None]
    undone = again.undo(who="another browser")  # of before the restart: whoever comes may go on
    assert undone is not None
    assert undone.photos == (ids[2],)
    again.close()
    assert sorted(row["label"] for row in rows(tmp_path / "x.labels.csv")) == ["hat", "shoe"]
    assert {Path(row["path"]).is_absolute() for row in rows(tmp_path / "x.labels.csv")} == {False}


def test_an_archive_is_labelled_like_its_folder(opened: Open, pile: Path, tmp_path: Path) -> None:
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "pile"))
    session = opened(packed)
    photo = session.photos.photos[0]
    assert (len(session.photos), session.photos.title(0)) == (36, f"packed/{photo.path.name}")
    session.act("label", [photo.id], names=["hat"], seen=[0], who="me")
    session.close()
    [row] = rows(tmp_path / "x.labels.csv")
    assert (tmp_path / row["path"]).read_bytes() == (pile / photo.path.name).read_bytes()
    assert places_beside(packed, None, None) == (Path("packed.labels.csv"), Path("packed.onnx"))
    assert opened(packed).labels_of(0) == ("hat",)


def test_an_act_that_is_sent_twice_counts_once(session: Session) -> None:
    photo = session.photos.photos[0].id
    assert session.act("label", [photo], names=["hat"], seen=[0], who="me", key="k1") is not None
    assert session.act("label", [photo], names=["hat"], seen=[0], who="me", key="k1") is None
    assert session.undo(who="me", key="k2") is not None
    assert session.undo(who="me", key="k2") is None
    assert session.labels_of(0) is None


def test_the_check_is_the_beginning_of_a_random_order(session: Session) -> None:
    ids = [photo.id for photo in session.photos.photos]
    assert session.candidates.tolist() == list(range(7))  # a fifth of 36
    for number in (0, 1, 3, 20, 21):
        session.act("label", [ids[number]], names=["hat" if number % 2 else "shoe"], seen=[0], who="me")
    learned, control = session.training_rows()
    assert control.tolist() == [0, 1]  # 2 waits, so 3 is no fair choice yet
    assert learned.tolist() == [0, 1, 3, 20, 21]
    session.act("skip", [ids[2]], seen=[0], who="me")
    learned, control = session.training_rows()
    assert control.tolist() == [0, 1, 3]
    assert learned.tolist() == [0, 1, 3, 20, 21]
    session.write_manifest()
    splits = {row["path"]: row["split"] for row in rows(session.photos.manifest)}
    assert splits[f"pile/{session.photos.title(3)}"] == "test"
    assert sorted(splits.values()) == ["test"] * 3 + ["train"] * 2


def test_retrain_reads_the_roles_from_the_manifest(session: Session) -> None:
    for number, photo in enumerate(session.photos.photos):
        session.act("label", [photo.id], names=[photo.path.name.partition("-")[0]], seen=[0], who="me")
        if number > 12:
            break
    census = take_census(session.write_manifest(), None)
    assert sorted(census.digests("test")) == [session.photos.photos[n].digest for n in session.control().tolist()]


def test_class_folders_half_labelled_and_given_splits(opened: Open, photo_source: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(photo_source / "discs", half / "discs")
    shutil.copytree(photo_source / "checks", half / "unlabelled")
    session = opened(half)
    assert [name for _, name, _ in session.classes()] == ["discs"]
    assert int(session.labelled.sum()) == 12
    discs = next(n for n in range(24) if session.labels_of(n) == ("discs",))
    session.act("label", [session.photos.photos[discs].id], names=["checks"], seen=[0], who="me")
    assert session.labels_of(discs) == ("checks",)
    session.close()
    (tmp_path / "x.labels.journal").unlink()
    (tmp_path / "x.labels.csv").unlink()
    split = tmp_path / "split"
    shutil.copytree(photo_source, split / "train")
    (split / "test").mkdir()
    shutil.move(split / "train" / "discs", split / "test" / "discs")
    session = opened(split)
    learned, control = session.training_rows()
    assert {session.labels_of(n) for n in control.tolist()} == {("discs",)}
    assert {session.labels_of(n) for n in learned.tolist()} == {("checks",), ("stripes",)}
    session.close()


def test_what_others_wrote_into_the_manifest_is_taken_over(opened: Open, pile: Path, tmp_path: Path) -> None:
    session = opened(pile)
    session.act("label", [session.photos.photos[0].id], names=["hat"], seen=[0], who="me")
    session.close()
    manifest = tmp_path / "x.labels.csv"
    title = session.photos.title(1)
    manifest.write_text(manifest.read_text().replace("hat", "cap") + f"pile/{title},shoe,train\n")
    again = opened(pile)
    assert [again.labels_of(n) for n in (0, 1)] == [("cap",), ("shoe",)]
    again.act("label", [again.photos.photos[2].id], names=["cap"], seen=[0], who="me")
    data = manifest.read_bytes()
    again.journal.close()  # as a kill would, before the manifest was written
    third = opened(pile)
    assert third.labels_of(2) == ("cap",)  # the manifest is older than the journal, and its own
    third.close()
    assert manifest.read_bytes() != data


class TestAManifestThatIsEditedByHand:
    """Rows are deleted, emptied, put back; what stands follows, and nothing else does."""

    @pytest.fixture
    def manifest(self, opened: Open, pile: Path, tmp_path: Path) -> Path:
        """A manifest of the first three photos, all hats."""
        session = opened(pile)
        label(session, 0, 1, 2)
        session.close()
        return tmp_path / "x.labels.csv"

    @pytest.mark.parametrize("by", ["row", "label"])
    def test_a_label_that_is_deleted_stays_deleted(self, opened: Open, pile: Path, manifest: Path, by: str) -> None:
        whole = manifest.read_text()
        line = line_of(manifest, 1, pile)
        manifest.write_text(whole.replace(line, "" if by == "row" else line.replace("hat", "")))
        session = opened(pile)
        assert (session.taken_over.given, session.taken_over.cleared) == (0, 1)
        assert labels_of(session) == [("hat",), None, ("hat",)]
        assert session.free()[1]  # so it is asked for again
        session.close()
        assert len(rows(manifest)) == 2
        again = opened(pile)
        assert (again.taken_over.cleared, labels_of(again)[1]) == (0, None)
        again.close()
        manifest.write_text(manifest.read_text() + line.replace("hat", "cap"))
        third = opened(pile)
        assert (third.taken_over.given, labels_of(third)) == (1, [("hat",), ("cap",), ("hat",)])
        third.close()

    def test_what_the_manifest_did_not_have_yet_is_not_deleted(self, opened: Open, pile: Path, manifest: Path) -> None:
        session = opened(pile)
        label(session, 3)
        label(session, 0, name="cap")
        session.journal.close()  # as a kill would, before the manifest was written
        line = line_of(manifest, 2, pile)
        manifest.write_text(manifest.read_text().replace(line, ""))
        again = opened(pile)
        assert [again.labels_of(n) for n in range(4)] == [("cap",), ("hat",), None, ("hat",)]
        again.close()

    def test_photos_that_were_elsewhere_keep_their_labels(
        self, opened: Open, pile: Path, manifest: Path, tmp_path: Path
    ) -> None:
        session = opened(pile)
        away = session.photos.photos[0].path
        session.close()
        away.rename(tmp_path / away.name)
        session = opened(pile)
        label(session, 5)
        session.close()
        assert len(rows(manifest)) == 3
        (tmp_path / away.name).rename(away)
        manifest.write_text(manifest.read_text().replace("hat", "cap"))
        again = opened(pile)
        assert labels_of(again) == [("hat",), ("cap",), ("cap",)]
        again.close()

    def test_a_manifest_that_is_gone_takes_no_label_with_it(self, opened: Open, pile: Path, manifest: Path) -> None:
        manifest.unlink()
        session = opened(pile)
        assert labels_of(session) == [("hat",)] * 3
        session.close()
        assert len(rows(manifest)) == 3

    def test_labels_that_photos_came_with_stay(self, opened: Open, pile: Path, tmp_path: Path) -> None:
        first, second = sorted(pile.iterdir())[:2]
        source = tmp_path / "given.csv"
        source.write_text(f"path,label\npile/{first.name},hat\npile/{second.name},hat\n")
        session = opened(source)
        label(session, 0, name="cap")
        session.close()
        (tmp_path / "x.labels.csv").write_text("path,label\n")
        again = opened(source)
        assert [again.labels_of(n) for n in (0, 1)] == [None, ("hat",)]
        again.close()


def label(session: Session, *numbers: int, name: str = "hat") -> None:
    for number in numbers:
        photo = session.photos.photos[number].id
        mark = session.labels.mark(photo)
        session.act("label", [photo], names=[name], seen=[mark.number if mark else 0], who="me")


def line_of(manifest: Path, number: int, pile: Path) -> str:
    """Return the line of the photo that is so far on in the order of content hashes."""
    title = sorted(pile.iterdir(), key=lambda path: hashlib.sha256(path.read_bytes()).digest())[number].name
    return next(line for line in manifest.read_text().splitlines(keepends=True) if title in line)


def labels_of(session: Session) -> list[tuple[str, ...] | None]:
    return [session.labels_of(number) for number in range(3)]


def test_a_manifest_of_other_photos_is_not_written_over(opened: Open, pile: Path, tmp_path: Path) -> None:
    (tmp_path / "x.labels.csv").write_text("path,label\nelsewhere/1.jpg,hat\n")
    with pytest.raises(LabellingError, match="elsewhere/1"):
        opened(pile)
    assert (tmp_path / "x.labels.csv").read_text() == "path,label\nelsewhere/1.jpg,hat\n"


def test_rows_of_a_photo_that_contradict_are_told_and_the_same_ones_are_one(
    opened: Open, pile: Path, tmp_path: Path
) -> None:
    first, second = sorted(pile.iterdir())[:2]
    (pile / "copy.jpg").write_bytes(first.read_bytes())
    manifest = tmp_path / "x.labels.csv"
    same = f"path,label\npile/{first.name},hat\npile/{first.name},hat\npile/{second.name},cap\n"
    text = f"{same}pile/{second.name},\npile/copy.jpg,cap\n"
    manifest.write_text(text)
    with pytest.raises(LabellingError) as caught:
        opened(pile)
    told = [f"row 1 'pile/{first.name}' (hat)", "row 5 'pile/copy.jpg' (cap)", "1 photo is"]
    assert all(part in str(caught.value) for part in told), caught.value
    assert manifest.read_text() == text
    manifest.write_text(same)
    session = opened(pile)
    assert sorted(filter(None, map(session.labels_of, range(len(session.photos))))) == [("cap",), ("hat",)]
    session.close()


def test_a_manifest_with_columns_of_its_own_is_not_written_over(opened: Open, pile: Path, tmp_path: Path) -> None:
    text = f"path,label,photographer\n{pile}/{next(pile.iterdir()).name},discs,Ann\n"
    (tmp_path / "x.labels.csv").write_text(text)
    with pytest.raises(LabellingError, match="'photographer'"):
        opened(pile)
    assert (tmp_path / "x.labels.csv").read_text() == text


def test_an_added_photo_is_kept_beside_the_manifest_and_is_no_check(opened: Open, pile: Path, photo: bytes) -> None:
    session = opened(pile)
    added = session.add_photo(photo)
    assert session.add_photo(photo) == added
    session.act("label", [added], names=["hat"], seen=[0], who="me", way="try")
    number = session.photos.number_of[added]
    assert bool(session.have[number])
    assert number not in session.candidates
    session.close()
    again = opened(pile)
    assert again.labels_of(again.photos.number_of[added]) == ("hat",)
    assert again.photos.photos[again.photos.number_of[added]].added
    assert again.photos.number_of[added] not in again.candidates
    assert len(list(pile.iterdir())) == 36
    again.close()


@pytest.fixture
def photo() -> bytes:
    import io

    from drawn_photos import draw_photo

    target = io.BytesIO()
    draw_photo("discs", 99).save(target, "PNG")
    return target.getvalue()


def test_pictures_that_are_the_same_are_labelled_once(session: Session) -> None:
    session.group[9] = session.group[30] = 4
    ids = [photo.id for photo in session.photos.photos]
    session.act("skip", [ids[30]], seen=[0], who="me")
    act = session.act("label", [ids[4]], names=["hat"], seen=[0], who="me")
    assert act is not None
    assert set(act.photos) == {ids[4], ids[9]}  # of the third, something had been said
    session.act("label", [ids[20]], names=["shoe"], seen=[0], who="me")
    learned, _ = session.training_rows()
    assert learned.tolist() == [4, 20]
    for number in (0, 1, 2, 3):
        session.act("label", [ids[number]], names=["shoe"], seen=[0], who="me")
    learned, control = session.training_rows()
    assert control.tolist() == [0, 1, 2, 3, 4]
    assert learned.tolist() == [0, 1, 2, 3, 4, 20]  # 9 is the picture of 4, which checks
    session.undo(who="me")
    session.undo(who="me")


def test_two_people_get_different_photos(session: Session) -> None:
    mine = {pick.row for pick in session.next_for("me", 10)}
    yours = {pick.row for pick in session.next_for("you", 10)}
    assert len(mine) == len(yours) == 10
    assert not mine & yours


@pytest.mark.parametrize("name", ["", "  ", "a" * (LONGEST_NAME + 1), "a\nb", None, 7, "\ud800"])
def test_what_cannot_be_the_name_of_a_class(name: object) -> None:
    with pytest.raises(LabellingError):
        class_name(name)
    assert class_name(" Mütze ") == "Mütze"


def test_a_class_that_differs_in_case_only_is_refused() -> None:
    with pytest.raises(LabellingError, match="'pants'"):
        class_names(["Pants"], ["hat", "pants"], most=1, separators=())
    with pytest.raises(LabellingError, match="'new'"):
        class_names(["new", "NEW"], ["hat"], most=9, separators=())
    assert class_names(["Pants"], ["pants", "Pants"], most=1, separators=()) == ("Pants",)
    assert class_names(["pants", "trousers"], ["pants"], most=9, separators=()) == ("pants", "trousers")


def test_places_follow_the_name_of_the_photos(tmp_path: Path) -> None:
    assert places_beside(tmp_path / "my photos", None, None) == (Path("my photos.labels.csv"), Path("my photos.onnx"))
    manifest = tmp_path / "a.labels.csv"
    manifest.write_text("path,label\n")
    with pytest.raises(LabellingError):
        places_beside(manifest, manifest, None)
    with pytest.raises(LabellingError):
        places_beside(tmp_path, Path("x.txt"), None)
    with pytest.raises(ModelError, match=r"named \*\.onnx; got 'x\.txt'"):
        places_beside(tmp_path, None, Path("x.txt"))
    for places in ((tmp_path / "no" / "x.csv", None), (None, tmp_path / "no" / "x.onnx")):
        with pytest.raises(WriteError, match="no folder"):
            places_beside(tmp_path, *places)
    assert not (tmp_path / "no").exists()


def test_a_port_that_is_taken_is_told_before_anything_is_written(
    pile: Path, label_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in pile.parent.iterdir()}
    monkeypatch.chdir(pile.parent)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(sys, "argv", ["quickstudy", "label", "pile", "--port", port, "--cache", str(label_cache)])
        with pytest.raises(SystemExit) as end:
            quickstudy()
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert port in told
    assert "--port" in told
    assert "--host" not in told
    assert {path.name for path in pile.parent.iterdir()} == before


def test_there_must_be_photos(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageSetError):
        opened(tmp_path / "empty")


def test_a_folder_of_which_no_file_is_an_image_is_refused_with_the_reason(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    for name in ("b.jpg", "a.jpg"):
        (tmp_path / "broken" / name).write_bytes(b"no image: " + name.encode())
    with pytest.raises(ImageSetError, match=r"a\.jpg': not an image"):
        opened(tmp_path / "broken")
    assert not list(tmp_path.glob("*.journal"))
