"""What the names of classes say of an image, beside what was learned: cross-validation chooses its share of the logits.

A network that was trained on images and texts knows something of a class by its name alone, as much with two images of
it as with two thousand. So the logits of a head are mixed with those of the names: the one's times 1 - share, the
other's times share. LP++ (Huang et al., 2024, arXiv:2404.02285) learns a share for each class; one number for all is
told apart from chance by fewer images. The logits of the images that were held out choose it: nothing is fitted anew.

Shares only count where they are better than without names by more than the standard error, image by image. As names
that say nothing still make a head less bold, and few images leave no temperature to do so, they are compared with
the best that the head gives by that alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.learning.features import Floats, logits_of_names
from quickstudy.learning.links import Integers
from quickstudy.learning.selection import Head, fit_temperature
from quickstudy.learning.strengths import log_losses

_SHARES = tuple(tenth / 10 for tenth in range(11))
"""The shares of the logits that names may have; 0 is the head alone, 1 the names alone."""
FEWEST = 10
"""The smallest number of held-out images by which a share is chosen."""


@dataclass(frozen=True, kw_only=True)
class NamesCompared:
    """What cross-validation found of a head alone, and mixed with what the names of its classes say."""

    log_loss_without: float
    """Mean log loss of the held-out images by the head alone, in nats; the least that making it less bold gives."""
    log_loss_with: float
    """Mean log loss of the same images with the best share of the names, in nats."""
    log_loss_names: float
    """Mean log loss of the same images by the names alone, in nats."""
    standard_error: float
    """Standard error of the difference between the first two, in nats, from the differences image by image."""
    best: float
    """Share of the least log loss, above 0 and at most 1."""
    temperature: float
    """The number by which mixed logits were divided to calibrate them; 1 where names do not count."""

    @property
    def pay(self) -> bool:
        """Whether names make it better by more than the standard error."""
        return self.log_loss_without - self.log_loss_with > self.standard_error

    @property
    def share(self) -> float:
        """How much names count, 0 to 1."""
        return self.best if self.pay else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Give what was found and what was chosen as JSON values."""
        return {**asdict(self), "share": self.share}


def mix_names(
    head: Head,
    names: Floats,
    features: NDArray[np.floating],
    truth: Integers,
) -> tuple[Head, NamesCompared | None]:
    """Mix a head with what names say, as far as its held-out images are the better for it.

    Args:
        head: of one class an image, by cross-validation.
        names: what names say (F×K): products with features of length 1 are logits.
        features: the last features (m×F) of the rows that were held out, in the order of `head.held_out`.
        truth: their class numbers (m).

    Returns:
        The head, and what was compared; the head as it was, and None, where fewer than 10 images were held out.
    """
    if len(truth) < FEWEST:
        return head, None
    said = logits_of_names(features, names)
    alone = min((_losses((1 - share) * head.held_out_logits, truth) for share in _SHARES[:-1]), key=np.mean)
    mixed = {share: _losses(_mix(head.held_out_logits, said, share), truth) for share in _SHARES[1:]}
    best = min(mixed, key=lambda share: float(mixed[share].mean()))
    compared = NamesCompared(
        log_loss_without=float(alone.mean()),
        log_loss_with=float(mixed[best].mean()),
        log_loss_names=float(_losses(said, truth).mean()),
        standard_error=float((alone - mixed[best]).std(ddof=1) / len(truth) ** 0.5),
        best=best,
        temperature=1.0,
    )
    if not compared.pay:
        return head, compared
    logits = _mix(head.held_out_logits, said, best)
    temperature = fit_temperature(logits, truth)
    predicted = logits.argmax(axis=1)
    rest = np.float32((1 - best) / temperature)
    mixed_head = replace(
        head,
        weights=head.weights * rest,
        biases=head.biases * rest,
        names=names * np.float32(best / temperature),
        held_out_classes=predicted,
        held_out_logits=logits / np.float32(temperature),
        held_out_right=int((predicted == truth).sum()),
        temperature=head.temperature * temperature,
    )
    return mixed_head, replace(compared, temperature=temperature)


def _mix(learned: Floats, said: Floats, share: float) -> Floats:
    return np.float32(1 - share) * learned + np.float32(share) * said


def _losses(logits: Floats, truth: Integers) -> NDArray[np.float64]:
    """Work out the log losses of rows, in nats, after calibration where there are rows enough for it."""
    return log_losses(logits / np.float32(fit_temperature(logits, truth)), truth)
