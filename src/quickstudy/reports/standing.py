"""How a model stands to an image set: what it, or a fit that had not seen an image, says of each.

What a retraining has remembered in the cache is taken as it is. Where nothing is remembered, it is worked out again:
the training images by cross-validation of a linear head of the model's strength, the test images by the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone, load_backbone
from quickstudy.backbones.cuts import FEATURES
from quickstudy.backbones.runtime import ONNX_RUNTIME, engine_named
from quickstudy.bottlenecks.extraction import Extraction, extract
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import ImageSetError, ModelError
from quickstudy.heads.calibration import probabilities_of
from quickstudy.heads.selection import fit_head
from quickstudy.heads.softmax import signed_sqrt
from quickstudy.images.imageset import ImageSet, Skipped, Split, load_image_set
from quickstudy.images.splits import LOCK_NAME, Part, read_lock, split_by_content
from quickstudy.models.model import Model, load
from quickstudy.progress import Progress
from quickstudy.reports.evidence import Evidence, KnownImage
from quickstudy.retraining.evaluation import Score
from quickstudy.retraining.material import Material, data_fingerprint, sort_material
from quickstudy.retraining.record import Record, Unseen, cross_validated, load_record

By = Literal["cross-validation", "validation", "test"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """A model, an image set, and what was said of each image by a fit that had not seen it."""

    model: Path
    metadata: dict[str, Any]
    """What the model says of itself."""
    evidence: Evidence
    """Its rows are the usable files, copies too."""
    by: tuple[By | None, ...]
    """How each image was predicted without having been seen; None where it was not."""
    bottlenecks: NDArray[np.floating]
    """Rows × d, of the plain images."""
    material: Material
    unchanged: bool
    """Whether these are the images that the model was trained and tested on, with the same labels and split."""
    remembered: bool
    """Whether what was said of the images is what the training found."""

    @property
    def fine_tuned(self) -> bool:
        """Whether layers before the head were trained, too."""
        return bool(self.metadata["training"].get("fine_tuning"))

    @property
    def truth(self) -> NDArray[np.intp]:
        """Class number by image, -1 where it has none that the model knows."""
        return self.evidence.labels

    @cached_property
    def predicted(self) -> NDArray[np.intp]:
        """Class number by image, -1 where it was not predicted unseen."""
        found: NDArray[np.intp] = np.where(self.evidence.unseen, self.evidence.probabilities.argmax(axis=1), -1)
        return found

    def rows(self, by: By) -> NDArray[np.intp]:
        """The images predicted in this way that count: with a class that the model knows, each content once."""
        return self._rows_by[by]

    @cached_property
    def _rows_by(self) -> dict[By, NDArray[np.intp]]:
        known = list(zip(self.by, self.truth.tolist(), strict=True))
        ways: tuple[By, ...] = ("cross-validation", "validation", "test")
        return {
            by: self.evidence.distinct(row for row, (how, truth) in enumerate(known) if how == by and truth >= 0)
            for by in ways
        }

    def score(self, by: By) -> Score | None:
        """How many of those were right; None where there are none."""
        rows = self.rows(by)
        right = int(np.sum(self.predicted[rows] == self.truth[rows]))
        return Score(right=right, n=len(rows)) if len(rows) else None


def take_stock(model: Path, images: Path | None, cache: Path, progress: Progress) -> Standing:
    """Find out how a model stands to the images that it was trained on, or to those named.

    Raises:
        ModelError: the model cannot be used, or where its images are is not remembered and was not said.
        ImageSetError: the images cannot be used.
    """
    classifier = load(model)
    training, origin = classifier.metadata.get("training"), classifier.metadata.get("backbone")
    if not isinstance(training, dict) or not isinstance(origin, dict) or "l2" not in training:
        raise ModelError(f"'{model}' was not made by 'quickstudy retrain'; a report can be made of such models only")
    record = load_record(cache, model)
    if images is None:
        if record is None:
            raise ModelError(
                f"Where the images of '{model}' are is not remembered in the cache '{cache}'; name their folder: "
                f"quickstudy report {model} photos/"
            )
        images = record.images
        if not images.exists():
            raise ImageSetError(
                f"'{model}' was trained on '{images}', which is no longer there; name the folder: "
                f"quickstudy report {model} photos/"
            )
    net = load_backbone(origin["name"], cache).at(FEATURES)
    if net.fingerprint != origin["fingerprint"]:
        raise ModelError(
            f"'{model}' was trained on another version of the backbone '{net.name}' than is in the cache; retrain it"
        )
    found = load_image_set(images)
    paths = [file.path for file in found.files]
    extraction = extract(
        paths,
        net,
        Store(cache / "bottlenecks"),
        dtype=training.get("dtype", "float16"),
        engine=engine_named(training.get("engine", ONNX_RUNTIME.name)),
        progress=progress,
    )
    material = sort_material(found, extraction, strict=False)
    parts = material.given_parts or split_by_content(material.labels, locked=read_lock(model.parent / LOCK_NAME))
    known = set(material.labels)
    remembered = record is not None and any(known.intersection(part.digests) for part in record.unseen)
    if record is None or not remembered:
        record = _work_out(classifier, found, extraction, material, parts)
    evidence, by, bottlenecks = _bring_together(found, extraction, net, classifier, record, parts, material)
    return Standing(
        model=model,
        metadata=classifier.metadata,
        evidence=evidence,
        by=by,
        bottlenecks=bottlenecks,
        material=material,
        unchanged=data_fingerprint(material.labels, parts) == training.get("data_fingerprint"),
        remembered=remembered,
    )


def _work_out(
    classifier: Model, found: ImageSet, extraction: Extraction, material: Material, parts: dict[bytes, Part]
) -> Record:
    """What a retraining would have remembered, for images of classes that the model knows."""
    number_of = {name: number for number, name in enumerate(classifier.classes)}
    known = {digest: number_of[label] for digest, label in material.labels.items() if label in number_of}
    train = sorted(digest for digest in known if parts[digest] == "train")
    test = sorted(digest for digest in known if parts[digest] == "test")
    labels = np.array([known[digest] for digest in train], np.intp)
    unseen: list[Unseen] = []
    if len(np.unique(labels)) == len(classifier.classes):
        training = classifier.metadata["training"]
        head = fit_head(extraction.gather(train), labels, train, classes=len(classifier.classes), l2=training["l2"])
        unseen.append(cross_validated(head, train))
    path_of = {digest: file.path for file, digest in zip(found.files, extraction.digests, strict=True) if digest}
    predictions = list(classifier.predict_each(path_of[digest] for digest in test))
    said = {d: p.probabilities for d, p in zip(test, predictions, strict=True) if p.probabilities is not None}
    if said:
        logits = np.log(np.maximum(np.stack(list(said.values())), np.finfo(np.float32).tiny))
        unseen.append(Unseen(by="test", digests=tuple(said), logits=logits))
    return Record(images=found.source, unseen=tuple(unseen))


def _bring_together(
    found: ImageSet,
    extraction: Extraction,
    net: Backbone,
    classifier: Model,
    record: Record,
    parts: dict[bytes, Part],
    material: Material,
) -> tuple[Evidence, tuple[By | None, ...], NDArray[np.floating]]:
    usable = [number for number, digest in enumerate(extraction.digests) if digest is not None]
    digests = [digest for digest in extraction.digests if digest is not None]
    bottlenecks = extraction.gather(digests)
    said: dict[bytes, tuple[By, NDArray[np.floating]]] = {}
    for part in record.unseen:
        probabilities = probabilities_of(part.logits) if part.digests else part.logits
        said.update((d, (part.by, row)) for d, row in zip(part.digests, probabilities, strict=True))
    blank = np.zeros(len(classifier.classes))
    table = [said.get(digest, (None, blank)) for digest in digests]
    images = [
        KnownImage(
            path=found.files[number].path,
            digest=digest,
            label=found.files[number].label,
            split=found.files[number].split or _split(said.get(digest), parts.get(digest)),
        )
        for number, digest in zip(usable, digests, strict=True)
    ]
    evidence = Evidence(
        source=found.source,
        images=tuple(images),
        skipped=(*material.skipped, *_conflicts(material)),
        classes=classifier.classes,
        features=signed_sqrt(bottlenecks),
        probabilities=np.stack([row for _, row in table]).astype(np.float32),
        unseen=np.array([by is not None for by, _ in table], np.bool_),
        backbone=net.name,
        fingerprint=net.fingerprint,
        computed=extraction.computed,
    )
    return evidence, tuple(by for by, _ in table), bottlenecks


def _split(said: tuple[By, Any] | None, part: Part | None) -> Split | None:
    return "validation" if said is not None and said[0] == "validation" else part


def _conflicts(material: Material) -> Sequence[Skipped]:
    reason = "the same file is there under several labels, so it teaches nothing"
    return [Skipped(path=path, reason=reason) for group in material.conflicts for path in group]
