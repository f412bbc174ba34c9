"""How sure: sets of classes among which the right one is in, say, 95 % of cases.

The sets are conformal: a class belongs to an image's set where its probability is no lower than that of the right class
is in all but 5 % of the images kept for comparison (Vovk, Gammerman and Shafer, "Algorithmic learning in a random
world", 2005; this score: Sadinle, Lei and Wasserman, 2019, arXiv:1609.00451, whose sets are the smallest on average).
The most probable class always belongs, so that no set is empty. `by_class` compares with images of the class alone
(Mondrian, or label-conditional, conformal prediction: Vovk, 2012, arXiv:1209.2673), so that the share holds for each
class, rare ones too.

What is guaranteed: were the images compared with unseen by the very fit that predicts, and new images like them, the
right class would be in its set with a probability of at least the level, over all draws of images, however wrong the
probabilities are. That is so, but for the choice of an epoch, where a network was fine-tuned: the images are those of
its validation. Where a head was fitted, each image is judged by the fit of the other four folds, and new images by the
fit to all, which is a little better. So the guarantee becomes an approximation that errs to the safe side; the variant
that is proven, CV+ (Romano, Sesia and Candès, 2020, arXiv:2006.02544), would have the model carry five heads, and
promises 90 % where it is asked for 95. `benchmarks/sets.py` counts what comes of it in 200 draws.

The libraries for this, crepes and MAPIE, want scikit-learn, and crepes pandas, too, and MAPIE fits the classifiers
itself; what is needed of them here is a sorted list and an index into it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import OptionError
from quickstudy.learning.calibration import probabilities_of

FEWEST = 20
"""The fewest images to compare with: 5 % of fewer are none, and every set would hold all classes."""
LEAST_LEVEL = 0.01
"""The lowest level: nobody wants lower ones, and 0.95 where percent are expected means 95."""
_MOST = 20_000  # images, 53 kB in a model; a random part of the images serves as well as all
_LEVELS = 65_535  # a probability is kept as one of so many, rounded down, which makes sets no smaller
_RESOLUTION = "<u2"


@dataclass(frozen=True, kw_only=True, eq=False)
class Sets:
    """The images compared with: by class, the probabilities that the right class was given."""

    by: str
    """Origin of the probabilities: `cross-validation`, or `validation` where a network was fine-tuned."""
    given: tuple[NDArray[np.float64], ...]
    """For each class, in the model's order, the probabilities of its images, rising."""

    @property
    def n(self) -> int:
        """Number of images compared with."""
        return sum(map(len, self.given))

    def of(self, probabilities: NDArray[np.floating], level: float, *, by_class: bool = False) -> NDArray[np.bool_]:
        """Find the sets (N×K) of images by their class probabilities (N×K).

        Args:
            probabilities: what the model gives.
            level: share of images whose right class is to be in its set, from 0.01 to below 1.
            by_class: let the share hold for each class; a class of fewer than 1 / (1 - level) - 1 images, 19 at 95 %,
                is then in all sets.

        Raises:
            OptionError: the level is no such share.
        """
        if not LEAST_LEVEL <= level < 1:
            raise OptionError(f"The level of sets is {100 * level:g} %; expected 1 to below 100, such as 95")
        lists = self.given if by_class else (np.sort(np.concatenate(self.given)),) * len(self.given)
        found: NDArray[np.bool_] = probabilities >= np.array([_least(given, level) for given in lists])
        found[np.arange(len(found)), probabilities.argmax(axis=1)] = True
        return found

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        kept = [np.floor(given * _LEVELS).astype(_RESOLUTION) for given in self.given]
        return {"by": self.by, "n": self.n, "given": [base64.b64encode(one.tobytes()).decode() for one in kept]}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Sets:
        """Make sets of what `to_dict` gave.

        Raises:
            ValueError: it is something else.
        """
        data = [base64.b64decode(text, validate=True) for text in values["given"]]
        kept = [np.sort(np.frombuffer(one, _RESOLUTION)) / _LEVELS for one in data]
        return Sets(by=str(values["by"]), given=tuple(kept))


def fit_sets(logits: NDArray[np.floating], labels: NDArray[np.intp], *, classes: int, by: str) -> Sets | None:
    """Keep what sets of any level need; None where there are fewer than 20 images.

    Args:
        logits: calibrated logits (m×K) of images by fits that had not seen them, the images in a random order.
        labels: the images' class numbers, m.
        classes: number of classes K.
        by: where the logits come from.
    """
    if len(logits) < FEWEST:
        return None
    logits, labels = logits[:_MOST], labels[:_MOST]
    right = probabilities_of(logits)[np.arange(len(logits)), labels]
    return Sets(by=by, given=tuple(np.sort(right[labels == number]) for number in range(classes)))


def _least(given: NDArray[np.float64], level: float) -> float:
    """Find the least probability with which a class belongs to a set: of n, the (1 - level)(n + 1)-th from below."""
    place = int(np.floor((1 - level) * (len(given) + 1) + 1e-9))
    return float(given[place - 1]) if place else 0.0
