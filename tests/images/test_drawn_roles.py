"""Roles drawn by content: nobody's depends on the others, every class is on both sides, earlier roles stand."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickstudy.images.drawn_roles import draw_tests, draw_tests_of_several, draw_validation, held_out_share
from quickstudy.images.imageset import Split


def digest_of(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def at(share: float, number: int = 0) -> bytes:
    """A hash that lies at `share` between 0 and 1."""
    return int(share * 2**64).to_bytes(8, "big") + bytes(23) + bytes([number])


digests = st.integers(0, 10_000).map(digest_of)
image_sets = st.dictionaries(digests, st.sampled_from(["cat", "dog", "bird"]), max_size=40)
locks = st.dictionaries(digests, st.sampled_from(["train", "validation", "test"]), max_size=20)


def at_least_one_rule_applied(labels: dict[bytes, str]) -> set[str]:
    """Classes that the hash alone puts on one side, so that one of their images changes sides."""
    sides: dict[str, set[bool]] = {}
    for digest, label in labels.items():
        sides.setdefault(label, set()).add(int.from_bytes(digest[:8], "big") < 0.2 * 2**64)
    counts = Counter(labels.values())
    return {label for label, both in sides.items() if len(both) == 1 and counts[label] > 1}


def test_the_split_by_hand() -> None:
    labels = {at(0.0): "cat", at(0.1999): "cat", at(0.2001): "cat", at(0.9): "cat"}
    assert list(draw_tests(labels).values()) == ["test", "test", "train", "train"]
    assert list(draw_tests(labels, test_share=0.5).values()) == ["test", "test", "test", "train"]


def test_a_class_that_the_hash_puts_on_one_side_gives_the_nearest_image_to_the_other() -> None:
    trained = {at(0.7): "cat", at(0.3): "cat", at(0.5): "cat"}
    assert list(draw_tests(trained).values()) == ["train", "test", "train"]
    tested = {at(0.05): "cat", at(0.15): "cat", at(0.1): "cat"}
    assert list(draw_tests(tested).values()) == ["test", "train", "test"]
    assert draw_tests({at(0.5): "cat"}) == {at(0.5): "train"}
    assert draw_tests({at(0.1): "cat"}) == {at(0.1): "test"}
    assert draw_tests({}) == {}


@given(image_sets)
def test_without_a_share_nothing_is_for_the_test(labels: dict[bytes, str]) -> None:
    def tests(digest: bytes) -> Split:
        return "test"

    several = {digest: (label, "animal") for digest, label in labels.items()}
    assert draw_tests(labels, test_share=0, before=tests) == dict.fromkeys(labels, "train")
    assert draw_tests_of_several(several, test_share=0, before=tests) == dict.fromkeys(labels, "train")


def test_the_share_of_several_labels_is_kept() -> None:
    several = {digest_of(number): ("a", "b") if number % 2 else ("a",) for number in range(60)}
    for share in (0.1, 0.5):
        assert Counter(draw_tests_of_several(several, test_share=share).values())["test"] == 60 * share


@given(image_sets)
def test_every_class_of_two_images_is_on_both_sides(labels: dict[bytes, str]) -> None:
    parts = draw_tests(labels)
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
    one, other = draw_tests(before), draw_tests(after)
    exempt = at_least_one_rule_applied(before) | at_least_one_rule_applied(after)
    changed = [digest for digest in before if one[digest] != other[digest]]
    assert {before[digest] for digest in changed} <= exempt
    assert all(count == 1 for count in Counter(before[digest] for digest in changed).values())


@given(image_sets, st.randoms(use_true_random=False))
def test_neither_order_nor_names_matter(labels: dict[bytes, str], chance: random.Random) -> None:
    items = list(labels.items())
    chance.shuffle(items)
    assert draw_tests(dict(items)) == draw_tests(labels)
    renamed = {digest: f"the {label}" for digest, label in labels.items()}
    assert draw_tests(renamed) == draw_tests(labels)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_the_share_comes_out_near_for_many(share: float) -> None:
    labels = {digest_of(number): f"class {number % 5}" for number in range(10_000)}
    parts = draw_tests(labels, test_share=share)
    # Five standard deviations of a binomial share.
    assert abs(Counter(parts.values())["test"] / 10_000 - share) < 5 * (share * (1 - share) / 10_000) ** 0.5
    for name in set(labels.values()):
        tested = sum(parts[digest] == "test" for digest, label in labels.items() if label == name)
        assert abs(tested / 2000 - share) < 5 * (share * (1 - share) / 2000) ** 0.5


@given(image_sets, locks)
def test_earlier_decisions_stand(labels: dict[bytes, str], locked: dict[bytes, Split]) -> None:
    parts = draw_tests(labels, before=locked.get)
    assert set(parts) == set(labels)
    for digest in set(locked) & set(labels):
        assert (parts[digest] == "test") == (locked[digest] == "test")
    for name, count in Counter(labels.values()).items():
        members = [digest for digest, label in labels.items() if label == name]
        free = [digest for digest in members if digest not in locked]
        assert {parts[digest] for digest in members} == {"train", "test"} or count == 1 or not free


@given(image_sets, image_sets)
def test_earlier_roles_keep_every_test_when_images_come(before: dict[bytes, str], more: dict[bytes, str]) -> None:
    parts = draw_tests(before)
    after = more | before
    assert parts.items() <= draw_tests(after, before=parts.get).items()


@given(image_sets)
def test_the_validation_is_a_part_of_each_class_that_can_spare_one(labels: dict[bytes, str]) -> None:
    roles = draw_validation(labels)
    assert set(roles) == set(labels)
    for name, count in Counter(labels.values()).items():
        sides = {roles[digest] for digest, label in labels.items() if label == name}
        assert sides == ({"train", "validation"} if count > 1 else {"train"})


def test_the_validation_has_its_share_of_many_and_knows_nothing_of_the_test() -> None:
    labels = {digest_of(number): "cat" for number in range(10_000)}
    tested = [digest for digest, role in draw_tests(labels).items() if role == "test"]
    chosen = [digest for digest, role in draw_validation(labels).items() if role == "validation"]
    assert abs(len(chosen) / 10_000 - held_out_share(10_000)) < 0.015
    both = len(set(tested) & set(chosen))
    assert abs(both / len(chosen) - 0.2) < 0.07  # as many as in all
