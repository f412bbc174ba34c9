"""What is remembered of a retraining beside its model, so that a report can be made later without training again.

Where the images are, and what was said of each image by a fit that had not seen it. It lies in the cache folder, under
the hash of the model file, and not in the model: a model that is given away says nothing of its maker's folders, and
the same images give the same model wherever they lie. Like all of the cache it can be lost; then the images must be
named, and what was said of them is worked out again.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quickstudy.files import is_text, sha256_of_file, write_bytes_atomically
from quickstudy.heads.selection import Head
from quickstudy.heads.softmax import Floats

_VERSION = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Unseen:
    """What images were said to be by fits that had not seen them."""

    by: Literal["cross-validation", "validation", "test"]
    """Why they had not been seen: left out of the linear head's fold, out of fine-tuning, or out of all training."""
    digests: tuple[bytes, ...]
    """The images, by content hash."""
    logits: Floats
    """Calibrated, images × classes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """What is remembered of a retraining."""

    images: Path
    """The folder or manifest, absolute."""
    unseen: tuple[Unseen, ...]


def cross_validated(head: Head, rows: Sequence[bytes]) -> Unseen:
    """What cross-validation said of the images (content hash by row, plain ones first) that a head was fitted to."""
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
    """What is remembered of the retraining that wrote this model file; None where nothing is, or it is damaged."""
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
