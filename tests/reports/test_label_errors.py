"""Wrong labels: by hand where that can be done, and by planting them."""

from __future__ import annotations

import numpy as np
import pytest
from evidences import make_evidence

from quickstudy.reports.audit import FIRST, LEAST, choose_surprising, find_label_errors, probability_wrong


def noisy(n: int, classes: int, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of classes; labels drawn by them and then made wrong at a rate; which are wrong."""
    draws = np.random.Generator(np.random.PCG64(seed))
    clean = draws.dirichlet(np.full(classes, 0.05), n)
    truth = np.array([draws.choice(classes, p=row) for row in clean])
    wrong = draws.random(n) < rate
    labels = np.where(wrong, (truth + draws.integers(1, classes, n)) % classes, truth)
    return clean.astype(np.float32), labels, wrong


def test_the_probability_is_bayes_rule_at_its_own_rate() -> None:
    probabilities, labels, wrong = noisy(5000, 4, 0.1, 0)
    found = probability_wrong(probabilities, labels)
    rate = found.mean()
    assert rate == pytest.approx(wrong.mean(), abs=0.01)
    for n in range(50):
        label = labels[n]
        believed = float(probabilities[n, label])
        right, mistaken = (1 - rate) * believed, rate / 3 * (1 - believed)
        assert found[n] == pytest.approx(mistaken / (right + mistaken), abs=1e-3)


def test_the_probabilities_are_calibrated() -> None:
    probabilities, labels, wrong = noisy(40_000, 10, 0.05, 1)
    found = probability_wrong(probabilities, labels)
    for low, high in ((0.0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.01)):
        part = (found >= low) & (found < high)
        assert part.sum() > 100
        assert wrong[part].mean() == pytest.approx(found[part].mean(), abs=0.05)


def test_what_is_found_is_ranked_and_says_what_is_more_probable() -> None:
    probabilities = np.full((100, 3), 0.01)
    labels = [("a", "b", "c")[n % 3] for n in range(100)]
    probabilities[np.arange(100), np.arange(100) % 3] = 0.98
    probabilities[7] = (0.97, 0.0004, 0.0296)  # labelled b
    probabilities[8] = (0.3, 0.699, 0.001)  # labelled c
    found = find_label_errors(make_evidence([f"{n}.jpg" for n in range(100)], labels, probabilities=probabilities))
    assert [error.image for error in found] == [7, 8]
    assert found[0].statement == "not having seen it, the classifier takes it for 'a', 97 %"
    assert (found[0].given, found[0].suggested) == ("b", "a")
    assert found[0].probability_given == pytest.approx(0.0004)
    assert found[0].probability_suggested == pytest.approx(0.97)
    assert found[0].score > found[1].score >= LEAST
    assert found[1].suggested == "b"


def test_one_shoe_among_hats_is_named_whatever_is_added_elsewhere() -> None:
    """A label that Bayes' rule alone finds wrong with 8 % at best, and with less for each class more, is found."""
    names = ("hat", "dress", "pants", "shoe")
    for classes in (4, 5, 12):
        labels = [number for number in range(classes) for _ in range(25)]
        probabilities = np.full((len(labels), classes), 0.02 / (classes - 1))
        probabilities[np.arange(len(labels)), labels] = 0.98
        probabilities[7] = 0.002 / (classes - 2)
        probabilities[7, [0, 3]] = 0.037, 0.961
        probabilities[30:37, [1, 2]] = 0.06, 0.9  # seven dresses taken for pants: these classes look alike
        given = [names[k] if k < 4 else f"x{k}" for k in labels]
        images = [f"{n}.jpg" for n in range(len(labels))]
        kinds = (*names, *(f"x{k}" for k in range(4, classes)))
        evidence = make_evidence(images, given, probabilities=probabilities, classes=kinds)
        found = find_label_errors(evidence)
        assert probability_wrong(probabilities, np.array(labels))[7] < LEAST
        assert (found[0].image, found[0].suggested) == (7, "shoe"), classes
        assert len(found) == FIRST


def test_the_order_is_that_of_the_odds_over_how_usual_the_confusion_is() -> None:
    probabilities = np.array([[0.9, 0.1], [0.02, 0.98], [0.2, 0.8], [0.1, 0.9]])
    labels = np.array([0, 0, 1, 1])
    # Row 1: 0.98/0.02 over (0.1 + 0.98)/2 + 0.01 = 49/0.55 = 89.1; row 2, likewise: 0.25/0.16 = 1.6.
    assert choose_surprising(probabilities, labels, np.array([0, 0, 0.5, 0])) == [1, 2]
    assert choose_surprising(probabilities, labels, np.array([0.0, 0, 0, 0])) == [1]


def test_nothing_is_said_of_what_has_no_label_or_was_seen() -> None:
    probabilities = np.tile([0.999, 0.001], (40, 1))
    evidence = make_evidence([f"{n}.jpg" for n in range(40)], ["a"] * 38 + ["b", None], probabilities=probabilities)
    assert [error.image for error in find_label_errors(evidence)] == [38]
    evidence.unseen[38] = False
    assert find_label_errors(evidence) == ()


def test_without_a_classifier_there_are_none() -> None:
    assert find_label_errors(make_evidence(["a.jpg"], ["a"])) == ()
