"""The live head and its figures, against the obvious ways to compute them; and what is asked next."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from quickstudy.labelling import choosing, teacher
from quickstudy.labelling.choosing import Pick, alike_rows, doubtful_rows, typical_rows, with_checks
from quickstudy.learning.features import signed_sqrt

CLASSES = ("a", "b", "c")


def clouds(n: int = 240, d: int = 60, apart: float = 1.2) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    random = np.random.Generator(np.random.Philox(5))
    truth = np.arange(n) % 3
    centres = random.standard_normal((3, d)) * apart
    return np.abs(centres[truth] + random.standard_normal((n, d))).astype(np.float32), truth


def keys(n: int) -> list[bytes]:
    return [int(k).to_bytes(32, "big") for k in np.random.Generator(np.random.Philox(6)).permutation(n)]


def right(judged: teacher.Judged) -> float:
    return float(np.mean(judged.probabilities.argmax(axis=1) == judged.targets))


def found(
    rows: NDArray[np.float32], truth: NDArray[np.intp], checks: NDArray[np.intp], head: teacher.LiveHead
) -> NDArray[np.bool_]:
    return teacher.judge_checks(rows, truth, checks, head).argmax(axis=1) == truth[checks]


@pytest.mark.parametrize("n", [40, 240])
def test_the_space_is_that_of_the_principal_components(n: int) -> None:
    features, _ = clouds(n)
    space = teacher.find_space(features)
    assert space is not None
    rows = space.project(features)
    centred = signed_sqrt(features) - signed_sqrt(features).mean(axis=0)
    centred /= np.sqrt(np.mean(np.square(centred)))
    values = np.linalg.svd(centred, compute_uv=False)[: rows.shape[1]]
    assert np.allclose(np.linalg.norm(rows, axis=0), values, rtol=1e-3)
    assert np.allclose(rows.T @ rows, np.diag(values**2), atol=1e-2 * values[0] ** 2)
    assert teacher.find_space(np.ones((5, 4), np.float32)) is None


def test_a_warm_refit_comes_to_where_a_cold_one_does() -> None:
    features, truth = clouds()
    space = teacher.find_space(features)
    assert space is not None
    rows = space.project(features)
    head = teacher.fit_live(rows[:60], truth[:60], CLASSES, space)
    warm = teacher.fit_live(rows[:80], truth[:80], CLASSES, space, head)
    cold = teacher.fit_live(rows[:80], truth[:80], CLASSES, space)
    difference = warm.probabilities(rows) - cold.probabilities(rows)
    assert np.sqrt(np.mean(np.sum(np.square(difference), axis=1))) < 0.02
    two = np.flatnonzero(truth[:60] < 2)
    fewer = teacher.fit_live(rows[two], truth[two], CLASSES[:2], space)
    grown = teacher.fit_live(rows[:60], truth[:60], CLASSES, space, fewer)  # a class more than before
    assert np.mean(grown.probabilities(rows).argmax(axis=1) == truth) > 0.8


def test_cross_validation_judges_each_label_by_fits_that_had_not_seen_it() -> None:
    features, truth = clouds(90)
    random = np.random.Generator(np.random.Philox(8))
    shuffled = random.permutation(truth)  # there is nothing to learn: a fit that had seen a label would know it
    space = teacher.find_space(features)
    assert space is not None
    rows = space.project(features)
    head = teacher.fit_live(rows, shuffled, CLASSES, space)
    judged = teacher.cross_validate(rows, shuffled, keys(90), head)
    assert judged is not None
    assert sorted(judged.held_out.tolist()) == list(range(90))
    assert np.mean(head.probabilities(rows).argmax(axis=1) == shuffled) > 0.9
    assert 0.1 < right(judged) < 0.6
    assert sorted(judged.targets.tolist()) == sorted(shuffled.tolist())
    honest = teacher.cross_validate(rows, truth, keys(90), teacher.fit_live(rows, truth, CLASSES, space))
    assert honest is not None
    assert right(honest) > 75 / 90


def test_checks_are_judged_by_fits_that_had_not_seen_them() -> None:
    features, truth = clouds(120, apart=1.0)
    random = np.random.Generator(np.random.Philox(9))
    noise = random.permutation(truth)
    space = teacher.find_space(features)
    assert space is not None
    rows = space.project(features)
    checks = np.arange(0, 120, 4)
    for given, least, most in ((truth, 0.7, 1.0), (noise, 0.0, 0.65)):
        head = teacher.fit_live(rows, given, CLASSES, space)
        assert np.mean(head.probabilities(rows).argmax(axis=1) == given) > 0.85
        assert least <= np.mean(found(rows, given, checks, head)) <= most
    one = checks[:6]
    head = teacher.fit_live(rows, truth, CLASSES, space)
    kept = np.setdiff1d(np.arange(120), one[:1])
    alone = teacher.fit_live(rows[kept], truth[kept], CLASSES, space)
    expected = alone.probabilities(rows[one[:1]]).argmax(axis=1) == truth[one[:1]]
    assert found(rows, truth, one[:1], head).tolist() == expected.tolist()
    given = truth.copy()
    given[given == 2] = 1
    given[one[0]] = 2  # the only one of its class: nobody could know it
    head = teacher.fit_live(rows, given, CLASSES, space)
    assert not found(rows, given, one, head)[0]


def test_planted_mistakes_are_found_first() -> None:
    features, truth = clouds(apart=2.5)
    given = truth.copy()
    planted = [7, 100, 201]
    given[planted] = (given[planted] + 1) % 3
    space = teacher.find_space(features)
    assert space is not None
    rows = space.project(features)
    judged = teacher.cross_validate(rows, given, keys(240), teacher.fit_live(rows, given, CLASSES, space))
    assert judged is not None
    found = teacher.find_mistakes(judged)
    assert {mistake.row for mistake in found[:3]} == set(planted)
    assert all(mistake.suggested == (truth[mistake.row],) for mistake in found[:3])


def test_forecasts_come_with_80_labels() -> None:
    features, truth = clouds(apart=0.6)
    space = teacher.find_space(features)
    assert space is not None
    rows = space.project(features)
    for n, some in ((60, False), (240, True)):
        head = teacher.fit_live(rows[:n], truth[:n], CLASSES, space)
        judged = teacher.cross_validate(rows[:n], truth[:n], keys(n), head)
        assert judged is not None
        gains = teacher.forecast(features[:n], truth[:n], keys(n), CLASSES, judged)
        assert bool(gains) == some
    assert gains[0].name == ""
    assert {gain.name for gain in gains[1:]} <= set(CLASSES)
    assert all(gain.points >= 0 and gain.deviation >= 0 for gain in gains)


def test_typical_photos_come_from_every_cluster_the_largest_first() -> None:
    random = np.random.Generator(np.random.Philox(2))
    sizes = (50, 30, 10)
    rows = np.concatenate([random.standard_normal((n, 4)) * 0.1 + 10 * np.eye(4)[k] for k, n in enumerate(sizes)])
    picks = typical_rows(rows.astype(np.float32), 3)
    assert [pick.alike for pick in picks] == list(sizes)
    assert [int(np.argmax(rows[pick.row])) for pick in picks] == [0, 1, 2]


def test_doubtful_photos_come_first_and_differ_from_each_other() -> None:
    rows = np.array([[1, 0], [1, 0.01], [0, 1], [-1, 0], [0.5, 0.5]], np.float32)
    shares = np.array([[0.5, 0.5], [0.5, 0.5], [0.45, 0.55], [0.99, 0.01], [0.6, 0.4]], np.float32)
    free = np.array([True, True, True, True, False])
    picks = doubtful_rows(rows, shares, free, np.array([4]), np.array([5, 5]), ("a", "b"), 4)
    assert {picks[0].row, picks[1].row} == {0, 2}  # not 1, which is like 0
    assert picks[0].reason == "between"
    assert set(picks[0].of) == {"a", "b"}
    assert sorted(pick.row for pick in picks) == [0, 1, 2, 3]
    assert picks[-1].row != 4


def test_a_class_with_few_labels_is_asked_for_sooner() -> None:
    rows = np.eye(4, dtype=np.float32)
    shares = np.array([[0.7, 0.3, 0], [0, 0.3, 0.7], [0.7, 0.3, 0], [0.7, 0.3, 0]], np.float32)
    picks = doubtful_rows(rows, shares, np.ones(4, np.bool_), np.zeros(0, np.intp), np.array([50, 50, 1]), CLASSES, 1)
    assert picks[0] == Pick(row=1, reason="few", of=("c", "b"))


def test_one_pick_in_eight_is_unlike_all_that_have_a_label() -> None:
    random = np.random.Generator(np.random.Philox(4))
    rows = random.standard_normal((40, 6)).astype(np.float32) + 4
    rows[31] = [-9, 0, 0, 0, 0, 0]
    shares = np.tile(np.array([[0.55, 0.45]], np.float32), (40, 1))
    free = np.ones(40, np.bool_)
    free[:5] = False
    picks = doubtful_rows(rows, shares, free, np.arange(5), np.array([3, 2]), ("a", "b"), 16)
    assert [place for place, pick in enumerate(picks) if pick.reason == "unlike"] in ([7, 15], [15])
    assert 31 in {pick.row for pick in picks}


def test_one_photo_in_five_is_a_check() -> None:
    chosen = [Pick(row=k, reason="any") for k in range(100, 200)]
    picks = with_checks(chosen, list(range(50)), asked=0, answered=0, most=50)
    checks = [pick.row for pick in picks if pick.reason == "check"]
    assert checks == list(range(len(checks)))
    assert len(picks) == 50
    assert abs(len(checks) - choosing.CONTROL_SHARE * 50) <= 3
    assert with_checks([], [3, 4], asked=0, answered=9, most=1) == [Pick(row=3, reason="check")]


def test_the_most_alike_photos_come_first_and_answered_ones_never() -> None:
    rows = np.array([[1, 0], [1, 0.1], [0, 1], [1, 0.5]], np.float32)
    free = np.array([True, True, True, False])
    assert [row for row, _ in alike_rows(rows, 0, free, 9)] == [1, 2]


def test_photos_that_wait_are_guessed_and_learned_from() -> None:
    features, truth = clouds(600, apart=0.9)
    space = teacher.find_space(features)
    assert space is not None
    rows = space.project(features)
    few, waiting, others = np.arange(9), np.arange(9, 400), np.arange(400, 600)
    alone = teacher.fit_live(rows[few], truth[few], CLASSES, space)
    helped = teacher.fit_live(rows[few], truth[few], CLASSES, space, waiting=rows[waiting])
    before, after = (
        np.mean(head.probabilities(rows[others]).argmax(axis=1) == truth[others]) for head in (alone, helped)
    )
    assert after > before + 0.02
    again = teacher.fit_live(rows[few], truth[few], CLASSES, space, helped, rows[waiting])  # from where it was
    assert np.abs(again.probabilities(rows) - helped.probabilities(rows)).max() < 0.05


def test_guesses_are_made_anew_for_each_fit_that_has_not_seen_a_photo() -> None:
    features, truth = clouds(90)
    noise = np.random.Generator(np.random.Philox(8)).permutation(truth)  # a fit that had seen a label would know it
    space = teacher.find_space(features)
    assert space is not None
    rows = space.project(features)
    head = teacher.fit_live(rows, noise, CLASSES, space, waiting=rows)  # those that wait are the same photos
    judged = teacher.cross_validate(rows, noise, keys(90), head, rows)
    assert judged is not None
    assert 0.1 < right(judged) < 0.6
    checks = np.arange(0, 90, 3)
    shares = teacher.judge_checks(rows, noise, checks, head, waiting=rows)
    assert np.mean(shares.argmax(axis=1) == noise[checks]) < 0.65
