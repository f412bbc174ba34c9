"""`quickstudy audit` as a user types it: look, plan, apply, undo."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from in_process import Run
from quickstudy.reports.plan import Step, write_plan


@pytest.fixture
def photos(photos: Path, known_photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos with faults: a copy, a wrong label, a broken and a black file, and one without a label."""
    cache = photos.parent / "cache"
    shutil.copytree(known_photos, cache)
    monkeypatch.setenv("QUICKSTUDY_CACHE", str(cache))
    monkeypatch.chdir(photos.parent)
    shutil.copy(photos / "checks" / "05.jpg", photos / "checks" / "copy.jpg")
    shutil.move(photos / "discs" / "03.jpg", photos / "stripes" / "wrong.jpg")
    shutil.move(photos / "discs" / "04.jpg", photos / "loose.jpg")
    (photos / "discs" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing more")
    Image.new("RGB", (300, 300)).save(photos / "checks" / "black.png")
    return photos


def test_look_plan_apply_undo(run: Run, photos: Path) -> None:
    before = sorted(path.relative_to(photos) for path in photos.rglob("*.*"))
    done = run("audit", "photos", "--fix", "plan.csv")
    assert done.code == 0, done.err
    assert "photos: 38 usable images of 3 classes, 1 without a label; 1 file skipped" in done.out
    for words in ("broken.jpg: damaged", "same file: checks/05.jpg = checks/copy.jpg",
                  "stripes/wrong.jpg is labelled 'stripes'; not having seen",
                  "takes it for 'discs', ", "dark      checks/black.png", "loose.jpg: 'discs'", "Label these next",
                  "review it, then: quickstudy audit photos --apply plan.csv"):  # fmt: skip
        assert words in done.out
    assert sorted(path.relative_to(photos) for path in photos.rglob("*.*")) == before
    with Path("plan.csv").open(newline="") as file:
        actions = {row["path"]: (row["action"], row["to"]) for row in csv.DictReader(file)}
    assert actions["checks/copy.jpg"] == ("drop", "")
    assert actions["discs/broken.jpg"] == ("drop", "")
    assert actions["checks/black.png"] == ("drop", "")
    assert actions["stripes/wrong.jpg"][1] == "discs"
    assert actions["loose.jpg"] == ("keep", "discs")

    Path("plan.csv").write_text(Path("plan.csv").read_text().replace("keep,loose", "relabel,loose"))
    again = run("audit", "photos", "--fix", "plan.csv")
    assert again.code == 2
    assert "There is a 'plan.csv' already, which may have been edited" in " ".join(again.err.split())
    done = run("audit", "photos", "--apply", "plan.csv")
    assert done.code == 0, done.err
    assert "nothing is ever deleted" in done.out
    assert "Undo with: quickstudy audit photos --undo plan.undo.csv" in done.out
    assert (photos / "_set_aside" / "checks" / "copy.jpg").exists()
    assert (photos / "discs" / "loose.jpg").exists()
    again = run("audit", "photos")
    assert "copy.jpg" not in again.out
    assert "broken.jpg" not in again.out
    done = run("audit", "photos", "--undo", "plan.undo.csv")
    assert done.code == 0, done.err
    assert sorted(path.relative_to(photos) for path in photos.rglob("*.*")) == before


def test_images_of_which_none_can_be_used(run: Run, photos: Path) -> None:
    for name in ("a/1", "a/2", "b/1"):
        path = Path(f"texts/{name}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    cold = run("census", "texts")
    assert cold.out.startswith("texts: 3 different images; ")
    assert "Nothing is decoded here" in cold.out
    reason = "3 files cannot be used, the first: 'texts/a/1.jpg': not an image"
    for words in (("audit", "texts"), ("audit", "texts", "--json"), ("retrain", "texts")):
        done = run(*words)
        assert (done.code, done.out) == (2, "")
        assert reason in done.err
    done = run("census", "texts")
    assert done.code == 0
    assert done.out.startswith("texts: 3 different images; none of them can be used\n")
    assert reason in done.out.splitlines()[-1]


def test_nothing_found_is_said(run: Run, photos: Path) -> None:
    for name in ("checks", "discs"):
        shutil.copytree(photos / name, f"good/{name}")
    for name in ("checks/copy.jpg", "checks/black.png", "discs/broken.jpg"):
        (Path("good") / name).unlink()
    done = run("audit", "good")
    assert done.code == 0, done.err
    assert done.out.splitlines()[1] == "Nothing found."
    for path in [path for name in ("checks", "discs") for path in sorted(Path("good", name).iterdir())[3:]]:
        path.unlink()
    assert "Classes with few images:\n  'checks': 3 images\n" in run("audit", "good").out
    next(Path("good/discs").iterdir()).unlink()
    assert "Classes with few images (the largest has 1.5 times the smallest):\n" in run("audit", "good").out


def test_json_holds_everything(run: Run, photos: Path) -> None:
    values = json.loads(run("audit", "photos", "--json").out)
    assert values["images"] == 38
    (copies,) = (group for group in values["duplicates"] if group["exact"])
    assert copies["images"] == ["photos/checks/05.jpg", "photos/checks/copy.jpg"]
    assert values["label_errors"][0]["image"] == "photos/stripes/wrong.jpg"
    assert values["suggestions"][0]["label"] == "discs"


def test_what_cannot_be_moved_is_told_and_the_status_says_so(run: Run, photos: Path) -> None:
    Path("plan.csv").write_text("action,path,from,to,reason,sha256\ndrop,checks/none.jpg,,,,\n")
    done = run("audit", "photos", "--apply", "plan.csv")
    assert done.code == 1
    assert "left as it was: checks/none.jpg: no such file" in done.out
    values = json.loads(run("audit", "photos", "--apply", "plan.csv", "--json").out)
    assert values["left"] == [{"path": "checks/none.jpg", "reason": "no such file"}]


def test_a_hostile_plan_is_refused(run: Run, photos: Path) -> None:
    Path("plan.csv").write_text("action,path,from,to,reason,sha256\ndrop,../plan.csv,,,,\n")
    done = run("audit", "photos", "--apply", "plan.csv")
    assert done.code == 2
    assert "does not lie in the image folder" in done.err
    assert "Traceback" not in done.err


def test_one_step_at_a_time(run: Run, photos: Path) -> None:
    done = run("audit", "photos", "--fix", "plan.csv", "--apply", "plan.csv")
    assert done.code == 2
    assert "one at a time" in done.err


def test_a_plan_that_keeps_all_has_nothing_to_undo(run: Run, photos: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.csv"
    image = next(photos.rglob("*.jpg")).relative_to(photos)
    write_plan(plan, [Step(action="keep", path=str(image))])
    done = run("audit", str(photos), "--apply", str(plan))
    assert (done.code, done.out) == (0, "There is nothing to move: the plan keeps every file where it is\n")
    assert not (tmp_path / "plan.undo.csv").exists()


@pytest.mark.parametrize("option", ["--apply", "--undo"])
def test_a_plan_that_is_not_there(run: Run, photos: Path, option: str) -> None:
    done = run("audit", "photos", option, "nope.csv")
    assert (done.code, done.err) == (
        2,
        "quickstudy: No such file: 'nope.csv'; expected a plan that --fix wrote, or to undo one, the file that --apply "
        "wrote\n",
    )
