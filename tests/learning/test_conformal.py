"""Prediction sets: by hand, how often they hold the right class, for rare classes too, and kept in JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from quickstudy.errors import OptionError
from quickstudy.learning.calibration import probabilities_of
from quickstudy.learning.conformal import FEWEST, Sets, fit_sets

CLASSES = 5
SHARES = np.array([0.4, 0.3, 0.2, 0.08, 0.02])
"""The last class is rare: of 1,500 images, 30."""


def draw(count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Logits of a classifier that is often wrong, much too sure, and worse on the rare class."""
    draws = np.random.Generator(np.random.PCG64(seed))
    labels = draws.choice(CLASSES, count, p=SHARES)
    logits = draws.normal(0, 2.0, (count, CLASSES))
    logits[np.arange(count), labels] += np.array([4, 4, 4, 3, 1.5])[labels]
    return 3 * logits, labels


def test_by_hand() -> None:
    """The second least of 39 probabilities is the threshold at 95 %, since 5 % of 39 + 1 are two."""
    right = np.arange(1, 40) / 100
    logits = np.log(np.column_stack([right, 1 - right]))
    sets = fit_sets(logits, np.zeros(39, np.intp), classes=2, by="cross-validation")
    assert sets is not None
    asked = np.array([[0.021, 0.979], [0.019, 0.981], [0.5, 0.5], [0.979, 0.021]])
    expected = [[True, True], [False, True], [True, True], [True, True]]
    assert sets.of(asked, 0.95).tolist() == expected
    # Of the second class there is no image to compare with: by class, it belongs to all sets.
    assert sets.of(asked, 0.95, by_class=True).tolist() == expected
    assert sets.of(np.array([[1.0, 0.0]]), 0.95, by_class=True).tolist() == [[True, True]]
    assert sets.of(np.array([[1.0, 0.0]]), 0.95).tolist() == [[True, False]]
    # For 98 % of 40 none may be missed, so all classes belong to all sets.
    assert sets.of(np.array([[1.0, 0.0]]), 0.98).tolist() == [[True, True]]


@pytest.mark.parametrize(("level", "by_class"), [(0.8, False), (0.95, False), (0.9, True)])
def test_holds_the_right_class_as_often_as_promised(level: float, by_class: bool) -> None:
    """200 draws, each with images of its own to compare with: within three standard errors, and not far above."""
    covered, sizes, rare = [], [], []
    for seed in range(200):
        logits, labels = draw(1500, 2 * seed)
        sets = fit_sets(logits, labels, classes=CLASSES, by="cross-validation")
        assert sets is not None
        new, truth = draw(1000, 2 * seed + 1)
        found = sets.of(probabilities_of(new), level, by_class=by_class)
        inside = found[np.arange(len(truth)), truth]
        covered.append(inside.mean())
        sizes.append(found.sum(axis=1).mean())
        rare += inside[truth == CLASSES - 1].tolist()
    error = 3 * np.std(covered) / len(covered) ** 0.5
    assert level - error <= np.mean(covered) <= level + (0.02 if by_class else 0.01)
    assert 1 < np.mean(sizes) < CLASSES
    if by_class:
        assert np.mean(rare) >= level - 3 * (level * (1 - level) / len(rare)) ** 0.5
    else:
        assert np.mean(rare) < level - 0.05  # which is why there is a choice


def test_no_set_is_empty() -> None:
    logits, labels = draw(500, 1)
    sets = fit_sets(logits, labels, classes=CLASSES, by="validation")
    assert sets is not None
    asked = probabilities_of(draw(500, 2)[0])
    for level in (0.01, 0.5):
        found = sets.of(asked, level)
        assert found[np.arange(500), asked.argmax(axis=1)].all()


def test_is_kept_in_json_to_the_same_or_slightly_larger_sets() -> None:
    logits, labels = draw(700, 3)
    sets = fit_sets(logits, labels, classes=CLASSES, by="validation")
    assert sets is not None
    again = Sets.from_dict(json.loads(json.dumps(sets.to_dict())))
    assert (again.by, again.n, len(again.given)) == ("validation", 700, CLASSES)
    asked = probabilities_of(draw(2000, 4)[0])
    before, after = sets.of(asked, 0.95), again.of(asked, 0.95)
    assert (after >= before).all()
    assert after.sum() - before.sum() < 10
    for kept, given in zip(again.given, sets.given, strict=True):
        assert (kept <= given).all()
        np.testing.assert_allclose(kept, given, atol=2e-5)


def test_too_few_images_make_no_sets() -> None:
    logits, labels = draw(FEWEST, 5)
    assert fit_sets(logits, labels, classes=CLASSES, by="validation") is not None
    assert fit_sets(logits[1:], labels[1:], classes=CLASSES, by="validation") is None


def test_very_many_are_a_part_of_them() -> None:
    logits, labels = draw(25_000, 6)
    sets = fit_sets(logits, labels, classes=CLASSES, by="validation")
    assert sets is not None
    assert sets.n == 20_000


@pytest.mark.parametrize("level", [0, 0.0095, 1, -0.5, 95, float("nan")])
def test_an_impossible_level_is_refused(level: float) -> None:
    logits, labels = draw(50, 7)
    sets = fit_sets(logits, labels, classes=CLASSES, by="validation")
    assert sets is not None
    with pytest.raises(OptionError, match="level of sets"):
        sets.of(probabilities_of(logits), level)
