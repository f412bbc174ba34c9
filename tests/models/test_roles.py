"""What a model says of the images that it was made from, and what may be called a test of it."""

from __future__ import annotations

import base64
import hashlib
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickstudy.errors import ImageSetError
from quickstudy.images.census import Census, take_census
from quickstudy.images.manifests import Labelling
from quickstudy.models.roles import Roles, may_judge


def digest_of(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


digests = st.sets(st.one_of(st.binary(min_size=32, max_size=32), st.integers(0, 99).map(digest_of)), max_size=30)


@given(digests, digests, digests)
def test_roles_come_back_as_they_were_written(train: set[bytes], validation: set[bytes], test: set[bytes]) -> None:
    roles = Roles.of(train, validation, test)
    again = Roles.from_dict(roles.to_dict())
    assert again == roles
    for digest in train:
        assert (again.role(digest), again.relation(digest)) == ("train", "trained_on")  # whatever else it is
    for digest in test - train - validation:
        assert again.relation(digest) == "tested_on"
    assert again.relation(hashlib.sha256(b"never seen").digest()) == "new"


def test_a_hundred_thousand_images_cost_well_under_a_megabyte() -> None:
    roles = Roles.of(map(digest_of, range(100_000)), (), ())
    assert sum(map(len, roles.to_dict().values())) < 600_000


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize(
    "value",
    [None, 3, "?", "AAAA", packed(bytes(5)), packed(b"\xff" * 12)],
    ids=["none", "number", "no base64", "no zlib", "a part", "too large"],
)
def test_what_is_no_roles_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        Roles.from_dict({**Roles.of((), (), ()).to_dict(), "train": value})


def image_set(root: Path, layout: dict[str, int]) -> Census:
    """So many images in each folder, with numbers going on."""
    number = 0
    for folder, count in layout.items():
        (root / folder).mkdir(parents=True)
        for _ in range(count):
            (root / folder / f"{number}.jpg").write_bytes(b"%d" % number)
            number += 1
    return take_census(root, None)


def test_images_that_a_model_has_learned_or_was_chosen_by_are_no_test_of_it(tmp_path: Path) -> None:
    census = image_set(tmp_path, {"cat": 5, "dog": 5})
    roles = Roles.of(map(digest_of, (0, 1, 5)), map(digest_of, (2, 6)), map(digest_of, (3, 77)))
    found = may_judge(census, [roles], classes=("cat", "dog"))
    assert {content.digest for content in found.contents} == set(map(digest_of, (3, 4, 7, 8, 9)))
    assert found.roles == {"trained_on": 3, "chosen_by": 2, "tested_on": 1, "new": 4}
    assert (found.is_test, found.left_out, found.unknown) == (True, 5, {})


def test_with_all_everything_is_scored_and_it_is_no_test(tmp_path: Path) -> None:
    census = image_set(tmp_path, {"cat": 3, "dog": 3})
    learned = Roles.of([digest_of(0)], (), ())
    found = may_judge(census, [learned], classes=("cat", "dog"), everything=True)
    assert (len(found.contents), found.is_test, found.left_out) == (6, False, 0)
    unseen = Roles.of([digest_of(99)], (), ())
    assert may_judge(census, [unseen], classes=("cat", "dog"), everything=True).is_test is True


def test_of_two_models_the_one_that_knows_an_image_best_decides(tmp_path: Path) -> None:
    census = image_set(tmp_path, {"cat": 3, "dog": 3})
    one, other = Roles.of([digest_of(0)], (), [digest_of(4)]), Roles.of([digest_of(4)], [digest_of(5)], ())
    found = may_judge(census, [one, other], classes=("cat", "dog"))
    assert {content.digest for content in found.contents} == set(map(digest_of, (1, 2, 3)))
    assert found.roles == {"trained_on": 2, "chosen_by": 1, "tested_on": 0, "new": 3}


def test_where_nothing_is_a_test_that_is_an_error(tmp_path: Path) -> None:
    census = image_set(tmp_path, {"cat": 2, "dog": 2})
    with pytest.raises(ImageSetError) as error:
        may_judge(census, [Roles.of(map(digest_of, range(4)), (), ())], classes=("cat", "dog"))
    assert "The model has learned or was chosen by all 4 usable images" in str(error.value)
    with pytest.raises(ImageSetError, match="A model has learned or was chosen by all 4"):
        may_judge(census, [Roles.of(map(digest_of, range(4)), (), ()), None], classes=("cat", "dog"))
    assert "--all" in str(error.value)


def test_a_model_that_does_not_say_leaves_it_open(tmp_path: Path) -> None:
    census = image_set(tmp_path, {"cat": 2, "dog": 2})
    found = may_judge(census, [None, Roles.of([digest_of(0)], (), ())], classes=("cat", "dog"))
    assert (len(found.contents), found.roles, found.is_test) == (3, None, None)


def test_a_test_split_is_judged_by_alone_and_other_classes_are_counted(tmp_path: Path) -> None:
    census = image_set(tmp_path, {"train/cat": 3, "train/dog": 3, "test/cat": 2, "test/dog": 2, "test/cow": 4})
    found = may_judge(census, [Roles.of([digest_of(6)], (), ())], classes=("cat", "dog"))
    assert {content.digest for content in found.contents} == set(map(digest_of, (7, 8, 9)))
    assert found.unknown == {"cow": 4}
    assert (found.left_out, found.beside_test) == (1, 6)
    assert may_judge(census, [None], classes=("cat", "dog"), everything=True).beside_test == 0
    with pytest.raises(ImageSetError) as error:
        may_judge(census, [None], classes=("fish",))
    assert "'fish'" in str(error.value)
    assert "'cow'" in str(error.value)


def test_images_of_none_of_the_classes_are_not_of_an_unknown_class(tmp_path: Path) -> None:
    image_set(tmp_path, {"cat": 2, "dog": 2, "none of these": 1, "other": 3})
    census = take_census(tmp_path, None, labelling=Labelling(none="other"))
    roles = [Roles.of([digest_of(5), digest_of(0)], (), ())]
    found = may_judge(census, roles, classes=("cat", "dog"))
    assert (len(found.contents), found.left_out) == (3, 1)
    assert (found.unknown, [content.digest for content in found.strangers]) == ({"none of these": 1}, [digest_of(4)])
    assert (found.none, {content.digest for content in found.examples}) == (3, set(map(digest_of, (6, 7))))
    assert len(may_judge(census, roles, classes=("cat", "dog"), everything=True).examples) == 3
    with pytest.raises(ImageSetError, match="of none of the classes"):
        may_judge(
            take_census(image_set(tmp_path / "only", {"other": 2}).source, None, labelling=Labelling(none="other")),
            roles,
            classes=("cat",),
        )


def test_where_no_image_can_be_used_that_is_said(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.jpg").write_bytes(b"0")
    with pytest.raises(ImageSetError, match="no image there can be used; 1 image is under several classes: "):
        may_judge(take_census(tmp_path, None), [None], classes=("cat", "dog"))


def test_where_the_test_split_alone_is_learned_it_is_not_said_of_all_images(tmp_path: Path) -> None:
    census = image_set(tmp_path, {"train/cat": 3, "train/dog": 3, "test/cat": 1, "test/dog": 1})
    with pytest.raises(ImageSetError, match="all 2 usable images of the test split"):
        may_judge(census, [Roles.of(map(digest_of, (6, 7)), (), ())], classes=("cat", "dog"))


def test_contradictions_and_copies_are_told(tmp_path: Path) -> None:
    image_set(tmp_path, {"cat": 3, "dog": 3})
    (tmp_path / "dog" / "cat.jpg").write_bytes(b"0")
    (tmp_path / "cat" / "again.jpg").write_bytes(b"1")
    found = may_judge(take_census(tmp_path, None), [None], classes=("cat", "dog"))
    assert len(found.contents) == 5
    assert found.copies == 1
    assert [[place.path.name for place in content.places] for content in found.conflicts] == [["0.jpg", "cat.jpg"]]
    assert found.to_dict()["conflicts"] == [[str(tmp_path / "cat" / "0.jpg"), str(tmp_path / "dog" / "cat.jpg")]]
