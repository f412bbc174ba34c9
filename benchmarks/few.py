"""What few photos promise: probabilities of new ones, by how the strength of the regularisation was chosen.

    python benchmarks/few.py --data FOLDER [--sets clothing,cifar10,mnist] [--draws 20]

FOLDER is that of `levels.py`. Of two, three, four and ten classes, drawn at random, some images each are learned from,
and up to 1,500 others are new: by the last features of EfficientNet-Lite0, from the store. The same draws are learned
twice: with strength and temperature of the least cross-validated log loss, and with the most probable ones, as
`retrain` takes them.
`promised` is the mean of the probability that the predicted class is given. Draws in which cross-validation had all
images right are told apart as well: nothing there speaks against any boldness.

Then a class of one image beside 30 of each of two others: the share of new images of its own that are recognised.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import save
from levels import folders, gather, judge, parser_of_sets
from quickstudy.files import cache_folder
from quickstudy.learning.calibration import probabilities_of
from quickstudy.learning.selection import Head, fit_head
from quickstudy.learning.strengths import FIRST, STRENGTHS
from quickstudy.retraining.config import PRESETS

_CLASSES = {"two to four": (2, 3, 4), "ten": (10,)}
_PHOTOS = (2, 3, 5, 8, 15, 40)
_NEW = 1500
_ALONE_DRAWS = 60
Row = dict[str, float]


def main() -> None:
    """Measure and write the result."""
    parser = parser_of_sets(__doc__)
    parser.add_argument("--draws", type=int, default=20)
    told = parser.parse_args()
    sets: dict[str, Any] = {}
    for name, folder in folders(told):
        _, parts, (last, _), _ = gather(folder, PRESETS["good"].backbone, cache_folder(None))
        keys, kept, labels = parts["train"]
        drawn = Drawn(kept[:, : sum(last)], labels, keys)
        sets[name] = {
            classes: {str(photos): drawn.compare(numbers, photos, told.draws) for photos in _PHOTOS}
            for classes, numbers in _CLASSES.items()
        }
        sets[name]["one of a class"] = drawn.alone()
        print(name, sets[name], flush=True)
        save("few", {"draws": told.draws, "sets": sets})


class Drawn:
    """A set to draw few images from."""

    def __init__(self, rows: NDArray[np.floating], labels: NDArray[np.intp], keys: list[bytes]) -> None:
        self.rows, self.labels, self.keys = rows, labels, keys

    def compare(self, numbers: tuple[int, ...], photos: int, draws: int) -> dict[str, Any]:
        """Learn from so many images a class, of so many classes, in both ways."""
        found: list[tuple[bool, dict[str, Row]]] = []
        for classes in numbers:
            for draw in range(draws):
                rng = np.random.Generator(np.random.PCG64([classes, photos, draw]))
                chosen = np.sort(rng.permutation(self.labels.max() + 1)[:classes])
                rows = np.concatenate([rng.permutation(np.flatnonzero(self.labels == k))[:photos] for k in chosen])
                others = np.setdiff1d(np.flatnonzero(np.isin(self.labels, chosen)), rows)
                new, heads = rng.permutation(others)[:_NEW], self.both(rows, chosen)
                told = {way: self.judge(head, new, chosen) | {"l2": head.l2} for way, head in heads.items()}
                alone = heads["alone"]
                found.append((alone.held_out_right == alone.held_out_count, told))
        perfect = [told for all_right, told in found if all_right]
        return {"all": _summary([told for _, told in found]), "all held-out images right": _summary(perfect)}

    def alone(self) -> dict[str, Any]:
        """Learn a class from one image, beside 30 of each of two others, in both ways."""
        recall: dict[str, list[float]] = {"alone": [], "prior": []}
        for draw in range(_ALONE_DRAWS):
            rng = np.random.Generator(np.random.PCG64([1, draw]))
            chosen = rng.permutation(self.labels.max() + 1)[:3]
            numbers = zip(chosen, (1, 30, 30), strict=True)
            rows = np.concatenate([rng.permutation(np.flatnonzero(self.labels == k))[:n] for k, n in numbers])
            order = np.sort(chosen)
            others = np.setdiff1d(np.flatnonzero(self.labels == chosen[0]), rows)
            for way, head in self.both(rows, order).items():
                recall[way].append(self.judge(head, others, order)["accuracy"])
        return {"draws": _ALONE_DRAWS, **{way: statistics.mean(shares) for way, shares in recall.items()}}

    def both(self, rows: NDArray[np.intp], chosen: NDArray[np.intp]) -> dict[str, Head]:
        """Fit both heads."""

        def fit(l2: float | None = None) -> Head:
            labels = np.searchsorted(chosen, self.labels[rows])
            return fit_head(self.rows[rows], labels, [self.keys[row] for row in rows], classes=len(chosen), l2=l2)

        return {"alone": by_log_loss(fit), "prior": fit()}

    def judge(self, head: Head, rows: NDArray[np.intp], chosen: NDArray[np.intp]) -> Row:
        """Score a head on new images."""
        log_loss, accuracy = judge(head, self.rows[rows], np.searchsorted(chosen, self.labels[rows]))
        promised = probabilities_of(head.logits(self.rows[rows])).max(axis=1).mean()
        return {"log_loss": log_loss, "accuracy": accuracy, "promised": float(promised)}


def by_log_loss(fit: Callable[[float | None], Head]) -> Head:
    """Walk from the usual strength as `retrain` does, by cross-validated log loss and nothing else."""

    def loss(head: Head) -> float:
        return head.path[0].log_loss

    heads = [fit(STRENGTHS[FIRST])]
    for direction in (1, -1):
        best, place = heads[0], FIRST + direction
        while 0 <= place < len(STRENGTHS):
            heads.append(fit(STRENGTHS[place]))
            if loss(best) - loss(heads[-1]) <= 1e-3:
                break
            best, place = heads[-1], place + direction
        if len(heads) > 2:
            break
    return min(heads, key=loss)


def _summary(draws: list[dict[str, Row]]) -> dict[str, Any]:
    """Average over draws; of the log losses, also their medians and their difference with its standard error."""
    if not draws:
        return {"draws": 0}
    found: dict[str, Any] = {"draws": len(draws)}
    for way in ("alone", "prior"):
        found[way] = {name: statistics.mean(draw[way][name] for draw in draws) for name in draws[0][way]}
        found[way]["l2"] = statistics.geometric_mean(draw[way]["l2"] for draw in draws)
        found[way]["median_log_loss"] = statistics.median(draw[way]["log_loss"] for draw in draws)
    change = [draw["prior"]["log_loss"] - draw["alone"]["log_loss"] for draw in draws]
    found["change"] = statistics.mean(change)
    found["standard_error"] = statistics.stdev(change) / len(change) ** 0.5 if len(change) > 1 else None
    return found


if __name__ == "__main__":
    main()
