"""Both kinds of head: several labels are logistic regressions of their own, at their optimum."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from scipy import optimize, special

from quickstudy.errors import HeadError
from quickstudy.images.drawn_roles import spread_evenly
from quickstudy.learning.features import prepare_features
from quickstudy.learning.links import FOLDS, ONE_OF, SEVERAL_OF, link_named, link_of
from quickstudy.learning.selection import fit_head, fit_temperature
from quickstudy.learning.softmax import fit_softmax
from quickstudy.learning.strengths import deal_out


def draw(n: int, d: int, labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
    draws = np.random.default_rng(seed)
    rows = draws.standard_normal((n, d)).astype(np.float32)
    logits = rows[:, : labels * 2] @ draws.standard_normal((labels * 2, labels)) - np.linspace(0, 3, labels)
    marks = (draws.random((n, labels)) < special.expit(logits)).astype(np.intp)
    return rows, marks, [hashlib.sha256(str(row).encode()).digest() for row in range(n)]


def slow_fit(x: np.ndarray, y: np.ndarray, weights: np.ndarray, l2: float) -> np.ndarray:
    """Weights, and last the bias, of one label, by SciPy."""

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ w[:-1] + w[-1]
        value = weights @ (np.logaddexp(0, z) - y * z) + l2 / 2 * w[:-1] @ w[:-1]
        slope = weights * (special.expit(z) - y)
        return value, np.append(x.T @ slope + l2 * w[:-1], slope.sum())

    found = optimize.minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", tol=1e-14)
    return np.asarray(found.x)


@pytest.mark.parametrize("size", [(120, 12), (300, 400)])
def test_each_label_is_a_logistic_regression_at_its_optimum(size: tuple[int, int]) -> None:
    rows, marks, _ = draw(*size, labels=4)
    features = prepare_features(rows)
    weights = np.ones((len(rows), 2)) / len(rows)
    weights[::3, 1] = 0
    weights /= weights.sum(axis=0)
    fit = fit_softmax(features, marks, weights.astype(np.float32), classes=4, l2=0.03, precision=1e-6)
    assert fit.gap < 1e-8
    x = features.values.astype(np.float64)
    for part, label in itertools.product(range(2), range(4)):
        slow = slow_fit(x, marks[:, label], weights[:, part], 0.03)
        fast = x @ fit.weights[part][:, label] + fit.biases[part][label]
        np.testing.assert_allclose(special.expit(fast), special.expit(x @ slow[:-1] + slow[-1]), atol=2e-5)


def test_labels_know_nothing_of_each_other() -> None:
    rows, marks, keys = draw(200, 20, labels=3)
    together = fit_head(rows, marks, keys, classes=3, l2=0.1)
    turned = fit_head(rows, marks[:, ::-1], keys, classes=3, l2=0.1)
    np.testing.assert_allclose(
        together.logits(rows) * together.temperature, turned.logits(rows)[:, ::-1] * turned.temperature, atol=1e-3
    )
    assert together.kind == "several"


def test_a_label_on_all_images_or_none_is_refused() -> None:
    rows, marks, keys = draw(60, 8, labels=3)
    for value in (0, 1):
        wrong = marks.copy()
        wrong[:, 1] = value
        with pytest.raises(HeadError, match="on some images and not on others"):
            fit_head(rows, wrong, keys, classes=3)


def test_a_rare_label_is_in_every_fit() -> None:
    _, marks, keys = draw(100, 8, labels=3)
    marks[:, 1] = 0
    marks[7, 1] = 1
    dealt, _ = deal_out(marks, keys)
    assert dealt[7] == -1
    assert (dealt >= 0).sum() >= 90
    marks[[20, 21], 1] = 1
    dealt, _ = deal_out(marks, keys)
    assert len(set(dealt[[7, 20, 21]] % FOLDS)) == 3  # three images, in as many folds


def test_folds_have_their_share_of_each_label_whatever_the_order() -> None:
    _, marks, keys = draw(1000, 8, labels=4)
    dealt, _ = deal_out(marks, keys)
    for label in range(4):
        counts = np.bincount(dealt[marks[:, label] == 1] % FOLDS, minlength=FOLDS)
        assert counts.max() - counts.min() <= 2
    turned, _ = deal_out(marks[::-1], keys[::-1])
    np.testing.assert_array_equal(turned[::-1], dealt)


def test_every_label_is_on_both_sides_of_a_split() -> None:
    draws = np.random.default_rng(0)
    labels = {number: tuple(np.flatnonzero(draws.random(9) < 0.3).tolist()) for number in range(57)}
    labels |= {100: ("rare",), 101: ("rare",), 102: ("lone",), 103: (), 104: ()}
    parts = spread_evenly(labels, (0.8, 0.2))
    assert set(parts) == set(labels)
    for label in {label for found in labels.values() for label in found} - {"lone"}:
        mine = [parts[number] for number, found in labels.items() if label in found]
        assert {0, 1} == set(mine)
        assert abs(np.mean(mine) - 0.2) <= 1.5 / len(mine) + 0.01 or len(mine) < 5
    assert 9 <= sum(parts.values()) <= 16
    assert spread_evenly(labels, (0.8, 0.2), given={100: 1, 101: 1})[101] == 1


def test_log_losses_and_temperature_of_several_labels() -> None:
    draws = np.random.default_rng(0)
    logits = draws.standard_normal((4000, 3)) * 2
    marks = (draws.random(logits.shape) < special.expit(logits)).astype(np.intp)
    expected = -(marks * np.log(special.expit(logits)) + (1 - marks) * np.log(special.expit(-logits))).mean(axis=1)
    np.testing.assert_allclose(SEVERAL_OF.log_losses(logits, marks), expected, rtol=1e-9)
    assert fit_temperature(3 * logits, marks) == pytest.approx(3, rel=0.1)


def test_kinds_are_told_by_targets_and_by_name() -> None:
    assert link_of(np.zeros(3, np.intp)) is ONE_OF
    assert link_of(np.zeros((3, 2), np.intp)) is link_named("several") is SEVERAL_OF
    with pytest.raises(ValueError, match="'ranked'"):
        link_named("ranked")
