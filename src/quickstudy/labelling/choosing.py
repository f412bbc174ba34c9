"""What to ask next: typical photos first, then doubtful ones that differ from each other, of the classes that have few.

With no label yet, or few, the photos nearest to the centres of clusters are asked for, the largest cluster first: they
are the most typical, and few of them show all there is (Hacohen et al., 2022, arXiv:2202.02794; Gupte et al., 2024,
arXiv:2401.14555, find it the best start for features of pretrained networks). From then on it is the photos between
two classes, by the margin between their probabilities, a little sooner where the classes in question have few labels;
each photo that is picked makes those like it less wanted, so that a handful of picks are not one photo five times.
Where a photo may have several labels, it is those of which one label is in doubt: its probability is near its
threshold. One photo in eight is the one farthest from all labels, in case it is of a class that nobody has named yet;
as picks are made anew with every label, that share is kept of what was answered, not of what was picked.

`benchmarks/label.py labels` compares it with random order and with margins alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quickstudy.learning.features import Floats, sample_of, unit_rows

Reason = Literal["typical", "between", "whether", "few", "unlike", "check", "any"]
"""Why a photo is asked for: it is typical; between two classes; has a label or not; is perhaps of a class that has few
labels; unlike all that have one; drawn at random as a check; or there was nothing to choose by."""
CONTROL_SHARE = 0.2
"""The share of the photos that are asked for, and of all photos, that are drawn at random as a check."""
STARTING = 30
"""The number of clusters whose centres are asked for first."""
_CLUSTERED = 5000  # photos, of more only so many are clustered
_AXES = 64  # directions that distances are taken in
_UNLIKE = 8  # one pick in so many
_MOST_WANTED = 512  # photos, of which picks between classes are made
_SEARCHED = 1024  # photos, in which those unlike all others are looked for
_SURE = 0.9  # margin from which on a photo is not called doubtful
_FEW = 0.5  # of the mean number of labels a class


@dataclass(frozen=True, kw_only=True)
class Pick:
    """A photo to ask for, and why."""

    row: int
    """Row of the photo."""
    reason: Reason
    """Why it is asked for."""
    of: tuple[str, ...] = ()
    """Names of the classes that the reason speaks of."""
    alike: int = 0
    """Number of photos that it is typical of; 0 elsewhere."""


def typical_rows(rows: Floats, count: int = STARTING) -> list[Pick]:
    """Pick the photo nearest to the centre of each of `count` clusters of photos (n×r), the largest cluster first."""
    from quickstudy.reports.audit import typical

    part = rows[:_CLUSTERED, :_AXES]
    if not len(part):
        return []
    found = typical(part, min(count, len(part)))
    return [Pick(row=row, reason="typical", alike=alike) for row, alike in found]


def doubtful_rows(
    rows: Floats,
    probabilities: Floats,
    free: NDArray[np.bool_],
    labelled: NDArray[np.intp],
    counts: NDArray[np.intp],
    classes: tuple[str, ...],
    count: int,
    *,
    thresholds: Sequence[float] = (),
    unlike: int = 0,
    answered: int = 0,
) -> list[Pick]:
    """Pick at most `count` photos, in the order in which to ask for them.

    Args:
        rows: n×r, all photos.
        probabilities: n×K by the head as it is.
        free: n, whether a photo may be picked.
        labelled: numbers of the photos that have a label.
        counts: K, number of labels of each class.
        classes: names of the classes.
        count: number of picks.
        thresholds: the probability from which on each label is given, where a photo may have several.
        unlike: number of answered photos that were picked since they were unlike all others.
        answered: number of answered photos that were picked here.
    """
    places = np.flatnonzero(free)
    if not len(places):
        return []
    doubt = _of_several if thresholds else _between_two
    wanted, margin, of = doubt(probabilities[places], counts, np.array(thresholds, np.float32))
    # Only some can be picked: the most wanted, and a sample in which to look for the unlike.
    some = np.unique(np.append(np.argsort(-wanted, kind="stable")[:_MOST_WANTED], sample_of(len(places), _SEARCHED)))
    places, of, margin, wanted = places[some], of[some], margin[some], wanted[some]
    unit = unit_rows(rows[places, :_AXES])
    novelty = _novelty(unit, unit_rows(rows[labelled, :_AXES]))
    closeness = np.zeros(len(places), np.float32)  # to the nearest photo that was picked, 0 to 1
    left = np.ones(len(places), np.bool_)
    picks: list[Pick] = []
    for turn in range(min(count, len(places))):
        by_novelty = (unlike + 1) * _UNLIKE <= answered + turn + 1
        score = np.where(left, (novelty if by_novelty else wanted) * (1 - closeness), -1)
        place = int(score.argmax())
        row, names = int(places[place]), tuple(classes[k] for k in of[place])
        if by_novelty:
            picks.append(Pick(row=row, reason="unlike"))
            unlike += 1
        elif margin[place] > _SURE:
            picks.append(Pick(row=row, reason="any", of=() if thresholds else names[:1]))
        elif counts[of[place, 0]] < _FEW * counts.mean():
            picks.append(Pick(row=row, reason="few", of=names))
        else:
            picks.append(Pick(row=row, reason="whether" if thresholds else "between", of=names))
        left[place] = False
        closeness = np.maximum(closeness, np.clip(unit @ unit[place], 0, 1))
    return picks


def _between_two(
    shares: Floats, counts: NDArray[np.intp], _: Floats
) -> tuple[NDArray[np.floating], Floats, NDArray[np.intp]]:
    """Work out how wanted photos are (m), the margin between their two likeliest classes (m), and these (m×2)."""
    top = np.argpartition(-shares, 1, axis=1)[:, :2]
    pair = np.take_along_axis(shares, top, axis=1)
    swapped = pair[:, 0] < pair[:, 1]
    top[swapped], pair[swapped] = top[swapped][:, ::-1], pair[swapped][:, ::-1]
    margin = pair[:, 0] - pair[:, 1]
    lacking = np.clip(shares @ (counts.mean() / (counts + 1)).astype(np.float32), 0.3, 3)
    return (1 - margin) * np.sqrt(lacking), margin, top


def _of_several(
    shares: Floats, counts: NDArray[np.intp], thresholds: Floats
) -> tuple[NDArray[np.floating], Floats, NDArray[np.intp]]:
    """Work out how wanted photos are (m), how far their most doubtful label is from its threshold (m), and it (m×1)."""
    limits = np.clip(thresholds, 0.05, 0.95)
    margin = np.abs(shares - limits) / np.where(shares < limits, limits, 1 - limits)
    lacking = np.clip(counts.mean() / (counts + 1), 0.3, 3).astype(np.float32)
    wanted = (1 - margin) * np.sqrt(lacking)
    of = wanted.argmax(axis=1)[:, None]
    return np.take_along_axis(wanted, of, axis=1)[:, 0], np.take_along_axis(margin, of, axis=1)[:, 0], of


def _novelty(unit: Floats, labelled: Floats) -> Floats:
    """Measure how unlike each photo (n×r, of length 1) is to the nearest that has a label, 0 to 1; 1 where none has."""
    if not len(labelled):
        return np.ones(len(unit), np.float32)
    novelty: Floats = np.clip(1 - (unit @ labelled.T).max(axis=1), 0, 1)
    return novelty


def with_checks(chosen: list[Pick], checks: list[int], *, asked: int, answered: int, most: int) -> list[Pick]:
    """Put photos that were drawn at random between those that were chosen, one in five.

    Args:
        chosen: what was chosen, in order.
        checks: photos drawn at random that wait, in order.
        asked: number of those that have an answer.
        answered: number of all photos that have one.
        most: number of picks.
    """
    picks: list[Pick] = []
    left = iter(checks)
    for place, pick in enumerate(chosen[:most]):
        if asked < CONTROL_SHARE * (answered + place) and (number := next(left, None)) is not None:
            picks.append(Pick(row=number, reason="check"))
            asked += 1
        picks.append(pick)
    if not chosen:  # nothing else is left
        picks = [Pick(row=number, reason="check") for number in checks]
    return picks[:most]


def alike_rows(rows: Floats, row: int, free: NDArray[np.bool_], count: int) -> list[tuple[int, float]]:
    """Find at most `count` of the free photos that are most like one, most alike first, with their cosine."""
    unit = unit_rows(rows)
    similarity = np.where(free, unit @ unit[row], -2)
    similarity[row] = -2
    order = np.argsort(-similarity)[:count]
    return [(int(k), float(similarity[k])) for k in order if similarity[k] > -2]
