"""Calibration and abstention against values worked out by hand and slow obvious versions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickstudy.learning.calibration import (
    Abstention,
    coverage_curve,
    expected_calibration_error,
    probabilities_of,
    reliability,
    suggest_abstention,
)
from quickstudy.records import read_record


def test_bins_of_equal_width_by_hand() -> None:
    confidences = np.array([0.1, 0.55, 0.6, 0.75, 0.9, 1.0])
    right = np.array([False, True, False, True, True, True])
    bins = reliability(confidences, right, equal_mass=False, bins=4)
    assert [(b.low, b.high, b.n) for b in bins] == [(0.0, 0.25, 1), (0.5, 0.75, 2), (0.75, 1.0, 3)]
    assert bins[1].confidence == pytest.approx(0.575)
    assert bins[1].accuracy == 0.5
    expected = (1 * 0.1 + 2 * 0.075 + 3 * (1 - 2.65 / 3)) / 6
    assert expected_calibration_error(confidences, right, equal_mass=False, bins=4) == pytest.approx(expected)


def test_bins_of_equal_mass_by_hand() -> None:
    confidences = np.array([0.9, 0.3, 0.5, 0.7])
    right = np.array([True, False, True, True])
    bins = reliability(confidences, right, equal_mass=True, bins=2)
    assert [(b.low, b.high, b.n, b.accuracy) for b in bins] == [(0.3, 0.5, 2, 0.5), (0.7, 0.9, 2, 1.0)]
    assert expected_calibration_error(confidences, right, bins=2) == pytest.approx((2 * 0.1 + 2 * 0.2) / 4)


def test_fewer_images_than_bins() -> None:
    bins = reliability(np.array([0.5]), np.array([True]), equal_mass=True)
    assert [b.n for b in bins] == [1]
    assert expected_calibration_error(np.array([]), np.array([], bool)) == 0


def test_confidences_that_are_drawn_true_have_little_error() -> None:
    draws = np.random.Generator(np.random.PCG64(5))
    confidences = draws.uniform(0.2, 1, 40_000)
    right = draws.uniform(size=40_000) < confidences
    assert expected_calibration_error(confidences, right) < 0.012
    assert expected_calibration_error(confidences**0.5, right) > 0.1


def test_coverage_by_hand_with_ties() -> None:
    curve = coverage_curve(np.array([0.9, 0.5, 0.7, 0.7]), np.array([True, False, True, False]))
    assert [(p.threshold, p.coverage, p.accuracy) for p in curve] == [
        (0.9, 0.25, 1.0),
        (0.7, 0.75, pytest.approx(2 / 3)),
        (0.5, 1.0, 0.5),
    ]


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=40))
def test_coverage_equals_answering_one_threshold_at_a_time(images: list[tuple[int, bool]]) -> None:
    confidences = np.array([level / 20 for level, _ in images])
    right = np.array([hit for _, hit in images])
    for point in coverage_curve(confidences, right):
        answered = [hit for level, hit in zip(confidences, right, strict=True) if level >= point.threshold]
        assert point.coverage == len(answered) / len(images)
        assert point.accuracy == pytest.approx(sum(answered) / len(answered))


def test_threshold_halves_the_errors_at_the_widest_coverage() -> None:
    # 100 images, 20 wrong; the wrong ones are among the less confident half.
    confidences = np.linspace(1, 0.01, 100)
    right = np.array([True] * 50 + [True, True, False, True, False] * 10)
    found = suggest_abstention(confidences, right)
    assert found is not None
    assert 1 - found.accuracy <= 0.1
    wider = [p for p in coverage_curve(confidences, right) if p.coverage > found.coverage]
    assert all(1 - point.accuracy > 0.1 for point in wider)
    assert found.answered == np.sum(confidences >= found.threshold)
    assert read_record(Abstention, json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("confidences", "right"),
    [
        (np.linspace(0, 1, 100), np.ones(100, bool)),  # nothing wrong, so nothing to halve
        (np.linspace(0, 1, 100), np.arange(100) % 2 == 0),  # confidence says nothing
        (np.full(100, 0.5), np.arange(100) < 90),  # all the same confidence
        (np.linspace(0, 1, 20), np.arange(20) > 4),  # too few
        (np.array([]), np.array([], bool)),
    ],
)
def test_no_threshold_where_none_is_to_be_had(confidences: np.ndarray, right: np.ndarray) -> None:
    assert suggest_abstention(confidences, right) is None


def test_softmax_of_large_logits() -> None:
    found = probabilities_of(np.array([[1000.0, 1000.0], [0.0, np.log(3)]], np.float32))
    np.testing.assert_allclose(found, [[0.5, 0.5], [0.25, 0.75]], atol=1e-6)
