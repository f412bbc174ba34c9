"""Drift: false alarms among ordinary photos, and how soon an alarm follows a shift.

    python benchmarks/drift.py [--data FOLDER]

Simulated: own scores and those that come are drawn from the normal distribution, and strangeness is told from 3,000 own
ones as models tell it. 300 times 10,000 ordinary photos come; then, 20 times each, 0 or 10,000 ordinary ones and after
them photos whose scores are shifted by so many standard deviations.

With --data, real ones, too: FOLDER has `clothing/` with split folders and `cifar10_jpeg.npz`. A model learns half of
the clothing photos; from the others 10,000 are drawn, 20 times, and after them come photos of another kind: one in ten,
every third, or all are of CIFAR-10.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import quickstudy
from common import save
from quickstudy.learning.drift import RATE, simulate
from quickstudy.learning.strangeness import SHARES
from strangeness import write_strangers

_RUNS, _ORDINARY, _SHIFTED = 20, 10_000, 3000


def simulated() -> dict[str, Any]:
    """Measure what is simulated."""
    draws = np.random.default_rng(0)

    def told(scores: np.ndarray, seed: int) -> Any:
        own = draws.standard_normal(3000)
        return simulate(own.tolist(), np.interp(scores, np.quantile(own, SHARES), SHARES).tolist(), seed=seed)

    alarms = sum(told(draws.standard_normal(_ORDINARY), seed).noticed is not None for seed in range(300))
    shifts = []
    for shift in (0.5, 1, 2, 4):
        delays = {}
        for before in (0, _ORDINARY):
            found = []
            for seed in range(_RUNS):
                scores = draws.standard_normal(before + _SHIFTED)
                scores[before:] += shift
                found.append((told(scores, seed).noticed or before + _SHIFTED) - before)
            delays[str(before)] = {"median": float(np.median(found)), "most": max(found)}
        shifts.append({"shift": f"{shift} standard deviations", "delays": delays})
    return {"rate": RATE, "runs": 300, "ordinary": _ORDINARY, "alarms": alarms, "shifts": shifts}


def real(data: Path) -> dict[str, Any]:
    """Measure with photos."""
    draws = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        held_back = []
        for place in sorted((data / "clothing").glob("*/*/*")):
            if draws.random() < 0.5:
                held_back.append(place)
                continue
            target = folder / "half" / place.parent.name / place.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(place)
        quickstudy.retrain(folder / "half", folder / "m.onnx")
        model = quickstudy.load(folder / "m.onnx")
        if model.refusal is None:
            raise SystemExit("too few images for strangeness")
        write_strangers(data, folder / "strangers")
        foreign = sorted((folder / "strangers" / "cifar10").iterdir())
        own, strange = (
            np.array([one.strangeness for one in model.predict_each(paths)], np.float64)
            for paths in (held_back, foreign)
        )
    judged = [0.0] * model.refusal.n
    found: dict[str, Any] = {"own": len(own), "learned from": model.refusal.n, "alarms": 0, "runs": _RUNS, "delays": {}}
    for seed in range(_RUNS):
        found["alarms"] += simulate(judged, draws.choice(own, _ORDINARY).tolist(), seed=seed).noticed is not None
    for share in (0.1, 1 / 3, 1.0):
        delays = []
        for seed in range(_RUNS):
            shifted = np.where(
                draws.random(_SHIFTED) < share, draws.choice(strange, _SHIFTED), draws.choice(own, _SHIFTED)
            )
            come = np.concatenate([draws.choice(own, _ORDINARY), shifted])
            delays.append((simulate(judged, come.tolist(), seed=seed).noticed or len(come)) - _ORDINARY)
        found["delays"][f"{share:.2f}"] = {"median": float(np.median(delays)), "most": max(delays)}
    return found


def main() -> None:
    """Measure, and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    save("drift", {**simulated(), "real": real(arguments.data) if arguments.data else None})


if __name__ == "__main__":
    main()
