"""What a retraining made, and how far to trust it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quickstudy.bottlenecks.extraction import Timings
from quickstudy.heads.selection import Head, PathPoint
from quickstudy.images.census import Census
from quickstudy.images.imageset import Skipped
from quickstudy.retraining.config import RetrainConfig
from quickstudy.retraining.evaluation import Evaluation, Score


@dataclass(frozen=True, kw_only=True)
class RetrainResult:
    """What a retraining made, and how far to trust it."""

    model: Path
    """The `.onnx` file."""
    config: RetrainConfig
    """What it was told, with what the planner chose where there was a budget."""
    census: Census
    """The images by content, in their roles, and what became of the others."""
    cross_validation: Score
    """On training images, each held out once."""
    test: Evaluation | None
    """On the test split, looked at once; None where the given splits have no test."""
    head: Head
    """Fitted to its optimum; where fine-tuning began if there was any."""
    cut: str
    """Where freezing ended."""
    tuning: tuple[dict[str, Any], ...]
    """How fine-tuning went, stage by stage: the network after each epoch on the validation images; none without it."""
    plan: dict[str, Any] | None
    """What the planner chose and predicted; None where no budget was given."""
    computed: int
    """Forward passes through the backbone."""
    cached: int
    """Bottlenecks that came from the store."""
    seconds: dict[str, float]
    """Wall time by stage."""
    extraction: Timings
    """Seconds in each step of the extraction, summed over threads."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the model's probabilities."""
        return self.census.classes

    @property
    def views(self) -> int:
        """Distorted views an image, besides the plain one."""
        return self.config.distorted

    @property
    def train_counts(self) -> dict[str, int]:
        """Images learned from or chosen by, by class; copies count once."""
        return dict(sorted(self.census.counts("train", "validation").items()))

    @property
    def test_counts(self) -> dict[str, int]:
        """Images held out for the test, by class; those of classes that there is nothing to learn of are among them."""
        return dict(sorted(self.census.counts("test").items()))

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files that were left out, with the reason."""
        return self.census.skipped

    @property
    def path(self) -> tuple[PathPoint, ...]:
        """The regularisation strengths that were tried."""
        return self.head.path

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "model": str(self.model),
            "classes": list(self.classes),
            "train_counts": self.train_counts,
            "test_counts": self.test_counts,
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in self.skipped],
            "conflicts": [[str(path) for path in group] for group in self.census.conflicts],
            "copies": self.census.copies,
            "leaks": self.census.leaks,
            "classes_without_images": list(self.census.empty_classes),
            "cross_validation": self.cross_validation.to_dict(),
            "test": self.test.to_dict() if self.test else None,
            "head": {
                "l2": self.head.l2,
                "path": [asdict(point) for point in self.head.path],
                "temperature": self.head.temperature,
                "iterations": self.head.iterations,
                "gap": self.head.gap,
            },
            "cut": self.cut,
            "views": self.views,
            "options": self.config.recorded(),
            "fine_tuning": list(self.tuning),
            "plan": self.plan,
            "forward_passes": self.computed,
            "from_store": self.cached,
            "seconds": self.seconds,
            "extraction_seconds": asdict(self.extraction),
        }
