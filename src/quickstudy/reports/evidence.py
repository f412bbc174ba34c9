"""Evidence is what is known of an image set by its bottlenecks; all findings are drawn from it.

It is gathered from a folder (`gather_evidence`), or built from what a training has computed already (`build_evidence`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.named import engine_for
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import Extraction, extract_census
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import ImageSetError
from quickstudy.files import as_path, cache_folder
from quickstudy.images.census import Census, take_census
from quickstudy.images.depth import significant_bits
from quickstudy.images.imageset import Skipped, Split
from quickstudy.images.manifests import ONE_EACH, Labelling
from quickstudy.learning.answers import marks_of
from quickstudy.learning.features import Floats, signed_sqrt
from quickstudy.learning.links import link_named
from quickstudy.learning.selection import Head, fit_head
from quickstudy.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class KnownImage:
    """One usable image file."""

    path: Path
    """Path of the file."""
    digest: bytes
    """SHA-256 of the file's bytes: equal where files are copies."""
    label: str | None
    """Name of the class, or names of several labels as a text; None where the image has none that is known."""
    split: Split | None
    """Split that the image is in; None where the set came without splits."""
    labels: tuple[str, ...] | None = None
    """Names of its labels where an image may have several; None where each has one, or it has none that is known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What is known of an image set by its bottlenecks. Rows are images, n in all; K classes, d features."""

    source: Path
    """Path of the folder or manifest that the images came from."""
    images: tuple[KnownImage, ...]
    """Usable files, copies too, labelled ones first, then by path."""
    skipped: tuple[Skipped, ...]
    """Files that cannot be used, with the reason."""
    classes: tuple[str, ...]
    """Names of the classes that the probabilities are of; without any, the labels that there are, sorted."""
    features: Floats
    """Signed square roots of the bottlenecks (n×d), which the head sees."""
    probabilities: Floats
    """Calibrated probabilities (n×K); n×0 where there are no two classes to tell apart."""
    unseen: NDArray[np.bool_]
    """Whether the probabilities come from a fit that has not seen the image, for each image (n)."""
    backbone: str
    """Name of the network."""
    fingerprint: str
    """Hash of the network."""
    computed: int
    """Number of forward passes that it took."""
    several: bool = False
    """Whether an image may have several labels."""

    @cached_property
    def marks(self) -> NDArray[np.intp]:
        """For each image and class, 1 where the image has the label (n×K); all 0 where an image has one."""
        return marks_of([image.labels or () for image in self.images], self.classes)

    @cached_property
    def labels(self) -> NDArray[np.intp]:
        """Class numbers (n), -1 where an image has no label, or none of the classes, or may have several."""
        if self.several:
            return np.full(len(self.images), -1, np.intp)
        number_of = {name: number for number, name in enumerate(self.classes)}
        return np.array([number_of.get(image.label or "", -1) for image in self.images], np.intp)

    def distinct(self, among: Iterable[int]) -> NDArray[np.intp]:
        """Take the first of each content among images given by number; they come in the order of the hashes."""
        first: dict[bytes, int] = {}
        for number in among:
            first.setdefault(self.images[number].digest, number)
        return np.array([first[digest] for digest in sorted(first)], np.intp)


