"""Evidence and looks made up for tests: nothing has to be computed for them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from quickstudy.bottlenecks.looks import Gallery
from quickstudy.reports.evidence import Evidence, KnownImage


def make_evidence(
    names: Sequence[str],
    labels: Sequence[str | None],
    *,
    features: np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
    splits: Sequence[str | None] | None = None,
    contents: Sequence[bytes] | None = None,
    source: Path = Path("photos"),
    classes: Sequence[str] | None = None,
) -> Evidence:
    """Evidence about files `names` in `source`; files with the same `contents` are copies."""
    n = len(names)
    contents = contents or [name.encode() for name in names]
    classes = tuple(classes or sorted({label for label in labels if label is not None}))
    images = [
        KnownImage(path=source / name, digest=hashlib.sha256(content).digest(), label=label, split=split)
        for name, content, label, split in zip(names, contents, labels, splits or [None] * n, strict=True)
    ]
    return Evidence(
        source=source,
        images=tuple(images),
        skipped=(),
        classes=classes,
        features=np.zeros((n, 4), np.float32) if features is None else features.astype(np.float32),
        probabilities=np.zeros((n, 0), np.float32) if probabilities is None else probabilities.astype(np.float32),
        unseen=np.ones(n, np.bool_),
        backbone="test",
        fingerprint="0",
        computed=0,
    )


def make_gallery(n: int, **columns: Sequence[float]) -> Gallery:
    """Looks of n ordinary photos, but for `columns`."""
    usual = {"width": 400, "height": 300, "brightness": 0.5, "contrast": 0.2, "black": 0, "white": 0, "sharpness": 0.3}
    usual |= {"grey": 0, "bars": 0, "bits": 0}
    values = {
        name: np.array(columns.get(name, [value] * n), np.int32 if name in ("width", "height", "bits") else np.float32)
        for name, value in usual.items()
    }
    return Gallery(**values, thumbnails=(b"",) * n)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path
