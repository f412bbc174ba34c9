"""The census: every content's places, label and role against a slow obvious version, whatever happens to the files."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from quickstudy.errors import ImageSetError
from quickstudy.images.census import Census, take_census
from quickstudy.images.imageset import Split
from quickstudy.images.manifests import Labelling
from quickstudy.models.roles import Roles

# One file: which content, under which label, in which split (where the layout has them), and a number for its name.
Files = list[tuple[int, str, str, int]]
LAYOUTS = ("folders", "train and test", "train and val", "all three", "manifest", "manifest with splits")
SPLITS: dict[str, tuple[str, ...]] = {
    "train and test": ("train", "test"),
    "train and val": ("train", "val"),
    "all three": ("train", "val", "test"),
    "manifest with splits": ("train", "validation", "test", ""),
}
ROLE: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "test": "test",
    "": "train",
}


def content_of(number: int) -> bytes:
    """A bitmap of one pixel, of which the colour is the number."""
    header = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 58, 0, 0, 54, 40, 1, 1, 1, 24, 0, 4, 2835, 2835, 0, 0)
    return header + struct.pack("<I", number)


def digest_of(number: int) -> bytes:
    return hashlib.sha256(content_of(number)).digest()


def lay_out(root: Path, layout: str, files: Files) -> Path:
    """Write the files; what to name to quickstudy."""
    rows = []
    for content, label, split, number in files:
        parts = [split] if "manifest" not in layout and split else []
        path = root.joinpath(*parts, label if "manifest" not in layout else "mixed", f"{number}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_of(content))
        rows.append(f"{path.relative_to(root)},{label},{split}")
    if "manifest" not in layout:
        return root
    (root / "labels.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    return root / "labels.csv"


def expected_roles(files: Files, layout: str, before: dict[bytes, Split]) -> dict[bytes, Split | str]:
    """Find the role of each content, or why it has none, by the obvious way."""
    found: dict[bytes, Split | str] = {}
    contents = sorted({content for content, *_ in files}, key=digest_of)
    labels = {content: {label for other, label, *_ in files if other == content} for content in contents}
    by_label: dict[str, list[int]] = {}
    for content in contents:
        if len(labels[content]) > 1:
            found[digest_of(content)] = "conflict"
            continue
        by_label.setdefault(next(iter(labels[content])), []).append(content)
    for members in by_label.values():
        if layout in SPLITS and any(split for *_, split, _ in files):
            for content in members:
                splits = {ROLE[split] for other, _, split, _ in files if other == content}
                strictest = "test" if "test" in splits else "validation" if "validation" in splits else "train"
                found[digest_of(content)] = strictest
            continue
        roles = {}
        for content in members:
            digest = digest_of(content)
            share = int.from_bytes(digest[:8], "big") / 2**64
            roles[digest] = ("test" if before[digest] == "test" else "train") if digest in before else None
            roles[digest] = roles[digest] or ("test" if share < 0.2 else "train")
        free = [digest for digest in roles if digest not in before]
        if len(roles) > 1 and free and len(set(roles.values())) == 1:
            if "train" in roles.values():
                roles[min(free)] = "test"
            else:
                roles[max(free)] = "train"
        found.update(roles)
    return found


def roles_in(census: Census) -> dict[bytes, Split | str]:
    return {digest: content.role or content.left_out or "" for digest, content in census.contents.items()}


def a_file(layout: str) -> st.SearchStrategy[tuple[int, str, str]]:
    splits = st.sampled_from(SPLITS[layout]) if layout in SPLITS else st.just("")
    return st.tuples(st.integers(0, 12), st.sampled_from(["cat", "dog", "bird"]), splits)


@hypothesis_settings(max_examples=150)
@given(data=st.data(), layout=st.sampled_from(LAYOUTS))
def test_roles_are_those_of_the_obvious_version_through_moves_additions_and_retrainings(
    data: st.DataObject, layout: str
) -> None:
    """Each round lays some files out anew, under other names and with copies, and remembers roles as a model does."""
    before: dict[bytes, Split] = {}
    with TemporaryDirectory() as temporary:
        for number in range(data.draw(st.integers(1, 3), label="rounds")):
            drawn = data.draw(st.lists(a_file(layout), min_size=1, max_size=14), label="files")
            # Some images stand in every layout, so that split folders are seen to be such.
            always = [(100 + n, "cat", split) for n, split in enumerate(SPLITS.get(layout, ()))]
            files = [(*file, place + 100 * number) for place, file in enumerate([*drawn, *always])]
            source = lay_out(Path(temporary) / f"{number}", layout, files)
            model = Roles.from_dict(Roles.of(*split_up(before)).to_dict())
            census = take_census(source, None, before=model.role)
            assert roles_in(census) == expected_roles(files, layout, before)
            assert {d: {p.path.name for p in c.places} for d, c in census.contents.items()} == {
                digest_of(content): {f"{n}.jpg" for other, *_, n in files if other == content} for content, *_ in files
            }
            before = {d: role for d, role in roles_in(census).items() if role in ("train", "validation", "test")}


def split_up(roles: dict[bytes, Any]) -> list[list[bytes]]:
    return [[d for d, role in roles.items() if role == name] for name in ("train", "validation", "test")]


def drawn_set(root: Path, images: int = 60) -> Path:
    return lay_out(root, "folders", [(n, "cat" if n % 2 else "dog", "", n) for n in range(images)])


def test_moving_renaming_and_adding_changes_no_other_image(tmp_path: Path) -> None:
    source = drawn_set(tmp_path / "one")
    first = take_census(source, None)
    roles = Roles.of(*split_up(roles_in(first)))
    (source / "cat" / "1.jpg").rename(source / "cat" / "renamed.jpg")
    shutil.copytree(source, tmp_path / "two" / "elsewhere")
    for number in range(60, 90):
        (tmp_path / "two" / "elsewhere" / "dog" / f"{number}.jpg").write_bytes(content_of(number))
    second = take_census(tmp_path / "two" / "elsewhere", None, before=roles.role)
    assert roles_in(first).items() <= roles_in(second).items()
    assert len(second.contents) == 90


def test_what_cannot_be_decoded_is_left_out_and_roles_are_given_again(tmp_path: Path) -> None:
    source = lay_out(
        tmp_path, "folders", [(n, "cat", "", n) for n in range(2)] + [(n, "dog", "", n) for n in (7, 8, 9)]
    )
    census = take_census(source, None)
    tested = next(d for d in census.digests("test") if census.labels[d] == "dog")
    without = census.without({tested: "truncated"})
    assert without.contents[tested].left_out == "unusable"
    assert [(item.path.name, item.reason) for item in without.skipped] == [
        (census.contents[tested].path.name, "truncated")
    ]
    assert Counter(without.labels.values()) == {"cat": 2, "dog": 2}
    assert without.counts("test") == {"cat": 1, "dog": 1}  # another takes its place
    assert census.without({}) is census


def test_a_class_without_a_usable_image_is_named(tmp_path: Path) -> None:
    source = lay_out(tmp_path, "folders", [(n, "cat" if n < 4 else "dog", "", n) for n in range(8)])
    census = take_census(source, None)
    assert census.empty_classes == ()
    broken = {digest_of(n): "truncated" for n in range(4, 8)}
    assert census.without(broken).empty_classes == ("dog",)
    with pytest.raises(ImageSetError):
        census.without(broken).require_enough(strict=True)


def test_a_class_of_one_image_is_left_out_where_it_is_to_be_learned_and_no_split_is_given(tmp_path: Path) -> None:
    rows = [(n, "cat" if n < 4 else "dog", "", n) for n in range(7)] + [(7, "owl", "", n) for n in range(7, 10)]
    source = lay_out(tmp_path / "drawn", "folders", rows)
    assert take_census(source, None).counts("train", "test") == {"cat": 4, "dog": 3, "owl": 1}
    census = take_census(source, None, to_learn=True)
    assert census.counts("train", "test") == {"cat": 4, "dog": 3}
    only = census.contents[digest_of(7)]
    assert (only.role, only.left_out, len(only.places)) == (None, "single", 3)
    assert (census.single, census.empty_classes, census.classes) == ({"owl": only}, (), ("cat", "dog"))
    census.require_enough()
    with pytest.raises(ImageSetError, match="'owl'"):
        census.require_enough(strict=True)
    one_dog = census.without({digest_of(n): "truncated" for n in (4, 5)})
    assert list(one_dog.single) == ["dog", "owl"]
    with pytest.raises(ImageSetError, match=r"has 1 \('cat'\); 'dog' has a single usable image, add more; 'owl' "):
        one_dog.require_enough()
    assert one_dog.without({digest_of(6): "truncated"}).empty_classes == ("dog",)
    given = lay_out(tmp_path / "given", "splits", [(n, "cat", "train", n) for n in range(3)] + [(4, "owl", "train", 4)])
    assert take_census(given, None, to_learn=True).classes == ("cat", "owl")


def test_a_folder_around_the_class_folders_is_told(tmp_path: Path) -> None:
    rows = [(n, name, "", n) for n, name in enumerate(("cat", "cat", "dog", "dog"))]
    lay_out(tmp_path / "photos" / "images", "folders", rows)
    with pytest.raises(ImageSetError) as error:
        take_census(tmp_path / "photos", None, to_learn=True).require_enough()
    assert f"'cat', 'dog' are the classes, give the folder that holds them: '{tmp_path}/photos/images'" in str(
        error.value
    )
    take_census(tmp_path / "photos" / "images", None, to_learn=True).require_enough()
    (tmp_path / "photos" / "images" / "x.jpg").write_bytes(content_of(9))  # then they may be parts of one class
    with pytest.raises(ImageSetError, match="expected photos/<class>"):
        take_census(tmp_path / "photos", None, to_learn=True).require_enough()


def test_test_images_of_classes_that_are_not_learned_are_counted_and_alike_names_told(tmp_path: Path) -> None:
    files: Files = [(n, "Hat" if n % 2 else "shoe", "train", n) for n in range(10)]
    files += [(n, "hat" if n % 2 else "shoe", "test", n) for n in range(10, 17)]
    census = take_census(lay_out(tmp_path, "train and test", files), None)
    assert census.classes == ("Hat", "shoe")
    assert census.strangers == {"hat": 3}
    assert census.alike_classes == (("Hat", "hat"),)


def test_the_fingerprint_is_of_contents_labels_and_roles_alone(tmp_path: Path) -> None:
    one, two = take_census(drawn_set(tmp_path / "a"), None), take_census(drawn_set(tmp_path / "b"), None)
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != take_census(drawn_set(tmp_path / "c", 61), None).fingerprint
    given = lay_out(tmp_path / "d", "train and test", [(n, "cat", "train" if n else "test", n) for n in range(9)])
    assert one.fingerprint != take_census(given, None).fingerprint


def test_unchanged_files_are_not_read_again_and_changed_ones_are(tmp_path: Path) -> None:
    source, index = drawn_set(tmp_path / "set", 10), tmp_path / "index.sqlite"
    for path in source.rglob("*.jpg"):
        os.utime(path, ns=(1, 1))
    first = take_census(source, index)
    (source / "cat" / "1.jpg").write_bytes(content_of(99))
    second = take_census(source, index)
    assert set(second.contents) - set(first.contents) == {digest_of(99)}
    assert set(first.contents) - set(second.contents) == {digest_of(1)}


def test_rows_without_a_split_are_no_leak_beside_rows_to_train_on(tmp_path: Path) -> None:
    files: Files = [(n, "cat" if n % 2 else "dog", "train" if n < 6 else "test", n) for n in range(10)]
    files += [(0, "dog", "", 10), (6, "dog", "", 11)]
    census = take_census(lay_out(tmp_path, "manifest with splits", files), None)
    assert (census.leaks, census.copies) == (1, 2)  # the one that is in the test, too
    assert census.contents[digest_of(0)].role == "train"
    assert census.contents[digest_of(6)].role == "test"


def test_files_that_cannot_be_read_are_the_reason_why_classes_are_lacking(tmp_path: Path) -> None:
    lay_out(tmp_path, "folders", [(1, "a", "", 1), (2, "a", "", 2), (3, "b", "", 3)])
    census = take_census(tmp_path, None)
    assert census.faults == ""
    census = census.without(dict.fromkeys(census.contents, "no image"))
    first = tmp_path / "a" / "1.jpg"
    assert census.faults == f"3 files cannot be used, the first: '{first}': no image"
    with pytest.raises(ImageSetError) as caught:
        census.require_enough()
    assert census.faults in str(caught.value)


def test_contradictions_are_the_reason_why_classes_are_lacking(tmp_path: Path) -> None:
    lay_out(tmp_path, "folders", [(1, "a", "", 1), (1, "b", "", 2), (2, "a", "", 3), (2, "b", "", 4)])
    with pytest.raises(ImageSetError) as caught:
        take_census(tmp_path, None, to_learn=True).require_enough()
    one, other = tmp_path / "a" / "1.jpg", tmp_path / "b" / "2.jpg"
    assert f"2 images are under several classes, the first: '{one}' = '{other}'" in str(caught.value)


def test_a_label_of_none_that_there_is_not_is_told_with_the_nearest(tmp_path: Path) -> None:
    names = ("cat", "dog", "hen", "other")
    lay_out(tmp_path, "folders", [(n, name, "", n) for n, name in enumerate(names * 2)])
    for none, hint in (("othr", "did you mean 'other'?"), ("zebra", "the labels are 'cat', 'dog', 'hen', …")):
        with pytest.raises(ImageSetError) as caught:
            take_census(tmp_path, None, labelling=Labelling(none=none)).require_enough()
        assert hint in str(caught.value)


def test_a_file_that_two_rows_name_is_one(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(content_of(number))
    (tmp_path / "copy.jpg").write_bytes(content_of(0))
    (tmp_path / "sub").mkdir()
    rows = ("0.jpg,cat,train", "0.jpg,cat,train", "sub/../0.jpg,cat,train", "copy.jpg,cat,train")
    rows += ("1.jpg,cat,train", "1.jpg,cat,test", "2.jpg,dog,train", "2.jpg,cat,train", "3.jpg,dog,test")
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    census = take_census(tmp_path / "labels.csv", None)
    names = {digest: [place.path.name for place in content.places] for digest, content in census.contents.items()}
    assert names[digest_of(0)] == ["0.jpg", "copy.jpg"]
    assert (census.copies, census.leaks) == (1, 1)  # a file in two splits is no copy
    assert names[digest_of(1)] == ["1.jpg", "1.jpg"]
    assert census.contents[digest_of(1)].role == "test"
    assert [content.digest for content in census.conflicting] == [digest_of(2)]
