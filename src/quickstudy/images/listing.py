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

SET_ASIDE = "_set_aside"
"""The folder to which `audit --apply` moves images; nothing below it counts."""

NOT_READ = "is not supported; convert it to JPEG or PNG"
"""The end of the reason why an image is skipped whose format is not read."""
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
    images: list[Path]
    """Its own images, sorted by name."""
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
        """List all images in and under a folder, sorted by path; each real folder once, so links lead round no loop.

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
    """Count the files under a folder; 1, for the folder, where it may not be read."""
    if not os.access(entry.path, os.R_OK):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


# Formats of files, by their first bytes and their suffixes
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"})
"""The usual suffixes of images that are read, in lower case."""
READ = frozenset({"JPEG", "PNG", "GIF", "WebP", "BMP", "TIFF"})
"""The image formats that are read."""
SNIFFED_BYTES = 132
"""Bytes of a file that are looked at: as far as the last of the signatures below reaches, DICOM's."""

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"CR\x02\x00", "CR2"),  # before TIFF, which it is, too
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"II+\x00", "TIFF"),
    (0, b"MM\x00+", "TIFF"),
    (0, b"8BPS", "PSD"),
    (0, b"gimp xcf", "XCF"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (0, b"IIRO", "ORF"),
    (0, b"IIU\x00", "RW2"),
    (0, b"FUJIFILMCCD-RAW", "RAF"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "HDR"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"FLIF", "FLIF"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"SIMPLE  =", "FITS"),
    (128, b"DICM", "DICOM"),
)
_BRANDS = {
    "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"),
    "HEIF": (b"mif1", b"msf1"),
    "AVIF": (b"avif", b"avis"),
    "CR3": (b"crx ",),
}
_NETPBM = re.compile(rb"P([1-6])\s+[\d#]")
_NETPBM_NAMES = {b"1": "PBM", b"4": "PBM", b"2": "PGM", b"5": "PGM", b"3": "PPM", b"6": "PPM"}
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})

# Raw photos are TIFF by their first bytes, and what can be read of them that way is a preview at best.
_RAW = (
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srf"
    " .srw .x3f"
)
_UNREAD = (
    ".avif .avifs .bpg .cur .dcm .dds .emf .eps .exr .fits .flif .hdr .heic .heif .hif .icns .ico .j2k .jp2 .jpx .jxl"
    " .jxr .pam .pbm .pcx .pfm .pgm .pnm .ppm .psb .psd .qoi .sgi .svg .svgz .tga .wdp .wmf .xbm .xcf .xpm"
)
_RAW_SUFFIXES = frozenset(_RAW.split())
_UNREAD_SUFFIXES = _RAW_SUFFIXES | frozenset(_UNREAD.split())
_KINDS = {
    "text files": ".txt .md .rst .log .rtf .doc .docx .odt",
    "tables": ".csv .tsv .parquet .xls .xlsx .ods .feather",
    "data files": ".json .jsonl .xml .yaml .yml .toml .ini .cfg .npy .npz .h5 .hdf5 .mat .pkl .pickle .tfrecord",
    "web pages": ".html .htm .mhtml .css .js .url",
    "PDF files": ".pdf",
    "videos": ".mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg .3gp .mts .wmv",
    "sounds": ".mp3 .wav .flac .m4a .ogg .aac",
    "archives": ".zip .tar .gz .tgz .bz2 .xz .7z .rar",
    "programs": ".py .ipynb .sh .bat .exe .pyc .m .r .c .cpp .java",
    "settings of photo programs": ".xmp .aae .thm .pp3 .cos .dop",
    "databases": ".db .sqlite .sqlite3",
    "models": ".onnx .pt .pth .ckpt .pb .tflite .safetensors .keras",
}
_KIND_OF = {suffix: kind for kind, suffixes in _KINDS.items() for suffix in suffixes.split()}
_USUAL_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,9}|\.[0-9][a-z][a-z0-9]{0,8}")


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in lower case with its dot, or nothing."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def image_format(name: str, start: bytes) -> str | None:
    """Find the image format of a file by its first bytes, or else by its suffix where that is of a format not read.

    Args:
        name: the file's name.
        start: its first `SNIFFED_BYTES` bytes.

    Returns:
        The format's name, such as `JPEG` or `PPM`; None where it is no image.
    """
    suffix = suffix_of(name)
    found = _format_by_bytes(start)
    if found == "TIFF" and suffix in _RAW_SUFFIXES:
        return suffix[1:].upper()
    if found is None and suffix in _UNREAD_SUFFIXES:
        return suffix[1:].upper()
    return found


def other_kind(name: str, start: bytes) -> str:
    """Say what a file that is no image is to be counted as, such as `text files (.txt)`."""
    suffix = suffix_of(name)
    if suffix in _KIND_OF:
        return f"{_KIND_OF[suffix]} ({suffix})"
    if not start:
        return "empty files"
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "web pages (by their bytes)"
    return f"other files ({suffix})" if _USUAL_SUFFIX.fullmatch(suffix) else "other files (without a usual suffix)"


def _format_by_bytes(start: bytes) -> str | None:
    for offset, signature, name in _SIGNATURES:
        if start.startswith(signature, offset):
            return name
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    # Two letters alone begin many a text: the size of the header that follows has to be one that there is.
    if start[:2] == b"BM" and int.from_bytes(start[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if start[4:8] == b"ftyp":
        return next((name for name, brands in _BRANDS.items() if start[8:12] in brands), None)
    if netpbm := _NETPBM.match(start):
        return _NETPBM_NAMES[netpbm[1]]
    if b"<svg" in start.lower():
        return "SVG"
    return None


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
    "picasa.ini": "settings of photo programs (picasa.ini)",
    ".picasa.ini": "settings of photo programs (picasa.ini)",
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
    """Find the pairs of class names that differ only in upper and lower case, sorted."""
    spellings: dict[str, list[str]] = {}
    for label in sorted(set(labels)):
        spellings.setdefault(label_of(label.casefold()), []).append(label)
    return tuple(sorted(pair for names in spellings.values() for pair in combinations(names, 2)))


def place_of(folder: Path, name: str) -> Path:
    """Say where a file is that a list names: as written, or else with `/` for a backslash or in the other Unicode form.

    Args:
        folder: what relative paths are relative to.
        name: the path as it is in the list.

    Returns:
        The first of these that there is; the path as written where there is none.
    """
    written = folder / name
    if ("\\" not in name and name.isascii()) or os.path.lexists(written):
        return written
    return next((place for other in _spellings(name) if os.path.lexists(place := folder / other)), written)


def _spellings(name: str) -> Iterator[str]:
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
        yield spelling
        if not name.isascii():
            yield unicodedata.normalize("NFC", spelling)
            yield unicodedata.normalize("NFD", spelling)


def _plain(name: str) -> str:
    return _BETWEEN_WORDS.sub("", label_of(name)).casefold()
