"""Choosing the regularisation by cross-validation, calibrating, and what the head refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from quickstudy.errors import HeadError
from quickstudy.learning.features import signed_sqrt
from quickstudy.learning.selection import fit_head, fit_temperature
from quickstudy.learning.strengths import assign_folds

Array = NDArray[Any]
GRID = tuple(10.0 ** (half / 2) for half in range(4, -13, -1))


def draw(counts: Sequence[int], *, d: int = 16, noise: float = 1.5, seed: int = 0) -> tuple[Array, Array, list[bytes]]:
    """Overlapping classes with so many rows each, and a key for each row."""
    rng = np.random.Generator(np.random.PCG64(seed))
    labels = np.repeat(np.arange(len(counts)), counts)
    rng.shuffle(labels)
    centres = np.random.Generator(np.random.PCG64(99)).normal(size=(len(counts), d))
    bottlenecks = centres[labels] + noise * rng.normal(size=(len(labels), d))
    return bottlenecks, labels, keys_for(len(labels), seed)


def keys_for(n: int, seed: int = 0) -> list[bytes]:
    return [hashlib.sha256(f"{seed} {number}".encode()).digest() for number in range(n)]


def log_loss(logits: Array, labels: Array) -> float:
    z = logits.astype(float)
    z -= z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]))


def probabilities(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_copies_and_views_share_a_fold() -> None:
    keys = keys_for(30)
    labels = np.repeat([0, 1, 2], 10)
    folds = assign_folds(np.tile(labels, 4), keys * 4).reshape(4, 30)
    assert (folds == folds[0]).all()
    assert set(folds[0]) == set(range(5))


def test_the_only_image_of_a_class_is_never_held_out() -> None:
    keys = keys_for(8)
    folds = assign_folds(np.array([0, 0, 0, 0, 1, 2, 1, 2]), [*keys[:5], keys[5], keys[4], keys[6]])
    assert (folds[[4, 6]] == -1).all()  # two rows, but of one image
    assert (np.delete(folds, [4, 6]) >= 0).all()
    rows = np.random.default_rng(1).normal(size=(8, 3)) ** 2
    head = fit_head(rows, np.array([0, 0, 0, 0, 1, 2, 2, 3]), keys, classes=4)
    assert (head.never_held_out, head.held_out_count) == (2, 6)


@hypothesis_settings(max_examples=60)
@given(images=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=60), shuffle=st.randoms())
def test_folds_are_even_keep_every_class_in_training_and_ignore_row_order(
    images: list[tuple[int, int]], shuffle: Any
) -> None:
    labels = np.array([label for label, _ in images])
    keys = [hashlib.sha256(f"{label} {image}".encode()).digest() for label, image in images]
    folds = assign_folds(labels, keys)
    by_class: dict[int, dict[bytes, int]] = {}
    for label, key, fold in zip(labels.tolist(), keys, folds.tolist(), strict=True):
        by_class.setdefault(label, {})[key] = fold
    large = [fold for dealt in by_class.values() if len(dealt) >= 5 for fold in dealt.values()]
    sizes = np.bincount(large, minlength=5)
    assert sizes.max() - sizes.min() <= 1
    for dealt in by_class.values():  # the first fold has one of each small class
        if 1 < len(dealt) < 5:
            assert sorted(dealt.values()) == list(range(len(dealt)))
    for fold in set(folds.tolist()) - {-1}:
        assert set(labels[folds != fold]) == set(labels)
    for label in set(labels):
        distinct = {key for key, other in zip(keys, labels, strict=True) if other == label}
        assert (len(distinct) == 1) == (folds[labels == label] == -1).all()
    order = list(range(len(images)))
    shuffle.shuffle(order)
    np.testing.assert_array_equal(assign_folds(labels[order], [keys[row] for row in order]), folds[order])


def test_two_images_of_each_class_are_compared_with_one_of_each() -> None:
    """Not with two of most classes, to which they would be taken: cross-validation would say far too little."""
    bottlenecks, labels, keys = draw([2] * 12, noise=1.2)
    head = fit_head(bottlenecks, labels, keys, classes=12)
    assert {point.folds for point in head.path} == {2}
    fresh, truth, _ = draw([40] * 12, noise=1.2, seed=1)
    right = (head.logits(fresh).argmax(axis=1) == truth).mean()
    assert max(point.accuracy for point in head.path) > right - 0.1


@pytest.mark.parametrize(
    ("counts", "noise"), [((60, 60), 1.5), ((40, 40, 40), 0.6), ((120, 30, 10), 3.0)], ids=["two", "easy", "hard"]
)
def test_the_walk_finds_what_a_full_grid_finds(counts: Sequence[int], noise: float) -> None:
    """It is the most probable strength: that of the held-out images' likelihood times how it is spread beforehand."""
    bottlenecks, labels, keys = draw(counts, noise=noise)
    walked = fit_head(bottlenecks, labels, keys, classes=len(counts))
    grid = [fit_head(bottlenecks, labels, keys, classes=len(counts), l2=l2).path[0] for l2 in GRID]
    best = min(grid, key=lambda point: sum(counts) * point.log_loss + 0.5 * np.log10(point.l2 / 0.1) ** 2)
    assert walked.l2 == best.l2
    assert len(walked.path) < len(GRID)
    at = {point.l2: point for point in grid}
    for point in walked.path:
        assert point.log_loss == pytest.approx(at[point.l2].log_loss, abs=3e-3)
    assert [point.l2 for point in walked.path] == sorted((point.l2 for point in walked.path), reverse=True)


