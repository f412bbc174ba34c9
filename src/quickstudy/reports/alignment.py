"""Whether two pictures are one: aligned to each other as well as they can be, do their details agree?

Two photos of one kind of thing have bottlenecks that are as alike as those of one photo and its cropped copy; their
pixels tell. The second picture is laid over the first by least squares over its scale and place and the gain and
offset of its grey levels (Lucas and Kanade, 1981; the gain as in Evangelidis and Psarakis, 2008), coarse, then fine,
as it is and mirrored. What counts is the correlation of the gradients there: outlines and texture, not the white
background that all product photos share.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

SIDE = 64
"""Pictures are compared as squares of so many grey values a side, squashed."""
_LEVELS = ((16, 8), (32, 4))  # samples a side, and iterations
_LARGEST_SCALE = 1.3
_LEAST_OVERLAP = 0.6
_FEWEST_LEVELS = 2.0  # standard deviation of grey levels below which a picture has no details to compare
_PAIRS_AT_ONCE = 256


def correlate(first: Bytes, second: Bytes) -> Floats:
    """How well the details of pairs of pictures agree, from -1 to 1, at the best alignment found.

    Args:
        first: n×SIDE×SIDE grey levels.
        second: the same shape, pair by pair.
    """
    result = np.empty(len(first), np.float32)
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        fixed, moving = first[part].astype(np.float32), second[part].astype(np.float32)
        result[part] = np.maximum(_aligned(fixed, moving), _aligned(fixed, moving[:, :, ::-1]))
    return result


def _aligned(fixed: Floats, moving: Floats) -> Floats:
    placement = np.tile(np.float32([1, 0, 1, 0]), (len(fixed), 1))  # scale and shift, down and across
    for samples, iterations in _LEVELS:
        factor = SIDE // samples
        target, source = _reduce(fixed, factor), _reduce(moving, factor)
        slopes = _slopes(source)
        for _ in range(iterations):
            placement = _improve(placement, target, source, slopes)
    # What has wandered off is compared as it lies; it will not agree.
    scales = placement[:, [0, 2]]
    lost = ((scales > _LARGEST_SCALE) | (scales < 1 / _LARGEST_SCALE)).any(axis=1)
    placement[lost] = (1, 0, 1, 0)
    return _agreement(fixed, moving, placement)


def _reduce(pictures: Floats, factor: int) -> Floats:
    side = pictures.shape[1] // factor
    return pictures.reshape(len(pictures), side, factor, side, factor).mean(axis=(2, 4))


def _slopes(pictures: Floats) -> tuple[Floats, Floats]:
    down, across = np.gradient(pictures, axis=(1, 2))
    return down, across


def _grid(samples: int) -> Floats:
    """Places of `samples` pixels along a side that reaches from -1/2 to 1/2."""
    return ((np.arange(samples, dtype=np.float32) + 0.5) / samples - 0.5).astype(np.float32)


def _improve(placement: Floats, target: Floats, source: Floats, slopes: tuple[Floats, Floats]) -> Floats:
    """One Gauss-Newton step for every pair: target = gain · source(placement + step) + offset, linear in all but it."""
    samples = target.shape[1]
    grid = _grid(samples)
    (seen, down, across), inside = _sample((source, *slopes), placement)
    down, across = down * samples, across * samples  # per side, as the placement counts
    columns = np.stack(
        [down * grid[:, None], down, across * grid, across, seen, np.ones_like(seen)],
        axis=-1,
    ).reshape(len(target), -1, 6)
    columns = columns * inside.reshape(len(target), -1, 1)
    normal = columns.transpose(0, 2, 1) @ columns
    normal += np.eye(6, dtype=np.float32) * (1e-4 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-3)
    wanted = columns.transpose(0, 2, 1) @ target.reshape(len(target), -1, 1)
    # The damping above pulls a flat picture's step to nothing; the gain must not be pulled with it.
    solution = np.linalg.solve(normal, wanted)[:, :, 0]
    gain = np.where(np.abs(solution[:, 4:5]) > 0.1, solution[:, 4:5], np.inf)
    step = np.clip(solution[:, :4] / gain, -0.1, 0.1)
    return placement + step


def _sample(pictures: tuple[Floats, ...], placement: Floats) -> tuple[list[Floats], NDArray[np.bool_]]:
    """Pictures (n×S×S each) on the grid as it is placed, bilinearly; and which samples (n×S×S) lie inside."""
    side = pictures[0].shape[1]
    grid = _grid(side)
    places = [
        (placement[:, k : k + 1] * grid + placement[:, k + 1 : k + 2] + 0.5) * side - 0.5 for k in (0, 2)
    ]
    inside = [(place >= -0.5) & (place <= side - 0.5) for place in places]
    low = [np.clip(np.floor(place).astype(np.intp), 0, side - 2) for place in places]
    share = [np.clip(place - base, 0, 1).astype(np.float32) for place, base in zip(places, low, strict=True)]
    pair = np.arange(len(placement))[:, None, None]
    y, x = low[0][:, :, None], low[1][:, None, :]
    v, u = share[0][:, :, None], share[1][:, None, :]
    sampled = []
    for picture in pictures:
        upper = picture[pair, y, x] * (1 - u) + picture[pair, y, x + 1] * u
        lower = picture[pair, y + 1, x] * (1 - u) + picture[pair, y + 1, x + 1] * u
        sampled.append(upper * (1 - v) + lower * v)
    return sampled, inside[0][:, :, None] & inside[1][:, None, :]


def _agreement(fixed: Floats, moving: Floats, placement: Floats) -> Floats:
    """The correlation of the gradients of both where they overlap; -1 where they hardly do, or where one is flat."""
    (seen,), inside = _sample((moving,), placement)
    fixed, seen = _reduce(fixed, 2), _reduce(seen, 2)
    inside = inside[:, ::2, ::2] & inside[:, 1::2, 1::2]
    # A gradient counts where both its ends lie inside.
    across = inside[:, 1:-1, 2:] & inside[:, 1:-1, :-2]
    down = inside[:, 2:, 1:-1] & inside[:, :-2, 1:-1]
    mask = np.stack([across, down], axis=1).reshape(len(fixed), -1)
    a, b = _gradients(fixed) * mask, _gradients(seen) * mask
    products = np.einsum("ij,ij->i", a, b)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    flat = np.minimum(fixed.std(axis=(1, 2)), seen.std(axis=(1, 2))) < _FEWEST_LEVELS
    nothing = flat | (inside.mean(axis=(1, 2)) < _LEAST_OVERLAP)
    result: Floats = np.where(nothing, -1, products / np.maximum(lengths, 1e-6)).astype(np.float32)
    return result


def _gradients(pictures: Floats) -> Floats:
    across = pictures[:, 1:-1, 2:] - pictures[:, 1:-1, :-2]
    down = pictures[:, 2:, 1:-1] - pictures[:, :-2, 1:-1]
    return np.stack([across, down], axis=1).reshape(len(pictures), -1)
