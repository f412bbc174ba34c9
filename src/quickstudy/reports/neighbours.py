"""Bottlenecks tell which images are near each other: here are pairs that point the same way, and a map of all.

What is asked of pairs is little: each image and its nearest neighbour, and the most alike pairs above a similarity. The
matrix of similarities is passed through block by block and never kept. Its arithmetic, n²d for the upper triangle, is
3.2 teraflop for 50,000 images of 1,280 features: half a minute on two cores at the 100 GFLOP/s and more that a matrix
product reaches. Beyond that, a graph index (HNSW: Malkov and Yashunin, 2016, arXiv:1603.09320, as USearch has it) is
asked for each image's nearest neighbours, where it is installed.

The map has two dimensions: t-SNE (van der Maaten and Hinton, JMLR 9, 2008) of the leading principal components. Laying
out all of 3,781 images would take 5 s, so a sample of 600 landmarks is laid out and each of the others put among its
nearest neighbours in it, as large maps are made (Kobak and Berens, "The art of using t-SNE for single-cell
transcriptomics", Nature Communications 10, 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quickstudy.learning.features import Floats, unit_rows
from quickstudy.learning.links import Integers
from quickstudy.process import IMPORTING, usable_cores

EXACT_UP_TO = 50_000
"""Number of images up to which all pairs are compared, whatever is installed."""
BLOCK = 4096
"""Number of images that are compared with all others at a time."""
_NEIGHBOURS = 8
_AXES = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of rows, each once: `first` < `second`, in their order, and how alike they are (cosine)."""

    first: Integers
    """Number of the first row of each pair."""
    second: Integers
    """Number of the second row of each pair, larger than the first."""
    similarity: Floats
    """Cosine of each pair, -1 to 1."""


def centred_rows(features: NDArray[np.floating]) -> Floats:
    """Take features (n×d) around their mean, each row of length 1, so that products are correlations.

    The mean is taken away since the features are positive and all images have much in common: of the clothing photos,
    90 % have a neighbour with a cosine above 0.74 as they are, half a per cent around the mean.
    """
    rows = features.astype(np.float32)
    if len(rows):
        rows -= rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return unit_rows(rows)


def alike_pairs(rows: Floats, *, alike: float, nearest: float, most: int, exact: bool | None = None) -> Pairs:
    """Find candidates for duplicates: pairs of rows that point the same way.

    Args:
        rows: n×d, of length 1.
        alike: pairs at least so similar count.
        nearest: pairs of which one is the other's nearest neighbour count from here on.
        most: of the former, at most so many, the most similar.
        exact: compare all pairs; if left out, up to `EXACT_UP_TO` images and where USearch is not installed.
    """
    if exact is None:
        exact = len(rows) <= EXACT_UP_TO or not _has_index()
    found = _Closest(alike, most)
    neighbour, similarity = _search_all(rows, found) if exact else _search_index(rows, found)
    first = np.flatnonzero(similarity >= nearest)
    found.add(first, neighbour[first], similarity[first])
    return found.unique()


class _Closest:
    """Gathers pairs above a similarity, which rises once there are too many."""

    def __init__(self, alike: float, most: int) -> None:
        self.least, self._most = alike, max(most, 1)
        self._parts: list[tuple[Integers, Integers, Floats]] = []
        self._count = 0

    def add(self, first: Integers, second: Integers, similarity: Floats) -> None:
        """Take pairs, whatever their similarity, in whatever order."""
        self._parts.append((np.minimum(first, second), np.maximum(first, second), similarity))
        self._count += len(first)

    def thin(self) -> None:
        """Forget the least similar of too many, and ask for more similar ones from here on."""
        if self._count > 2 * self._most:
            pairs = self._joined()
            best = np.argpartition(-pairs[2], self._most)[: self._most]
            self.least = max(self.least, float(pairs[2][best].min()))
            self._parts, self._count = [(pairs[0][best], pairs[1][best], pairs[2][best])], self._most

    def unique(self) -> Pairs:
        """Give each pair once, ordered by its rows."""
        first, second, similarity = self._joined()
        order = np.lexsort((second, first))
        first, second, similarity = first[order], second[order], similarity[order]
        new = np.ones(len(first), np.bool_)
        new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
        return Pairs(first=first[new], second=second[new], similarity=similarity[new])

    def _joined(self) -> tuple[Integers, Integers, Floats]:
        none = np.zeros(0, np.intp)
        first, second, similarity = zip(*[(none, none, np.zeros(0, np.float32)), *self._parts], strict=True)
        return np.concatenate(first), np.concatenate(second), np.concatenate(similarity)


