"""Folders as image sets: which folders are classes, which are splits, and what is refused because it may be either.

Three layouts are understood: class folders (`photos/<class>/…`), class folders under split folders
(`photos/train/<class>/…`), and split folders under class folders (`photos/<class>/train/…`). Where all folders of the
root hold folders of the same names, and nothing else, one level is classes and the other is something else, mostly
splits: learning what tells `batch_1` from `batch_2` would help nobody, so that is refused where the names do not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quickstudy.errors import ImageSetError
from quickstudy.images.listing import Lister, Scan, Split, is_to_predict, is_unlabelled, label_of, split_named
from quickstudy.wording import quoted

_MOST_WRAPPERS = 5
_WAY_OUT = "rename the split folders to train/ and test/, or name each image's class and split in a manifest"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Images that have their label and split from the same folder."""

    label: str | None
    """The class name; None where the images have no label."""
    split: Split | None
    """The split; None where the folders name none."""
    images: list[str]
    """Paths of the image files as text, sorted by path."""


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """What the folders of an image set say."""

    groups: list[Group]
    """The images, by the folder that gives them their label and split."""
    skipped: list[tuple[Path, str]]
    """Folders that are not used, and why."""


def arrange(top: Scan, lister: Lister) -> Arrangement:
    """Say which images under a folder have which label and split.

    Args:
        top: the folder of the image set.
        lister: looks into the folders, and keeps account of what is no image.

    Raises:
        ImageSetError: the folders' names do not say which of them are classes.
    """
    folders = [lister.scan(path) for path in top.folders]
    arrangement = _Arranging(top, lister)
    if _are_splits(folders):
        arrangement.add_split_folders(folders)
    elif _hold_splits(folders):
        arrangement.add_classes_of_splits(folders)
    else:
        _refuse_doubtful(top, folders)
        for folder in folders:
            arrangement.add_class(folder, None)
    arrangement.add(None, None, top.images)
    return Arrangement(groups=arrangement.groups, skipped=arrangement.skipped)


class _Arranging:
    """The groups of an arrangement as they are gathered."""

    def __init__(self, top: Scan, lister: Lister) -> None:
        self.groups: list[Group] = []
        self.skipped: list[tuple[Path, str]] = []
        self._above = {top.identity}
        self._lister = lister

    def add(self, label: str | None, split: Split | None, images: list[str]) -> None:
        if images or label is not None:
            self.groups.append(Group(label=label, split=split, images=images))

    def add_class(self, folder: Scan, split: Split | None) -> None:
        """Add all images under a folder, with the folder's name as their label."""
        label = None if is_unlabelled(folder.path.name) else label_of(folder.path.name)
        if label == "":
            self.skipped.append((folder.path, "a folder whose name is blank is not a class"))
            return
        self.add(label, split, self._walk(folder))

    def add_split_folders(self, folders: Sequence[Scan]) -> None:
        """Add the images of `train/<class>/…`; beside split folders there are no classes."""
        names: set[str] = set()
        for folder in folders:
            split = split_named(folder.path.name)
            if split is not None:
                inner = _unwrapped(folder, self._lister)
                self._above |= {folder.identity, inner.identity}
                names |= {label_of(path.name) for path in inner.folders}
                for path in inner.folders:
                    self.add_class(self._lister.scan(path), split)
                self.add(None, split, inner.images)
        for folder in folders:
            name = folder.path.name
            if split_named(name) is not None:
                continue
            inner = _unwrapped(folder, self._lister)
            has_classes = bool(names & {label_of(path.name) for path in inner.folders})
            if is_unlabelled(name) or (is_to_predict(name) and not has_classes):
                self.add(None, None, self._walk(inner))
            else:
                self.skipped.append((folder.path, "beside split folders such as train/, so not a class"))

    def add_classes_of_splits(self, folders: Sequence[Scan]) -> None:
        """Add the images of `<class>/train/…`."""
        for folder in folders:
            if is_unlabelled(folder.path.name):
                self.add(None, None, self._walk(folder))
                continue
            label = label_of(folder.path.name)
            for path in folder.folders:
                self.add(label, split_named(path.name), self._walk(self._lister.scan(path)))
            self.add(label, None, folder.images)

    def _walk(self, folder: Scan) -> list[str]:
        return self._lister.walk(folder, set(self._above))


