"""Image sets from class folders and manifests, and what is said where they cannot be read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quickstudy.errors import ImageSetError
from quickstudy.images import kinds
from quickstudy.images.imageset import ImageSet, list_images, load_image_set

EXPECTED = (
    "expected photos/<class>/*.jpg, photos/train|validation|test/<class>/*.jpg, "
    "a .zip or .tar archive of these, or a .csv or .parquet manifest with columns path,label[,split]"
)


def put(root: Path, *names: str) -> None:
    """Files that look like images by their names; nothing here opens them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image")


def found(image_set: ImageSet) -> dict[str, tuple[str, str | None]]:
    """Label and split by path within the source's folder."""
    root = image_set.source if image_set.source.is_dir() else image_set.source.parent
    return {str(file.path.relative_to(root)): (file.label, file.split) for file in image_set.files}


def skipped(image_set: ImageSet) -> dict[str, str]:
    return {item.path.name: item.reason for item in image_set.skipped}


def message(source: Path) -> str:
    """What a user reads, with the folder that changes from run to run left out."""
    with pytest.raises(ImageSetError) as caught:
        load_image_set(source)
    return str(caught.value).replace(str(source.parent), "…")


def test_class_folders_flat_and_nested(tmp_path: Path) -> None:
    put(tmp_path, "cats/1.jpg", "cats/indoors/2.jpg", "cats/indoors/at night/3.jpg", "dogs/1.png")
    image_set = load_image_set(tmp_path)
    assert found(image_set) == {
        "cats/1.jpg": ("cats", None),
        "cats/indoors/2.jpg": ("cats", None),
        "cats/indoors/at night/3.jpg": ("cats", None),
        "dogs/1.png": ("dogs", None),
    }
    assert image_set.classes == ("cats", "dogs")
    assert image_set.skipped == ()
    assert not any(file.split for file in image_set.files)


def test_the_order_is_by_path_and_the_classes_are_sorted_whatever_the_order_of_creation(tmp_path: Path) -> None:
    names = ["b/2.jpg", "a/10.jpg", "B/1.jpg", "a/9.jpg", "b/1.jpg", "a/m/0.jpg", "a/m.jpg", "é/1.jpg", "a b/1.jpg"]
    put(tmp_path, *names)
    image_set = load_image_set(tmp_path)
    assert [file.path for file in image_set.files] == sorted(tmp_path / name for name in names)
    assert image_set.classes == ("B", "a", "a b", "b", "é")


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "val"), ("train", "validation")),
        (("train", "validation", "test"), ("train", "validation", "test")),
        (("train", "valid", "test"), ("train", "validation", "test")),
        (("Training", "TEST"), ("train", "test")),
        (("training", "testing"), ("train", "test")),
    ],
)
def test_split_folders(tmp_path: Path, names: tuple[str, ...], splits: tuple[str, ...]) -> None:
    put(tmp_path, *(f"{name}/{label}/{name}.jpg" for name in names for label in ("cat", "dog")))
    image_set = load_image_set(tmp_path)
    assert found(image_set) == {
        f"{name}/{label}/{name}.jpg": (label, split)
        for name, split in zip(names, splits, strict=True)
        for label in ("cat", "dog")
    }


