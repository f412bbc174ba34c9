"""Drift: whether what comes looks different from what a model was trained on, and since when.

Each image that comes has a strangeness. If it is like the model's own images, its strangeness is as likely to be the
highest, the lowest or any other among theirs and those that came before: all orders are equally probable. The share
that is at least as strange, ties broken by lot, is then evenly distributed between 0 and 1, and each such share is
independent of those before (Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2005, theorem 8.2).
Against that, bets are laid that images are stranger: the stake is multiplied by k p^(k - 1) for a share p, which is 1
on average. A gambler begins with each image, and the evidence is what they all have together (Shiryaev and Roberts; for
these shares Vovk, "Testing randomness online", Statistical Science 36, 2021). As it is n on average after n ordinary
images, it comes to 1 / rate among them with a probability of at most n times the rate (Doob's inequality), however
strangeness is distributed. Without a shift, there is at most one alarm in 1 / rate images on average.

Bets are laid on stranger images alone: a model's own were judged by fits without them, and seem a little stranger than
new ones of the same kind, which must raise no alarm. An alarm stays until the model is loaded anew.
"""

from __future__ import annotations

import bisect
import itertools
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quickstudy.learning.strangeness import SHARES

RATE = 1e-6
"""False alarms an image that are tolerated, at most."""
_POWERS = (0.1, 0.3, 0.5, 0.7, 0.9)
_MOST_EVIDENCE = 1e100
_EDGES: tuple[float, ...] = tuple(SHARES[1:-1].tolist())
"""Strangeness between these counts as equal, since it is interpolated there."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What is known of a shift."""

    images: int
    """Number of images that came."""
    evidence: float
    """Evidence that images have become stranger; ordinary ones bring it to their number, on average."""
    limit: float
    """Evidence from which on there is an alarm."""
    since: float | None
    """Time in seconds at which the images began to look different, if there is an alarm; None where there is none."""
    noticed: int | None
    """Number of images that had come when the alarm was raised; None where there is none."""

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {
            "images": self.images,
            "evidence": self.evidence,
            "limit": self.limit,
            "since": self.since,
            "noticed_after": self.noticed,
        }


class DriftWatch:
    """Watches the strangeness of images as they come. Several threads may tell it."""

    def __init__(self, own: int, *, rate: float = RATE, seed: int = 0) -> None:
        """Begin to watch.

        Args:
            own: number of the model's own images, by which strangeness was scaled: it is even among them.
            rate: false alarms an image that are tolerated, above 0 and below 1.
            seed: number that decides ties.
        """
        ends = (0.0, *_EDGES, 1.0)
        self._counts = [own * (high - low) for low, high in itertools.pairwise(ends)]
        self._total = float(own)
        self._lots = random.Random(seed)  # noqa: S311 (no secret)
        self._limit = 1 / rate
        self._wealth = [0.0] * len(_POWERS)
        self._streaks = [0.0] * len(_POWERS)
        self._starts = [0.0] * len(_POWERS)
        self._images = 0
        self._since: float | None = None
        self._noticed: int | None = None
        self._lock = threading.Lock()

    def see(self, strangeness: float, when: float) -> None:
        """Take note of an image's strangeness, 0 to 1, and of the time at which it came, in seconds."""
        with self._lock:
            share = self._share(strangeness)
            self._images += 1
            for number, power in enumerate(_POWERS):
                bet = power * share ** (power - 1)
                self._wealth[number] = min((self._wealth[number] + 1) * bet, _MOST_EVIDENCE)
                # Since when bets have paid: the last time that to begin anew would have been better.
                if self._streaks[number] <= 1:
                    self._streaks[number], self._starts[number] = 1.0, when
                self._streaks[number] = min(self._streaks[number] * bet, _MOST_EVIDENCE)
            if self._noticed is None and self._evidence >= self._limit:
                best = max(range(len(_POWERS)), key=lambda number: self._wealth[number])
                self._since, self._noticed = self._starts[best], self._images

    @property
    def drift(self) -> Drift:
        """What is known by now."""
        with self._lock:
            return Drift(
                images=self._images,
                evidence=self._evidence,
                limit=self._limit,
                since=self._since,
                noticed=self._noticed,
            )

    @property
    def _evidence(self) -> float:
        return sum(self._wealth) / len(_POWERS)

    def _share(self, strangeness: float) -> float:
        """Work out the share of images that are at least as strange, this one among them, and add it to them."""
        place = bisect.bisect_right(_EDGES, strangeness)
        above = sum(self._counts[place + 1 :])
        equal = self._counts[place] + 1
        self._counts[place] += 1
        self._total += 1
        return max((above + (1 - self._lots.random()) * equal) / self._total, 1e-12)


def simulate(own: Sequence[float], come: Sequence[float], *, rate: float = RATE, seed: int = 0) -> Drift:
    """Watch images that come one a second, for tests and measurements.

    Args:
        own: strangeness of the model's own images; their number counts.
        come: strangeness of those that come, 0 to 1.
        rate: false alarms an image that are tolerated.
        seed: number that decides ties.
    """
    watch = DriftWatch(len(own), rate=rate, seed=seed)
    for second, strangeness in enumerate(come):
        watch.see(strangeness, float(second))
    return watch.drift
