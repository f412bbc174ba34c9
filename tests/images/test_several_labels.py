"""Manifests in which an image may have several labels, as people have them, and what a census makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from collages import make_collages, write_manifest
from quickstudy.errors import ImageSetError
from quickstudy.images.census import take_census
from quickstudy.images.imageset import load_image_set
from quickstudy.images.manifests import Labelling
from quickstudy.retraining.config import RetrainConfig

SEVERAL = Labelling(several=True)
EXPECTED = {"1.png": ("cat", "dog"), "2.png": (), "3.png": ("dog",)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(1, 5):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


def labels(source: Path, labelling: Labelling = SEVERAL) -> dict[str, tuple[str, ...] | None]:
    return {file.path.name: file.labels for file in load_image_set(source, labelling=labelling).files}


def manifest(folder: Path, text: str) -> Path:
    path = folder / "tags.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "path,labels\n1.png,cat|dog\n2.png,\n3.png,dog\n",
        "path,labels\n1.png,dog; cat\n2.png,\n3.png,dog\n",
        'path,labels\n1.png,"cat, dog"\n2.png,\n3.png,dog\n',
        "filename\ttags\n1.png\tcat|dog|cat\n2.png\t\n3.png\tdog\n",
        "image,dog,cat\n1.png,1,1\n2.png,0,0\n3.png,1,0\n",
        "image,cat,dog\n1.png,1.0,True\n2.png,false,0\n3.png,0,1\n",
        "path,label\n1.png,cat\n1.png,dog\n2.png,\n3.png,dog\n",
    ],
    ids=["bar", "semicolon", "comma", "tabs", "columns", "columns of truths", "rows"],
)
def test_every_form(folder: Path, text: str) -> None:
    assert labels(manifest(folder, text)) == EXPECTED


def test_parquet(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    names = ["1.png", "2.png", "3.png"]
    pq.write_table(pa.table({"path": names, "labels": ["cat|dog", None, "dog"]}), folder / "tags.parquet")
    assert labels(folder / "tags.parquet") == EXPECTED
    pq.write_table(pa.table({"path": names, "cat": [1, 0, 0], "dog": [True, False, True]}), folder / "ones.parquet")
    assert labels(folder / "ones.parquet") == EXPECTED


def test_a_separator_that_is_said(folder: Path) -> None:
    path = manifest(folder, "path,labels\n1.png,cat dog\n2.png,\n3.png,dog\n")
    assert labels(path, Labelling(several=True, separator=" ")) == EXPECTED
    assert labels(path)["1.png"] == ("cat dog",)


def test_a_column_for_none_and_columns_in_which_nothing_stands_are_no_classes(folder: Path) -> None:
    path = manifest(folder, "path,cat,dog,nothing,\n1.png,1,1,0,\n2.png,0,0,1\n3.png,0,1,0, \n")
    assert labels(path, Labelling(several=True, none="nothing")) == EXPECTED


def test_a_name_for_none(folder: Path) -> None:
    path = manifest(folder, "path,labels\n1.png,cat|dog\n2.png,nothing\n3.png,dog\n")
    assert labels(path, Labelling(several=True, none="nothing")) == EXPECTED


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,labels\n1.png,cat|dog\n2.png,a;b\n", "both '|' and ';'"),
        ("path,cat,dog\n1.png,1,0\n2.png,0,2\n", "Row 2 of '…' has '2' in the column 'dog'; expected 0 or 1"),
        ("path,cat,notes\n1.png,1,nice\n", "has 'nice' in the column 'notes'"),
        ("path\n1.png\n", "has the columns 'path'; expected path,labels or path and a column for each class"),
        ("cat,dog\n1,0\n", "has the columns 'cat', 'dog'"),
        (",path,cat\n0,1.png,1\n1,2.png,0\n", "Column 1 of '…' has no name"),
        ("path,cat,dog,cat \n1.png,1,0,0\n", "Columns 2 and 4 of '…' are both called 'cat'"),
    ],
)
def test_what_cannot_be_read_is_named(folder: Path, text: str, said: str) -> None:
    path = manifest(folder, text)
    with pytest.raises(ImageSetError) as caught:
        labels(path)
    assert said in str(caught.value).replace(str(path), "…")


def test_without_the_option_the_way_to_it_is_named(folder: Path) -> None:
    for text in ("path,labels\n1.png,cat|dog\n", "path,cat,dog\n1.png,1,1\n"):
        with pytest.raises(ImageSetError, match="add --several"):
            load_image_set(manifest(folder, text), labelling=RetrainConfig().labelling)
    with pytest.raises(ImageSetError, match="separator"):
        load_image_set(folder, labelling=Labelling(several=True, separator=""))


def test_copies_have_the_labels_of_all_their_places(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "1.png").read_bytes())
    path = manifest(folder, "path,labels\n1.png,cat\ncopy.png,dog\n2.png,\n3.png,dog\n")
    census = take_census(path, None, labelling=SEVERAL)
    assert sorted(census.names.values()) == [(), ("cat", "dog"), ("dog",)]
    assert census.copies == 1
    assert not census.conflicts


def test_class_folders_may_share_images(folder: Path) -> None:
    for name, numbers in (("cat", "12"), ("dog", "23"), ("other", "4")):
        (folder / "set" / name).mkdir(parents=True)
        for number in numbers:
            (folder / "set" / name / f"{number}.png").write_bytes((folder / f"{number}.png").read_bytes())
    census = take_census(folder / "set", None, labelling=Labelling(several=True, none="other"))
    assert sorted(census.names.values()) == [(), ("cat",), ("cat", "dog"), ("dog",)]


def test_the_split_has_its_share_of_each_label_and_stands(tmp_path: Path) -> None:
    made = make_collages(tmp_path / "img", 120, side=16)
    path = write_manifest(tmp_path / "tags.csv", made, folder="img/")
    census = take_census(path, None, to_learn=True, labelling=SEVERAL)
    assert census.classes == ("checks", "discs", "stripes")
    tested, learned = census.counts("test"), census.counts("train")
    for name in census.classes:
        assert tested[name] == pytest.approx(0.2 * (tested[name] + learned[name]), abs=1.5)
    assert 20 <= len(census.digests("test")) <= 28
    digests, marks = census.targets("train")
    assert [tuple(name for name, mark in zip(census.classes, row, strict=True) if mark) for row in marks.tolist()] == [
        census.names[digest] for digest in digests
    ]
    more = write_manifest(
        tmp_path / "more.csv", made | make_collages(tmp_path / "img", 40, side=16, first=120), folder="img/"
    )
    roles = {digest: content.role for digest, content in census.contents.items()}
    again = take_census(more, None, to_learn=True, labelling=SEVERAL, before=roles.get)
    assert all(again.contents[digest].role == role for digest, role in roles.items())
    assert len(again.digests("test")) > len(census.digests("test"))


def test_a_label_that_all_images_have_is_not_learned(folder: Path) -> None:
    path = manifest(folder, "path,labels\n1.png,all|cat\n2.png,all\n3.png,all|cat\n4.png,all\n")
    census = take_census(path, None, to_learn=True, labelling=SEVERAL)
    assert census.everywhere == ("all",)
    assert census.classes == ("cat",)
    census.require_enough()
    only = take_census(manifest(folder, "path,labels\n1.png,all\n2.png,all\n"), None, labelling=SEVERAL)
    with pytest.raises(ImageSetError, match="no label is on some images and not on others"):
        only.require_enough()
