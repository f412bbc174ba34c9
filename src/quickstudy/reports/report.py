"""A report is one HTML file that says how far to trust a model, and what is wrong with the images it learned from.

What is slow to find out about an image set and depends on its content alone is remembered in the cache folder.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.bottlenecks.looks import Gallery, view_gallery
from quickstudy.errors import WriteError
from quickstudy.files import as_path, cache_folder, require_place_for, write_bytes_atomically
from quickstudy.learning.learning_curve import LearningCurve, learning_curve
from quickstudy.learning.ridge import LeaveOneOut, leave_one_out
from quickstudy.progress import Progress, silent
from quickstudy.reports.audit import draw_findings
from quickstudy.reports.charts import sprite_sheets
from quickstudy.reports.duplicates import find_duplicates
from quickstudy.reports.evidence import Evidence
from quickstudy.reports.findings import Audit, DuplicateGroup
from quickstudy.reports.judged import JudgedImages, judge_images
from quickstudy.reports.neighbours import place_images
from quickstudy.reports.page import Contents, render
from quickstudy.version import VERSION


def report(
    model: str | Path,
    images: str | Path | None = None,
    *,
    output: str | Path | None = None,
    cache: str | Path | None = None,
    progress: Progress = silent,
) -> Path:
    """Write a report on a model as one HTML file that needs no network; returns its path.

    Args:
        model: an `.onnx` file that `retrain` wrote.
        images: the folder or manifest that it was trained on; as remembered in the cache if left out.
        output: the file to write; `<name of the model>.report.html` beside the model if left out.
        cache: folder of the store and the backbones; see `quickstudy.files.cache_folder`.
        progress: is told how far things are.

    Raises:
        ModelError: the model cannot be used, or where its images are is not known.
        WriteError: the file cannot be written.
        ImageSetError: the images cannot be used.
    """
    model, folder = as_path(model), cache_folder(cache)
    target = as_path(output) if output else model.with_suffix(".report.html")
    require_place_for("report", target, own=_is_page, sources=[model, images])
    judged = judge_images(model, as_path(images) if images else None, folder, progress)
    evidence = judged.evidence
    gallery = view_gallery(evidence.images, cache=folder, progress=progress)
    # Each of these keeps a core busy for about as long, mostly outside of Python.
    with ThreadPoolExecutor(2) as pool:
        places = pool.submit(remember, folder, "map", evidence, lambda: place_images(evidence.features).tolist())
        sheets = pool.submit(_sheets, evidence, gallery, folder)
        found = pool.submit(_findings, evidence, gallery, folder)
        curve = pool.submit(_learning_curve, judged)
        left_out = pool.submit(_leave_one_out, judged)
        contents = Contents(
            judged=judged,
            audit=found.result(),
            curve=curve.result(),
            left_out=left_out.result(),
            places=np.array(places.result()),
            sheets=sheets.result(),
        )
    page = render(contents)
    try:
        write_bytes_atomically(target, page.encode("utf-8", errors="backslashreplace"))
    except OSError as error:
        raise WriteError(
            f"Cannot write the report '{target}': {error.strerror}. Name another place with --output"
        ) from error
    return target


def _is_page(start: bytes) -> bool:
    return start.lstrip()[:9].lower() == b"<!doctype"


def _sheets(evidence: Evidence, gallery: Gallery, cache: Path) -> list[bytes]:
    """Put the thumbnails on sheets; what encoding them takes is spared the second time."""
    encoded = remember(
        cache,
        "sheets",
        evidence,
        lambda: [base64.b64encode(sheet).decode() for sheet in sprite_sheets(gallery.thumbnails)],
    )
    return [base64.b64decode(sheet) for sheet in encoded]


def _findings(evidence: Evidence, gallery: Gallery, cache: Path) -> Audit:
    """Find what an audit finds; looking for duplicates takes longest, so those found are remembered."""
    groups = remember(
        cache, "duplicates", evidence, lambda: [asdict(group) for group in find_duplicates(evidence, gallery)]
    )
    duplicates = tuple(
        DuplicateGroup(
            members=tuple(group["members"]),
            exact=group["exact"],
            splits=tuple(group["splits"]),
            labels=tuple(group["labels"]),
        )
        for group in groups
    )
    return draw_findings(evidence, gallery, duplicates=duplicates)


def _training_rows(judged: JudgedImages) -> NDArray[np.intp]:
    """Give the images of the training, by cross-validation then by validation, each content once, by hash."""
    return np.concatenate([judged.rows("cross-validation"), judged.rows("validation")]).astype(np.intp)


def _leave_one_out(judged: JudgedImages) -> LeaveOneOut | None:
    rows = _training_rows(judged)
    if len(rows) < 2 or judged.evidence.several:
        return None
    return leave_one_out(
        judged.bottlenecks[rows], judged.truth[rows], classes=len(judged.evidence.classes), widths=judged.widths
    )


def _learning_curve(judged: JudgedImages) -> LearningCurve | None:
    rows = judged.rows("cross-validation")
    if not len(rows) or judged.evidence.several:
        return None
    return learning_curve(
        judged.bottlenecks[rows],
        judged.truth[rows],
        [judged.evidence.images[row].digest for row in rows],
        classes=len(judged.evidence.classes),
        l2=judged.metadata["training"]["l2"],
        right=(judged.predicted[rows] == judged.truth[rows]).astype(np.float64),
        widths=judged.widths,
    )


def remember(cache: Path, name: str, evidence: Evidence, find_out: Callable[[], Any]) -> Any:
    """Give the JSON value of `find_out`, or that for the same images, labels, splits, backbone and version before.

    A cache that cannot be read or written costs only time.
    """
    images = [[image.digest.hex(), image.label, image.split] for image in evidence.images]
    described = json.dumps([name, VERSION, evidence.fingerprint, list(evidence.classes), images])
    place = cache / "reports" / f"{name}-{hashlib.sha256(described.encode()).hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(place.read_bytes())
    value = find_out()
    with contextlib.suppress(OSError):
        write_bytes_atomically(place, json.dumps(value).encode())
    return value
