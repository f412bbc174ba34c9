"""Which images are held out for the test: decided by content, so that files can be added, moved and renamed freely.

An image belongs to the test split when its hash, read as a number between 0 and 1, is below the test share. Exact
duplicates have one hash and so one split. The split lock writes every decision down and is respected afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from quickstudy.errors import ImageSetError
from quickstudy.files import write_json_atomically

TEST_SHARE = 0.2
LOCK_NAME = "quickstudy.lock.json"

Part = Literal["train", "test"]


def split_by_content(
    labels: Mapping[bytes, str], *, locked: Mapping[bytes, Part] | None = None, test_share: float = TEST_SHARE
) -> dict[bytes, Part]:
    """Assign each image to train or test.

    About `test_share` of each class is for the test, and where a class has two images, each side gets at least one: the
    image with the lowest or the highest hash changes sides for that.

    Args:
        labels: class name by content hash (32 bytes).
        locked: earlier decisions, which stand as they are.
        test_share: between 0 and 1.
    """
    locked = locked or {}
    parts: dict[bytes, Part] = {
        digest: locked.get(digest) or ("test" if _position(digest) < test_share else "train") for digest in labels
    }
    by_class: dict[str, list[bytes]] = {}
    for digest in sorted(labels):
        by_class.setdefault(labels[digest], []).append(digest)
    for digests in by_class.values():
        free = [digest for digest in digests if digest not in locked]
        sides = {parts[digest] for digest in digests}
        if len(digests) > 1 and len(sides) == 1 and free:
            if sides == {"train"}:
                parts[free[0]] = "test"
            else:
                parts[free[-1]] = "train"
    return parts


def read_lock(path: Path) -> dict[bytes, Part]:
    """The decisions in a split lock; none where there is no such file.

    Raises:
        ImageSetError: the file is damaged or of another version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ImageSetError(f"Cannot read the split lock '{path}': {error}") from None
    try:
        values = json.loads(text)
        if values["version"] != 1:
            raise ValueError(f"version {values['version']!r}")
        parts: dict[bytes, Part] = {}
        for name, part in values["splits"].items():
            if part not in ("train", "test") or len(bytes.fromhex(name)) != 32:
                raise ValueError(f"entry {name!r}: {part!r}")
            parts[bytes.fromhex(name)] = part
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageSetError(
            f"The split lock '{path}' is damaged or of another version ({error}). "
            "Restore it from a backup, or delete it to have the split drawn again"
        ) from None
    return parts


def write_lock(path: Path, parts: Mapping[bytes, Part]) -> None:
    """Write a split lock, atomically; the images' hashes in order, so that it can be compared between versions."""
    write_json_atomically(path, {"version": 1, "splits": {digest.hex(): parts[digest] for digest in sorted(parts)}})


def _position(digest: bytes) -> float:
    return int.from_bytes(digest[:8], "big") / 2**64
