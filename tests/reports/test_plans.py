"""Plans: what they propose, that they survive spreadsheets, and that carrying them out loses nothing."""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evidences import make_evidence, make_gallery
from hypothesis import given
from hypothesis import strategies as st

from quickstudy.errors import AuditError, ImageSetError
from quickstudy.images.imageset import Skipped, load_image_set
from quickstudy.reports.audit import draw_findings
from quickstudy.reports.carrying_out import apply_plan, undo_plan
from quickstudy.reports.findings import DuplicateGroup
from quickstudy.reports.plan import Step, make_plan, read_plan, write_plan

text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def plan_file(folder: Path, *steps: Step) -> Path:
    path = folder / "plan.csv"
    write_plan(path, steps)
    return path


@given(st.lists(st.tuples(st.sampled_from(["drop", "relabel", "move", "keep"]), text, text, text, text), max_size=5))
def test_a_plan_is_read_as_it_was_written(tmp_path_factory, rows) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.csv"
    steps = tuple(Step(action=a, path=p, label=f, to=t, reason=r, sha256="00ff") for a, p, f, t, r in rows)
    write_plan(path, steps)
    assert read_plan(path) == steps


def test_no_cell_is_a_formula(tmp_path) -> None:
    path = plan_file(tmp_path, Step(action="keep", path="=cmd()|x.jpg", label="+1", to="@b", reason="-2", sha256=""))
    with path.open(newline="") as file:
        cells = list(csv.reader(file))[1]
    assert cells[1:5] == ["'=cmd()|x.jpg", "'+1", "'@b", "'-2"]


@pytest.mark.skipif(sys.platform == "win32", reason="file names are always valid text there")
def test_names_that_are_not_text_survive(tmp_path) -> None:
    name = os.fsdecode(b"a/\xff.jpg")
    photos = tmp_path / "photos"
    try:
        fill(photos / "a", os.fsdecode(b"\xff.jpg"))
    except (OSError, UnicodeEncodeError):
        (photos / "a").mkdir(parents=True, exist_ok=True)
        try:
            (photos / name).write_bytes(b"x")
        except OSError:
            pytest.skip("this file system takes only valid text")
    plan = plan_file(tmp_path, Step(action="drop", path=name))
    assert apply_plan(photos, plan).moved == 1
    assert not (photos / name).exists()
    assert undo_plan(photos, tmp_path / "plan.undo.csv").moved == 1
    assert (photos / name).exists()


