"""Held-out figures of the head beside scikit-learn's, on the same folds of the same bottlenecks, and the time of both.

    python benchmarks/optimum.py clothing/train --cache CACHE

For a few images a class and all of them, at strengths from usual to weak. scikit-learn fits each fold on its own, by
Newton's method with conjugate gradients to a tolerance of 10^-8, on the same prepared features, rotated into the space
that the rows span (which changes no optimum), in float64.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from common import save
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract_census
from quickstudy.bottlenecks.store import Store
from quickstudy.images.census import take_census
from quickstudy.images.imageset import load_image_set
from quickstudy.learning.features import prepare_features
from quickstudy.learning.selection import fit_head
from quickstudy.learning.strengths import assign_folds

_SETS = ((2, 12), (3, 20), (3, 24), (10, 20), (10, 60))
_STRENGTHS = (1.0, 0.1, 0.0316, 0.0032, 0.001, 0.0001)
_LARGE = (0.1, 0.0316, 0.01)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    options = parser.parse_args()
    net, store = load_backbone("efficientnet_lite0", options.cache), Store(options.cache / "bottlenecks")
    census = take_census(load_image_set(options.folder), store.index_path)
    extraction = extract_census(census, net, store)
    census = census.without(extraction.unusable)
    names = sorted(set(census.labels.values()))
    by_class = [[digest for digest, label in census.labels.items() if label == name] for name in names]
    rows = []
    for classes, images in (*_SETS, (len(names), 0)):
        chosen = [digests[: images or None] for digests in by_class[:classes]]
        labels = np.repeat(np.arange(classes), [len(digests) for digests in chosen])
        keys = [digest for digests in chosen for digest in digests]
        values = extraction.gather(keys)
        for l2 in _STRENGTHS if images else _LARGE:
            rows.append({"classes": classes, "images": len(labels), "l2": l2, **compare(values, labels, keys, l2)})
            print(rows[-1], flush=True)
    save("optimum", {"rows": rows})


def compare(values: NDArray[np.floating], labels: NDArray[np.intp], keys: list[bytes], l2: float) -> dict[str, Any]:
    """What both say of held-out images at one strength."""
    started = time.perf_counter()
    head = fit_head(values, labels, keys, classes=int(labels.max()) + 1, l2=l2)
    ours = time.perf_counter() - started
    x, folds = rotated(values), assign_folds(labels, keys)
    reference = np.zeros((len(labels), int(labels.max()) + 1))
    started = time.perf_counter()
    for fold in range(folds.max() + 1):
        train = folds != fold
        # Two classes have one column of weights there, v instead of ±v/2, of half the norm.
        strength = (2 if reference.shape[1] == 2 else 1) / (l2 * train.sum())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its line search gives up at the last digits
            fit = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000, solver="newton-cg")
            fit.fit(x[train], labels[train])
        reference[~train] = fit.predict_log_proba(x[~train])
    theirs = time.perf_counter() - started
    raw = head.held_out_logits.astype(np.float64) * head.temperature
    probabilities = np.exp(raw - np.logaddexp.reduce(raw, axis=1, keepdims=True))
    [point] = head.path
    return {
        "log_loss": point.log_loss,
        "log_loss_scikit_learn": float(-reference[np.arange(len(labels)), labels].mean()),
        "right": round(point.accuracy * len(labels)),
        "right_scikit_learn": int(np.sum(reference.argmax(axis=1) == labels)),
        "largest_difference_of_a_probability": float(np.abs(probabilities - np.exp(reference)).max()),
        "gap": head.gap,
        "seconds": ours,
        "seconds_scikit_learn": theirs,
    }


def rotated(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The prepared features in the space that the rows span."""
    x = prepare_features(values).values.astype(np.float64)
    u, sizes, _ = np.linalg.svd(x, full_matrices=False)
    coordinates: NDArray[np.float64] = u * sizes
    return coordinates


if __name__ == "__main__":
    main()
