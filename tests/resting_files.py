"""Files as if they had been at rest for long when they were indexed: the time of a change cannot be set back."""

from __future__ import annotations

import time
from pathlib import Path

from quickstudy.images.identity import StatIndex, read_image_file, stamp_of

_HOUR = 3_600_000_000_000


def index_as_resting(index_path: Path, *paths: Path, digest: bytes | None = None) -> None:
    """Note files in a stat index, under their hash or another `digest`."""
    index = StatIndex(index_path, now_ns=time.time_ns() + _HOUR)
    index.remember([(path, stamp_of(path), digest or read_image_file(path)[1]) for path in paths])
    index.close()
