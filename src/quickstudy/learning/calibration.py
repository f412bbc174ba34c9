"""Whether probabilities can be believed, and when not to answer: calibration and selective classification.

All of it works on confidences, the probability of the predicted class, of images that the classifier had not seen, and
on whether the prediction was right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Confidences = NDArray[np.floating]
"""The probability of the predicted class, by image."""
Right = NDArray[np.bool_]
"""Whether the prediction was right, by image."""

BINS = 15
"""Number of bins of confidence."""
FEWEST_ANSWERED = 30
"""The fewest images that a threshold has to answer, of those that it is chosen on."""
_CURVE_POINTS = 40


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Images of about the same confidence."""

    low: float
    """Lowest confidence, 0 to 1: the bin's edge, or for bins of equal mass that of its least confident image."""
    high: float
    """Highest confidence, 0 to 1: the bin's edge, or for bins of equal mass that of its most confident image."""
    confidence: float
    """Mean of the images' confidences, 0 to 1."""
    accuracy: float
    """Share of the images whose prediction was right, between 0 and 1."""
    n: int
    """Number of images."""


@dataclass(frozen=True, kw_only=True)
class CoveragePoint:
    """What becomes of the images when only those of at least this confidence are answered."""

    threshold: float
    """The lowest confidence that is answered, 0 to 1."""
    coverage: float
    """Share of the images that are answered, above 0 and up to 1, all."""
    accuracy: float
    """Share of right ones among those answered, between 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class Abstention:
    """The confidence from which on to answer, and what that comes to on images that the classifier had not seen."""

    threshold: float
    """The lowest confidence that is answered, 0 to 1."""
    answered: int
    """Number of images that are answered."""
    right: int
    """Number of those answered that are right."""
    n: int
    """Number of all images."""
    curve: tuple[CoveragePoint, ...]
    """Accuracy against coverage, from the most confident images on."""

    @property
    def coverage(self) -> float:
        """Share of the images that are answered."""
        return self.answered / self.n

    @property
    def accuracy(self) -> float:
        """Share of right ones among those answered."""
        return self.right / self.answered

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {**asdict(self), "curve": [asdict(point) for point in self.curve]}


def probabilities_of(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Work out the softmax of logits (n×K), in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def reliability(confidences: Confidences, right: Right, *, equal_mass: bool, bins: int = BINS) -> tuple[Bin, ...]:
    """Compare confidence with accuracy, bin by bin; empty bins are left out.

    Args:
        confidences: n probabilities of the predicted class.
        right: n, whether the prediction was right.
        equal_mass: bins of as many images each, as even as can be; otherwise bins of the same width between 0 and 1.
        bins: number of bins.
    """
    if equal_mass:
        groups = [group for group in np.array_split(np.argsort(confidences, kind="stable"), bins) if len(group)]
        edges = [(float(confidences[group[0]]), float(confidences[group[-1]])) for group in groups]
    else:
        # The last bin contains 1; each other one, its lower edge.
        numbers = np.minimum((confidences * bins).astype(np.intp), bins - 1)
        filled = np.unique(numbers).tolist()
        groups = [np.flatnonzero(numbers == number) for number in filled]
        edges = [(number / bins, (number + 1) / bins) for number in filled]
    return tuple(
        Bin(
            low=low,
            high=high,
            confidence=float(confidences[group].mean(dtype=np.float64)),
            accuracy=float(right[group].mean()),
            n=len(group),
        )
        for group, (low, high) in zip(groups, edges, strict=True)
    )


def expected_calibration_error(
    confidences: Confidences, right: Right, *, equal_mass: bool = True, bins: int = BINS
) -> float:
    """Measure how far confidence is from accuracy, on average over images (Naeini et al., AAAI 2015); 0 is best.

    Bins are of equal mass by default: those of equal width put most images of a good classifier into the last bin
    (Nixon et al., "Measuring calibration in deep learning", 2019). The figure is never quite 0, as the bins' accuracies
    scatter.
    """
    found = reliability(confidences, right, equal_mass=equal_mass, bins=bins)
    return sum(b.n * abs(b.confidence - b.accuracy) for b in found) / max(sum(b.n for b in found), 1)


def coverage_curve(confidences: Confidences, right: Right) -> tuple[CoveragePoint, ...]:
    """Work out accuracy against coverage for every threshold that makes a difference, from the highest on.

    It is the risk-coverage curve of Geifman and El-Yaniv ("Selective classification for deep neural networks", 2017),
    told as accuracy. Images of the same confidence are answered together.
    """
    order = np.argsort(-confidences, kind="stable")
    ranked, hits = confidences[order], np.cumsum(right[order])
    changes = ranked[1:] != ranked[:-1]
    last_of_equals = np.flatnonzero(np.append(changes, True)[: len(ranked)]).tolist()
    return tuple(
        CoveragePoint(
            threshold=float(ranked[place]),
            coverage=(place + 1) / len(ranked),
            accuracy=float(hits[place]) / (place + 1),
        )
        for place in last_of_equals
    )


def thinned(curve: Sequence[CoveragePoint], most: int) -> tuple[CoveragePoint, ...]:
    """Leave at most `most` points of a coverage curve, its first and last among them, evenly spaced by their number."""
    places = np.unique(np.linspace(0, len(curve) - 1, most).round().astype(np.intp))
    return tuple(curve[place] for place in places)


def suggest_abstention(confidences: Confidences, right: Right) -> Abstention | None:
    """Suggest a threshold of "don't know": the lowest at which the answered images have half the errors of all.

    The threshold must leave at least 30 answered, and the share of wrong ones among them be no more than half of what
    it is among all. It is None where no threshold does that, where nothing was wrong, or where there is nothing to go
    by: then confidence does not tell right from wrong well enough for a suggestion.
    """
    n, wrong = len(confidences), int(np.sum(~right))
    if not wrong:
        return None
    curve = coverage_curve(confidences, right)
    fitting = [
        point for point in curve if 1 - point.accuracy <= wrong / n / 2 and round(point.coverage * n) >= FEWEST_ANSWERED
    ]
    if not fitting:
        return None
    chosen = fitting[-1]
    answered = confidences >= chosen.threshold
    return Abstention(
        threshold=chosen.threshold,
        answered=int(answered.sum()),
        right=int(np.sum(right & answered)),
        n=n,
        curve=thinned(curve, _CURVE_POINTS),
    )
