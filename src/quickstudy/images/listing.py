"""Listing: which files under a folder are images, what becomes of all others, and what the names of folders mean.

Nothing is passed over in silence: an image format that is not read, a named pipe or a link to nothing is unread with
its reason; what servers and desktops leave behind, hidden files and files of other kinds are counted by kind. Files
with the usual suffix of an image are neither opened nor looked at (100,000 of them are listed in less than a second);
of the others, the first bytes are read, which say what a file is; its suffix says it only where they do not.

Formats are named as people call them. Those of `READ` are the ones that `decoding.py` opens; the other image formats
are named among the unread, as their owner expects them to count.

Names are compared in one Unicode form (NFC), since macOS writes accents as letters of their own (NFD), and files are
opened by the bytes that their names have. Split names are compared without regard to case, hyphens, underscores and
blanks.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from operator import attrgetter
from pathlib import Path
from typing import Literal

from quickstudy.files import expand_home, is_text
from quickstudy.images.kinds import (
    IMAGE_SUFFIXES,
    first_bytes,
    image_format,
    is_read,
    other_kind,
    suffix_of,
    why_unread,
)

SET_ASIDE = "_set_aside"
"""The folder to which `audit --apply` moves images; nothing below it counts."""
_NOT_FILES = {
    stat.S_IFDIR: "a folder, not a file",
    stat.S_IFIFO: "a named pipe, not a file",
    stat.S_IFSOCK: "a socket, not a file",
    stat.S_IFCHR: "a device, not a file",
    stat.S_IFBLK: "a device, not a file",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What one folder itself holds."""

    path: Path
    """Path of the folder."""
    identity: tuple[int, int]
    """Device and inode, by which links that lead round a loop are found out."""
    images: list[str]
    """Paths of its own images as text, sorted by name."""
    folders: list[Path]
    """The folders in it, sorted by name."""
    unreadable: str = ""
    """Why the folder cannot be read; empty where it can."""


class Lister:
    """Lists folders, and keeps account of all that is no image there."""

    def __init__(self) -> None:
        self.unread: list[tuple[Path, str]] = []
        """Files and folders that their owner may expect to count, and why they do not."""
        self.unread_formats: Counter[str] = Counter()
        """Number of unread images whose format is not read, by format."""
        self.passed_over: Counter[str] = Counter()
        """Number of all other files and folders that count for nothing, by kind."""

    def scan(self, folder: Path) -> Scan:
        """Look into one folder; one that cannot be read is noted among `unread`, and empty."""
        images: list[str] = []
        folders: list[Path] = []
        inside = "" if folder == Path() else os.path.join(folder, "")  # noqa: PTH118 (a text)
        try:
            status = folder.stat()
            with os.scandir(folder) as entries:
                found = sorted(entries, key=attrgetter("name"))
        except OSError as error:
            self.unread.append((folder, f"unreadable folder ({error.strerror})".lower()))
            reason = error.strerror or type(error).__name__
            return Scan(path=folder, identity=(-1, -1), images=images, folders=folders, unreadable=reason)
        for entry in found:
            name = entry.name
            # Most files are ordinary photos: this is all that is asked of them.
            if name[name.rfind(".") :].lower() in IMAGE_SUFFIXES and name[0] != "." and _is_regular(entry):
                images.append(inside + name)
            elif not self._passes_over(entry):
                if _leads_to_folder(entry):
                    folders.append(folder / name)
                elif self._is_image(folder / name, is_regular=_is_regular(entry)):
                    images.append(inside + name)
        return Scan(path=folder, identity=(status.st_dev, status.st_ino), images=images, folders=folders)

    def walk(self, scan: Scan, seen: set[tuple[int, int]]) -> list[str]:
        """List the paths of all images in and under a folder as text, sorted by path.

        Each real folder is gone into once, so links lead round no loop.

        Args:
            scan: the folder.
            seen: the identities of folders not to go into; those that were gone into are added.
        """
        if scan.identity in seen:
            return []
        seen.add(scan.identity)
        if not scan.folders:
            return scan.images
        found: list[str] = []
        folders = {str(path): path for path in scan.folders}
        for name in sorted((*scan.images, *folders), key=os.path.basename):
            if name in folders:
                found += self.walk(self.scan(folders[name]), seen)
            else:
                found.append(name)
        return found

    def _passes_over(self, entry: os.DirEntry[str]) -> bool:
        """Count an entry that is left behind or hidden, and say whether it is."""
        kind = f"set aside by audit ({SET_ASIDE})" if entry.name == SET_ASIDE else left_behind(entry.name)
        if kind is not None:
            count = _count_files(entry) if _leads_to_folder(entry) else 1
            if count:
                self.passed_over[kind] += count
        elif entry.name.startswith("."):
            # What is in hidden folders is not counted: a .git may hold more files than there are photos.
            self.passed_over["hidden folders" if _leads_to_folder(entry) else "hidden files"] += 1
        else:
            return False
        return True

    def _is_image(self, path: Path, *, is_regular: bool) -> bool:
        """Say whether a file without the usual suffix of an image is one; it is accounted for where it is none."""
        reason = None if is_regular else why_no_file(path)
        if reason is None and not is_regular and suffix_of(path.name) in IMAGE_SUFFIXES:
            return True  # behind a link
        start = b""
        if reason is None:
            try:
                start = first_bytes(path)
            except OSError as error:
                reason = f"unreadable ({error.strerror})".lower()
        if reason is not None:
            self.unread.append((path, reason))
            return False
        found = image_format(path.name, start)
        if found is None:
            self.passed_over[other_kind(path.name, start)] += 1
        elif is_read(found):
            return True
        else:
            self.unread_formats[found] += 1
            self.unread.append((path, why_unread(found)))
        return False


