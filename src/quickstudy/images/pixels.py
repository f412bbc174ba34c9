"""Pixel sets: images of one size, decoded and held in memory with their labels.

What is trained from scratch reads small images many times over, so they are decoded once. Named data sets come as pixel
sets (`readers.py`); an image set is decoded as a whole here, each image once, at one size, in its role. The pixels come
from the same `decode` and `to_input` as everywhere else, contents and roles from the census. Images stand in the order
of their hashes, so moving, renaming or listing them otherwise changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import ImageSetError, UnusableImageError
from quickstudy.files import as_path
from quickstudy.images.census import Census, take_census
from quickstudy.images.decoding import InputSpec, Pixels, decode, to_input
from quickstudy.images.identity import read_image_file
from quickstudy.images.imageset import ImageSet, Skipped, Split
from quickstudy.process import usable_cores
from quickstudy.progress import Progress, silent


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelSet:
    """Images of one size held in memory with their labels.

    Raises:
        ImageSetError: the shapes do not belong together, or a label has no class.
    """

    pixels: NDArray[np.uint8]
    """The images: N×height×width×channels, 1 (grey) or 3 (RGB), from 0 to 255."""
    labels: NDArray[np.int64]
    """The images' classes: N places in `classes`, from 0."""
    classes: tuple[str, ...]
    """The names of the classes."""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[3] not in (1, 3) or self.pixels.dtype != np.uint8:
            raise ImageSetError(
                f"Pixels must be N×height×width×1 or ×3 of uint8; got {self.pixels.dtype} of shape {self.pixels.shape}"
            )
        if self.labels.shape != self.pixels.shape[:1] or self.labels.dtype != np.int64:
            raise ImageSetError(
                f"{len(self.pixels)} images need as many labels of int64; "
                f"got {self.labels.dtype} of shape {self.labels.shape}"
            )
        wrong = (self.labels < 0) | (self.labels >= len(self.classes))
        if wrong.any():
            first = int(wrong.argmax())
            raise ImageSetError(
                f"Label {self.labels[first]} of image {first} is not one of {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def content_fingerprint(self) -> str:
        """Hash shape, classes, pixels and labels with SHA-256: 64 hexadecimal digits, the same on every machine."""
        head = json.dumps({"shape": self.pixels.shape, "classes": self.classes}, ensure_ascii=True)
        digest = hashlib.sha256(head.encode() + b"\n")
        digest.update(np.ascontiguousarray(self.pixels).data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        return digest.hexdigest()


_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedImageSet:
    """The usable images of an image set in memory, and what became of the others."""

    splits: Mapping[Split, PixelSet]
    """The images by role: `train`; `validation` where it is given or held out; `test` unless the given splits have
    none. All have the same classes."""
    census: Census
    """The images by content, and what became of the others."""
    digests: Mapping[Split, tuple[bytes, ...]]
    """The content of each image of a split, in its order."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that there are training images of, sorted."""
        return self.splits["train"].classes

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files that are left out, with the reason: unusable ones, and those of classes without training images."""
        strangers = (
            Skipped(path=place.path, reason=f"its class '{content.label}' has no training images")
            for content in self.census.contents.values()
            if content.role is not None and content.label not in self.classes
            for place in content.places
        )
        return (*self.census.skipped, *strangers)


def decode_image_set(
    source: str | Path | ImageSet,
    spec: InputSpec,
    *,
    threads: int | None = None,
    progress: Progress = silent,
) -> DecodedImageSet:
    """Decode an image set to pixels of the shape `spec.shape`.

    Args:
        source: class folders, split folders, a manifest, or an image set already listed.
        spec: the size, and how much of each image is seen.
        threads: as many as there are cores if left out.
        progress: is told how far it has come.

    Raises:
        ImageSetError: there is too little to learn from.
    """
    listed = source if isinstance(source, ImageSet) else as_path(source)
    census = take_census(listed, None, to_learn=True, progress=progress)
    census.require_enough()
    decoded, unusable = _decode_all(census, spec, threads, progress)
    census = census.without(unusable)
    census.require_enough()
    # Pixels move into the arrays one by one, so that no two copies of all stand in memory.
    splits: dict[Split, PixelSet] = {}
    digests: dict[Split, tuple[bytes, ...]] = {}
    trained = set(census.counts("train"))
    classes = tuple(sorted(trained))
    for split in _SPLITS:
        members = [digest for digest in census.digests(split) if census.labels[digest] in trained]
        if not members:
            continue
        pixels = np.empty((len(members), *spec.shape), np.uint8)
        for number, digest in enumerate(members):
            pixels[number] = decoded.pop(digest)
        labels = np.array([classes.index(census.labels[digest]) for digest in members], np.int64)
        digests[split] = tuple(members)
        splits[split] = PixelSet(pixels=pixels, labels=labels, classes=classes)
    return DecodedImageSet(splits=splits, census=census, digests=digests)


def _decode_all(
    census: Census, spec: InputSpec, threads: int | None, progress: Progress
) -> tuple[dict[bytes, Pixels], dict[bytes, str]]:
    """Decode all images that have a role: the pixels by content hash, and why others have none."""

    def decode_one(digest: bytes) -> Pixels | str:
        try:
            data, found = read_image_file(census.contents[digest].path)
            return to_input(decode(data, spec), spec) if found == digest else "changed while it was read"
        except UnusableImageError as error:
            return str(error)

    decoded: dict[bytes, Pixels] = {}
    unusable: dict[bytes, str] = {}
    digests = list(census.labels)
    progress.start("decoding", len(digests))
    pool = ThreadPoolExecutor(threads or usable_cores())
    try:
        for number, (digest, result) in enumerate(zip(digests, pool.map(decode_one, digests), strict=True), start=1):
            if isinstance(result, str):
                unusable[digest] = result
            else:
                decoded[digest] = result
            progress.update(done=number, note=f"{len(unusable)} unusable" if unusable else "")
    finally:
        pool.shutdown(cancel_futures=True)
        progress.finish()
    return decoded, unusable
