"""Which images are one picture: exact copies by their hash, near ones by their bottlenecks and then their pixels.

Bottlenecks name the candidates, since they hardly change when a picture is encoded anew, resized, cropped a little,
mirrored or brightened; but two photos of one kind may have bottlenecks that are as alike. So the pixels decide
(`alignment.py`). On clothing photos altered so, bottlenecks around their mean put the original first 1,436 times of
1,440; of the 8,000 most similar pairs of different photos, two had details that agree by more than 0.95, and one of
them is one photo twice, as shorts and as a skirt.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from quickstudy.cores import usable_cores
from quickstudy.reports.alignment import SIDE, correlate
from quickstudy.reports.evidence import Evidence, KnownImage
from quickstudy.reports.findings import DuplicateGroup
from quickstudy.reports.gallery import Gallery
from quickstudy.reports.looks import grey_square
from quickstudy.reports.neighbours import alike_pairs, unit_rows

AGREEMENT = 0.95
"""Pictures whose details, once aligned, correlate so are one."""
AGREEMENT_OF_CLOSE = 0.85
"""The same where the bottlenecks correlate at least by `CLOSE`."""
CLOSE = 0.88
_ALIKE = 0.75
_NEAREST = 0.55
_FEW = 2000  # pairs that can be looked at whatever their bottlenecks say
_CHUNK = 128


def find_duplicates(evidence: Evidence, gallery: Gallery) -> tuple[DuplicateGroup, ...]:
    """Groups of images that are one picture, leaking and conflicting ones first, then the largest."""
    rows_of: dict[bytes, list[int]] = {}
    for number, image in enumerate(evidence.images):
        rows_of.setdefault(image.digest, []).append(number)
    members = list(rows_of.values())
    links = near_duplicates(evidence, gallery, [numbers[0] for numbers in members])
    graph = coo_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(len(members),) * 2)
    component = connected_components(graph, directed=False)[1] if members else np.zeros(0, np.intp)
    groups: dict[int, list[int]] = {}
    for number, which in enumerate(component.tolist()):
        groups.setdefault(which, []).extend(members[number])
    found = [_describe(sorted(group), evidence.images) for group in groups.values() if len(group) > 1]
    return tuple(sorted(found, key=lambda g: (not g.leaks, not g.conflicts, -len(g.members), g.members)))


def near_duplicates(evidence: Evidence, gallery: Gallery, distinct: Sequence[int]) -> NDArray[np.intp]:
    """Pairs (m×2) of positions in `distinct`, which are image numbers, whose pictures are one."""
    n = len(distinct)
    few = n * (n - 1) // 2 <= _FEW
    pairs = alike_pairs(
        unit_rows(evidence.features[list(distinct)]),
        alike=-1.5 if few else _ALIKE,
        nearest=_NEAREST,
        most=max(n, _FEW),
    )
    thumbnails = [gallery.thumbnails[number] for number in distinct]
    visible = np.array([bool(thumbnail) for thumbnail in thumbnails], np.bool_)
    seen = visible[pairs.first] & visible[pairs.second]
    first, second, similarity = pairs.first[seen], pairs.second[seen], pairs.similarity[seen]

    def agree(start: int) -> NDArray[np.bool_]:
        part = slice(start, start + _CHUNK)
        sides = [np.stack([grey_square(thumbnails[k], SIDE) for k in side[part]]) for side in (first, second)]
        least = np.where(similarity[part] >= CLOSE, AGREEMENT_OF_CLOSE, AGREEMENT)
        return correlate(*sides) >= least

    with ThreadPoolExecutor(usable_cores()) as pool:
        parts = list(pool.map(agree, range(0, len(first), _CHUNK)))
    same = np.concatenate([np.zeros(0, np.bool_), *parts])
    return np.stack([first[same], second[same]], axis=1)


def _describe(members: Sequence[int], images: Sequence[KnownImage]) -> DuplicateGroup:
    group = [images[number] for number in members]
    return DuplicateGroup(
        members=tuple(members),
        exact=len({image.digest for image in group}) == 1,
        splits=tuple(sorted({image.split for image in group if image.split})),
        labels=tuple(sorted({image.label for image in group if image.label is not None})),
    )
