"""Other ways to choose what to ask while labelling, against those of `label`: labels needed, and how sure that is.

    python benchmarks/label_choices.py --data DATA [--only NAME …]

Each way differs from label's in what its name says; but all except `label` itself have a head of labels alone, which
guesses no photo that waits, as label had when they were compared. All are simulated as in `label.py labels`, on the
clothing photos, whose curve is flat at 85 %: half a point of accuracy is fifty labels. So the seeds are drawn again and
again, with replacement, and the labels needed come with the interval that holds 80 % of what that gives.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import quickstudy.labelling.teacher as teacher
from common import RESULTS, save
from label import EVERY, MOST, SETS, Simulation, random_order, reached, run_order
from quickstudy.labelling.choosing import CONTROL_SHARE, typical_rows
from quickstudy.labelling.teacher import L2, LiveHead
from quickstudy.learning.features import Floats, sample_of, unit_rows

GOALS = (0.8, 0.85)
_PICKS, _AXES = 24, 64


@dataclass(frozen=True, kw_only=True)
class Way:
    """How photos are chosen, and by what head; the defaults are what label's were with a head of labels alone."""

    doubt: str = "margin"
    """Name of the measure of doubt: `margin` between the two most probable classes, `entropy` or `least confidence`."""
    unlike: int = 8
    """One pick in so many is the photo farthest from all labels; 0 for none."""
    lacking: float = 0.5
    """Power of the weight of classes that have few labels."""
    density: float = 0.0
    """Power of the weight of photos that have many like them."""
    diverse: float = 1.0
    """Power of the weight of photos unlike those picked before in the same handful."""
    checks: float = CONTROL_SHARE
    """Share of what is asked for that is drawn at random."""
    fewer_from: int = 10_000
    """Number of checks from which on only `fewer` of what is asked for are."""
    fewer: float = CONTROL_SHARE
    """Share of checks from then on."""
    l2: float = 0.01
    """Strength of the head."""
    guesses: bool = False
    """Whether the head learns from photos that wait, too."""


WAYS = {
    "label": Way(l2=L2, guesses=True),
    "label, of labels alone": Way(),
    "no checks": Way(checks=0),
    "1 check in 10 after 40": Way(fewer_from=40, fewer=0.1),
    "1 check in 20 after 20": Way(fewer_from=20, fewer=0.05),
    "no photos unlike all": Way(unlike=0),
    "no weight for rare classes": Way(lacking=0),
    "entropy": Way(doubt="entropy"),
    "least confidence": Way(doubt="least confidence"),
    "typical photos weigh more": Way(density=0.5),
    "strength 0.03": Way(l2=0.03),
    "all of these that helped": Way(unlike=0, l2=0.03, fewer_from=40, fewer=0.1),
}


def doubt(shares: Floats, kind: str) -> NDArray[np.floating]:
    """How doubtful photos are (n) by their probabilities (n×K), 0 to 1."""
    ordered = np.sort(shares, axis=1)[:, ::-1]
    if kind == "entropy":
        return -(shares * np.log(shares + 1e-12)).sum(axis=1) / np.log(shares.shape[1])
    return 1 - ordered[:, 0] if kind == "least confidence" else 1 - (ordered[:, 0] - ordered[:, 1])


def choose(simulation: Simulation, head: LiveHead, free: NDArray[np.bool_], learned: list[int], way: Way) -> list[int]:
    """What to ask next, as `choosing.doubtful_rows` does it but for the way."""
    places = np.flatnonzero(free)
    shares = head.probabilities(simulation.rows)[places]
    counts = np.array([np.sum(simulation.truth[learned] == name) for name in head.classes])
    lacking = np.clip(shares @ (counts.mean() / (counts + 1)).astype(np.float32), 0.3, 3)
    wanted = doubt(shares, way.doubt) * lacking**way.lacking
    unit = unit_rows(simulation.rows[places, :_AXES])
    if way.density:
        dense = (np.clip(unit @ unit[sample_of(len(places), 1024)].T, 0, 1) ** 2).mean(axis=1)
        wanted = wanted * (dense / dense.mean()) ** way.density
    some = np.unique(np.append(np.argsort(-wanted, kind="stable")[:512], sample_of(len(places), 1024)))
    places, wanted, unit = places[some], wanted[some], unit[some]
    labelled = unit_rows(simulation.rows[learned, :_AXES])
    novelty = np.clip(1 - (unit @ labelled.T).max(axis=1), 0, 1)
    closeness, left = np.zeros(len(places)), np.ones(len(places), np.bool_)
    picks: list[int] = []
    for turn in range(min(_PICKS, len(places))):
        by_novelty = way.unlike and turn % way.unlike == way.unlike - 1
        score = (novelty if by_novelty else wanted) * (1 - closeness) ** way.diverse
        place = int(np.where(left, score, -1).argmax())
        picks.append(int(places[place]))
        left[place] = False
        closeness = np.maximum(closeness, np.clip(unit @ unit[place], 0, 1))
    return picks