def gather_evidence(
    images: str | Path,
    *,
    backbone: str = "efficientnet_lite0",
    engine: str = "onnxruntime",
    labelling: Labelling = ONE_EACH,
    cache: str | Path | None = None,
    progress: Progress = silent,
) -> Evidence:
    """Compute the bottlenecks that are missing, and cross-validate a head on those with a label.

    Args:
        images: a folder or manifest, labelled, partly labelled or not.
        backbone: name of the pretrained network.
        engine: what computes bottlenecks: `onnxruntime`, `onnxruntime-int8`, `openvino` or `cuda`.
        labelling: how labels are to be read.
        cache: folder of the store and the backbones; see `quickstudy.files.cache_folder`.
        progress: is told how far it has come.

    Raises:
        ImageSetError: there are no images.
        QuickstudyError: the store or the backbone cannot be used; see the message.
    """
    source, folder, runner = as_path(images), cache_folder(cache), engine_for(engine)
    net, store = load_backbone(backbone, folder), Store(folder / "bottlenecks")
    census = take_census(source, store.index_path, unlabelled=True, labelling=labelling, progress=progress)
    net = net.reading(significant_bits(census, store.index_path))
    extraction = extract_census(census, net, store, unlabelled=True, engine=runner, progress=progress)
    census = census.without(extraction.unusable)
    if all(content.left_out == "unusable" for content in census.contents.values()):
        raise ImageSetError(f"No image of '{source}' can be used; {census.faults}")
    head, trained, classes = _cross_validate(census, extraction)
    return build_evidence(census, extraction, net, head, trained, classes)


def build_evidence(
    census: Census,
    extraction: Extraction,
    net: Backbone,
    head: Head | None,
    trained: Sequence[bytes],
    classes: tuple[str, ...],
) -> Evidence:
    """Put together what an extraction and a head tell.

    Args:
        census: the images, with or without such that have no label.
        extraction: of all its contents, at the cut that the head sees.
        net: the network.
        head: fitted to the bottlenecks of `trained`; None where there was nothing to tell apart.
        trained: content hash by row that the head was fitted to.
        classes: the head's classes, in its order.
    """
    usable = [
        (place, content)
        for content in census.contents.values()
        if content.left_out != "unusable"
        for place in content.places
    ]
    usable.sort(key=lambda pair: (pair[0].label is None, str(pair[0].path)))
    digests = [content.digest for _, content in usable]
    bottlenecks = extraction.gather(digests)
    probabilities = np.empty((len(usable), 0), np.float32)
    unseen = np.zeros(len(usable), np.bool_)
    if head is not None:
        logits = head.logits(bottlenecks)
        held_out = {trained[row]: position for position, row in enumerate(head.held_out.tolist())}
        seen = set(trained)
        for number, digest in enumerate(digests):
            if (position := held_out.get(digest)) is not None:
                logits[number] = head.held_out_logits[position]
            unseen[number] = position is not None or digest not in seen
        probabilities = link_named(head.kind).probabilities(logits).astype(np.float32)
    return Evidence(
        source=census.source,
        images=tuple(
            KnownImage(
                path=place.path,
                label=place.label,
                split=place.split,
                digest=content.digest,
                labels=content.labels if census.several else None,
            )
            for place, content in usable
        ),
        skipped=census.skipped,
        classes=classes,
        features=signed_sqrt(bottlenecks),
        probabilities=probabilities,
        unseen=unseen,
        backbone=net.name,
        fingerprint=net.fingerprint,
        computed=extraction.computed,
        several=census.several,
    )


def _cross_validate(census: Census, extraction: Extraction) -> tuple[Head | None, list[bytes], tuple[str, ...]]:
    """Fit a head to all images with a label; gives it, the content hashes that it was fitted to, and its classes.

    The same content under two labels teaches nothing and is left out, so it is predicted by a fit that has not seen it.
    """
    trained = [digest for digest, names in census.names.items() if names or census.several]
    counts = Counter(name for names in census.names.values() for name in names)
    everywhere = len(trained) if census.several else None
    classes = tuple(sorted(name for name, images in counts.items() if images != everywhere))
    if len(classes) < (1 if census.several else 2):
        places = (place for content in census.contents.values() for place in content.places)
        return None, [], tuple(sorted({place.label for place in places if place.label is not None}))
    targets = marks_of([census.names[digest] for digest in trained], classes)
    targets = targets if census.several else targets.argmax(axis=1)
    bottlenecks, widths = extraction.gather(trained), extraction.backbone.widths
    return fit_head(bottlenecks, targets, trained, classes=len(classes), widths=widths), trained, classes
