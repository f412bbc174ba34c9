"""The head reaches its optimum: thousands of small problems, hostile ones among them, and scikit-learn beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from quickstudy.backbones.backbone import Backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import HeadError
from quickstudy.learning.features import Features, prepare_features
from quickstudy.learning.selection import Head, fit_head
from quickstudy.learning.softmax import fit_softmax
from quickstudy.learning.spaces import in_row_space
from quickstudy.learning.strengths import assign_folds

Array = NDArray[np.floating]
Labels = NDArray[np.intp]

# What the precision of small problems, 1e-6, allows for: a hundredth of it, in nats.
LARGEST_GAP = 1e-8
HOSTILE = (
    "separable",
    "duplicated",
    "contradictory",
    "constant",
    "huge",
    "tiny",
    "halves",
    "outlier",
    "sparse",
    "line",
)


def clouds(rng: np.random.Generator, labels: Labels, classes: int) -> Array:
    """Bottlenecks around a centre a class, more or less far apart, half of the time cut off at 0 as a network's are."""
    width = int(rng.choice([1, 3, 20, 200, 1280]))
    centres = rng.normal(size=(classes, width)) * rng.choice([0.1, 1, 3])
    values = centres[labels] + rng.normal(size=(len(labels), width))
    return np.maximum(values, 0) if rng.random() < 0.5 else values


