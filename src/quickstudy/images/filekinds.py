"""What a file is: its first bytes say it, and its suffix only where they do not.

Formats are named as people call them. Those of `READ` are the ones that `decoding.py` opens; the other image formats
are named among the skipped, as their owner expects them to count; all else is counted by kind.
"""

from __future__ import annotations

import re

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"})
READ = frozenset({"JPEG", "PNG", "GIF", "WebP", "BMP", "TIFF"})
SNIFFED_BYTES = 132
"""How many bytes of a file are looked at: as far as the last of the signatures below reaches, DICOM's."""

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
    """The suffix of a file's name in lower case with its dot, or nothing."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def image_format(name: str, start: bytes) -> str | None:
    """The image format of a file by its first bytes, or else by its suffix where that is of a format not read.

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
    """What a file that is no image is to be counted as, such as `text files (.txt)`."""
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
    """What a file or folder of this name is that a server, a desktop or a synchroniser left; None for all others."""
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
