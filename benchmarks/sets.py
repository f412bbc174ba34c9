"""How often prediction sets hold the right class: 200 draws of the clothing photos.

    python benchmarks/sets.py --data FOLDER [--draws 200]

FOLDER has `clothing/` with split folders. All its photos are put into one pot. Each draw takes 600 of them to learn
from and the others to test on, at random; a head on Lite0's last features, its strength as chosen by the first draw, is
fitted to the former, with cross-validation, as `retrain` does. Its sets for 80, 90, 95 and 99 % are counted on the
latter: how often the right class is among them, how many classes they have, and how often for the class that is
covered least. The share of a draw scatters by one point at 95 %, from the images learned from and those tested on; the
mean of 200 draws by 0.07.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from common import save
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract_census
from quickstudy.bottlenecks.store import Store
from quickstudy.files import cache_folder
from quickstudy.images.census import take_census
from quickstudy.learning.calibration import probabilities_of
from quickstudy.learning.conformal import fit_sets
from quickstudy.learning.selection import fit_head

_LEARNED = 600
_LEVELS = (0.8, 0.9, 0.95, 0.99)


def main() -> None:
    """Measure, and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=200)
    arguments = parser.parse_args()
    folder = cache_folder(None)
    net, store = load_backbone("efficientnet_lite0", folder), Store(folder / "bottlenecks")
    census = take_census(arguments.data / "clothing", store.index_path, to_learn=True)
    digests = [digest for digest, content in census.contents.items() if content.role]
    features = extract_census(census, net, store).gather(digests)
    numbers = np.array([census.classes.index(census.labels[digest]) for digest in digests], np.intp)
    classes, l2 = len(census.classes), None
    found: dict[str, dict[str, list[float]]] = {}
    by_class: dict[str, list[list[float]]] = {}
    for draw in range(arguments.draws):
        order = np.random.default_rng(draw).permutation(len(digests))
        learned, tested = order[:_LEARNED], order[_LEARNED:]
        keys = [digests[row] for row in learned]
        head = fit_head(features[learned], numbers[learned], keys, classes=classes, l2=l2)
        l2 = head.l2
        sets = fit_sets(head.held_out_logits, numbers[learned][head.held_out], classes=classes, by="cross-validation")
        if sets is None:
            raise SystemExit("too few images for sets")
        given, truth = probabilities_of(head.logits(features[tested])), numbers[tested]
        for level in _LEVELS:
            for each in (False, True):
                members = sets.of(given, level, by_class=each)
                inside = members[np.arange(len(truth)), truth]
                name = f"{100 * level:g} %" + (", by class" if each else "")
                row = found.setdefault(name, {"covered": [], "size": []})
                row["covered"].append(float(inside.mean()))
                row["size"].append(float(members.sum(axis=1).mean()))
                by_class.setdefault(name, []).append([float(inside[truth == k].mean()) for k in range(classes)])
        print(f"draw {draw + 1}", flush=True) if draw % 20 == 19 else None
    means = {
        name: {
            "covered": float(np.mean(row["covered"])),
            "standard_error": float(np.std(row["covered"], ddof=1) / len(row["covered"]) ** 0.5),
            "draws_scatter": float(np.std(row["covered"], ddof=1)),
            "size": float(np.mean(row["size"])),
            "least_covered_class": float(np.mean(by_class[name], axis=0).min()),
        }
        for name, row in found.items()
    }
    save("sets", {"draws": arguments.draws, "learned": _LEARNED, "tested": len(digests) - _LEARNED, "means": means})


if __name__ == "__main__":
    main()
