"""Whole image sets in memory: the pixels of `fit(decode(…))`, in the right split, whatever else lies in the folder."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quickstudy.errors import ImageSetError
from quickstudy.images.decoding import InputSpec, decode, to_input
from quickstudy.images.drawn_roles import draw_tests
from quickstudy.images.imageset import Split, load_image_set
from quickstudy.images.pixels import DecodedImageSet, decode_image_set

SPEC = InputSpec(size=32)


def save(path: Path, seed: int) -> Path:
    """A small picture of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def paths(decoded: DecodedImageSet, split: Split) -> list[Path]:
    return [decoded.census.contents[digest].path for digest in decoded.census.digests(split)]


def fingerprints(decoded: DecodedImageSet) -> dict[str, str]:
    return {split: pixel_set.content_fingerprint() for split, pixel_set in decoded.splits.items()}


def test_the_pixels_are_those_of_decode_and_fit(photos: Path) -> None:
    decoded = decode_image_set(photos, SPEC)
    assert decoded.classes == ("checks", "discs", "stripes")
    assert sum(len(pixel_set) for pixel_set in decoded.splits.values()) == 36
    assert not decoded.census.given and not decoded.skipped and not decoded.census.conflicts
    assert (decoded.census.copies, decoded.census.leaks) == (0, 0)
    for split, pixel_set in decoded.splits.items():
        assert pixel_set.pixels.shape == (len(pixel_set), 32, 32, 3)
        for path, pixels, label in zip(paths(decoded, split), pixel_set.pixels, pixel_set.labels, strict=True):
            assert np.array_equal(pixels, to_input(decode(path.read_bytes(), SPEC), SPEC))
            assert pixel_set.classes[label] == path.parent.name


def test_the_split_is_the_one_by_content(photos: Path) -> None:
    decoded = decode_image_set(photos, SPEC)
    labels = {hashlib.sha256(path.read_bytes()).digest(): path.parent.name for path in photos.rglob("*.jpg")}
    parts = draw_tests(labels)
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        digests = [hashlib.sha256(path.read_bytes()).digest() for path in paths(decoded, split)]
        assert digests == sorted(digest for digest, part in parts.items() if part == split)
    assert "validation" not in decoded.splits


def test_names_order_and_threads_change_nothing(photos: Path, tmp_path: Path) -> None:
    first = decode_image_set(photos, SPEC, threads=1)
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        target = tmp_path / "renamed" / path.parent.name / f"{(number * 7) % 36:02}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    assert fingerprints(decode_image_set(tmp_path / "renamed", SPEC, threads=4)) == fingerprints(first)
    assert fingerprints(decode_image_set(load_image_set(photos), SPEC)) == fingerprints(first)
    assert fingerprints(decode_image_set(photos, InputSpec(size=16))) != fingerprints(first)


def test_copies_count_once_and_conflicts_not_at_all(photos: Path) -> None:
    shutil.copy(photos / "discs" / "00.jpg", photos / "discs" / "again.jpg")
    shutil.copy(photos / "discs" / "01.jpg", photos / "stripes" / "wrong.jpg")
    decoded = decode_image_set(photos, SPEC)
    assert decoded.census.copies == 1
    assert decoded.census.conflicts == ((photos / "discs" / "01.jpg", photos / "stripes" / "wrong.jpg"),)
    shown = [*paths(decoded, "train"), *paths(decoded, "test")]
    assert len(shown) == 35
    assert photos / "discs" / "00.jpg" in shown and photos / "discs" / "again.jpg" not in shown


def test_bad_files_are_skipped_with_their_reason_copies_too(photos: Path) -> None:
    (photos / "discs" / "empty.jpg").touch()
    half = (photos / "checks" / "00.jpg").read_bytes()[:2000]
    (photos / "checks" / "half.jpg").write_bytes(half)
    (photos / "checks" / "half too.jpg").write_bytes(half)
    (photos / "stripes" / "gone.jpg").symlink_to(photos / "nowhere")
    decoded = decode_image_set(photos, SPEC)
    reasons = {item.path.name: item.reason for item in decoded.skipped}
    assert reasons == {
        "empty.jpg": "empty file (0 bytes)",
        "half.jpg": "truncated (the scan ends after 23 % of the rows)",
        "half too.jpg": "truncated (the scan ends after 23 % of the rows)",
        "gone.jpg": "a link to nothing",
    }
    assert sum(len(pixel_set) for pixel_set in decoded.splits.values()) == 36


