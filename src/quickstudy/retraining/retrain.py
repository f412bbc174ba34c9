"""The main job: from a folder of photos to a verified classifier.

Reads top to bottom as it happens: list the images, make sure that each has its bottleneck, decide who is held out, fit
the head to its optimum, score it on what it has not seen, write the model.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quickstudy.backbones.backbone import load_backbone
from quickstudy.bottlenecks.extraction import Extraction, Timings, extract
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import ImageSetError, ModelError
from quickstudy.files import cache_folder
from quickstudy.heads.selection import Head, PathPoint, fit_head
from quickstudy.images.imageset import ImageSet, Skipped, load_image_set, require_classes
from quickstudy.images.splits import LOCK_NAME, Part, read_lock, split_by_content, write_lock
from quickstudy.images.views import Distortions
from quickstudy.models.assemble import LinearHead, write_model
from quickstudy.progress import Progress, silent
from quickstudy.retraining.evaluation import Evaluation, Score, score_predictions

ClassWeight = Literal["balanced"]


@dataclass(frozen=True, kw_only=True)
class RetrainResult:
    """What a retraining made, and how far to trust it."""

    model: Path
    """The `.onnx` file."""
    classes: tuple[str, ...]
    train_counts: dict[str, int]
    """Images trained on, by class; copies count once."""
    test_counts: dict[str, int]
    skipped: tuple[Skipped, ...]
    """Files that were left out, with the reason."""
    conflicts: tuple[tuple[Path, ...], ...]
    """Groups of files with the same content under different labels; all left out."""
    copies: int
    """Files whose content was there already under the same label."""
    leaks: int
    """Images that the given splits have in both train and test; left out of training."""
    cross_validation: Score
    """On training images, each held out once."""
    test: Evaluation | None
    """On the test split, looked at once; None where the given splits have no test."""
    head: Head
    computed: int
    """Forward passes through the backbone."""
    cached: int
    """Bottlenecks that came from the store."""
    seconds: dict[str, float]
    """Wall time by stage."""
    extraction: Timings
    """Seconds in each step of the extraction, summed over threads."""

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
            "conflicts": [[str(path) for path in group] for group in self.conflicts],
            "copies": self.copies,
            "leaks": self.leaks,
            "cross_validation": self.cross_validation.to_dict(),
            "test": self.test.to_dict() if self.test else None,
            "head": {
                "l2": self.head.l2,
                "path": [asdict(point) for point in self.head.path],
                "temperature": self.head.temperature,
                "converged": self.head.converged,
                "iterations": self.head.iterations,
                "gap": self.head.gap,
            },
            "forward_passes": self.computed,
            "from_store": self.cached,
            "seconds": self.seconds,
            "extraction_seconds": asdict(self.extraction),
        }


def retrain(
    images: str | Path,
    output: str | Path | None = None,
    *,
    backbone: str = "efficientnet_lite0",
    views: int = 0,
    distortions: Distortions | None = None,
    class_weight: ClassWeight | None = None,
    l2: float | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    cache: str | Path | None = None,
    strict: bool = False,
    progress: Progress = silent,
) -> RetrainResult:
    """Train a classifier on a folder of images and write it as one `.onnx` file.

    Args:
        images: class folders, split folders with class folders in them, or a CSV or Parquet manifest.
        output: the model to write; `<name of images>.onnx` in the working folder if left out.
        backbone: name of the pretrained network.
        views: augmented views an image to train on besides the plain one.
        distortions: how views differ from the plain image.
        class_weight: `balanced` weighs all classes the same, however many images they have.
        l2: regularisation strength; chosen by cross-validation if left out.
        dtype: how bottlenecks are kept in the store.
        cache: folder of the store and the backbones; see `quickstudy.files.cache_folder`.
        strict: raise an error for the first file that cannot be used instead of leaving it out.
        progress: is told how far things are.

    Raises:
        ImageSetError: there is too little to learn from, or with `strict` a file that cannot be used.
        QuickstudyError: the store, the backbone or the model's place cannot be used; see the message.
    """
    images, folder = Path(images), cache_folder(Path(cache) if cache else None)
    model_path = _model_path(images, output)
    if views < 0:
        raise ImageSetError(f"The number of views cannot be negative; got {views}")
    clock = _Clock()
    with clock.stage("listing"):
        found = load_image_set(images)
        require_classes(Counter(file.label for file in found.files), images)
        net = load_backbone(backbone, folder)
    with clock.stage("bottlenecks"):
        extraction = extract(
            [file.path for file in found.files],
            net,
            Store(folder / "bottlenecks"),
            views=views,
            distortions=distortions,
            dtype=dtype,
            progress=progress,
        )
    with clock.stage("splitting"):
        material = _sort_material(found, extraction, strict=strict)
        parts = material.given_parts or _draw_parts(material.labels, model_path.parent / LOCK_NAME)
        train, test = (sorted(digest for digest, part in parts.items() if part == side) for side in ("train", "test"))
        train_counts = Counter(material.labels[digest] for digest in train)
        _require_training_images(train_counts, material, images)
        classes = tuple(sorted(train_counts))
    with clock.stage("head"):
        head = _fit(extraction, material.labels, train, classes, class_weight, l2)
    with clock.stage("evaluation"):
        held_out = Score(
            right=int(np.sum(head.held_out_classes == _numbers(material.labels, train, classes)[head.held_out])),
            n=len(head.held_out),
        )
        evaluation = _evaluate(extraction, head, material.labels, test, classes) if test else None
    with clock.stage("model"):
        training = _describe_training(material, parts, train_counts, held_out, evaluation, head, extraction)
        write_model(
            model_path, net, LinearHead(weights=head.weights, biases=head.biases), classes=classes, training=training
        )
    return RetrainResult(
        model=model_path,
        classes=classes,
        train_counts={name: train_counts[name] for name in classes},
        test_counts=dict(sorted(Counter(material.labels[d] for d in test).items())),
        skipped=material.skipped,
        conflicts=material.conflicts,
        copies=material.copies,
        leaks=material.leaks,
        cross_validation=held_out,
        test=evaluation,
        head=head,
        computed=extraction.computed,
        cached=extraction.cached,
        seconds=clock.seconds,
        extraction=extraction.timings,
    )


@dataclass(frozen=True, kw_only=True)
class _Material:
    """The usable images by content, without copies, conflicts and leaks."""

    labels: dict[bytes, str]
    given_parts: dict[bytes, Part] | None
    """Train or test by content where the set came with splits."""
    skipped: tuple[Skipped, ...]
    conflicts: tuple[tuple[Path, ...], ...]
    copies: int
    leaks: int


class _Clock:
    """Notes the wall time of stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def _model_path(images: Path, output: str | Path | None) -> Path:
    if output is None:
        return Path(f"{images.resolve().stem if images.is_file() else images.resolve().name}.onnx")
    path = Path(output)
    if path.suffix != ".onnx":
        raise ModelError(f"The model must be named *.onnx; got '{path}'")
    if not path.parent.is_dir():
        raise ModelError(f"There is no folder '{path.parent}' to write the model '{path.name}' to; make it first")
    return path


