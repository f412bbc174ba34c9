"""Image sets: which images there are, their labels, and the splits that come with them.

An image set is read from class folders (`photos/<class>/**/*.jpg`), from class folders under split folders
(`photos/train/<class>/…`), or from a manifest (CSV or Parquet with `path,label[,split]`). Nothing is decoded here; what
cannot be an image at all is noted among the skipped with its reason.

Images without a label are loose in the root, or in a folder `unlabelled`, or have none in the manifest; nobody
gets them who does not ask for them. What `audit` has set aside is not there.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quickstudy.errors import ImageSetError
from quickstudy.files import is_text

Split = Literal["train", "validation", "test"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"})
# Known image formats that are not read: named among the skipped, since their owner expects them to count.
_FOREIGN_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".svg", ".psd", ".raw", ".cr2", ".nef", ".dng", ".jp2", ".jxl"}
)
SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
UNLABELLED = frozenset({"unlabelled", "unlabeled"})
SET_ASIDE = "_set_aside"
"""The folder to which `audit --apply` moves images; nothing below it counts."""
EXPECTED = (
    "expected photos/<class>/*.jpg, photos/train|validation|test/<class>/*.jpg, "
    "or a .csv or .parquet manifest with columns path,label[,split]"
)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that is not used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One image file with its label and, where the set came with splits, its split."""

    path: Path
    label: str
    split: Split | None = None


@dataclass(frozen=True, kw_only=True)
class UnlabelledFile:
    """One image file without a label and, where the set came with splits, its split."""

    path: Path
    split: Split | None = None


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The images of a classification problem, in a stable order (by path)."""

    source: Path
    files: tuple[ImageFile, ...]
    skipped: tuple[Skipped, ...]
    unlabelled: tuple[UnlabelledFile, ...] = ()
    """Images without a label, where they were asked for."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, sorted."""
        return tuple(sorted({file.label for file in self.files}))

    @property
    def has_splits(self) -> bool:
        """Whether the set came with a test split."""
        return any(file.split == "test" for file in self.files)


def load_image_set(source: Path, *, unlabelled: bool = False) -> ImageSet:
    """Read an image set from a folder or a manifest.

    Args:
        source: the folder, or the manifest.
        unlabelled: take images without a label, too; otherwise they are among the skipped.

    Raises:
        ImageSetError: the path is missing, holds no images, or a manifest cannot be read.
    """
    if not source.exists():
        raise ImageSetError(f"No such file or folder: '{source}'; {EXPECTED}")
    found = _from_folder(source, unlabelled) if source.is_dir() else _from_manifest(source, unlabelled)
    if not found.files and not found.unlabelled:
        hint = f" (skipped {len(found.skipped)}, e.g. {_example(found.skipped)})" if found.skipped else ""
        raise ImageSetError(f"No images under '{source}'{hint}; {EXPECTED}")
    if unwritable := [name for name in found.classes if not is_text(name)]:
        raise ImageSetError(
            f"The class name {unwritable[0]!a} in '{source}' is not valid UTF-8, which models are written in; "
            "rename its folder"
        )
    return found


def require_classes(files: Counter[str], source: Path) -> None:
    """Check that there is something to tell apart and enough to learn it from.

    Args:
        files: usable images by class.
        source: where they come from, for the message.

    Raises:
        ImageSetError: fewer than two classes, or a class with fewer than two images.
    """
    if len(files) < 2:
        names = ", ".join(f"'{name}'" for name in files) or "none"
        raise ImageSetError(
            f"At least 2 classes are needed to train, '{source}' has {len(files)} ({names}); {EXPECTED}"
        )
    if small := sorted(name for name, count in files.items() if count < 2):
        listed = ", ".join(f"'{name}' ({files[name]})" for name in small[:5]) + (", …" if len(small) > 5 else "")
        raise ImageSetError(
            f"Each class needs at least 2 different usable images, one to train on and one to test; "
            f"too few in '{source}': {listed}. Add images or remove the class"
        )


def list_images(folder: Path) -> tuple[list[Path], list[Skipped]]:
    """All image files under a folder, whatever the labels, sorted by path; and what was skipped."""
    paths: list[Path] = []
    skipped: list[Skipped] = []
    for path in _walk(folder, set(), skipped):
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            paths.append(path)
        elif suffix in _FOREIGN_SUFFIXES:
            reason = f"{suffix[1:].upper()} is not supported; convert it to JPEG or PNG"
            skipped.append(Skipped(path=path, reason=reason))
    return paths, skipped


