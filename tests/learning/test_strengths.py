"""The choice of the strength where there are many images: one fold scouts, on growing parts of them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from quickstudy.learning.features import prepare_features
from quickstudy.learning.selection import choose_head, fit_head
from quickstudy.learning.strengths import FOLDS, CrossValidation, assign_folds, deal_out, folds_of


def drawn(n: int, classes: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.intp], list[bytes]]:
    """Classes that overlap, and keys that are in another order than the rows."""
    rng = np.random.Generator(np.random.PCG64([n, classes]))
    labels = rng.integers(classes, size=n)
    values = rng.normal(0, 0.7, (classes, width))[labels] + rng.normal(0, 1, (n, width))
    return (
        np.square(np.maximum(values, 0)),
        labels,
        [number.to_bytes(4, "big") for number in rng.permutation(n).tolist()],
    )


def validation(n: int, classes: int, width: int) -> CrossValidation:
    values, labels, keys = drawn(n, classes, width)
    dealt, places = deal_out(labels, keys)
    order = np.argsort(folds_of(dealt), kind="stable")
    return CrossValidation(
        prepare_features(values, order),
        labels[order],
        dealt[order],
        places[order],
        np.ones(n, bool),
        np.ones(n),
        classes,
    )


def test_all_folds_are_fitted_at_the_chosen_strength_alone() -> None:
    values, labels, keys = drawn(6000, 3, 12)
    head = fit_head(values, labels, keys, classes=3)
    assert sorted(point.folds for point in head.path) == [1] * (len(head.path) - 1) + [5]
    [chosen] = [point for point in head.path if point.folds == 5]
    assert chosen.l2 == head.l2
    given = fit_head(values, labels, keys, classes=3, l2=head.l2)
    assert [point.folds for point in given.path] == [5]
    assert chosen.log_loss == pytest.approx(given.path[0].log_loss, abs=1e-3)
    np.testing.assert_allclose(head.held_out_logits, given.held_out_logits, atol=0.02)
    np.testing.assert_array_equal(head.held_out, np.arange(6000))


def test_held_out_images_are_those_of_fits_that_had_not_seen_them() -> None:
    values, labels, keys = drawn(5500, 3, 12)
    head, folds = fit_head(values, labels, keys, classes=3), assign_folds(labels, keys)
    rest = folds != 4
    without = fit_head(values[rest], labels[rest], [key for key, one in zip(keys, rest, strict=True) if one],
                       classes=3, l2=head.l2)  # fmt: skip
    seen, expected = head.held_out_logits[~rest] * head.temperature, without.logits(values[~rest]) * without.temperature
    centred = [logits - logits.mean(axis=1, keepdims=True) for logits in (seen, expected)]
    np.testing.assert_allclose(*centred, atol=0.05)


def test_the_strength_is_as_good_as_that_of_a_walk_with_all_folds() -> None:
    values, labels, keys = drawn(6000, 4, 30)
    head = fit_head(values, labels, keys, classes=4)
    [chosen] = [point.log_loss for point in head.path if point.l2 == head.l2]
    for half in (-2, -1, 1, 2):
        [other] = fit_head(values, labels, keys, classes=4, l2=head.l2 * 10 ** (half / 2)).path
        assert chosen <= other.log_loss + 2e-3


def test_the_order_of_many_rows_does_not_matter() -> None:
    values, labels, keys = drawn(5200, 3, 8)
    turned = np.random.Generator(np.random.PCG64(1)).permutation(5200)
    one = fit_head(values, labels, keys, classes=3)
    other = fit_head(values[turned], labels[turned], [keys[row] for row in turned], classes=3)
    assert one.l2 == other.l2
    np.testing.assert_allclose(one.held_out_logits[turned], other.held_out_logits, atol=0.02)


def test_parts_have_all_folds_and_classes_and_lie_within_each_other() -> None:
    everything = validation(64_000, 5, 3)
    [part] = everything.parts()
    assert len(part.labels) == pytest.approx(16_000, abs=40)
    assert set(part.dealt) <= set(everything.dealt)
    counts = np.bincount(part.held_out_folds)
    assert counts.max() - counts.min() <= 10
    for fold in range(FOLDS):
        assert set(part.labels[part.dealt % FOLDS != fold]) == set(range(5))
    assert validation(59_000, 5, 3).parts() == []


def test_a_strength_that_is_given_begins_on_a_part_too() -> None:
    values, labels, keys = drawn(62_000, 2, 3)
    [point] = fit_head(values, labels, keys, classes=2, l2=0.5).path
    assert (point.l2, point.folds) == (0.5, 5)


def test_of_two_heads_on_many_images_the_better_one_is_taken() -> None:
    values, labels, keys = drawn(5200, 3, 12)
    head, compared = choose_head(values, labels, keys, last=[4], widths=[4, 8], classes=3)
    assert compared is not None
    assert compared.all_pay
    alone = fit_head(values, labels, keys, classes=3, widths=[4, 8])
    assert head.path[-1].l2 <= head.l2 <= head.path[0].l2
    np.testing.assert_allclose(head.held_out_logits, alone.held_out_logits, atol=0.05)
