"""The planner: predictions are sums that can be checked by hand; the deepest cut that fits is taken."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from quickstudy.backbones.cuts import Cut
from quickstudy.errors import PlanError
from quickstudy.retraining.planning import CutCost, PlannedWork, choose_plan, predict


def cost(name: str, *, prefix: float, training: float, values: int = 1000) -> CutCost:
    after = 0 if name == "features" else 1
    cut = Cut(name=name, shape=(values,), multiply_adds=0, parameters_after=after)
    return CutCost(cut=cut, prefix_seconds=prefix, evaluation_seconds=training / 4, training_seconds=training)


EARLY = cost("early", prefix=0.001, training=0.020, values=50_000)
MIDDLE = cost("middle", prefix=0.003, training=0.008, values=10_000)
LATE = cost("late", prefix=0.004, training=0.001, values=1_000)
END = cost("features", prefix=0.005, training=0.0, values=100)
COSTS = (EARLY, MIDDLE, LATE, END)
JOB = PlannedWork(images=1000, learned=800, compared=100, decode_seconds=0.001)


def test_a_prediction_is_the_sum_of_its_parts() -> None:
    plan = predict(MIDDLE, JOB, views=2, epochs=5)
    assert plan.fill_seconds == pytest.approx(1000 * 3 * (0.003 + 0.001))
    assert plan.epoch_seconds == pytest.approx(800 * 0.008 + 100 * 0.002)
    assert plan.disk_bytes == 1000 * 3 * 10_000 * 2
    assert plan.seconds == pytest.approx(plan.fill_seconds + 6 * plan.epoch_seconds, abs=10)


@pytest.mark.parametrize(
    ("seconds", "cut"), [(1000, "early"), (150, "early"), (100, "middle"), (60, "late"), (25, "late")]
)
def test_the_deepest_cut_that_fits_is_taken(seconds: float, cut: str) -> None:
    plan = choose_plan(COSTS, JOB, seconds=seconds)
    assert plan.cost.cut.name == cut
    assert plan.seconds <= seconds


def test_more_time_is_used_for_epochs_first_and_then_for_views() -> None:
    plans = [choose_plan((LATE, END), JOB, seconds=seconds) for seconds in (23, 26, 36, 60, 500)]
    assert [plan.epochs for plan in plans] == sorted(plan.epochs for plan in plans)
    assert [plan.views for plan in plans] == sorted(plan.views for plan in plans)
    assert plans[0].views == 1
    assert plans[0].epochs < plans[1].epochs
    assert plans[-1].views > 1


def test_what_does_not_fit_the_disk_is_not_taken() -> None:
    assert choose_plan(COSTS, JOB, seconds=1000, disk_bytes=150e6).cost.cut.name == "middle"
    assert choose_plan(COSTS, JOB, seconds=1000, disk_bytes=30e6).disk_bytes <= 30e6


def test_what_cannot_be_trained_is_not_planned() -> None:
    broken = replace(EARLY, training_seconds=math.inf)
    assert choose_plan((broken, *COSTS[1:]), JOB, seconds=1000).cost.cut.name == "middle"


def test_where_nothing_fits_the_error_says_what_would() -> None:
    with pytest.raises(
        PlanError, match=r"No fine-tuning fits 5 s; the least, from 'late' on, would take (\d+) s\."
    ) as caught:
        choose_plan(COSTS, JOB, seconds=5)
    least = int(re.findall(r"take (\d+) s", str(caught.value))[0])
    assert choose_plan(COSTS, JOB, seconds=least).cost.cut.name == "late"
    with pytest.raises(PlanError):
        choose_plan(COSTS, JOB, seconds=least - 1)
    assert choose_plan(COSTS, JOB, seconds=5, anyway=True).cost.cut.name == "late"
    with pytest.raises(PlanError, match=r"fits 1000 s and 0\.00 GB; .*'late' .* 2\d s and 0\.00 GB"):
        choose_plan(COSTS, JOB, seconds=1000, disk_bytes=1e6)
    with pytest.raises(PlanError, match=r"No fine-tuning fits 50 s\. Allow more"):
        choose_plan((END,), JOB, seconds=50)