def _from_folder(root: Path, unlabelled: bool) -> ImageSet:
    skipped: list[Skipped] = []
    files: list[ImageFile] = []
    others: list[UnlabelledFile] = []
    try:
        top = [entry for entry in sorted(root.iterdir()) if not _is_hidden(entry.name)]
    except OSError as error:
        raise ImageSetError(f"Cannot read the folder '{root}': {error.strerror}") from None
    folders = [entry for entry in top if _is_folder(entry)]
    split_of = {folder: SPLIT_FOLDERS.get(folder.name.lower()) for folder in folders}
    splits = {split for split in split_of.values() if split}
    train = next((folder for folder, split in split_of.items() if split == "train"), root)
    has_others = None in split_of.values()
    # Beside other classes, folders called train and test are splits only where they hold folders themselves.
    if len(splits) > 1 and train != root and (not has_others or any(_is_folder(e) for e in _entries(train, []))):
        for folder, split in split_of.items():
            if split is None:
                skipped.append(Skipped(path=folder, reason="beside split folders such as train/, so not a class"))
                continue
            for entry in _entries(folder, skipped):
                if _is_folder(entry):
                    _add_folder(entry, split, files, others, skipped)
                elif entry.suffix.lower() in IMAGE_SUFFIXES:
                    others.append(UnlabelledFile(path=entry, split=split))
    else:
        for folder in folders:
            _add_folder(folder, None, files, others, skipped)
    loose = [entry for entry in top if entry not in split_of and entry.suffix.lower() in IMAGE_SUFFIXES]
    others += [UnlabelledFile(path=entry) for entry in loose]
    if not unlabelled:
        skipped += [Skipped(path=file.path, reason="not in a class folder") for file in others]
        others = []
    return ImageSet(source=root, files=tuple(files), skipped=tuple(skipped), unlabelled=tuple(others))


def _add_folder(
    folder: Path, split: Split | None, files: list[ImageFile], others: list[UnlabelledFile], skipped: list[Skipped]
) -> None:
    paths, wrong = list_images(folder)
    if folder.name.lower() in UNLABELLED:
        others += [UnlabelledFile(path=path, split=split) for path in paths]
    else:
        files += [ImageFile(path=path, label=folder.name, split=split) for path in paths]
    skipped += wrong


def _entries(folder: Path, skipped: list[Skipped]) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not _is_hidden(entry.name))
    except OSError as error:
        skipped.append(_unreadable(folder, error))
        return []


def _walk(folder: Path, seen: set[tuple[int, int]], skipped: list[Skipped]) -> Iterator[Path]:
    """Files under a folder in the order of their names; each real folder once, so links cannot lead round a loop."""
    try:
        stat = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        skipped.append(_unreadable(folder, error))
        return
    if (stat.st_dev, stat.st_ino) in seen:
        return
    seen.add((stat.st_dev, stat.st_ino))
    for entry in entries:
        if _is_hidden(entry.name):
            continue
        if _leads_to_folder(entry):
            yield from _walk(Path(entry.path), seen, skipped)
        else:
            yield Path(entry.path)


def _unreadable(folder: Path, error: OSError) -> Skipped:
    return Skipped(path=folder, reason=f"unreadable folder ({error.strerror})".lower())


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 (answers where pathlib raises)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", SET_ASIDE)


def _from_manifest(source: Path, unlabelled: bool) -> ImageSet:
    suffix = source.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise ImageSetError(f"'{source}' is neither a folder nor a .csv or .parquet manifest; {EXPECTED}")
    rows: Iterable[Mapping[str, object]] = _read_csv(source) if suffix == ".csv" else _read_parquet(source)
    files: list[ImageFile] = []
    others: list[UnlabelledFile] = []
    skipped: list[Skipped] = []
    for number, row in enumerate(rows, start=1):
        name, label, split = (_text(row.get(column)) for column in ("path", "label", "split"))
        if split and split.lower() not in SPLIT_FOLDERS:
            raise ImageSetError(
                f"Row {number} of '{source}' has the split '{split}'; expected train, validation or test, or nothing"
            )
        path = source.parent / name
        part = SPLIT_FOLDERS[split.lower()] if split else None
        if not name or not (label or unlabelled):
            skipped.append(
                Skipped(path=path, reason=f"row {number} of the manifest has no {'label' if name else 'path'}")
            )
        elif not os.path.isfile(path):  # noqa: PTH113 (answers where pathlib raises)
            skipped.append(Skipped(path=path, reason="no such file"))
        elif label:
            files.append(ImageFile(path=path, label=label, split=part))
        else:
            others.append(UnlabelledFile(path=path, split=part))
    files.sort(key=lambda file: str(file.path))
    others.sort(key=lambda file: str(file.path))
    return ImageSet(source=source, files=tuple(files), skipped=tuple(skipped), unlabelled=tuple(others))


def _text(value: object) -> str:
    # NaN, the one value unequal to itself, is how data frames write a missing label; 0 is a label.
    return "" if value is None or value != value else str(value).strip()


def _read_csv(source: Path) -> list[dict[str, str]]:
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or (), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImageSetError(f"Cannot read the manifest '{source}' as CSV in UTF-8: {error}") from None
    _require_columns(source, columns)
    return rows


def _read_parquet(source: Path) -> list[dict[str, object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(source)
    except (OSError, pa.ArrowException) as error:
        raise ImageSetError(f"Cannot read the manifest '{source}' as Parquet: {error}") from None
    _require_columns(source, table.column_names)
    rows: list[dict[str, object]] = table.to_pylist()
    return rows


def _require_columns(source: Path, names: Iterable[object]) -> None:
    columns = [str(name) for name in names]
    if not {"path", "label"} <= set(columns):
        raise ImageSetError(
            f"The manifest '{source}' has the columns {', '.join(columns) or 'none'}; expected path,label[,split]"
        )


def _example(skipped: tuple[Skipped, ...]) -> str:
    return f"'{skipped[0].path.name}': {skipped[0].reason}"
