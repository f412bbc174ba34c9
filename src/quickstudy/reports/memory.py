"""What is slow to find out about an image set and depends on its content alone is remembered in the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quickstudy.files import write_bytes_atomically
from quickstudy.reports.evidence import Evidence
from quickstudy.version import VERSION


def remember(cache: Path, name: str, evidence: Evidence, find_out: Callable[[], Any]) -> Any:
    """The JSON value that `find_out` gives, or gave for the same images, labels, splits, backbone and version before.

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
