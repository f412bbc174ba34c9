"""A whole image set decoded into memory: each image once, at one size, sorted into its split.

The pixels come from the same `decode` and `fit` as everywhere else. Files are brought together by content as in
retraining: copies count once, the same picture under two labels is left out, and a picture that the given splits have
in several counts for the test, else for the validation. Images stand in the order of their hashes, so moving, renaming
or listing them otherwise changes nothing.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quickstudy.cores import usable_cores
from quickstudy.errors import ImageSetError, UnusableImageError
from quickstudy.images.decoding import InputSpec, Pixels, decode, fit
from quickstudy.images.identity import read_image_file
from quickstudy.images.imageset import ImageFile, ImageSet, Skipped, Split, load_image_set, require_classes
from quickstudy.images.pixels import PixelSet
from quickstudy.images.splits import read_lock, split_by_content, write_lock
from quickstudy.progress import Progress, silent

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedImageSet:
    """The usable images of an image set in memory, and what became of the others."""

    splits: Mapping[Split, PixelSet]
    """`train`; `validation` where it is given; `test` unless the given splits have none. All have the same classes."""
    paths: Mapping[Split, tuple[Path, ...]]
    """The file of each image; of copies, the first."""
    classes: tuple[str, ...]
    """The classes that there are training images of, sorted."""
    given_splits: bool
    """Whether the image set came with splits; if not, they are drawn by content."""
    skipped: tuple[Skipped, ...]
    """Files that were left out, with the reason."""
    conflicts: tuple[tuple[Path, ...], ...]
    """Groups of files with the same content under different labels; all left out."""
    copies: int
    """Files whose content was there already under the same label."""
    leaks: int
    """Images that the given splits have in more than one; kept in one, the test before the validation."""


def decode_image_set(
    source: str | Path | ImageSet,
    spec: InputSpec,
    *,
    lock: Path | None = None,
    strict: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> DecodedImageSet:
    """Decode an image set to spec.size×spec.size×3 pixels.

    Args:
        source: class folders, split folders, a manifest, or an image set already listed.
        spec: the size, and how much of each image is seen.
        lock: split lock that the split by content respects and adds to; none is kept if left out.
        strict: raise an error for files that cannot be used instead of leaving them out.
        threads: as many as there are cores if left out.
        progress: is told how far it has come.

    Raises:
        ImageSetError: there is too little to learn from, the lock cannot be read or written, or with `strict` a file
            cannot be used.
    """
    found = source if isinstance(source, ImageSet) else load_image_set(Path(source))
    require_classes(Counter(file.label for file in found.files), found.source)
    decoder = _Decoder(spec)
    digests, reasons = _decode_all(decoder, found.files, threads, progress)
    skipped = [*found.skipped, *(Skipped(path=found.files[n].path, reason=reasons[n]) for n in sorted(reasons))]
    if strict and skipped:
        raise ImageSetError(
            f"{len(skipped)} files cannot be used and --strict was asked for; the first: "
            f"'{skipped[0].path}': {skipped[0].reason}"
        )
    copies: dict[bytes, list[ImageFile]] = {}
    for digest, file in zip(digests, found.files, strict=True):
        if digest is not None:
            copies.setdefault(digest, []).append(file)
    agreed = {digest: files for digest, files in copies.items() if len({file.label for file in files}) == 1}
    labels = {digest: files[0].label for digest, files in agreed.items()}
    given = any(file.split for file in found.files)
    parts = _given_parts(agreed) if given else _drawn_parts(labels, lock, found.source)
    train_counts = Counter(labels[digest] for digest, part in parts.items() if part == "train")
    if len(train_counts) < 2:
        require_classes(train_counts, found.source)
    classes = tuple(sorted(train_counts))
    for digest in sorted(labels):
        if labels[digest] not in train_counts:
            reason = f"its class '{labels[digest]}' has no training images"
            skipped += [Skipped(path=file.path, reason=reason) for file in agreed[digest]]
            del parts[digest]
    order = {split: sorted(digest for digest, part in parts.items() if part == split) for split in _SPLITS}
    number_of = {name: number for number, name in enumerate(classes)}
    return DecodedImageSet(
        splits={
            split: PixelSet(
                pixels=decoder.take(members),
                labels=np.array([number_of[labels[digest]] for digest in members], np.int64),
                classes=classes,
            )
            for split, members in order.items()
            if members
        },
        paths={split: tuple(agreed[digest][0].path for digest in members) for split, members in order.items()},
        classes=classes,
        given_splits=given,
        skipped=tuple(skipped),
        conflicts=tuple(tuple(file.path for file in files) for d, files in copies.items() if d not in agreed),
        copies=sum(len(files) - 1 for files in agreed.values()),
        leaks=sum(len({file.split for file in files}) > 1 for files in agreed.values()),
    )


class _Decoder:
    """Decodes files from several threads, each content once."""

    def __init__(self, spec: InputSpec) -> None:
        self._spec = spec
        self._lock = threading.Lock()
        self._claimed: set[bytes] = set()
        self._decoded: dict[bytes, Pixels] = {}
        self.unusable: dict[bytes, str] = {}

    def decode(self, file: ImageFile) -> tuple[bytes | None, str]:
        """Content hash of the file; or None and the reason why it cannot be read."""
        try:
            data, digest = read_image_file(file.path)
        except UnusableImageError as error:
            return None, str(error)
        with self._lock:
            if digest in self._claimed:
                return digest, ""
            self._claimed.add(digest)
        try:
            self._decoded[digest] = fit(decode(data, self._spec), self._spec)
        except UnusableImageError as error:
            self.unusable[digest] = str(error)
        return digest, ""

    def take(self, digests: Sequence[bytes]) -> Pixels:
        """The pixels of these images as one array; each moves there, so that no two copies of all stand in memory."""
        pixels = np.empty((len(digests), self._spec.size, self._spec.size, 3), np.uint8)
        for number, digest in enumerate(digests):
            pixels[number] = self._decoded.pop(digest)
        return pixels


def _decode_all(
    decoder: _Decoder, files: Sequence[ImageFile], threads: int | None, progress: Progress
) -> tuple[list[bytes | None], dict[int, str]]:
    """Content hash by file, None where it cannot be used; and why not, by the file's number."""
    digests: list[bytes | None] = []
    reasons: dict[int, str] = {}
    progress.start("decoding", len(files))
    pool = ThreadPoolExecutor(threads or usable_cores())
    try:
        for number, (digest, reason) in enumerate(pool.map(decoder.decode, files)):
            digests.append(digest)
            if digest is None:
                reasons[number] = reason
            progress.update(done=number + 1, note=f"{len(reasons)} unreadable" if reasons else "")
    finally:
        pool.shutdown(cancel_futures=True)
        progress.finish()
    # Only now is it known of every copy whether the one that was decoded can be used.
    for number, digest in enumerate(digests):
        if digest is not None and digest in decoder.unusable:
            digests[number] = None
            reasons[number] = decoder.unusable[digest]
    return digests, reasons


def _given_parts(files_of: Mapping[bytes, Sequence[ImageFile]]) -> dict[bytes, Split]:
    # A manifest's rows without a split are for training, as in retraining.
    splits_of = {digest: {file.split or "train" for file in files} for digest, files in files_of.items()}
    return {digest: next(s for s in reversed(_SPLITS) if s in splits) for digest, splits in splits_of.items()}


def _drawn_parts(labels: Mapping[bytes, str], lock: Path | None, source: Path) -> dict[bytes, Split]:
    require_classes(Counter(labels.values()), source)
    locked = read_lock(lock) if lock else {}
    parts = split_by_content(labels, locked=locked)
    if lock and any(digest not in locked for digest in parts):
        try:
            write_lock(lock, {**locked, **parts})
        except OSError as error:
            raise ImageSetError(
                f"Cannot write the split lock '{lock}': {error.strerror}; name another place"
            ) from error
    return dict(parts)
