"""What callers of the library may give as an image, and what is made of it.

A file comes as its path, its bytes or an open file; a picture as Pillow's, as an array or a torch tensor. What is clear
is taken; what may mean several things is refused with what to do, since a guess would be a wrong answer in silence.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quickstudy.errors import UnusableImageError
from quickstudy.files import as_path
from quickstudy.images.decoding import MOST_BYTES, USUAL_BITS, Pixels, to_pixels

ImageLike = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[Any]
"""An image: a path; an image file's bytes, or the file, open for reading bytes; a Pillow image; or an array, RGB or
grey, height×width×3 or height×width, uint8 or floats from 0 to 1. A torch tensor counts as an array, and may have its
channels first. OpenCV's arrays are BGR, which nothing in them tells: give `array[..., ::-1]`."""

_EXPECTED = "expected a path, an image file's bytes, an open file, a Pillow image, or an array height×width×3 in RGB"
_WHOLE_FILES = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def one_by_one(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """Go through images, whether one was given, or several: an iterable, an array of paths, or a batch (N×…)."""
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image) or hasattr(images, "read"):
        return [images]  # type: ignore[list-item]
    array = _as_array(images)
    if array is not None:
        if array.dtype.kind in "OU":
            listed: list[Any] = array.ravel().tolist()
            return listed
        return array if array.ndim == 4 else [array]
    return images if isinstance(images, Iterable) else [images]


def file_of(image: ImageLike) -> Path | bytes | None:
    """Give the file that an image is, its path or its bytes; None where it is a picture without a file.

    An image that Pillow has opened, but not loaded yet, is judged as its file: Pillow keeps to itself what is missing.

    Raises:
        UnusableImageError: an open file cannot be read, or gives text; or a path is empty.
    """
    if isinstance(image, str | os.PathLike):
        if not os.fspath(image):
            raise UnusableImageError("an empty path, ''")
        return as_path(os.fspath(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        return _unloaded_file(image)
    return _read(image) if hasattr(image, "read") else None


def pixels_of(image: ImageLike, *, bits: int = USUAL_BITS) -> Pixels:
    """Give the upright RGB pixels of a picture without a file.

    Raises:
        UnusableImageError: it is none, or damaged; the message is the reason.
    """
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise UnusableImageError(f"an image of {image.width}x{image.height} pixels")
        try:
            image.load()
            return to_pixels(image, bits=bits)
        except Exception as error:  # opened lazily, a damaged file shows only here
            raise UnusableImageError(f"damaged ({error})") from None
    array = _as_array(image)
    if array is None:
        raise UnusableImageError(f"{_kind(image)}, which is not an image; {_EXPECTED}")
    return to_pixels(Image.fromarray(_levels(_channels_last(array))))


def _kind(value: object) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _as_array(value: Any) -> NDArray[Any] | None:
    """Give an array, or a tensor as one; None for all else."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        array: NDArray[Any] = value.detach().cpu().numpy()
        return array
    return value if isinstance(value, np.ndarray) else None


def _channels_last(array: NDArray[Any]) -> NDArray[Any]:
    """Bring an array into the shape height×width or height×width×channels, where it can be only that."""
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not array.size or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        many = "; give several images as a list" if array.ndim > 2 else ""
        raise UnusableImageError(
            f"an array of {array.dtype} and shape {array.shape}; expected uint8, height×width×3{many}"
        )
    return array


def _levels(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise UnusableImageError(
            f"an array of {array.dtype} and shape {array.shape}; expected uint8, height×width×3, or floats from 0 to 1"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise UnusableImageError(
            f"an array of {array.dtype} with values from {low:g} to {high:g}; expected floats from 0 to 1, or uint8, "
            "as they were before any normalisation"
        )
    levels: NDArray[np.uint8] = np.round(array.astype(np.float64) * 255).astype(np.uint8)
    return levels


def _read(file: Any) -> bytes:
    """Read an open file whole, from its beginning where it can go back there."""
    try:
        if file.seekable():
            file.seek(0)
        data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UnusableImageError(f"a file that cannot be read ({error}); open it anew, as bytes ('rb')") from None
    if not isinstance(data, bytes):
        raise UnusableImageError("a file that is open as text; open it as bytes ('rb')")
    if len(data) > MOST_BYTES:
        raise UnusableImageError(f"too large (more than {MOST_BYTES >> 20} MB)")
    return data


def _unloaded_file(image: Image.Image) -> bytes | None:
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None) or image.format not in _WHOLE_FILES or image.tell() != 0:
        return None
    try:
        file.seek(0)
        data: bytes = file.read(MOST_BYTES + 1)
    except (OSError, ValueError):  # closed meanwhile
        return None
    return data if len(data) <= MOST_BYTES else None


def as_png(pixels: Pixels) -> bytes:
    """Write pixels as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
