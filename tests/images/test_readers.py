"""Official layouts against pixels made by hand; every malformed file is refused with its name, offset and value."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quickstudy.errors import ImageSetError, QuickstudyError
from quickstudy.images import readers
from quickstudy.images.named import load
from quickstudy.images.pixels import PixelSet
from quickstudy.images.readers import IDX_STEMS, read_idx, read_mat


def noise(*shape: int, seed: int = 1) -> NDArray[np.uint8]:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, shape, np.uint8)


def cifar_bytes(pixels: NDArray[np.uint8], *labels: list[int]) -> bytes:
    """Record by record, as the description of the format has it."""
    records = []
    for number, image in enumerate(pixels):
        planes = b"".join(image[:, :, channel].tobytes() for channel in range(3))
        records.append(bytes(column[number] for column in labels) + planes)
    return b"".join(records)


def idx_bytes(values: NDArray[np.uint8]) -> bytes:
    magic = 0x0800 + values.ndim
    return struct.pack(f">{1 + values.ndim}I", magic, *values.shape) + values.tobytes()


def write_cifar10(folder: Path, *, batch: int = 3) -> NDArray[np.uint8]:
    """A small official folder; returns the pixels, N×32×32×3, test last, whose labels count up from 0."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = noise(6 * batch, 32, 32, 3)
    for number, name in enumerate(readers.CIFAR10_FILES):
        rows = range(number * batch, (number + 1) * batch)
        (folder / name).write_bytes(cifar_bytes(pixels[rows.start : rows.stop], [row % 10 for row in rows]))
    return pixels