def test_given_splits_stay_and_leaks_leave_training(tmp_path: Path) -> None:
    seed = 0
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for label in ("cats", "dogs"):
            for number in range(count):
                save(tmp_path / split / label / f"{number}.png", seed := seed + 1)
    shutil.copy(tmp_path / "test/cats/0.png", tmp_path / "train/cats/leak.png")
    shutil.copy(tmp_path / "val/dogs/0.png", tmp_path / "train/dogs/leak.png")
    decoded = decode_image_set(tmp_path, SPEC)
    assert decoded.census.given
    assert {split: len(pixel_set) for split, pixel_set in decoded.splits.items()} == {
        "train": 8,
        "validation": 4,
        "test": 6,
    }
    assert decoded.census.leaks == 2
    folders: dict[Split, str] = {"train": "train", "validation": "val", "test": "test"}
    for split, folder in folders.items():
        of = Counter(path.relative_to(tmp_path).parts[0] for path in paths(decoded, split))
        # Of a leak, the first file in the listing is named, which may lie in the other split's folder.
        assert set(of) <= {folder, "train"}


def test_splits_without_a_test_and_classes_without_training(tmp_path: Path) -> None:
    for seed, name in enumerate(["train/a/1", "train/a/2", "train/b/1", "train/b/2", "val/a/1", "val/c/1", "val/c/2"]):
        save(tmp_path / f"{name}.png", seed)
    decoded = decode_image_set(tmp_path, SPEC)
    assert set(decoded.splits) == {"train", "validation"}
    assert len(decoded.splits["validation"]) == 1
    assert decoded.classes == ("a", "b")
    assert [(item.path.name, item.reason) for item in sorted(decoded.skipped, key=lambda item: item.path)] == [
        ("1.png", "its class 'c' has no training images"),
        ("2.png", "its class 'c' has no training images"),
    ]


def test_manifests(tmp_path: Path) -> None:
    rows = ["path,label,split"]
    for seed in range(8):
        save(tmp_path / f"{seed}.png", seed)
        rows.append(f"{seed}.png,{'ab'[seed % 2]},{'test' if seed > 5 else ''}")
    (tmp_path / "set.csv").write_text("\n".join(rows))
    decoded = decode_image_set(tmp_path / "set.csv", SPEC)
    assert {split: len(pixel_set) for split, pixel_set in decoded.splits.items()} == {"train": 6, "test": 2}


def test_too_little_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match="No such file or folder"):
        decode_image_set(tmp_path / "nothing", SPEC)
    save(tmp_path / "cats" / "1.png", 1)
    save(tmp_path / "cats" / "2.png", 2)
    with pytest.raises(ImageSetError, match="At least 2 classes are needed"):
        decode_image_set(tmp_path, SPEC)
    save(tmp_path / "dogs" / "1.png", 3)
    (tmp_path / "dogs" / "2.png").write_bytes(b"no picture")
    with pytest.raises(ImageSetError, match=r"'dogs' has a single usable image.*2\.png"):
        decode_image_set(tmp_path, SPEC)


class Noted:
    def __init__(self) -> None:
        self.told: list[object] = []

    def start(self, task: str, total: int) -> None:
        self.told.append((task, total))

    def update(self, *, done: int, note: str) -> None:
        self.told.append(done)

    def finish(self) -> None:
        self.told.append("finished")


def test_progress_is_told(photos: Path) -> None:
    noted = Noted()
    decode_image_set(photos, SPEC, progress=noted)
    assert noted.told == [("hashing", 36), 32, 36, "finished", ("decoding", 36), *range(1, 37), "finished"]


def test_an_interrupt_stops_the_threads(photos: Path) -> None:
    class Interrupting(Noted):
        def update(self, *, done: int, note: str) -> None:
            raise KeyboardInterrupt

    noted = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        decode_image_set(photos, SPEC, progress=noted)
    assert noted.told[-1] == "finished"