def _are_splits(folders: Sequence[Scan]) -> bool:
    """Say whether the folders of the root are split folders."""
    named = [(folder, split) for folder in folders if (split := split_named(folder.path.name))]
    others = [folder for folder in folders if not split_named(folder.path.name) and not _holds_no_class(folder)]
    train = next((folder for folder, split in named if split == "train"), None)
    # Beside other classes, folders called train and test are splits only where they hold folders themselves.
    if len({split for _, split in named}) > 1 and train and (not others or train.folders):
        return True
    # Without training images, as a set to judge by has them, and in a part of a set.
    return bool(named) and not others and all(len(folder.folders) > 1 for folder, _ in named)


def _holds_no_class(folder: Scan) -> bool:
    return is_unlabelled(folder.path.name) or is_to_predict(folder.path.name)


def _hold_splits(folders: Sequence[Scan]) -> bool:
    """Say whether all folders of the root are classes that hold split folders."""
    classes = [folder for folder in folders if not is_unlabelled(folder.path.name)]
    # A class that holds nothing says nothing, either.
    filled = [folder for folder in classes if folder.folders or folder.images]
    inner = [[split_named(path.name) for path in folder.folders] for folder in filled]
    return all(splits and None not in splits for splits in inner) and len({split for s in inner for split in s}) > 1


def _refuse_doubtful(top: Scan, folders: Sequence[Scan]) -> None:
    """Raise an ImageSetError where folders may be splits, or hold splits, and their names do not make it sure."""
    folders = [
        folder for folder in folders if not is_unlabelled(folder.path.name) and (folder.folders or folder.images)
    ]
    if len(folders) < 2:
        return
    names = [{label_of(path.name).casefold() for path in folder.folders} for folder in folders]
    if len(names[0]) > 1 and all(those == names[0] for those in names) and not any(f.images for f in folders):
        raise ImageSetError(
            f"The folders {quoted(folder.path.name for folder in folders)} of '{top.path}' all hold folders of the "
            f"same names ({quoted(path.name for path in folders[0].folders)}), so either these or those must be "
            f"splits, not classes; {_WAY_OUT}"
        )
    for folder, inside in zip(folders, names, strict=True):
        if split_named(folder.path.name) is None:
            continue
        for other, beside in zip(folders, names, strict=True):
            if split_named(other.path.name) is None and len(inside & beside) > 1:
                raise ImageSetError(
                    f"'{folder.path.name}' in '{top.path}' has the name of a split folder, but '{other.path.name}' "
                    f"beside it, which holds folders of the same names, has not; {_WAY_OUT}"
                )
    for folder in folders:
        splits = {split_named(path.name) for path in folder.folders}
        if "train" in splits and splits & {"validation", "test"}:
            odd = next(f for f in folders if not f.folders or any(not split_named(path.name) for path in f.folders))
            raise ImageSetError(
                f"The class folder '{folder.path}' holds split folders "
                f"({quoted(path.name for path in folder.folders)}), and '{odd.path}' holds others, or images beside "
                f"them; {_WAY_OUT}"
            )


def _unwrapped(folder: Scan, lister: Lister) -> Scan:
    """Return the folder inside, where one holds nothing but another of its name, as `seg_train/seg_train` does."""
    name = folder.path.name
    for _ in range(_MOST_WRAPPERS):
        if folder.images or len(folder.folders) != 1:
            break
        (only,) = folder.folders
        same = label_of(only.name).casefold() == label_of(name).casefold()
        if not same and (split_named(name) is None or split_named(only.name) != split_named(name)):
            break
        folder = lister.scan(only)
    return folder
