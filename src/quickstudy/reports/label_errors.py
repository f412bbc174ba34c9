"""Which labels are probably wrong: those that a classifier that has not seen the image finds hard to believe.

A label is right with 1 - e, and else any other of K - 1 as well; the classifier says how probable each class is. So
Bayes' rule says how probable it is that a label is wrong, and the mean of that over all images is e, which is found by
repeating the two (expectation maximisation; the likelihood is concave in e, so there is one optimum). As the classifier
has learned from wrong labels, too, it believes them a little, and what comes out errs on the low side.

Confident learning (Northcutt et al., 2021, arXiv:1911.00068) estimates the same by counting against thresholds by
class. On clothing photos with 5 % of the labels corrupted at random, what is found here has a precision of 0.83 and a
recall of 0.90, and its usual cut 0.56 and 0.86 (`benchmarks/audit.py labels`).

Fitting again without the suspects, three times, raised the average precision of the ranking from 0.942 to 0.947 on
other seeds, for three times the work; mixing in the labels of the nearest neighbours changed nothing. Neither is done.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quickstudy.heads.softmax import Floats
from quickstudy.reports.evidence import Evidence
from quickstudy.reports.findings import LabelError

LEAST = 0.05
"""Labels at least so probably wrong are named: where precision and recall were both at least those of confident
learning, on seeds other than those reported. Lower than 1/2, since looking at an image costs less than learning a wrong
label."""
_LEAST_RATE = 0.01  # of wrong labels: even well-kept benchmarks have more (Northcutt et al., 2021, arXiv:2103.14749)
_MOST_STEPS = 100


def find_label_errors(evidence: Evidence, *, least: float = LEAST) -> tuple[LabelError, ...]:
    """Images whose label is wrong with at least this probability, most probable first."""
    labels = evidence.labels
    rows = np.flatnonzero((labels >= 0) & evidence.unseen)
    if not evidence.probabilities.shape[1] or not len(rows):
        return ()
    probabilities, given = evidence.probabilities[rows], labels[rows]
    wrong = probability_wrong(probabilities, given)
    own = probabilities[np.arange(len(rows)), given]
    others = probabilities.copy()
    others[np.arange(len(rows)), given] = -1
    suggested = others.argmax(axis=1)
    found = np.flatnonzero(wrong >= least)
    return tuple(
        LabelError(
            image=int(rows[k]),
            given=evidence.classes[given[k]],
            suggested=evidence.classes[suggested[k]],
            probability_given=float(own[k]),
            probability_suggested=float(others[k, suggested[k]]),
            score=float(wrong[k]),
        )
        for k in found[np.lexsort((found, -wrong[found]))]
    )


def probability_wrong(probabilities: Floats, labels: NDArray[np.intp]) -> NDArray[np.float64]:
    """How probable it is that each label is wrong.

    Args:
        probabilities: n×K, of classes, out of sample and calibrated.
        labels: n class numbers.
    """
    classes = probabilities.shape[1]
    own = np.maximum(probabilities[np.arange(len(labels)), labels].astype(np.float64), 1e-12)
    rate, wrong = 0.05, np.zeros(len(labels))
    for _ in range(_MOST_STEPS):
        mistaken = rate / (classes - 1) * (1 - own)
        wrong = mistaken / (mistaken + (1 - rate) * own)
        previous, rate = rate, min(max(float(wrong.mean()), _LEAST_RATE), 0.5)
        if abs(rate - previous) < 1e-6:
            break
    return wrong