def test_cross_validation_scores_each_fold_by_a_fit_on_the_others() -> None:
    bottlenecks, labels, keys = draw((50, 30, 20))
    head = fit_head(bottlenecks, labels, keys, classes=3, l2=0.1)
    roots = np.copysign(np.sqrt(np.abs(bottlenecks)), bottlenecks)
    x = roots - roots.mean(axis=0)
    x /= np.sqrt(np.mean(x**2))
    folds, held_out = assign_folds(labels, keys), np.empty((100, 3))
    for fold in range(5):
        train = folds != fold
        reference = LogisticRegression(C=1 / (0.1 * train.sum()), tol=1e-9, max_iter=10_000).fit(
            x[train], labels[train]
        )
        held_out[~train] = reference.predict_proba(x[~train])
    [point] = head.path
    assert point.log_loss == pytest.approx(-np.mean(np.log(held_out[np.arange(100), labels])), abs=3e-3)
    assert point.accuracy == pytest.approx(np.mean(held_out.argmax(axis=1) == labels), abs=0.011)
    np.testing.assert_array_equal(head.held_out, np.arange(100))
    assert np.mean(head.held_out_classes == held_out.argmax(axis=1)) >= 0.99
    assert np.mean(head.held_out_classes == labels) == point.accuracy


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("counts", [(70, 30), (80, 15, 5)], ids=["binary", "three"])
def test_the_final_fit_is_scikit_learns_on_all_rows(counts: Sequence[int], balanced: bool) -> None:
    bottlenecks, labels, keys = draw(counts)
    head = fit_head(bottlenecks, labels, keys, classes=len(counts), balanced=balanced, l2=0.05)
    roots = np.copysign(np.sqrt(np.abs(bottlenecks)), bottlenecks)
    scale = np.sqrt(np.mean((roots - roots.mean(axis=0)) ** 2))
    reference = LogisticRegression(
        C=(2 if len(counts) == 2 else 1) / (0.05 * len(labels)),
        tol=1e-9,
        max_iter=10_000,
        class_weight="balanced" if balanced else None,
    ).fit((roots - roots.mean(axis=0)) / scale, labels)
    expected = reference.predict_proba((roots - roots.mean(axis=0)) / scale)
    actual = probabilities(head.logits(bottlenecks) * head.temperature)
    np.testing.assert_allclose(actual, expected, atol=3e-3)
    assert head.gap <= 1e-6


