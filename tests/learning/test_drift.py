"""No alarm while photos are ordinary, an alarm soon after they are not."""

from __future__ import annotations

import numpy as np
import pytest

from quickstudy.learning.drift import RATE, DriftWatch, simulate
from quickstudy.learning.strangeness import SHARES


def strangeness(own: np.ndarray, come: np.ndarray) -> list[float]:
    """The share of own scores that are below each score that comes, as models tell it."""
    return np.interp(come, np.quantile(own, SHARES), SHARES).tolist()


def test_no_alarm_in_twenty_times_ten_thousand_ordinary_photos() -> None:
    draws = np.random.default_rng(0)
    alarms = 0
    for number in range(20):
        own = draws.standard_normal(3000)
        found = simulate(own, strangeness(own, draws.standard_normal(10_000)), seed=number)
        alarms += found.since is not None
        assert found.images == 10_000
    assert alarms == 0  # at the stated rate, 0.2 are expected at most


@pytest.mark.parametrize(("shift", "within"), [(1, 100), (2, 25), (4, 15)])
@pytest.mark.parametrize("before", [0, 5000])
def test_an_alarm_soon_after_a_shift(shift: float, within: int, before: int) -> None:
    draws = np.random.default_rng(1)
    own = draws.standard_normal(3000)
    come = draws.standard_normal(before + 200)
    come[before:] += shift
    found = simulate(own, strangeness(own, come))
    assert found.noticed is not None
    assert found.since is not None
    assert before < found.noticed <= before + within
    assert before - 60 <= found.since <= found.noticed


def test_less_strange_photos_are_no_alarm() -> None:
    draws = np.random.default_rng(2)
    own = draws.standard_normal(1000)
    assert simulate(own, strangeness(own, draws.standard_normal(5000) - 0.5)).since is None


def test_the_evidence_of_ordinary_photos_is_their_number_on_average() -> None:
    draws = np.random.default_rng(3)
    found = [simulate([0.0] * 500, draws.random(20).tolist(), seed=seed).evidence for seed in range(4000)]
    assert np.median(found) < np.mean(found)
    assert 10 < np.mean(np.minimum(found, 1e4)) < 40


def test_an_alarm_stays() -> None:
    watch = DriftWatch(500)
    for second in range(100):
        watch.see(1.0, float(second))
    noticed = watch.drift.noticed
    for second in range(100, 3000):
        watch.see(0.3, float(second))
    assert watch.drift.noticed == noticed
    assert watch.drift.since == 0.0
    assert watch.drift.limit == 1 / RATE
