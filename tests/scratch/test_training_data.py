"""What a run trains on: named data sets, image folders, manifests; and what is held out of it, by content."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quickstudy.errors import ImageSetError
from quickstudy.images import readers
from quickstudy.images.decoding import InputSpec, decode, to_input
from quickstudy.images.pixels import PixelSet
from quickstudy.images.readers import IDX_STEMS
from quickstudy.scratch.data import DataFacts, TrainingData, load_training_data
from quickstudy.scratch.input import Moments


def draws(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def write_cifar10(folder: Path, *, count: int = 4) -> Path:
    """`count` records a file, the label in turn, every image another."""
    folder.mkdir(parents=True)
    for number, name in enumerate(readers.CIFAR10_FILES):
        records = draws(number).integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] = np.arange(count) % 10
        (folder / name).write_bytes(records.tobytes())
    return folder


def write_idx(folder: Path, *, height: int = 4, width: int = 4, count: int = 6) -> Path:
    folder.mkdir(parents=True)
    for number, stem in enumerate(IDX_STEMS):
        if "images" in stem:
            pixels = draws(number).integers(0, 256, (count, height, width), np.uint8)
            data = np.array([2051, count, height, width], ">u4").tobytes() + pixels.tobytes()
        else:
            data = np.array([2049, count], ">u4").tobytes() + (np.arange(count, dtype=np.uint8) % 10).tobytes()
        (folder / stem).write_bytes(data)
    return folder


def save(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draws(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    return path


def image_folder(folder: Path, *, each: int = 6) -> Path:
    for number in range(each):
        for place, name in enumerate(("cat", "dog")):
            save(folder / name / f"{number}.png", number * 10 + place)
    return folder


def split_folder(folder: Path, *parts: str, each: int = 3) -> Path:
    for place, part in enumerate(parts):
        for number in range(each):
            for other, name in enumerate(("cat", "dog")):
                save(folder / part / name / f"{number}.png", place * 100 + number * 10 + other)
    return folder


def load(source: str | Path, *, validation: float = 0.0, **options: object) -> TrainingData:
    return load_training_data(str(source), image_size=16, validation=validation, **options)  # type: ignore[arg-type]


def refusal(source: str | Path, *, validation: float = 0.0, **options: object) -> str:
    with pytest.raises(ImageSetError) as caught:
        load(source, validation=validation, **options)
    return str(caught.value)


def digests(data: PixelSet) -> list[bytes]:
    return [hashlib.sha256(image.tobytes()).digest() for image in data.pixels]


def together(*sets: PixelSet | None) -> list[tuple[bytes, int]]:
    return sorted(
        (digest, int(label))
        for part in sets
        if part is not None
        for digest, label in zip(digests(part), part.labels, strict=True)
    )


def test_a_named_data_set_in_the_data_folder(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "data" / "cifar10" / "cifar-10-batches-bin")
    data = load("cifar10", folder=tmp_path / "data")
    assert (len(data.train), len(data.test), data.validation) == (20, 4, None)
    assert (data.side, data.channels, data.skipped) == (32, 3, ())
    assert data.classes == readers.CIFAR10_CLASSES
    record = np.frombuffer(
        (tmp_path / "data/cifar10/cifar-10-batches-bin/test_batch.bin").read_bytes(), np.uint8
    ).reshape(4, 3073)[1]
    np.testing.assert_array_equal(data.test.pixels[1].transpose(2, 0, 1).ravel(), record[1:])
    assert data.test.labels[1] == record[0] == 1


def test_a_named_data_set_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    monkeypatch.setenv("QUICKSTUDY_DATA", str(tmp_path))
    assert len(load("cifar10").train) == 20


@pytest.mark.parametrize("inner", [True, False])
def test_a_folder_in_the_official_layout(tmp_path: Path, inner: bool) -> None:
    folder = write_cifar10(tmp_path / "mine" / "cifar-10-batches-bin")
    data = load(folder if inner else folder.parent)
    named = load("cifar10", folder=folder.parent)
    assert data.facts == named.facts
    assert together(data.test) == together(named.test)


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    write_idx(tmp_path / "mnist")
    for data in (load(tmp_path / "mnist"), load("mnist", folder=tmp_path)):
        assert (data.channels, data.side, len(data.train), len(data.test)) == (1, 4, 6, 6)
        facts = data.facts
        assert (facts.channels, len(facts.moments.mean)) == (1, 1)


def test_the_digits_need_nothing() -> None:
    data = load("digits")
    assert (data.side, data.channels, len(data.classes)) == (8, 1, 10)
    assert len(data.train) + len(data.test) == 1797


def test_an_image_folder(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos")
    (folder / "cat" / "broken.jpg").write_bytes(b"no image")
    data = load(folder)
    assert data.classes == ("cat", "dog")
    assert (data.side, data.channels) == (16, 3)
    assert [skipped.path.name for skipped in data.skipped] == ["broken.jpg"]
    assert len(data.train) + len(data.test) == 12
    spec = InputSpec(size=16)
    expected = [
        (
            hashlib.sha256(to_input(decode(path.read_bytes(), spec), spec).tobytes()).digest(),
            int(path.parent.name == "dog"),
        )
        for path in folder.rglob("*.png")
    ]
    assert together(data.train, data.test) == sorted(expected)
    assert together(load(folder).test) == together(data.test)


def test_test_images_stay_such_when_others_come(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos", each=12)
    before = load(folder)
    image_folder(folder, each=24)
    after = load(folder)
    assert len(after.train) + len(after.test) == 48
    assert set(together(before.test)) <= set(together(after.test))
    assert set(together(before.train)) <= set(together(after.train))


def test_a_manifest(tmp_path: Path) -> None:
    with (tmp_path / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for number in range(12):
            path = save(tmp_path / "files" / f"{number}.png", number)
            split = ("train", "train", "validation", "test")[number // 2 % 4]
            writer.writerow([path.relative_to(tmp_path), ("left", "right")[number % 2], split])
    data = load(tmp_path / "images.csv")
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 2)
    assert data.classes == ("left", "right")


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_given_validation_images_are_taken_and_nothing_else_is_held_out(tmp_path: Path, share: float) -> None:
    data = load(split_folder(tmp_path / "photos", "train", "validation", "test"), validation=share)
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 6, 6)
    spec = InputSpec(size=16)
    given = [
        to_input(decode(path.read_bytes(), spec), spec) for path in (tmp_path / "photos/validation").rglob("*.png")
    ]
    assert sorted(digests(data.validation)) == sorted(hashlib.sha256(image.tobytes()).digest() for image in given)
    assert data.split("validation") is data.validation and data.split("test") is data.test


def test_without_validation_images_there_is_no_such_split(tmp_path: Path) -> None:
    data = load(image_folder(tmp_path / "photos"))
    assert data.split("test") is data.test
    with pytest.raises(ImageSetError, match=r"This run has no validation images; train with --set validation=0\.1"):
        data.split("validation")


def test_splits_without_test_images_are_refused(tmp_path: Path) -> None:
    said = refusal(split_folder(tmp_path / "photos", "train", "validation"))
    assert said.startswith(f"'{tmp_path / 'photos'}' has no test images; put some under ")


def test_what_is_held_out_is_a_share_of_each_class_and_never_trained_on(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-bin", count=40)
    whole, part = load("cifar10", folder=tmp_path), load("cifar10", folder=tmp_path, validation=0.2)
    assert part.validation is not None
    assert (len(part.train), len(part.validation)) == (160, 40)
    assert np.bincount(part.validation.labels).tolist() == [4] * 10
    assert together(part.train, part.validation) == together(whole.train)
    assert not set(digests(part.train)) & set(digests(part.validation))
    assert together(part.test) == together(whole.test)
    assert part.facts.fingerprint != whole.facts.fingerprint
    # The moments are those of what is trained on.
    assert part.facts.moments == Moments.of(part.train.pixels)
    # The rest keeps its order.
    held = set(digests(part.validation))
    assert digests(part.train) == [digest for digest in digests(whole.train) if digest not in held]


def test_a_larger_share_holds_the_smaller_one(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-bin", count=40)
    small, large = (load("cifar10", folder=tmp_path, validation=share).validation for share in (0.1, 0.5))
    assert set(together(small)) < set(together(large))


def write_records(folder: Path, records: list[tuple[int, int]], *, turn: int = 0) -> Path:
    """A CIFAR-10 of these (label, number of the picture), from the `turn`-th on and round."""
    folder.mkdir(parents=True)
    rows = [[label, *draws(1000 + picture).integers(0, 256, 3072)] for label, picture in records]
    data = np.roll(np.array(rows, np.uint8), turn, axis=0)
    for name, part in zip(readers.CIFAR10_TRAIN_FILES, np.array_split(data, 5), strict=True):
        (folder / name).write_bytes(part.tobytes())
    (folder / "test_batch.bin").write_bytes(data[:1].tobytes())
    return folder


def test_the_order_of_the_images_decides_nothing(tmp_path: Path) -> None:
    records = [(number % 10, number) for number in range(60)]
    folders = [write_records(tmp_path / str(turn), records, turn=turn) for turn in (0, 23)]
    first, second = (load(folder, validation=0.3) for folder in folders)
    assert first.validation is not None and second.validation is not None
    assert together(first.validation) == together(second.validation)
    assert digests(first.train) != digests(second.train)


@given(data=st.data(), share=st.floats(0.05, 0.9))
def test_copies_stay_together(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, share: float) -> None:
    pictures = data.draw(st.lists(st.integers(0, 11), min_size=10, max_size=25))
    records = [(picture % 2, picture) for picture in [*range(12), *pictures]]
    folder = write_records(tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin", records)
    try:
        held_out = load(folder, validation=share)
    except ImageSetError as error:
        assert "to train on" in str(error)
        assert share > 0.5
        return
    assert held_out.validation is not None
    assert not set(digests(held_out.train)) & set(digests(held_out.validation))
    assert len(held_out.train) + len(held_out.validation) == len(records)
    # The wanted share by class, and the copies that come with it.
    assert set(held_out.train.labels.tolist()) == set(held_out.validation.labels.tolist()) == {0, 1}


def test_a_picture_with_two_labels_is_on_one_side(tmp_path: Path) -> None:
    records = [(picture % 2, picture) for picture in range(20)] + [(1 - picture % 2, picture) for picture in range(8)]
    data = load(write_records(tmp_path / "cifar", records), validation=0.3)
    assert data.validation is not None
    assert not set(digests(data.train)) & set(digests(data.validation))
    assert len(data.train) + len(data.validation) == 28


@pytest.mark.parametrize(("share", "held"), [(0.01, 1), (0.4, 1), (0.5, 2), (0.9, 2)])
def test_of_small_classes_some_are_held_out_and_some_are_not(tmp_path: Path, share: float, held: int) -> None:
    records = [(label, 3 * label + number) for label in range(10) for number in range(3)]
    data = load(write_records(tmp_path / "cifar", records), validation=share)
    assert data.validation is not None
    assert np.bincount(data.validation.labels).tolist() == [held] * 10
    assert np.bincount(data.train.labels).tolist() == [3 - held] * 10


def test_a_class_that_would_have_nothing_to_train_on(tmp_path: Path) -> None:
    records = [*((0, 50) for _ in range(5)), *((1, number) for number in range(10))]  # five copies of one airplane
    said = refusal(write_records(tmp_path / "cifar", records), validation=0.2)
    assert "validation=0.2" in said and "'airplane'" in said


def test_nothing_that_could_be_held_out(tmp_path: Path) -> None:
    records = [(label, label) for label in range(10)]
    said = refusal(write_records(tmp_path / "cifar", records), validation=0.2)
    assert "validation=0.2" in said


def test_images_that_are_not_square_are_refused(tmp_path: Path) -> None:
    said = refusal(write_idx(tmp_path / "mnist", height=4, width=6))
    assert "(4, 6) pixels" in said


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist", "svhn", "flowers"])
def test_missing_data_says_how_to_get_it(tmp_path: Path, name: str) -> None:
    assert f"get it with: quickstudy data get {name}" in refusal(name, folder=tmp_path)


def test_a_source_that_is_nothing(tmp_path: Path) -> None:
    said = refusal(tmp_path / "photo")
    assert said.startswith(f"No such file or folder: '{tmp_path / 'photo'}'; expected photos/<class>/*.jpg")
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").startswith(f"No images under '{tmp_path / 'empty'}'")


def test_flowers_are_an_image_set(tmp_path: Path) -> None:
    names = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    for place, name in enumerate(names):
        for number in range(4):
            save(tmp_path / "flowers" / "flower_photos" / name / f"{number}.png", place * 10 + number)
    data = load("flowers", folder=tmp_path)
    assert data.classes == names
    assert (data.side, len(data.train) + len(data.test)) == (16, 20)


def test_facts_go_through_json(tmp_path: Path) -> None:
    data = load(image_folder(tmp_path / "photos"))
    facts = data.facts
    assert DataFacts.from_dict(facts.to_dict()) == facts
    assert facts.moments == Moments.of(data.train.pixels)
    assert facts.fingerprint == data.train.content_fingerprint()
