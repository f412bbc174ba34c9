"""What it would gain to let features of different depth have different penalties.

    python benchmarks/level_weights.py --data FOLDER [--sets clothing,cifar10,mnist]

To multiply a group of features by a number is to divide the penalty of its weights by the number's square. The groups
of all levels but the last are multiplied, all alike, or the early or the late ones more. FOLDER is as for `levels.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import chosen_point, save
from levels import folders, gather, judge, parser_of_sets
from quickstudy.files import cache_folder
from quickstudy.learning import selection
from quickstudy.learning.features import Features, prepare_features


def weights_of(count: int) -> dict[str, NDArray[np.float64]]:
    """List what `count` groups are multiplied by, from the earliest to the latest."""
    alike = {f"{factor:g}": np.full(count, factor) for factor in (1, 0.5, 0.7, 1.4, 2)}
    return {
        **alike,
        "early ones more": np.linspace(2.5, 1, count),
        "late ones more": np.linspace(1, 2.5, count),
        "early ones less": np.linspace(0.3, 1, count),
        "late ones less": np.linspace(1, 0.3, count),
    }


def of_set(folder: Path, cache: Path) -> dict[str, Any]:
    """Fit the head to all levels of one set, with each choice of weights."""
    _, parts, (last, widths), _ = gather(folder, "efficientnet_lite0", cache)
    (keys, kept, labels), (_, unseen, truth) = parts["train"], parts["test"]
    found = {}
    for name, weights in weights_of(len(widths) - len(last)).items():
        by_feature = np.repeat(np.concatenate([np.ones(len(last)), weights]), widths)

        def prepared(*values: Any, by_feature: NDArray[np.float64] = by_feature, **options: Any) -> Features:
            features = prepare_features(*values, **options)
            features.stored[:, :-1] *= by_feature.astype(features.dtype)
            features.scale[:] /= by_feature
            return features

        selection.prepare_features = prepared  # type: ignore[attr-defined]
        head = selection.fit_head(kept, labels, keys, classes=int(labels.max()) + 1, widths=widths)
        best = chosen_point(head)
        log_loss, accuracy = judge(head, unseen, truth)
        found[name] = {
            "cv_log_loss": best.log_loss,
            "cv_accuracy": best.accuracy,
            "l2": head.l2,
            "log_loss": log_loss,
            "accuracy": accuracy,
        }
    return found


def main() -> None:
    """Measure and write the result."""
    told = parser_of_sets(__doc__).parse_args()
    save("level_weights", {"sets": {name: of_set(folder, cache_folder(None)) for name, folder in folders(told)}})


if __name__ == "__main__":
    main()