def _sort_material(found: ImageSet, extraction: Extraction, *, strict: bool) -> _Material:
    """Bring files together by content; leave out what cannot be used, what is contradictory, and what would leak."""
    skipped = list(found.skipped)
    skipped += [Skipped(path=found.files[n].path, reason=extraction.reasons[n]) for n in sorted(extraction.reasons)]
    if strict and skipped:
        raise ImageSetError(
            f"{len(skipped)} files cannot be used and --strict was asked for; the first: "
            f"'{skipped[0].path}': {skipped[0].reason}"
        )
    copies: dict[bytes, list[int]] = {}
    for number, digest in enumerate(extraction.digests):
        if digest is not None:
            copies.setdefault(digest, []).append(number)
    labels: dict[bytes, str] = {}
    conflicts: list[tuple[Path, ...]] = []
    for digest, numbers in copies.items():
        names = {found.files[number].label for number in numbers}
        if len(names) == 1:
            labels[digest] = names.pop()
        else:
            conflicts.append(tuple(found.files[number].path for number in numbers))
    parts: dict[bytes, Part] | None = None
    leaks = 0
    if any(file.split for file in found.files):
        parts = {}
        for digest in labels:
            splits = {found.files[number].split for number in copies[digest]}
            parts[digest] = "test" if "test" in splits else "train"
            leaks += "test" in splits and len(splits) > 1
    return _Material(
        labels=labels,
        given_parts=parts,
        skipped=tuple(skipped),
        conflicts=tuple(conflicts),
        copies=sum(len(copies[digest]) - 1 for digest in labels),
        leaks=leaks,
    )


