"""Images without a label: what they probably are, and from which labels most would be learned.

With a classifier, the next to label are those with large and different gradients: the gradient that an image's most
probable label would give is its residual times its features, long where the classifier is in doubt; picking the one
farthest from all picked so far keeps the batch diverse (the gradients of BADGE, Ash et al., 2020, arXiv:1906.03671, and
the greedy choice of Sener and Savarese, 2018, arXiv:1708.00489). The gradients, d×K numbers each, are never written
out: their products are products of products. Without any labels, it is the most typical image of each of as many
clusters (Hacohen et al., 2022, arXiv:2202.02794), the largest cluster first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quickstudy.heads.softmax import Floats
from quickstudy.reports.evidence import Evidence
from quickstudy.reports.findings import Suggestion
from quickstudy.reports.neighbours import unit_rows

BATCH = 20
"""How many images are named as the next to label."""
_CLUSTERED = 20_000  # images beyond which clusters are found on a part of them


def suggest_labels(evidence: Evidence) -> tuple[Suggestion, ...]:
    """The most probable label of each image without one; nothing where there is no classifier."""
    if not evidence.probabilities.shape[1]:
        return ()
    rows = [number for number, image in enumerate(evidence.images) if image.label is None]
    best = evidence.probabilities[rows].argmax(axis=1)
    return tuple(
        Suggestion(image=n, label=evidence.classes[k], probability=float(evidence.probabilities[n, k]))
        for n, k in zip(rows, best.tolist(), strict=True)
    )


def choose_next(evidence: Evidence, *, count: int = BATCH) -> tuple[int, ...]:
    """At most so many images without a label, in the order to label them; copies once, and none that has a label."""
    named = {image.digest for image in evidence.images if image.label is not None}
    rows = evidence.distinct(number for number, image in enumerate(evidence.images) if image.digest not in named)
    count = min(count, len(rows))
    if not count:
        return ()
    features = evidence.features[rows]
    if evidence.probabilities.shape[1]:
        chosen = farthest_gradients(features, evidence.probabilities[rows], count)
    else:
        chosen = typical(unit_rows(features), count)
    return tuple(int(rows[k]) for k in chosen)


def farthest_gradients(features: Floats, probabilities: Floats, count: int) -> list[int]:
    """Rows picked greedily: the longest gradient, then always the one farthest from the nearest picked.

    Args:
        features: n×d.
        probabilities: n×K.
        count: at most n.
    """
    residual = probabilities.astype(np.float64)
    residual[np.arange(len(residual)), residual.argmax(axis=1)] -= 1
    square = np.einsum("ij,ij->i", residual, residual) * np.einsum("ij,ij->i", features, features, dtype=np.float64)
    chosen = [int(square.argmax())]
    nearest = np.full(len(residual), np.inf)
    while len(chosen) < count:
        last = chosen[-1]
        products = (residual @ residual[last]) * (features @ features[last])
        nearest = np.minimum(nearest, square + square[last] - 2 * products)
        nearest[chosen] = -np.inf
        chosen.append(int(nearest.argmax()))
    return chosen


def typical(rows: Floats, count: int) -> list[int]:
    """The row nearest to the centre of each of `count` clusters, the largest cluster first."""
    from sklearn.cluster import KMeans

    part = rows[:_CLUSTERED]
    clusters = KMeans(count, n_init=1, random_state=0).fit(part)
    members: NDArray[np.intp] = clusters.labels_
    gap = np.linalg.norm(part - clusters.cluster_centers_[members].astype(np.float32), axis=1)
    sizes = np.bincount(members, minlength=count)
    order = [k for k in np.argsort(-sizes, kind="stable").tolist() if sizes[k]]
    return [int(np.flatnonzero(members == k)[gap[members == k].argmin()]) for k in order]