def test_what_is_proposed() -> None:
    names = ["a/0.jpg", "a/1.jpg", "a/2.jpg", "b/0.jpg", "b/1.jpg", "b/2.jpg", "b/3.jpg", "new.jpg"]
    labels = [name[0] if "/" in name else None for name in names]
    probabilities = np.array([[0.99, 0.01]] * 3 + [[0.02, 0.98]] * 4 + [[0.9, 0.1]])
    probabilities[2] = [0.0001, 0.9999]
    probabilities[6] = [0.9, 0.1]
    contents = [b"x", b"x", b"2", b"3", b"4", b"x", b"6", b"7"]
    evidence = make_evidence(names, labels, probabilities=probabilities, contents=contents)
    gallery = make_gallery(8, brightness=[0.5, 0.5, 0.5, 0.01, 0.5, 0.5, 0.5, 0.5], sharpness=[0.3] * 4 + [0.01] * 4)
    steps = {step.path: step for step in make_plan(evidence, gallery, draw_findings(evidence, gallery))}
    assert steps["a/0.jpg"].action == "keep"
    assert steps["a/1.jpg"].action == "drop"
    assert "a/0.jpg" in steps["a/1.jpg"].reason
    assert steps["b/2.jpg"].action == "drop"  # the same file under the label that is not believed
    assert (steps["a/2.jpg"].action, steps["a/2.jpg"].to) == ("relabel", "b")
    assert steps["b/0.jpg"].action == "drop"
    assert steps["b/0.jpg"].reason.startswith("dark")
    assert steps["b/1.jpg"].action == "keep"
    assert steps["b/1.jpg"].reason.startswith("blurred")
    assert (steps["new.jpg"].action, steps["new.jpg"].to) == ("keep", "a")
    assert steps["a/0.jpg"].sha256 == hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize(
    ("reason", "broken"),
    [
        ("truncated (the scan ends after 64 % of the rows)", True),
        ("damaged (a table that the scan needs is missing or broken)", True),
        ("not an image, or damaged from its first bytes on", True),
        ("an HTML page, not an image", True),
        ("empty file (0 bytes)", True),
        ("JPEG XL is not supported; convert it to JPEG or PNG", False),
        ("HEIC needs the extra 'heic', which is not installed", False),
        ("too many pixels (20000x10000; the limit is 100 million)", False),
        ("a JPEG of 12 bits a sample, which is not supported; convert it to an 8-bit JPEG or PNG", False),
        (
            "damaged header (it begins as TIFF does, but what follows is broken or of a kind that is not supported)",
            False,
        ),
        ("a raw photo, of which only the preview can be read; export it as JPEG or PNG", False),
        ("larger than 256 MiB", False),
    ],
)
def test_only_what_no_program_can_show_is_dropped(tmp_path: Path, reason: str, broken: bool) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    evidence, gallery = make_evidence(["a/0.jpg", "a/1.jpg"], ["a", "a"]), make_gallery(2)
    skipped = (Skipped(path=tmp_path / "x.jpg", reason=reason),)
    found = replace(draw_findings(evidence, gallery), skipped=skipped)
    evidence = replace(evidence, source=tmp_path)
    step = next(step for step in make_plan(evidence, gallery, found) if step.path.endswith("x.jpg"))
    assert (step.action, step.reason) == ("drop" if broken else "keep", reason)


def test_of_a_leaking_picture_the_test_file_stays() -> None:
    evidence = make_evidence(
        ["train/a/0.jpg", "test/a/0.jpg"], ["a", "a"], splits=["train", "test"], contents=[b"x", b"x"]
    )
    gallery = make_gallery(2, width=[900, 400])
    steps = {step.path: step for step in make_plan(evidence, gallery, draw_findings(evidence, gallery))}
    assert steps["train/a/0.jpg"].action == "drop"
    assert "across splits" in steps["train/a/0.jpg"].reason
    assert steps["test/a/0.jpg"].action == "keep"


def test_a_file_that_rows_put_into_two_splits_is_not_dropped() -> None:
    same = [b"same", b"same", b"same"]
    evidence = make_evidence(["0.jpg", "0.jpg", "1.jpg"], ["a"] * 3, splits=["test", "train", "train"], contents=same)
    gallery = make_gallery(3)
    steps = make_plan(evidence, gallery, draw_findings(evidence, gallery))
    assert [(step.path, step.action) for step in steps] == [("0.jpg", "keep"), ("0.jpg", "keep"), ("1.jpg", "drop")]


def test_of_near_copies_the_largest_stays() -> None:
    evidence = make_evidence(["a/0.jpg", "a/1.jpg"], ["a", "a"])
    gallery = make_gallery(2, width=[400, 800])
    found = draw_findings(evidence, gallery)
    group = DuplicateGroup(members=(0, 1), exact=False, splits=(), labels=("a",))
    steps = {
        s.path: s.action
        for s in make_plan(evidence, gallery, found.__class__(**{**vars(found), "duplicates": (group,)}))
    }
    assert steps == {"a/0.jpg": "drop", "a/1.jpg": "keep"}


