"""How strange an image is to a model: whether it is of none of its classes, by what the head saw in training.

A classifier is sure of things that it has never seen: what is far from all classes is still on one side of each border.
Three figures tell, each in its own way, and strangeness is the sum of them, each in units of how much it varies:

- The relative distance (Ren et al., 2021, arXiv:2106.09022): the Mahalanobis distance to the nearest class, by the
  covariance within classes, less that to all images together. What has nothing of any class is as near to all images as
  to the nearest class. Both distances are the same but for the directions in which the classes lie apart, of which
  there are fewer than classes, so a model needs no more than these: 46 kB for ten classes.
- The energy of the logits (Liu et al., 2020, arXiv:2010.03759), which is high where no class is likely.
- The spread: the distance to the mean of all images, each feature in units of its own deviation, which blank images and
  noise show most clearly. It counts half.

No one of them does for both what is near, a garment of an unknown kind, and what is far, noise or another subject:
`benchmarks/strangeness.py` compares them and others. Strangeness is then the share of the training images that are less
strange, each judged without itself: its logits are those of the fold that had not seen it, and its distances are those
from classes without it, by a closed form.

Where there are examples of what is of none of the classes, a fourth figure is added: the logit of a logistic regression
that tells them from the own images, each judged by the fold that had not seen it. It counts twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import HeadError
from quickstudy.learning.features import Floats, blas_threads, signed_sqrt
from quickstudy.learning.scores import share_interval
from quickstudy.learning.selection import fit_head

Doubles = NDArray[np.float64]

FEWEST = 50
"""The fewest images to judge by. With n images a share of 1 / (n + 1) is the least that can be told: 2 % with 49."""
REFUSED = 0.02
"""Share of the own images that is refused where nothing was said, nor examples of others are there."""
_DIRECTIONS = 64  # in which covariances are measured; 128 and 256 do no better on the clothing photos
_ROWS_A_DIRECTION = 4
_MOST_KEPT = 64  # directions in which classes lie apart
_SAMPLE = 512  # rows, from which centre, spread and directions are found
_BLOCK = 256  # rows at a time
_SHRINKAGE = 0.1
_SPREAD_COUNTS = 0.5
# Of five kinds of clothing, with skirts and CIFAR-10 for examples, weights of 1, 2 and 4 refuse 8.0, 3.3 and 3.8 % of
# the own images and 96.7, 95.8 and 97.5 % of the examples.
_EXAMPLES_COUNT = 2
_LEAST_VARIANCE = 0.05  # of the mean variance of a feature
SHARES = np.concatenate([np.arange(0, 0.9, 0.05), np.arange(0.9, 0.99, 0.01), np.arange(0.99, 1.0001, 0.0025)])
"""The shares of the own images at which the scale of strangeness is told, rising; between them it is even."""
_SINGLE_PRECISION = 1e-6  # by how much of its largest part a score is off when a graph computes it
_STEP = 1e-3  # by how much strangeness may be off then
_UPPER = 0.8413  # the quantile that is one standard deviation above the median, of a normal distribution


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Says above which strangeness an image is taken for none of the classes, and how many own images that refuses."""

    threshold: float
    """The strangeness above which an image is refused, between 0 and 1; 1 refuses none."""
    refused: int
    """Number of own images, each judged without itself, that are refused."""
    n: int
    """Number of own images that were judged."""
    examples_refused: int = 0
    """Number of examples of none of the classes, each judged without itself, that are refused."""
    examples: int = 0
    """Number of examples of none of the classes that were judged."""

    @property
    def share(self) -> float:
        """Share of the own images that are refused, between 0 and 1."""
        return self.refused / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the share's 95 % interval (Wilson, 1927)."""
        return share_interval(self.refused, self.n)

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {**asdict(self), "share": self.share, "interval_95": list(self.interval)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Refusal:
        """Make a refusal of what `to_dict` gave.

        Raises:
            ValueError: it is something else.
        """
        threshold, refused, n = values["threshold"], values["refused"], values["n"]
        examples, found = values.get("examples", 0), values.get("examples_refused", 0)
        if not (0 <= threshold <= 1 and 0 <= refused <= n and n > 0 and 0 <= found <= examples):
            raise ValueError("what it says of its strangeness contradicts itself")
        return Refusal(
            threshold=float(threshold),
            refused=int(refused),
            n=int(n),
            examples_refused=int(found),
            examples=int(examples),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Images of none of the classes, and what tells them from the own ones."""

    features: NDArray[np.floating]
    """What the head sees of the examples, e×d."""
    logits: NDArray[np.floating]
    """Calibrated logits (e×K) of the examples by the head, which has not seen them."""
    weights: Floats
    """Weights (d) of the signed square roots of features for the logit that an image is one of the examples' kind."""
    bias: float
    """The number to add to that logit."""
    own_odds: Doubles
    """The same logit of the images to judge (m), by fits that had not seen them."""
    odds: Doubles
    """The same logit of the examples (e), by fits that had not seen them."""


def learn_examples(
    own: NDArray[np.floating],
    own_keys: Sequence[bytes],
    examples: NDArray[np.floating],
    keys: Sequence[bytes],
    logits: NDArray[np.floating],
    *,
    judged: NDArray[np.intp] | None = None,
    beside: NDArray[np.floating] | None = None,
    widths: Sequence[int] | None = None,
) -> Examples:
    """Learn what tells examples of none of the classes from own images.

    Args:
        own: what the head sees of the own images (n×d).
        own_keys: their content hashes.
        examples: what the head sees of the examples (e×d).
        keys: their content hashes.
        logits: calibrated logits (e×K) of the examples.
        judged: numbers of the own images to judge; all but those in `beside` if left out.
        beside: what the head sees of images to judge that are not among the own ones; the own ones if left out.
        widths: number of features in each group, as for `fit_head`.
    """
    rows = np.concatenate([own, examples])
    marks = np.repeat(np.array([0, 1], np.intp), (len(own), len(examples)))[:, None]
    head = fit_head(rows, marks, [*own_keys, *keys], classes=1, widths=widths)
    odds = head.logits(rows)[:, 0].astype(np.float64)
    odds[head.held_out] = head.held_out_logits[:, 0]
    if beside is not None:
        own_odds = head.logits(beside)[:, 0].astype(np.float64)
    else:
        own_odds = odds[: len(own)] if judged is None else odds[judged]
    return Examples(
        features=examples,
        logits=logits,
        weights=head.weights[:, 0],
        bias=float(head.biases[0]),
        own_odds=own_odds,
        odds=odds[len(own) :],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Strangeness:
    """What turns features and logits into strangeness."""

    directions: Floats
    """Directions (d×r) in which the classes lie apart, in units of the deviation within classes."""
    offsets: Floats
    """The numbers (r) to add to features in these directions, so that the mean of all images is 0."""
    means: Floats
    """Means of the classes in these directions, K×r."""
    kept: Floats
    """For each direction (r), 1 less the share of its variance that is within classes, between 0 and 1."""
    centre: Floats
    """Means of the features over up to 512 of the images, d."""
    scales: Floats
    """The numbers (d) by which distances from the centre are multiplied before they are squared and summed."""
    energy: float
    """The number by which the energy is multiplied."""
    knots: Floats
    """Scores (M) of the own images at the shares in `shares`, rising."""
    shares: Floats
    """Shares (M) of the own images whose score is below each of `knots`, rising from 0 to 1."""
    own: Doubles
    """Strangeness of the own images that were judged (m), each without itself."""
    odds: Floats | None = None
    """What signed square roots of features (d) are multiplied by for the figure that examples of none of the classes
    add; None where there were none."""
    odds_bias: float = 0.0
    """The number to add to that figure."""
    examples: Doubles | None = None
    """Strangeness of these examples, each judged without itself; None where there were none."""

    def score(self, features: NDArray[np.floating], logits: NDArray[np.floating]) -> Doubles:
        """Work out how strange images are on an open scale (n), of what the head sees (n×d) and its logits (n×K)."""
        x = signed_sqrt(features).astype(np.float64)
        placed = x @ self.directions.astype(np.float64) + self.offsets
        nearest = ((self.means**2).sum(axis=1) - 2 * placed @ self.means.astype(np.float64).T).min(axis=1)
        relative = placed**2 @ self.kept.astype(np.float64) + nearest
        spread = (((x - self.centre) * self.scales) ** 2).sum(axis=1)
        total: Doubles = relative + spread + self.energy * _energy(logits)
        return total if self.odds is None else total + x @ self.odds.astype(np.float64) + self.odds_bias

    def of(self, features: NDArray[np.floating], logits: NDArray[np.floating]) -> Doubles:
        """Work out strangeness (n), from 0 to 1; see `score`."""
        found: Doubles = np.interp(self.score(features, logits), self.knots, self.shares)
        return found

    def refusal(self, share: float | None) -> Refusal:
        """Say from which strangeness on images are refused, and how many own images and examples that is.

        Args:
            share: share of the own images to refuse, from 0 to 1; None leaves it to the examples: the threshold at
                which the share of own images refused and that of examples accepted are least in sum; without any, it
                is 2 %.
        """
        if share is None:
            share = REFUSED if self.examples is None else self._least_confused(self.examples)
        threshold = 1 - share
        examples = np.empty(0) if self.examples is None else self.examples
        return Refusal(
            threshold=threshold,
            refused=int((self.own > threshold).sum()),
            n=len(self.own),
            examples_refused=int((examples > threshold).sum()),
            examples=len(examples),
        )

    def _least_confused(self, examples: Doubles) -> float:
        shares = np.arange(1, 501) / 1000
        thresholds = 1 - shares
        own = (self.own[:, None] > thresholds).mean(axis=0)
        accepted = (examples[:, None] <= thresholds).mean(axis=0)
        return float(shares[int((own + accepted).argmin())])


def fit_strangeness(
    features: NDArray[np.floating],
    labels: NDArray[np.intp],
    logits: NDArray[np.floating],
    *,
    classes: int,
    held_out: NDArray[np.intp] | None = None,
    unseen: NDArray[np.floating] | None = None,
    examples: Examples | None = None,
) -> Strangeness | None:
    """Find what tells strange images from the model's own; None where fewer than 50 images can be judged.

    Args:
        features: what the head sees (n×d) of the images that it was fitted to, one row an image.
        labels: their class numbers, n.
        logits: calibrated logits (m×K) of the images to judge, by fits that had not seen them.
        classes: number of classes K.
        held_out: numbers (m) of the rows to judge, each without itself; each of a class with another image.
        unseen: what the head sees (m×d) of the images to judge, where they are not among the rows.
        examples: images of none of the classes; none if left out.

    Raises:
        HeadError: neither or both of `held_out` and `unseen` were given.
    """
    if (held_out is None) == (unseen is None):
        raise HeadError("Images are judged either among the rows, by held_out, or beside them, by unseen; give one")
    if len(logits) < FEWEST or len(features) < FEWEST:
        return None
    with blas_threads(worth=False):  # the products are small; a second thread waits more than it multiplies
        return _fit(features, labels, logits, classes, held_out, unseen, examples)


def _fit(
    features: NDArray[np.floating],
    labels: NDArray[np.intp],
    logits: NDArray[np.floating],
    classes: int,
    held_out: NDArray[np.intp] | None,
    unseen: NDArray[np.floating] | None,
    examples: Examples | None,
) -> Strangeness | None:
    sample = signed_sqrt(features[np.linspace(0, len(features) - 1, min(len(features), _SAMPLE)).astype(np.intp)])
    centre = sample.mean(axis=0)
    sample -= centre
    variances = np.square(sample).mean(axis=0, dtype=np.float64)
    if not variances.any():
        return None
    precise = 1 / (variances + _LEAST_VARIANCE * variances.mean())
    main = _main_directions(sample, max(1, min(_DIRECTIONS, sample.shape[1], len(features) // _ROWS_A_DIRECTION)))
    rows, spread = _seen(features, centre, main, precise)
    shift = rows.mean(axis=0)
    distances = _Distances(rows - shift, labels, classes)
    if held_out is not None:
        relative, spread = distances.without_itself(held_out), spread[held_out]
    elif unseen is not None:
        rows, spread = _seen(unseen, centre, main, precise)
        relative = distances.of(rows - shift)
    energy = _energy(logits)
    units = [_unit(relative), _unit(energy), _unit(spread) / _SPREAD_COUNTS]
    scores = relative / units[0] + energy / units[1] + spread / units[2]
    odds, odds_bias, farthest = None, 0.0, 0.0
    if examples is not None:
        unit = _unit(examples.own_odds) / _EXAMPLES_COUNT
        odds, odds_bias = (examples.weights / np.float32(unit)).astype(np.float32), examples.bias / unit
        scores = scores + examples.own_odds / unit
        farthest = float(np.abs(examples.own_odds).max()) / unit
    directions = main.astype(np.float64) @ distances.directions / units[0] ** 0.5
    placed = np.square((rows - shift) @ distances.directions).sum(axis=1) / units[0]
    largest = float(placed.max() + np.abs(energy).max() / units[1] + spread.max() / units[2]) + farthest
    knots, shares = _knots(np.quantile(scores, SHARES), _SINGLE_PRECISION * largest)
    if len(knots) < 2:
        return None
    found = Strangeness(
        directions=directions.astype(np.float32),
        offsets=-(centre @ directions + shift @ distances.directions / units[0] ** 0.5).astype(np.float32),
        means=(distances.means / units[0] ** 0.5).astype(np.float32),
        kept=distances.kept.astype(np.float32),
        centre=centre,
        scales=np.sqrt(precise / units[2]).astype(np.float32),
        energy=float(1 / units[1]),
        knots=knots.astype(np.float32),
        shares=shares.astype(np.float32),
        own=np.interp(scores, knots, shares),
        odds=odds,
        odds_bias=odds_bias,
    )
    if examples is None:
        return found
    # With the logit of the fold that had not seen the example in the place of that of all.
    plain = replace(found, odds=None).score(examples.features, examples.logits)
    judged = np.interp(plain + examples.odds / unit, knots, shares)
    return replace(found, examples=judged)


def _knots(quantiles: NDArray[np.float64], error: float) -> tuple[Doubles, Doubles]:
    """Choose of the quantiles those between which the scale is nowhere steeper than single precision can follow.

    Args:
        quantiles: scores below which the shares `SHARES` of the images lie, rising.
        error: by how much a score may be off.

    Returns:
        The knots and their shares; a single one where all scores are nearly the same.
    """
    last = len(quantiles) - 1

    def is_far(one: int, other: int) -> bool:
        return bool(quantiles[other] - quantiles[one] > (SHARES[other] - SHARES[one]) * error / _STEP)

    chosen = [0]
    for place in range(1, last):
        if is_far(chosen[-1], place) and is_far(place, last):
            chosen.append(place)
    chosen += [last] if is_far(chosen[-1], last) else []
    return quantiles[chosen], SHARES[chosen]


class _Distances:
    """Relative distances of rows (n×r) of known classes, from which they were learned, and of others."""

    def __init__(self, rows: NDArray[np.floating], labels: NDArray[np.intp], classes: int) -> None:
        rows = rows.astype(np.float64)
        n, r = rows.shape
        self._counts = np.bincount(labels, minlength=classes)
        self._labels = labels
        means = np.zeros((classes, r))
        np.add.at(means, labels, rows)
        means /= self._counts[:, None]
        own = rows - means[labels]
        within = own.T @ own / n
        within = (1 - _SHRINKAGE) * within + _SHRINKAGE * np.trace(within) / r * np.eye(r)
        self._whiten = np.linalg.inv(np.linalg.cholesky(within)).T
        self._rows, self._means = rows @ self._whiten, means @ self._whiten
        # Within classes all directions vary alike now; those in which the means lie apart are told by their own values.
        apart, deviations, _ = np.linalg.svd((self._means * np.sqrt(self._counts / n)[:, None]).T)
        count = min(r, classes - 1, _MOST_KEPT)
        self._apart, between = apart[:, :count], np.zeros(count)
        between[: len(deviations)] = deviations[:count] ** 2
        self.directions: Doubles = self._whiten @ self._apart
        """The directions (r×k) in which the classes lie apart."""
        self.means: Doubles = self._means @ self._apart
        """Means of the classes in these directions, K×k."""
        self.kept: Doubles = between / (1 + between)
        """For each direction (k), 1 less the share of its variance that is within classes."""

    def of(self, rows: NDArray[np.floating]) -> Doubles:
        """Work out the relative distances (m) of rows (m×r) that were not learned from."""
        placed = rows @ self.directions
        nearest = ((self.means**2).sum(axis=1) - 2 * placed @ self.means.T).min(axis=1)
        relative: Doubles = placed**2 @ self.kept + nearest
        return relative

    def without_itself(self, chosen: NDArray[np.intp]) -> Doubles:
        """Work out the relative distances (m) of rows by number, each from what the others alone would have taught.

        Without row x of class c, the class's mean moves by (x - mean) / (n_c - 1), and the covariances lose one term of
        rank one, whose inverses follow by Sherman and Morrison. The mean of all rows, and what covariances are shrunk
        to, stay: both move by a part in n.
        """
        rows, labels, n = self._rows[chosen], self._labels[chosen], len(self._rows)
        more = self._counts[labels] / (self._counts[labels] - 1)
        own = rows - self._means[labels]
        lengths = (own * own).sum(axis=1)
        term = (1 - _SHRINKAGE) / n * more
        to_means = (rows * rows).sum(axis=1)[:, None] - 2 * rows @ self._means.T + (self._means**2).sum(axis=1)
        products = (own * rows).sum(axis=1)[:, None] - own @ self._means.T
        distances = to_means + (term / (1 - term * lengths))[:, None] * products**2
        distances[np.arange(len(rows)), labels] = more**2 * lengths / (1 - term * lengths)
        to_all = (rows * rows).sum(axis=1) - (rows @ self._apart) ** 2 @ self.kept
        relative: Doubles = distances.min(axis=1) - to_all / (1 - to_all * (1 - _SHRINKAGE) / n)
        return relative


def _main_directions(sample: Floats, count: int) -> Floats:
    """Find an orthonormal basis (d×count) of the directions in which centred rows (n×d) vary most.

    It is a randomised range finder (Halko, Martinsson and Tropp, SIAM Review 53, 2011), with one iteration from a fixed
    start.
    """
    draws = np.random.Generator(np.random.Philox(key=[0, count])).standard_normal((len(sample), count))
    basis, _ = np.linalg.qr(sample.T @ (sample @ (sample.T @ draws.astype(np.float32))))
    return np.asarray(basis, np.float32)


def _seen(features: NDArray[np.floating], centre: Floats, main: Floats, precise: Doubles) -> tuple[Doubles, Doubles]:
    """Write rows (n×d) in the main directions (n×r), and work out how far from the centre they are spread (n)."""
    rows, spread = np.empty((len(features), main.shape[1])), np.empty(len(features))
    weights = precise.astype(np.float32)
    for first in range(0, len(features), _BLOCK):
        block = slice(first, first + _BLOCK)
        x = signed_sqrt(features[block]) - centre
        rows[block], spread[block] = x @ main, np.square(x, out=x) @ weights
    return rows, spread


def _energy(logits: NDArray[np.floating]) -> Doubles:
    z = logits.astype(np.float64)
    most = z.max(axis=1)
    energy: Doubles = -(most + np.log(np.exp(z - most[:, None]).sum(axis=1)))
    return energy


def _unit(values: Doubles) -> float:
    """Measure how far values reach above their median: by one standard deviation, were they normal; above 0.

    What reaches less far than a hundredth of the median tells nothing: the scores of a head that knows nothing, say.
    """
    median = float(np.median(values))
    return max(float(np.quantile(values, _UPPER)) - median, 0.01 * abs(median), 1e-6)
