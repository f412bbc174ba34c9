"""Readers of official layouts: CIFAR-10 and CIFAR-100 (binary), MNIST's idx files, SVHN's .mat files, the digits.

Each reads straight into arrays, in chunks, bounded and unpacked on the way, and checks everything that a damaged or
foreign file could get wrong; the message names file, byte offset (in .mat files the index) and value. Python pickles,
in which CIFAR comes too, are never loaded: they can run code.

The idx format, in which MNIST and its successors come, is a magic number, big-endian sizes and bytes (LeCun, 1998).
SVHN comes in MATLAB files of level 5 (MathWorks, *MAT-File Format*), of which arrays of numbers are read by code of our
own: SciPy reads these files, too, but its reader ends the process on some damaged ones (a segmentation fault within
6,000 files with changed bytes in their headers), and nothing that came from outside may do that.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Collection, Iterable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import ImageSetError
from quickstudy.images.drawn_roles import draw_tests
from quickstudy.images.pixels import PixelSet

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGIT_CLASSES = tuple("0123456789")
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip
CIFAR10_TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
CIFAR10_FILES = (*CIFAR10_TRAIN_FILES, "test_batch.bin")
CIFAR100_FILES = ("train.bin", "test.bin", "fine_label_names.txt")
SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")


def read_cifar10(folder: Path) -> dict[str, PixelSet]:
    """Read CIFAR-10's binary version: 32×32 RGB, 10 classes (Krizhevsky, 2009).

    Raises:
        ImageSetError: a file is missing or is not what it should be.
    """
    require_files(folder, CIFAR10_FILES)
    classes = read_names(folder / "batches.meta.txt", 10) or CIFAR10_CLASSES
    batches = [_read_cifar(folder / name, label_bytes=1, classes=classes) for name in CIFAR10_TRAIN_FILES]
    train = PixelSet(
        pixels=np.concatenate([batch.pixels for batch in batches]),
        labels=np.concatenate([batch.labels for batch in batches]),
        classes=classes,
    )
    return {"train": train, "test": _read_cifar(folder / "test_batch.bin", label_bytes=1, classes=classes)}


def read_cifar100(folder: Path) -> dict[str, PixelSet]:
    """Read CIFAR-100's binary version with its 100 fine labels: 32×32 RGB (Krizhevsky, 2009).

    Raises:
        ImageSetError: a file is missing or is not what it should be.
    """
    require_files(folder, CIFAR100_FILES)
    classes = read_names(folder / "fine_label_names.txt", 100)
    return {part: _read_cifar(folder / f"{part}.bin", label_bytes=2, classes=classes) for part in ("train", "test")}


def read_mnist(folder: Path, classes: tuple[str, ...] = DIGIT_CLASSES) -> dict[str, PixelSet]:
    """Read the four idx files of MNIST or Fashion-MNIST, plain or .gz (LeCun, Cortes and Burges; Xiao et al., 2017).

    Raises:
        ImageSetError: a file is missing or is not what it should be.
    """
    paths = [idx_file(folder, stem) for stem in IDX_STEMS]
    if missing := [stem for stem, path in zip(IDX_STEMS, paths, strict=True) if path is None]:
        raise ImageSetError(f"'{folder}' lacks {', '.join(missing)} (plain or .gz)")
    train_images, train_labels, test_images, test_labels = (path for path in paths if path is not None)
    sets = {
        "train": read_idx(train_images, train_labels, classes),
        "test": read_idx(test_images, test_labels, classes),
    }
    train, test = (sets[part].pixels.shape[1:3] for part in ("train", "test"))
    if train != test:
        raise ImageSetError(
            f"'{test_images}' announces images of {test[0]}x{test[1]} at offset 8; "
            f"those in '{train_images}' are {train[0]}x{train[1]}"
        )
    return sets


def read_svhn(folder: Path) -> dict[str, PixelSet]:
    """Read SVHN's cropped digits: 32×32 RGB, 10 classes (Netzer et al., 2011); the file's label 10 is the digit 0.

    Raises:
        ImageSetError: a file is missing or is not what it should be.
    """
    require_files(folder, SVHN_FILES)
    return {part: _read_svhn_file(folder / f"{part}_32x32.mat") for part in ("train", "test")}


def read_digits(file: Path) -> dict[str, PixelSet]:
    """Read the 1,797 handwritten digits that come with scikit-learn: 8×8 grey, 10 classes; split by content.

    Args:
        file: its `digits.csv.gz`, read without scikit-learn, which would take ten times as long to import.
    """
    with gzip.open(file, "rt", encoding="ascii") as lines:
        digits = np.loadtxt(lines, delimiter=",")
    pixels = np.rint(digits[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)  # values from 0 to 16
    labels = digits[:, -1].astype(np.int64)
    hashes = [hashlib.sha256(image.tobytes()).digest() for image in pixels]
    parts = draw_tests({digest: DIGIT_CLASSES[label] for digest, label in zip(hashes, labels, strict=True)})
    is_test = np.array([parts[digest] == "test" for digest in hashes])
    return {
        part: PixelSet(pixels=pixels[chosen], labels=labels[chosen], classes=DIGIT_CLASSES)
        for part, chosen in (("train", ~is_test), ("test", is_test))
    }


def _read_cifar(path: Path, *, label_bytes: int, classes: tuple[str, ...]) -> PixelSet:
    """Read records of a label (in CIFAR-100 after the coarse one) and a red, a green and a blue 32×32 plane."""
    record = label_bytes + 3 * 32 * 32
    with closing(RawFile(path)) as file:
        size = path.stat().st_size
        if size == 0 or size % record:
            raise ImageSetError(
                f"'{path}' has {size:,} bytes; expected a multiple of {record:,}, so the record at offset "
                f"{size - size % record:,} has {size % record:,}. Get the file again, in the binary version"
            )
        data = file.read(size)
    if len(data) != size:
        raise ImageSetError(f"'{path}' ends at offset {len(data):,}; expected {size:,} bytes")
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    if label_bytes == 2:
        require_labels(records[:, 0], 20, path, start=0, step=record, kind="coarse label")
    labels = records[:, label_bytes - 1]
    require_labels(labels, len(classes), path, start=label_bytes - 1, step=record)
    pixels = np.empty((len(records), 32, 32, 3), np.uint8)
    planes = records[:, label_bytes:].reshape(-1, 3, 32, 32)
    for channel in range(3):  # a third of the time of all at once
        pixels[..., channel] = planes[:, channel]
    return PixelSet(pixels=pixels, labels=labels.astype(np.int64), classes=classes)


def _read_svhn_file(path: Path) -> PixelSet:
    found = read_mat(path, ("X", "y"))
    for name in ("X", "y"):
        if name not in found:
            raise ImageSetError(f"'{path}' has no variable '{name}'")
    pixels, labels = found["X"], found["y"]
    if (
        pixels is None
        or pixels.dtype != np.uint8
        or pixels.shape != (32, 32, 3, pixels.size // 3072)
        or not pixels.size
    ):
        raise ImageSetError(f"X in '{path}' is {_kind(pixels)}; expected uint8 of shape (32, 32, 3, number of images)")
    count = pixels.shape[3]
    if labels is None or sorted(labels.shape) != sorted((1, count)):
        raise ImageSetError(
            f"y in '{path}' is {_kind(labels)}; expected numbers of shape ({count}, 1), as X has images"
        )
    labels = labels.ravel()
    if (wrong := ~np.isin(labels, np.arange(1, 11))).any():
        first = int(wrong.argmax())
        raise ImageSetError(
            f"Label {labels[first]} at index {first} of y in '{path}'; expected 1 to 10 (10 is the digit 0)"
        )
    return PixelSet(
        pixels=np.ascontiguousarray(pixels.transpose(3, 0, 1, 2), dtype=np.uint8),
        labels=labels.astype(np.int64) % 10,
        classes=DIGIT_CLASSES,
    )


def _kind(values: Numbers | None) -> str:
    return "no array of real numbers" if values is None else f"{values.dtype} of shape {values.shape}"


# Files read with care
_MOST_DATA_BYTES = 2 << 30
"""The largest size that a file may have or announce, in bytes; all official ones are far smaller."""

_CHUNK_BYTES = 1 << 20


class RawFile:
    """A file's bytes, unpacked where it is gzip, with never more of them in memory than there are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not path.is_file():
                raise ImageSetError(f"No such file: '{path}'")
            if path.suffix != ".gz" and (size := path.stat().st_size) > _MOST_DATA_BYTES:
                raise ImageSetError(f"'{path}' has {size:,} bytes; the limit is {_MOST_DATA_BYTES:,}")
            packed = path.suffix == ".gz"
            self._file = cast(BinaryIO, gzip.GzipFile(path)) if packed else path.open("rb")
        except OSError as error:
            raise ImageSetError(f"Cannot read '{path}': {error.strerror}") from None
        self._offset = 0

    def read(self, count: int) -> bytearray:
        """Read so many bytes, or as many as there are; arrays on them can be written to.

        Raises:
            ImageSetError: the file is damaged, or cannot be read.
        """
        data = bytearray()
        try:
            while len(data) < count and (chunk := self._file.read(min(count - len(data), _CHUNK_BYTES))):
                data += chunk
        except (OSError, EOFError, zlib.error) as error:
            raise ImageSetError(
                f"'{self.path}' cannot be read at offset {self._offset + len(data):,} of its content ({error}); "
                "get it again"
            ) from None
        self._offset += len(data)
        return data

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def read_names(path: Path, count: int) -> tuple[str, ...]:
    """Read class names, one a line; none where there is no such file.

    Raises:
        ImageSetError: they are not as many different ones as there should be, or no text.
    """
    if not path.is_file():
        return ()
    with closing(RawFile(path)) as file:
        data = file.read(_CHUNK_BYTES)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ImageSetError(f"'{path}' is not text at offset {error.start}: byte {data[error.start]}") from None
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != count or len(set(names)) != count:
        raise ImageSetError(f"'{path}' has {len(names)} names, {len(set(names))} different; expected {count}")
    return names


