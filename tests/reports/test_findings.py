"""Outliers, flaws, classes and what to label next, against hand-made cases and slow obvious versions."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from evidences import make_evidence, make_gallery

from quickstudy.reports import audit
from quickstudy.reports.audit import (
    LIMITS,
    choose_next,
    count_classes,
    distances,
    draw_findings,
    farthest_gradients,
    find_alike,
    find_flaws,
    find_outliers,
    standardise,
    suggest_labels,
)


def names(n: int) -> list[str]:
    return [f"{number:03}.jpg" for number in range(n)]


def cloud(n: int, seed: int = 0) -> np.ndarray:
    draws = np.random.Generator(np.random.PCG64(seed))
    return np.abs(draws.normal(size=(n, 20))) + 3


@pytest.mark.parametrize("block", [7, 4096])
def test_distances_as_by_the_obvious_loop(block, monkeypatch) -> None:
    monkeypatch.setattr(audit, "BLOCK", block)
    monkeypatch.setattr(audit, "REFERENCES", 25)
    rows = cloud(40).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for n, found in enumerate(distances(rows)):
        others = sorted((float(unit[n] @ unit[k]) for k in range(25) if k != n), reverse=True)
        assert found == pytest.approx(1 - others[9], abs=1e-5)


def test_robust_standard_deviations_by_hand() -> None:
    # Median 3, absolute deviations 2 1 0 1 97, their median 1.
    np.testing.assert_allclose(standardise(np.array([1, 2, 3, 4, 100], np.float32))[-1], 97 / 1.4826)


def test_one_that_points_elsewhere_is_an_outlier_and_its_copy_does_not_hide_it() -> None:
    features = cloud(60)
    features[[17, 41]] = np.eye(20)[3] * 9
    contents = [b"same" if n in (17, 41) else str(n).encode() for n in range(60)]
    evidence = make_evidence(names(60), ["a"] * 60, features=features, contents=contents)
    found = find_outliers(evidence)
    assert [outlier.image for outlier in found] == [17]
    assert found[0].score > audit.LIMIT


def test_few_images_tell_nothing_of_what_is_usual() -> None:
    features = cloud(29)
    features[0] = np.eye(20)[0]
    assert find_outliers(make_evidence(names(29), ["a"] * 29, features=features)) == ()


def test_each_flaw_at_its_limit() -> None:
    gallery = make_gallery(
        12,
        width=[63, 64, 1201, 400, 400, 400, 400, 400, 400, 400, 0, 400],
        height=[64, 64, 300, 99, 300, 300, 300, 300, 300, 300, 0, 300],
        brightness=[0.5, 0.5, 0.5, 0.5, 0.05, 0.07, 0.97, 0.5, 0.5, 0.0, 0, 0.5],
        contrast=[0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.01, 0.2, 0.0, 0, 0.2],
        sharpness=[0.3, 0.3, 0.3, 0.3, 0.0, 0.3, 0.3, 0.0, 0.1, 0.0, 0, 0.13],
    )
    found = [(flaw.image, flaw.kind) for flaw in find_flaws(gallery)]
    # 9 is black: dark, and not blank and blurred besides; 10 could not be looked at.
    assert found == [
        (0, "tiny"), (1, "thumbnail"), (2, "narrow"), (3, "narrow"), (4, "dark"),
        (6, "bright"), (7, "blank"), (8, "blurred"), (9, "dark")
    ]  # fmt: skip
    limits = {**LIMITS, "thumbnail": 100}  # a quarter of the median
    assert all(flaw.limit == limits[flaw.kind] for flaw in find_flaws(gallery))


def test_what_was_damaged_saved_small_or_in_fewer_bits_is_named() -> None:
    gallery = make_gallery(
        8,
        width=[4000, 3000, 256, 240, 4000, 4000, 4000, 4000],
        height=[3000, 4000, 192, 60, 3000, 3000, 3000, 3000],
        grey=[0.04, 0.06, 0, 0, 1.0, 0, 0, 0],
        contrast=[0.2, 0.2, 0.2, 0.2, 0.01, 0.2, 0.2, 0.2],
        bits=[0, 0, 0, 0, 0, 16, 12, 15],
    )
    found = [(flaw.image, flaw.kind, flaw.value, flaw.limit) for flaw in find_flaws(gallery)]
    assert [(image, kind) for image, kind, *_ in found] == [
        (1, "grey"), (2, "thumbnail"), (3, "tiny"), (4, "blank"), (6, "shallow")
    ]  # fmt: skip
    assert found[1][2:] == (256, 256)
    assert found[-1][2:] == (12, 14)


def test_a_screenshot_is_named_and_only_marked() -> None:
    assert [(flaw.image, flaw.kind) for flaw in find_flaws(make_gallery(3, bars=[0.05, 0.3, 0]))] == [(1, "screenshot")]


def test_a_set_of_small_pictures_has_no_thumbnails() -> None:
    assert find_flaws(make_gallery(4, width=[250] * 4, height=[200] * 4)) == ()


def test_twelve_bits_are_no_flaw_where_all_have_them() -> None:
    assert find_flaws(make_gallery(3, bits=[12, 12, 11])) == ()
    few = find_flaws(make_gallery(4, bits=[12, 11, 12, 16]))
    assert [(flaw.image, flaw.kind) for flaw in few] == [(0, "shallow"), (1, "shallow"), (2, "shallow")]


def test_what_most_images_have_is_no_flaw() -> None:
    gallery = make_gallery(10, width=[28] * 9 + [300], brightness=[0.01] + [0.5] * 9)
    assert [(flaw.image, flaw.kind) for flaw in find_flaws(gallery)] == [(0, "dark")]


def test_classes_are_counted_without_copies() -> None:
    labels = ["a"] * 30 + ["b"] * 5 + [None]
    contents = [b"copy" if n < 3 else str(n).encode() for n in range(36)]
    found = count_classes(make_evidence(names(36), labels, contents=contents))
    assert [(share.name, share.images, share.scarce) for share in found] == [("a", 28, False), ("b", 5, True)]


def test_classes_that_are_taken_for_each_other() -> None:
    labels = ["a"] * 10 + ["b"] * 10 + ["c"] * 10
    probabilities = np.repeat(np.eye(3), 10, axis=0)
    probabilities[[0, 1, 12]] = [[0, 1, 0], [0, 1, 0], [1, 0, 0]]
    probabilities[25] = [0, 1, 0]
    (pair,) = find_alike(make_evidence(names(30), labels, probabilities=probabilities))
    assert (pair.first, pair.second, pair.images) == ("a", "b", 3)
    assert pair.rate == pytest.approx(3 / 20)


def test_suggestions_for_images_without_a_label() -> None:
    probabilities = np.array([[1, 0], [0, 1], [0.3, 0.7]])
    (found,) = suggest_labels(make_evidence(names(3), ["a", "b", None], probabilities=probabilities))
    assert (found.image, found.label) == (2, "b")
    assert found.probability == pytest.approx(0.7)


def test_the_gradients_picked_are_those_of_the_obvious_version() -> None:
    draws = np.random.Generator(np.random.PCG64(3))
    features, probabilities = draws.normal(size=(30, 6)), draws.dirichlet(np.ones(4), 30)
    residual = probabilities - np.eye(4)[probabilities.argmax(axis=1)]
    gradients = [np.outer(residual[n], features[n]).ravel() for n in range(30)]
    picked = [int(np.argmax([g @ g for g in gradients]))]
    while len(picked) < 8:
        gaps = [min(np.linalg.norm(g - gradients[k]) for k in picked) for g in gradients]
        picked.append(int(np.argmax(gaps)))
    assert farthest_gradients(features.astype(np.float32), probabilities.astype(np.float32), 8) == picked


def test_next_to_label_are_doubtful_and_different_and_have_no_label_under_another_name() -> None:
    features = np.repeat(np.eye(4), 5, axis=0)
    doubt = np.tile([0.99, 0.01], (20, 1))
    doubt[[2, 3, 12]] = [0.5, 0.5]
    doubt[7] = [0.6, 0.4]
    labels = ["a"] * 1 + ["b"] * 1 + [None] * 18
    contents = [b"0" if n == 12 else str(n).encode() for n in range(20)]  # 12 is a copy of 0, which has a label
    evidence = make_evidence(names(20), labels, features=features, probabilities=doubt, contents=contents)
    first, second, *_ = choose_next(evidence, count=4)
    assert first in (2, 3)
    assert second == 7
    assert 12 not in choose_next(evidence, count=20)
    assert len(choose_next(evidence, count=50)) == 17


def test_without_any_label_the_typical_ones_of_each_cluster_come_first() -> None:
    draws = np.random.Generator(np.random.PCG64(5))
    centres = 10 * np.eye(20)[:3]
    members = np.array([0] * 20 + [1] * 12 + [2] * 6)
    features = centres[members] + draws.normal(size=(38, 20))
    chosen = choose_next(make_evidence(names(38), [None] * 38, features=features), count=3)
    assert members[list(chosen)].tolist() == [0, 1, 2]


def test_an_audit_becomes_json_with_paths() -> None:
    evidence = make_evidence(names(3), ["a", "a", None], contents=[b"1", b"1", b"2"])
    found = draw_findings(evidence, make_gallery(3, brightness=[0.5, 0.5, 0.01]))
    values = json.loads(json.dumps(found.to_dict()))
    assert values["images"] == 3
    assert values["labelled"] == 2
    assert values["duplicates"][0]["images"] == ["photos/000.jpg", "photos/001.jpg"]
    assert values["duplicates"][0]["exact"]
    assert values["quality"][0]["image"] == "photos/002.jpg"
    assert values["next_to_label"] == ["photos/002.jpg"]


def test_no_images_no_findings() -> None:
    found = draw_findings(make_evidence([], []), make_gallery(0))
    assert not any((found.duplicates, found.label_errors, found.outliers, found.quality, found.next_to_label))
    assert found.imbalance == 1


def test_two_threads_may_be_the_first_to_need_scikit_learn() -> None:
    """The one begins in the midst of the other's import, as happens where few photos are labelled."""
    code = """
import sys, threading, time
import joblib, numpy, scipy.linalg, scipy.sparse.csgraph, scipy.sparse.linalg, scipy.spatial, scipy.stats
from quickstudy.reports.audit import typical
from quickstudy.reports.neighbours import place_images

begun, deep = threading.Event(), threading.Event()

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "sklearn.__check_build":
            begun.set()
            deep.wait(1)
        if name == "sklearn.exceptions" and not deep.is_set():
            deep.set()
            time.sleep(0.3)

def second():
    begun.wait(60)
    found.append(len(typical(rows, 5)))

sys.meta_path.insert(0, Slow())
rows, found = numpy.eye(30, dtype=numpy.float32), []
threads = [threading.Thread(target=second), threading.Thread(target=lambda: found.append(len(place_images(rows))))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sorted(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("[5, 30]\n", 0), done.stderr