def why_no_file(path: Path) -> str | None:
    """Say why there is no ordinary file at a path, or None where there is one; a pipe is never opened to find out."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "a link to nothing" if os.path.islink(path) else "no such file"  # noqa: PTH114 (answers where pathlib raises)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link that leads to itself"
        return "no such file" if error.errno == errno.ENAMETOOLONG else f"unreadable ({error.strerror})".lower()
    return None if stat.S_ISREG(mode) else _NOT_FILES.get(stat.S_IFMT(mode), "not a file")


def _is_regular(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file(follow_symlinks=False)  # known from the listing of the folder, so no file is looked at
    except OSError:
        return False


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _count_files(entry: os.DirEntry[str]) -> int:
    """Count the files under a folder; 1, for the folder, where it may not be read."""
    if not os.access(entry.path, os.R_OK):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


# What servers, desktops and synchronisers leave in folders of photos, by name in lower case.
_LEFT_BEHIND = {
    "@eadir": "synchronised thumbnails (@eaDir)",
    ".@__thumb": "synchronised thumbnails (.@__thumb)",
    "@__thumb": "synchronised thumbnails (@__thumb)",
    ".thumbnails": "thumbnails (.thumbnails)",
    ".thumbs": "thumbnails (.thumbs)",
    "#recycle": "recycle bins (#recycle)",
    "@recycle": "recycle bins (@Recycle)",
    ".recycle": "recycle bins (.recycle)",
    "$recycle.bin": "recycle bins ($RECYCLE.BIN)",
    ".trash": "recycle bins (.Trash)",
    ".trashes": "recycle bins (.Trashes)",
    "#snapshot": "snapshots (#snapshot)",
    "@snapshot": "snapshots (@snapshot)",
    ".snapshot": "snapshots (.snapshot)",
    "@tmp": "temporary files of servers (@tmp)",
    "system volume information": "files of the system (System Volume Information)",
    "lost+found": "files of the system (lost+found)",
    ".spotlight-v100": "files of the system (.Spotlight-V100)",
    ".fseventsd": "files of the system (.fseventsd)",
    ".temporaryitems": "files of the system (.TemporaryItems)",
    "__macosx": "attributes from macOS (__MACOSX)",
    ".appledouble": "attributes from macOS (.AppleDouble)",
    ".ds_store": "settings of folders (.DS_Store)",
    "desktop.ini": "settings of folders (desktop.ini)",
    "icon\r": "settings of folders (Icon)",
    "thumbs.db": "thumbnails (Thumbs.db)",
    "ehthumbs.db": "thumbnails (ehthumbs.db)",
    "ehthumbs_vista.db": "thumbnails (ehthumbs_vista.db)",
    "picasa.ini": "photo programs' settings (picasa.ini)",
    ".picasa.ini": "photo programs' settings (picasa.ini)",
    ".picasaoriginals": "originals kept by photo programs (.picasaoriginals)",
    ".sync": "files of synchronisers (.sync)",
    ".stfolder": "files of synchronisers (.stfolder)",
    ".stversions": "files of synchronisers (.stversions)",
    ".dropbox.cache": "files of synchronisers (.dropbox.cache)",
    ".tmp.drivedownload": "files of synchronisers (.tmp.drivedownload)",
    ".tmp.driveupload": "files of synchronisers (.tmp.driveupload)",
    ".ipynb_checkpoints": "copies kept by notebooks (.ipynb_checkpoints)",
    "__pycache__": "programs (__pycache__)",
}
_UNFINISHED = frozenset({".crdownload", ".part", ".partial", ".filepart", ".opdownload"})


def left_behind(name: str) -> str | None:
    """Say what a file or folder of this name is that a server, desktop or synchroniser left; None for all others."""
    known = _LEFT_BEHIND.get(name.lower())
    if known:
        return known
    if name.startswith("._"):
        return "attributes from macOS (._*)"
    if name.lower().startswith(".trash-"):
        return "recycle bins (.Trash-*)"
    if name.startswith(("~syncthing~", ".syncthing.")):
        return "files of synchronisers (~syncthing~*)"
    suffix = suffix_of(name)
    return f"unfinished downloads ({suffix})" if suffix in _UNFINISHED else None


# Names of folders and files as people write them
Split = Literal["train", "validation", "test"]
"""The part of a set that an image came in, or the role that it was given."""

_SPLIT_WORDS: dict[Split, str] = {
    "train": "train training trainset trainingset traindata trainingdata trainimages trainingimages segtrain",
    "validation": "val valid validation valset validset validationset valdata validationdata valimages "
    "validationimages segval dev devset development eval evalset evaluation evaluationset",
    "test": "test testing testset testingset testdata testingdata testimages testingimages segtest "
    "holdout holdoutset heldout heldoutset",
}
SPLIT_FOLDERS: dict[str, Split] = {word: split for split, words in _SPLIT_WORDS.items() for word in words.split()}
"""The split by its usual names, in lower case and without `-`, `_` and blanks; `split_named` looks names up."""
UNLABELLED = frozenset({"unlabelled", "unlabeled"})
"""Names of folders that hold images without a label, in lower case."""
_TO_PREDICT = frozenset({"pred", "predict", "prediction", "predictions", "segpred", "topredict"})
_BETWEEN_WORDS = re.compile(r"[-_\s]+")
_WHOLE_NUMBER = re.compile(r"0*(\d+)(?:\.0+)?", re.ASCII)


def label_of(name: str) -> str:
    """Return the class name that a folder's name or a manifest's cell stands for: in NFC, without blanks around it."""
    name = name.strip()
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def split_named(name: str) -> Split | None:
    """Return the split that a name such as `Training-Set` stands for; None where it is not a usual name of one."""
    return SPLIT_FOLDERS.get(_plain(name))


def is_unlabelled(name: str) -> bool:
    """Say whether a folder of this name holds images without a label."""
    return _plain(name) in UNLABELLED


def is_to_predict(name: str) -> bool:
    """Say whether a folder of this name, beside split folders, holds images to predict, which have no label."""
    return _plain(name) in _TO_PREDICT


def alike(labels: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Find the pairs of class names that differ only in how they are written, sorted.

    That is in upper and lower case, blanks, hyphens and underscores, characters that look the same or like nothing,
    and, of whole numbers, in zeros: `1`, `01` and `1.0`.
    """
    spellings: dict[str, list[str]] = {}
    for label in sorted(set(labels)):
        spellings.setdefault(_spelling(label), []).append(label)
    return tuple(sorted(pair for names in spellings.values() for pair in combinations(names, 2)))