def _search_all(rows: Floats, found: _Closest) -> tuple[Integers, Floats]:
    """Find each row's nearest other row and its similarity; pairs that are alike go to `found`."""
    n = len(rows)
    nearest, best = np.zeros(n, np.intp), np.full(n, -2, np.float32)
    for top in range(0, n, BLOCK):
        for left in range(top, n, BLOCK):
            block = rows[top : top + BLOCK] @ rows[left : left + BLOCK].T
            if top == left:
                np.fill_diagonal(block, -2)
            highest = block.max(axis=1)
            # Maxima are quick to find, their places are not; but few rows find a nearer neighbour in a later block.
            better = np.flatnonzero(highest > best[top : top + BLOCK])
            nearest[top + better] = block[better].argmax(axis=1) + left
            best[top + better] = highest[better]
            if top != left:
                deepest = block.max(axis=0)
                better = np.flatnonzero(deepest > best[left : left + BLOCK])
                nearest[left + better] = block[:, better].argmax(axis=0) + top
                best[left + better] = deepest[better]
            above = np.flatnonzero(highest >= found.least)
            down, across = np.nonzero(block[above] >= found.least)
            down = above[down]
            keep = (top != left) | (down < across)
            down, across = down[keep], across[keep]
            found.add(down + top, across + left, block[down, across])
            found.thin()
    return nearest, best


def _search_index(rows: Floats, found: _Closest) -> tuple[Integers, Floats]:
    """Find what `_search_all` does, among each row's approximate nearest neighbours along the rows' principal axes."""
    from usearch.index import Index

    short = _project(rows)
    index = Index(ndim=short.shape[1], metric="cos", dtype="f16")
    index.add(np.arange(len(rows)), short, threads=usable_cores())
    keys = np.empty((len(rows), _NEIGHBOURS + 1), np.intp)
    similarity = np.empty(keys.shape, np.float32)
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        keys[part] = index.search(short[part], _NEIGHBOURS + 1, threads=usable_cores()).keys
        similarity[part] = np.einsum("id,ikd->ik", rows[part], rows[keys[part]])
    similarity[keys == np.arange(len(rows))[:, None]] = -2
    down, across = np.nonzero(similarity >= found.least)
    found.add(down, keys[down, across], similarity[down, across])
    found.thin()
    closest = similarity.argmax(axis=1)
    everyone = np.arange(len(rows))
    return keys[everyone, closest], similarity[everyone, closest]


def _project(rows: Floats) -> Floats:
    """Project rows on their principal axes, as many as the index is quick with."""
    if rows.shape[1] <= _AXES:
        return rows
    part = rows[:: max(1, len(rows) // BLOCK)]
    axes: Floats = np.linalg.eigh(part.T @ part)[1][:, -_AXES:]
    return rows @ axes


def _has_index() -> bool:
    import importlib.util

    return importlib.util.find_spec("usearch") is not None


_LANDMARKS = 600
_COMPONENTS = 30
_PLACING_NEIGHBOURS = 4
_ITERATIONS = 300
_FEWEST = 8


def place_images(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Place images on a map by their features (n×d): n×2, each coordinate from 0 to 1, the same for the same input.

    Images that the network finds alike lie side by side. Only nearness means anything: neither the axes nor the
    distances between far groups do.
    """
    n = len(features)
    if n < _FEWEST:
        return np.stack([(np.arange(n) + 0.5) / max(n, 1), np.full(n, 0.5)], axis=1)
    with IMPORTING:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
        from sklearn.neighbors import NearestNeighbors

    values = features.astype(np.float32)
    components = min(_COMPONENTS, n - 1, values.shape[1])
    points = PCA(components, svd_solver="randomized", random_state=0).fit_transform(values)
    landmarks = np.sort(np.random.Generator(np.random.Philox(0)).permutation(n)[:_LANDMARKS])
    perplexity = min(30.0, (len(landmarks) - 1) / 3)
    layout = TSNE(2, perplexity=perplexity, init="pca", max_iter=_ITERATIONS, angle=0.8, random_state=0).fit_transform(
        points[landmarks]
    )
    places = np.empty((n, 2))
    places[landmarks] = layout
    others = np.setdiff1d(np.arange(n), landmarks)
    if len(others):
        distances, near = (
            NearestNeighbors(n_neighbors=_PLACING_NEIGHBOURS).fit(points[landmarks]).kneighbors(points[others])
        )
        weights = 1 / np.maximum(distances, 1e-9) ** 2
        weights /= weights.sum(axis=1, keepdims=True)
        places[others] = (layout[near] * weights[:, :, None]).sum(axis=1)
    places -= places.min(axis=0)
    places /= np.maximum(places.max(axis=0), 1e-9)
    return places
