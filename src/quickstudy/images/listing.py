"""Listing: which files under a folder are images, and what becomes of all others.

Nothing is passed over in silence: an image format that is not read, a named pipe or a link to nothing is unread with
its reason; what servers and desktops leave behind, hidden files and files of other kinds are counted by kind. Files
with the usual suffix of an image are neither opened nor looked at (100,000 of them are listed in less than a second);
of the others, the first bytes are read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from quickstudy.images.filekinds import (
    IMAGE_SUFFIXES,
    READ,
    SNIFFED_BYTES,
    image_format,
    left_behind,
    other_kind,
    suffix_of,
)

SET_ASIDE = "_set_aside"
"""The folder to which `audit --apply` moves images; nothing below it counts."""

NOT_READ = "is not supported; convert it to JPEG or PNG"
"""How the reason of an image ends whose format is not read."""
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
    identity: tuple[int, int]
    """Device and inode, by which links that lead round a loop are found out."""
    images: list[Path]
    """Its own images, sorted by name."""
    folders: list[Path]
    """The folders in it, sorted by name."""
    unreadable: str = ""
    """Why the folder cannot be read; nothing where it can."""


class Lister:
    """Lists folders, and keeps account of all that is no image there."""

    def __init__(self) -> None:
        self.unread: list[tuple[Path, str]] = []
        """Files and folders that their owner may expect to count, and why they do not."""
        self.unread_formats: Counter[str] = Counter()
        """How many of them are images of a format that is not read."""
        self.passed_over: Counter[str] = Counter()
        """What else was there, by kind."""

    def scan(self, folder: Path) -> Scan:
        """Look into one folder; one that cannot be read is noted among `unread`, and empty."""
        images: list[Path] = []
        folders: list[Path] = []
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
                images.append(folder / name)
            elif not self._passes_over(entry):
                if _leads_to_folder(entry):
                    folders.append(folder / name)
                elif self._is_image(folder / name, is_regular=_is_regular(entry)):
                    images.append(folder / name)
        return Scan(path=folder, identity=(status.st_dev, status.st_ino), images=images, folders=folders)

    def walk(self, scan: Scan, seen: set[tuple[int, int]]) -> list[Path]:
        """All images in and under a folder, sorted by path; each real folder once, so links lead round no loop.

        Args:
            scan: the folder.
            seen: the identities of folders not to go into; those that were gone into are added.
        """
        if scan.identity in seen:
            return []
        seen.add(scan.identity)
        if not scan.folders:
            return scan.images
        folders = set(scan.folders)
        found: list[Path] = []
        for path in sorted((*scan.images, *scan.folders), key=attrgetter("name")):
            if path not in folders:
                found.append(path)
            else:
                found += self.walk(self.scan(path), seen)
        return found

    def _passes_over(self, entry: os.DirEntry[str]) -> bool:
        """Count an entry that is left behind or hidden; whether it is."""
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
        """Whether a file without the usual suffix of an image is one; it is accounted for where it is none."""
        reason = None if is_regular else why_no_file(path)
        if reason is None and not is_regular and suffix_of(path.name) in IMAGE_SUFFIXES:
            return True  # behind a link
        start = b""
        if reason is None:
            try:
                start = _first_bytes(path)
            except OSError as error:
                reason = f"unreadable ({error.strerror})".lower()
        if reason is not None:
            self.unread.append((path, reason))
            return False
        found = image_format(path.name, start)
        if found in READ:
            return True
        if found is None:
            self.passed_over[other_kind(path.name, start)] += 1
        else:
            self.unread_formats[found] += 1
            self.unread.append((path, f"{found} {NOT_READ}"))
        return False


def why_no_file(path: Path) -> str | None:
    """Why there is no ordinary file at a path, or None where there is one; a pipe is never opened to find out."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "a link to nothing" if os.path.islink(path) else "no such file"  # noqa: PTH114 (answers where pathlib raises)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link that leads to itself"
        return "no such file" if error.errno == errno.ENAMETOOLONG else f"unreadable ({error.strerror})".lower()
    return None if stat.S_ISREG(mode) else _NOT_FILES.get(stat.S_IFMT(mode), "not a file")


def _first_bytes(path: Path) -> bytes:
    # A third of the time that a file object takes; only Windows has O_BINARY, and needs it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        return os.read(descriptor, SNIFFED_BYTES)
    finally:
        os.close(descriptor)


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
    """How many files are under a folder; 1, for the folder, where that may not be known."""
    if not os.access(entry.path, os.R_OK):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))
