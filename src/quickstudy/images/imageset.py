"""Image sets: which images there are, their labels, and the splits that come with them.

An image set is read from class folders (`photos/<class>/**/*.jpg`), from class folders under split folders
(`photos/train/<class>/…`) or over them (`photos/<class>/train/…`), or from a manifest (CSV or Parquet with
`path,label[,split]`); an archive is the folder that it holds. Nothing is decoded here. Nothing is missed in silence,
either: what its owner may take for an image of the set is among the skipped with its reason, all else is counted by
kind.

Images without a label are loose in the root, or in a folder `unlabelled`, or have none in the manifest; nobody
gets them who does not ask for them. What `audit` has set aside is not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from quickstudy.errors import ImageSetError
from quickstudy.files import as_path, is_text
from quickstudy.images.archives import archive_suffix, unpacked
from quickstudy.images.folders import arrange
from quickstudy.images.kinds import IMAGE_SUFFIXES, counted, why_unread
from quickstudy.images.listing import (
    SET_ASIDE,
    SPLIT_FOLDERS,
    UNLABELLED,
    Lister,
    Split,
    alike,
    place_of,
    split_named,
    why_no_file,
)
from quickstudy.images.manifests import MANIFEST_SUFFIXES, ONE_EACH, Labelling, read_manifest
from quickstudy.wording import CONTROLS

__all__ = [
    "EXPECTED",
    "IMAGE_SUFFIXES",
    "NONE_OF_THESE",
    "SET_ASIDE",
    "SPLIT_FOLDERS",
    "UNLABELLED",
    "ImageFile",
    "ImageSet",
    "Labelling",
    "Skipped",
    "Split",
    "as_label",
    "list_images",
    "load_image_set",
]

NONE_OF_THESE = "none of these"
"""The text for the labels of an image that is of none of the classes."""
EXPECTED = (
    "expected photos/<class>/*.jpg, photos/train|validation|test/<class>/*.jpg, "
    "a .zip or .tar archive of these, or a .csv or .parquet manifest with columns path,label[,split]"
)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that is not used, and why."""

    path: Path
    """Path of the file."""
    reason: str
    """Why it is not used, in words that end a sentence."""

    def to_dict(self) -> dict[str, str]:
        """Give JSON values."""
        return {"path": str(self.path), "reason": self.reason}


class ImageFile(NamedTuple):
    """One image file with its label and split; a tuple, since sets have a hundred thousand of them."""

    name: str
    """Path of the file, as text: a hundred thousand `Path`s take half a second to make."""
    labels: tuple[str, ...] | None
    """Names of its classes, sorted; empty where it is of none of them, and None where that is not known."""
    split: Split | None = None
    """The split that it came in; None where it came in none."""

    @property
    def label(self) -> str | None:
        """Its labels as a text; None where they are not known."""
        return as_label(self.labels)

    @property
    def path(self) -> Path:
        """Path of the file."""
        return Path(self.name)


def as_label(labels: tuple[str, ...] | None) -> str | None:
    """Write labels as a text: the name, or names with ` | ` between; None where they are not known."""
    if labels is None:
        return None
    return labels[0] if len(labels) == 1 else " | ".join(labels) or NONE_OF_THESE


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The images of a classification problem, in a stable order (by path)."""

    source: Path
    """The folder or manifest."""
    files: tuple[ImageFile, ...]
    """The images with a label, sorted by path."""
    skipped: tuple[Skipped, ...]
    """Files that are not used, with the reason."""
    unlabelled: tuple[ImageFile, ...] = ()
    """Images without a label, where they were asked for."""
    passed_over: tuple[tuple[str, int], ...] = ()
    """Kinds of things that are no images of the set, in plain words, and how many of each there were; sorted."""
    empty_classes: tuple[str, ...] = ()
    """The classes that have a folder, or rows in the manifest, and not one file; sorted."""
    alike_classes: tuple[tuple[str, str], ...] = ()
    """Pairs of class names that differ only in how they are written (`alike`); they are classes of their own."""
    labelling: Labelling = ONE_EACH
    """How the labels were read."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, sorted."""
        return tuple(sorted({name for labels in {file.labels for file in self.files} for name in labels or ()}))


def load_image_set(
    source: str | os.PathLike[str], *, unlabelled: bool = False, labelling: Labelling = ONE_EACH
) -> ImageSet:
    """Read an image set from a folder, an archive or a manifest.

    Args:
        source: the folder, the archive, which is unpacked beside itself, or the manifest; `~` at its start is the home
            folder.
        unlabelled: take images without a label, too; otherwise they are among the skipped.
        labelling: how labels are to be read.

    Raises:
        ImageSetError: the path is missing, holds no images, its folders may be classes or splits, or a manifest cannot
            be read.
    """
    place = as_path(source)
    if not os.path.exists(place):  # noqa: PTH110 (answers where pathlib raises)
        raise ImageSetError(f"No such file or folder: '{place}'; {EXPECTED}")
    if archive_suffix(place) and os.path.isfile(place):  # noqa: PTH113 (as above)
        place = unpacked(place)
    if labelling.separator == "":
        raise ImageSetError("The separator between labels is empty; expected a character or more, such as ';'")
    return (_from_folder if place.is_dir() else _from_manifest)(place, unlabelled, labelling)


def list_images(folder: Path) -> tuple[list[Path], list[Skipped]]:
    """List all image files under a folder, whatever the labels, sorted by path; and what was skipped."""
    lister = Lister()
    paths = [Path(name) for name in lister.walk(lister.scan(folder), set())]
    return paths, _skipped(lister.unread)