def write_mnist(folder: Path, *, count: int = 4, packed: bool = True) -> dict[str, NDArray[np.uint8]]:
    """A small official folder; returns the arrays by file name without .gz."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        IDX_STEMS[0]: noise(count, 28, 28),
        IDX_STEMS[1]: np.arange(count, dtype=np.uint8) % 10,
        IDX_STEMS[2]: noise(2, 28, 28, seed=2),
        IDX_STEMS[3]: np.array([9, 0], np.uint8),
    }
    for stem, values in arrays.items():
        data = idx_bytes(values)
        path = folder / (f"{stem}.gz" if packed else stem)
        path.write_bytes(gzip.compress(data) if packed else data)
    return arrays


def write_svhn(folder: Path, *, count: int = 5, compressed: bool = True) -> NDArray[np.uint8]:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = noise(count, 32, 32, 3)
    labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
    for name in readers.SVHN_FILES:
        values = {"X": pixels.transpose(1, 2, 3, 0), "y": labels}
        scipy.io.savemat(folder / name, values, do_compression=compressed)
    return pixels


def refusal(read: Callable[[], object], folder: Path) -> str:
    with pytest.raises(ImageSetError) as caught:
        read()
    return str(caught.value).replace(f"{folder}/", "")


def test_cifar10(tmp_path: Path) -> None:
    pixels = write_cifar10(tmp_path)
    sets = readers.read_cifar10(tmp_path)
    assert np.array_equal(sets["train"].pixels, pixels[:15])
    assert np.array_equal(sets["test"].pixels, pixels[15:])
    assert sets["train"].labels.tolist() == [number % 10 for number in range(15)]
    assert sets["train"].labels.dtype == np.int64
    assert sets["train"].classes == sets["test"].classes == readers.CIFAR10_CLASSES
    assert sets["train"].pixels.flags.writeable and sets["train"].pixels.flags.c_contiguous
    assert len(sets["test"]) == 3


def test_cifar10_takes_the_names_that_come_with_it(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "batches.meta.txt").write_text("\n".join(f"kind {n}" for n in range(10)) + "\n\n")
    assert readers.read_cifar10(tmp_path)["test"].classes[:2] == ("kind 0", "kind 1")
    (tmp_path / "batches.meta.txt").write_text("a\na\nb\n")
    told = refusal(lambda: readers.read_cifar10(tmp_path), tmp_path)
    assert told == "'batches.meta.txt' has 3 names, 2 different; expected 10"
    (tmp_path / "batches.meta.txt").write_bytes(b"ca\xfft")
    assert refusal(lambda: readers.read_cifar10(tmp_path), tmp_path).startswith(
        "'batches.meta.txt' is not text at offset 2"
    )


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (
            3073 * 2 + 7,
            "'data_batch_2.bin' has 6,153 bytes; expected a multiple of 3,073, so the record at offset 6,146 has 7",
        ),
        (1, "'data_batch_2.bin' has 1 bytes; expected a multiple of 3,073, so the record at offset 0 has 1"),
        (0, "'data_batch_2.bin' has 0 bytes; expected a multiple of 3,073, so the record at offset 0 has 0"),
    ],
)
def test_cifar10_truncated(tmp_path: Path, size: int, told: str) -> None:
    write_cifar10(tmp_path)
    data = (tmp_path / "data_batch_2.bin").read_bytes()
    (tmp_path / "data_batch_2.bin").write_bytes(data[:size])
    assert refusal(lambda: readers.read_cifar10(tmp_path), tmp_path).startswith(told)


def test_cifar10_with_a_label_out_of_range(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    data = bytearray((tmp_path / "test_batch.bin").read_bytes())
    data[2 * 3073] = 10
    (tmp_path / "test_batch.bin").write_bytes(data)
    told = refusal(lambda: readers.read_cifar10(tmp_path), tmp_path)
    assert told == "'test_batch.bin' has the label 10 at offset 6,146; expected 0 to 9"


def test_cifar10_with_a_file_missing(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    told = refusal(lambda: readers.read_cifar10(tmp_path), tmp_path)
    assert told == f"'{tmp_path}' lacks data_batch_3.bin; get the data set again"


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    pixels = noise(4, 32, 32, 3)
    (tmp_path / "train.bin").write_bytes(cifar_bytes(pixels[:3], [19, 0, 1], [99, 5, 7]))
    (tmp_path / "test.bin").write_bytes(cifar_bytes(pixels[3:], [2], [50]))
    (tmp_path / "fine_label_names.txt").write_text("".join(f"thing_{n}\n" for n in range(100)))
    sets = readers.read_cifar100(tmp_path)
    assert np.array_equal(sets["train"].pixels, pixels[:3])
    assert sets["train"].labels.tolist() == [99, 5, 7]
    assert sets["test"].classes[50] == "thing_50"
    (tmp_path / "test.bin").write_bytes(cifar_bytes(pixels[:2], [2, 20], [50, 1]))
    told = refusal(lambda: readers.read_cifar100(tmp_path), tmp_path)
    assert told == "'test.bin' has the coarse label 20 at offset 3,074; expected 0 to 19"
    (tmp_path / "test.bin").write_bytes(cifar_bytes(pixels[:2], [2, 3], [50, 100]))
    told = refusal(lambda: readers.read_cifar100(tmp_path), tmp_path)
    assert told == "'test.bin' has the label 100 at offset 3,075; expected 0 to 99"


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_plain_and_packed(tmp_path: Path, packed: bool) -> None:
    arrays = write_mnist(tmp_path, packed=packed)
    sets = readers.read_mnist(tmp_path)
    assert np.array_equal(sets["train"].pixels[..., 0], arrays[IDX_STEMS[0]])
    assert sets["train"].pixels.shape == (4, 28, 28, 1)
    assert sets["train"].pixels.flags.writeable
    assert sets["test"].labels.tolist() == [9, 0]
    assert sets["test"].classes == tuple("0123456789")
    assert readers.read_mnist(tmp_path, readers.FASHION_CLASSES)["test"].classes[9] == "Ankle boot"


def header(magic: int, *sizes: int) -> bytes:
    return struct.pack(f">{1 + len(sizes)}I", magic, *sizes)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (b"", "'images' is not an idx file of images: at offset 0 it has only 0 bytes; expected 2051"),
        (header(2049, 2, 28, 28), "'images' is not an idx file of images: at offset 0 it has 2049; expected 2051"),
        (header(2051, 2), "'images' ends at offset 8; expected an idx header of 16 bytes"),
        (header(2051, 0, 28, 28), "'images' announces a size of 0 at offset 4; expected 1 or more"),
        (header(2051, 2, 0, 28), "'images' announces a size of 0 at offset 8; expected 1 to 4,096"),
        (header(2051, 2, 28, 70_000), "'images' announces a size of 70,000 at offset 12; expected 1 to 4,096"),
        (
            header(2051, 2**31, 28, 28),
            "'images' announces 2,147,483,648 images at offset 4, 1,683,627,180,032 bytes; the limit is 2,147,483,648",
        ),
        (
            header(2051, 2_000_000, 28, 28) + bytes(9),
            "'images' ends at offset 25; expected 1,568,000,016 bytes for 2,000,000 images. "
            "It is truncated; get it again",
        ),
        (idx_bytes(noise(2, 3, 3)) + b"x", "'images' goes on at offset 34; expected its end after images"),
        (
            idx_bytes(noise(3, 3, 3)),
            "'labels' announces 2 labels at offset 4; expected 3, as 'images' has images",
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_images_that_are_none(tmp_path: Path, images: bytes, told: str, suffix: str) -> None:
    image_path, label_path = tmp_path / f"images{suffix}", tmp_path / "labels"
    image_path.write_bytes(gzip.compress(images) if suffix else images)
    label_path.write_bytes(idx_bytes(np.array([1, 2], np.uint8)))
    found = refusal(lambda: read_idx(image_path, label_path, readers.DIGIT_CLASSES), tmp_path)
    assert found.replace("images.gz", "images") == told


def test_idx_labels_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(idx_bytes(noise(2, 3, 3)))
    read = lambda: read_idx(tmp_path / "images", tmp_path / "labels", readers.DIGIT_CLASSES)  # noqa: E731
    (tmp_path / "labels").write_bytes(idx_bytes(np.array([1, 10], np.uint8)))
    assert refusal(read, tmp_path) == "'labels' has the label 10 at offset 9; expected 0 to 9"
    (tmp_path / "labels").write_bytes(idx_bytes(noise(2, 3, 3)))
    assert refusal(read, tmp_path) == "'labels' is not an idx file of labels: at offset 0 it has 2051; expected 2049"
    (tmp_path / "labels").unlink()
    assert refusal(read, tmp_path) == "No such file: 'labels'"


def test_mnist_with_damaged_files(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    told = refusal(lambda: readers.read_mnist(tmp_path), tmp_path)
    assert re.match(
        r"'t10k-images-idx3-ubyte.gz' cannot be read at offset [\d,]+ of its content \(.*\); get it again", told
    )
    path.write_bytes(b"no gzip at all")
    assert "'t10k-images-idx3-ubyte.gz' cannot be read at offset 0" in refusal(
        lambda: readers.read_mnist(tmp_path), tmp_path
    )
    path.write_bytes(gzip.compress(idx_bytes(noise(2, 14, 14))))
    told = refusal(lambda: readers.read_mnist(tmp_path), tmp_path)
    assert told.startswith("'t10k-images-idx3-ubyte.gz' announces images of 14x14 at offset 8; those in 'train-images")
    path.unlink()
    assert "lacks t10k-images-idx3-ubyte (plain or .gz)" in refusal(lambda: readers.read_mnist(tmp_path), tmp_path)


@pytest.mark.parametrize("compressed", [True, False])
def test_svhn(tmp_path: Path, compressed: bool) -> None:
    pixels = write_svhn(tmp_path, count=12, compressed=compressed)
    sets = readers.read_svhn(tmp_path)
    assert np.array_equal(sets["train"].pixels, pixels)
    assert sets["test"].labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert sets["test"].labels.dtype == np.int64


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"X": noise(32, 32, 3, 2)}, "'test_32x32.mat' has no variable 'y'"),
        ({}, "'test_32x32.mat' has no variable 'X'"),
        (
            {"X": noise(2, 32, 32, 3), "y": noise(2, 1)},
            "X in 'test_32x32.mat' is uint8 of shape (2, 32, 32, 3); expected uint8 of shape (32, 32, 3,",
        ),
        (
            {"X": noise(32, 32, 3, 2), "y": noise(3, 1)},
            "y in 'test_32x32.mat' is uint8 of shape (3, 1); expected numbers of shape (2, 1)",
        ),
        (
            {"X": noise(32, 32, 3, 2).astype(np.float64), "y": np.ones((2, 1))},
            "X in 'test_32x32.mat' is float64 of shape (32, 32, 3, 2); expected uint8",
        ),
        (
            {"X": noise(32, 32, 3, 2), "y": np.array([[1], [11]])},
            "Label 11 at index 1 of y in 'test_32x32.mat'; expected 1 to 10",
        ),
        (
            {"X": noise(32, 32, 3, 2), "y": np.array([[0], [1]])},
            "Label 0 at index 0 of y in 'test_32x32.mat'; expected 1 to 10",
        ),
        (
            {"X": noise(32, 32, 3, 2), "y": np.array([[1.5], [1]])},
            "Label 1.5 at index 0 of y in 'test_32x32.mat'; expected 1 to 10",
        ),
        (
            {"X": noise(32, 32, 3, 2), "y": np.array([["a"], ["b"]], object)},
            "y in 'test_32x32.mat' is no array of real numbers; expected numbers of shape (2, 1)",
        ),
    ],
)
def test_svhn_with_other_content(tmp_path: Path, values: dict[str, object], told: str) -> None:
    write_svhn(tmp_path)
    scipy.io.savemat(tmp_path / "test_32x32.mat", values)
    assert refusal(lambda: readers.read_svhn(tmp_path), tmp_path).startswith(told)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64, np.int64])
def test_matlab_files_as_scipy_writes_them(tmp_path: Path, kind: type[np.generic], compressed: bool) -> None:
    path = tmp_path / "x.mat"
    values = {
        "other": "a text",
        "a name that is long": np.arange(24).reshape(2, 3, 4).astype(kind),
        "y": np.array([[3]], kind),
        "z": np.array([[1j]]),
    }
    scipy.io.savemat(path, values, do_compression=compressed, long_field_names=True)
    found = read_mat(path, ("a name that is long", "y", "z", "missing"))
    assert set(found) == {"a name that is long", "y", "z"}
    assert found["z"] is None
    for name in ("a name that is long", "y"):
        assert np.array_equal(found[name], values[name])  # type: ignore[arg-type]


def mat(*elements: bytes, head: bytes = bytes(124), level: int = 0x0100, order: str = "<") -> bytes:
    return head + struct.pack(f"{order}H", level) + (b"IM" if order == "<" else b"MI") + b"".join(elements)


def element(kind: int, data: bytes, *, size: int | None = None, order: str = "<") -> bytes:
    return struct.pack(f"{order}II", kind, len(data) if size is None else size) + data + bytes(-len(data) % 8)


def matrix(name: bytes, shape: tuple[int, ...], data: bytes, *, order: str = "<") -> bytes:
    parts = [
        element(6, struct.pack(f"{order}II", 9, 0), order=order),
        element(5, struct.pack(f"{order}{len(shape)}i", *shape), order=order),
        element(1, name, order=order),
        element(2, data, order=order),
    ]
    return element(14, b"".join(parts), order=order)


def test_matlab_files_by_hand(tmp_path: Path) -> None:
    for order in "<>":
        (tmp_path / "x.mat").write_bytes(mat(matrix(b"X", (2, 3), b"abcdef", order=order), order=order))
        assert read_mat(tmp_path / "x.mat", ("X",))["X"].tolist() == [[97, 99, 101], [98, 100, 102]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is not a MATLAB file: it ends at offset 0, within the header"),
        (bytes(128), r"is not a MATLAB file: at offset 126 it has b'\x00\x00'; expected b'IM'"),
        (mat(level=0x0200), "is a MATLAB file of version 0x0200 at offset 124; expected 0x0100 (saved with -v7)"),
        (mat(b"abc"), "is damaged in the element at offset 128: it ends within its tag"),
        (mat(element(14, b"", size=2**32 - 1)), "at offset 128: it announces 4,294,967,295 bytes; the limit is"),
        (mat(element(14, b"abc", size=2**30)), "at offset 128: it announces 1,073,741,824 bytes, and 8 are there"),
        (mat(element(7, b"abcd", size=8)), "at offset 128: it is of type 7; expected 14 or 15"),
        (mat(element(15, b"no zlib")), "at offset 128: Error -3 while decompressing data"),
        (
            mat(element(15, zlib.compress(element(14, b"", size=2**31)))),
            "at offset 128: it announces 2,147,483,648 bytes unpacked, and 0 are there",
        ),
        (mat(element(14, b"")), "at offset 128: it ends after 0 bytes, where another part is expected"),
        (mat(matrix(b"X", (2, 4), b"abcdef")), "'X' announces the shape (2, 4), and 6 numbers are there"),
        (mat(matrix(b"X", (-2, -3), b"abcdef")), "'X' announces the shape (-2, -3), and 6 numbers are there"),
        (mat(matrix(b"X", (6,), b"abcdef")), "'X' announces the shape (6,), and 6 numbers are there"),
        (mat(matrix(b"a", (1, 1), b"a"), b"\x0e"), "is damaged in the element at offset 200: it ends within its tag"),
    ],
)
def test_matlab_files_that_are_none(tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / "x.mat").write_bytes(data)
    found = refusal(lambda: read_mat(tmp_path / "x.mat", ("X",)), tmp_path)
    assert found.startswith("'x.mat' is ") and told in found


def test_the_digits_are_there_without_any_file() -> None:
    sets = load("digits")
    assert len(sets["train"]) + len(sets["test"]) == 1797
    assert sets["train"].pixels.shape[1:] == (8, 8, 1)
    assert sets["train"].pixels.max() == 255
    assert sets["train"].classes == tuple("0123456789")
    assert 0.15 < len(sets["test"]) / 1797 < 0.25
    seen = {image.tobytes() for image in sets["train"].pixels}
    assert not seen & {image.tobytes() for image in sets["test"].pixels}
    assert load("digits")["test"].content_fingerprint() == sets["test"].content_fingerprint()


def test_mnist_as_published(test_data: Path) -> None:
    if not (test_data / "mnist").is_dir():
        pytest.skip(f"no folder '{test_data / 'mnist'}'")
    sets = readers.read_mnist(test_data / "mnist")
    assert sets["train"].pixels.shape == (60_000, 28, 28, 1)
    assert sets["test"].pixels.shape == (10_000, 28, 28, 1)
    # Counts of the ten digits and the mean level, as the literature has them (0.1307 of 255).
    assert np.bincount(sets["train"].labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert round(float(sets["train"].pixels.mean()) / 255, 4) == 0.1307


def test_pixel_sets_are_whole(tmp_path: Path) -> None:
    labels = np.array([0, 1])
    whole = PixelSet(pixels=noise(2, 4, 4, 3), labels=labels, classes=("a", "b"))
    for pixels, numbers, classes in (
        (noise(2, 4, 4), labels, ("a", "b")),
        (noise(2, 4, 4, 2), labels, ("a", "b")),
        (noise(2, 4, 4, 3).astype(np.int64), labels, ("a", "b")),
        (noise(3, 4, 4, 3), labels, ("a", "b")),
        (noise(2, 4, 4, 3), labels.astype(np.int32), ("a", "b")),
        (noise(2, 4, 4, 3), labels, ("a",)),
        (noise(2, 4, 4, 3), -labels, ("a", "b")),
    ):
        with pytest.raises(ImageSetError):
            PixelSet(pixels=pixels, labels=numbers, classes=classes)  # type: ignore[arg-type]
    assert len(whole) == 2


def test_the_fingerprint_names_all_of_the_content() -> None:
    pixels, labels = noise(4, 2, 2, 1), np.array([0, 1, 0, 1])
    prints = {
        PixelSet(pixels=p, labels=n, classes=c).content_fingerprint()
        for p, n, c in (
            (pixels, labels, ("a", "b")),
            (pixels[::-1], labels, ("a", "b")),
            (pixels, labels[::-1], ("a", "b")),
            (pixels, labels, ("a", "c")),
            (pixels.reshape(4, 4, 1, 1), labels, ("a", "b")),
        )
    }
    assert len(prints) == 5
    again = PixelSet(pixels=np.asfortranarray(pixels), labels=labels.astype(">i8").astype(np.int64), classes=("a", "b"))
    assert again.content_fingerprint() in prints


def read_anything(folder: Path) -> None:
    for read in (readers.read_cifar10, readers.read_cifar100, readers.read_mnist, readers.read_svhn):
        try:
            sets = read(folder)
        except QuickstudyError:
            continue
        for pixel_set in sets.values():
            assert pixel_set.pixels.dtype == np.uint8
            assert 0 <= pixel_set.labels.min() <= pixel_set.labels.max() < len(pixel_set.classes)


@given(st.data())
def test_damage_anywhere_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    write_cifar10(folder, batch=1)
    write_mnist(folder, count=2, packed=data.draw(st.booleans()))
    write_svhn(folder, count=2, compressed=data.draw(st.booleans()))
    for name in ("test_32x32.mat", "data_batch_4.bin", *(p.name for p in folder.glob("t10k*"))):
        whole = (folder / name).read_bytes()
        kind = data.draw(st.sampled_from(["cut", "flip", "random"]))
        if kind == "cut":
            whole = whole[: data.draw(st.integers(0, len(whole)))]
        elif kind == "random":
            whole = data.draw(st.binary(max_size=300))
        else:
            changed = bytearray(whole)
            for _ in range(data.draw(st.integers(1, 4))):
                # Headers are where the harm is done.
                changed[data.draw(st.integers(0, min(len(whole), 400) - 1))] = data.draw(st.integers(0, 255))
            whole = bytes(changed)
        (folder / name).write_bytes(whole)
    read_anything(folder)
