"""Pairs against a slow obvious search."""

from __future__ import annotations

import numpy as np
import pytest

from quickstudy.reports import neighbours
from quickstudy.reports.neighbours import alike_pairs, centred_rows


def rows(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    draws = np.random.Generator(np.random.PCG64(seed))
    centres = draws.normal(size=(max(n // 4, 1), d))
    return centred_rows(centres[draws.integers(len(centres), size=n)] + 0.3 * draws.normal(size=(n, d)))


def slow(values: np.ndarray, alike: float, nearest: float) -> set[tuple[int, int]]:
    found = set()
    for a in range(len(values)):
        similarity = [-2.0 if b == a else float(values[a] @ values[b]) for b in range(len(values))]
        best = int(np.argmax(similarity))
        if similarity[best] >= nearest:
            found.add((min(a, best), max(a, best)))
        found |= {(min(a, b), max(a, b)) for b, value in enumerate(similarity) if value >= alike}
    return found


@pytest.mark.parametrize("block", [5, 16, 4096])
def test_all_pairs_as_by_the_obvious_search(block, monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    values = rows(61)
    found = alike_pairs(values, alike=0.8, nearest=0.5, most=10_000)
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == slow(values, 0.8, 0.5)
    np.testing.assert_allclose(
        found.similarity, np.einsum("ij,ij->i", values[found.first], values[found.second]), atol=1e-6
    )
    assert np.all(found.first < found.second)


def test_too_many_pairs_leave_the_most_similar(monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    values = rows(80)
    full = values @ values.T
    ranked = np.sort(full[np.triu_indices(80, 1)])[::-1]
    found = alike_pairs(values, alike=0.0, nearest=2.0, most=100)
    assert 100 <= len(found.first) <= 200
    kept = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    best = {(int(a), int(b)) for a, b in np.argwhere(np.triu(full, 1) >= ranked[99])}
    assert best <= kept


def test_the_index_finds_what_the_search_of_all_pairs_finds() -> None:
    pytest.importorskip("usearch", reason="no USearch here; it comes with the extra 'audit'")
    values = rows(400, 64)
    sides = [alike_pairs(values, alike=0.9, nearest=0.6, most=10_000, exact=exact) for exact in (True, False)]
    exact, close = (set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) for pairs in sides)
    assert len(close & exact) >= 0.95 * len(exact)


def test_rows_have_length_one_around_their_mean() -> None:
    values = centred_rows(np.array([[3.0, 1.0], [1.0, 1.0], [2.0, 4.0]]))
    np.testing.assert_allclose(values[1], np.array([-1, -1]) / 2**0.5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_any_rows(n) -> None:
    found = alike_pairs(rows(4)[:n], alike=-1, nearest=2, most=10)
    assert len(found.first) == n * (n - 1) // 2
