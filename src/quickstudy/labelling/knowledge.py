"""What is known at one moment of labelling: what the teacher makes of all photos, and what the examiner says of it.

Both are published as a whole and never changed in place, so that readers need no lock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.labelling.choosing import Pick
from quickstudy.labelling.teacher import Judged, LabelGain, LiveHead, Mistake
from quickstudy.learning.answers import MOST_PROBABLE, Answer
from quickstudy.learning.features import Floats
from quickstudy.learning.scores import Interval, Score, Scores

_FEWEST = 10  # photos; drawn from fewer, the interval of a figure of several labels says nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class Knowledge:
    """What the teacher knows of all photos after one refit."""

    number: int = 0
    """Number of the last act that it has learned from."""
    head: LiveHead | None = None
    """The head; None before there are two classes."""
    probabilities: Floats | None = None
    """Calibrated probabilities (n×K) of all photos; of those without a bottleneck they mean nothing."""
    given: NDArray[np.bool_] | None = None
    """Whether a label is suggested (n×K): the most probable class, or each whose probability reaches its threshold."""
    known: NDArray[np.bool_] | None = None
    """Whether a photo's bottleneck was there (n)."""
    picks: tuple[Pick, ...] = ()
    """What to ask next, in order."""
    waiting: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))
    """Numbers of the photos without an answer that it has guessed, and learned from."""
    labels: int = 0
    """Number of labels that the head was fitted to."""
    milliseconds: dict[str, float] = field(default_factory=dict)
    """How long it took: `fit`, `suggest`, `choose`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Figures:
    """What the examiner says of the labels."""

    number: int = 0
    """Number of the last act that it judges."""
    judged: Judged | None = None
    """What cross-validation says; None where nothing could be held out."""
    classes: tuple[str, ...] = ()
    """Names of the classes that were told apart."""
    answer: Answer = MOST_PROBABLE
    """What probabilities are answered by."""
    cross: Scores | None = None
    """Scores by cross-validation; None where nothing could be held out."""
    control: Scores | None = None
    """Scores on the photos drawn at random; None where there are none."""
    mistakes: tuple[Mistake, ...] = ()
    """Labels to look at again; a mistake's row is a photo's number."""
    gains: tuple[LabelGain, ...] = ()
    """What more labels would bring."""
    gains_at: int = 0
    """Number of labels when that was forecast."""


def figure_of(scores: Scores | None) -> dict[str, Any] | None:
    """Give the figure that sums scores up, with its interval and n, as JSON values; None where they say too little.

    It is the accuracy, or where photos may have several labels, F1 of all answers, with the mean average precision.
    """
    if scores is None:
        return None
    if scores.several is None:
        return share_of(scores.score)
    n = scores.score.n
    figure = _values(scores.several.f1_micro, n) if n >= _FEWEST else None
    return figure and {**figure, "precision": _values(scores.several.average_precision, n)}


def figures_of_classes(scores: Scores | None) -> dict[str, dict[str, Any] | None]:
    """Give for each class the share of its photos that is recognised, or a label's F1, as JSON values, by name."""
    if scores is None:
        return {}
    if scores.several is None:
        return {one.name: share_of(Score(right=one.right, n=one.n)) for one in scores.classes}
    enough = scores.score.n >= _FEWEST
    return {
        one.name: _values(scores.several.labels[one.name]["f1"], one.n) if one.n and enough else None
        for one in scores.classes
    }


def share_of(score: Score) -> dict[str, Any] | None:
    """Give a share with its interval as JSON values; None where it is of nothing."""
    low, high = score.interval
    return _values(Interval(value=score.accuracy, low=low, high=high), score.n) if score.n else None


def _values(figure: Interval, n: int) -> dict[str, Any] | None:
    if figure.value is None:
        return None
    return {"share": round(figure.value, 4), "low": round(figure.low, 4), "high": round(figure.high, 4), "n": n}
