"""Classes that were taught in browsers, of one person or several, become one model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quickstudy.errors import ImageSetError
from quickstudy.files import as_path, cache_folder
from quickstudy.learning.scores import Score
from quickstudy.learning.selection import Head, fit_head
from quickstudy.learning.strangeness import Strangeness, fit_strangeness
from quickstudy.models.assemble import LinearHead, write_model
from quickstudy.models.format import model_path
from quickstudy.models.loading import require_own_place
from quickstudy.models.roles import Roles
from quickstudy.models.teaching import TaughtFile, read_taught
from quickstudy.retraining.config import RetrainConfig
from quickstudy.retraining.record import cross_validated

TAUGHT = "classes taught in a browser"
"""What a merged model says that it was made from, in place of the place of its images."""


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """A picture that is of two classes."""

    places: tuple[tuple[Path, str, str], ...]
    """The places where it was found: file, class, and what the picture is called there."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What came of it."""

    model: Path
    """The model that was written."""
    counts: dict[str, int]
    """Number of pictures learned from by class."""
    copies: int
    """Number of pictures that were there before, under the same class; they count once."""
    contradictions: tuple[Contradiction, ...]
    """Pictures that are of two classes, which are left out."""
    cross_validation: Score
    """How many pictures were right by heads that had not seen them."""
    never_held_out: int
    """Number of pictures that are not among these, since each is the only one of its class."""

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        return {
            "model": str(self.model),
            "counts": self.counts,
            "copies": self.copies,
            "contradictions": [
                [{"file": str(path), "class": name, "picture": picture} for path, name, picture in one.places]
                for one in self.contradictions
            ],
            "cross_validation": self.cross_validation.to_dict(),
            "never_held_out": self.never_held_out,
        }


def merge(files: Sequence[str | Path], output: str | Path, *, cache: str | Path | None = None) -> Merged:
    """Join files of taught classes, and write the head that learns them all as a model.

    Classes of the same name are one. The same pictures give the same model, in whatever order the files come.

    Args:
        files: what pages saved that `export --web --trainable` made of models with the same network.
        output: the `.onnx` file to create or replace.
        cache: folder of the backbones; see `quickstudy.files.cache_folder`.

    Raises:
        ImageSetError: a file cannot be used, files are of different networks, or there are fewer than two classes.
        ModelError: the network is not at hand, or the model cannot be written.
        WriteError: there is another file in its place.
    """
    path = model_path(output)
    require_own_place(path, "merged model", lambda said: said["training"].get("data") == TAUGHT)
    taught = [read_taught(as_path(file)) for file in files]
    if not taught:
        raise ImageSetError("There is no file of classes to merge; name one that a page saved")
    _require_same(taught)
    found: dict[bytes, list[tuple[TaughtFile, str, str, bytes]]] = {}
    for file in taught:
        for one in file.classes:
            for (picture, digest), row in zip(one.pictures, one.bottlenecks, strict=True):
                found.setdefault(digest, []).append((file, one.name, picture, row.tobytes()))
    contradicting = {digest for digest, places in found.items() if len({name for _, name, _, _ in places}) > 1}
    kept = {digest: places for digest, places in sorted(found.items()) if digest not in contradicting}
    label = {digest: places[0][1] for digest, places in kept.items()}
    classes = sorted(set(label.values()))
    if len(classes) < 2:
        named = ", ".join(f"'{file.path}'" for file in taught)
        raise ImageSetError(
            f"A model needs two classes; there is {len(classes)} with pictures in {named}: {classes}. Teach another one"
        )
    net = taught[0].network(cache_folder(cache))
    keys = list(label)
    targets = np.array([classes.index(name) for name in label.values()], np.intp)
    bottlenecks = np.stack([np.frombuffer(min(row for *_, row in kept[key]), "<f2") for key in keys])
    head = fit_head(bottlenecks, targets, keys, classes=len(classes), widths=net.widths, l2=taught[0].teaching.l2)
    strangeness = _strangeness(bottlenecks, targets, head)
    counts = {name: int((targets == number).sum()) for number, name in enumerate(classes)}
    cross_validation = Score(right=head.held_out_right, n=head.held_out_count)
    write_model(
        path,
        net,
        LinearHead(weights=head.weights, biases=head.biases),
        classes=classes,
        training={
            "data": TAUGHT,
            "data_fingerprint": hashlib.sha256(
                b"".join(key + name.encode() + b"\0" for key, name in label.items())
            ).hexdigest(),
            "train_counts": counts,
            "l2": head.l2,
            "temperature": head.temperature,
            "cross_validation": cross_validation.to_dict(),
            **({"never_held_out": head.never_held_out} if head.never_held_out else {}),
            **cross_validated(head, keys).calibrated(
                {key: classes.index(name) for key, name in label.items()}, len(classes)
            ),
            "strangeness": strangeness.refusal(RetrainConfig().refuse).to_dict() if strangeness else None,
            "test": None,
        },
        roles=Roles.of(keys, (), ()),
        strangeness=strangeness,
    )
    return Merged(
        model=path,
        counts=counts,
        copies=sum(len(places) - 1 for places in kept.values()),
        contradictions=tuple(
            Contradiction(places=tuple((file.path, name, picture) for file, name, picture, _ in places))
            for places in (found[digest] for digest in found if digest in contradicting)
        ),
        cross_validation=cross_validation,
        never_held_out=head.never_held_out,
    )


def _require_same(taught: Sequence[TaughtFile]) -> None:
    """Check that all files were taught on the same features in the same way."""
    first = taught[0]
    for other in taught[1:]:
        for named, one, its in (
            ("network", first.teaching.backbone, other.teaching.backbone),
            ("input", first.teaching.input, other.teaching.input),
            ("features", first.teaching.widths, other.teaching.widths),
            ("strength", first.teaching.l2, other.teaching.l2),
        ):
            if one != its:
                raise ImageSetError(
                    f"'{first.path}' and '{other.path}' cannot be joined: their {named} differs, {one} and {its}; "
                    "teach both on pages of the same network"
                )


def _strangeness(bottlenecks: Any, targets: Any, head: Head) -> Strangeness | None:
    alone = np.bincount(targets) < 2
    kept = ~alone[targets[head.held_out]]
    return fit_strangeness(
        bottlenecks,
        targets,
        head.held_out_logits[kept],
        classes=len(head.biases),
        held_out=head.held_out[kept],
    )
