"""Exact leave-one-out: compared with refitting once for every image left out."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from numpy.typing import NDArray

from quickstudy.errors import HeadError
from quickstudy.learning.features import Rounding, joined_ranges, prepare_features, range_of, signed_sqrt
from quickstudy.learning.ridge import RIDGE_STRENGTHS, SolvedSums, Sums, best_of, leave_one_out, squared_errors


def some_bottlenecks(n: int, d: int, classes: int, seed: int = 3) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    draws = np.random.Generator(np.random.PCG64(seed))
    labels = np.arange(n) % classes
    centres = draws.normal(size=(classes, d))
    return (centres[labels] + 2 * draws.normal(size=(n, d))).astype(np.float32), labels


def refitted(
    bottlenecks: NDArray[np.float32], labels: NDArray[np.intp], classes: int, l2: float
) -> NDArray[np.float64]:
    """Predictions (n×K) by n fits, each from the normal equations with an intercept that is not penalised."""
    x = prepare_features(bottlenecks).values.astype(np.float64)
    n, d = x.shape
    targets = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    design = np.hstack([x, np.ones((n, 1))])
    penalty = l2 * n * np.diag([1.0] * d + [0.0])
    predictions = np.empty((n, classes))
    for left_out in range(n):
        rest = np.arange(n) != left_out
        normal = design[rest].T @ design[rest] + penalty
        predictions[left_out] = design[left_out] @ np.linalg.solve(normal, design[rest].T @ targets[rest])
    return predictions


@pytest.mark.parametrize(("n", "d"), [(60, 12), (30, 80), (40, 40)])
@pytest.mark.parametrize("l2", [3.0, 0.1, 1e-3])
def test_equals_refitting_without_each_image(n: int, d: int, l2: float) -> None:
    bottlenecks, labels = some_bottlenecks(n, d, 3)
    found = leave_one_out(bottlenecks, labels, classes=3, strengths=(l2,))
    slow = refitted(bottlenecks, labels, 3, l2)
    np.testing.assert_array_equal(found.predicted, slow.argmax(axis=1))
    targets = np.where(labels[:, None] == np.arange(3), 1.0, -1.0)
    assert found.best.squared_error == pytest.approx(np.mean((targets - slow) ** 2), rel=1e-6)
    assert found.best.right == np.sum(slow.argmax(axis=1) == labels)


def test_unequal_classes_and_a_common_offset_of_the_features() -> None:
    bottlenecks, labels = some_bottlenecks(50, 10, 2)
    labels = (np.arange(50) < 8).astype(np.intp)
    bottlenecks += 20
    found = leave_one_out(bottlenecks, labels, classes=2, strengths=(0.1,))
    np.testing.assert_array_equal(found.predicted, refitted(bottlenecks, labels, 2, 0.1).argmax(axis=1))


def test_all_strengths_at_once_are_those_one_by_one() -> None:
    bottlenecks, labels = some_bottlenecks(70, 20, 4)
    together = leave_one_out(bottlenecks, labels, classes=4)
    for point in together.path:
        alone = leave_one_out(bottlenecks, labels, classes=4, strengths=(point.l2,)).best
        assert (alone.l2, alone.right) == (point.l2, point.right)
        assert alone.squared_error == pytest.approx(point.squared_error, rel=1e-9)
    assert together.best.squared_error == min(point.squared_error for point in together.path)
    assert [point.l2 for point in together.path] == sorted((point.l2 for point in together.path), reverse=True)


def test_the_only_image_of_a_class_is_never_recognised() -> None:
    bottlenecks, labels = some_bottlenecks(21, 5, 2)
    labels[-1] = 2
    assert leave_one_out(bottlenecks, labels, classes=3).predicted[-1] != 2


def test_too_little_to_leave_one_out() -> None:
    with pytest.raises(HeadError, match="at least 2 images of 2 classes; got 1 of 2"):
        leave_one_out(np.ones((1, 3)), np.zeros(1, np.intp), classes=2)


def solved(roots: NDArray[np.float32], labels: NDArray[np.intp], parts: list[NDArray[np.intp]]) -> SolvedSums:
    """Sums over these parts of the rows, solved."""
    ranges = [range_of(roots[part]) for part in parts]
    rounding = Rounding.over(*reduce(joined_ranges, ranges))
    sums = reduce(Sums.__add__, [Sums.of(rounding.steps(roots[part]), labels[part], 3) for part in parts])
    return SolvedSums.of(sums, rounding, widths=[30, 10])


def parted(n: int, seed: int) -> list[NDArray[np.intp]]:
    draws = np.random.default_rng(seed)
    return np.split(draws.permutation(n), np.sort(draws.choice(np.arange(1, n), seed, replace=False)))


def test_however_images_are_parted_the_sums_give_the_same_head_to_the_bit() -> None:
    bottlenecks, labels = some_bottlenecks(400, 40, 3)
    roots = signed_sqrt(bottlenecks)
    expected = solved(roots, labels, [np.arange(400)])
    for seed in range(1, 8):
        found = solved(roots, labels, parted(400, seed))
        for one, other in zip(found.head(0.1), expected.head(0.1), strict=True):
            np.testing.assert_array_equal(one, other)


def test_sums_give_what_leaving_one_out_of_the_rows_gives() -> None:
    bottlenecks, labels = some_bottlenecks(400, 40, 3)
    roots = signed_sqrt(bottlenecks)
    here = leave_one_out(bottlenecks, labels, classes=3, widths=[30, 10])
    found = solved(roots, labels, parted(400, 5))
    scores = list(found.ridge.left_out(found.coordinates(roots), labels, RIDGE_STRENGTHS))
    errors = np.array([squared_errors(one, labels) for one in scores])
    right = np.array([(one.argmax(axis=1) == labels).sum() for one in scores])
    path = found.ridge.path(RIDGE_STRENGTHS, errors, right)
    assert best_of(path).l2 == here.best.l2
    np.testing.assert_array_equal(scores[path.index(best_of(path))].argmax(axis=1), here.predicted)
    for mine, other in zip(path, here.path, strict=True):
        assert mine.squared_error == pytest.approx(other.squared_error, rel=1e-4)
    weights, biases = found.head(0.1)
    np.testing.assert_allclose(
        roots @ weights + biases, found.ridge.mean + found.coordinates(roots) @ found.ridge.weights(0.1), atol=1e-3
    )


def test_sums_of_the_largest_steps_are_exact() -> None:
    rows = np.full((4096, 2), 32_767.0, np.float32)
    part = Sums.of(rows, np.zeros(4096, np.intp), 2)
    total = reduce(Sums.__add__, [part] * 1000)
    assert total.products[0, 1] == 4_096_000 * 32_767**2
    assert total.by_class[0, 0] == 4_096_000 * 32_767


def test_sums_of_one_class_are_refused() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    rounding = Rounding.over(*range_of(rows))
    with pytest.raises(HeadError, match="2 classes"):
        SolvedSums.of(Sums.of(rounding.steps(rows), np.zeros(3, np.intp), 2), rounding, widths=[2])
