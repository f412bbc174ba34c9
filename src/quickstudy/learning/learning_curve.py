"""What more images would bring: accuracy against the number of training images, measured below and forecast above.

Measured: heads fitted side by side to nested subsets of the training images, class by class in the order of a hash,
each scored on images that none of the subsets of its order holds. The logits of what is left out come with the fit, so
a point costs a few matrix products. Cross-validation adds the point at four fifths of all images.

Forecast: the error falls as c + a · n^-b, an inverse power law (Cortes et al., "Learning curves: asymptotic values and
rate of convergence", NIPS 1993; Hestness et al., arXiv:1712.00409). Four points cannot tell the three numbers apart, so
no single best fit is believed: exponents on a grid are each fitted by weighted least squares and weighed by how well
they fit. The images are drawn again and again (the bootstrap), and the forecasts' scatter is their uncertainty.

For one class, in further subsets each class is thinned or not, half of the subsets each, so that what a class gains by
its own images is told apart from what it gains, or loses, by those of the others.

All subsets are fitted side by side: ten heads on the clothing photos take a second on one thread. Subsets and
cross-validation are compared on the images that both judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quickstudy.learning.features import Features, Floats, prepare_features
from quickstudy.learning.softmax import fit_softmax
from quickstudy.learning.spaces import in_small_space

_SHARES = (1 / 8, 1 / 4, 1 / 2)
"""The shares of each class's images that the nested subsets hold."""
FEWEST_IMAGES = 80
"""The fewest training images from which anything is measured or forecast."""
_CHAINS = 2
_DESIGNS = 4
_FOLD_SHARE = 0.8  # of the images, that a fit of five-fold cross-validation learns from
_PRECISION = 1e-3  # of held-out probabilities, as in cross-validation, to which the curve is joined
_DRAWS = 100
_EXPONENTS = np.linspace(0.05, 1.5, 30)
# Standard deviation of a class's own exponent around the common one: with it, on the clothing photos, forecasts for
# single classes are no farther off than they say (benchmarks/trust.py).
_CLASSES_DIFFER = 0.2
LARGEST_BATCH = 60_000_000
"""The most logits of subsets that are fitted side by side: 240 MB in float32."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Accuracy on images not seen, of heads trained on so many."""

    images: int
    """Number of training images."""
    accuracy: float
    """Share of right ones among images not seen, between 0 and 1."""
    deviation: float
    """One standard deviation of the accuracy, by drawing the images anew."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What further images of one class would bring."""

    name: int
    """The class's number."""
    images: int
    """Number of training images that it has."""
    recall: float
    """Share of its images recognised now, by fits that had not seen them, between 0 and 1."""
    more: int
    """Number of further images, all of this class, whose gain is forecast."""
    points: float
    """Gain in recall, in percentage points."""
    deviation: float
    """Standard deviation of that gain, in percentage points."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LearningCurve:
    """Accuracy against training images, measured and forecast."""

    points: tuple[CurvePoint, ...]
    """The measured points, fewest images first; the last is the cross-validation of all."""
    images: int
    """Number of training images that there are."""
    gains: tuple[Gain, ...]
    """What further images would bring, for each class that has images that could be held out."""
    curves: NDArray[np.float64]
    """The fitted power laws, error = c + a · n^-b: draws × exponents b × (weight, c, a); a draw's weights sum to 1."""
    least_deviation: float = 0.0
    """Standard deviation of an error of which none was seen in so many images; no forecast is surer than that."""

    def forecast(self, images: float) -> tuple[float, float]:
        """Forecast accuracy with so many training images in the same proportions, and its standard deviation."""
        weights, floors, heights = np.moveaxis(self.curves, 2, 0)
        errors = floors + heights * images**-_EXPONENTS
        means = (weights * errors).sum(axis=1)
        # Scatter between draws of the images, and between exponents that fit about as well.
        between = (weights * np.square(errors - means[:, None])).sum(axis=1).mean()
        return float(1 - means.mean()), max(float(np.sqrt(means.var() + between)), self.least_deviation)

    def gain(self, more: int) -> tuple[float, float]:
        """Forecast the gain by so many images more, in percentage points, and its standard deviation."""
        weights, _, heights = np.moveaxis(self.curves, 2, 0)
        gains = heights * (float(self.images) ** -_EXPONENTS - float(self.images + more) ** -_EXPONENTS)
        means = (weights * gains).sum(axis=1)
        between = (weights * np.square(gains - means[:, None])).sum(axis=1).mean()
        return 100 * float(means.mean()), 100 * max(float(np.sqrt(means.var() + between)), self.least_deviation)