def test_hidden_files_and_loose_images_in_split_folders(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.jpg", "train/.cache/1.jpg", "train/.x.jpg", "train/loose.jpg", "train/notes.txt")
    put(tmp_path, "test/cat/2.jpg", "test/__MACOSX/3.jpg")
    image_set = load_image_set(tmp_path)
    assert set(found(image_set)) == {"train/cat/1.jpg", "test/cat/2.jpg"}
    assert skipped(image_set) == {"loose.jpg": "not in a class folder"}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    put(tmp_path, "train/1.jpg", "bus/1.jpg", "test/1.jpg")
    assert found(load_image_set(tmp_path)) == {
        "bus/1.jpg": ("bus", None),
        "test/1.jpg": ("test", None),
        "train/1.jpg": ("train", None),
    }


def test_a_folder_beside_split_folders_is_no_class(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg", "docs/4.jpg")
    image_set = load_image_set(tmp_path)
    assert image_set.classes == ("a", "b")
    assert skipped(image_set) == {"docs": "beside split folders such as train/, so not a class"}


def test_a_train_folder_alone_is_a_class(tmp_path: Path) -> None:
    put(tmp_path, "train/1.jpg", "train/2.jpg")
    assert load_image_set(tmp_path).classes == ("train",)


@pytest.fixture
def without_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "has_heic", lambda: False)


HEIC_NEEDS = (
    "HEIC needs the extra 'heic', which is not installed; install it with: pip install pillow-heif, "
    "or convert it to JPEG or PNG"
)


@pytest.mark.usefixtures("without_heic")
def test_images_by_their_suffix_in_any_case(tmp_path: Path) -> None:
    used = [
        "1.jpg",
        "2.JPG",
        "3.Jpeg",
        "4.PNG",
        "5.webp",
        "6.bmp",
        "7.GIF",
        "8.tif",
        "9.TIFF",
        "a.jfif",
        "b.jpe",
        "r.avif",
    ]
    put(tmp_path, *(f"c/{name}" for name in used), "c/notes.txt", "c/thumbs.db", "c/no suffix", "c/x.jpg.bak")
    put(tmp_path, "c/p.HEIC", "c/q.svg", "c/s.dng")
    image_set = load_image_set(tmp_path)
    assert set(found(image_set)) == {f"c/{name}" for name in used}
    assert skipped(image_set) == {
        "p.HEIC": HEIC_NEEDS,
        "q.svg": "SVG is not supported; convert it to PNG",
        "s.dng": "DNG is a raw photo, which is not supported; export it as JPEG or PNG",
    }


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "a/.2.jpg", "a/._1.jpg", "a/.git/3.jpg", ".thumbnails/4.jpg", "__MACOSX/a/1.jpg")
    image_set = load_image_set(tmp_path)
    assert set(found(image_set)) == {"a/1.jpg"}
    assert image_set.skipped == ()


def test_images_in_the_root_are_named_among_the_skipped(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "b/1.jpg", "stray.JPG", "readme.md")
    image_set = load_image_set(tmp_path)
    assert set(found(image_set)) == {"a/1.jpg", "b/1.jpg"}
    assert skipped(image_set) == {"stray.JPG": "not in a class folder"}


def test_names_in_any_script_with_spaces_and_quotes(tmp_path: Path) -> None:
    names = ["chien d'été/né à Paris.jpg", "犬/一.jpg", "🐈/🙂.jpg", "with, comma/a;b.jpg", "кошка/1 (2).jpg"]
    put(tmp_path, *names)
    image_set = load_image_set(tmp_path)
    assert set(found(image_set)) == set(names)
    assert set(image_set.classes) == {name.split("/")[0] for name in names}


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/far/1.jpg", "elsewhere/2.jpg", "photos/a/3.jpg")
    (tmp_path / "photos/b").symlink_to(tmp_path / "elsewhere/far")
    (tmp_path / "photos/a/linked.jpg").symlink_to(tmp_path / "elsewhere/2.jpg")
    assert found(load_image_set(tmp_path / "photos")) == {
        "a/3.jpg": ("a", None),
        "a/linked.jpg": ("a", None),
        "b/1.jpg": ("b", None),
    }
    (tmp_path / "link").symlink_to("photos")
    assert len(load_image_set(tmp_path / "link").files) == 3