def test_applied_and_undone(tmp_path) -> None:
    photos = fill(
        tmp_path / "photos", "a/1.jpg", "a/deep/2.jpg", "b/2.jpg", "b/3.jpg", "loose.jpg", "unlabelled/x/4.jpg"
    )
    before = tree(photos)
    plan = plan_file(
        tmp_path,
        Step(action="drop", path="a/1.jpg", label="a"),
        Step(action="relabel", path="a/deep/2.jpg", label="a", to="c"),
        Step(action="relabel", path="loose.jpg", to="b"),
        Step(action="relabel", path="unlabelled/x/4.jpg", to="b"),
        Step(action="move", path="b/3.jpg", to="b/2.jpg"),
        Step(action="keep", path="b/2.jpg", to="a"),
    )
    done = apply_plan(photos, plan)
    assert (done.moved, done.left) == (5, ())
    after = tree(photos)
    assert after == {
        "_set_aside/a/1.jpg": b"a/1.jpg",
        "b/2-2.jpg": b"b/3.jpg",  # nothing is overwritten
        "b/2.jpg": b"b/2.jpg",
        "b/loose.jpg": b"loose.jpg",
        "b/x/4.jpg": b"unlabelled/x/4.jpg",
        "c/deep/2.jpg": b"a/deep/2.jpg",
    }
    assert {file.path.name for file in load_image_set(photos).files} == {"2-2.jpg", "2.jpg", "loose.jpg", "4.jpg"}
    again = apply_plan(photos, plan)
    assert (again.moved, again.left) == (5, ())
    assert tree(photos) == after
    assert undo_plan(photos, tmp_path / "plan.undo.csv").left == ()
    assert tree(photos) == before
    assert not (photos / "_set_aside").exists()


@given(st.data())
def test_whatever_is_applied_can_be_undone(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("round")
    names = data.draw(
        st.sets(st.sampled_from([f"{c}/{n}.jpg" for c in "abc" for n in range(4)] + ["5.jpg"]), min_size=1)
    )
    photos = fill(folder / "photos", *sorted(names))
    before = tree(photos)
    steps = []
    for name in data.draw(st.permutations(sorted(names))):
        label = name[0] if "/" in name else ""
        action = data.draw(st.sampled_from(["drop", "relabel", "move", "keep"]))
        to = data.draw(st.sampled_from(["a/0.jpg", "x/y.jpg", "b/1.jpg"] if action == "move" else ["a", "b", "z"]))
        steps.append(Step(action=action, path=name, label=label, to=to))
    plan = plan_file(folder, *steps)
    done = apply_plan(photos, plan)
    assert done.left == ()
    assert sorted(tree(photos).values()) == sorted(before.values())
    if done.undo:
        assert undo_plan(photos, done.undo).left == ()
    assert tree(photos) == before


HOSTILE = [
    Step(action="drop", path="../outside.jpg"),
    Step(action="drop", path="a/../../outside.jpg"),
    Step(action="drop", path="/etc/passwd"),
    Step(action="drop", path=""),
    Step(action="drop", path=".git/config"),
    Step(action="drop", path="link/outside.jpg"),
    Step(action="move", path="a/1.jpg", to="../outside-2.jpg"),
    Step(action="move", path="a/1.jpg", to="/tmp/outside.jpg"),
    Step(action="move", path="a/1.jpg", to="link/new.jpg"),
    Step(action="move", path="a/1.jpg", to=""),
    Step(action="relabel", path="a/1.jpg", label="a", to="../.."),
    Step(action="relabel", path="a/1.jpg", label="a", to=".."),
    Step(action="relabel", path="a/1.jpg", label="a", to="b/c"),
    Step(action="relabel", path="a/1.jpg", label="a", to=""),
    Step(action="relabel", path="a/1.jpg", label="a", to=".hidden"),
    Step(action="relabel", path="a/1.jpg", label="q", to="b"),
]


@pytest.mark.parametrize("step", HOSTILE, ids=lambda step: f"{step.action} {step.path} to {step.to}")
def test_a_hostile_plan_moves_nothing(tmp_path, step) -> None:
    photos = fill(tmp_path / "photos", "a/1.jpg", "b/2.jpg", ".git/config")
    outside = fill(tmp_path / "elsewhere", "outside.jpg")
    (tmp_path / "outside.jpg").write_bytes(b"")
    (photos / "link").symlink_to(outside, target_is_directory=True)
    before = tree(tmp_path)
    plan = plan_file(tmp_path / "plans", Step(action="drop", path="b/2.jpg"), step)
    with pytest.raises(AuditError):
        apply_plan(photos, plan)
    plan.unlink()
    assert tree(tmp_path) == before


def test_a_hostile_undo_file_moves_nothing(tmp_path) -> None:
    photos = fill(tmp_path / "photos", "a/1.jpg", "b/2.jpg")
    plan = plan_file(tmp_path, Step(action="drop", path="b/2.jpg"))
    write_plan(tmp_path / "plan.undo.csv", [Step(action="move", path="a/1.jpg", to="../../x.jpg")])
    before = tree(photos)
    with pytest.raises(AuditError, match="does not lie in the image folder"):
        apply_plan(photos, plan)
    with pytest.raises(AuditError, match="does not lie in the image folder"):
        undo_plan(photos, tmp_path / "plan.undo.csv")
    with pytest.raises(AuditError, match="not an undo file"):
        undo_plan(photos, plan)
    assert tree(photos) == before


def test_links_changed_and_missing_files_stay_with_a_reason(tmp_path) -> None:
    photos = fill(tmp_path / "photos", "a/1.jpg", "a/2.jpg", "b/3.jpg")
    (photos / "a" / "link.jpg").symlink_to(photos / "b" / "3.jpg")
    plan = plan_file(
        tmp_path,
        Step(action="drop", path="a/1.jpg", sha256=hashlib.sha256(b"what was there before").hexdigest()),
        Step(action="drop", path="a/2.jpg", sha256=hashlib.sha256(b"a/2.jpg").hexdigest()),
        Step(action="drop", path="a/gone.jpg"),
        Step(action="drop", path="a/link.jpg"),
    )
    done = apply_plan(photos, plan)
    assert done.moved == 1
    assert dict(done.left) == {
        "a/1.jpg": "it has changed since the plan was made",
        "a/gone.jpg": "no such file",
        "a/link.jpg": "not an ordinary file",
    }
    assert (photos / "a" / "1.jpg").read_bytes() == b"a/1.jpg"


def test_an_edited_plan_after_an_undo_does_what_it_says_now(tmp_path) -> None:
    photos = fill(tmp_path / "photos", "a/1.jpg", "a/2.jpg")
    before = tree(photos)
    plan = plan_file(tmp_path, *(Step(action="drop", path=f"a/{n}.jpg", label="a") for n in (1, 2)))
    apply_plan(photos, plan)
    undo_plan(photos, tmp_path / "plan.undo.csv")
    plan_file(tmp_path, Step(action="relabel", path="a/1.jpg", label="a", to="b"))
    assert apply_plan(photos, plan).moved == 1
    assert set(tree(photos)) == {"b/1.jpg", "a/2.jpg"}
    undo_plan(photos, tmp_path / "plan.undo.csv")
    assert tree(photos) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from quickstudy.reports import carrying_out
calls, last = 0, 0
def count(name):
    original = getattr(Path, name)
    def counted(*arguments, **options):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)
    setattr(Path, name, counted)