def learning_curve(
    bottlenecks: NDArray[np.floating],
    labels: NDArray[np.intp],
    keys: Sequence[bytes],
    *,
    classes: int,
    l2: float,
    right: NDArray[np.floating],
    widths: Sequence[int] | None = None,
    more: int = 100,
    seed: int = 0,
) -> LearningCurve | None:
    """Measure and forecast; None for fewer than 80 images, which say too little.

    Args:
        bottlenecks: n×d of the training images, one row an image.
        labels: n class numbers from 0 to `classes` - 1.
        keys: n content hashes, each once, which decide the subsets together with `seed`.
        classes: number of classes K.
        l2: the head's strength; accuracy hardly depends on it, so it is the same for all sizes.
        right: n, cross-validation's verdict: 1 for right, 0 for wrong, NaN for images that were never held out.
        widths: number of features in each group, as for `fit_head`.
        more: images of one class to forecast the gain of.
        seed: seed of the subsets and of the bootstrap.
    """
    if len(labels) < FEWEST_IMAGES:
        return None
    ranks = np.stack([_ranks(labels, keys, f"{seed} {chain}") for chain in range(_CHAINS)], axis=1)
    thinned = _thinned(classes, seed)
    subsets = [ranks[:, chain] < share for chain in range(_CHAINS) for share in _SHARES]
    subsets += [
        ranks[:, design % _CHAINS] < np.where(thinned[labels, design], _SHARES[0], _SHARES[-1])
        for design in range(_DESIGNS)
    ]
    chains = [chain for chain in range(_CHAINS) for _ in _SHARES] + [design % _CHAINS for design in range(_DESIGNS)]
    judged = np.stack([ranks[:, chain] >= _SHARES[-1] for chain in chains], axis=1)
    features, _ = in_small_space(prepare_features(bottlenecks, widths=widths))
    wrong = _fit_subsets(features, labels, np.stack(subsets, axis=1), classes, l2)
    # A class whose only images lie in the larger subset can be judged by none.
    measured = len(_SHARES) * _CHAINS
    weights = _bootstrap(len(labels), seed)
    errors = _nested_errors(wrong[:, :measured], judged[:, :measured], right, weights)
    sizes = np.array([subset.sum() for subset in subsets[: len(_SHARES)]] + [_FOLD_SHARE * len(labels)])
    images = (judged[:, :measured] & ~np.isnan(right)[:, None]).reshape(len(labels), _CHAINS, len(_SHARES))
    least = _deviation_of_none(np.append(images.any(axis=1).sum(axis=0), (~np.isnan(right)).sum()))
    scatter = np.maximum(errors[1:].std(axis=0), least)
    exponents = _own_exponents(wrong[:, measured:], judged[:, measured:], labels, thinned, weights)
    return LearningCurve(
        points=tuple(
            CurvePoint(images=round(size), accuracy=1 - error, deviation=deviation)
            for size, error, deviation in zip(sizes.tolist(), errors[0].tolist(), scatter.tolist(), strict=True)
        ),
        images=len(labels),
        gains=_gains(labels, right, exponents, weights, classes, more),
        curves=np.stack([_fit_power_laws(sizes, drawn, scatter) for drawn in errors[1:]]),
        least_deviation=float(least[-1]),
    )


def _deviation_of_none(images: NDArray[np.intp]) -> NDArray[np.float64]:
    """Work out one standard deviation of the error where none of so many images is wrong, by Jeffreys' prior.

    Drawing images anew would say 0, since there is no wrong one to draw.
    """
    deviations: NDArray[np.float64] = np.sqrt(0.5 * (images + 0.5) / (images + 2)) / (images + 1)
    return deviations


def _ranks(labels: NDArray[np.intp], keys: Sequence[bytes], salt: str) -> NDArray[np.float64]:
    """Rank each image in its class by a hash, from 0 to below 1: ranks below s are a share s of the class."""
    positions = np.array([hashlib.sha256(salt.encode() + key).digest()[:8] for key in keys], "S8")
    order = np.lexsort((positions, labels))
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    ranks = np.empty(len(labels))
    ranks[order] = place / counts[labels[order]]  # the first is always in
    return ranks


def _thinned(classes: int, seed: int) -> NDArray[np.bool_]:
    """Draw whether a class is thinned in a subset of the design (K×D): each in half of them, otherwise by chance."""
    draws = np.random.Generator(np.random.Philox(key=[seed, 0]))
    half = np.arange(_DESIGNS) < _DESIGNS // 2
    return np.stack([draws.permutation(half) for _ in range(classes)])