def test_logits_are_signed_roots_times_weights_plus_biases() -> None:
    bottlenecks, labels, keys = draw((30, 30))
    head = fit_head(bottlenecks, labels, keys, classes=2)
    expected = signed_sqrt(bottlenecks).astype(float) @ head.weights.astype(float) + head.biases
    np.testing.assert_allclose(head.logits(bottlenecks), expected, atol=1e-4)
    assert head.weights.dtype == head.biases.dtype == np.float32


def test_only_plain_images_are_scored_and_their_views_never_train_their_own_fold() -> None:
    bottlenecks, labels, keys = draw((40, 40))
    rng = np.random.Generator(np.random.PCG64(7))
    views = bottlenecks + 0.01 * rng.normal(size=bottlenecks.shape)
    plain = np.repeat([True, False], 80)
    head = fit_head(np.concatenate([bottlenecks, views]), np.tile(labels, 2), keys * 2, classes=2, plain=plain, l2=1e-3)
    np.testing.assert_array_equal(head.held_out, np.arange(80))
    alone = fit_head(bottlenecks, labels, keys, classes=2, l2=1e-3)
    # Near-copies that leaked into training would bring the held-out loss down to that of the training images.
    assert head.path[0].log_loss > 0.8 * alone.path[0].log_loss
    assert head.path[0].log_loss > 3 * log_loss(head.logits(bottlenecks) * head.temperature, labels)


def test_images_that_are_all_told_apart_say_nothing_of_the_temperature() -> None:
    labels = np.arange(100) % 3
    logits = np.eye(3)[labels]
    assert fit_temperature(logits, labels) == 1
    labels[::7] = (labels[::7] + 1) % 3
    assert fit_temperature(4 * logits, labels) > 1


def test_the_temperature_is_the_best_one_and_lowers_the_log_loss() -> None:
    rng = np.random.Generator(np.random.PCG64(5))
    true_logits = 2 * rng.normal(size=(2000, 4))
    labels = (true_logits + rng.gumbel(size=true_logits.shape)).argmax(axis=1)
    for factor in (0.5, 1.0, 2.5):  # too timid, right, too bold
        logits = (true_logits * factor).astype(np.float32)
        temperature = fit_temperature(logits, labels)
        best = minimize_scalar(lambda t, z=logits: log_loss(z / t, labels), bounds=(0.25, 4), method="bounded")
        assert temperature == pytest.approx(best.x, rel=5e-3)
        assert temperature == pytest.approx(factor, rel=0.1)
        assert log_loss(logits / temperature, labels) <= log_loss(logits, labels) + 1e-7


def test_the_temperature_stays_within_bounds_and_is_left_alone_for_few_images() -> None:
    labels = np.zeros(60, int)
    sure = np.tile(np.array([[1.0, 0.0]], np.float32), (60, 1))
    assert fit_temperature(sure, labels) == 1
    assert fit_temperature(sure, 1 - labels) == pytest.approx(16, abs=0.01)
    assert fit_temperature(sure[:49], labels[:49]) == 1


def test_one_wrong_image_hardly_makes_a_head_bolder_whose_strength_was_chosen() -> None:
    labels = np.arange(60) % 3
    logits = (3 * np.eye(3)[labels]).astype(np.float32)
    labels[0] = 1
    free, near_one = fit_temperature(logits, labels), fit_temperature(logits, labels, spread=0.2)
    assert free < 0.7
    assert free + 0.1 < near_one < 1
    many = np.tile(logits, (100, 1)), np.tile(labels, 100)
    assert fit_temperature(*many, spread=0.2) == pytest.approx(free, rel=0.02)


def test_calibration_helps_on_images_never_seen() -> None:
    bottlenecks, labels, keys = draw((60, 60, 60), noise=1.0)
    fresh, truth, _ = draw((300, 300, 300), noise=1.0, seed=1)
    head = fit_head(bottlenecks, labels, keys, classes=3, l2=1e-4)  # overfits, so its raw probabilities are too bold
    assert head.temperature > 1.5
    assert log_loss(head.logits(fresh), truth) < log_loss(head.logits(fresh) * head.temperature, truth)


