"""Images with several labels, spread over parts so that each label has its share in each.

This is iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", ECML
PKDD 2011): the label with the fewest images left goes first, since later there would be no choice for it; each of its
images goes to the part that lacks most of this label, and of equal parts, to the one that lacks most images. Images
without any label come last. Ties, and which image goes where, follow from the order of the keys, content hashes, so the
same images are spread in the same way wherever they lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TypeVar

_Key = TypeVar("_Key", bound="bytes | int")


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