def test_links_that_lead_round_a_loop_end(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "a/deep/2.jpg", "b/3.jpg")
    (tmp_path / "a/deep/up").symlink_to(tmp_path / "a")
    (tmp_path / "b/itself").symlink_to("itself")
    (tmp_path / "b/itself.jpg").symlink_to("itself.jpg")
    (tmp_path / "ring").symlink_to("ring")
    image_set = load_image_set(tmp_path)
    assert set(found(image_set)) == {"a/1.jpg", "a/deep/2.jpg", "b/3.jpg"}
    assert skipped(image_set) == dict.fromkeys(("itself", "itself.jpg", "ring"), "a link that leads to itself")


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg")
    (tmp_path / "a/gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "b").symlink_to("nowhere")
    assert set(found(load_image_set(tmp_path))) == {"a/1.jpg"}
    assert skipped(load_image_set(tmp_path)) == {"gone.jpg": "a link to nothing", "b": "a link to nothing"}


def test_a_folder_called_like_an_image_is_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg/1.jpg", "b/nested.png/2.jpg")
    assert found(load_image_set(tmp_path)) == {"a.jpg/1.jpg": ("a.jpg", None), "b/nested.png/2.jpg": ("b", None)}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folders_are_skipped_and_named(tmp_path: Path) -> None:
    put(tmp_path, "photos/a/1.jpg", "photos/a/locked/2.jpg", "photos/b/3.jpg", "photos/listed/4.jpg")
    put(tmp_path, "splits/train/a/1.jpg", "splits/test/a/2.jpg")
    locked = {tmp_path / "photos/a/locked": 0, tmp_path / "splits/test": 0, tmp_path / "photos/listed": 0o400}
    try:
        for folder, mode in locked.items():
            folder.chmod(mode)
        image_set = load_image_set(tmp_path / "photos")
        assert set(found(image_set)) == {"a/1.jpg", "b/3.jpg", "listed/4.jpg"}
        assert skipped(image_set) == {"locked": "unreadable folder (permission denied)"}
        image_set = load_image_set(tmp_path / "splits")
        assert set(found(image_set)) == {"train/a/1.jpg"}
        assert skipped(image_set) == {"test": "unreadable folder (permission denied)"}
    finally:
        for folder in locked:
            folder.chmod(0o700)


@pytest.mark.usefixtures("without_heic")
def test_images_of_a_folder_without_labels(tmp_path: Path) -> None:
    put(tmp_path, "2.jpg", "1.png", "sub/3.jpg", ".hidden.jpg", "x.heic", "notes.txt")
    paths, wrong = list_images(tmp_path)
    assert paths == [tmp_path / "1.png", tmp_path / "2.jpg", tmp_path / "sub/3.jpg"]
    assert [(item.path.name, item.reason) for item in wrong] == [("x.heic", HEIC_NEEDS)]


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert message(tmp_path / "photos") == f"No images under '…/photos'; {EXPECTED}"


def test_a_missing_path(tmp_path: Path) -> None:
    assert message(tmp_path / "phtos") == f"No such file or folder: '…/phtos'; {EXPECTED}"


def test_only_images_in_the_root(tmp_path: Path) -> None:
    put(tmp_path, "photos/1.jpg", "photos/2.jpg")
    told = message(tmp_path / "photos")
    assert told.startswith("No images under '…/photos' (skipped 2, e.g. '1.jpg': not in a class folder)")
    assert "Make a folder for each class" in told


@pytest.mark.usefixtures("without_heic")
def test_only_foreign_images(tmp_path: Path) -> None:
    put(tmp_path, "photos/a/1.heic")
    assert message(tmp_path / "photos") == (
        f"No images under '…/photos' (there is 1 HEIC file, which is not read; convert it to PNG); {EXPECTED}"
    )


def test_a_file_that_is_no_manifest(tmp_path: Path) -> None:
    put(tmp_path, "photo.jpg")
    assert message(tmp_path / "photo.jpg") == (
        f"'…/photo.jpg' is neither a folder nor a .csv or .parquet manifest; {EXPECTED}"
    )


def test_a_class_name_that_no_model_could_hold(tmp_path: Path) -> None:
    try:
        put(tmp_path, os.fsdecode(b"photos/caf\xe9/1.jpg"))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert message(tmp_path / "photos") == (
        "The class name 'caf\\udce9' in '…/photos' is not valid UTF-8, which models are written in; rename its folder"
    )


def test_a_file_name_that_is_not_utf_8_is_an_image_like_others(tmp_path: Path) -> None:
    name = os.fsdecode(b"a/caf\xe9.jpg")
    try:
        put(tmp_path, name)
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert set(found(load_image_set(tmp_path))) == {name}


# Manifests


def csv(root: Path, text: str | bytes) -> Path:
    path = root / "manifest.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def parquet(root: Path, **columns: Sequence[object]) -> Path:
    path = root / "manifest.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_manifest_names_files_beside_it_labels_and_splits(tmp_path: Path, kind: str) -> None:
    put(tmp_path, "in/2.jpg", "in/1.jpg", "in/3.jpg", "4.xyz")
    rows = [("in/2.jpg", "cat", "train"), ("in/1.jpg", "dog", "Val"), ("in/3.jpg", "cat", ""), ("4.xyz", "dog", "test")]
    if kind == "csv":
        source = csv(tmp_path, "path,label,split\n" + "".join(",".join(row) + "\n" for row in rows))
    else:
        paths, labels, splits = (list(column) for column in zip(*rows, strict=True))
        source = parquet(tmp_path, path=paths, label=labels, split=splits)
    image_set = load_image_set(source)
    assert found(image_set) == {
        "4.xyz": ("dog", "test"),  # a manifest says itself what is an image
        "in/1.jpg": ("dog", "validation"),
        "in/2.jpg": ("cat", "train"),
        "in/3.jpg": ("cat", None),
    }
    assert [file.path.name for file in image_set.files] == ["4.xyz", "1.jpg", "2.jpg", "3.jpg"]
    assert any(file.split == "test" for file in image_set.files)


def test_absolute_paths_in_a_manifest(tmp_path: Path) -> None:
    put(tmp_path, "photos/1.jpg", "lists/other.txt")
    source = csv(tmp_path / "lists", f"path,label\n{tmp_path / 'photos/1.jpg'},cat\n../photos/1.jpg,dog\n")
    assert sorted(file.label for file in load_image_set(source).files) == ["cat", "dog"]


def test_a_manifest_as_spreadsheets_write_it(tmp_path: Path) -> None:
    """With a byte order mark, Windows line ends, quotes, commas in names, another column and blank lines."""
    put(tmp_path, "a, b.jpg", "c.jpg")
    text = '\ufeffpath,label,note\r\n"a, b.jpg","cat ""Tom""",x\r\n\r\nc.jpg, dog ,\r\n'
    assert found(load_image_set(csv(tmp_path, text))) == {"a, b.jpg": ('cat "Tom"', None), "c.jpg": ("dog", None)}


def test_rows_of_a_manifest_that_lead_to_nothing_are_skipped(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg", "folder/x.jpg")
    text = f"path,label\n1.jpg,cat\n2.jpg,\n,cat\nmissing.jpg,cat\nfolder,cat\n1.jpg\n{'x' * 5000}.jpg,cat\n"
    image_set = load_image_set(csv(tmp_path, text))
    assert found(image_set) == {"1.jpg": ("cat", None)}
    assert [item.reason for item in image_set.skipped] == [
        "row 2 of the manifest has no label",
        "row 3 of the manifest has no path",
        "no such file",
        "a folder, not a file",
        "row 6 of the manifest has no label",
        "no such file",
    ]


def test_labels_may_be_numbers(tmp_path: Path) -> None:
    put(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    names = ["0.jpg", "1.jpg", "2.jpg"]
    assert load_image_set(parquet(tmp_path, path=names, label=[0, 1, 2])).classes == ("0", "1", "2")
    assert load_image_set(csv(tmp_path, "path,label\n0.jpg,0\n1.jpg,1\n2.jpg,2\n")).classes == ("0", "1", "2")


def test_missing_labels_of_a_data_frame_are_no_class(tmp_path: Path) -> None:
    put(tmp_path, "0.jpg", "1.jpg")
    for missing in (None, float("nan")):
        image_set = load_image_set(parquet(tmp_path, path=["0.jpg", "1.jpg"], label=[5.0, missing]))
        assert image_set.classes == ("5",)
        assert skipped(image_set) == {"1.jpg": "row 2 of the manifest has no label"}


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("picture,kind\n1.jpg,cat\n", "'picture', 'kind'"),
        ("path\n1.jpg\n", "'path'"),
        ("path;kind\n1.jpg;cat\n", "'path', 'kind'"),
        ("1.jpg,cat\n", "'1.jpg', 'cat'"),
        (",path\n0,1.jpg\n", "'', 'path'"),
    ],
)
def test_a_manifest_without_the_columns(tmp_path: Path, text: str, columns: str) -> None:
    expected = f"The manifest '…/manifest.csv' has the columns {columns}; expected path,label[,split]"
    assert message(csv(tmp_path, text)) == expected


def test_a_parquet_manifest_without_the_columns(tmp_path: Path) -> None:
    assert message(parquet(tmp_path, path=["1.jpg"], labels=["cat"])) == (
        "The manifest '…/manifest.parquet' has the columns 'path', 'labels'; expected path,label[,split]. "
        "If an image may have several labels, use a command that has --several, such as retrain"
    )


def test_a_split_that_does_not_exist(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg")
    assert message(csv(tmp_path, "path,label,split\n1.jpg,cat,train\n1.jpg,cat,third\n")) == (
        "Row 2 of '…/manifest.csv' has the split 'third'; expected train, validation or test, or nothing"
    )


def test_a_manifest_of_missing_files(tmp_path: Path) -> None:
    assert message(csv(tmp_path, "path,label\n1.jpg,cat\n2.jpg,cat\n")) == (
        f"No images under '…/manifest.csv' (skipped 2, e.g. '1.jpg': no such file); {EXPECTED}"
    )
    assert message(csv(tmp_path, "path,label\n")) == f"No images under '…/manifest.csv'; {EXPECTED}"


def test_manifests_that_cannot_be_read(tmp_path: Path) -> None:
    assert message(csv(tmp_path, "path,label\ncafé.jpg,cat\n".encode("latin-1"))).startswith(
        "Cannot read the manifest '…/manifest.csv' as CSV in UTF-8: 'utf-8' codec can't decode byte 0xe9"
    )
    assert message(csv(tmp_path, "path,label\n".encode("utf-16")[:-1])).startswith(
        "Cannot read the manifest '…/manifest.csv' as CSV in UTF-8"
    )
    assert message(csv(tmp_path, 'path,label\n"1.jpg,' + "x" * 200_000)).startswith(
        "Cannot read the manifest '…/manifest.csv' as CSV: the row that begins in line 2 has a cell of more than"
    )
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1 and then nothing that is Parquet PAR1")
    assert message(tmp_path / "manifest.parquet").startswith("Cannot read the manifest '…/manifest.parquet' as Parquet")
    (tmp_path / "manifest.parquet").write_bytes(b"")
    assert message(tmp_path / "manifest.parquet").startswith("Cannot read the manifest '…/manifest.parquet' as Parquet")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('path,label\n1.jpg,cat\n\n"2.jpg"x,cat\n', "line 4 has something behind a closing quotation mark"),
        ('path,label\n1.jpg,"a "big" cat"\n', "line 2 has something behind a closing quotation mark"),
        ('path,label\n"1\n.jpg"x,cat\n', "line 2 has something behind"),
        ('path,label\n1.jpg,"cat\n', "line 2 has a quotation mark that is never closed"),
        ("", "is empty"),
        ("path,label\n1.jpg,cat\n".encode("utf-16-le"), "save it as 'CSV UTF-8'"),
        ("path,label\n1.jpg,cat\n".encode("utf-32"), "save it as 'CSV UTF-8'"),
    ],
)
def test_what_is_no_table_is_told_with_its_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    told = message(csv(tmp_path, text))
    assert "…/manifest.csv" in told
    assert said in told