def _draw_parts(labels: dict[bytes, str], lock: Path) -> dict[bytes, Part]:
    """Split by content as the lock has it, and write what is new to the lock."""
    locked = read_lock(lock)
    parts = split_by_content(labels, locked=locked)
    if any(digest not in locked for digest in parts):
        try:
            write_lock(lock, {**locked, **parts})
        except OSError as error:
            raise ModelError(
                f"Cannot write the split lock '{lock}': {error.strerror}. Name another place with --output"
            ) from error
    return parts


def _require_training_images(train_counts: Counter[str], material: _Material, images: Path) -> None:
    """Check again, now that unusable and contradictory files are out."""
    if material.given_parts is None:
        require_classes(Counter(material.labels.values()), images)
    elif len(train_counts) < 2:
        require_classes(train_counts, images)


def _fit(
    extraction: Extraction,
    labels: dict[bytes, str],
    train: list[bytes],
    classes: tuple[str, ...],
    class_weight: ClassWeight | None,
    l2: float | None,
) -> Head:
    views = range(extraction.views + 1)
    numbers = _numbers(labels, train, classes)
    return fit_head(
        np.concatenate([extraction.gather(train, view) for view in views]),
        np.tile(numbers, len(views)),
        train * len(views),
        classes=len(classes),
        plain=np.repeat(np.array([view == 0 for view in views]), len(train)),
        balanced=class_weight == "balanced",
        l2=l2,
    )


def _evaluate(
    extraction: Extraction, head: Head, labels: dict[bytes, str], test: list[bytes], classes: tuple[str, ...]
) -> Evaluation:
    known = [digest for digest in test if labels[digest] in classes]
    predicted = head.logits(extraction.gather(known)).argmax(axis=1)
    return score_predictions(
        [labels[digest] for digest in known],
        [classes[number] for number in predicted],
        classes,
        unknown=tuple(sorted({labels[digest] for digest in test} - set(classes))),
    )


def _numbers(
    labels: dict[bytes, str], digests: list[bytes], classes: tuple[str, ...]
) -> np.ndarray[Any, np.dtype[np.intp]]:
    number_of = {name: number for number, name in enumerate(classes)}
    return np.array([number_of[labels[digest]] for digest in digests], np.intp)


def _describe_training(
    material: _Material,
    parts: dict[bytes, Part],
    train_counts: Counter[str],
    held_out: Score,
    evaluation: Evaluation | None,
    head: Head,
    extraction: Extraction,
) -> dict[str, Any]:
    """The training summary that the model file carries; the same data give the same text."""
    listing = "".join(f"{d.hex()} {parts[d]} {material.labels[d]}\n" for d in sorted(parts))
    return {
        "data_fingerprint": hashlib.sha256(listing.encode()).hexdigest(),
        "split": "given" if material.given_parts is not None else "by content",
        "train_counts": dict(sorted(train_counts.items())),
        "views": extraction.views,
        "distortions": asdict(extraction.distortions) if extraction.views else None,
        "l2": head.l2,
        "temperature": head.temperature,
        "cross_validation": held_out.to_dict(),
        "test": evaluation.score.to_dict() if evaluation else None,
    }
