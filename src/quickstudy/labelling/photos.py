"""The photos that are labelled, by content: where they lie, and what they show.

Photos are read and never written, moved or renamed. What somebody hands to the page to be labelled lies in a folder of
its own beside the manifest. Pictures are decoded and encoded anew before a browser gets them, so that no byte of a file
reaches it, no metadata and no place.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from quickstudy.bottlenecks.looks import Thumbnails, sheet_of
from quickstudy.errors import ImageSetError, LabellingError, UnusableImageError, WriteError
from quickstudy.files import require_folder_of, write_bytes_atomically
from quickstudy.images.archives import set_name
from quickstudy.images.census import Census, take_census
from quickstudy.images.decoding import InputSpec, decode
from quickstudy.images.identity import read_image_file
from quickstudy.images.imageset import ImageFile, list_images, load_image_set
from quickstudy.images.kinds import SNIFFED_BYTES, format_of
from quickstudy.images.manifests import ONE_EACH, SEPARATORS, Labelling
from quickstudy.models.format import model_path
from quickstudy.progress import Progress, silent

SHOWN_SIDE = 1024
"""The longest side of a photo as the page shows it, in pixels."""
TILE = 128
"""Side of a photo's square on a sheet, in pixels; thumbnails have 96 at most."""
TILES_ACROSS = 8
"""Number of squares in a row of a sheet."""
MOST_TILES = 96
"""Number of photos that one sheet may show."""
NAME_DIGITS = 16
"""Digits of its content hash by which browsers name a photo."""
MOST_LABELLED_PIXELS = 64_000_000
"""The most pixels of a photo that somebody hands to the page."""
_KEPT_PICTURES = 48  # encoded photos in memory, about 150 kB each
_QUALITY, _SHEET_QUALITY = 85, 80


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One photo, wherever it lies."""

    digest: bytes
    """SHA-256 of its file."""
    files: tuple[ImageFile, ...]
    """Its files, at least one."""
    labels: tuple[str, ...] | None
    """The labels that it came with; None where it came with none, or with contradicting ones."""
    added: bool
    """Whether it was handed to the page, and so is no part of what was to be labelled."""

    @property
    def id(self) -> str:
        """Its content hash in hexadecimal, by which the journal knows it."""
        return self.digest.hex()

    @property
    def name(self) -> str:
        """The beginning of its content hash, by which browsers name it."""
        return self.digest.hex()[:NAME_DIGITS]

    @property
    def path(self) -> Path:
        """The first of its files."""
        return self.files[0].path

    @property
    def tests(self) -> bool:
        """Whether it came in a split for the test."""
        return any(file.split == "test" for file in self.files)


class PhotoSet:
    """All photos by number, in the order of their content hashes; photos that are added come last until the end."""

    def __init__(
        self,
        source: Path,
        manifest: Path,
        *,
        cache: Path,
        labelling: Labelling = ONE_EACH,
        progress: Progress = silent,
    ) -> None:
        """List and hash the photos.

        Args:
            source: a folder or manifest.
            manifest: where labels are written; photos that are handed to the page lie in a folder beside it.
            cache: folder of the store.
            labelling: how labels are to be read and written.
            progress: is told how far hashing has come.

        Raises:
            ImageSetError: there are no images, or none can be read.
        """
        self.source, self.manifest, self.labelling = source, manifest, labelling
        self.added_folder = manifest.with_name(f"{manifest.name.removesuffix('.csv').removesuffix('.labels')}.added")
        listed = load_image_set(source, unlabelled=True, labelling=labelling)
        inside = str(self.added_folder.resolve()) + os.sep
        everything = (*listed.files, *listed.unlabelled)
        own = [file for file in everything if not os.path.realpath(file.name).startswith(inside)]
        if self.added_folder.is_dir():
            own += [ImageFile(str(path), None) for path in list_images(self.added_folder)[0]]
        listed = replace(
            listed,
            files=tuple(file for file in own if file.labels is not None),
            unlabelled=tuple(file for file in own if file.labels is None),
        )
        self.index = cache / "bottlenecks" / "files.sqlite"
        self.census: Census = take_census(listed, self.index, unlabelled=True, progress=progress)
        self.photos: list[Photo] = [
            Photo(
                digest=content.digest,
                files=content.places,
                labels=content.labels,
                added=all(os.path.realpath(place.name).startswith(inside) for place in content.places),
            )
            for content in self.census.contents.values()
            if content.left_out != "unusable"
        ]
        self._refuse_none()
        self.number_of = {photo.id: number for number, photo in enumerate(self.photos)}
        """Number of a photo by its content hash in hexadecimal."""
        self._number_by_name = {photo.name: number for number, photo in enumerate(self.photos)}
        self.splits_given = any(photo.tests for photo in self.photos)
        self._thumbnails = Thumbnails(cache)
        self._pictures: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def _refuse_none(self) -> None:
        """Refuse a set without one file that can be read as an image; as a rule, the first can, and ends the search."""
        found = [(content.path, content.reason) for content in self.census.contents.values()]
        reasons = dict([*((file.path, file.reason) for file in self.census.unread), *found])
        for photo in self.photos:
            try:
                decode(read_image_file(photo.path)[0], InputSpec(size=SHOWN_SIDE * 3 // 4))
                return
            except UnusableImageError as error:
                reasons[photo.path] = str(error)
        first = min(reasons)
        raise ImageSetError(
            f"No file under '{self.source}' can be read as an image; the first, '{first}': {reasons[first]}"
        )

    def __len__(self) -> int:
        return len(self.photos)

    def number_by_name(self, name: str) -> int | None:
        """Find a photo by the name that browsers give it; None where there is no such photo."""
        return self._number_by_name.get(name)

    def title(self, number: int) -> str:
        """Name a photo by its path below the folder, fit to be shown."""
        root = self.source if self.source.is_dir() else self.source.parent
        path = self.photos[number].path
        shown = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        return str(shown).encode("utf-8", "backslashreplace").decode()

    def picture(self, number: int) -> bytes:
        """Give a photo as a JPEG file, its longest side at most `SHOWN_SIDE` pixels.

        Raises:
            UnusableImageError: the file cannot be decoded, has gone or has changed.
        """
        with self._lock:
            if number in self._pictures:
                self._pictures.move_to_end(number)
                return self._pictures[number]
        photo = self.photos[number]
        data, digest = read_image_file(photo.path)
        if digest != photo.digest:
            raise UnusableImageError("changed since it was listed")
        picture = shown_picture(data)
        with self._lock:
            self._pictures[number] = picture
            while len(self._pictures) > _KEPT_PICTURES:
                self._pictures.popitem(last=False)
        return picture

    def thumbnails(self, numbers: Sequence[int]) -> list[bytes]:
        """Give the thumbnails of photos; see `Thumbnails.of`."""
        return self._thumbnails.of([self.photos[number] for number in numbers])

    def keep_thumbnails(self, numbers: Sequence[int] = ()) -> None:
        """Keep the thumbnails of some photos in the store; with none, merge what was kept in small parts."""
        if numbers:
            self._thumbnails.keep([self.photos[number] for number in numbers])
        else:
            self._thumbnails.compact()

    def sheet(self, numbers: Sequence[int]) -> bytes:
        """Give the thumbnails of photos as one WebP file, a square each, `TILES_ACROSS` in a row."""
        across = min(TILES_ACROSS, len(numbers))
        return sheet_of(self.thumbnails(numbers), side=TILE, across=across, quality=_SHEET_QUALITY)

    def add(self, data: bytes) -> int:
        """Keep a photo that was handed to the page, durably, and give its number; one that is there keeps its own.

        Raises:
            UnusableImageError: it is no image that can be used.
            WriteError: it cannot be written.
        """
        decode(data, InputSpec(size=224), most_pixels=MOST_LABELLED_PIXELS)
        digest = hashlib.sha256(data).digest()
        with self._lock:
            if (known := self.number_of.get(digest.hex())) is not None:
                return known
            suffix = _SUFFIXES.get(format_of(data[:SNIFFED_BYTES]) or "", "jpg")
            path = self.added_folder / f"{digest.hex()[:24]}.{suffix}"
            try:
                write_bytes_atomically(path, data)
            except OSError as error:
                raise WriteError(f"Cannot keep the photo in '{self.added_folder}': {error.strerror}") from None
            self.photos.append(Photo(digest=digest, files=(ImageFile(str(path), None),), labels=None, added=True))
            self.number_of[digest.hex()] = self._number_by_name[digest.hex()[:NAME_DIGITS]] = len(self.photos) - 1
            return len(self.photos) - 1

    @property
    def separator(self) -> str:
        """What stands between several labels of a photo in the manifest that is written."""
        return self.labelling.separator or SEPARATORS[0]


_SUFFIXES = {"PNG": "png", "WebP": "webp", "GIF": "gif", "TIFF": "tif", "BMP": "bmp", "AVIF": "avif", "HEIC": "heic"}


def places_beside(images: Path, labels: Path | None, output: Path | None) -> tuple[Path, Path]:
    """Say where the manifest and the model go: where they were told to, or else into the working folder.

    Raises:
        LabellingError: the manifest is the image set or no `.csv`.
        ModelError: the model is no `.onnx`.
        WriteError: a folder is missing.
    """
    name = set_name(images)
    manifest = labels if labels is not None else Path(f"{name.removesuffix('.labels')}.labels.csv")
    model = model_path(output if output is not None else f"{name.removesuffix('.labels')}.onnx")
    if manifest.suffix != ".csv":
        raise LabellingError(f"The manifest must be named *.csv; got '{manifest}'")
    for path, what in ((manifest, "labels"), (model, "model")):
        require_folder_of(path, what)
    if images.is_file() and manifest.resolve() == images.resolve():
        raise LabellingError(
            f"'{images}' would be written over with its own labels; name another manifest with --labels"
        )
    return manifest, model


def shown_picture(data: bytes) -> bytes:
    """Encode an image file anew as a JPEG file for a browser, its longest side at most `SHOWN_SIDE` pixels.

    Raises:
        UnusableImageError: the bytes are no image that can be used; the message is the reason.
    """
    pixels = decode(data, InputSpec(size=SHOWN_SIDE * 3 // 4))
    longest = max(pixels.shape[:2])
    if longest > SHOWN_SIDE:
        picture = Image.fromarray(pixels)
        size = [max(1, round(side * SHOWN_SIDE / longest)) for side in picture.size]
        pixels = np.asarray(picture.resize((size[0], size[1]), Image.Resampling.BILINEAR, reducing_gap=2.0))
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_QUALITY)
    return encoded
