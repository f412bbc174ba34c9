"""The split by content: nobody's split depends on the others, every class is on both sides, and the lock is kept."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickstudy.errors import ImageSetError
from quickstudy.images.splits import LOCK_NAME, Part, read_lock, split_by_content, write_lock


def digest_of(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def at(share: float, number: int = 0) -> bytes:
    """A hash that lies at `share` between 0 and 1."""
    return int(share * 2**64).to_bytes(8, "big") + bytes(23) + bytes([number])


digests = st.integers(0, 10_000).map(digest_of)
image_sets = st.dictionaries(digests, st.sampled_from(["cat", "dog", "bird"]), max_size=40)
locks = st.dictionaries(digests, st.sampled_from(["train", "test"]), max_size=20)


def at_least_one_rule_applied(labels: dict[bytes, str]) -> set[str]:
    """Classes that the hash alone puts on one side, so that one of their images changes sides."""
    sides: dict[str, set[bool]] = {}
    for digest, label in labels.items():
        sides.setdefault(label, set()).add(int.from_bytes(digest[:8], "big") < 0.2 * 2**64)
    counts = Counter(labels.values())
    return {label for label, both in sides.items() if len(both) == 1 and counts[label] > 1}


def test_the_split_by_hand() -> None:
    labels = {at(0.0): "cat", at(0.1999): "cat", at(0.2001): "cat", at(0.9): "cat"}
    assert list(split_by_content(labels).values()) == ["test", "test", "train", "train"]
    assert list(split_by_content(labels, test_share=0.5).values()) == ["test", "test", "test", "train"]


def test_a_class_that_the_hash_puts_on_one_side_gives_the_nearest_image_to_the_other() -> None:
    trained = {at(0.7): "cat", at(0.3): "cat", at(0.5): "cat"}
    assert list(split_by_content(trained).values()) == ["train", "test", "train"]
    tested = {at(0.05): "cat", at(0.15): "cat", at(0.1): "cat"}
    assert list(split_by_content(tested).values()) == ["test", "train", "test"]
    assert split_by_content({at(0.5): "cat"}) == {at(0.5): "train"}
    assert split_by_content({at(0.1): "cat"}) == {at(0.1): "test"}
    assert split_by_content({}) == {}


@given(image_sets)
def test_every_class_of_two_images_is_on_both_sides(labels: dict[bytes, str]) -> None:
    parts = split_by_content(labels)
    assert set(parts) == set(labels)
    for name, count in Counter(labels.values()).items():
        sides = {parts[digest] for digest, label in labels.items() if label == name}
        assert sides == {"train", "test"} or count == 1


@given(image_sets, image_sets)
def test_adding_and_removing_images_changes_nobody_elses_split(
    before: dict[bytes, str], more: dict[bytes, str]
) -> None:
    """Except in classes that would be on one side: one image a class there."""
    after = before | {digest: label for digest, label in more.items() if digest not in before}
    one, other = split_by_content(before), split_by_content(after)
    exempt = at_least_one_rule_applied(before) | at_least_one_rule_applied(after)
    changed = [digest for digest in before if one[digest] != other[digest]]
    assert {before[digest] for digest in changed} <= exempt
    assert all(count == 1 for count in Counter(before[digest] for digest in changed).values())


@given(image_sets, st.randoms(use_true_random=False))
def test_neither_order_nor_names_matter(labels: dict[bytes, str], chance: random.Random) -> None:
    items = list(labels.items())
    chance.shuffle(items)
    assert split_by_content(dict(items)) == split_by_content(labels)
    renamed = {digest: f"the {label}" for digest, label in labels.items()}
    assert split_by_content(renamed) == split_by_content(labels)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_the_share_comes_out_near_for_many(share: float) -> None:
    labels = {digest_of(number): f"class {number % 5}" for number in range(10_000)}
    parts = split_by_content(labels, test_share=share)
    # Five standard deviations of a binomial share.
    assert abs(Counter(parts.values())["test"] / 10_000 - share) < 5 * (share * (1 - share) / 10_000) ** 0.5
    for name in set(labels.values()):
        tested = sum(parts[digest] == "test" for digest, label in labels.items() if label == name)
        assert abs(tested / 2000 - share) < 5 * (share * (1 - share) / 2000) ** 0.5


@given(image_sets, locks)
def test_earlier_decisions_stand(labels: dict[bytes, str], locked: dict[bytes, Part]) -> None:
    parts = split_by_content(labels, locked=locked)
    assert set(parts) == set(labels)
    for digest in set(locked) & set(labels):
        assert parts[digest] == locked[digest]
    for name, count in Counter(labels.values()).items():
        members = [digest for digest, label in labels.items() if label == name]
        free = [digest for digest in members if digest not in locked]
        assert {parts[digest] for digest in members} == {"train", "test"} or count == 1 or not free


@given(image_sets, image_sets)
def test_a_lock_keeps_every_split_when_images_come(before: dict[bytes, str], more: dict[bytes, str]) -> None:
    parts = split_by_content(before)
    after = more | before
    assert parts.items() <= split_by_content(after, locked=parts).items()


def test_a_lock_comes_back_as_it_was_written(tmp_path: Path) -> None:
    parts = split_by_content({digest_of(number): "cat" for number in range(50)})
    write_lock(tmp_path / LOCK_NAME, parts)
    assert read_lock(tmp_path / LOCK_NAME) == parts
    text = (tmp_path / LOCK_NAME).read_text()
    values = json.loads(text)
    assert values["version"] == 1
    assert list(values["splits"]) == sorted(digest.hex() for digest in parts)
    write_lock(tmp_path / LOCK_NAME, dict(reversed(parts.items())))
    assert (tmp_path / LOCK_NAME).read_text() == text  # comparable between versions of a set
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]


def test_without_a_lock_nothing_is_decided(tmp_path: Path) -> None:
    assert read_lock(tmp_path / LOCK_NAME) == {}


NAME = "ab" * 32


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "{}",
        '{"version": 1}',
        '{"version": 1, "splits": []}',
        '{"version": 1, "splits": {"abc": "train"}}',
        '{"version": 1, "splits": {"abcd": "train"}}',
        json.dumps({"version": 1, "splits": {"zz" * 32: "train"}}),
        json.dumps({"version": 1, "splits": {NAME: "validation"}}),
        json.dumps({"version": 1, "splits": {NAME: ["train"]}}),
        json.dumps({"version": 1, "splits": {NAME: None}}),
    ],
)
def test_a_damaged_lock_is_named_with_a_way_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / LOCK_NAME
    path.write_text(text)
    with pytest.raises(ImageSetError) as caught:
        read_lock(path)
    assert str(caught.value).startswith(f"The split lock '{path}' is damaged or of another version (")
    assert str(caught.value).endswith("Restore it from a backup, or delete it to have the split drawn again")
    assert path.read_text() == text


def test_a_lock_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text('{"version": 2, "splits": {}}')
    with pytest.raises(ImageSetError, match=r"of another version \(version 2\)"):
        read_lock(tmp_path / LOCK_NAME)


def test_a_lock_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ImageSetError, match=r"Cannot read the split lock '.*/quickstudy\.lock\.json'"):
        read_lock(tmp_path / LOCK_NAME)
    with pytest.raises(ImageSetError, match=r"Cannot read the split lock '.*'"):
        read_lock(tmp_path)