def made_hostile(kind: str, rng: np.random.Generator, values: Array, labels: Labels) -> Array:
    n, width = values.shape
    if kind == "separable":
        values = values + 1000 * labels[:, None]
    elif kind == "duplicated":
        values = values[rng.integers(0, max(1, n // 3), n)]
    elif kind == "contradictory":  # the same rows under every label
        values = np.tile(values[: max(2, n // 2)], (3, 1))[:n]
    elif kind == "constant":
        values[:, ::2] = 7.5
    elif kind == "huge":
        values = values * 10.0 ** rng.uniform(10, 37)
    elif kind == "tiny":
        values = values * 1e-30
    elif kind == "halves":  # float16's extremes
        values = rng.choice([65504.0, -65504.0, 6e-8, 0.0, 1.0], size=values.shape)
    elif kind == "outlier":
        values[rng.integers(n)] *= 1e8
    elif kind == "sparse":
        values = (rng.random(values.shape) < 0.02) * 1.0
    elif kind == "line":
        values = values[:, :1] * rng.normal(size=(1, width))
    values = values.astype(np.float32)
    values[0, 0] += np.abs(values).max() + np.float32(1e-30)  # not all rows are equal
    return values


def gradient_by_the_textbook(
    features: Features, labels: Labels, sample_weights: Array, weights: Array, biases: Array, l2: float
) -> tuple[Array, Array]:
    """The gradient of the objective by weights (d×K) and biases (K)."""
    x = features.values.astype(float)
    logits = x @ weights + biases
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    residual = sample_weights[:, None] * (p - np.eye(weights.shape[1])[labels])
    return x.T @ residual + l2 * weights, residual.sum(axis=0)


def gap_of_problem(seed: int, real: tuple[Array, Labels] | None = None) -> float:
    """Draw a problem, fit it from nothing or a wild start, and prove how near to the optimum it is."""
    rng = np.random.Generator(np.random.PCG64(seed))
    classes, images = int(rng.integers(2, 11)), int(rng.integers(2, 61))
    counts = np.maximum(1, (images * rng.uniform(0.3, 1, classes)).astype(int)) if seed % 2 else [images] * classes
    labels = np.repeat(np.arange(classes), counts)
    kind = ("real", "clouds", *HOSTILE)[seed % (len(HOSTILE) + 2)]
    if kind == "real" and real is not None:
        chosen = rng.permutation(10)[:classes]
        rows = [rng.choice(np.flatnonzero(real[1] == name), n) for name, n in zip(chosen, counts, strict=True)]
        values = real[0][np.concatenate(rows)]
    else:
        values = made_hostile(kind, rng, clouds(rng, labels, classes), labels)
    sample_weights = rng.random(len(labels)) if rng.random() < 0.3 else np.ones(len(labels))
    sample_weights /= sample_weights.sum()
    features = prepare_features(values)
    if 2 * len(labels) < values.shape[1]:
        features, _ = in_row_space(features)
    shape, start = (1, features.values.shape[1], classes), None
    if rng.random() < 0.5:
        size = 10 ** rng.uniform(-2, 2)
        start = size * rng.normal(size=shape), size * rng.normal(size=(1, classes))
    l2 = 10 ** rng.uniform(-6, 2)
    fit = fit_softmax(features, labels, sample_weights[:, None], classes=classes, l2=l2, precision=1e-4, start=start)
    by_weights, by_biases = gradient_by_the_textbook(
        features, labels, sample_weights, fit.weights[0], fit.biases[0], l2
    )
    assert np.abs(by_biases).max() < 1e-9  # settled, on which the bound rests
    return float(np.sum(by_weights**2)) / (2 * l2)


# Six of each kind, of which three have classes of one size; the slow ones have all of these, too.
@pytest.mark.parametrize("problems", [72, pytest.param(360, marks=pytest.mark.slow)])
def test_small_problems_reach_the_stated_gap(problems: int) -> None:
    gaps = [gap_of_problem(seed) for seed in range(problems)]
    print(f"largest gap of {len(gaps)} problems: {max(gaps):.1e} nats")
    assert max(gaps) <= 1.01 * LARGEST_GAP


def clothing_of(
    test_data: Path, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory, photos: int
) -> tuple[Array, Labels]:
    """Bottlenecks of so many photos of each of the ten kinds of clothing, and their class numbers."""
    folders = sorted((test_data / "clothing" / "train").iterdir())
    paths = [path for folder in folders for path in sorted(folder.iterdir())[:photos]]
    extraction = extract(paths, backbone, Store(tmp_path_factory.mktemp("clothing")))
    digests = [digest for digest in extraction.digests if digest is not None]
    assert len(digests) == len(paths)
    return extraction.gather(digests), np.repeat(np.arange(len(folders)), photos)


@pytest.fixture(scope="session")
def clothing(test_data: Path, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> tuple[Array, Labels]:
    """Clothing of each class, as many photos as the largest of the subsets has."""
    return clothing_of(test_data, backbone, tmp_path_factory, 24)


@pytest.fixture(scope="session")
def much_clothing(
    test_data: Path, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Array, Labels]:
    return clothing_of(test_data, backbone, tmp_path_factory, 60)


@pytest.mark.slow
def test_ten_thousand_small_problems_reach_the_stated_gap(much_clothing: tuple[Array, Labels]) -> None:
    gaps = [gap_of_problem(seed, much_clothing) for seed in range(10_000)]
    print(f"largest gap of {len(gaps)} problems: {max(gaps):.1e} nats")
    assert max(gaps) <= 1.01 * LARGEST_GAP


@pytest.mark.heavy
def test_large_problems_in_single_precision_are_as_near_as_asked_for(much_clothing: tuple[Array, Labels]) -> None:
    """Folds of 600 photos at every strength, against fits to a thousandth of the precision."""
    features, labels = prepare_features(much_clothing[0]), much_clothing[1]
    folds = np.arange(600) % 5
    training = (folds[:, None] != np.arange(5)) / 480.0
    neighbour = None
    for l2 in 10.0 ** np.arange(1, -6.5, -0.5):
        fits = [
            fit_softmax(features, labels, training, classes=10, l2=l2, precision=precision, start=neighbour)
            for precision in (1e-3, 1e-6)
        ]
        neighbour = fits[0].weights, fits[0].biases
        rough, fine = (
            np.exp(fit.logits - np.logaddexp.reduce(fit.logits.astype(float), axis=2)[:, :, None]) for fit in fits
        )
        assert np.sqrt(np.square(rough - fine).sum(axis=2).mean(axis=0)).max() <= 1e-3
        held_out = [p[np.arange(600), folds, labels] for p in (rough, fine)]
        assert np.mean(np.log(held_out[0])) == pytest.approx(np.mean(np.log(held_out[1])), abs=1e-3)
        assert fits[0].gap <= 1e-5


def cross_validated_by_scikit_learn(values: Array, labels: Labels, keys: list[bytes], l2: float) -> Array:
    """Log probabilities (n×K) of each row by the fit of the other folds, the features prepared as the head does it."""
    u, sizes, _ = np.linalg.svd(prepare_features(values).values.astype(float), full_matrices=False)
    x, classes = u * sizes, int(labels.max()) + 1  # rotated into the rows' own space, which changes no optimum
    folds, held_out = assign_folds(labels, keys), np.zeros((len(labels), int(labels.max()) + 1))
    for fold in range(5):
        train = folds != fold
        # Two classes have one column of weights there, v instead of ±v/2, of half the norm. Not its default method:
        # L-BFGS stops far from the optimum where the penalty is weak, and at 10^-8 so does this one below 0.001.
        strength, tolerance = (2 if classes == 2 else 1) / (l2 * train.sum()), 1e-8 if l2 >= 0.001 else 1e-12
        fit = LogisticRegression(C=strength, tol=tolerance, max_iter=10_000, solver="newton-cg")
        fit.fit(x[train], labels[train])
        held_out[~train] = fit.predict_log_proba(x[~train])
    return held_out


def subsets() -> Iterator[tuple[int, int, float]]:
    for classes, images in ((2, 12), (3, 20), (3, 24), (10, 20)):
        for l2 in (1.0, 0.1, 0.0032, 0.001, 0.0001):
            yield classes, images, l2


@pytest.mark.parametrize(("classes", "images", "l2"), list(subsets()))
def test_held_out_figures_are_those_of_the_optimum(
    clothing: tuple[Array, Labels], classes: int, images: int, l2: float
) -> None:
    rows = np.concatenate([np.flatnonzero(clothing[1] == number)[:images] for number in range(classes)])
    values, labels = clothing[0][rows], clothing[1][rows]
    keys = [bytes([*divmod(row, 256)]) for row in rows.tolist()]
    head = fit_head(values, labels, keys, classes=classes, l2=l2)
    expected = cross_validated_by_scikit_learn(values, labels, keys, l2)
    raw = head.held_out_logits.astype(float) * head.temperature
    ours = raw - np.logaddexp.reduce(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(ours), np.exp(expected), atol=2e-4)
    [point] = head.path
    assert point.log_loss == pytest.approx(-np.mean(expected[np.arange(len(labels)), labels]), abs=2e-4)
    assert point.accuracy == np.mean(expected.argmax(axis=1) == labels)


def largest_logit(head: Head, values: Array) -> float:
    logits = head.logits(values) * head.temperature
    return float(np.abs(logits - logits.mean(axis=1, keepdims=True)).max())


def test_a_warm_start_of_little_curvature_does_not_diverge(test_data: Path, backbone: Backbone, tmp_path: Path) -> None:
    """Three times 24 photos of which an earlier version made a head with logits up to 2,550."""
    kinds = ("dress", "hat", "longsleeve")
    paths = [p for kind in kinds for p in sorted((test_data / "clothing" / "train" / kind).iterdir())[:24]]
    extraction = extract(paths, backbone, Store(tmp_path / "store"))
    digests = [digest for digest in extraction.digests if digest is not None]
    labels = np.repeat(np.arange(3), 24)
    head = fit_head(extraction.gather(digests), labels, digests, classes=3)
    assert head.gap <= LARGEST_GAP
    assert largest_logit(head, extraction.gather(digests)) < 15
    expected = cross_validated_by_scikit_learn(extraction.gather(digests), labels, digests, head.l2)
    chosen = next(point.log_loss for point in head.path if point.l2 == head.l2)
    assert chosen == pytest.approx(-np.mean(expected[np.arange(72), labels]), abs=2e-4)


@pytest.mark.parametrize("images", [2, 30])
def test_many_classes_of_few_images_match_scikit_learn(images: int) -> None:
    rng = np.random.Generator(np.random.PCG64(5))
    labels = np.repeat(np.arange(40), images)
    values = rng.normal(size=(40, 64))[labels] + 0.7 * rng.normal(size=(len(labels), 64))
    head = fit_head(values, labels, [bytes([*divmod(row, 256)]) for row in range(len(labels))], classes=40, l2=0.001)
    x = prepare_features(values).values.astype(float)
    reference = LogisticRegression(C=1 / (0.001 * len(labels)), tol=1e-8, max_iter=10_000, solver="newton-cg")
    logits = head.logits(values).astype(float) * head.temperature
    np.testing.assert_allclose(
        logits - np.logaddexp.reduce(logits, axis=1, keepdims=True),
        reference.fit(x, labels).predict_log_proba(x),
        atol=1e-3,
    )


def test_a_strength_too_weak_for_any_number_is_refused() -> None:
    rng = np.random.Generator(np.random.PCG64(6))
    values, labels = rng.normal(size=(40, 8)), np.repeat([0, 1], 20)
    with pytest.raises(HeadError) as error:
        fit_head(values + 10 * labels[:, None], labels, [bytes([row]) for row in range(40)], classes=2, l2=1e-300)
    assert "1e-300" in str(error.value)