def _spelling(label: str) -> str:
    """Bring a class name into a form that is the same for names that differ only in how they are written."""
    if not label.isascii():
        label = "".join(one for one in unicodedata.normalize("NFKC", label) if unicodedata.category(one) != "Cf")
    if number := _WHOLE_NUMBER.fullmatch(label):
        return number[1]
    # Without such characters nothing is left of a name like '-', which is then its own.
    return label_of(_BETWEEN_WORDS.sub(" ", label).casefold()) or label


def place_of(folder: Path, name: str) -> Path:
    """Say where a file is that a list names: as written, or else with `/` for a backslash or in the other Unicode form.

    Args:
        folder: what relative paths are relative to.
        name: the path as it is in the list; a leading `~` is the home folder, unless there is a file as it is written.

    Returns:
        The first of these that there is; the path as written where there is none.

    Raises:
        QuickstudyError: it begins with `~`, and there is no home folder.
    """
    written = folder / name
    if ("\\" not in name and name.isascii() and name[:1] != "~") or os.path.lexists(written):
        return written
    places = [folder / expand_home(other) for other in _spellings(name)]
    return next(filter(os.path.lexists, places), places[0])


def names_from(folder: Path, files: Iterable[str | Path]) -> Iterator[str | None]:
    """Say what a list in a folder calls files, so that `place_of` finds them; None where a name is no valid text.

    That is the path from the folder on, where a file lies in there, and else its absolute path. Links keep their own
    names.
    """
    base, real_base, folders = os.path.abspath(folder), os.path.realpath(folder), dict[str, str]()
    for file in files:
        # Without `..`, which leads elsewhere from a folder that is a link, names alone say where a file is.
        climbs = ".." in str(file) and ".." in Path(file).parts
        absolute = _real_place(file, folders) if climbs else os.path.abspath(file)
        name = _below(base, absolute)
        if name is None:
            name = _below(real_base, _real_place(absolute, folders))
        name = absolute if name is None else name.replace(os.sep, "/")
        yield name if is_text(name) else None


def real_places(files: Iterable[str | Path]) -> list[str]:
    """Say where files lie, so that one file has one place however it is reached; a file that is a link is its own."""
    folders: dict[str, str] = {}
    return [_real_place(file, folders) for file in files]


def _real_place(file: str | Path, folders: dict[str, str]) -> str:
    """Say where a file lies; `folders` remembers where folders lead."""
    folder, name = os.path.split(file)
    if (real := folders.get(folder)) is None:
        real = folders[folder] = os.path.realpath(folder)
    return os.path.join(real, name)  # noqa: PTH118 (a text)


def _below(folder: str, place: str) -> str | None:
    start = os.path.join(folder, "")  # noqa: PTH118 (a text)
    return place[len(start) :] if place.startswith(start) else None


def _spellings(name: str) -> Iterator[str]:
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
        yield spelling
        if not name.isascii():
            yield unicodedata.normalize("NFC", spelling)
            yield unicodedata.normalize("NFD", spelling)


def _plain(name: str) -> str:
    return _BETWEEN_WORDS.sub("", label_of(name)).casefold()
