"""A whole image set decoded into memory: each image once, at one size, in its role.

The pixels come from the same `decode` and `fit` as everywhere else, contents and roles from the census. Images stand in
the order of their hashes, so moving, renaming or listing them otherwise changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quickstudy.cores import usable_cores
from quickstudy.errors import UnusableImageError
from quickstudy.images.census import Census, take_census
from quickstudy.images.decoding import InputSpec, Pixels, decode, fit
from quickstudy.images.identity import read_image_file
from quickstudy.images.imageset import ImageSet, Skipped, Split
from quickstudy.images.pixels import PixelSet
from quickstudy.progress import Progress, silent

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedImageSet:
    """The usable images of an image set in memory, and what became of the others."""

    splits: Mapping[Split, PixelSet]
    """`train`; `validation` where it is given or held out; `test` unless the given splits have none. All have the same
    classes."""
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
        """Files that are not there, with the reason: unusable ones, and those of classes without training images."""
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
    hold_out: bool = False,
    index: Path | None = None,
    strict: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> DecodedImageSet:
    """Decode an image set to spec.size×spec.size×3 pixels.

    Args:
        source: class folders, split folders, a manifest, or an image set already listed.
        spec: the size, and how much of each image is seen.
        hold_out: draw some of the training images for the validation, where none come so.
        index: the stat index, which spares hashing unchanged files; none if left out.
        strict: raise an error for files that cannot be used instead of leaving them out.
        threads: as many as there are cores if left out.
        progress: is told how far it has come.

    Raises:
        ImageSetError: there is too little to learn from, or with `strict` a file cannot be used.
    """
    census = take_census(
        source if isinstance(source, ImageSet) else Path(source), index, hold_out=hold_out, progress=progress
    )
    census.require_enough()
    decoded, unusable = _decode_all(census, spec, threads, progress)
    census = census.without(unusable)
    census.require_enough(strict=strict)
    # Pixels move into the arrays one by one, so that no two copies of all stand in memory.
    splits: dict[Split, PixelSet] = {}
    digests: dict[Split, tuple[bytes, ...]] = {}
    trained = set(census.counts("train"))
    classes = tuple(sorted(trained))
    for split in _SPLITS:
        members = [digest for digest in census.digests(split) if census.labels[digest] in trained]
        if not members:
            continue
        pixels = np.empty((len(members), spec.size, spec.size, 3), np.uint8)
        for number, digest in enumerate(members):
            pixels[number] = decoded.pop(digest)
        labels = np.array([classes.index(census.labels[digest]) for digest in members], np.int64)
        digests[split] = tuple(members)
        splits[split] = PixelSet(pixels=pixels, labels=labels, classes=classes)
    return DecodedImageSet(splits=splits, census=census, digests=digests)


def _decode_all(
    census: Census, spec: InputSpec, threads: int | None, progress: Progress
) -> tuple[dict[bytes, Pixels], dict[bytes, str]]:
    """The pixels by content hash, and why others have none."""

    def decode_one(digest: bytes) -> Pixels | str:
        try:
            data, found = read_image_file(census.contents[digest].path)
            return fit(decode(data, spec), spec) if found == digest else "changed while it was read"
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