def run(simulation: Simulation, way: Way) -> dict[int, dict[str, Any]]:
    n = len(simulation.rows)
    candidates = list(range(min(200, int(CONTROL_SHARE * n)))) if way.checks else []
    answered, learned, checks = np.zeros(n, np.bool_), [], 0
    head: LiveHead | None = None
    starting = [pick.row for pick in typical_rows(simulation.rows)]
    points: dict[int, dict[str, Any]] = {}
    teacher.L2 = way.l2
    while len(learned) < min(MOST, n):
        rest = ~answered
        rest[candidates] = False
        typical = [row for row in starting if rest[row]]
        if head is None or (typical and len(learned) < len(starting)):
            chosen = (typical + np.setdiff1d(np.flatnonzero(rest), typical).tolist())[:_PICKS]
        else:
            chosen = choose(simulation, head, rest, learned, way)
        picks: list[int] = []
        waiting = iter([k for k in candidates if not answered[k]])
        for row in chosen[:EVERY]:
            asked = len(learned) + len(picks)
            due = min(way.checks * asked, way.fewer_from + way.fewer * max(asked - way.fewer_from / CONTROL_SHARE, 0))
            if checks < due and (check := next(waiting, None)) is not None:
                picks.append(check)
                checks += 1
            picks.append(row)
        for row in picks[:EVERY]:
            answered[row] = True
            learned.append(row)
        checks = sum(answered[candidates]) if candidates else 0
        head = simulation.fit(learned, head, guesses=way.guesses)
        if head is not None:
            points[len(learned)] = {"accuracy": simulation.accuracy(head)}
    teacher.L2 = L2
    return points


def summary(curves: list[dict[int, Any]]) -> dict[str, Any]:
    """Labels needed, with the interval that 80 % of 400 draws of the seeds give, and accuracies on the way."""
    random = np.random.Generator(np.random.Philox(0))
    found: dict[str, Any] = {}
    for goal in GOALS:
        drawn = [
            reached([curves[k] for k in random.integers(0, len(curves), len(curves))], goal) or MOST for _ in range(400)
        ]
        low, high = np.quantile(drawn, [0.1, 0.9])
        found[f"{goal:.2f}"] = {"labels": reached(curves, goal), "low": int(low), "high": int(high)}
    sizes = sorted(set.intersection(*(set(curve) for curve in curves)))
    near = {n: min(sizes, key=lambda size, n=n: abs(size - n)) for n in (100, 200, 300, 400, 600)}
    found["accuracy_at"] = {
        str(n): round(statistics.fmean(curve[size]["accuracy"] for curve in curves), 4) for n, size in near.items()
    }
    return found


def main(data: Path, seeds: int, only: list[str]) -> None:
    features, given = SETS["clothing"](data)
    labels = np.array(given)
    path = RESULTS / "label_choices.json"
    before = json.loads(path.read_text()) if path.exists() else {"seeds": seeds}
    ways = before.get("ways", {}) if before["seeds"] == seeds else {}
    for name in only or ["random order", *WAYS]:
        curves = []
        for seed in range(seeds):
            simulation = Simulation(features, labels, seed)
            if name == "random order":
                curves.append(run_order(simulation, MOST, random_order(simulation)))
            else:
                curves.append(run(simulation, WAYS[name]))
        ways[name] = summary(curves)
        print(name, ways[name], flush=True)
        save("label_choices", {"seeds": seeds, "set": "clothing", "ways": ways})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=[])
    told = parser.parse_args()
    main(told.data, told.seeds, told.only)