def _from_folder(root: Path, unlabelled: bool, labelling: Labelling) -> ImageSet:
    lister = Lister()
    top = lister.scan(root)
    if top.unreadable:
        raise ImageSetError(f"Cannot read the folder '{root}': {top.unreadable}")
    arrangement = arrange(top, lister)
    files: list[ImageFile] = []
    others: list[ImageFile] = []
    for group in arrangement.groups:
        found = others if group.label is None else files
        labels = None if group.label is None else labelling.of(group.label)
        found += [ImageFile(name, labels, group.split) for name in group.images]
    skipped = _skipped(lister.unread) + _skipped(arrangement.skipped)
    advice = ""
    if not unlabelled and others:
        skipped += [Skipped(path=file.path, reason="not in a class folder") for file in others]
        others = []
        advice = ". Make a folder for each class in it, and move the images there"
    if not files and not others:
        raise ImageSetError(f"No images under '{root}'{_hint(lister, skipped)}; {EXPECTED}{advice}")
    return _image_set(
        root,
        files,
        skipped,
        others,
        labels={group.label for group in arrangement.groups if group.label is not None},
        passed_over=lister.passed_over,
        labelling=labelling,
    )


def _from_manifest(source: Path, unlabelled: bool, labelling: Labelling) -> ImageSet:
    suffix = source.suffix.lower()
    if suffix not in MANIFEST_SUFFIXES:
        hint = "save the spreadsheet as CSV" if suffix in (".xls", ".xlsx", ".ods", ".numbers") else EXPECTED
        raise ImageSetError(f"'{source}' is neither a folder nor a .csv or .parquet manifest; {hint}")
    if reason := why_no_file(source):
        raise ImageSetError(f"The manifest '{source}' cannot be read: {reason}")
    files: list[ImageFile] = []
    others: list[ImageFile] = []
    skipped: list[Skipped] = []
    labels: set[str] = set()
    folder = source.parent
    for row in read_manifest(source, labelling):
        split = split_named(row.split) if row.split else None
        if row.split and split is None:
            raise ImageSetError(
                f"Row {row.number} of '{source}' has the split '{row.split}'; "
                "expected train, validation or test, or nothing"
            )
        path = place_of(folder, row.path)
        labels.update(row.labels or ())
        if not row.path or (row.labels is None and not unlabelled):
            missing = "label" if row.path else "path"
            skipped.append(Skipped(path=path, reason=f"row {row.number} of the manifest has no {missing}"))
        elif reason := why_no_file(path):
            skipped.append(Skipped(path=path, reason=reason))
        elif row.labels is not None:
            files.append(ImageFile(str(path), row.labels, split))
        else:
            others.append(ImageFile(str(path), None, split))
    if not files and not others:
        raise ImageSetError(f"No images under '{source}'{_hint(Lister(), skipped)}; {EXPECTED}")
    if labelling.several:
        files = _brought_together(files)
    files.sort(key=attrgetter("name"))
    others.sort(key=attrgetter("name"))
    return _image_set(source, files, skipped, others, labels=labels, passed_over={}, labelling=labelling)


def _brought_together(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Give each image all labels that it has in rows of its own."""
    rows: dict[tuple[str, Split | None], set[str]] = {}
    for file in files:
        rows.setdefault((file.name, file.split), set()).update(file.labels or ())
    return [ImageFile(name, tuple(sorted(labels)), split) for (name, split), labels in rows.items()]


def _image_set(
    source: Path,
    files: list[ImageFile],
    skipped: list[Skipped],
    others: list[ImageFile],
    *,
    labels: set[str],
    passed_over: Mapping[str, int],
    labelling: Labelling,
) -> ImageSet:
    """Make the image set of what was found; `labels` are all that were named, also those without an image."""
    if torn := sorted(name for name in labels if CONTROLS.search(name)):
        raise ImageSetError(
            f"The class name {torn[0]!a} in '{source}' has a line break or another control character in it, so that it "
            f"cannot be shown as it is; rename {'its folder' if source.is_dir() else 'it'}"
        )
    if unwritable := sorted(name for name in labels if not is_text(name)):
        raise ImageSetError(
            f"The class name {unwritable[0]!a} in '{source}' is not valid UTF-8, which models are written in; "
            f"rename {'its folder' if source.is_dir() else 'it'}"
        )
    return ImageSet(
        source=source,
        files=tuple(files),
        skipped=tuple(skipped),
        unlabelled=tuple(others),
        passed_over=tuple(sorted(passed_over.items())),
        empty_classes=tuple(
            sorted(
                labels - {name for found in {file.labels for file in files} for name in found or ()} - {labelling.none}
            )
        ),
        alike_classes=alike(labels),
        labelling=labelling,
    )


def _skipped(found: Iterable[tuple[Path, str]]) -> list[Skipped]:
    return [Skipped(path=path, reason=reason) for path, reason in found]


def _hint(lister: Lister, skipped: Sequence[Skipped]) -> str:
    """Say in brackets what was there in place of images; give an empty text where there was nothing."""
    unread = [
        f"there is 1 {name} file, which is not read; convert it to PNG"
        if number == 1
        else f"there are {number:,} {name} files, which are not read; convert them to PNG"
        for name, number in lister.unread_formats.most_common()
    ]
    told = {why_unread(name) for name in lister.unread_formats}
    rest = [item for item in skipped if item.reason not in told]
    named = [f"skipped {len(rest)}, e.g. '{rest[0].path.name}': {rest[0].reason}"] if rest else []
    others = ", ".join(counted(count, kind) for kind, count in sorted(lister.passed_over.items()))
    hints = [*unread, *named, *([f"passed over {others}"] if others else [])]
    return f" ({'; '.join(hints)})" if hints else ""
