"""A map of the bottlenecks in two dimensions: images that the network finds alike lie side by side.

t-SNE (van der Maaten and Hinton, JMLR 9, 2008) of the leading principal components. Laying out thousands of images
takes seconds, so a sample is laid out and each of the others put among its nearest neighbours in it, as large maps are
made (Kobak and Berens, "The art of using t-SNE for single-cell transcriptomics", Nature Communications 10, 2019).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LANDMARKS = 600
_COMPONENTS = 30
_NEIGHBOURS = 4
_ITERATIONS = 300
_FEWEST = 8


def place_images(features: NDArray[np.floating], *, seed: int = 0) -> NDArray[np.float64]:
    """Places (n×2), each coordinate between 0 and 1, of images by their features (n×d); the same for the same input.

    Only nearness means anything: neither the axes nor the distances between far groups do.
    """
    n = len(features)
    if n < _FEWEST:
        return np.stack([(np.arange(n) + 0.5) / max(n, 1), np.full(n, 0.5)], axis=1)
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.neighbors import NearestNeighbors

    values = features.astype(np.float32)
    components = min(_COMPONENTS, n - 1, values.shape[1])
    points = PCA(components, svd_solver="randomized", random_state=seed).fit_transform(values)
    landmarks = np.sort(np.random.Generator(np.random.Philox(seed)).permutation(n)[:_LANDMARKS])
    perplexity = min(30.0, (len(landmarks) - 1) / 3)
    layout = TSNE(
        2, perplexity=perplexity, init="pca", max_iter=_ITERATIONS, angle=0.8, random_state=seed
    ).fit_transform(points[landmarks])
    places = np.empty((n, 2))
    places[landmarks] = layout
    others = np.setdiff1d(np.arange(n), landmarks)
    if len(others):
        distances, near = NearestNeighbors(n_neighbors=_NEIGHBOURS).fit(points[landmarks]).kneighbors(points[others])
        weights = 1 / np.maximum(distances, 1e-9) ** 2
        weights /= weights.sum(axis=1, keepdims=True)
        places[others] = (layout[near] * weights[:, :, None]).sum(axis=1)
    places -= places.min(axis=0)
    places /= np.maximum(places.max(axis=0), 1e-9)
    return places
