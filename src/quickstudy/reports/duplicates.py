"""Images that are one picture are found: exact copies by their hash, near ones by their bottlenecks, then their pixels.

Bottlenecks name the candidates, since they hardly change when a picture is encoded anew, resized, cropped a little,
mirrored or brightened; but two photos of one kind of thing may have bottlenecks that are as alike. So the pixels
decide: aligned to each other as well as they can be, do the details of the two agree (`correlate`)? On clothing photos
altered so, bottlenecks around their mean put the original first 1,436 times of 1,440; of the 8,000 most similar pairs
of different photos, two had details that agree by more than 0.95, and one of them is one photo twice, as shorts and as
a skirt.

One picture is laid over the other by least squares over its scale and place and the gain and offset of its grey levels
(Lucas and Kanade, 1981, in the inverse compositional form of Baker and Matthews, 2004), coarse, then fine, as it is and
mirrored, the one over the other and the other over the one. What counts is the correlation of the gradients there:
outlines and texture, not the white background that all product photos share.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from quickstudy.bottlenecks.looks import Gallery, grey_square
from quickstudy.learning.features import Floats
from quickstudy.process import usable_cores
from quickstudy.reports.evidence import Evidence, KnownImage
from quickstudy.reports.findings import DuplicateGroup
from quickstudy.reports.neighbours import alike_pairs, centred_rows

AGREEMENT = 0.95
"""Correlation of the details, once aligned, from which on two pictures are one."""
AGREEMENT_OF_CLOSE = 0.85
"""Correlation of the details that is enough where the bottlenecks correlate at least by `CLOSE`."""
CLOSE = 0.88
_ALIKE = 0.75
_NEAREST = 0.55
_FEW = 2000  # pairs that can be looked at whatever their bottlenecks say
_CHUNK = 128
_KEPT = 4096  # pictures whose squares are kept, 4 kB each: a picture is in many pairs, one after the other


def find_duplicates(evidence: Evidence, gallery: Gallery) -> tuple[DuplicateGroup, ...]:
    """Find the groups of images that are one picture, leaking and conflicting ones first, then the largest."""
    rows_of: dict[bytes, list[int]] = {}
    for number, image in enumerate(evidence.images):
        rows_of.setdefault(image.digest, []).append(number)
    members = list(rows_of.values())
    first = [numbers[0] for numbers in members]
    links = near_duplicates(evidence.features[first], [gallery.thumbnails[number] for number in first])
    graph = coo_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(len(members),) * 2)
    component = connected_components(graph, directed=False)[1] if members else np.zeros(0, np.intp)
    groups: dict[int, list[int]] = {}
    for number, which in enumerate(component.tolist()):
        groups.setdefault(which, []).extend(members[number])
    found = [_describe(sorted(group), evidence.images) for group in groups.values() if len(group) > 1]
    return tuple(sorted(found, key=lambda g: (not g.leaks, not g.conflicts, -len(g.members), g.members)))


def near_duplicates(features: Floats, thumbnails: Sequence[bytes]) -> NDArray[np.intp]:
    """Find the pairs of rows (m×2) whose pictures are one.

    Args:
        features: signed square roots of the bottlenecks of different files, n×d.
        thumbnails: their thumbnails, as JPEG files; an image without one is in no pair.
    """
    n = len(features)
    few = n * (n - 1) // 2 <= _FEW
    pairs = alike_pairs(
        centred_rows(features),
        alike=-1.5 if few else _ALIKE,
        nearest=_NEAREST,
        most=max(n, _FEW),
    )
    visible = np.array([bool(thumbnail) for thumbnail in thumbnails], np.bool_)
    seen = visible[pairs.first] & visible[pairs.second]
    first, second, similarity = pairs.first[seen], pairs.second[seen], pairs.similarity[seen]

    @lru_cache(_KEPT)
    def square(number: int) -> Bytes:
        return grey_square(thumbnails[number], SIDE)

    def agree(start: int) -> NDArray[np.bool_]:
        part = slice(start, start + _CHUNK)
        sides = [np.stack([square(number) for number in side[part].tolist()]) for side in (first, second)]
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


Bytes = NDArray[np.uint8]

SIDE = 64
"""Side of the squares, in pixels, to which pictures are squashed to be compared."""
# Samples a side, iterations, and how well pictures must agree before to be looked at so closely.
_LEVELS = ((8, 5, 0.5), (16, 5, 0.65), (32, 4, 0.75))
_LARGEST_SCALE = 1.3
_LARGEST_STEP = 0.1
_LEAST_OVERLAP = 0.6
_FEWEST_LEVELS = 2.0  # standard deviation of grey levels below which a picture has no details to compare


def correlate(first: Bytes, second: Bytes) -> Floats:
    """Tell how well the details of pairs of pictures agree, from -1 to 1, at the best alignment found.

    Pairs that disagree as they lie, or once they are aligned coarsely, are not looked at more finely.

    Args:
        first: n×SIDE×SIDE grey levels.
        second: the same shape, pair by pair.
    """
    n = len(first)
    if not n:
        return np.zeros(0, np.float32)
    one, other = first.astype(np.float32), second.astype(np.float32)
    # Both ways round: what was cut out of a larger picture is found in it, but not the larger one in what was cut out.
    fixed = np.concatenate([one, other, one, other])
    moving = np.concatenate([other, one, other[:, :, ::-1], one[:, :, ::-1]])
    agreement = _as_they_lie(fixed, moving)
    placement = np.tile(np.array([1, 0, 1, 0], np.float32), (4 * n, 1))  # scale and shift, down and across
    for samples, iterations, least in _LEVELS:
        ways = agreement.reshape(2, 2, n).max(axis=1)  # as it is, and mirrored
        worse = np.repeat(ways < ways.max(axis=0), 2, axis=0).ravel() & (samples > _LEVELS[0][0])
        dropped = worse | (agreement < least)
        agreement[dropped] = -1
        rows = np.flatnonzero(~dropped)
        if len(rows):
            aligned = _align(fixed[rows], moving[rows], placement[rows], samples, iterations)
            placement[rows], agreement[rows] = aligned
    best: Floats = agreement.reshape(4, n).max(axis=0)
    return best


def _as_they_lie(fixed: Floats, moving: Floats) -> Floats:
    """Correlate the grey levels coarsely, without aligning them; -1 where a picture is flat."""
    a, b = (_reduce(side, SIDE // _LEVELS[0][0]).reshape(len(side), -1) for side in (fixed, moving))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    products = np.einsum("ij,ij->i", a, b)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    flat = np.minimum(a.std(axis=1), b.std(axis=1)) < _FEWEST_LEVELS
    result: Floats = np.where(flat, -1, products / np.maximum(lengths, 1e-6)).astype(np.float32)
    return result


def _align(fixed: Floats, moving: Floats, placement: Floats, samples: int, iterations: int) -> tuple[Floats, Floats]:
    """Find better placements of the grid of `fixed` on `moving`, and how well details agree there."""
    target, source = _reduce(fixed, SIDE // samples), _reduce(moving, SIDE // samples)
    grid = _grid(samples)
    down, across = np.gradient(target, 1 / samples, axis=(1, 2))
    # The moving picture as it is placed is gain · (target + its slopes · step) + offset: linear in these six.
    columns = np.stack([down * grid[:, None], down, across * grid, across, target, np.ones_like(target)], axis=1)
    columns = columns.reshape(len(target), 6, -1)
    normal = columns @ columns.transpose(0, 2, 1)
    damping = 1e-4 * np.einsum("ijj->ij", normal) + 1e-3  # a picture without slopes one way cannot be moved that way
    solver = np.linalg.solve(normal + damping[:, :, None] * np.eye(6, dtype=np.float32), columns)
    for _ in range(iterations):
        seen, _ = _sample(source, placement)
        solution = np.einsum("ijk,ik->ij", solver, seen.reshape(len(seen), -1))
        gain = np.where(np.abs(solution[:, 4:5]) > 0.1, solution[:, 4:5], np.inf)
        step = np.clip(solution[:, :4] / gain, -_LARGEST_STEP, _LARGEST_STEP)
        # The moving picture shows the target moved by the step; taken back by it, the grid shows the target.
        scale = placement[:, ::2] / (1 + step[:, ::2])
        shift = placement[:, 1::2] - scale * step[:, 1::2]
        placement = np.stack([scale[:, 0], shift[:, 0], scale[:, 1], shift[:, 1]], axis=1)
    scales = placement[:, ::2]
    lost = ((scales > _LARGEST_SCALE) | (scales < 1 / _LARGEST_SCALE)).any(axis=1)
    placement[lost] = (1, 0, 1, 0)  # wandered off: compared as it lies, it will not agree
    return placement, _agreement(target, _reduce(moving, SIDE // samples // 2), placement)


def _reduce(pictures: Floats, factor: int) -> Floats:
    side = pictures.shape[1] // factor
    reduced: Floats = pictures.reshape(len(pictures), side, factor, side, factor).mean(axis=(2, 4))
    return reduced


def _grid(samples: int) -> Floats:
    """Place `samples` pixels along a side that reaches from -1/2 to 1/2."""
    return ((np.arange(samples, dtype=np.float32) + 0.5) / samples - 0.5).astype(np.float32)


def _sample(pictures: Floats, placement: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Sample pictures (n×S×S) on the grid as it is placed, bilinearly, and tell which samples (n×S×S) lie inside."""
    side = pictures.shape[1]
    grid = _grid(side)
    places = [(placement[:, k : k + 1] * grid + placement[:, k + 1 : k + 2] + 0.5) * side - 0.5 for k in (0, 2)]
    inside = [(place >= -0.5) & (place <= side - 0.5) for place in places]
    low = [np.clip(np.floor(place).astype(np.intp), 0, side - 2) for place in places]
    share = [np.clip(place - base, 0, 1).astype(np.float32) for place, base in zip(places, low, strict=True)]
    corner = low[0][:, :, None] * side + low[1][:, None, :] + (np.arange(len(pictures)) * side * side)[:, None, None]
    v, u = share[0][:, :, None], share[1][:, None, :]
    flat = pictures.reshape(-1)
    upper = flat.take(corner) * (1 - u) + flat.take(corner + 1) * u
    lower = flat.take(corner + side) * (1 - u) + flat.take(corner + side + 1) * u
    return upper * (1 - v) + lower * v, inside[0][:, :, None] & inside[1][:, None, :]


