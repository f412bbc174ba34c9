"""The choice between the last features and all levels, and heads on groups of features."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from quickstudy.learning.selection import LevelsCompared, choose_head, fit_head


def drawn(n: int, *, useful: bool, width: int = 40) -> tuple[NDArray[np.float64], NDArray[np.intp], list[bytes]]:
    """Four last features that know a little of three classes, and others that know the rest, or nothing."""
    rng = np.random.Generator(np.random.PCG64(n))
    labels = rng.integers(3, size=n)
    last = np.eye(3, 4)[labels] + rng.normal(0, 0.7, (n, 4))
    others = (np.eye(3, width)[labels] if useful else 0) + rng.normal(0, 0.5, (n, width))
    return (
        np.hstack([last, 1000 * others]),
        labels,
        [number.to_bytes(4, "big") for number in rng.permutation(n).tolist()],
    )


def log_losses(logits: NDArray[np.floating], labels: NDArray[np.intp]) -> NDArray[np.float64]:
    z = logits.astype(np.float64)
    return np.asarray(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels])


def test_levels_that_know_more_are_chosen() -> None:
    kept, labels, keys = drawn(300, useful=True)
    head, compared = choose_head(kept, labels, keys, last=[4], widths=[4, 40], classes=3)
    assert head.weights.shape == (44, 3)
    assert compared is not None
    assert compared.all_pay
    last = fit_head(kept[:, :4], labels, keys, classes=3)
    before, after = (log_losses(one.held_out_logits, labels[one.held_out]) for one in (last, head))
    assert compared.log_loss_last == pytest.approx(before.mean(), abs=1e-6)
    assert compared.log_loss_all == pytest.approx(after.mean(), abs=1e-6)
    assert compared.standard_error == pytest.approx((before - after).std(ddof=1) / 300**0.5, abs=1e-6)
    assert compared.to_dict()["chosen"] == "all"


def test_levels_that_know_nothing_are_not() -> None:
    kept, labels, keys = drawn(300, useful=False)
    head, compared = choose_head(kept, labels, keys, last=[4], widths=[4, 40], classes=3)
    assert compared is not None
    assert not compared.all_pay
    np.testing.assert_array_equal(head.weights, fit_head(kept[:, :4], labels, keys, classes=3).weights)


def test_a_difference_within_its_standard_error_is_none() -> None:
    assert not LevelsCompared(log_loss_last=0.30, log_loss_all=0.29, standard_error=0.02).all_pay
    assert LevelsCompared(log_loss_last=0.30, log_loss_all=0.28, standard_error=0.01).all_pay


def test_few_images_are_not_compared() -> None:
    kept, labels, keys = drawn(40, useful=True)
    head, compared = choose_head(kept, labels, keys, last=[4], widths=[4, 40], classes=3)
    assert (head.weights.shape, compared) == ((4, 3), None)


def test_the_scale_of_a_group_does_not_matter() -> None:
    kept, labels, keys = drawn(200, useful=True)
    scaled = kept * np.repeat([1, 1e-6], [4, 40])
    one, other = (fit_head(values, labels, keys, classes=3, widths=[4, 40]) for values in (kept, scaled))
    np.testing.assert_allclose(one.logits(kept), other.logits(scaled), atol=1e-3)
    together = fit_head(kept, labels, keys, classes=3)
    assert np.abs(together.logits(kept) - one.logits(kept)).max() > 0.1


def test_a_group_that_is_the_same_in_all_images_changes_nothing() -> None:
    kept, labels, keys = drawn(200, useful=True)
    more = np.hstack([kept, np.full((200, 5), 3.0)])
    one = fit_head(kept, labels, keys, classes=3, widths=[4, 40]).logits(kept)
    other = fit_head(more, labels, keys, classes=3, widths=[4, 40, 5]).logits(more)
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_many_features_of_few_directions_lose_nothing() -> None:
    """The 768 main directions have everything of 2,000 features that vary in 60 directions."""
    rng = np.random.Generator(np.random.PCG64(1))
    labels = rng.integers(3, size=900)
    inner = np.eye(3, 60)[labels] + rng.normal(size=(900, 60))
    turn = np.linalg.qr(rng.normal(size=(2000, 60)))[0].T
    wide = inner @ turn
    keys = [number.to_bytes(4, "big") for number in range(900)]
    squared = [np.copysign(np.square(values), values) for values in (wide, inner)]  # the head takes square roots
    found = fit_head(squared[0], labels, keys, classes=3, l2=0.01 * 2000 / 60)
    expected = fit_head(squared[1], labels, keys, classes=3, l2=0.01)
    assert found.weights.shape == (2000, 3)
    np.testing.assert_allclose(found.held_out_logits, expected.held_out_logits, atol=0.02)
    np.testing.assert_allclose(found.logits(squared[0]), expected.logits(squared[1]), atol=0.02)
