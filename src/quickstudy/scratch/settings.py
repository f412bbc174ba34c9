"""How a run is carried out, and what it tells while it goes and when it has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quickstudy.errors import OptionError
from quickstudy.images.imageset import Skipped
from quickstudy.learning.scores import Score, Scores
from quickstudy.scratch.layers import Cost
from quickstudy.scratch.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is carried out; nothing here changes what it gives, but for the rounding of sums over devices."""

    devices: int = 1
    """Replicas on this machine."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int = 16
    """That prepare batches; 0: the training thread prepares them itself."""
    data_folder: Path | None = None
    """Where named data sets lie; see `images.named.data_folder`."""
    log_steps: int = 10
    """Steps from one report to the next."""
    summary_steps: int = 100
    """Steps from one set of histograms and images to the next; 0: no TensorBoard."""
    graph: bool = True
    """Whether TensorBoard gets the network's graph, which takes some tenths of a second to trace."""
    checkpoint_seconds: float = 60.0
    """Time from one checkpoint to the next."""
    keep: int = 5
    """Checkpoints that are kept, besides the best."""

    def check(self) -> None:
        """Raise a OptionError where a value cannot be used."""
        for name, least in (("devices", 1), ("threads", 0), ("log_steps", 1), ("summary_steps", 0), ("keep", 1)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} is {getattr(self, name)}; expected {least} or more")


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What is known before the first step."""

    recipe: Recipe
    cost: Cost
    classes: tuple[str, ...]
    images: dict[str, int]
    """By split."""
    skipped: tuple[Skipped, ...]
    steps: int
    step: int
    """Where the run goes on; 0 at first."""
    damaged: tuple[Path, ...]
    """Checkpoints that were damaged and had to be passed over."""
    precision: str
    device: str
    replicas: int


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """What the last steps were like."""

    step: int
    """How many steps have been made."""
    loss: float
    """Of the last step, weight decay included."""
    smoothed_loss: float
    examples_per_second: float
    seconds_per_batch: float


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What an evaluation within the run came to."""

    step: int
    split: str
    score: Score
    seconds: float
    """Spent on steps until then."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run came to."""

    run: Path
    steps: int
    test: Scores
    """On all test images."""
    validation: Scores | None
    """On the images held out to choose by."""
    seconds: float
    """Spent training and evaluating, by all processes that took part one after the other."""
    training_seconds: float
    """Of these, spent on steps."""
    cost: Cost
    """Of the network."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "training_seconds": self.training_seconds,
            "parameters": self.cost.parameters,
            "multiply_adds": self.cost.multiply_adds,
            "test": self.test.to_dict(),
            "validation": None if self.validation is None else self.validation.to_dict(),
        }

    @staticmethod
    def from_dict(run: Path, values: Mapping[str, Any]) -> RunResult:
        """From what `to_dict` gave."""
        held = values["validation"]
        return RunResult(
            run=run,
            steps=values["steps"],
            test=Scores.from_dict(values["test"]),
            validation=None if held is None else Scores.from_dict(held),
            seconds=values["seconds"],
            training_seconds=values["training_seconds"],
            cost=Cost(parameters=values["parameters"], multiply_adds=values["multiply_adds"]),
        )


Report = Callable[[Begun | Progressed | Evaluated], None]
"""What a run tells its news to."""
