"""The classes: how many images each has, and which two are hard to tell apart."""

from __future__ import annotations

from collections import Counter

import numpy as np

from quickstudy.reports.evidence import Evidence
from quickstudy.reports.findings import AlikePair, ClassShare

SCARCE_SHARE = 0.1
"""A class with fewer images than this share of the largest class's is scarce."""
SCARCE_IMAGES = 10
"""So is one with fewer images than this."""
ALIKE_RATE = 0.03
"""Classes are alike where this share of both's images is taken for the other."""
_FEWEST_CONFUSIONS = 2


def count_classes(evidence: Evidence) -> tuple[ClassShare, ...]:
    """Images by class, copies counted once, by name."""
    distinct = {(image.label, image.digest) for image in evidence.images if image.label is not None}
    counts = Counter(label for label, _ in distinct)
    enough = max(SCARCE_IMAGES, SCARCE_SHARE * max(counts.values(), default=0))
    return tuple(ClassShare(name=name, images=counts[name], scarce=counts[name] < enough) for name in sorted(counts))


def find_alike(evidence: Evidence) -> tuple[AlikePair, ...]:
    """Pairs of classes by how often either is taken for the other out of sample, the most alike first."""
    labels, classes = evidence.labels, len(evidence.classes)
    rows = np.flatnonzero((labels >= 0) & evidence.unseen)
    if not evidence.probabilities.shape[1] or not len(rows):
        return ()
    taken_for = evidence.probabilities[rows].argmax(axis=1)
    confusion = np.bincount(labels[rows] * classes + taken_for, minlength=classes**2).reshape(classes, classes)
    sizes = confusion.sum(axis=1)
    pairs = [
        AlikePair(
            first=evidence.classes[a],
            second=evidence.classes[b],
            images=int(confusion[a, b] + confusion[b, a]),
            rate=float((confusion[a, b] + confusion[b, a]) / max(sizes[a] + sizes[b], 1)),
        )
        for a in range(classes)
        for b in range(a + 1, classes)
    ]
    found = [pair for pair in pairs if pair.images >= _FEWEST_CONFUSIONS and pair.rate >= ALIKE_RATE]
    return tuple(sorted(found, key=lambda pair: (-pair.rate, pair.first, pair.second)))