for name in ("hardlink_to", "unlink", "mkdir", "replace"):
    count(name)
for last in range(1, 40):
    pid = os.fork()  # which spares it the imports
    if not pid:
        carrying_out.apply_plan(Path(sys.argv[1], str(last)), Path(sys.argv[1], f"plan{last}", "plan.csv"))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(code)
    if not code:
        break
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_killed_at_every_point_nothing_is_lost_and_the_next_run_finishes(tmp_path) -> None:
    names = ["a/1.jpg", "a/2.jpg", "b/1.jpg"]
    whole = fill(tmp_path / "whole", *names)
    steps = (
        Step(action="drop", path="a/1.jpg", label="a"),
        Step(action="relabel", path="a/2.jpg", label="a", to="b"),
        Step(action="relabel", path="b/1.jpg", label="b", to="a"),
    )
    apply_plan(whole, plan_file(tmp_path / "whole_plan", *steps))
    wanted = tree(whole)
    plans = {last: plan_file(tmp_path / f"plan{last}", *steps) for last in range(1, 40)}
    for last in plans:
        fill(tmp_path / str(last), *names)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True, stdout=subprocess.PIPE, text=True)
    codes = [int(line) for line in done.stdout.split()]
    for last in range(1, len(codes) + 1):
        photos, plan = tmp_path / str(last), plans[last]
        assert set(tree(photos).values()) == {name.encode() for name in names}
        assert apply_plan(photos, plan).left == ()
        assert tree(photos) == wanted
        assert undo_plan(photos, plan.with_name("plan.undo.csv")).left == ()
        assert set(tree(photos)) == set(names)
    assert sum(code != 0 for code in codes) >= 8
    assert codes[-1] == 0