def test_images_without_a_label_come_where_they_are_asked_for(tmp_path: Path) -> None:
    for name in ("train/a/1.jpg", "train/2.jpg", "train/unlabelled/3.jpg", "test/a/4.jpg", "5.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = load_image_set(tmp_path, unlabelled=True)
    assert [file.label for file in found.files] == ["a", "a"]
    named = {file.path.relative_to(tmp_path).as_posix(): file.split for file in found.unlabelled}
    assert named == {"train/2.jpg": "train", "train/unlabelled/3.jpg": "train", "5.jpg": None}
    assert found.skipped == ()
    plain = load_image_set(tmp_path)
    assert plain.unlabelled == ()
    assert {item.path.name for item in plain.skipped} == {"2.jpg", "3.jpg", "5.jpg"}
    assert plain.classes == ("a",)


def test_a_flat_folder_has_only_images_without_a_label(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    assert len(load_image_set(tmp_path, unlabelled=True).unlabelled) == 1
    with pytest.raises(ImageSetError, match="No images under"):
        load_image_set(tmp_path)


def test_manifest_rows_without_a_label(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "labels.csv").write_text("path,label,split\n1.jpg,a,\n2.jpg,,test\n")
    found = load_image_set(tmp_path / "labels.csv", unlabelled=True)
    assert [(file.path.name, file.split) for file in found.unlabelled] == [("2.jpg", "test")]
    assert load_image_set(tmp_path / "labels.csv").skipped[0].reason == "row 2 of the manifest has no label"


def test_what_was_set_aside_is_not_there(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "_set_aside/a/2.jpg", "a/_set_aside/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = load_image_set(tmp_path, unlabelled=True)
    assert [file.path.name for file in found.files] == ["1.jpg"]
    assert (found.unlabelled, found.skipped) == ((), ())
