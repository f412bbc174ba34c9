"""What a retraining gives back to its caller."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quickstudy.bottlenecks.preparing import Timings
from quickstudy.images.census import Census
from quickstudy.images.imageset import Skipped
from quickstudy.learning.answers import Answer, Thresholds
from quickstudy.learning.prior import NamesCompared
from quickstudy.learning.scores import Score, Scores
from quickstudy.learning.selection import Head, LevelsCompared, PathPoint
from quickstudy.learning.strangeness import Refusal
from quickstudy.retraining.config import RetrainConfig
from quickstudy.retraining.previous import Previous
from quickstudy.retraining.race import Choice


@dataclass(frozen=True, kw_only=True)
class RetrainResult:
    """Says what a retraining made, and how far to trust it."""

    model: Path
    """Path of the `.onnx` file."""
    config: RetrainConfig
    """Configuration that was carried out, with what the planner chose where there was a budget."""
    census: Census
    """Images by content, in their roles, and what became of the others."""
    cross_validation: Score
    """Score of the linear head on training images, each held out once; of several labels an image, all must be right,
    each given from one half on."""
    answer: Answer
    """What the model's probabilities are answered by: the most probable class, or several labels by thresholds."""
    test: Scores | None
    """Scores on the test split, looked at once; None where the given splits have no test."""
    cross_validated: Scores | None
    """Scores of several labels an image in cross-validation, where nothing is held out for the test: by the thresholds,
    which were chosen on these images, so a little too good; None where there is a test, or each image has one class, or
    too few images to judge any."""
    head: Head
    """Linear head at its optimum; fine-tuning, if there was any, began from it."""
    compared: LevelsCompared | None
    """What cross-validation found of the last features and of all levels; None where they were not compared."""
    prior: NamesCompared | None
    """What cross-validation found of the names of the classes; None where they were not compared."""
    choices: tuple[Choice, ...]
    """What cross-validation, or the images' shapes, chose beforehand: backbone and fit; empty where both were named."""
    refusal: Refusal | None
    """Strangeness above which the model takes an image for none of its classes; None where there were too few images to
    tell."""
    examples: Score | None
    """How many test images of none of the classes it takes for none of these; None where there are no such images."""
    cut: str
    """Name of the cut at which freezing ended: `features` or `levels` where only the head is trained."""
    tuning: tuple[dict[str, Any], ...]
    """How fine-tuning went, stage by stage: the network after each epoch on the validation images; empty without it."""
    plan: dict[str, Any] | None
    """What the planner chose and predicted; None where no budget was given."""
    computed: int
    """Number of forward passes through the backbone."""
    cached: int
    """Number of bottlenecks that came from the store."""
    previous: Previous | None
    """What was in the model's place before; None where nothing was, or the same."""
    seconds: dict[str, float]
    """Wall time in seconds, by stage."""
    extraction: Timings
    """Seconds in each step of the extraction, summed over threads."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's probabilities."""
        return self.census.classes

    @property
    def views(self) -> int:
        """Number of distorted views an image, besides the plain one."""
        return self.config.distorted

    @property
    def train_counts(self) -> dict[str, int]:
        """Number of images learned from or chosen by, by class; copies count once."""
        return dict(sorted(self.census.counts("train", "validation").items()))

    @property
    def test_counts(self) -> dict[str, int]:
        """Number of images held out for the test, by class, those of classes that could not be learned among them."""
        return dict(sorted(self.census.counts("test").items()))

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files that were left out, with the reason."""
        return self.census.skipped

    @property
    def path(self) -> tuple[PathPoint, ...]:
        """Regularisation strengths that were tried, with what came of each."""
        return self.head.path

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON values."""
        return {
            "model": str(self.model),
            "classes": list(self.classes),
            "train_counts": self.train_counts,
            "test_counts": self.test_counts,
            "skipped": [item.to_dict() for item in self.skipped],
            "conflicts": [[str(path) for path in group] for group in self.census.conflicts],
            "copies": self.census.copies,
            "leaks": self.census.leaks,
            "classes_without_images": list(self.census.empty_classes),
            "classes_of_one_image": list(self.census.single),
            "alike_classes": [list(pair) for pair in self.census.alike_classes],
            "cross_validation": self.cross_validation.to_dict(),
            "never_held_out": self.head.never_held_out,
            "thresholds": self.answer.to_dict() if isinstance(self.answer, Thresholds) else None,
            "test": self.test.to_dict() if self.test else None,
            "cross_validated": self.cross_validated.to_dict() if self.cross_validated else None,
            "head": {
                "l2": self.head.l2,
                "path": [asdict(point) for point in self.head.path],
                "temperature": self.head.temperature,
                "iterations": self.head.iterations,
                "gap": self.head.gap,
                "levels": self.compared.to_dict() if self.compared else None,
                "prior": self.prior.to_dict() if self.prior else None,
            },
            "choices": [choice.to_dict() for choice in self.choices],
            "strangeness": self.refusal.to_dict() if self.refusal else None,
            "examples_refused": self.examples.to_dict() if self.examples else None,
            "cut": self.cut,
            "views": self.views,
            "options": self.config.recorded(),
            "fine_tuning": list(self.tuning),
            "plan": self.plan,
            "forward_passes": self.computed,
            "from_store": self.cached,
            "previous": self.previous.to_dict() if self.previous else None,
            "seconds": self.seconds,
            "extraction_seconds": asdict(self.extraction),
        }
