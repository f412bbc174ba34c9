"""What a file is: the formats of images by their first bytes, and the kinds of other files by their suffixes.

Formats are named as people call them. Those of `READ` are the ones that `decoding.py` opens, and HEIC where its extra
is installed; for the others `why_unread` names the way out. The bytes decide; a suffix says what a file is only where
they do not, and tells raw photos, whose first bytes are those of a TIFF, from TIFF.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from pathlib import Path

from quickstudy.wording import count

_READ_SUFFIXES = (
    ".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff .avif .avifs .jp2 .j2k .j2c .jpc .jpx .jpf .pbm"
    " .pgm .ppm .pnm .ico"
)
IMAGE_SUFFIXES = frozenset(_READ_SUFFIXES.split())
"""The usual suffixes of images that are read, in lower case."""
HEIC = frozenset({"HEIC", "HEIF"})
"""The image formats that are read where the extra `heic` is installed."""
PLUGINS = {
    "PNG": "PNG",
    "WebP": "WEBP",
    "BMP": "BMP",
    "GIF": "GIF",
    "TIFF": "TIFF",
    "AVIF": "AVIF",
    "JPEG 2000": "JPEG2000",
    "PBM": "PPM",
    "PGM": "PPM",
    "PPM": "PPM",
    "PFM": "PPM",
    "ICO": "ICO",
    "HEIC": "HEIF",
    "HEIF": "HEIF",
}
"""Pillow's names of the formats that it opens for us, by ours; JPEGs have a decoder of their own."""
READ = frozenset({"JPEG", *PLUGINS}) - HEIC
"""The image formats that are always read."""
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
    (0, b"\x00\x00\x01\x00", "ICO"),
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
_NETPBM = re.compile(rb"P([1-6f])\s+[\d#]")
_NETPBM_NAMES = {b"1": "PBM", b"4": "PBM", b"2": "PGM", b"5": "PGM", b"3": "PPM", b"6": "PPM", b"f": "PFM"}
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})

# Raw photos are TIFF by their first bytes, and what can be read of them that way is a preview at best.
_RAW = (
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srf"
    " .srw .x3f"
)
_UNREAD = (
    ".bpg .cur .dcm .dds .emf .eps .exr .fits .flif .hdr .heic .heif .hif .icns .jxl .jxr .pam .pcx .pfm .psb .psd .qoi"
    " .sgi .svg .svgz .tga .wdp .wmf .xbm .xcf .xpm"
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
    "photo programs' settings": ".xmp .aae .thm .pp3 .cos .dop",
    "databases": ".db .sqlite .sqlite3",
    "models": ".onnx .pt .pth .ckpt .pb .tflite .safetensors .keras",
}
_KIND_OF = {suffix: kind for kind, suffixes in _KINDS.items() for suffix in suffixes.split()}
_PLURAL = re.compile(r"(ie)?s(?= of | from | kept | \(|$)")
_USUAL_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,9}|\.[0-9][a-z][a-z0-9]{0,8}")


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in lower case with its dot, or nothing."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def first_bytes(path: Path) -> bytes:
    """Read the first `SNIFFED_BYTES` bytes of a file.

    Raises:
        OSError: it cannot be read.
    """
    # A third of the time that a file object takes; only Windows has O_BINARY, and needs it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        return os.read(descriptor, SNIFFED_BYTES)
    finally:
        os.close(descriptor)


def image_format(name: str, start: bytes) -> str | None:
    """Find the image format of a file by its first bytes, or else by its suffix where that is of a format not read.

    Args:
        name: the file's name.
        start: its first `SNIFFED_BYTES` bytes.

    Returns:
        The format's name, such as `JPEG` or `PPM`; None where it is no image.
    """
    suffix = suffix_of(name)
    found = format_of(start)
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


def counted(number: int, kind: str) -> str:
    """Write how many files there are of a kind that `other_kind` gave, such as `1 text file (.md)`."""
    return count(number, _PLURAL.sub(lambda end: "y" if end.group(1) else "", kind, count=1), kind)


def format_of(start: bytes) -> str | None:
    """Find the image format of a file by its first `SNIFFED_BYTES` bytes alone; None where it is none that is known."""
    for offset, signature, name in _SIGNATURES:
        if start.startswith(signature, offset):
            return name
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    # Two letters alone begin many a text: the size of the header that follows has to be one that there is.
    if start[:2] == b"BM" and int.from_bytes(start[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if start[4:8] == b"ftyp":
        return _format_of_boxes(start)
    if netpbm := _NETPBM.match(start):
        return _NETPBM_NAMES[netpbm[1]]
    if b"<svg" in start.lower():
        return "SVG"
    return None


def _format_of_boxes(start: bytes) -> str | None:
    """Find the format by the brands that a file of ISO boxes names: first its own, then those it is compatible with."""
    end = min(len(start), max(16, int.from_bytes(start[:4], "big")))
    brands = [start[8:12], *(start[place : place + 4] for place in range(16, end - 3, 4))]
    general = next((name for name, known in _BRANDS.items() if brands[0] in known), None)
    if general != "HEIF":
        return general
    return next((name for brand in brands for name in ("AVIF", "HEIC") if brand in _BRANDS[name]), general)


def is_read(name: str) -> bool:
    """Say whether images of this format are read, as the installation stands."""
    return name in READ or (name in HEIC and has_heic())


@functools.cache
def has_heic() -> bool:
    """Say whether the extra `heic` is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


_RAW_NAMES = frozenset(suffix[1:].upper() for suffix in _RAW_SUFFIXES)
_WAYS_OUT = {
    "DICOM": "is not supported; export its pictures as PNG, windowed as they are looked at",
    "PSD": "is not supported; export the picture that its layers make as PNG",
    "PSB": "is not supported; export the picture that its layers make as PNG",
    "SVG": "is not supported; convert it to PNG",
    "SVGZ": "is not supported; convert it to PNG",
}


def why_unread(name: str) -> str:
    """Say why images of this format are not read, and the way out."""
    if name in HEIC:
        return (
            f"{name} needs the extra 'heic', which is not installed; install it with: pip install pillow-heif, "
            "or convert it to JPEG or PNG"
        )
    if name in _RAW_NAMES:
        return f"{name} is a raw photo, which is not supported; export it as JPEG or PNG"
    return f"{name} {_WAYS_OUT.get(name, 'is not supported; convert it to JPEG or PNG')}"


_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%PDF", "a PDF file, not an image; save its pages as PNG"),
    (0, b"%!PS", "a PostScript file, not an image; convert it to PNG"),
    (4, b"ftyp", "a video, not an image; save pictures of it as JPEG"),
    (0, b"\x1a\x45\xdf\xa3", "a video, not an image; save pictures of it as JPEG"),
    (8, b"AVI ", "a video, not an image; save pictures of it as JPEG"),
    (0, b"PK\x03\x04", "an archive, not an image; unpack it"),
    (0, b"\x1f\x8b", "an archive, not an image; unpack it"),
)


def why_no_image(start: bytes) -> str:
    """Say what a file is, by its first bytes, that no decoder reads as an image, and the way out."""
    beginning = start.lstrip()[:14].lower()
    if beginning.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image"
    name = format_of(start)
    if name is not None and not is_read(name):
        return why_unread(name)
    known = (words for offset, signature, words in _OTHERS if start.startswith(signature, offset))
    return next(known, "not an image, or damaged from its first bytes on")
