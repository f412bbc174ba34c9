"""What a model, or a fit that had not seen an image, says of each image of a set.

What a retraining has remembered in the cache is taken as it is. Where nothing is remembered, it is worked out again:
the training images by cross-validation of a linear head of the model's strength, the test images by the model itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.cuts import LEVELS
from quickstudy.backbones.engines.named import ONNX_RUNTIME, engine_named
from quickstudy.backbones.graphs.untrusted import parse_onnx
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import Extraction, extract_census
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import ImageSetError, ModelError
from quickstudy.images.census import Census, Content, take_census
from quickstudy.images.imageset import Skipped
from quickstudy.learning.answers import Answer, marks_of
from quickstudy.learning.features import Floats, signed_sqrt
from quickstudy.learning.prior import mix_names
from quickstudy.learning.scores import Score, Scores
from quickstudy.learning.selection import fit_head
from quickstudy.models.format import HEAD_NAMES
from quickstudy.models.loading import load, read_model_file
from quickstudy.models.model import Model
from quickstudy.models.roles import may_judge
from quickstudy.progress import Progress
from quickstudy.reports.evidence import Evidence, KnownImage
from quickstudy.retraining.merging import TAUGHT
from quickstudy.retraining.record import Record, Unseen, cross_validated, load_record
from quickstudy.wording import pasted

By = Literal["cross-validation", "validation", "test"]


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgedImages:
    """A model, an image set, and what was said of each image by a fit that had not seen it."""

    model: Path
    """Path of the model."""
    metadata: dict[str, Any]
    """Metadata of the model, which it says of itself."""
    evidence: Evidence
    """Evidence whose rows are the usable files, copies too."""
    by: tuple[By | None, ...]
    """How each image was predicted without having been seen; None where it was not."""
    bottlenecks: NDArray[np.floating]
    """What the linear head sees of the plain images (rows × d): their features, or all levels."""
    widths: tuple[int, ...]
    """Number of features in each group of the bottlenecks; see `fit_head`."""
    unchanged: bool
    """Whether these are the images that the model was trained and tested on, with the same labels and split."""
    remembered: bool
    """Whether what was said of the images is what the training found."""
    answer: Answer
    """What probabilities are answered by: the most probable class, or several labels by thresholds."""

    @property
    def fine_tuned(self) -> bool:
        """Whether layers before the head were trained, too."""
        return bool(self.metadata["training"].get("fine_tuning"))

    @property
    def never_held_out(self) -> int:
        """Number of images to learn from that cross-validation could not judge; 0 where these are other images."""
        return self.metadata["training"].get("never_held_out", 0) if self.unchanged else 0

    @property
    def truth(self) -> NDArray[np.intp]:
        """Class number of each image, -1 where it has none that the model knows."""
        return self.evidence.labels

    @cached_property
    def predicted(self) -> NDArray[np.intp]:
        """Class number predicted for each image, -1 where it was not predicted unseen."""
        found: NDArray[np.intp] = np.where(self.evidence.unseen, self.evidence.probabilities.argmax(axis=1), -1)
        return found

    @cached_property
    def marks(self) -> NDArray[np.bool_]:
        """For each image and class, whether the image is of it or has the label (n×K)."""
        if self.evidence.several:
            return self.evidence.marks.astype(bool)
        found = np.zeros((len(self.truth), len(self.evidence.classes)), np.bool_)
        known = np.flatnonzero(self.truth >= 0)
        found[known, self.truth[known]] = True
        return found

    @cached_property
    def given(self) -> NDArray[np.bool_]:
        """For each image and class, whether it was given, by a fit that had not seen the image (n×K)."""
        return self.answer.given(self.evidence.probabilities) & self.evidence.unseen[:, None]

    def rows(self, by: By) -> NDArray[np.intp]:
        """Give the images predicted in this way that count: with a class that the model knows, each content once."""
        return self._rows_by[by]

    @cached_property
    def _rows_by(self) -> dict[By, NDArray[np.intp]]:
        counts = (self.truth >= 0) | self.evidence.several
        known = list(zip(self.by, counts.tolist(), strict=True))
        ways: tuple[By, ...] = ("cross-validation", "validation", "test")
        return {
            by: self.evidence.distinct(row for row, (how, counting) in enumerate(known) if how == by and counting)
            for by in ways
        }

    def scores(self, by: By) -> Scores:
        """Compare what was said in this way with the labels."""
        rows, classes = self.rows(by), self.evidence.classes
        labels = [tuple(classes[number] for number in np.flatnonzero(self.marks[row])) for row in rows]
        return self.answer.score(self.evidence.probabilities[rows], labels, classes)

    def score(self, by: By) -> Score | None:
        """Count how many images predicted in this way were right; None where there are none."""
        rows = self.rows(by)
        right = int((self.marks[rows] == self.given[rows]).all(axis=1).sum())
        return Score(right=right, n=len(rows)) if len(rows) else None


def judge_images(model: Path, images: Path | None, cache: Path, progress: Progress) -> JudgedImages:
    """Find out how a model stands to the images that it was trained on, or to those named.

    Raises:
        ModelError: the model cannot be used, or where its images are is not remembered and was not said.
        ImageSetError: the images cannot be used.
    """
    classifier = load(model)
    training, origin = classifier.metadata.get("training"), classifier.metadata.get("backbone")
    if isinstance(training, dict) and training.get("data") == TAUGHT:
        raise ModelError(
            f"'{model}' was merged from classes that pages were taught, of whose pictures only features were saved, so "
            "there is nothing to show. For a report, make class folders of the pictures: "
            f"{pasted('retrain', 'photos/', '--report')}. How good it is on photos of yours says "
            f"{pasted('evaluate', model, 'photos/')}"
        )
    if not isinstance(training, dict) or not isinstance(origin, dict) or "options" not in training:
        raise ModelError(f"'{model}' was not made by 'quickstudy retrain'; reports are made of such models only")
    record = load_record(cache, model)
    if images is None:
        if record is None:
            raise ModelError(
                f"The cache '{cache}' does not know where the images of '{model}' are; name their folder: "
                f"{pasted('report', model, 'photos/')}"
            )
        images = record.images
        if not images.exists():
            raise ImageSetError(
                f"'{model}' was trained on '{images}', which is no longer there; name the folder: "
                f"{pasted('report', model, 'photos/')}"
            )
    net = load_backbone(origin["name"], cache).reading(classifier.input.bits, classifier.input.fit)
    if net.fingerprint != origin["fingerprint"]:
        raise ModelError(
            f"'{model}' was trained on another version of the backbone '{net.name}' than the cache has; retrain it"
        )
    store = Store(cache / "bottlenecks")
    census = take_census(
        images,
        store.index_path,
        hold_out=bool(training.get("fine_tuning")),
        before=classifier.roles.role if classifier.roles else None,
        labelling=classifier.labelling,
        progress=progress,
    )
    extraction = extract_census(
        census,
        net,
        store,
        dtype=training["options"]["dtype"],
        engine=engine_named(training.get("engine", ONNX_RUNTIME.name)),
        progress=progress,
    )
    census = census.without(extraction.unusable)
    remembered = record is not None and (
        any(not census.labels.keys().isdisjoint(part.digests) for part in record.unseen)
        or not any(part.digests for part in record.unseen)  # too few images to judge any
    )
    seen = net.kept if origin["cut"] == LEVELS else net
    if record is None or not remembered:
        record = _work_out(classifier, census, extraction, seen, _names_in(model, training))
    evidence, by, bottlenecks = _bring_together(census, extraction, seen, classifier, record)
    return JudgedImages(
        model=model,
        metadata=classifier.metadata,
        evidence=evidence,
        by=by,
        bottlenecks=bottlenecks,
        widths=seen.widths,
        unchanged=census.fingerprint == training.get("data_fingerprint"),
        remembered=remembered,
        answer=classifier.answer,
    )


def _names_in(model: Path, training: Mapping[str, Any]) -> Floats | None:
    """Read what the names of its classes say (F×K) from a model; None where they do not count."""
    compared = training.get("prior") or {}
    if not compared.get("share"):
        return None
    tensors = parse_onnx(read_model_file(model), model).graph.initializer
    weights = [numpy_helper.to_array(tensor) for tensor in tensors if tensor.name == HEAD_NAMES]
    return weights[0] * np.float32(compared["temperature"] / compared["share"]) if weights else None


def _work_out(
    classifier: Model, census: Census, extraction: Extraction, seen: Backbone, names: Floats | None
) -> Record:
    """Work out what a retraining would have remembered, for images of classes that the model knows.

    Images that the model says it has learned or was chosen by, and all images where it does not say, are judged by
    cross-validation; images that are a test of it, by the model itself.
    """
    of_class = set(classifier.classes)
    known = [d for d, names in census.names.items() if census.several or not of_class.isdisjoint(names)]
    tested: list[Content] = []
    if classifier.roles is not None:
        with contextlib.suppress(ImageSetError):  # nothing is a test of it
            tested = list(may_judge(census, [classifier.roles], classes=classifier.classes).contents)
    train = [
        digest
        for digest in known
        if classifier.roles is None or classifier.roles.relation(digest) in ("trained_on", "chosen_by")
    ]
    marks = marks_of([census.names[digest] for digest in train], classifier.classes)
    unseen: list[Unseen] = []
    on = marks.sum(axis=0)
    if on.all() and (not census.several or (on < len(marks)).all()):
        training = classifier.metadata["training"]
        kept = extraction.gather(train, levels=seen.cut == LEVELS)
        classes = len(classifier.classes)
        targets = marks if census.several else marks.argmax(axis=1)
        head = fit_head(kept, targets, train, classes=classes, widths=seen.widths, l2=training["l2"])
        if names is not None:
            last = extraction.gather([train[row] for row in head.held_out.tolist()])
            head, _ = mix_names(head, names, last, targets[head.held_out])
        unseen.append(cross_validated(head, train))
    predictions = classifier.predict_each(content.path for content in tested)
    said = {c.digest: p.probabilities for c, p in zip(tested, predictions, strict=True) if p.probabilities is not None}
    if said:
        shares = np.maximum(np.stack(list(said.values())), np.finfo(np.float32).tiny)
        logits = np.log(shares)
        if census.several:
            logits -= np.log(np.maximum(1 - shares, np.finfo(np.float32).eps))
        unseen.append(Unseen(by="test", digests=tuple(said), logits=logits))
    return Record(images=census.source, unseen=tuple(unseen))


def _bring_together(
    census: Census, extraction: Extraction, seen: Backbone, classifier: Model, record: Record
) -> tuple[Evidence, tuple[By | None, ...], NDArray[np.floating]]:
    """Bring together the evidence, one row a file, in the files' order, with how each was predicted and bottlenecks."""
    placed = [
        (place, content) for content in census.contents.values() if content.role is not None for place in content.places
    ]
    placed.sort(key=lambda pair: str(pair[0].path))
    digests = [content.digest for _, content in placed]
    bottlenecks = extraction.gather(digests, levels=seen.cut == LEVELS)
    said: dict[bytes, tuple[By, NDArray[np.floating]]] = {}
    for part in record.unseen:
        probabilities = classifier.answer.link.probabilities(part.logits) if part.digests else part.logits
        said.update((d, (part.by, row)) for d, row in zip(part.digests, probabilities, strict=True))
    blank = np.zeros(len(classifier.classes))
    table = [said.get(digest, (None, blank)) for digest in digests]
    images = [
        KnownImage(
            path=place.path,
            digest=content.digest,
            label=place.label,
            split=place.split or content.role,
            labels=content.labels if census.several else None,
        )
        for place, content in placed
    ]
    evidence = Evidence(
        source=census.source,
        images=tuple(images),
        skipped=(*census.skipped, *_conflicts(census)),
        classes=classifier.classes,
        features=signed_sqrt(extraction.gather(digests)),
        probabilities=np.stack([row for _, row in table]).astype(np.float32),
        unseen=np.array([by is not None for by, _ in table], np.bool_),
        backbone=seen.name,
        fingerprint=seen.fingerprint,
        computed=extraction.computed,
        several=census.several,
    )
    return evidence, tuple(by for by, _ in table), bottlenecks


def _conflicts(census: Census) -> Sequence[Skipped]:
    return [
        Skipped(path=place.path, reason=content.reason) for content in census.conflicting for place in content.places
    ]
