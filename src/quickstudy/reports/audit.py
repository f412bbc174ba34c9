"""The audit: everything that can be found out about a set of images from its bottlenecks and its looks."""

from __future__ import annotations

from pathlib import Path

from quickstudy.progress import Progress, silent
from quickstudy.reports.balance import count_classes, find_alike
from quickstudy.reports.duplicates import find_duplicates
from quickstudy.reports.evidence import Evidence, gather_evidence
from quickstudy.reports.findings import Audit, DuplicateGroup
from quickstudy.reports.gallery import Gallery, view_gallery
from quickstudy.reports.label_errors import find_label_errors
from quickstudy.reports.labelling import choose_next, suggest_labels
from quickstudy.reports.outliers import find_outliers
from quickstudy.reports.quality import find_flaws


def audit(
    images: str | Path,
    *,
    backbone: str = "efficientnet_lite0",
    engine: str = "onnxruntime",
    cache: str | Path | None = None,
    progress: Progress = silent,
) -> Audit:
    """Find out what is wrong with a set of images; nothing is changed.

    Args:
        images: a folder or manifest as for `retrain`; images without a label are welcome.
        backbone: name of the pretrained network.
        engine: what computes bottlenecks: `onnxruntime`, `openvino` or `cuda`.
        cache: folder of the store and the backbones; see `quickstudy.files.cache_folder`.
        progress: is told how far things are.

    Raises:
        ImageSetError: there are no images.
        QuickstudyError: the store or the backbone cannot be used; see the message.
    """
    evidence = gather_evidence(images, backbone=backbone, engine=engine, cache=cache, progress=progress)
    return draw_findings(evidence, view_gallery(evidence.images, cache=cache, progress=progress))


def draw_findings(
    evidence: Evidence, gallery: Gallery, *, duplicates: tuple[DuplicateGroup, ...] | None = None
) -> Audit:
    """What the evidence and the looks of its images tell; `duplicates` are looked for unless they are given."""
    return Audit(
        images=tuple(image.path for image in evidence.images),
        labelled=sum(image.label is not None for image in evidence.images),
        classes=count_classes(evidence),
        skipped=evidence.skipped,
        duplicates=find_duplicates(evidence, gallery) if duplicates is None else duplicates,
        label_errors=find_label_errors(evidence),
        outliers=find_outliers(evidence),
        quality=find_flaws(gallery),
        alike=find_alike(evidence),
        suggestions=suggest_labels(evidence),
        next_to_label=choose_next(evidence),
    )
