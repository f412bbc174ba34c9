"""Roles that images are given by their content: who is for the test, and who is for the validation.

The hash of an image, read as a number between 0 and 1, decides, class by class, so files can be added, moved and
renamed freely. Where an image may have several labels, each label is to have its share in each part, which is iterative
stratification (Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", ECML PKDD 2011): the
label with the fewest images left goes first, since later there would be no choice for it; each of its images goes to
the part that lacks most of this label, and of equal parts, to the one that lacks most images. Images without any label
come last. Which image goes where follows from the order of the hashes, so the same images are spread in the same way
wherever they lie; the folds of a cross-validation are dealt out like this, too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import TypeVar

from quickstudy.images.listing import Split

TEST_SHARE = 0.2
"""Share of each class's images that is drawn for the test, between 0 and 1."""
RolesBefore = Callable[[bytes], Split | None]
"""The role that an earlier model has for a content; None where it does not know it."""
_MANY_IMAGES = 1000
_Key = TypeVar("_Key", bound="bytes | int")


def draw_tests(
    labels: Mapping[bytes, Hashable], *, test_share: float = TEST_SHARE, before: RolesBefore | None = None
) -> dict[bytes, Split]:
    """Decide by their hashes which contents are for the test and which to train on.

    About `test_share` of each class is for the test, and where a class has two images, each side gets at least one: the
    image with the lowest or the highest hash changes sides for that.

    Args:
        labels: what is the same for images of one class, by content hash.
        test_share: from 0, which leaves no test, to below 1.
        before: the role of a content in an earlier model, whose tests stay tests and whose other images become none.
    """
    if not test_share:
        return dict.fromkeys(labels, "train")
    roles: dict[bytes, Split] = {}
    for digests in _by_class(labels):
        known = {digest: role for digest in digests if (role := before(digest))} if before is not None else {}
        free = [digest for digest in digests if digest not in known] if known else digests
        tested = free[: bisect_left(free, test_share, key=_position)]  # they are in order
        tested += [digest for digest, role in known.items() if role == "test"]
        if len(digests) > 1 and free:
            if not tested:
                tested = free[:1]
            elif len(tested) == len(digests):
                tested.remove(free[-1])
        roles.update(dict.fromkeys(digests, "train"))
        roles.update(dict.fromkeys(tested, "test"))
    return {digest: roles[digest] for digest in labels}


def draw_tests_of_several(
    labels: Mapping[bytes, tuple[str, ...]], *, test_share: float = TEST_SHARE, before: RolesBefore | None = None
) -> dict[bytes, Split]:
    """Decide which contents with several labels are for the test, so that each label has its share on either side.

    See `spread_evenly`; which image of a label it is, the hashes decide. The roles of an earlier model stand.

    Args:
        labels: names by content hash.
        test_share: as for `draw_tests`.
        before: as for `draw_tests`.
    """
    if not test_share:
        return dict.fromkeys(labels, "train")
    known = {digest: role for digest in labels if (role := before(digest))} if before is not None else {}
    parts = {digest: int(role == "test") for digest, role in known.items()}
    drawn = spread_evenly(labels, (1 - test_share, test_share), given=parts)
    return {digest: "test" if drawn[digest] else "train" for digest in labels}


def draw_validation(labels: Mapping[bytes, Hashable]) -> dict[bytes, Split]:
    """Decide by their hashes which of the contents to train on are chosen by instead.

    About `held_out_share` of each class, at least one of a class that has two, and never all.
    """
    share = held_out_share(len(labels))
    roles: dict[bytes, Split] = {}
    for digests in _by_class(labels):
        ranked = sorted(digests, key=_second_position)
        wanted = sum(_second_position(digest) < share for digest in ranked)
        chosen = ranked[: min(max(wanted, 1), len(ranked) - 1)]
        roles.update((digest, "validation" if digest in chosen else "train") for digest in digests)
    return {digest: roles[digest] for digest in labels}


def held_out_share(images: int) -> float:
    """Return the share of the images to train on that validates where no split is given: 0.1, or 0.2 of under 1,000."""
    return 0.1 if images >= _MANY_IMAGES else 0.2


def _by_class(labels: Mapping[bytes, Hashable]) -> list[list[bytes]]:
    by_class: dict[Hashable, list[bytes]] = {}
    for digest in sorted(labels):
        by_class.setdefault(labels[digest], []).append(digest)
    return list(by_class.values())


def _position(digest: bytes) -> float:
    return int.from_bytes(digest[:8], "big") / 2**64


def _second_position(digest: bytes) -> float:
    # Other bytes than those that decide about the test, so that one draw says nothing about the other.
    return int.from_bytes(digest[8:16], "big") / 2**64


def spread_evenly(
    labels: Mapping[_Key, Collection[Hashable]],
    shares: Sequence[float],
    *,
    given: Mapping[_Key, int] | None = None,
) -> dict[_Key, int]:
    """Give each image a part, by number, such that each part has its share of each label.

    A label of as many images as there are parts, or more, is in each of them.

    Args:
        labels: labels by image.
        shares: share of each part, above 0, in sum 1.
        given: parts that stand, of some of the images.
    """
    parts = range(len(shares))
    counts = Counter(label for found in labels.values() for label in found)
    wanted = {label: _wanted(number, shares) for label, number in counts.items()}
    room = [len(labels) * share for share in shares]
    chosen: dict[_Key, int] = {}
    left: dict[Hashable, int] = dict(counts)

    def put(key: _Key, part: int) -> None:
        chosen[key] = part
        room[part] -= 1
        for label in labels[key]:
            wanted[label][part] -= 1
            left[label] -= 1

    for key, part in (given or {}).items():
        if key in labels:
            put(key, part)
    images_of: dict[Hashable, list[_Key]] = {}
    for key in sorted(labels):
        for label in labels[key]:
            images_of.setdefault(label, []).append(key)
    while rarest := min(((n, str(label), label) for label, n in left.items() if n), default=None, key=lambda e: e[:2]):
        label = rarest[2]
        for key in images_of[label]:
            if key not in chosen:
                mine = wanted[label]
                put(key, max(parts, key=lambda part: (mine[part], room[part])))
    for key in sorted(labels):
        if key not in chosen:
            put(key, max(parts, key=lambda part: room[part]))
    return chosen


def _wanted(number: int, shares: Sequence[float]) -> list[float]:
    """Say how many images of a label each part is to have: its share, and at least one where there are enough."""
    if number < len(shares):
        return [number * share for share in shares]
    least = [max(1.0, number * share) for share in shares]
    largest = max(range(len(shares)), key=lambda part: shares[part])
    least[largest] -= sum(least) - number
    return least
