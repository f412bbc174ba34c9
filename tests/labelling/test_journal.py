"""The journal: durable lines, what a kill leaves of one, who holds it; and what stands of all acts together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quickstudy.errors import LabellingError
from quickstudy.labelling.journal import Act, Journal, Standing, is_of_several
from quickstudy.labelling.manifest import rows_of

ONE, TWO = "a" * 64, "b" * 64


def label(number: int, name: str, *photos: str, who: str = "me", seen: int = 0) -> Act:
    return Act(number=number, kind="label", who=who, photos=photos, seen=(seen,) * len(photos), name=name)


def test_acts_are_in_the_file_before_append_returns(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "x.journal")
    act = journal.append("label", who="me", key="k", photos=(ONE,), seen=(0,), name="hat", way="one")
    lines = (tmp_path / "x.journal").read_text().splitlines()
    assert json.loads(lines[0]) == {"format": 1}
    assert json.loads(lines[1])["photos"] == [ONE]
    assert act.number == 1
    journal.append("undo", who="me", of=1)
    journal.close()
    again = Journal.open(tmp_path / "x.journal")
    assert [(a.number, a.kind, a.of) for a in again.acts] == [(1, "label", 0), (2, "undo", 1)]
    assert again.acts[0] == act
    assert again.append("class", name="é").number == 3
    again.close()


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_the_beginning_of_a_line_is_cut_off(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "x.journal"
    journal = Journal.open(path)
    journal.append("label", who="me", photos=(ONE,), seen=(0,), name="hat")
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[1][:kept])
    again = Journal.open(path)
    assert len(again.acts) == 1
    assert path.read_bytes() == whole
    assert again.append("skip", who="me", photos=(ONE,), seen=(1,)).number == 2
    again.close()
    assert len(Journal.open(path).acts) == 2


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    journal = Journal.open(path)
    for _ in range(3):
        journal.append("skip", who="me", photos=(ONE,), seen=(0,))
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0" * 20 + b"\n", *lines[3:]]))
    with pytest.raises(LabellingError, match="Line 3"):
        Journal.open(path)
    path.write_bytes(b"path,label\n" + b"".join(lines))
    with pytest.raises(LabellingError, match="Line 1"):
        Journal.open(path)


def test_only_one_process_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    journal = Journal.open(path)
    script = "import sys; from pathlib import Path; from quickstudy.labelling.journal import Journal\n"
    script += "from quickstudy.errors import LabellingError\n"
    script += "try: Journal.open(Path(sys.argv[1]))\nexcept LabellingError: sys.exit(7)"
    run = [sys.executable, "-c", script, str(path)]
    assert subprocess.run(run, timeout=60).returncode == 7
    journal.close()
    assert subprocess.run(run, timeout=60).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_full_disk_is_told_and_nothing_counts(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys; from pathlib import Path; from quickstudy.labelling.journal import Journal\n"
    )
    script += "from quickstudy.errors import WriteError\n"
    script += "journal = Journal.open(Path(sys.argv[1])); journal.append('class', name='hat')\n"
    script += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    script += "try: journal.append('class', name='x' * 60)\nexcept WriteError: sys.exit(7)"
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")], timeout=60).returncode == 7
    assert [act.name for act in Journal.open(tmp_path / "x").acts] == ["hat"]


def test_the_last_mark_counts_and_undoing_brings_the_one_before_back() -> None:
    labels = Standing({TWO: ("shoe",)})
    labels.apply(label(1, "hat", ONE))
    labels.apply(label(2, "skirt", ONE, TWO, seen=1))
    assert (labels.labels(ONE), labels.labels(TWO)) == (("skirt",), ("skirt",))
    assert set(labels.apply(Act(number=3, kind="undo", who="me", of=2))) == {ONE, TWO}
    assert (labels.labels(ONE), labels.labels(TWO)) == (("hat",), ("shoe",))
    labels.apply(Act(number=4, kind="none", who="me", photos=(TWO,), seen=(0,)))
    assert labels.labels(TWO) is None
    labels.apply(Act(number=5, kind="undo", who="me", of=4))
    labels.apply(Act(number=6, kind="undo", who="me", of=1))
    assert (labels.labels(ONE), labels.mark(ONE)) == (None, None)
    assert labels.classes == ["shoe", "hat", "skirt"]


def test_undoing_goes_back_through_ones_own_acts_and_never_takes_anothers_of_today() -> None:
    labels = Standing()
    for number, who in enumerate(["old", "me", "you", "me"], start=1):
        labels.apply(label(number, "hat", ONE, who=who, seen=number - 1))
    for expected in (4, 2, 1, None):
        act = labels.to_undo("me", before=1)
        assert (act.number if act else None) == expected
        if act:
            labels.apply(Act(number=labels.number + 1, kind="undo", who="me", of=act.number))
    yours = labels.to_undo("you", before=1)
    assert yours is not None
    assert yours.number == 3


def test_two_who_had_not_seen_each_other_contradict_until_somebody_settles_it() -> None:
    labels = Standing()
    labels.apply(label(1, "hat", ONE, who="me"))
    labels.apply(label(2, "shoe", ONE, who="you"))
    assert labels.labels(ONE) is None
    assert list(labels.conflicting) == [ONE]
    assert [mark.names for mark in labels.conflict(ONE)] == [("hat",), ("shoe",)]
    labels.apply(label(3, "hat", ONE, who="you", seen=2))
    assert labels.labels(ONE) == ("hat",)
    assert not labels.conflicting


@pytest.mark.parametrize(("name", "who", "seen"), [("hat", "you", 0), ("shoe", "me", 0), ("shoe", "you", 1)])
def test_agreeing_changing_ones_mind_and_correcting_are_no_contradiction(name: str, who: str, seen: int) -> None:
    labels = Standing()
    labels.apply(label(1, "hat", ONE, who="me"))
    labels.apply(label(2, name, ONE, who=who, seen=seen))
    assert labels.labels(ONE) == (name,)


def test_the_manifest_has_a_row_for_each_file_of_a_photo_with_a_label() -> None:
    labels = Standing()
    labels.apply(label(1, "hat", ONE))
    photos = [(ONE, [("z.jpg", ""), ("a.jpg", "validation")]), (TWO, [("b.jpg", "")])]
    assert rows_of(photos, labels, {ONE: "test"}, "|") == [["a.jpg", "hat", "validation"], ["z.jpg", "hat", "test"]]
    assert rows_of(photos, labels, {}, "|") == [["a.jpg", "hat", "validation"], ["z.jpg", "hat", "train"]]


def test_labels_are_whole_sets_from_an_act_several_on() -> None:
    labels = Standing()
    labels.apply(label(1, "hat", ONE))
    labels.apply(Act(number=2, kind="none", who="me", photos=(TWO,), seen=(0,)))
    assert labels.labels(TWO) is None
    labels.apply(Act(number=3, kind="several"))
    assert (labels.labels(ONE), labels.labels(TWO)) == (("hat",), ())
    labels.apply(Act(number=4, kind="label", who="me", photos=(TWO,), seen=(2,), names=("hat", "shoe")))
    assert labels.labels(TWO) == ("hat", "shoe")
    assert labels.classes == ["hat", "shoe"]
    photos = [(ONE, [("a.jpg", "")]), (TWO, [("b.jpg", "")])]
    assert rows_of(photos, labels, {}, ";") == [["a.jpg", "hat", "train"], ["b.jpg", "hat;shoe", "train"]]
    labels.apply(Act(number=5, kind="label", who="you", photos=(TWO,), seen=(2,), names=("hat", "sock")))
    assert [mark.names for mark in labels.conflict(TWO)] == [("hat", "shoe"), ("hat", "sock")]
    labels.apply(Act(number=6, kind="undo", who="you", of=5))
    labels.apply(Act(number=7, kind="undo", who="me", of=4))
    assert labels.labels(TWO) == ()


def test_the_journal_says_whether_photos_have_several_labels(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    assert not is_of_several(path)
    journal = Journal.open(path)
    journal.append("label", who="me", photos=(ONE,), seen=(0,), names=('"kind":"several"',))
    assert not is_of_several(path)
    journal.append("several")
    act = journal.append("label", who="me", photos=(ONE,), seen=(1,), names=("hat", "shoe"))
    journal.close()
    assert is_of_several(path)
    assert Journal.open(path).acts[-1] == act
    assert act.given == ("hat", "shoe")
