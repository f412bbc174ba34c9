"""How fine-tuning is done: its values, none of which depends on the backbone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from quickstudy.errors import RecipeError
from quickstudy.optimisation.schedules import OneCycle

VIEWS = 1
"""Distorted views an image, besides the plain one."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """Everything that decides what fine-tuning gives, besides the network and the images."""

    epochs: int = 12
    batch: int = 32
    schedule: OneCycle = field(default_factory=lambda: OneCycle(rate=1e-3, rate_start=0.04, rate_end=0.0, warmup=0.2))
    """Learning rate of the last layer before the head."""
    depth_decay: float = 0.7
    """The first layer after the cut learns at this share of that rate; those between are in between."""
    head_rate: float = 1.0
    """The head's rate, as a multiple."""
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    mixup: float = 0.0
    """Parameter of the beta distribution by which pairs of activations are mixed (Verma et al., 2019,
    arXiv:1806.05236); 0: not at all."""
    average_decay: float = 0.99
    """Of the moving averages of all weights, which are what is evaluated and kept."""
    patience: int = 6
    """Epochs in a row after which it ends that have left fewer validation images right than the linear head."""
    precision: str = "auto"
    """In which layers multiply: float32, bfloat16, or auto: bfloat16 where the machine has instructions for it."""
    seed: int = 0

    @staticmethod
    def of(*, epochs: int | None = None, rate: float | None = None) -> Method:
        """The usual method, with other values for what is given.

        Raises:
            RecipeError: a value cannot be used.
        """
        usual = Method()
        if epochs is not None and epochs < 1:
            raise RecipeError(f"epochs is {epochs}; expected 1 or more")
        if rate is not None and not 0 < rate < math.inf:
            raise RecipeError(f"rate is {rate:g}; expected a positive number, such as {usual.schedule.rate:g}")
        schedule = usual.schedule if rate is None else replace(usual.schedule, rate=rate)
        return replace(usual, epochs=usual.epochs if epochs is None else epochs, schedule=schedule)

    def to_dict(self) -> dict[str, Any]:
        """All values, as JSON values."""
        return asdict(self)
