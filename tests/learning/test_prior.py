"""What the names of classes say, mixed into a head: where it helps, where it does not, and what is said of it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quickstudy.learning.features import logits_of_names, signed_sqrt
from quickstudy.learning.prior import FEWEST, mix_names
from quickstudy.learning.selection import Head, fit_head, fit_temperature
from quickstudy.learning.strengths import log_losses

Array = NDArray[Any]
CLASSES, WIDTH = 4, 24


def draw(images: int, *, seed: int, noise: float = 2.5) -> tuple[Array, Array]:
    """Images of classes that overlap, so many a class, around centres that are the same for every seed."""
    rng = np.random.Generator(np.random.PCG64(seed))
    labels = np.repeat(np.arange(CLASSES), images)
    return (centres()[labels] + noise * rng.normal(size=(len(labels), WIDTH))).astype(np.float32), labels


def centres() -> Array:
    return np.random.Generator(np.random.PCG64(99)).normal(size=(CLASSES, WIDTH))


def true_names() -> Array:
    """What names would say that lie near the centres."""
    found = centres() + 0.3 * np.random.Generator(np.random.PCG64(5)).normal(size=(CLASSES, WIDTH))
    return (20 * found / np.linalg.norm(found, axis=1, keepdims=True)).T.astype(np.float32)


def random_names(seed: int) -> Array:
    found = np.random.Generator(np.random.PCG64(seed)).normal(size=(CLASSES, WIDTH))
    return (20 * found / np.linalg.norm(found, axis=1, keepdims=True)).T.astype(np.float32)


def fitted(images: int, *, seed: int) -> tuple[Head, Array, Array]:
    """A head, and features and class numbers of its held-out rows."""
    features, labels = draw(images, seed=seed)
    keys = [hashlib.sha256(f"{seed} {number}".encode()).digest() for number in range(len(labels))]
    head = fit_head(features, labels, keys, classes=CLASSES)
    return head, features[head.held_out], labels[head.held_out]


def fresh_loss(head: Head, seed: int) -> float:
    features, labels = draw(200, seed=1000 + seed)
    return float(log_losses(head.logits(features), labels).mean())


@pytest.mark.parametrize("images", [3, 4, 8, 16])
def test_names_that_fit_help_where_images_are_few(images: int) -> None:
    gains = []
    for seed in range(5):
        head, features, truth = fitted(images, seed=seed)
        mixed, compared = mix_names(head, true_names(), features, truth)
        assert compared is not None
        gains.append(fresh_loss(head, seed) - fresh_loss(mixed, seed))
    assert min(gains) >= 0
    assert np.mean(gains) > 0.1


@pytest.mark.parametrize("images", [3, 8, 40])
def test_names_that_say_nothing_do_no_harm(images: int) -> None:
    harm = []
    for seed in range(20):
        head, features, truth = fitted(images, seed=seed)
        mixed, _ = mix_names(head, random_names(seed), features, truth)
        harm.append(fresh_loss(mixed, seed) - fresh_loss(head, seed))
    assert np.mean(harm) < 0.02
    assert np.median(harm) == 0


def test_names_do_not_count_for_making_a_head_less_bold() -> None:
    """Names that say the same of every class only make logits smaller, which is no reason to believe them."""
    for seed in range(5):
        head, features, truth = fitted(6, seed=seed)
        same = np.repeat(true_names()[:, :1], CLASSES, axis=1)
        mixed, compared = mix_names(head, same, features, truth)
        assert (mixed, compared is not None and compared.share) == (head, 0.0)


def test_a_mixed_head_says_what_the_parts_say_together() -> None:
    head, features, truth = fitted(20, seed=0)
    mixed, compared = mix_names(head, true_names(), features, truth)
    assert compared is not None
    share, temperature = compared.share, compared.temperature
    assert 0 < share <= 1
    unseen, _ = draw(5, seed=7)
    said = unseen / np.linalg.norm(unseen, axis=1, keepdims=True) @ true_names()
    expected = ((1 - share) * (signed_sqrt(unseen) @ head.weights + head.biases) + share * said) / temperature
    np.testing.assert_allclose(mixed.logits(unseen), expected, rtol=1e-4, atol=1e-4)
    held_out = (1 - share) * head.held_out_logits + share * logits_of_names(features, true_names())
    assert temperature == pytest.approx(fit_temperature(held_out, truth))
    np.testing.assert_allclose(mixed.held_out_logits, held_out / temperature, rtol=1e-4, atol=1e-4)
    assert mixed.held_out_right == (held_out.argmax(axis=1) == truth).sum()
    assert mixed.temperature == pytest.approx(head.temperature * temperature)
    told = compared.to_dict()
    assert told["log_loss_with"] == pytest.approx(log_losses(mixed.held_out_logits, truth).mean(), rel=1e-4)
    assert told["log_loss_with"] <= told["log_loss_names"]


def test_too_few_images_leave_nothing_to_choose_by() -> None:
    head, features, truth = fitted(2, seed=0)
    assert len(truth) < FEWEST
    mixed, compared = mix_names(head, true_names(), features, truth)
    assert mixed is head
    assert compared is None


def test_half_precision_has_no_overflow() -> None:
    features = np.full((1, WIDTH), 60_000, np.float16)
    names = np.ones((WIDTH, CLASSES), np.float32)
    np.testing.assert_allclose(logits_of_names(features, names), WIDTH**0.5, rtol=1e-3)