def test_without_hard_links_files_are_renamed(tmp_path, monkeypatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    photos = fill(tmp_path / "photos", "a/1.jpg")
    assert apply_plan(photos, plan_file(tmp_path, Step(action="drop", path="a/1.jpg"))).moved == 1
    assert tree(photos) == {"_set_aside/a/1.jpg": b"a/1.jpg"}


def manifest(folder: Path) -> Path:
    fill(folder, "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    path = folder / "labels.csv"
    path.write_text("note,path,label\nx,1.jpg,a\n,2.jpg,b\n,./3.jpg,b\ny,4.jpg,\n")
    return path


def test_a_manifest_stays_and_a_new_one_is_written(tmp_path) -> None:
    source = manifest(tmp_path)
    before = source.read_bytes()
    plan = plan_file(
        tmp_path / "plans",
        Step(action="drop", path="1.jpg", label="a"),
        Step(action="relabel", path="3.jpg", label="b", to="a"),
        Step(action="relabel", path="4.jpg", to="b"),
        Step(action="drop", path="5.jpg"),
    )
    done = apply_plan(source, plan)
    assert (done.moved, done.left, done.undo) == (3, (("5.jpg", "no such row"),), None)
    assert source.read_bytes() == before
    assert done.manifest == tmp_path / "labels.audited.csv"
    assert done.manifest.read_text() == "note,path,label\n,2.jpg,b\n,./3.jpg,a\ny,4.jpg,b\n"
    with pytest.raises(AuditError, match="already"):
        apply_plan(source, plan)


def test_a_parquet_manifest_keeps_its_columns(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"path": ["1.jpg", "2.jpg", "3.jpg"], "label": ["a", "b", None], "n": [1, 2, 3]}), source)
    plan = plan_file(
        tmp_path, Step(action="drop", path="1.jpg", label="a"), Step(action="relabel", path="2.jpg", label="b", to="c")
    )
    target = apply_plan(source, plan).manifest
    assert pq.read_table(target).to_pylist() == [
        {"path": "2.jpg", "label": "c", "n": 2},
        {"path": "3.jpg", "label": None, "n": 3},
    ]
    target.unlink()
    done = apply_plan(source, plan_file(tmp_path / "another", Step(action="drop", path="3.jpg")))
    assert (done.moved, pq.read_table(target).column("n").to_pylist()) == (1, [1, 2])


@pytest.mark.parametrize("data", [b"path,label\n1.jpg,caf\xe9\n", b'path,label\n"1.jpg,a\n', b""])
def test_a_manifest_that_cannot_be_read_any_more_is_named(tmp_path, data) -> None:
    source = tmp_path / "labels.csv"
    source.write_bytes(data)
    with pytest.raises(ImageSetError, match="labels"):
        apply_plan(source, plan_file(tmp_path / "plans", Step(action="drop", path="1.jpg", label="a")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.csv", "plans"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "action,path\nerase,a.jpg\n",
            "Row 2 of the plan .* 'erase'; expected drop, relabel, move, keep",
        ),
        ("path\na.jpg\n", "no column 'action', but 'path'; expected action, path"),
    ],
)
def test_plans_that_cannot_be_meant(tmp_path, content, message) -> None:
    (tmp_path / "plan.csv").write_text(content)
    with pytest.raises(AuditError, match=message):
        apply_plan(tmp_path, tmp_path / "plan.csv")


def test_a_plan_that_is_not_there(tmp_path) -> None:
    with pytest.raises(AuditError, match=r"missing\.csv"):
        apply_plan(tmp_path, tmp_path / "missing.csv")
