"""Images of which little can be seen: too small, too narrow, too dark, too bright, of one colour, or blurred."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quickstudy.reports.findings import FlawKind, QualityFlaw
from quickstudy.reports.gallery import Gallery

LIMITS: Final[dict[FlawKind, float]] = {
    "tiny": 64,
    "narrow": 4,
    "dark": 0.06,
    "bright": 0.96,
    "blank": 0.02,
    "blurred": 0.12,
}
"""What is compared with what: the shorter side in pixels, and everything below is `tiny`; the longer side over the
shorter, everything above is `narrow`; the mean brightness from 0 to 1, everything below is `dark`, above `bright`; the
standard deviation of the grey levels on the same scale, everything below is `blank`; the sharpness as in `looks.py`,
everything below is `blurred`."""
_AT_MOST = 0.5


def find_flaws(gallery: Gallery) -> tuple[QualityFlaw, ...]:
    """All flaws, by image; an image is dark, bright, blank or blurred, in this order, but not two of these.

    What more than half of all images have is the nature of the set, not a flaw: digits of 28 by 28 pixels are all tiny.
    """
    looked_at = gallery.width > 0
    shorter = np.minimum(gallery.width, gallery.height)
    longer = np.maximum(gallery.width, gallery.height)
    values: dict[FlawKind, NDArray[Any]] = {
        "tiny": shorter,
        "narrow": longer / np.maximum(shorter, 1),
        "dark": gallery.brightness,
        "bright": gallery.brightness,
        "blank": gallery.contrast,
        "blurred": gallery.sharpness,
    }
    above = ("narrow", "bright")
    free = looked_at.copy()
    found: list[QualityFlaw] = []
    for kind, limit in LIMITS.items():
        crossing = looked_at & (values[kind] > limit if kind in above else values[kind] < limit)
        if crossing.sum() > _AT_MOST * max(int(looked_at.sum()), 2):
            continue
        if kind not in ("tiny", "narrow"):
            crossing &= free
            free &= ~crossing
        found += [
            QualityFlaw(image=int(n), kind=kind, value=float(values[kind][n]), limit=limit)
            for n in np.flatnonzero(crossing)
        ]
    return tuple(sorted(found, key=lambda flaw: flaw.image))
