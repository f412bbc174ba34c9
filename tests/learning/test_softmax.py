"""Softmax regression against scikit-learn, against a long run in float64, and at the edges of what can be fitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from quickstudy.errors import HeadError
from quickstudy.learning.features import Features, prepare_features, signed_sqrt
from quickstudy.learning.softmax import Optimum, fit_softmax
from quickstudy.learning.spaces import in_row_space

Array = NDArray[np.float64]
TIGHT = 1e-9
IMBALANCED = (0.9, 0.07, 0.03)


def draw(shares: Sequence[float], *, n: int = 300, d: int = 12, seed: int = 0) -> tuple[Array, NDArray[np.intp]]:
    """Overlapping classes in the given shares, each with at least two rows."""
    rng = np.random.Generator(np.random.PCG64(seed))
    labels = rng.choice(len(shares), n, p=np.array(shares) / sum(shares))
    labels[: 2 * len(shares)] = np.tile(np.arange(len(shares)), 2)
    centres = rng.normal(size=(len(shares), d))
    return 3 * (centres[labels] + 1.5 * rng.normal(size=(n, d))), labels


def prepare_by_hand(bottlenecks: Array) -> Array:
    roots = np.sign(bottlenecks) * np.sqrt(np.abs(bottlenecks))
    centred = roots - roots.mean(axis=0)
    return centred / np.sqrt(np.mean(centred**2))


def even(n: int) -> NDArray[np.float32]:
    return np.full((n, 1), 1 / n, np.float32)


def objective(
    features: Features, labels: NDArray[np.intp], weights: NDArray[np.floating], classes: int, l2: float
) -> Callable[[Array], tuple[float, Array]]:
    """The loss and its gradient in float64, by the textbook, of weights and biases in one row."""
    x, w, one_hot = features.values.astype(float), weights.astype(float), np.eye(classes)[labels]
    d = x.shape[1]

    def evaluate(parameters: Array) -> tuple[float, Array]:
        coefficients, biases = parameters[: d * classes].reshape(d, classes), parameters[d * classes :]
        z = x @ coefficients + biases
        z -= z.max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        loss = -(w[:, None] * one_hot * log_p).sum() + l2 / 2 * (coefficients**2).sum()
        residual = w[:, None] * (np.exp(log_p) - one_hot)
        return loss, np.concatenate([(x.T @ residual + l2 * coefficients).ravel(), residual.sum(axis=0)])

    return evaluate


def least_loss(evaluate: Callable[[Array], tuple[float, Array]], size: int) -> float:
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-16, "gtol": 1e-11, "maxcor": 30}
    first = minimize(evaluate, np.zeros(size), jac=True, method="L-BFGS-B", options=options)
    return float(minimize(evaluate, first.x, jac=True, method="L-BFGS-B", options=options).fun)


def flat(fit: Optimum, number: int = 0) -> Array:
    return np.concatenate([fit.weights[number].ravel(), fit.biases[number]]).astype(float)


def probabilities(logits: NDArray[np.floating]) -> Array:
    z = logits.astype(float)
    exponentials = np.exp(z - z.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("l2", [1.0, 0.03, 0.001])
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
@pytest.mark.parametrize("shares", [(1, 1), (1,) * 10, IMBALANCED], ids=["binary", "ten-classes", "imbalanced"])
def test_the_optimum_is_that_of_scikit_learn(shares: Sequence[float], weighted: bool, l2: float) -> None:
    bottlenecks, labels = draw(shares)
    classes = len(shares)
    weights = (1 / np.bincount(labels))[labels] if weighted else np.ones(len(labels))
    weights /= weights.sum()
    fit = fit_softmax(
        prepare_features(bottlenecks),
        labels,
        weights[:, None].astype(np.float32),
        classes=classes,
        l2=l2,
        precision=TIGHT,
    )
    # scikit-learn minimises C Σ w CE + |W|²/2. With two classes it has one column v instead of ±v/2, of half the norm.
    reference = LogisticRegression(C=(2 if classes == 2 else 1) / l2, tol=1e-10, max_iter=10_000)
    x = prepare_by_hand(bottlenecks)
    reference.fit(x, labels, sample_weight=weights)
    np.testing.assert_allclose(probabilities(fit.logits[:, 0]), reference.predict_proba(x), atol=1e-4)
    by_hand = probabilities(x @ fit.weights[0] + fit.biases[0])
    np.testing.assert_allclose(by_hand, reference.predict_proba(x), atol=1e-4)


@pytest.mark.parametrize("copies", [0, 10])
def test_few_rows_fit_the_same_in_the_space_that_they_span(copies: int) -> None:
    bottlenecks, labels = draw(IMBALANCED, n=40, d=300)
    bottlenecks[:copies], labels[:copies] = bottlenecks[10 : 10 + copies], labels[10 : 10 + copies]
    features = prepare_features(bottlenecks)
    rotated, back = in_row_space(features)
    assert rotated.values.shape == (40, 40)
    assert not rotated.values[:, ::-1][np.triu_indices(40, 1)].any()
    products = features.values.astype(np.float64) @ features.values.T
    np.testing.assert_allclose(rotated.values @ rotated.values.T, products, atol=1e-6 * products.max())
    fits = [fit_softmax(each, labels, even(40), classes=3, l2=0.05, precision=TIGHT) for each in (features, rotated)]
    np.testing.assert_allclose(probabilities(fits[1].logits[:, 0]), probabilities(fits[0].logits[:, 0]), atol=1e-4)
    np.testing.assert_allclose(back(fits[1].weights[0]), fits[0].weights[0], atol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(900, 400), (600, 700)], ids=["tall", "wide"])
def test_folds_in_float32_have_the_optimum_of_scikit_learn(n: int, d: int) -> None:
    """The tall problem starts in the main directions, the wide one is solved in the space of its rows."""
    bottlenecks, labels = draw((1,) * 12, n=n, d=d)
    folds = np.arange(n) * 5 // n
    weights = (folds[:, None] != np.arange(5)).astype(np.float32)
    with threadpool_limits(2):  # enough work for two
        features, back = prepare_features(bottlenecks), None
        if n < d:
            features, back = in_row_space(features)
        fit = fit_softmax(features, labels, weights / weights.sum(axis=0), classes=12, l2=0.03, precision=1e-4)
    assert fit.weights.dtype == np.float32
    x = prepare_by_hand(bottlenecks)
    for fold in (0, 3):
        train = folds != fold
        reference = LogisticRegression(C=1 / (0.03 * train.sum()), tol=1e-8, max_iter=10_000).fit(
            x[train], labels[train]
        )
        expected = reference.predict_proba(x)
        np.testing.assert_allclose(probabilities(fit.logits[:, fold]), expected, atol=2e-3)
        assert np.sqrt(np.mean(np.sum((probabilities(fit.logits[:, fold]) - expected) ** 2, axis=1))) < 3e-4
        found = back(fit.weights[fold]) if back else fit.weights[fold]
        np.testing.assert_allclose(probabilities(x @ found + fit.biases[fold]), expected, atol=2e-3)


def test_the_gradient_vanishes_at_the_solution() -> None:
    bottlenecks, labels = draw(IMBALANCED)
    features = prepare_features(bottlenecks)
    fit = fit_softmax(features, labels, even(len(labels)), classes=3, l2=0.05, precision=TIGHT)
    evaluate = objective(features, labels, even(len(labels))[:, 0], 3, 0.05)
    solution = flat(fit)
    assert np.linalg.norm(evaluate(solution)[1]) < 1e-4
    rng, step = np.random.Generator(np.random.PCG64(1)), 1e-4
    for _ in range(20):
        direction = rng.normal(size=solution.size)
        direction *= step / np.linalg.norm(direction)
        slope = (evaluate(solution + direction)[0] - evaluate(solution - direction)[0]) / (2 * step)
        assert abs(slope) < 1e-4


@pytest.mark.parametrize("precision", [1e-2, 1e-7])
@pytest.mark.parametrize("l2", [100.0, 10.0, 0.3, 0.01])
@pytest.mark.parametrize("shares", [(1, 1), (0.8, 0.2), (0.98, 0.015, 0.005)], ids=["even", "uneven", "rare"])
def test_the_gap_bounds_the_distance_to_the_optimum(shares: Sequence[float], l2: float, precision: float) -> None:
    bottlenecks, labels = draw(shares, n=400)
    features, weights = prepare_features(bottlenecks), even(len(labels))
    fit = fit_softmax(features, labels, weights, classes=len(shares), l2=l2, precision=precision)
    evaluate = objective(features, labels, weights[:, 0], len(shares), l2)
    above = evaluate(flat(fit))[0] - least_loss(evaluate, flat(fit).size)
    assert fit.gap <= precision / 100
    assert -1e-12 < above <= fit.gap + 1e-12


def test_the_gap_is_that_of_the_worst_of_several_training_sets() -> None:
    bottlenecks, labels = draw(IMBALANCED)
    features = prepare_features(bottlenecks)
    weights = np.stack([np.where(np.arange(len(labels)) % 3 == part, 0, 1) for part in range(3)], axis=1)
    weights = (weights / weights.sum(axis=0)).astype(np.float32)
    fit = fit_softmax(features, labels, weights, classes=3, l2=0.1, precision=1e-3)
    for part in range(3):
        evaluate = objective(features, labels, weights[:, part], 3, 0.1)
        assert evaluate(flat(fit, part))[0] - least_loss(evaluate, flat(fit).size) <= fit.gap + 1e-8


def test_several_training_sets_at_once_equal_separate_fits() -> None:
    bottlenecks, labels = draw((1, 2, 1), n=200)
    features = prepare_features(bottlenecks)
    rng = np.random.Generator(np.random.PCG64(2))
    weights = rng.random((len(labels), 4)) * (rng.random((len(labels), 4)) < 0.7)
    weights[:6] = 1
    weights = (weights / weights.sum(axis=0)).astype(np.float32)
    together = fit_softmax(features, labels, weights, classes=3, l2=0.02, precision=TIGHT)
    assert together.weights.shape == (4, 12, 3)
    assert together.biases.shape == (4, 3)
    assert together.logits.shape == (200, 4, 3)
    for part in range(4):
        alone = fit_softmax(features, labels, weights[:, part : part + 1], classes=3, l2=0.02, precision=TIGHT)
        for mine, theirs in ((together.logits[:, part], alone.logits[:, 0]),):
            np.testing.assert_allclose(probabilities(mine), probabilities(theirs), atol=1e-4)


def test_rows_of_weight_zero_do_not_matter() -> None:
    bottlenecks, labels = draw((1, 1), n=100)
    features = prepare_features(bottlenecks)
    weights = (np.arange(100)[:, None] < 60).astype(np.float32) / 60
    turned = np.where(np.arange(100) < 60, labels, 1 - labels)
    fits = [
        fit_softmax(features, these, weights, classes=2, l2=0.1, precision=TIGHT).weights for these in (labels, turned)
    ]
    np.testing.assert_array_equal(*fits)


@pytest.mark.parametrize("wild", [False, True], ids=["neighbour", "far-away"])
def test_a_warm_start_reaches_the_same_optimum(wild: bool) -> None:
    bottlenecks, labels = draw(IMBALANCED)
    features, weights = prepare_features(bottlenecks), even(len(labels))
    cold = fit_softmax(features, labels, weights, classes=3, l2=0.03, precision=TIGHT)
    neighbour = fit_softmax(features, labels, weights, classes=3, l2=0.1, precision=1e-3)
    start = neighbour.weights, neighbour.biases
    if wild:
        rng = np.random.Generator(np.random.PCG64(3))
        start = rng.normal(0, 20, start[0].shape).astype(np.float32), np.array([[-30, 50, 9]], np.float32)
    warm = fit_softmax(features, labels, weights, classes=3, l2=0.03, precision=TIGHT, start=start)
    np.testing.assert_allclose(probabilities(warm.logits[:, 0]), probabilities(cold.logits[:, 0]), atol=1e-4)
    np.testing.assert_allclose(warm.weights, cold.weights, atol=1e-3)


def test_a_start_at_the_optimum_takes_one_step_to_see_it() -> None:
    bottlenecks, labels = draw((1, 1, 1))
    features, weights = prepare_features(bottlenecks), even(len(labels))
    first = fit_softmax(features, labels, weights, classes=3, l2=0.1, precision=1e-8)
    again = fit_softmax(
        features, labels, weights, classes=3, l2=0.1, precision=1e-6, start=(first.weights, first.biases)
    )
    assert again.change < 1e-7
    assert again.iterations < first.iterations / 3


def test_two_runs_agree_to_the_bit() -> None:
    bottlenecks, labels = draw((1,) * 10, n=500, d=64)
    runs = [
        fit_softmax(prepare_features(bottlenecks), labels, even(500), classes=10, l2=0.01, precision=1e-6)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(runs[0].weights, runs[1].weights)
    np.testing.assert_array_equal(runs[0].biases, runs[1].biases)
    assert (runs[0].iterations, runs[0].gap) == (runs[1].iterations, runs[1].gap)


def test_fewer_rows_than_features() -> None:
    bottlenecks, labels = draw((1, 1, 1), n=20, d=300)
    check_optimum(bottlenecks, labels, 3, l2=0.1)


def test_four_images() -> None:
    bottlenecks, _ = draw((1, 1), n=4, d=50)
    check_optimum(bottlenecks, np.array([0, 1, 0, 1]), 2, l2=0.3)


def test_a_class_with_one_image() -> None:
    bottlenecks, labels = draw((1, 1), n=41)
    labels[-1] = 2
    check_optimum(bottlenecks, labels, 3, l2=0.1)


def test_separable_classes() -> None:
    bottlenecks, labels = draw((1, 1, 1), n=60)
    bottlenecks += 100 * np.eye(3, 12)[labels]
    fit = check_optimum(bottlenecks, labels, 3, l2=1e-3)
    assert (fit.logits[:, 0].argmax(axis=1) == labels).all()


def test_a_constant_feature_gets_no_weight() -> None:
    bottlenecks, labels = draw((1, 1, 1))
    bottlenecks[:, 5] = 7.5
    fit = check_optimum(bottlenecks, labels, 3, l2=0.1)
    np.testing.assert_allclose(fit.weights[0, 5], 0, atol=1e-6)


def test_duplicate_rows_count_like_weights() -> None:
    bottlenecks, labels = draw((1, 1), n=50)
    features = prepare_features(bottlenecks)
    doubled = Features(
        stored=np.concatenate([features.stored, features.stored[:20]]),
        mean=features.mean,
        scale=features.scale,
    )
    weights = np.where(np.arange(50)[:, None] < 20, 2, 1) / np.float32(70)
    by_weight = fit_softmax(features, labels, weights.astype(np.float32), classes=2, l2=0.1, precision=TIGHT)
    by_row = fit_softmax(doubled, np.concatenate([labels, labels[:20]]), even(70), classes=2, l2=0.1, precision=TIGHT)
    np.testing.assert_allclose(by_weight.weights, by_row.weights, atol=1e-4)


def test_a_thousand_classes() -> None:
    labels = np.tile(np.arange(1000), 2)
    rng = np.random.Generator(np.random.PCG64(4))
    bottlenecks = rng.normal(size=(1000, 24))[labels] + 0.1 * rng.normal(size=(2000, 24))
    fit = fit_softmax(prepare_features(bottlenecks), labels, even(2000), classes=1000, l2=1e-4, precision=1e-4)
    assert np.mean(fit.logits[:, 0].argmax(axis=1) == labels) > 0.9


def check_optimum(bottlenecks: Array, labels: NDArray[np.intp], classes: int, *, l2: float) -> Optimum:
    features, weights = prepare_features(bottlenecks), even(len(labels))
    fit = fit_softmax(features, labels, weights, classes=classes, l2=l2, precision=1e-5)
    evaluate = objective(features, labels, weights[:, 0], classes, l2)
    assert np.isfinite(fit.weights).all()
    assert evaluate(flat(fit))[0] - least_loss(evaluate, flat(fit).size) < 2e-7
    return fit


@hypothesis_settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(2, 30),
    d=st.integers(1, 20),
    classes=st.integers(2, 5),
    exponent=st.floats(-3, 2),
    size=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_whatever_the_data_the_fit_is_finite_and_its_gap_true(
    seed: int, n: int, d: int, classes: int, exponent: float, size: float
) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    labels = rng.integers(classes, size=n)
    labels[: min(n, classes)] = np.arange(min(n, classes))
    present = int(labels.max()) + 1
    bottlenecks = size * rng.choice([rng.normal(size=(n, d)), rng.integers(0, 2, (n, d)) + 0.0])
    bottlenecks[0, 0] = bottlenecks.max() + size
    features, l2 = prepare_features(bottlenecks), 10.0**exponent
    fit = fit_softmax(features, labels, even(n), classes=present, l2=l2, precision=1e-5)
    evaluate = objective(features, labels, even(n)[:, 0], present, l2)
    assert evaluate(flat(fit))[0] - least_loss(evaluate, flat(fit).size) <= fit.gap + 1e-7


def test_features_are_signed_square_roots_centred_and_scaled() -> None:
    bottlenecks = np.array([[4.0, -9.0], [0.0, 1.0], [-1.0, 0.25]])
    features = prepare_features(bottlenecks)
    np.testing.assert_array_equal(signed_sqrt(bottlenecks), [[2, -3], [0, 1], [-1, 0.5]])
    np.testing.assert_allclose(features.values, prepare_by_hand(bottlenecks), rtol=1e-6)
    np.testing.assert_allclose(features.values * features.scale + features.mean, signed_sqrt(bottlenecks), atol=1e-6)
    assert np.mean(features.values**2) == pytest.approx(1, rel=1e-6)
    np.testing.assert_array_equal(features.stored[:, -1], 1)


def test_half_precision_bottlenecks_are_prepared_in_single_precision() -> None:
    bottlenecks, _ = draw((1, 1), n=2000, d=4)
    halves = (bottlenecks + 50).astype(np.float16)
    features = prepare_features(halves)
    assert features.values.dtype == np.float32
    np.testing.assert_allclose(features.values, prepare_by_hand(halves.astype(float)), atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    bottlenecks, _ = draw((1, 1), n=10)
    bottlenecks[3, 2] = value
    with pytest.raises(HeadError, match="quickstudy cache verify"):
        prepare_features(bottlenecks)


def test_equal_bottlenecks_are_refused() -> None:
    with pytest.raises(HeadError, match="All images give the same bottleneck"):
        prepare_features(np.full((8, 3), 0.7))
