"""Thresholds, and the figures of several labels an image, by hand and against slow versions."""

from __future__ import annotations

import numpy as np
import pytest

from quickstudy.learning.answers import (
    MOST_PROBABLE,
    NEVER,
    Thresholds,
    choose_thresholds,
    compare_average_precision,
    marks_of,
    score_labels,
)
from quickstudy.learning.scores import share_interval

SHARES = np.array([[0.9, 0.2], [0.8, 0.6], [0.7, 0.1], [0.4, 0.9], [0.1, 0.3]])
MARKS = np.array([[1, 0], [0, 1], [1, 0], [0, 0], [0, 1]])


def slow_average_precision(shares: np.ndarray, marks: np.ndarray) -> float:
    found = [marks[shares >= shares[row]].mean() for row in np.flatnonzero(marks)]
    return float(np.mean(found))


def test_thresholds_for_the_best_f1_by_hand() -> None:
    found = choose_thresholds(SHARES, MARKS)
    # First label: the three most probable have two of two, F1 = 4/5. Second: the three most probable, two of two.
    assert found.values == pytest.approx((0.55, 0.25))
    assert found.n == 5


def test_thresholds_for_a_precision() -> None:
    found = choose_thresholds(SHARES, MARKS, precision=0.9)
    assert found.values == pytest.approx((0.85, NEVER))  # the second label's most probable image has it not
    assert not found.given(np.ones((1, 2)))[0, 1]
    lower = choose_thresholds(SHARES, MARKS, precision=0.6)
    assert lower.values == pytest.approx((0.55, 0.25))


def test_what_is_written_is_read_again() -> None:
    found = choose_thresholds(SHARES, MARKS, precision=0.6)
    assert Thresholds.from_dict(found.to_dict()) == found
    with pytest.raises(ValueError, match="no probability"):
        Thresholds.from_dict({"values": [3.0], "precision": None, "n": 1})


def test_figures_by_hand() -> None:
    given = np.array([[1, 0], [1, 1], [1, 0], [0, 1], [0, 0]], bool)
    scores = score_labels(SHARES, MARKS, given, ["a", "b"])
    assert scores.several is not None
    figures = scores.several
    assert (scores.score.right, scores.score.n) == (2, 5)
    assert figures.exact_match.value == pytest.approx(0.4)
    assert (figures.exact_match.low, figures.exact_match.high) == share_interval(2, 5)
    assert figures.f1_micro.value == pytest.approx(6 / 9)  # 3 right, 2 wrong, 1 missed
    assert figures.f1_macro.value == pytest.approx((0.8 + 0.5) / 2)
    assert figures.labels["a"]["precision"].value == pytest.approx(2 / 3)
    assert figures.labels["b"]["recall"].value == pytest.approx(1 / 2)
    assert figures.labels["a"]["average_precision"].value == pytest.approx((1 + 2 / 3) / 2)
    assert [(c.name, c.n, c.predicted, c.right) for c in scores.classes] == [("a", 2, 3, 2), ("b", 2, 2, 1)]
    assert scores.confusions == ()  # no image misses one and is given another
    assert type(scores).from_dict(scores.to_dict()) == scores


def test_what_is_missed_with_what() -> None:
    marks = marks_of([("a",), ("a", "c"), ("b",)], ["a", "b", "c"])
    given = np.array([[0, 1, 0], [0, 1, 1], [0, 1, 0]], bool)
    scores = score_labels(np.where(given, 0.9, 0.1), marks, given, ["a", "b", "c"])
    assert [(pair.truth, pair.predicted, pair.count) for pair in scores.confusions] == [("a", "b", 2)]


def test_average_precision_with_ties_and_its_interval() -> None:
    draws = np.random.default_rng(0)
    shares = np.round(draws.random((300, 4)), 1)
    marks = (draws.random(shares.shape) < shares * 0.7).astype(np.intp)
    scores = score_labels(shares, marks, shares >= 0.5, list("abcd"))
    assert scores.several is not None
    expected = [slow_average_precision(shares[:, k], marks[:, k]) for k in range(4)]
    assert scores.several.average_precision.value == pytest.approx(np.mean(expected), abs=1e-6)
    drawn = []
    for _ in range(300):
        rows = draws.integers(0, 300, 300)
        drawn.append(np.mean([slow_average_precision(shares[rows, k], marks[rows, k]) for k in range(4)]))
    ends = (scores.several.average_precision.low, scores.several.average_precision.high)
    np.testing.assert_allclose(ends, np.quantile(drawn, (0.025, 0.975)), atol=0.015)


def test_a_label_without_images_is_no_part_of_the_means() -> None:
    scores = score_labels(SHARES, MARKS * [1, 0], SHARES > 0.5, ["a", "b"])
    assert scores.several is not None
    assert scores.missing == ("b",)
    assert scores.several.labels["b"]["average_precision"].value is None
    assert scores.several.average_precision.value == pytest.approx((1 + 2 / 3) / 2)


def test_two_that_differ_are_compared_on_the_same_draws() -> None:
    draws = np.random.default_rng(0)
    marks = (draws.random((400, 3)) < 0.3).astype(np.intp)
    good, bad = marks + draws.standard_normal(marks.shape), marks + 2 * draws.standard_normal(marks.shape)
    gain = compare_average_precision(bad, good, marks)
    assert gain.value is not None
    assert 0 < gain.low < gain.value < gain.high
    same = compare_average_precision(good, good, marks)
    assert (same.low, same.value, same.high) == (0, 0, 0)


def test_one_class_an_image_is_answered_by_the_most_probable() -> None:
    shares = np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
    np.testing.assert_array_equal(MOST_PROBABLE.given(shares), [[0, 1, 0], [1, 0, 0]])
    scores = MOST_PROBABLE.score(shares, [("b",), ("b",)], ["a", "b", "c"])
    assert (scores.score.right, scores.score.n, scores.several) == (1, 2, None)


def test_all_right_of_few_is_no_certainty() -> None:
    marks = np.eye(2, dtype=np.intp)[np.arange(13) % 2]
    scores = score_labels(marks * 0.8 + 0.1, marks, marks > 0, ["a", "b"])
    figures = scores.several
    assert figures is not None
    for found in (figures.average_precision, figures.f1_micro, figures.f1_macro, figures.exact_match):
        assert (found.value, found.high) == pytest.approx((1, 1))
        assert found.low == pytest.approx(share_interval(13, 13)[0])
    for number, name in ((7, "a"), (6, "b")):
        assert {found.low for found in figures.labels[name].values()} == {share_interval(number, number)[0]}
    wrong = score_labels(1 - marks * 0.8, marks, marks == 0, ["a", "b"]).several
    assert wrong is not None
    assert (wrong.exact_match.value, wrong.exact_match.low) == pytest.approx((0, 0))
    assert wrong.exact_match.high == pytest.approx(share_interval(0, 13)[1])
