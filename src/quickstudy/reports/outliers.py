"""Images unlike all others: those whose tenth nearest neighbour is far away in bottleneck space.

The distance of the k-th nearest (Ramaswamy et al., 2000) finds strange images even where there are a few of a kind,
which the mean over the nearest does not. Distance is 1 - cosine of the signed square roots as they are: drawings, noise
and plots among clothing photos all lay farther out than any of the 3,781 photos did (4.3 robust standard deviations
and more, against 3.6 and less). Around the mean, or whitened by the classes' covariance, as Mahalanobis' distance does
it, the two overlap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quickstudy.heads.softmax import Floats
from quickstudy.reports.evidence import Evidence
from quickstudy.reports.findings import Outlier

LIMIT = 3.5
"""Robust standard deviations above the median; the usual cut for such scores (Iglewicz and Hoaglin, 1993)."""
_NEIGHBOUR = 10
_REFERENCES = 5000
_FEWEST = 30
_BLOCK = 4096


def find_outliers(evidence: Evidence, *, limit: float = LIMIT) -> tuple[Outlier, ...]:
    """Images at least so far out, farthest first; none where there are too few images to tell what is usual."""
    rows = evidence.distinct(range(len(evidence.images)))
    if len(rows) < _FEWEST:
        return ()
    scores = standardise(distances(evidence.features[rows]))
    found = np.flatnonzero(scores >= limit)
    found = found[np.lexsort((rows[found], -scores[found]))]
    return tuple(Outlier(image=int(rows[k]), score=float(scores[k])) for k in found)


def distances(features: Floats) -> Floats:
    """Each row's distance (n) from its tenth nearest other row, or from the farthest where there are fewer.

    Of many rows, the first ones stand for all; rows in the order of content hashes come at random.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.float32(1e-12))
    references = unit[:_REFERENCES]
    place = min(_NEIGHBOUR, len(references) - 1) - 1
    result = np.empty(len(unit), np.float32)
    for start in range(0, len(unit), _BLOCK):
        similarity = unit[start : start + _BLOCK] @ references.T
        own = np.arange(start, min(start + len(similarity), len(references)))
        similarity[own - start, own] = -2
        result[start : start + _BLOCK] = 1 + np.partition(-similarity, place, axis=1)[:, place]
    return result


def standardise(values: Floats) -> NDArray[np.float64]:
    """Distance from the median in robust standard deviations: 1.4826 times the median absolute deviation."""
    centred = values.astype(np.float64) - np.median(values)
    spread = 1.4826 * float(np.median(np.abs(centred)))
    scores: NDArray[np.float64] = centred / max(spread, 1e-6)
    return scores
