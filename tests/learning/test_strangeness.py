"""Strangeness: distances without oneself against fitting again, ranks, what is near and far, and when there is none."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from quickstudy.errors import HeadError
from quickstudy.learning.scores import share_interval
from quickstudy.learning.strangeness import FEWEST, Refusal, Strangeness, fit_strangeness

CLASSES, WIDTH = 4, 40


def draw(count: int, seed: int, *, centres: float = 3.0) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Features whose signed roots are normal about the mean of their class."""
    draws = np.random.Generator(np.random.PCG64(seed))
    means = np.random.Generator(np.random.PCG64(99)).normal(0, centres / WIDTH**0.5, (CLASSES, WIDTH))
    labels = np.arange(count) % CLASSES
    roots = means[labels] + draws.normal(0, 0.3, (count, WIDTH)) * np.linspace(0.3, 1, WIDTH)
    return np.copysign(roots**2, roots).astype(np.float32), labels


def logits_of(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits of a classifier that knows the means."""
    means = np.random.Generator(np.random.PCG64(99)).normal(0, 3 / WIDTH**0.5, (CLASSES, WIDTH))
    roots = np.copysign(np.sqrt(np.abs(features)), features)
    return (4 * (2 * roots @ means.T - (means**2).sum(axis=1))).astype(np.float32)


def fitted(count: int = 400) -> Strangeness:
    features, labels = draw(count, 0)
    found = fit_strangeness(features, labels, logits_of(features), classes=CLASSES, held_out=np.arange(count))
    assert found is not None
    return found


def test_new_images_of_the_own_kind_are_ranked_evenly() -> None:
    rule = fitted(1200)
    features, _ = draw(1200, 1)
    ranks = rule.of(features, logits_of(features))
    # Of 1,200 and 1,200, shares differ by 2 points as a standard error at the middle, and by 0.6 at the end.
    for share, tolerance in ((0.5, 0.06), (0.9, 0.035), (0.98, 0.016)):
        assert np.mean(ranks <= share) == pytest.approx(share, abs=tolerance)
    assert np.mean(rule.own <= 0.98) == pytest.approx(0.98, abs=1e-3)


def test_each_is_judged_as_if_it_had_not_been_learned() -> None:
    """Against fitting again without the image, which moves the scales a little; with itself it is further off."""
    features, labels = draw(200, 0)
    logits = logits_of(features)
    rule = fit_strangeness(features, labels, logits, classes=CLASSES, held_out=np.arange(200))
    assert rule is not None
    without = []
    for row in range(0, 200, 5):
        others = np.arange(200) != row
        again = fit_strangeness(
            features[others], labels[others], logits[others], classes=CLASSES, held_out=np.arange(199)
        )
        assert again is not None
        without.append(again.score(features[[row]], logits[[row]])[0])
    judged = np.interp(rule.own, rule.shares, rule.knots)[::5]  # back on the open scale
    with_itself = rule.score(features, logits)[::5]
    # Of images judged with themselves, the strangest seem least so: that is the difference that must go.
    strangest = np.argsort(without)[-20:]
    optimism = np.mean(without - with_itself, where=np.isin(np.arange(40), strangest))
    left = np.mean(without - judged, where=np.isin(np.arange(40), strangest))
    assert optimism > 0.2
    assert abs(left) < 0.5 * optimism


def test_what_is_far_and_what_is_undecided_is_strange() -> None:
    rule = fitted()
    draws = np.random.Generator(np.random.PCG64(3))
    far = draws.normal(0, 3, (50, WIDTH)).astype(np.float32)
    assert np.mean(rule.of(far, logits_of(far)) > 0.98) > 0.95
    blank = np.zeros((1, WIDTH), np.float32)
    assert rule.of(blank, logits_of(blank))[0] > 0.5
    own, _ = draw(50, 4)
    undecided = np.zeros((50, CLASSES), np.float32)
    assert (rule.score(own, undecided) > rule.score(own, logits_of(own))).all()


def test_the_score_is_the_sum_of_the_three_parts_by_hand() -> None:
    rule = fitted()
    features, _ = draw(5, 7)
    logits = logits_of(features)
    for row, score in enumerate(rule.score(features, logits)):
        x = [float(np.copysign(abs(value) ** 0.5, value)) for value in features[row]]
        placed = [sum(a * float(b) for a, b in zip(x, column, strict=True)) for column in rule.directions.T]
        placed = [a + float(b) for a, b in zip(placed, rule.offsets, strict=True)]
        nearest = min(sum((a - float(b)) ** 2 for a, b in zip(placed, mean, strict=True)) for mean in rule.means)
        to_all = sum(a * a * (1 - float(k)) for a, k in zip(placed, rule.kept, strict=True))
        spread = sum(((a - float(c)) * float(s)) ** 2 for a, c, s in zip(x, rule.centre, rule.scales, strict=True))
        energy = -np.log(sum(np.exp(float(z)) for z in logits[row]))
        assert score == pytest.approx(nearest - to_all + spread + rule.energy * energy, rel=1e-4, abs=1e-4)


def test_images_beside_the_rows_are_judged_as_they_are() -> None:
    features, labels = draw(400, 0)
    beside, _ = draw(100, 8)
    rule = fit_strangeness(features, labels, logits_of(beside), classes=CLASSES, unseen=beside)
    assert rule is not None
    np.testing.assert_allclose(rule.own, rule.of(beside, logits_of(beside)), atol=1e-3)


def test_too_few_images_or_images_that_do_not_differ_have_no_strangeness() -> None:
    for count in (FEWEST - 1, FEWEST):
        features, labels = draw(count, 0)
        found = fit_strangeness(features, labels, logits_of(features), classes=CLASSES, held_out=np.arange(count))
        assert (found is None) == (count < FEWEST)
    same = np.ones((60, WIDTH), np.float32)
    assert fit_strangeness(same, np.arange(60) % 4, logits_of(same), classes=4, held_out=np.arange(60)) is None


def test_a_class_of_one_image_that_is_never_held_out_harms_nobody() -> None:
    features, labels = draw(201, 0)
    labels[:-1], labels[-1] = labels[:-1] % 3, 3
    rows = np.arange(200)
    found = fit_strangeness(features, labels, logits_of(features[:-1]), classes=CLASSES, held_out=rows)
    assert found is not None
    assert np.isfinite(found.own).all()


@pytest.mark.parametrize("both", [True, False])
def test_images_to_judge_are_named_in_one_way(both: bool) -> None:
    features, labels = draw(60, 0)
    given = {"held_out": np.arange(60), "unseen": features} if both else {}
    with pytest.raises(HeadError):
        fit_strangeness(features, labels, logits_of(features), classes=CLASSES, **given)  # type: ignore[arg-type]


def test_refusal_counts_own_images_with_an_interval() -> None:
    rule = fitted(400)
    refusal = rule.refusal(0.05)
    assert (refusal.threshold, refusal.n) == (0.95, 400)
    assert refusal.refused == int((rule.own > 0.95).sum()) == pytest.approx(20, abs=1)
    assert refusal.interval == share_interval(refusal.refused, 400)
    assert Refusal.from_dict(refusal.to_dict()) == refusal
    assert rule.refusal(0).refused == 0
    with pytest.raises(ValueError, match="contradicts"):
        Refusal.from_dict({**refusal.to_dict(), "refused": 401})
