"""What there is to learn from: usable images by content, without copies, conflicts and leaks, and who is held out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quickstudy.bottlenecks.extraction import Extraction
from quickstudy.errors import ImageSetError, ModelError
from quickstudy.images.imageset import ImageSet, Skipped, require_classes
from quickstudy.images.splits import Part, read_lock, split_by_content, write_lock


@dataclass(frozen=True, kw_only=True)
class Material:
    """The usable images by content, without copies, conflicts and leaks."""

    labels: dict[bytes, str]
    given_parts: dict[bytes, Part] | None
    """Train or test by content where the set came with splits."""
    validation: frozenset[bytes]
    """Those of the training images that came as a validation split."""
    skipped: tuple[Skipped, ...]
    conflicts: tuple[tuple[Path, ...], ...]
    copies: int
    leaks: int


def sort_material(found: ImageSet, extraction: Extraction, *, strict: bool) -> Material:
    """Bring files together by content; leave out what cannot be used, what is contradictory, and what would leak."""
    skipped = list(found.skipped)
    skipped += [Skipped(path=found.files[n].path, reason=extraction.reasons[n]) for n in sorted(extraction.reasons)]
    if strict and skipped:
        raise ImageSetError(
            f"{len(skipped)} files cannot be used and --strict was asked for; the first: "
            f"'{skipped[0].path}': {skipped[0].reason}"
        )
    copies: dict[bytes, list[int]] = {}
    for number, digest in enumerate(extraction.digests):
        if digest is not None:
            copies.setdefault(digest, []).append(number)
    labels: dict[bytes, str] = {}
    conflicts: list[tuple[Path, ...]] = []
    for digest, numbers in copies.items():
        names = {found.files[number].label for number in numbers}
        if len(names) == 1:
            labels[digest] = names.pop()
        else:
            conflicts.append(tuple(found.files[number].path for number in numbers))
    parts: dict[bytes, Part] | None = None
    validation: set[bytes] = set()
    leaks = 0
    if any(file.split for file in found.files):
        parts = {}
        for digest in labels:
            splits = {found.files[number].split for number in copies[digest]}
            parts[digest] = "test" if "test" in splits else "train"
            leaks += "test" in splits and len(splits) > 1
            if splits == {"validation"}:
                validation.add(digest)
    return Material(
        labels=labels,
        given_parts=parts,
        validation=frozenset(validation),
        skipped=tuple(skipped),
        conflicts=tuple(conflicts),
        copies=sum(len(copies[digest]) - 1 for digest in labels),
        leaks=leaks,
    )


def draw_parts(labels: dict[bytes, str], lock: Path) -> dict[bytes, Part]:
    """Split by content as the lock has it, and write what is new to the lock."""
    locked = read_lock(lock)
    parts = split_by_content(labels, locked=locked)
    if any(digest not in locked for digest in parts):
        try:
            write_lock(lock, {**locked, **parts})
        except OSError as error:
            raise ModelError(
                f"Cannot write the split lock '{lock}': {error.strerror}. Name another place with --output"
            ) from error
    return parts


def data_fingerprint(labels: Mapping[bytes, str], parts: Mapping[bytes, Part]) -> str:
    """SHA-256 of the images by content, with label and side of the split: what a model was trained and tested on."""
    listing = "".join(f"{digest.hex()} {parts[digest]} {labels[digest]}\n" for digest in sorted(parts))
    return hashlib.sha256(listing.encode()).hexdigest()


def require_training_images(train_counts: Counter[str], material: Material, images: Path) -> None:
    """Check again, now that unusable and contradictory files are out."""
    if material.given_parts is None:
        require_classes(Counter(material.labels.values()), images)
    elif len(train_counts) < 2:
        require_classes(train_counts, images)
