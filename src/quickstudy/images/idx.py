"""The idx format, in which MNIST and its successors come: a magic number, big-endian sizes, bytes (LeCun, 1998)."""

from __future__ import annotations

import os
import struct
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import ImageSetError
from quickstudy.images.pixels import PixelSet
from quickstudy.images.rawfiles import MOST_BYTES, RawFile, require_labels

IDX_STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

_IMAGES_MAGIC, _LABELS_MAGIC = 2051, 2049
_LARGEST_SIDE = 4096


def read_idx(images: Path, labels: Path, classes: tuple[str, ...]) -> PixelSet:
    """Read a pair of idx files, plain or .gz: grey images and their labels.

    Raises:
        ImageSetError: a file is not what it should be, or the two do not belong together.
    """
    (count, height, width), values = _read_idx_file(images, _IMAGES_MAGIC, "images", dimensions=3)
    (label_count,), numbers = _read_idx_file(labels, _LABELS_MAGIC, "labels", dimensions=1)
    if count != label_count:
        raise ImageSetError(
            f"'{labels}' announces {label_count:,} labels at offset 4; expected {count:,}, as '{images}' has images"
        )
    require_labels(numbers, len(classes), labels, start=8, step=1)
    return PixelSet(pixels=values.reshape(count, height, width, 1), labels=numbers.astype(np.int64), classes=classes)


def idx_file(folder: Path, stem: str) -> Path | None:
    """The file of this name, plain or .gz; None where there is neither."""
    candidates = (folder / stem, folder / f"{stem}.gz")
    return next((path for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113 (answers where pathlib raises)


def first_labels(path: Path, count: int) -> tuple[int, bytes]:
    """How many labels an idx file announces, and the first of them; by these a data set is recognised.

    Raises:
        ImageSetError: it is no idx file of labels.
    """
    with closing(RawFile(path)) as file:
        (announced,) = _read_idx_header(file, _LABELS_MAGIC, "labels", dimensions=1)
        return announced, bytes(file.read(min(count, announced)))


def _read_idx_file(path: Path, magic: int, what: str, *, dimensions: int) -> tuple[tuple[int, ...], NDArray[np.uint8]]:
    """The sizes that the header announces and the values, flat."""
    with closing(RawFile(path)) as file:
        sizes = _read_idx_header(file, magic, what, dimensions=dimensions)
        expected, start = int(np.prod(sizes, dtype=object)), 4 + 4 * dimensions
        # Read in chunks, so that a header which announces more than there is takes no memory.
        values = file.read(expected)
        if len(values) != expected:
            raise ImageSetError(
                f"'{path}' ends at offset {start + len(values):,}; expected {start + expected:,} bytes for "
                f"{sizes[0]:,} {what}. It is truncated; get it again"
            )
        if file.read(1):
            raise ImageSetError(f"'{path}' goes on at offset {start + expected:,}; expected its end after {what}")
    return sizes, np.frombuffer(values, np.uint8)


def _read_idx_header(file: RawFile, magic: int, what: str, *, dimensions: int) -> tuple[int, ...]:
    path, length = file.path, 4 + 4 * dimensions
    header = file.read(length)
    found = struct.unpack(">I", header[:4])[0] if len(header) >= 4 else None
    if found != magic:
        got = f"{found}" if found is not None else f"only {len(header)} bytes"
        raise ImageSetError(f"'{path}' is no idx file of {what}: at offset 0 it has {got}; expected {magic}")
    if len(header) < length:
        raise ImageSetError(f"'{path}' ends at offset {len(header)}; expected an idx header of {length} bytes")
    sizes = struct.unpack(f">{dimensions}I", header[4:])
    for place, size in enumerate(sizes):
        if size == 0 or (place and size > _LARGEST_SIDE):
            limit = f" to {_LARGEST_SIDE:,}" if place else " or more"
            raise ImageSetError(f"'{path}' announces a size of {size:,} at offset {4 + 4 * place}; expected 1{limit}")
    if (total := int(np.prod(sizes, dtype=object))) > MOST_BYTES:
        raise ImageSetError(
            f"'{path}' announces {sizes[0]:,} {what} at offset 4, {total:,} bytes; the limit is {MOST_BYTES:,}"
        )
    return sizes
