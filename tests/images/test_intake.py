"""Intake that misses nothing: what is an image, what is passed over, layouts, manifests, pipes and links."""

from __future__ import annotations

import io
import os
import shutil
import socket
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawn_photos import draw_photo
from quickstudy.errors import ImageSetError, QuickstudyError, UnusableImageError
from quickstudy.images import kinds
from quickstudy.images.decoding import size_of
from quickstudy.images.imageset import ImageSet, list_images, load_image_set
from quickstudy.images.kinds import READ, image_format
from quickstudy.images.listing import alike, label_of, names_from, place_of, real_places, split_named
from quickstudy.images.manifests import Table, read_list, read_table, write_table
from quickstudy.reports.carrying_out import apply_plan
from quickstudy.reports.plan import read_plan

CLASSES = ("checks", "discs", "stripes")


def encoded(name: str = "checks", number: int = 0, kind: str = "JPEG") -> bytes:
    image = draw_photo(name, number).resize((16, 14))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def fill(root: Path, count: int, *, under: str = ".", start: int = 0, classes: tuple[str, ...] = CLASSES) -> Path:
    """`count` images of each class in class folders."""
    for name in classes:
        folder = root / under / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(start, start + count):
            (folder / f"{number}.jpg").write_bytes(encoded(name, number))
    return root


