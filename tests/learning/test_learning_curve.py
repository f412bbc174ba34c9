"""The learning curve: subsets that nest, forecasts that follow a law known beforehand, gains that go the right way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from quickstudy.learning import learning_curve as module
from quickstudy.learning.learning_curve import LearningCurve, learning_curve
from quickstudy.learning.selection import fit_head


def bottlenecks(
    counts: list[int], d: int = 24, *, seed: int = 1, spread: float = 1.6
) -> tuple[NDArray[np.float32], NDArray[np.intp], list[bytes]]:
    draws = np.random.Generator(np.random.PCG64(seed))
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = draws.normal(size=(len(counts), d))
    values = centres[labels] + spread * draws.normal(size=(len(labels), d))
    return values.astype(np.float32), labels, [bytes([*divmod(row, 256), 7]) for row in range(len(labels))]


def curve_of(counts: list[int], *, more: int = 100, seed: int = 0) -> LearningCurve:
    values, labels, keys = bottlenecks(counts)
    head = fit_head(values, labels, keys, classes=len(counts))
    right = np.full(len(labels), np.nan)
    right[head.held_out] = head.held_out_classes == labels[head.held_out]
    found = learning_curve(values, labels, keys, classes=len(counts), l2=head.l2, right=right, more=more, seed=seed)
    assert found is not None
    return found


def test_subsets_nest_class_by_class_whatever_the_order() -> None:
    labels = np.repeat(np.arange(3), [40, 9, 1])
    keys = [bytes([row]) for row in range(50)]
    ranks = module._ranks(labels, keys, "salt")
    for number, count in enumerate((40, 9, 1)):
        assert sorted(ranks[labels == number]) == pytest.approx([place / count for place in range(count)])
    order = np.random.Generator(np.random.PCG64(2)).permutation(50)
    shuffled = module._ranks(labels[order], [keys[row] for row in order], "salt")
    np.testing.assert_array_equal(shuffled, ranks[order])
    assert not np.array_equal(module._ranks(labels, keys, "another"), ranks)


def test_each_class_is_thinned_in_half_of_the_designs() -> None:
    thinned = module._thinned(30, 0)
    np.testing.assert_array_equal(thinned.sum(axis=1), thinned.shape[1] // 2)
    assert len(np.unique(thinned, axis=0)) > 1


def test_a_power_law_is_continued() -> None:
    sizes = np.array([100.0, 200.0, 400.0, 800.0])
    errors = 0.04 + 2 * sizes**-0.5
    fits = module._fit_power_laws(sizes, errors, np.full(4, 1e-4))
    curve = LearningCurve(points=(), images=800, gains=(), curves=fits[None])
    accuracy, deviation = curve.forecast(3200)
    assert accuracy == pytest.approx(1 - 0.04 - 2 * 3200**-0.5, abs=1e-3)
    assert deviation < 2e-3
    assert replace(curve, least_deviation=0.1).forecast(3200) == (accuracy, 0.1)
    points, deviation = curve.gain(2400)
    assert points == pytest.approx(100 * 2 * (800**-0.5 - 3200**-0.5), abs=0.1)
    assert deviation < 0.2


def test_floor_and_height_are_never_below_nothing() -> None:
    sizes = np.array([100.0, 200.0, 400.0])
    for errors in (np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.05, 0.0]), np.zeros(3)):
        fits = module._fit_power_laws(sizes, errors, np.full(3, 0.01))
        assert (fits >= 0).all()
        assert fits[:, 0].sum() == pytest.approx(1)


def test_measured_points_are_of_images_that_were_not_trained_on() -> None:
    # Labels by lot: whoever has seen an image can know it, whoever has not is right half of the time.
    draws = np.random.Generator(np.random.PCG64(3))
    values, labels = draws.normal(size=(400, 300)).astype(np.float32), draws.integers(0, 2, 400)
    right = draws.integers(0, 2, 400).astype(float)
    keys = [bytes(divmod(row, 256)) for row in range(400)]
    found = learning_curve(values, labels, keys, classes=2, l2=1e-3, right=right)
    assert found is not None
    assert all(0.4 < point.accuracy < 0.6 for point in found.points)


def test_more_images_help_and_scarce_classes_most() -> None:
    found = curve_of([240, 240, 240, 40])
    sizes = [point.images for point in found.points]
    assert sizes == [95, 190, 380, 608]
    assert found.points[-1].accuracy > found.points[0].accuracy
    now, later = found.forecast(found.images), found.forecast(4 * found.images)
    assert later[0] > now[0]
    gains = {gain.name: gain for gain in found.gains}
    assert gains[3].points > max(gains[number].points for number in range(3))
    assert all(0 <= gain.points <= 100 * (1 - gain.recall) + 1e-9 for gain in found.gains)
    assert all(gain.deviation > 0 for gain in found.gains)


def test_the_same_again_and_others_by_seed() -> None:
    first, again, other = curve_of([60, 60]), curve_of([60, 60]), curve_of([60, 60], seed=5)
    assert first.points == again.points
    assert first.gains == again.gains
    assert first.forecast(500) == again.forecast(500)
    assert first.points != other.points


def test_fits_in_batches_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = curve_of([80, 80, 80])
    monkeypatch.setattr(module, "LARGEST_BATCH", 240 * 3 * 2)
    parts = curve_of([80, 80, 80])
    # Side by side, fits go on until the last has converged, so a few images may change sides.
    for one, other in zip(whole.points, parts.points, strict=True):
        assert one.accuracy == pytest.approx(other.accuracy, abs=0.02)


def test_too_few_images_say_nothing() -> None:
    values, labels, keys = bottlenecks([39, 40])
    assert learning_curve(values, labels, keys, classes=2, l2=0.1, right=np.ones(79)) is None


def test_a_class_of_one_image_and_nothing_wrong() -> None:
    values, labels, keys = bottlenecks([60, 60, 1], spread=0.01)
    right = np.where(labels == 2, np.nan, 1.0)
    found = learning_curve(values, labels, keys, classes=3, l2=0.1, right=right)
    assert found is not None
    assert [gain.name for gain in found.gains] == [0, 1]
    assert all(gain.points == 0 for gain in found.gains)
    # None of 120 wrong: the error is about 0.4 ± 0.6 %, and of one class's 60 about twice that.
    assert found.forecast(1000) == (1, pytest.approx(0.0058, abs=2e-4))
    assert all(gain.deviation == pytest.approx(1.15, abs=0.03) for gain in found.gains)
    assert all(point.deviation > 0.005 for point in found.points)
