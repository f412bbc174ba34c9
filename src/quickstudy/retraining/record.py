"""What is remembered of a retraining beside its model, so that a report needs no training.

A `Record` says where the images are, and what was said of each image by a fit that had not seen it. It lies in the
cache folder, under the hash of the model file, and not in the model: a model that is given away says nothing of its
maker's folders, and the same images give the same model wherever they lie. Like all of the cache it can be lost; then
the images must be named, and what was said of them is worked out again.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quickstudy.files import is_text, sha256_of_file, write_bytes_atomically
from quickstudy.learning.calibration import probabilities_of, suggest_abstention
from quickstudy.learning.conformal import fit_sets
from quickstudy.learning.features import Floats
from quickstudy.learning.selection import Head

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
    """What was said of images by fits that had not seen them."""


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
