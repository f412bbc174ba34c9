"""How fine-tuning is done: its values, none of which depends on the backbone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from quickstudy.errors import OptionError
from quickstudy.optimisation.schedules import OneCycle
from quickstudy.options import Option, options_of

VIEWS = 1
"""Distorted views an image, besides the plain one."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """Everything that decides what fine-tuning gives, besides the network and the images."""

    epochs: Annotated[int, Option("Fine-tune for so many passes over the training images at most.", least=1)] = 12
    batch: int = 32
    """Images a step, at least 1."""
    schedule: OneCycle = field(default_factory=lambda: OneCycle(rate=1e-3, rate_start=0.04, rate_end=0.0, warmup=0.2))
    """Learning rate of the last layer before the head, by step."""
    depth_decay: float = 0.7
    """Share of that rate at which the first layer after the cut learns, above 0 and at most 1; those between are in
    between."""
    head_rate: float = 1.0
    """Rate of the head, as a multiple of the rate of the layer before it; 0 keeps the head as it is."""
    weight_decay: float = 0.05
    """Share of each weight that a step of rate 1 takes away; 0 takes nothing."""
    label_smoothing: float = 0.1
    """Share of each label that is spread over all classes, 0 to 1."""
    mixup: float = 0.0
    """Parameter of the beta distribution by which pairs of activations are mixed (Verma et al., 2019,
    arXiv:1806.05236); 0 mixes nothing."""
    average_decay: float = 0.99
    """Decay of the moving averages of all weights, which are evaluated and kept, below 1; 0 averages nothing."""
    patience: int = 6
    """Epochs in a row, at least 1, with fewer validation images right than the linear head had, after which it ends."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers that layers multiply in; auto takes bfloat16 where the machine has instructions for it."""
    seed: int = 0
    """Number that all random numbers follow from."""

    def __post_init__(self) -> None:
        values = options_of(self)
        for name, (low, high) in _RANGES.items():
            if not (low <= (value := values[name]) <= high and math.isfinite(value)):
                upper = f" to {high:g}" if high < math.inf else " or more"
                raise OptionError(f"{name} is {value:g}; expected {low:g}{upper}")
        for name in ("rate", "depth_decay"):
            if not 0 < (value := values[name]) < math.inf:
                raise OptionError(f"{name} is {value:g}; expected a positive number, such as {_EXAMPLES[name]:g}")


_RANGES = {
    "epochs": (1, math.inf),
    "batch": (1, math.inf),
    "rate_start": (0, 1),
    "rate_end": (0, 1),
    "warmup": (0, 1),
    "depth_decay": (0, 1),
    "head_rate": (0, math.inf),
    "weight_decay": (0, math.inf),
    "label_smoothing": (0, 1),
    "mixup": (0, math.inf),
    "average_decay": (0, 0.999999),
    "patience": (1, math.inf),
    "seed": (0, math.inf),
}
_EXAMPLES = {"rate": 1e-3, "depth_decay": 0.7}