def test_two_runs_agree_to_the_bit() -> None:
    bottlenecks, labels, keys = draw((50, 40, 30), d=64)
    one, two = (fit_head(bottlenecks, labels, keys, classes=3) for _ in range(2))
    np.testing.assert_array_equal(one.weights, two.weights)
    np.testing.assert_array_equal(one.biases, two.biases)
    assert (one.path, one.temperature, one.l2) == (two.path, two.temperature, two.l2)


def test_row_order_does_not_change_what_is_chosen() -> None:
    bottlenecks, labels, keys = draw((50, 40, 30))
    order = np.random.Generator(np.random.PCG64(6)).permutation(len(labels))
    one = fit_head(bottlenecks, labels, keys, classes=3)
    two = fit_head(bottlenecks[order], labels[order], [keys[row] for row in order], classes=3)
    assert one.l2 == two.l2
    np.testing.assert_allclose(
        probabilities(one.logits(bottlenecks)), probabilities(two.logits(bottlenecks)), atol=5e-3
    )
    np.testing.assert_array_equal(one.held_out_classes[order], two.held_out_classes)


def test_the_size_of_the_bottlenecks_does_not_matter() -> None:
    bottlenecks, labels, keys = draw((50, 50))
    small, large = (fit_head(bottlenecks * size, labels, keys, classes=2) for size in (1e-3, 1e3))
    assert small.l2 == large.l2
    np.testing.assert_allclose(small.logits(bottlenecks * 1e-3), large.logits(bottlenecks * 1e3), atol=0.02)


def test_two_images_are_enough_though_there_is_nothing_to_cross_validate() -> None:
    head = fit_head(np.array([[1.0, 0], [0, 1.0]]), np.array([0, 1]), keys_for(2), classes=2)
    assert head.path == ()
    assert head.held_out.size == head.held_out_classes.size == 0
    assert head.temperature == 1
    assert head.logits(np.array([[1.0, 0], [0, 1.0]])).argmax(axis=1).tolist() == [0, 1]


def test_four_images() -> None:
    bottlenecks = np.array([[1.0, 0, 0.1], [0.9, 0.1, 0], [0, 1.0, 0.2], [0.1, 1.0, 0]])
    head = fit_head(bottlenecks, np.array([0, 0, 1, 1]), keys_for(4), classes=2)
    assert head.held_out.tolist() == [0, 1, 2, 3]
    assert head.logits(bottlenecks).argmax(axis=1).tolist() == [0, 0, 1, 1]


def test_a_class_with_one_image_is_learned_but_not_scored() -> None:
    bottlenecks, labels, keys = draw((30, 30, 1), noise=0.3)
    head = fit_head(bottlenecks, labels, keys, classes=3)
    rare = int(np.flatnonzero(labels == 2)[0])
    assert rare not in head.held_out
    assert len(head.held_out) == 60
    assert head.logits(bottlenecks)[rare].argmax() == 2


def test_separable_classes_get_a_weak_strength_and_finite_weights() -> None:
    bottlenecks, labels, keys = draw((30, 30, 30), noise=0.01)
    head = fit_head(bottlenecks, labels, keys, classes=3)
    assert np.isfinite(head.weights).all()
    assert np.isfinite(head.biases).all()
    assert (head.held_out_classes == labels).all()


def test_few_images_that_are_all_told_apart_promise_no_more_than_they_can_know() -> None:
    """They know no more than the rule of succession says: of n that were all right, one in n + 2 may be wrong."""
    promised, right = [], []
    for seed in range(30):
        bottlenecks, labels, keys = draw((5, 5, 5), d=40, noise=2.0, seed=seed)
        head = fit_head(bottlenecks, labels, keys, classes=3)
        if head.held_out_right < 15:
            continue
        assert head.l2 > 1e-3
        fresh, truth, _ = draw((60, 60, 60), d=40, noise=2.0, seed=100 + seed)
        likely = probabilities(head.logits(fresh))
        promised.append(likely.max(axis=1).mean())
        right.append((likely.argmax(axis=1) == truth).mean())
    assert len(promised) >= 4
    assert np.mean(promised) <= np.mean(right) + 1 / 17


