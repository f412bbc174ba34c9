"""Learning rates as pure functions of the step, so that a resumed run goes on where it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from quickstudy.options import Option


@dataclass(frozen=True, kw_only=True)
class Staircase:
    """The rate falls by a factor every so many epochs."""

    rate: float = 0.1
    """Rate of the first step, at least 0."""
    rate_decay: float = 0.1
    """Factor by which the rate falls each time, 0 to 1; 1 keeps it."""
    rate_decay_epochs: float = 350
    """Epochs from one fall to the next, above 0."""

    def at(self, step: int, *, steps: int, steps_per_epoch: float) -> float:
        """Work out the rate at a step, counted from 0."""
        del steps
        return self.rate * self.rate_decay ** int(step / (steps_per_epoch * self.rate_decay_epochs))


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """The rate rises linearly to its peak and falls linearly to the end (after Smith & Topin, 2018)."""

    rate: Annotated[float, Option("Set the highest learning rate.")] = 0.1
    """The highest rate."""
    rate_start: float = 0.2
    """Rate of the first step, as a share of the highest; from 0 to 1."""
    rate_end: float = 0.07
    """Rate of the last step, as a share of the highest; from 0 to 1."""
    warmup: float = 0.23
    """Share of the steps before the highest rate; 0 begins with it."""

    def at(self, step: int, *, steps: int, steps_per_epoch: float) -> float:
        """Work out the rate at a step, counted from 0."""
        del steps_per_epoch
        done = step / max(steps, 1)
        if done < self.warmup:
            return self.rate * (self.rate_start + (1 - self.rate_start) * done / self.warmup)
        return self.rate * (1 - (1 - self.rate_end) * (done - self.warmup) / (1 - self.warmup))
