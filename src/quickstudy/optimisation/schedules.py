"""Learning rates as pure functions of the step, so that a resumed run goes on where it was."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Staircase:
    """The rate falls by a factor every so many epochs."""

    rate: float = 0.1
    rate_decay: float = 0.1
    """Factor at each fall."""
    rate_decay_epochs: float = 350
    """Epochs from one fall to the next."""

    def at(self, step: int, *, steps: int, steps_per_epoch: float) -> float:
        """The rate at a step, counted from 0."""
        del steps
        return self.rate * self.rate_decay ** int(step / (steps_per_epoch * self.rate_decay_epochs))


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """The rate rises linearly to its peak and falls linearly to the end (after Smith & Topin, 2018)."""

    rate: float = 0.1
    """At the peak."""
    rate_start: float = 0.2
    """At the first step, as a share of the peak."""
    rate_end: float = 0.07
    """At the last step, as a share of the peak."""
    warmup: float = 0.23
    """Share of the steps until the peak."""

    def at(self, step: int, *, steps: int, steps_per_epoch: float) -> float:
        """The rate at a step, counted from 0."""
        del steps_per_epoch
        done = step / max(steps, 1)
        if done < self.warmup:
            return self.rate * (self.rate_start + (1 - self.rate_start) * done / self.warmup)
        return self.rate * (1 - (1 - self.rate_end) * (done - self.warmup) / (1 - self.warmup))