def put(root: Path, *names: str, data: bytes = b"") -> Path:
    """Files that nothing opens, as their names are those of images, or with the bytes given."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def counted(image_set: ImageSet) -> dict[tuple[str, str | None], int]:
    return dict(Counter((file.label, file.split) for file in image_set.files))


def per_class(count: int, split: str | None = None) -> dict[tuple[str, str | None], int]:
    return {(name, split): count for name in CLASSES}


def reasons(image_set: ImageSet) -> dict[str, str]:
    return {item.path.name: item.reason for item in image_set.skipped}


def refusal(source: Path) -> str:
    with pytest.raises(ImageSetError) as caught:
        load_image_set(source)
    return str(caught.value)


# What a file is


@pytest.mark.parametrize("name", ["IMG{}", "{}.jpg_large", "{}.jpg?w=640", "{}.jpg.1", "{}.JPG~", "{}.heic", "{}.mpo"])
def test_what_a_file_is_its_bytes_say(tmp_path: Path, name: str) -> None:
    fill(tmp_path, 3)
    for number, path in enumerate(sorted((tmp_path / "checks").iterdir())):
        path.rename(path.with_name(name.format(number)))
    image_set = load_image_set(tmp_path)
    assert counted(image_set) == per_class(3)
    assert (image_set.skipped, image_set.passed_over, image_set.empty_classes) == ((), (), ())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "PCX", "TGA", "JPEG2000"])
def test_formats_taken_by_their_bytes_are_those_that_decoding_reads(kind: str) -> None:
    data = encoded(kind=kind)
    try:
        size_of(data)
    except UnusableImageError:
        assert image_format("x", data) not in READ
    else:
        assert image_format("x", data) in READ


@pytest.mark.parametrize(
    ("name", "start", "expected"),
    [
        ("x", b"\0\0\0\x20ftypheic\0\0\0\0", "HEIC"),
        ("x", b"\0\0\0\x20ftypavif\0\0\0\0", "AVIF"),
        ("x.mov", b"\0\0\0\x14ftypqt  \0\0\0\0", None),
        ("x.nef", b"MM\0*\0\0\0\x08", "NEF"),  # a raw photo, TIFF though it is
        ("x.tif2", b"MM\0*\0\0\0\x08", "TIFF"),
        ("x", b"II*\0\x10\0\0\0CR\x02\0", "CR2"),
        ("x", b'<?xml version="1.0"?>\n<svg xmlns=', "SVG"),
        ("x", bytes(128) + b"DICM", "DICOM"),
        ("x", b"P6 640 480 255\n", "PPM"),
        ("x", b"P5\n# by hand\n", "PGM"),
        ("notes", b"P5 is a note", None),
        ("notes", b"BMW and other makes of cars", None),
        ("x.tga", b"", "TGA"),
        ("x.heic", b"any", "HEIC"),
        ("x.txt", b"any", None),
    ],
)
def test_formats_by_bytes_and_suffix(name: str, start: bytes, expected: str | None) -> None:
    assert image_format(name, start) == expected


def test_a_class_of_unread_files_is_named_with_its_files(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    put(tmp_path, *(f"stop/{number}.pcx" for number in range(10)), data=encoded(kind="PCX"))
    put(tmp_path, "blank/notes.txt", data=b"text")
    (tmp_path / "nothing").mkdir()
    image_set = load_image_set(tmp_path)
    assert counted(image_set) == per_class(2)
    assert image_set.empty_classes == ("blank", "nothing", "stop")
    assert reasons(image_set) == {
        f"{number}.pcx": "PCX is not supported; convert it to JPEG or PNG" for number in range(10)
    }
    assert image_set.passed_over == (("text files (.txt)", 1),)


def test_a_class_that_is_filled_in_one_split_is_not_empty(tmp_path: Path) -> None:
    fill(tmp_path, 1, under="train")
    fill(tmp_path, 1, under="test", classes=("checks", "discs"))
    (tmp_path / "test/stripes").mkdir()
    (tmp_path / "test/dots").mkdir()
    assert load_image_set(tmp_path).empty_classes == ("dots",)


def test_the_error_names_what_was_there(tmp_path: Path) -> None:
    put(tmp_path / "a", *(f"{name}/{number}.pcx" for name in CLASSES for number in range(10)), data=encoded(kind="PCX"))
    assert "30 PCX files, which are not read; convert them to PNG" in refusal(tmp_path / "a")
    put(tmp_path / "b", "x/1.txt", "x/2.txt", data=b"text")
    assert "2 text files (.txt)" in refusal(tmp_path / "b")


def test_files_of_other_kinds_are_counted_by_kind(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    put(tmp_path, "checks/1.txt", "discs/2.TXT", "labels.csv", "turn.py", "checks/1.mp4", "discs/x.qqq", data=b"text")
    put(tmp_path, "checks/x.jpg?w=1", "checks/x.jpg?w=2", data=b"text")
    put(tmp_path, "checks/nothing", "checks/nothing.t-1")
    put(tmp_path, "checks/page", data=b"<!DOCTYPE html><title>Not found</title>")
    image_set = load_image_set(tmp_path)
    assert counted(image_set) == per_class(1)
    assert dict(image_set.passed_over) == {
        "text files (.txt)": 2,
        "tables (.csv)": 1,
        "programs (.py)": 1,
        "videos (.mp4)": 1,
        "other files (.qqq)": 1,
        "other files (without a usual suffix)": 2,
        "empty files": 2,
        "web pages (by their bytes)": 1,
    }
    assert image_set.passed_over == tuple(sorted(image_set.passed_over))


def test_ordinary_photos_are_neither_opened_nor_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, *(f"{name}/{number}.JPG" for name in CLASSES for number in range(50)))
    looked_at: list[str] = []

    def noted(call: Callable[..., object]) -> Callable[..., object]:
        def call_and_note(path: object, *arguments: object, **options: object) -> object:
            looked_at.append(str(path))
            return call(path, *arguments, **options)

        return call_and_note

    for name in ("open", "stat", "lstat"):
        monkeypatch.setattr(os, name, noted(getattr(os, name)))
    assert len(load_image_set(tmp_path).files) == 150
    monkeypatch.undo()
    assert [path for path in looked_at if path.endswith(".JPG")] == []


# What servers, desktops and synchronisers leave behind


def test_thumbnails_and_recycle_bins_of_a_server(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    for path in sorted(tmp_path.glob("*/*.jpg")):
        put(path.parent, f"@eaDir/{path.name}/SYNOPHOTO_THUMB_M.jpg", data=encoded())
    fill(tmp_path, 3, under="#recycle", classes=("checks",))
    image_set = load_image_set(tmp_path)
    assert counted(image_set) == per_class(4)
    assert image_set.passed_over == (("recycle bins (#recycle)", 3), ("synchronised thumbnails (@eaDir)", 12))
    assert image_set.skipped == ()
    assert len(list_images(tmp_path)[0]) == 12


@pytest.mark.parametrize(
    "name",
    [
        *("@eaDir", "#recycle", ".Trashes", ".Trash-1000", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
        *(".thumbnails", "__MACOSX", ".AppleDouble", ".picasaoriginals", ".sync", ".stversions", ".ipynb_checkpoints"),
        *("_set_aside", ".@__thumb", "@Recycle"),
    ],
)
@pytest.mark.parametrize("under", ["", "checks/", "train/", "train/checks/"])
def test_folders_left_behind_are_passed_over_and_counted(tmp_path: Path, name: str, under: str) -> None:
    fill(tmp_path, 1, under="train" if under.startswith("train") else ".")
    put(tmp_path, f"{under}{name}/a/1.jpg", f"{under}{name}/2.jpg")
    if under.startswith("train"):
        fill(tmp_path, 1, under="test")
    image_set = load_image_set(tmp_path)
    assert len(image_set.files) == (6 if under.startswith("train") else 3)
    assert (image_set.classes, image_set.skipped) == (CLASSES, ())
    assert [count for _, count in image_set.passed_over] == [2]
    assert name.lower() in image_set.passed_over[0][0].lower().replace(".trash-*", ".trash-1000")


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", ".DS_Store", "._0.jpg", ".hidden.jpg", "x.jpg.part"])
def test_files_left_behind_are_passed_over_and_counted(tmp_path: Path, name: str) -> None:
    fill(tmp_path, 1)
    put(tmp_path, f"checks/{name}", f"discs/{name}", data=encoded())
    image_set = load_image_set(tmp_path)
    assert counted(image_set) == per_class(1)
    assert [count for _, count in image_set.passed_over] == [2]
    assert image_set.skipped == ()


def test_conflicted_copies_are_ordinary_files(tmp_path: Path) -> None:
    names = ["x (conflicted copy 2024-01-01).jpg", "x (1).jpg", "x.sync-conflict-20240101-120000-ABCDEFG.jpg", "x.jpg"]
    fill(tmp_path, 1)
    put(tmp_path, *(f"checks/{name}" for name in names))
    image_set = load_image_set(tmp_path)
    assert {file.path.name for file in image_set.files if file.label == "checks"} == {"0.jpg", *names}


# Names


def test_names_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "été"), unicodedata.normalize("NFD", "été")
    put(tmp_path, f"train/{composed}/1.jpg", "train/b/1.jpg", f"test/{decomposed}/2.jpg", "test/b/2.jpg")
    image_set = load_image_set(tmp_path)
    assert image_set.classes == ("b", composed)
    assert image_set.alike_classes == ()
    assert all(file.path.exists() for file in image_set.files)
    assert counted(image_set)[composed, "test"] == 1


def test_folders_of_one_name_are_one_class(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    put(tmp_path, f"{names[0]}/1.jpg", f"{names[1]}/2.jpg", f" {names[0]} /3.jpg", "b/1.jpg")
    assert counted(load_image_set(tmp_path)) == {(names[0], None): 3, ("b", None): 1}


def test_a_blank_name_is_no_class(tmp_path: Path) -> None:
    put(tmp_path, " /1.jpg", "b/1.jpg")
    image_set = load_image_set(tmp_path)
    assert image_set.classes == ("b",)
    assert list(reasons(image_set)) == [" "]


def test_two_spellings_are_told_and_never_joined(tmp_path: Path) -> None:
    fill(tmp_path, 2, under="train")
    fill(tmp_path, 1, under="test", start=2)
    (tmp_path / "train/checks").rename(tmp_path / "train/Checks")
    image_set = load_image_set(tmp_path)
    assert image_set.alike_classes == (("Checks", "checks"),)
    assert counted(image_set)["Checks", "train"] == 2
    assert counted(image_set)["checks", "test"] == 1
    put(tmp_path / "flat", "Hat/1.jpg", "hat/2.jpg", "shoe/3.jpg")
    assert load_image_set(tmp_path / "flat").alike_classes == (("Hat", "hat"),)
    assert alike(["a", "B", "b", "É", "é", "straße", "STRASSE"]) == (("B", "b"), ("STRASSE", "straße"), ("É", "é"))


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["polar bear", "polar_bear", "polar  bear"], 3),
        (["T-shirt", "t shirt", "tshirt"], 1),
        (["cat", "cat\u200b", "c\u0430t"], 1),  # the last one's a is Cyrillic: another word, for all that is known
        (["a b", "a\u00a0b"], 1),
        (["1", "01", "1.0", "10", "0.1"], 3),
        (["0", "00", "-", "_", ""], 1),
        (["v1", "v01", "1a"], 0),
    ],
)
def test_names_that_differ_only_in_how_they_are_written(names: list[str], pairs: int) -> None:
    assert len(alike(names)) == pairs


@pytest.mark.parametrize("name", ["red\x1b[31m", "two\nlines", "a\u2028b", "bell\x07"])
def test_a_class_name_that_would_act_on_the_terminal_is_refused(tmp_path: Path, name: str) -> None:
    table = tmp_path / "labels.csv"
    put(tmp_path, "1.jpg", "2.jpg")
    table.write_text(f'path,label\n1.jpg,"{name}"\n2.jpg,b\n')
    with pytest.raises(ImageSetError, match="control character") as error:
        load_image_set(table)
    assert ascii(name) in str(error.value)
    assert name not in str(error.value)


def test_labels() -> None:
    assert label_of(" e\u0301te\u0301\t") == "été"
    assert label_of("Hat") == "Hat"


# Splits


@pytest.mark.parametrize(
    ("names", "split"),
    [
        ("train training train_set training_set trainset Training-Set TRAIN seg_train", "train"),
        ("val valid validation validation_set dev eval Val-Set Evaluation", "validation"),
        ("test testing test_set testset seg_test holdout held_out hold-out Held-Out", "test"),
    ],
)
def test_names_of_splits(names: str, split: str) -> None:
    assert {name: split_named(name) for name in names.split()} == dict.fromkeys(names.split(), split)
    assert split_named(names.split()[0] + " set") == split


@pytest.mark.parametrize("name", ["hat", "tests", "fold1", "trains", "values", "device", "", "-"])
def test_names_of_no_split(name: str) -> None:
    assert split_named(name) is None


@pytest.mark.parametrize(
    ("train", "test", "split"),
    [
        ("training_set", "test_set", "test"),
        ("Training Set", "Hold-out", "test"),
        ("train", "dev", "validation"),
        ("trainset", "eval", "validation"),
        ("seg_train", "seg_test", "test"),
        ("seg_train/seg_train", "seg_test/seg_test", "test"),
        ("train/Train", "test/Test_Set", "test"),
    ],
)
def test_split_folders_by_all_their_usual_names(tmp_path: Path, train: str, test: str, split: str) -> None:
    fill(tmp_path, 2, under=train)
    fill(tmp_path, 1, under=test, start=2)
    assert counted(load_image_set(tmp_path)) == {**per_class(2, "train"), **per_class(1, split)}


def test_images_to_predict_have_no_label(tmp_path: Path) -> None:
    fill(tmp_path, 2, under="seg_train/seg_train")
    fill(tmp_path, 1, under="seg_test/seg_test")
    put(tmp_path, "seg_pred/seg_pred/1.jpg", "seg_pred/seg_pred/2.jpg", "unlabelled/3.jpg")
    image_set = load_image_set(tmp_path, unlabelled=True)
    assert image_set.classes == CLASSES
    assert [(file.path.name, file.split) for file in image_set.unlabelled] == [
        ("1.jpg", None),
        ("2.jpg", None),
        ("3.jpg", None),
    ]
    assert set(reasons(load_image_set(tmp_path)).values()) == {"not in a class folder"}


def test_predictions_may_be_a_class(tmp_path: Path) -> None:
    put(tmp_path, "predictions/1.jpg", "facts/1.jpg")
    assert load_image_set(tmp_path).classes == ("facts", "predictions")


@pytest.mark.parametrize("names", [("val", "test"), ("test",), ("train",), ("holdout",)])
def test_splits_without_training_images(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        fill(tmp_path, 1, under=name)
    image_set = load_image_set(tmp_path)
    assert image_set.classes == CLASSES
    assert {file.split for file in image_set.files} == {split_named(name) for name in names}


def test_splits_in_class_folders(tmp_path: Path) -> None:
    for name in CLASSES:
        put(tmp_path, f"{name}/Train/1.jpg", f"{name}/Train/deep/2.jpg", f"{name}/test_set/3.jpg")
    put(tmp_path, "checks/val/4.jpg", "unlabelled/5.jpg")
    (tmp_path / "empty").mkdir()
    image_set = load_image_set(tmp_path)
    assert counted(image_set) == {**per_class(2, "train"), **per_class(1, "test"), ("checks", "validation"): 1}
    assert reasons(image_set) == {"5.jpg": "not in a class folder"}


@pytest.mark.parametrize("other", ["discs/test/x/1.jpg", "discs/old/1.jpg", "discs/1.jpg"])
def test_splits_in_some_class_folders_only_are_refused(tmp_path: Path, other: str) -> None:
    put(tmp_path, "checks/train/1.jpg", "checks/test/2.jpg", "discs/train/1.jpg", other)
    if "/x/" in other:  # what is under a split folder is of its class
        assert load_image_set(tmp_path).classes == ("checks", "discs")
    elif other == "discs/1.jpg":  # an image beside them has no split, and no doubt
        assert counted(load_image_set(tmp_path))["discs", None] == 1
    else:
        assert "manifest" in refusal(tmp_path)
    put(tmp_path, "stripes/1.jpg")
    assert "manifest" in refusal(tmp_path)


@pytest.mark.parametrize("names", [("batch_1", "batch_2"), ("train", "quality"), ("fold1", "fold2", "fold3")])
def test_folders_that_all_hold_the_same_are_refused_where_names_do_not_say(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        fill(tmp_path, 1, under=name)
    message = refusal(tmp_path)
    assert all(f"'{name}'" in message for name in names)
    assert "train/" in message
    assert "manifest" in message


def test_a_training_folder_beside_one_that_shares_its_classes_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, 1, under="train")
    fill(tmp_path, 1, under="quality", classes=CLASSES[:2])
    assert "'quality'" in refusal(tmp_path)


def test_nested_folders_that_differ_are_classes_as_before(tmp_path: Path) -> None:
    put(tmp_path, "cats/indoors/1.jpg", "cats/outdoors/2.jpg", "dogs/indoors/3.jpg")
    assert load_image_set(tmp_path).classes == ("cats", "dogs")
    put(tmp_path, "dogs/outdoors/4.jpg", "dogs/5.jpg")  # an image beside them: no split folder has those
    assert load_image_set(tmp_path).classes == ("cats", "dogs")


def test_trains_and_tests_beside_other_classes_stay_classes(tmp_path: Path) -> None:
    put(tmp_path, "train/1.jpg", "dev/1.jpg", "bus/1.jpg")
    assert load_image_set(tmp_path).classes == ("bus", "dev", "train")


# Manifests


def pairs(root: Path) -> list[tuple[str, str]]:
    return [(f"{path.parent.name}/{path.name}", path.parent.name) for path in sorted(root.glob("*/*.jpg"))]


@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv", "labels.CSV"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "header", ["path|label", "Path| LABEL ", "File Name|Class", "image|category", "filepath|target"]
)
def test_a_manifest_as_spreadsheets_write_it(
    tmp_path: Path, name: str, delimiter: str, encoding: str, line_end: str, header: str
) -> None:
    fill(tmp_path, 2)
    rows = [f" {path} {delimiter}{label} " for path, label in pairs(tmp_path)]
    lines = [header.replace("|", delimiter), "", *rows[:3], delimiter, *rows[3:], delimiter, f" {delimiter} ", ""]
    (tmp_path / name).write_bytes(line_end.join(lines).encode(encoding))
    image_set = load_image_set(tmp_path / name)
    assert counted(image_set) == per_class(2)
    assert (image_set.skipped, image_set.empty_classes) == ((), ())


def test_a_spreadsheet_of_windows(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    rows = [f"{path};{label}".replace("/", "\\") for path, label in pairs(tmp_path)]
    data = b"\xef\xbb\xbf" + "\r\n".join(["Path;Label", *rows, ";", ""]).encode()
    (tmp_path / "labels.csv").write_bytes(data)
    assert counted(load_image_set(tmp_path / "labels.csv")) == per_class(2)
    (tmp_path / "labels.csv").write_bytes(b"sep=;\r\n" + data[3:])
    assert counted(load_image_set(tmp_path / "labels.csv")) == per_class(2)


@pytest.mark.skipif(os.sep == "\\", reason="a backslash is no part of a name there")
def test_a_path_is_tried_as_given_first(tmp_path: Path) -> None:
    put(tmp_path, "a\\1.jpg", "a/1.jpg", "a/2.jpg")
    (tmp_path / "m.csv").write_text("path,label\na\\1.jpg,x\na\\2.jpg,y\na\\3.jpg,y\n")
    image_set = load_image_set(tmp_path / "m.csv")
    assert [file.path for file in image_set.files] == [tmp_path / "a/2.jpg", tmp_path / "a\\1.jpg"]
    assert reasons(image_set) == {"a\\3.jpg": "no such file"}


def test_paths_in_the_other_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "été"), unicodedata.normalize("NFD", "été")
    put(tmp_path, f"{decomposed}/1.jpg", f"{composed}2.jpg")
    text = f"path,label\n{composed}\\1.jpg,{composed}\n{decomposed}2.jpg,{decomposed}\n"
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    image_set = load_image_set(tmp_path / "m.csv")
    assert image_set.classes == (composed,)
    assert {file.path for file in image_set.files} == {tmp_path / decomposed / "1.jpg", tmp_path / f"{composed}2.jpg"}
    assert place_of(tmp_path, "é/nowhere.jpg") == tmp_path / "é/nowhere.jpg"


def test_splits_of_a_manifest_by_all_their_names(tmp_path: Path) -> None:
    put(tmp_path, *(f"{number}.jpg" for number in range(4)))
    rows = "0.jpg;a;Training Set\n1.jpg;a;dev\n2.jpg;a;Hold-Out\n3.jpg;a;\n"
    (tmp_path / "m.csv").write_text(f"path;label;subset\n{rows}")
    assert [file.split for file in load_image_set(tmp_path / "m.csv").files] == ["train", "validation", "test", None]


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("file,image,label", ("path", "file", "image")),
        ("path,class,category", ("label", "class", "category")),
        ("path,label,set,subset", ("split", "set", "subset")),
        ("Path,PATH,label", ("path", "Path", "PATH")),
    ],
)
def test_two_columns_that_may_be_meant_are_named(tmp_path: Path, header: str, named: tuple[str, ...]) -> None:
    (tmp_path / "m.csv").write_text(f"{header}\n1.jpg{',a' * header.count(',')}\n")
    message = refusal(tmp_path / "m.csv")
    assert all(f"'{name}'" in message for name in named)


def test_the_standard_columns_win(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg")
    (tmp_path / "m.csv").write_text("image,path,class,label,set,subset,split\nx,1.jpg,y,a,1,2,test\n")
    assert counted(load_image_set(tmp_path / "m.csv")) == {("a", "test"): 1}
    (tmp_path / "m.csv").write_text("Path,path,label\nx,1.jpg,a\n")
    assert counted(load_image_set(tmp_path / "m.csv")) == {("a", None): 1}


def test_texts_of_csv_stay_as_they_are(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "m.csv").write_text("path,label\n1.jpg,3.0\n2.jpg,03\n")
    assert load_image_set(tmp_path / "m.csv").classes == ("03", "3.0")


def test_the_same_path_under_two_labels_keeps_both(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg")
    (tmp_path / "m.csv").write_text("path,label\n1.jpg,a\n1.jpg,b\n")
    assert [file.label for file in load_image_set(tmp_path / "m.csv").files] == ["a", "b"]


def test_a_class_of_a_manifest_without_a_file_is_named(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg")
    (tmp_path / "m.csv").write_text("path,label\n1.jpg,a\n2.jpg,b\n")
    assert load_image_set(tmp_path / "m.csv").empty_classes == ("b",)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([b"hat", b"\xc3\xa9t\xc3\xa9"], ("hat", "été")),
        (pa.array(["hat", "shoe"]).dictionary_encode(), ("hat", "shoe")),
        (pa.array([b"hat", b"shoe"], pa.large_binary()), ("hat", "shoe")),
        ([3.0, 4.0], ("3", "4")),
        ([3.0, 4.5], ("3", "4.5")),
        ([0.0, 1e300], ("0", str(int(1e300)))),
        ([3, 12], ("12", "3")),
        ([True, False], ("False", "True")),
        ([Decimal("3.00"), Decimal("4.50")], ("3", "4.50")),
        (["hat", None], ("hat",)),
        ([1.0, float("nan")], ("1",)),
        (["hat", " "], ("hat",)),
    ],
)
def test_labels_of_parquet(tmp_path: Path, labels: object, classes: tuple[str, ...]) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    pq.write_table(pa.table({"path": [b"1.jpg", b"2.jpg"], "label": labels}), tmp_path / "m.parquet")
    image_set = load_image_set(tmp_path / "m.parquet")
    assert image_set.classes == classes
    assert len(image_set.files) + len(image_set.skipped) == 2


@pytest.mark.parametrize(
    ("label", "kind"),
    [([["a"], ["b"]], "list"), ([{"name": "a"}, {"name": "b"}], "struct")],
)
def test_lists_and_structs_are_refused_by_name(tmp_path: Path, label: object, kind: str) -> None:
    put(tmp_path, "1.jpg", "2.jpg")
    pq.write_table(pa.table({"path": ["1.jpg", "2.jpg"], "label": label}), tmp_path / "m.parquet")
    message = refusal(tmp_path / "m.parquet")
    assert "'label'" in message
    assert kind in message
    image = pa.array([{"bytes": b"x", "path": "1.jpg"}])  # as data sets on hubs have it
    pq.write_table(pa.table({"image": image, "label": ["a"]}), tmp_path / "m.parquet")
    assert "'image'" in refusal(tmp_path / "m.parquet")


def test_a_column_of_images_is_refused_as_one_of_paths(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [None, encoded(kind="PNG")], "label": ["a", "b"]}), tmp_path / "m.parquet")
    assert "'image'" in refusal(tmp_path / "m.parquet")


def test_folders_named_like_columns_add_nothing_to_a_parquet_manifest(tmp_path: Path) -> None:
    put(tmp_path / "split=train", "1.jpg")
    pq.write_table(pa.table({"path": ["1.jpg"], "label": ["a"]}), tmp_path / "split=train/m.parquet")
    assert counted(load_image_set(tmp_path / "split=train/m.parquet")) == {("a", None): 1}


def test_a_spreadsheet_that_is_no_table_of_text(tmp_path: Path) -> None:
    put(tmp_path, "labels.xlsx", data=b"PK\x03\x04")
    assert "CSV" in refusal(tmp_path / "labels.xlsx")
    (tmp_path / "m.csv").write_bytes("path,label\né.jpg,a\n".encode("latin-1"))
    assert "CSV UTF-8" in refusal(tmp_path / "m.csv")


# Tables and lists

cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@given(
    st.lists(st.tuples(cells, cells, cells.map(lambda cell: f"{cell}.")), max_size=5),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_a_table_is_read_as_it_was_written(
    rows: list[tuple[str, ...]], delimiter: str, encoding: str, line_end: str
) -> None:
    header = ["path", "label", "note"]
    written = Table(header=header, rows=[list(row) for row in rows], delimiter=delimiter, encoding=encoding)
    table = read_table(write_table(replace(written, line_end=line_end)), ("path", "label"))
    assert (table.header, table.rows) == (header, written.rows)
    assert (table.delimiter, table.encoding) == (delimiter, encoding)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('path,label\na.jpg,"cat\nb.jpg,dog\n', "line 2"),
        ('path,label\n\na.jpg,cat\nb.jpg,"dog\nc.jpg,cat\n', "line 4"),
        ("path,label\na.jpg,cat\nb.jpg,cat,dog\n", "row 2 has 3 cells"),
        ("path;label\na.jpg;cat;;dog\n", "row 1 has 4 cells"),
    ],
)
def test_a_table_in_which_cells_would_be_lost_is_refused(tmp_path: Path, text: str, told: str) -> None:
    manifest = tmp_path / "photos.csv"
    manifest.write_text(text)
    with pytest.raises(ImageSetError, match=told):
        load_image_set(manifest)


def test_cells_beyond_the_header_may_be_empty() -> None:
    assert read_table(b"path,label\na.jpg,cat,,\nb.jpg\n").rows == [["a.jpg", "cat"], ["b.jpg", ""]]


def test_expected_names_tell_the_delimiter(tmp_path: Path) -> None:
    assert read_table(b"path;label;a,b,c,d,e\n1;2;3\n", ("path", "label")).delimiter == ";"
    assert read_table(b"path\n1.jpg\n").rows == [["1.jpg"]]
    assert read_table(b"").header == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_of_paths(encoding: str) -> None:
    data = "a.jpg\r\n\r\n  \nb c.jpg \n~/é.jpg\nlast.jpg".encode(encoding)
    assert list(read_list(io.BytesIO(data))) == ["a.jpg", "b c.jpg ", "~/é.jpg", "last.jpg"]
    assert list(read_list(io.BytesIO(b""))) == []


def test_a_list_comes_line_by_line() -> None:
    def lines() -> Iterator[bytes]:
        yield b"first.jpg\n"
        raise AssertionError("asked for more than was needed")

    assert next(read_list(lines())) == "first.jpg"


def test_a_plan_as_spreadsheets_write_it(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", 2)
    rows = "\r\n".join(["Action;PATH; To ", "Drop;checks\\0.jpg;", ";;", "relabel;discs\\1.jpg;checks", ""])
    (tmp_path / "plan.csv").write_bytes(rows.encode("utf-16"))
    assert [step.action for step in read_plan(tmp_path / "plan.csv")] == ["drop", "relabel"]
    (tmp_path / "plan.csv").write_bytes(b"\xef\xbb\xbfAction;PATH;From\r\nDrop;checks\\0.jpg;checks\r\n;;\r\n")
    assert apply_plan(photos, tmp_path / "plan.csv").moved == 1
    assert (photos / "_set_aside/checks/0.jpg").exists()
    assert apply_plan(photos, tmp_path / "plan.csv").left == ()  # again, which finds it done


@pytest.mark.parametrize("path", ["..\\outside.jpg", "\\etc\\passwd", "C:\\x.jpg", "a\\..\\..\\outside.jpg"])
def test_backslashes_lead_nowhere_else(tmp_path: Path, path: str) -> None:
    photos = fill(tmp_path / "photos", 1)
    put(tmp_path, "outside.jpg")
    (tmp_path / "plan.csv").write_text(f"action,path\ndrop,{path}\n")
    try:
        assert apply_plan(photos, tmp_path / "plan.csv").moved == 0
    except Exception as error:
        assert type(error).__name__ == "AuditError"
    assert (tmp_path / "outside.jpg").exists()


def test_the_manifest_of_a_plan_keeps_its_form(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    text = "File;Class\r\nchecks\\0.jpg;checks\r\ndiscs\\0.jpg;discs\r\nstripes\\0.jpg;discs\r\n"
    (tmp_path / "m.csv").write_bytes(text.encode("utf-8-sig"))
    plan = "action,path,from,to\ndrop,checks/0.jpg,checks,\nrelabel,stripes/0.jpg,discs,stripes\n"
    (tmp_path / "plan.csv").write_text(plan)
    done = apply_plan(tmp_path / "m.csv", tmp_path / "plan.csv")
    assert (done.moved, done.left) == (2, ())
    written = (tmp_path / "m.audited.csv").read_bytes()
    assert written == "File;Class\r\ndiscs\\0.jpg;discs\r\nstripes\\0.jpg;stripes\r\n".encode("utf-8-sig")
    assert counted(load_image_set(tmp_path / "m.audited.csv")) == {("discs", None): 1, ("stripes", None): 1}


def test_the_parquet_manifest_of_a_plan(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    table = {"filename": [b"checks/0.jpg", b"discs/0.jpg", b"stripes/0.jpg"], "class": [1.0, 2.0, 2.0]}
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    (tmp_path / "plan.csv").write_text("action,path,from,to\ndrop,checks/0.jpg,1,\nrelabel,stripes/0.jpg,2,3\n")
    assert apply_plan(tmp_path / "m.parquet", tmp_path / "plan.csv").left == ()
    assert counted(load_image_set(tmp_path / "m.audited.parquet")) == {("2", None): 1, ("3", None): 1}


# Pipes, sockets, links and the home folder


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes in folders")
@pytest.mark.parametrize("name", ["pipe", "pipe.jpg", "pipe.txt"])
def test_a_named_pipe_is_skipped_and_never_opened(tmp_path: Path, name: str) -> None:
    fill(tmp_path, 1)
    os.mkfifo(tmp_path / "checks" / name)
    (tmp_path / "discs" / "link.jpg").symlink_to(tmp_path / "checks" / name)
    expected = {name: "a named pipe, not a file", "link.jpg": "a named pipe, not a file"}
    image_set = load_image_set(tmp_path)
    assert counted(image_set) == per_class(1)
    assert reasons(image_set) == expected
    (tmp_path / "m.csv").write_text(f"path,label\nchecks/0.jpg,a\nchecks/{name},a\ndiscs/link.jpg,b\n")
    assert reasons(load_image_set(tmp_path / "m.csv")) == expected
    os.mkfifo(tmp_path / "pipe.csv")
    assert "a named pipe" in refusal(tmp_path / "pipe.csv")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no sockets in folders")
def test_a_socket_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 1)
    monkeypatch.chdir(tmp_path / "checks")  # their paths are limited in length
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        assert reasons(load_image_set(tmp_path)) == {"socket.jpg": "a socket, not a file"}


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no devices in folders")
def test_a_device_in_a_manifest_is_skipped(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg")
    (tmp_path / "m.csv").write_text("path,label\n1.jpg,a\n/dev/zero,b\n")
    image_set = load_image_set(tmp_path / "m.csv")
    assert reasons(image_set) == {"zero": "a device, not a file"}


def test_broken_links_are_named(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    for name in ("checks/gone", "checks/gone.jpg", "gone"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    (tmp_path / "m.csv").write_text("path,label\nchecks/0.jpg,a\nchecks/gone.jpg,b\n")
    image_set = load_image_set(tmp_path)
    assert [item.reason for item in image_set.skipped] == ["a link to nothing"] * 3
    assert reasons(load_image_set(tmp_path / "m.csv")) == {"gone.jpg": "a link to nothing"}


def test_links_to_files_without_a_suffix(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    shutil.move(tmp_path / "checks/0.jpg", tmp_path / "blob")
    (tmp_path / "checks/linked").symlink_to(tmp_path / "blob")
    (tmp_path / "discs/linked.jpg").symlink_to(tmp_path / "blob")
    assert counted(load_image_set(tmp_path)) == {**per_class(1), ("discs", None): 2}


def test_a_link_to_the_root_does_not_bring_other_classes(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    (tmp_path / "checks/up").symlink_to(tmp_path)
    assert counted(load_image_set(tmp_path)) == per_class(2)


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    fill(tmp_path / "photos", 1)
    for source in (Path("~/photos"), "~/photos"):
        image_set = load_image_set(source)
        assert image_set.source == tmp_path / "photos"
        assert counted(image_set) == per_class(1)
    assert "No such file or folder" in refusal(Path("~nobody-of-this-name/photos"))


def test_rows_of_a_manifest_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    for name in ("home/a.jpg", "home/sub/b.jpg", "set/~c.jpg", "set/~/d.jpg", "home/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    rows = ("~/a.jpg,cat", "~\\sub\\b.jpg,dog", "~c.jpg,cat", "~/d.jpg,dog", "~/nowhere.jpg,cat")
    (tmp_path / "set" / "m.csv").write_text("\n".join(("path,label", *rows)))
    found = load_image_set(tmp_path / "set" / "m.csv")
    there = {file.path.relative_to(tmp_path).as_posix(): file.label for file in found.files}
    # What lies there as it is written comes first, and only `~` alone is the home folder.
    assert there == {"home/a.jpg": "cat", "home/sub/b.jpg": "dog", "set/~c.jpg": "cat", "set/~/d.jpg": "dog"}
    assert [(item.path, item.reason) for item in found.skipped] == [(tmp_path / "home" / "nowhere.jpg", "no such file")]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere the home folder is in other variables")
def test_without_a_home_folder_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def nobody(_number: int) -> object:
        raise KeyError("no such user")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    (tmp_path / "m.csv").write_text("path,label\n~/a.jpg,cat\n")
    with pytest.raises(QuickstudyError, match=r"'~/a\.jpg' begins with the home folder, .*; set HOME"):
        load_image_set(tmp_path / "m.csv")
    with pytest.raises(QuickstudyError, match="set HOME"):
        load_image_set("~/photos")


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (1, "text files (.md)", "1 text file (.md)"),
        (1200, "text files (.md)", "1,200 text files (.md)"),
        (1, "other files (without a usual suffix)", "1 other file (without a usual suffix)"),
        (1, "photo programs' settings (.xmp)", "1 photo programs' setting (.xmp)"),
        (1, "copies kept by notebooks (.ipynb_checkpoints)", "1 copy kept by notebooks (.ipynb_checkpoints)"),
        (1, "files of the system (.fseventsd)", "1 file of the system (.fseventsd)"),
        (1, "empty files", "1 empty file"),
    ],
)
def test_one_of_a_kind_is_said_so(number: int, kind: str, said: str) -> None:
    assert kinds.counted(number, kind) == said


class TestNamesInLists:
    """What a list calls a file is found again by it, through whichever links there are."""

    @pytest.fixture
    def photo(self, tmp_path: Path) -> Path:
        """A photo in a folder `real/photos`, to which `here/photos` and, for its parent, `link` lead."""
        (tmp_path / "real/photos").mkdir(parents=True)
        (tmp_path / "here").mkdir()
        (tmp_path / "here/photos").symlink_to(tmp_path / "real/photos")
        (tmp_path / "link").symlink_to("real")
        (tmp_path / "real/photos/1.jpg").write_bytes(b"")
        (tmp_path / "real/alias.jpg").symlink_to("photos/1.jpg")
        return tmp_path / "real/photos/1.jpg"

    @pytest.mark.parametrize(
        ("folder", "file", "name"),
        [
            ("real", "real/photos/1.jpg", "photos/1.jpg"),
            ("here", "here/photos/1.jpg", "photos/1.jpg"),
            ("link", "real/photos/1.jpg", "photos/1.jpg"),
            ("real", "link/photos/1.jpg", "photos/1.jpg"),
            ("real", "real/alias.jpg", "alias.jpg"),
            ("real", "here/../real/photos/1.jpg", "photos/1.jpg"),
            ("real", "here/photos/../alias.jpg", "alias.jpg"),
            ("here", "real/photos/1.jpg", None),
            (".", "real/photos/1.jpg", "real/photos/1.jpg"),
        ],
    )
    def test_a_file_is_found_again(
        self, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, file: str, name: str | None
    ) -> None:
        monkeypatch.chdir(tmp_path)
        [found] = names_from(Path(folder), [file])
        assert found == (name or str(photo))
        assert place_of(Path(folder), found).samefile(photo)
        assert real_places([place_of(Path(folder), found)]) == real_places([file])

    def test_a_name_that_is_no_text_has_none(self, tmp_path: Path) -> None:
        assert list(names_from(tmp_path, [tmp_path / "\udcff.jpg", tmp_path / "é.jpg"])) == [None, "é.jpg"]