def test_few_images_with_several_labels_do_not_run_to_the_weakest_strength_either() -> None:
    rng = np.random.Generator(np.random.PCG64(12))
    marks = np.array([[number & 1, number >> 1 & 1] for number in range(12)])
    rows = marks @ (4 * rng.normal(size=(2, 12))) + 0.1 * rng.normal(size=(12, 12))
    head = fit_head(rows, marks, keys_for(12), classes=2)
    assert head.held_out_right == head.held_out_count == 12
    assert 1e-4 < head.l2 < 0.1


def test_what_is_reported_is_the_log_loss_of_the_held_out_images() -> None:
    bottlenecks, labels, keys = draw((6, 6), noise=0.6)
    head = fit_head(bottlenecks, labels, keys, classes=2)
    [chosen] = [point.log_loss for point in head.path if point.l2 == head.l2]
    assert head.temperature == 1
    assert chosen == pytest.approx(log_loss(head.held_out_logits, labels[head.held_out]), abs=1e-6)
    assert chosen > min(point.log_loss for point in head.path)  # so few images do not outweigh what is usual


def test_what_is_usual_does_not_count_beside_many_images() -> None:
    bottlenecks, labels, keys = draw((400, 400), noise=0.6)
    head = fit_head(bottlenecks, labels, keys, classes=2)
    best = min(head.path, key=lambda point: point.log_loss)
    [chosen] = [point for point in head.path if point.l2 == head.l2]
    assert chosen.log_loss - best.log_loss < 1e-3


def test_labels_that_bear_no_relation_to_the_images_get_a_strong_strength() -> None:
    rng = np.random.Generator(np.random.PCG64(8))
    head = fit_head(rng.normal(size=(150, 30)), np.arange(150) % 3, keys_for(150), classes=3)
    assert head.l2 > 1
    assert head.path[0].log_loss < np.log(3) + 0.05


def test_hundreds_of_classes_of_two_images() -> None:
    rng = np.random.Generator(np.random.PCG64(9))
    labels = np.tile(np.arange(300), 2)
    bottlenecks = rng.normal(size=(300, 16))[labels] + 0.05 * rng.normal(size=(600, 16))
    head = fit_head(bottlenecks, labels, keys_for(600), classes=300, l2=0.0015)
    assert head.weights.shape == (16, 300)
    assert np.mean(head.held_out_classes == labels[head.held_out]) > 0.5


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 0, 2, 2]], ids=["one-class", "an-empty-class"])
def test_too_few_classes_are_refused(labels: list[int]) -> None:
    bottlenecks, _, keys = draw((2, 2))
    with pytest.raises(HeadError, match="at least 2 classes with at least 1 image each; got counts"):
        fit_head(bottlenecks, np.array(labels), keys, classes=max(labels) + 1)


@pytest.mark.parametrize("l2", [-1.0, 0.0, np.nan, np.inf])
def test_a_strength_that_is_no_positive_number_is_refused(l2: float) -> None:
    bottlenecks, labels, keys = draw((5, 5))
    with pytest.raises(HeadError, match="must be a positive number; got"):
        fit_head(bottlenecks, labels, keys, classes=2, l2=l2)


def test_damaged_and_blank_bottlenecks_are_refused() -> None:
    bottlenecks, labels, keys = draw((5, 5))
    bottlenecks[4, 4] = np.nan
    with pytest.raises(HeadError, match="not finite"):
        fit_head(bottlenecks, labels, keys, classes=2)
    with pytest.raises(HeadError, match="are they blank"):
        fit_head(np.zeros((10, 4), np.float16), labels, keys, classes=2)


def test_threads_change_nothing_where_there_is_little_to_do() -> None:
    bottlenecks, labels, keys = draw((40, 50, 60), d=64)
    fits = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            fits.append(fit_head(bottlenecks, labels, keys, classes=3))
    np.testing.assert_array_equal(fits[0].held_out_logits, fits[1].held_out_logits)
    np.testing.assert_array_equal(fits[0].weights, fits[1].weights)
