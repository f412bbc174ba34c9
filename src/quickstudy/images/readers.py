"""Readers of official layouts: CIFAR-10 and CIFAR-100 (binary), MNIST's idx files, SVHN's .mat files, the digits.

Each reads straight into arrays and checks everything that a damaged or foreign file could get wrong; the message names
file, byte offset (in .mat files the index) and value. Python pickles, in which CIFAR comes too, are never loaded: they
can run code.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path

import numpy as np

from quickstudy.errors import ImageSetError
from quickstudy.images.census import draw_tests
from quickstudy.images.idx import IDX_STEMS, idx_file, read_idx
from quickstudy.images.matfile import Numbers, read_mat
from quickstudy.images.pixels import PixelSet
from quickstudy.images.rawfiles import RawFile, read_names, require_files, require_labels

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


def read_digits() -> dict[str, PixelSet]:
    """The 1,797 handwritten digits that come with scikit-learn: 8×8 grey, 10 classes; split by content."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # values from 0 to 16
    labels = digits.target.astype(np.int64)
    hashes = [hashlib.sha256(image.tobytes()).digest() for image in pixels]
    parts = draw_tests({digest: DIGIT_CLASSES[label] for digest, label in zip(hashes, labels, strict=True)})
    is_test = np.array([parts[digest] == "test" for digest in hashes])
    return {
        part: PixelSet(pixels=pixels[chosen], labels=labels[chosen], classes=DIGIT_CLASSES)
        for part, chosen in (("train", ~is_test), ("test", is_test))
    }


def _read_cifar(path: Path, *, label_bytes: int, classes: tuple[str, ...]) -> PixelSet:
    """Records of the label (in CIFAR-100 after the coarse one) and a red, a green and a blue 32×32 plane."""
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
    planes = records[:, label_bytes:].reshape(-1, 3, 32, 32)
    return PixelSet(
        pixels=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels=labels.astype(np.int64), classes=classes
    )


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