def _fit_subsets(
    features: Features, labels: NDArray[np.intp], subsets: NDArray[np.bool_], classes: int, l2: float
) -> NDArray[np.bool_]:
    """Fit a head to each subset (columns), and say of each image (rows) whether it is wrong."""
    sample_weights: Floats = (subsets / subsets.sum(axis=0)).astype(np.float32)
    together = max(1, LARGEST_BATCH // (len(labels) * classes))
    wrong = np.empty(subsets.shape, np.bool_)
    for start in range(0, subsets.shape[1], together):
        batch = slice(start, start + together)
        fit = fit_softmax(features, labels, sample_weights[:, batch], classes=classes, l2=l2, precision=_PRECISION)
        wrong[:, batch] = fit.logits.argmax(axis=2) != labels[:, None]
    return wrong


def _bootstrap(n: int, seed: int) -> NDArray[np.float64]:
    """Draw how often each image counts: draws × images, after a first row that counts each once."""
    draws = np.random.Generator(np.random.Philox(key=[seed, 1]))
    return np.concatenate([np.ones((1, n)), draws.multinomial(n, np.full(n, 1 / n), _DRAWS)])


def _nested_errors(
    wrong: NDArray[np.bool_], judged: NDArray[np.bool_], right: NDArray[np.floating], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Work out shares of wrong ones, draws × sizes: of nested subsets, chains together, and of cross-validation.

    A subset's is cross-validation's plus the difference between the two on the images that both judge: an image that is
    hard for one is hard for the other, so the difference scatters less than either.
    """
    held_out = ~np.isnan(right)
    missed = np.where(held_out, 1 - right, 0)
    final = weights @ missed / np.maximum(weights @ held_out, 1)
    both = judged & held_out[:, None]
    excess = weights @ ((wrong & both) - np.where(both, missed[:, None], 0))
    by_size = (len(weights), _CHAINS, len(_SHARES))
    images = (weights @ both).reshape(by_size).sum(axis=1)
    nested = final[:, None] + excess.reshape(by_size).sum(axis=1) / np.maximum(images, 1)
    return np.hstack([np.clip(nested, 0, 1), final[:, None]])


def _fit_power_laws(
    sizes: NDArray[np.float64], errors: NDArray[np.float64], scatter: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Fit a power law for each exponent of the grid: its weight, floor and height (exponents × 3)."""
    fits = np.empty((len(_EXPONENTS), 3))
    for row, exponent in enumerate(_EXPONENTS):
        falling = sizes**-exponent
        floor, height = _two_weights(falling / scatter, 1 / scatter, errors / scatter)
        misfit = np.sum(np.square((floor + height * falling - errors) / scatter))
        fits[row] = -misfit / 2, floor, height
    fits[:, 0] = np.exp(fits[:, 0] - fits[:, 0].max())
    fits[:, 0] /= fits[:, 0].sum()
    return fits


def _two_weights(
    falling: NDArray[np.float64], constant: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[float, float]:
    """Find the floor and the height, neither below 0, of least squared misfit."""
    design = np.stack([constant, falling], axis=1)
    floor, height = np.linalg.solve(design.T @ design, design.T @ target)
    if floor >= 0 and height >= 0:
        return float(floor), float(height)
    only_height = max(float(falling @ target / (falling @ falling)), 0.0)
    only_floor = max(float(constant @ target / (constant @ constant)), 0.0)
    if np.sum(np.square(only_height * falling - target)) <= np.sum(np.square(only_floor * constant - target)):
        return 0.0, only_height
    return only_floor, 0.0


def _own_exponents(
    wrong: NDArray[np.bool_],
    judged: NDArray[np.bool_],
    labels: NDArray[np.intp],
    thinned: NDArray[np.bool_],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Measure how fast errors fall with a class's own images, as b in n^-b, by draw; 0 where they do not."""
    few = thinned[labels]
    mistakes = [weights @ (wrong & judged & side).sum(axis=1) + 0.5 for side in (few, ~few)]
    images = [weights @ (judged & side).sum(axis=1) + 1 for side in (few, ~few)]
    ratio = (mistakes[0] / images[0]) / (mistakes[1] / images[1])
    exponents: NDArray[np.float64] = np.log(ratio) / np.log(_SHARES[-1] / _SHARES[0])
    return np.maximum(exponents, 0)


def _gains(
    labels: NDArray[np.intp],
    right: NDArray[np.floating],
    exponents: NDArray[np.float64],
    weights: NDArray[np.float64],
    classes: int,
    more: int,
) -> tuple[Gain, ...]:
    gains = []
    for number in range(classes):
        members = (labels == number) & ~np.isnan(right)
        if not members.any():
            continue
        images = int(np.sum(labels == number))
        mistakes = weights[:, members] @ (1 - right[members])
        errors = mistakes / np.maximum(weights[:, members].sum(axis=1), 1)
        growth = np.log((images + more) / images)
        saved = errors * (1 - np.exp(-exponents * growth))
        none_wrong = 0.0 if mistakes[0] else float(_deviation_of_none(members.sum()))
        by_class = errors[0] * np.exp(-exponents[0] * growth) * growth * _CLASSES_DIFFER
        gains.append(
            Gain(
                name=number,
                images=images,
                recall=float(right[members].mean()),
                more=more,
                points=100 * float(saved[0]),
                deviation=100 * max(float(np.hypot(saved[1:].std(), by_class)), none_wrong),
            )
        )
    return tuple(gains)
