"""What a retraining gives back, and what is remembered of it beside its model, so that a report needs no training.

`RetrainResult` is what the caller gets. A `Record` says where the images are, and what was said of each image by a fit
that had not seen it. It lies in the cache folder, under the hash of the model file, and not in the model: a model that
is given away says nothing of its maker's folders, and the same images give the same model wherever they lie. Like all
of the cache it can be lost; then the images must be named, and what was said of them is worked out again.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from quickstudy.bottlenecks.preparing import Timings
from quickstudy.files import is_text, sha256_of_file, write_bytes_atomically
from quickstudy.images.census import Census
from quickstudy.images.imageset import Skipped
from quickstudy.learning.answers import Answer, Thresholds
from quickstudy.learning.calibration import probabilities_of, suggest_abstention
from quickstudy.learning.conformal import fit_sets
from quickstudy.learning.features import Floats
from quickstudy.learning.prior import NamesCompared
from quickstudy.learning.scores import Score, Scores
from quickstudy.learning.selection import Head, LevelsCompared, PathPoint
from quickstudy.learning.strangeness import Refusal
from quickstudy.retraining.config import RetrainConfig

if TYPE_CHECKING:
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
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in self.skipped],
            "conflicts": [[str(path) for path in group] for group in self.census.conflicts],
            "copies": self.census.copies,
            "leaks": self.census.leaks,
            "classes_without_images": list(self.census.empty_classes),
            "classes_of_one_image": list(self.census.single),
            "cross_validation": self.cross_validation.to_dict(),
            "thresholds": self.answer.to_dict() if isinstance(self.answer, Thresholds) else None,
            "test": self.test.to_dict() if self.test else None,
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


_VERSION = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Unseen:
    """What images were said to be by fits that had not seen them."""

    by: Literal["cross-validation", "validation", "test"]
    """Why the images were unseen: left out of the linear head's fold, out of fine-tuning, or out of all training."""
    digests: tuple[bytes, ...]
    """Content hashes of the images."""
    logits: Floats
    """Calibrated logits (images × classes)."""

    def calibrated(self, numbers: Mapping[bytes, int], classes: int) -> dict[str, Any]:
        """Tell from which confidence on to answer, and what prediction sets need; None where the images are too few.

        Args:
            numbers: class number of each image, by content hash.
            classes: number of classes.
        """
        probabilities = probabilities_of(self.logits)
        truth = np.array([numbers[digest] for digest in self.digests], np.intp)
        abstention = suggest_abstention(probabilities.max(axis=1), probabilities.argmax(axis=1) == truth)
        sets = fit_sets(self.logits, truth, classes=classes, by=self.by)
        return {
            "abstention": {"by": self.by, **abstention.to_dict()} if abstention else None,
            "sets": sets.to_dict() if sets else None,
        }


NOT_CALIBRATED = {"abstention": None, "sets": None}
"""What a model keeps in place of `Unseen.calibrated` where an image may have several labels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """What is remembered of a retraining beside its model."""

    images: Path
    """Absolute path of the folder or manifest."""
    unseen: tuple[Unseen, ...]


def cross_validated(head: Head, rows: Sequence[bytes]) -> Unseen:
    """Take what cross-validation said of the images that a head was fitted to.

    Args:
        head: the head, with what was said of each row held out.
        rows: content hash by row, plain images first.
    """
    return Unseen(
        by="cross-validation",
        digests=tuple(rows[row] for row in head.held_out.tolist()),
        logits=head.held_out_logits,
    )


def save_record(cache: Path, model: Path, record: Record) -> None:
    """Remember a retraining in the cache folder; where that cannot be written, it is not remembered."""
    if not is_text(str(record.images)):
        return
    values = {
        "version": _VERSION,
        "images": str(record.images),
        "unseen": [
            {"by": part.by, "digests": _text(b"".join(part.digests)), "logits": _text(part.logits.tobytes())}
            for part in record.unseen
        ],
    }
    with contextlib.suppress(OSError):
        write_bytes_atomically(_place(cache, model), json.dumps(values).encode())


def load_record(cache: Path, model: Path) -> Record | None:
    """Read what is remembered of the retraining that wrote this model file; None where nothing is, or it is damaged."""
    try:
        values = json.loads(_place(cache, model).read_bytes())
        if values["version"] != _VERSION:
            return None
        return Record(images=Path(values["images"]), unseen=tuple(_unseen(part) for part in values["unseen"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _unseen(values: dict[str, Any]) -> Unseen:
    joined = base64.b64decode(values["digests"], validate=True)
    digests = tuple(joined[start : start + 32] for start in range(0, len(joined), 32))
    flat = np.frombuffer(base64.b64decode(values["logits"], validate=True), "<f4")
    if values["by"] not in ("cross-validation", "validation", "test"):
        raise ValueError(f"unknown {values['by']!r}")
    return Unseen(by=values["by"], digests=digests, logits=flat.reshape(len(digests), -1 if digests else 0))


def _place(cache: Path, model: Path) -> Path:
    return cache / "models" / f"{sha256_of_file(model)}.json"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