def _agreement(fixed: Floats, moving: Floats, placement: Floats) -> Floats:
    """Correlate the gradients of both where they overlap; -1 where they hardly do.

    `moving` has twice as many samples a side as `fixed`, so that sampling it blurs it little.
    """
    seen, inside = _sample(moving, placement)
    seen, inside = _reduce(seen, 2), inside[:, ::2, ::2] & inside[:, 1::2, 1::2]
    # A gradient counts where both its ends lie inside.
    across = inside[:, 1:-1, 2:] & inside[:, 1:-1, :-2]
    down = inside[:, 2:, 1:-1] & inside[:, :-2, 1:-1]
    mask = np.stack([across, down], axis=1).reshape(len(fixed), -1)
    a, b = _gradients(fixed) * mask, _gradients(seen) * mask
    products = np.einsum("ij,ij->i", a, b)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    little = inside.mean(axis=(1, 2)) < _LEAST_OVERLAP
    result: Floats = np.where(little, -1, products / np.maximum(lengths, 1e-6)).astype(np.float32)
    return result


def _gradients(pictures: Floats) -> Floats:
    across = pictures[:, 1:-1, 2:] - pictures[:, 1:-1, :-2]
    down = pictures[:, 2:, 1:-1] - pictures[:, :-2, 1:-1]
    return np.stack([across, down], axis=1).reshape(len(pictures), -1)
