"""Learning rates at the steps where they change, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickstudy.learning.schedules import OneCycle, Staircase


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.1), (1, 0.1), (136_718, 0.1), (136_719, 0.01), (273_437, 0.01), (273_438, 0.001), (500_000, 0.0001)],
)
def test_the_classic_rate_falls_tenfold_every_350_epochs(step: int, rate: float) -> None:
    # 50,000 images in batches of 128 are 390.625 steps an epoch; 350 epochs are 136,718.75 steps.
    found = Staircase().at(step, steps=1_000_000, steps_per_epoch=390.625)
    assert found == pytest.approx(rate)


def test_the_staircase_depends_on_the_step_alone() -> None:
    schedule = Staircase(rate=0.5, rate_decay=0.5, rate_decay_epochs=2)
    for steps in (10, 1000):
        rates = [schedule.at(step, steps=steps, steps_per_epoch=3) for step in range(14)]
        assert rates == [0.5] * 6 + [0.25] * 6 + [0.125] * 2


def test_a_fraction_of_an_epoch_may_be_the_stair() -> None:
    schedule = Staircase(rate=1.0, rate_decay=0.1, rate_decay_epochs=0.5)
    assert [schedule.at(step, steps=8, steps_per_epoch=4) for step in range(4)] == pytest.approx([1, 1, 0.1, 0.1])


def test_one_cycle_by_hand() -> None:
    schedule = OneCycle(rate=2.0, rate_start=0.5, rate_end=0.1, warmup=0.25)
    rates = [schedule.at(step, steps=8, steps_per_epoch=3) for step in range(9)]
    # Up from 1 to 2 in two steps, down from 2 to 0.2 in six.
    assert rates == pytest.approx([1.0, 1.5, 2.0, 1.7, 1.4, 1.1, 0.8, 0.5, 0.2])


@given(
    rate=st.floats(0.001, 10),
    start=st.floats(0, 1),
    end=st.floats(0, 1),
    warmup=st.floats(0.01, 0.99),
    steps=st.integers(1, 500),
    data=st.data(),
)
def test_one_cycle_is_three_points_with_lines_between(
    rate: float, start: float, end: float, warmup: float, steps: int, data: st.DataObject
) -> None:
    schedule = OneCycle(rate=rate, rate_start=start, rate_end=end, warmup=warmup)
    step = data.draw(st.integers(0, steps))
    expected = np.interp(step / steps, [0, warmup, 1], [rate * start, rate, rate * end])
    found = schedule.at(step, steps=steps, steps_per_epoch=7.5)
    assert found == pytest.approx(expected, abs=1e-9 * rate)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_one_cycle_with_one_side_only(warmup: float) -> None:
    schedule = OneCycle(rate=1.0, rate_start=0.5, rate_end=0.0, warmup=warmup)
    rates = [schedule.at(step, steps=4, steps_per_epoch=1) for step in range(4)]
    assert rates == pytest.approx([0.5, 0.625, 0.75, 0.875] if warmup else [1.0, 0.75, 0.5, 0.25])


def test_a_run_of_one_step_has_a_rate() -> None:
    assert OneCycle(rate=1.0, rate_start=0.2).at(0, steps=1, steps_per_epoch=0.1) == pytest.approx(0.2)
    assert Staircase(rate=0.1).at(0, steps=1, steps_per_epoch=0.1) == 0.1