def require_files(folder: Path, names: Iterable[str]) -> None:
    """Check that a folder has these files.

    Raises:
        ImageSetError: it lacks some.
    """
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ImageSetError(f"'{folder}' lacks {', '.join(missing)}; get the data set again")


def require_labels(
    labels: NDArray[np.uint8], classes: int, path: Path, *, start: int, step: int, kind: str = "label"
) -> None:
    """Check that labels, of which the first is at offset `start` and each next `step` bytes on, are below `classes`.

    Raises:
        ImageSetError: one is not.
    """
    wrong = labels >= classes
    if wrong.any():
        first = int(wrong.argmax())
        raise ImageSetError(
            f"'{path}' has the {kind} {labels[first]} at offset {start + first * step:,}; expected 0 to {classes - 1}"
        )


# The idx format
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
    """Find the file of this name, plain or .gz; None where there is neither."""
    candidates = (folder / stem, folder / f"{stem}.gz")
    return next((path for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113 (answers where pathlib raises)


def first_labels(path: Path, count: int) -> tuple[int, bytes]:
    """Read how many labels an idx file announces, and the first of them; by these a data set is recognised.

    Raises:
        ImageSetError: it is not an idx file of labels.
    """
    with closing(RawFile(path)) as file:
        (announced,) = _read_idx_header(file, _LABELS_MAGIC, "labels", dimensions=1)
        return announced, bytes(file.read(min(count, announced)))


def _read_idx_file(path: Path, magic: int, what: str, *, dimensions: int) -> tuple[tuple[int, ...], NDArray[np.uint8]]:
    """Read the sizes that the header of an idx file announces, and its values, flat."""
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
        raise ImageSetError(f"'{path}' is not an idx file of {what}: at offset 0 it has {got}; expected {magic}")
    if len(header) < length:
        raise ImageSetError(f"'{path}' ends at offset {len(header)}; expected an idx header of {length} bytes")
    sizes = struct.unpack(f">{dimensions}I", header[4:])
    for place, size in enumerate(sizes):
        if size == 0 or (place and size > _LARGEST_SIDE):
            limit = f" to {_LARGEST_SIDE:,}" if place else " or more"
            raise ImageSetError(f"'{path}' announces a size of {size:,} at offset {4 + 4 * place}; expected 1{limit}")
    if (total := int(np.prod(sizes, dtype=object))) > _MOST_DATA_BYTES:
        raise ImageSetError(
            f"'{path}' announces {sizes[0]:,} {what} at offset 4, {total:,} bytes; the limit is {_MOST_DATA_BYTES:,}"
        )
    return sizes


# MATLAB files of level 5
Numbers = NDArray[np.integer | np.floating]

_HEADER_BYTES, _LEVEL = 128, 0x0100
_MATRIX, _COMPRESSED = 14, 15
_NUMERIC_CLASSES = range(6, 16)
_COMPLEX = 0x0800
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


class _DamagedError(Exception):
    """An element is not what it should be; the message says why."""


def read_mat(path: Path, wanted: Collection[str]) -> dict[str, Numbers | None]:
    """Read the wanted variables of a MATLAB file, in the type in which they are stored; None for no real numbers.

    Raises:
        ImageSetError: it is no such file, or damaged.
    """
    found: dict[str, Numbers | None] = {}
    with closing(RawFile(path)) as file:
        order = _read_header(file)
        offset = _HEADER_BYTES
        while len(found) < len(wanted) and (tag := file.read(8)):
            try:
                kind, size = _read_tag(tag, order)
                body = bytes(file.read(size))
                if len(body) < size:
                    raise _DamagedError(f"it announces {size:,} bytes, and {len(body):,} are there")
                if kind == _COMPRESSED:
                    kind, body = _decompress(body, order)
                if kind != _MATRIX:
                    raise _DamagedError(f"it is of type {kind}; expected {_MATRIX} or {_COMPRESSED}")
                name, values = _read_matrix(body, order)
            except (_DamagedError, zlib.error) as error:
                raise ImageSetError(f"'{path}' is damaged in the element at offset {offset:,}: {error}") from None
            if name in wanted:
                found[name] = values
            offset += 8 + size
    return found


def _read_header(file: RawFile) -> str:
    """Check the header of a MATLAB file and return NumPy's sign for the byte order."""
    header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES:
        raise ImageSetError(f"'{file.path}' is not a MATLAB file: it ends at offset {len(header)}, within the header")
    order = {b"IM": "<", b"MI": ">"}.get(bytes(header[126:]))
    if order is None:
        raise ImageSetError(
            f"'{file.path}' is not a MATLAB file: at offset 126 it has {bytes(header[126:])!r}; expected b'IM'"
        )
    level = int.from_bytes(header[124:126], "little" if order == "<" else "big")
    if level != _LEVEL:
        raise ImageSetError(
            f"'{file.path}' is a MATLAB file of version {level:#06x} at offset 124; "
            f"expected {_LEVEL:#06x} (saved with -v7)"
        )
    return order


def _read_tag(tag: bytes | bytearray, order: str) -> tuple[int, int]:
    if len(tag) < 8:
        raise _DamagedError("it ends within its tag")
    kind, size = (int(number) for number in np.frombuffer(tag, f"{order}u4", 2))
    if size > _MOST_DATA_BYTES:
        raise _DamagedError(f"it announces {size:,} bytes; the limit is {_MOST_DATA_BYTES:,}")
    return kind, size


def _decompress(packed: bytes, order: str) -> tuple[int, bytes]:
    """Unpack the one element that lies compressed in another: its type and content, never more than it announces."""
    stream = zlib.decompressobj()
    kind, size = _read_tag(stream.decompress(packed, 8), order)
    body = stream.decompress(stream.unconsumed_tail, size) if size else b""
    if len(body) < size:
        raise _DamagedError(f"it announces {size:,} bytes unpacked, and {len(body):,} are there")
    return kind, body


def _read_matrix(body: bytes, order: str) -> tuple[str, Numbers | None]:
    """Read name and values of a variable, which lie as flags, sizes, name and values, one after the other."""
    flags, place = _read_numbers(body, 0, order)
    sizes, place = _read_numbers(body, place, order)
    letters, place = _read_numbers(body, place, order)
    if flags.dtype.kind != "u" or flags.size != 2 or sizes.dtype.kind != "i" or letters.dtype.itemsize != 1:
        raise _DamagedError("its flags, sizes or name are of the wrong type")
    name = letters.tobytes().decode("latin-1")
    if int(flags[0]) & 0xFF not in _NUMERIC_CLASSES or int(flags[0]) & _COMPLEX:
        return name, None
    values, _ = _read_numbers(body, place, order)
    shape = tuple(int(size) for size in sizes)
    if not 2 <= len(shape) <= 8 or min(shape) < 0 or math.prod(shape) != values.size:
        raise _DamagedError(f"'{name}' announces the shape {shape}, and {values.size:,} numbers are there")
    return name, values.reshape(shape, order="F")


def _read_numbers(body: bytes, place: int, order: str) -> tuple[Numbers, int]:
    """Read the numbers of the element at `place`, and where the next one is."""
    if len(body) < place + 8:
        raise _DamagedError(f"it ends after {len(body):,} bytes, where another part is expected")
    kind, size = (int(number) for number in np.frombuffer(body, f"{order}u4", 2, place))
    if kind >> 16:  # up to four bytes lie in the tag itself
        kind, size, start, following = kind & 0xFFFF, kind >> 16, place + 4, place + 8
    else:
        start, following = place + 8, place + 8 + -(-size // 8) * 8
    if kind not in _TYPES:
        raise _DamagedError(f"a part is of type {kind}, which is none of numbers")
    dtype = np.dtype(order + _TYPES[kind])
    if start + size > min(len(body), following) or size % dtype.itemsize:
        raise _DamagedError(f"a part of {dtype.name} announces {size:,} bytes, and {len(body) - start:,} are there")
    return np.frombuffer(body, dtype, size // dtype.itemsize, start), following
