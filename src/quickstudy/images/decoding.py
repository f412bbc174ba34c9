"""The one way from the bytes of an image file to the pixels that a network takes.

Extraction and prediction both go through here, so what a model sees in use is what it was trained on. `InputSpec` names
everything that decides the pixels; it is part of every cache key and of every model file. The versions of Pillow and
ONNX Runtime are no part of the keys: their rounding differs at the seventh digit, and a cache that goes stale at every
update would cost more than it protects. A model's metadata name them.

Pillow opens the file and decodes, only formats that a photo folder holds. Ordinary JPEGs take a shorter way through the
same libjpeg-turbo (simplejpeg, 0.4 MB more to install), which gives the same pixels to the bit, straight into a NumPy
array: 0.42 instead of 0.56 ms a photo (Zen 5). Those without EXIF data need no Pillow at all: its parsing in Python,
during which no other thread can go on, costs a tenth of what decoding does. Whatever simplejpeg does not like goes to
Pillow, which finds out why.

The network sees the centred square, whole. With a linear head on EfficientNet-Lite0 at 224 pixels, cross-validated on
the 3,409 training images of the clothing photos: squashing the image to a square 86.5 % and 0.387 nats, cutting out the
centre at 7/8 as ImageNet evaluation does 87.9 % and 0.369, padding 86.7 % and 0.379, the whole centred square 88.7 %
and 0.341.

The resize is bilinear between the two nearest pixels, after halving, as often as it takes, has brought the image within
twice the target: TensorFlow's `resize` without antialiasing, with which EfficientNet-Lite was trained. On the clothing
photos, at 256 pixels, it gave better bottlenecks than Pillow's antialiased bicubic filter (cross-validated log loss
0.323 against 0.330 nats) in a quarter of the time, and its fixed-point arithmetic can be repeated to the bit in any
language.
"""

from __future__ import annotations

import functools
import io
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from quickstudy.errors import UnusableImageError

MOST_PIXELS = 100_000_000
"""The most pixels of an image that is decoded; more are a decompression bomb, or a scan that wants resizing first.

Pillow's own check warns from 89 million on and raises from 179; this is one clear refusal in between, whatever the
process does with warnings (see `quickstudy.process`)."""
MOST_BYTES = 256 << 20
"""The largest image file that is read, in bytes."""
MOST_SCANS = 100
"""The most scans of a JPEG that is decoded. A JPEG announces its pixels once, but may go over them again and again:
megabytes of empty scans keep libjpeg busy for hours. Encoders write one to a dozen."""

DECODER = f"1, Pillow {PIL.__version__}"
"""The version of decoding under which unusable contents are remembered; its first number is counted up when this module
comes to decode what it refused, or the other way."""

# MPO, which phones write for two pictures in one file, comes with JPEG.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_ORIENTATION_TAG = 0x0112
_THUMBNAIL_QUALITY = 80
_JPEG, _START_OF_SCAN, _EXIF = b"\xff\xd8\xff", b"\xff\xda", b"Exif\x00\x00"

Pixels = NDArray[np.uint8]
"""An image as height×width×3 RGB values from 0 to 255."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How an image becomes a network's input: upright, its centred square cut out and resized."""

    size: int
    """Side of the square that the network takes, in pixels."""
    crop: float = 1.0
    """Side of the centred square that is cut out, as a share of the image's shorter side."""

    def to_dict(self) -> dict[str, Any]:
        """Return all that decides the pixels, as JSON values; `resize` names the arithmetic below."""
        return {**asdict(self), "resize": "reduce-bilinear-1"}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> InputSpec:
        """Make an input specification of what `to_dict` gave.

        Raises:
            ValueError: the values are not of this version of quickstudy.
        """
        spec = InputSpec(size=int(values["size"]), crop=float(values["crop"]))
        if values != spec.to_dict():
            raise ValueError(f"unknown input specification {values!r}")
        return spec


def decode(data: bytes, spec: InputSpec, *, most_pixels: int = MOST_PIXELS) -> Pixels:
    """Decode an image file's bytes to upright 8-bit RGB pixels.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the square still keeps `spec.size` pixels a side: libjpeg
    then skips most of the work and gives the mean of each 2×2, 4×4 or 8×8 pixels, as `to_input` would (on photos within
    1 of 255 levels on average, where the sides divide). Alpha is laid over white, 16 bits become 8, CMYK becomes RGB,
    and of several frames the first is taken. An image whose header announces more than `most_pixels` is refused.

    Raises:
        UnusableImageError: the bytes are no image that can be used; the message is the reason.
    """
    pixels = _decode_plain_jpeg(data, spec, most_pixels)
    if pixels is not None:
        return pixels
    image = _open(data, most_pixels)
    try:
        factor = _largest_factor(min(image.size), spec) if image.format in ("JPEG", "MPO") else 1
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            pixels = _decode_ordinary_jpeg(data, image.size, factor)
            if pixels is not None:
                return _upright(pixels, _orientation(image))
        if factor > 1:
            image.draft(None, (image.width // factor, image.height // factor))
        image.load()
        return to_pixels(image)
    except Exception as error:
        reason = _first_line(error)
        raise UnusableImageError("truncated" if "truncated" in reason else f"damaged ({reason})") from None


def to_input(pixels: Pixels, spec: InputSpec, box: tuple[int, int, int] | None = None) -> Pixels:
    """Cut a square out of an image and resize it to `spec.size`×`spec.size`×3.

    Args:
        pixels: height×width×3, as `decode` gives it.
        spec: the network's input.
        box: left, top and side of the square in pixels; the centred one of `spec` if left out.
    """
    left, top, side = box or centred_square(pixels.shape, spec)
    square = pixels[top : top + side, left : left + side]
    if side >= 2 * spec.size:
        factor = 1 << ((side // spec.size).bit_length() - 1)  # a power of two, as libjpeg has them
        # What does not divide goes, evenly from both ends, so that every pixel is the mean of equally many.
        start, kept = side % factor // 2, side - side % factor
        square = square[start : start + kept, start : start + kept]
        square = np.asarray(Image.fromarray(np.ascontiguousarray(square)).reduce(factor))
    return resize_bilinear(square, spec.size)


def centred_square(shape: tuple[int, ...], spec: InputSpec) -> tuple[int, int, int]:
    """Return left, top and side of the square that `spec` cuts out of pixels of this shape (height, width, 3)."""
    height, width = shape[:2]
    side = max(1, round(min(width, height) * spec.crop))
    return (width - side) // 2, (height - side) // 2, side


def resize_bilinear(pixels: Pixels, size: int) -> Pixels:
    """Resize a square to size×size×3, bilinearly between pixel centres, in fixed point with 8-bit weights.

    Rows are blended first, then columns, each rounded to the nearest level.
    """
    if len(pixels) == size:
        return np.ascontiguousarray(pixels)
    upper, lower, upper_weight, lower_weight = _taps(len(pixels), size)
    blended = np.multiply(pixels[upper], upper_weight[:, None, None], dtype=np.uint16)
    blended += np.multiply(pixels[lower], lower_weight[:, None, None], dtype=np.uint16)
    blended += 128
    blended >>= 8
    blended = blended.reshape(size, -1)
    left, right, left_weight, right_weight = _channel_taps(len(pixels), size)
    result = blended.take(left, axis=1, mode="wrap")  # nothing is out of range, and this mode is the fastest
    result *= left_weight
    other = blended.take(right, axis=1, mode="wrap")
    other *= right_weight
    result += other
    result += 128
    result >>= 8
    return result.astype(np.uint8).reshape(size, size, 3)


@functools.lru_cache(maxsize=256)
def _taps(length: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint16], NDArray[np.uint16]]:
    """Give for each of `size` places the two source places it lies between and their weights, which sum to 256."""
    places = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    lower = np.minimum(np.floor(places).astype(np.intp), max(length - 2, 0))
    weight = np.round((places - lower) * 256).astype(np.uint16)
    return lower, np.minimum(lower + 1, length - 1), 256 - weight, weight


@functools.lru_cache(maxsize=256)
def _channel_taps(
    length: int, size: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint16], NDArray[np.uint16]]:
    """Give what `_taps` gives for rows of interleaved RGB values."""
    left, right, left_weight, right_weight = _taps(length, size)
    channels = np.arange(3)
    return (
        (3 * left[:, None] + channels).ravel(),
        (3 * right[:, None] + channels).ravel(),
        np.repeat(left_weight, 3),
        np.repeat(right_weight, 3),
    )


def _largest_factor(shorter_side: int, spec: InputSpec) -> int:
    """Return the largest of libjpeg's fast reductions that leaves the square no smaller than the network's input."""
    return next(factor for factor in (8, 4, 2, 1) if factor == 1 or shorter_side * spec.crop >= spec.size * factor)


def size_of(data: bytes) -> tuple[int, int]:
    """Return width and height of an image file as it is shown, upright, from its header.

    Raises:
        UnusableImageError: as `decode`.
    """
    image = _open(data)
    turned = _orientation(image) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def to_pixels(image: Image.Image) -> Pixels:
    """Turn a loaded Pillow image into upright 8-bit RGB pixels, as `decode` does for all modes and orientations."""
    return _upright(np.asarray(_to_rgb(image)), _orientation(image))


def encode_thumbnail(pixels: Pixels) -> bytes:
    """Encode a small image as the bytes of a JPEG file to look at."""
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_THUMBNAIL_QUALITY)
    return encoded


def _open(data: bytes, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """Open an image file with Pillow, which reads its header, and refuse what is wrong with that."""
    if not data:
        raise UnusableImageError("empty file (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise UnusableImageError(_describe_unidentified(data)) from None
    except Image.DecompressionBombError:
        raise UnusableImageError(f"too many pixels (the limit is {most_pixels / 1e6:g} million)") from None
    except Exception as error:  # decoders raise many kinds on damaged headers
        raise UnusableImageError(f"damaged header ({_first_line(error)})") from None
    _refuse_bombs(data, image.size, most_pixels, jpeg=image.format in ("JPEG", "MPO"))
    return image


def _refuse_bombs(data: bytes, size: tuple[int, int], most_pixels: int, *, jpeg: bool) -> None:
    if size[0] * size[1] > most_pixels:
        raise UnusableImageError(f"too many pixels ({size[0]}x{size[1]}; the limit is {most_pixels / 1e6:g} million)")
    if jpeg and _count_scans(data) > MOST_SCANS:
        raise UnusableImageError(f"a JPEG of more than {MOST_SCANS} scans")


def _count_scans(data: bytes) -> int:
    """Count the markers of scans in a JPEG file, five times as fast as `bytes.count`."""
    values = np.frombuffer(data, np.uint8)
    return int(np.count_nonzero((values[:-1] == _START_OF_SCAN[0]) & (values[1:] == _START_OF_SCAN[1])))


def _decode_plain_jpeg(data: bytes, spec: InputSpec, most_pixels: int) -> Pixels | None:
    """Decode a JPEG without EXIF data; None where the file is no such JPEG, or not in order."""
    if not data.startswith(_JPEG) or _EXIF in data[: data.find(_START_OF_SCAN)]:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "RGB", "Gray"):
        return None
    _refuse_bombs(data, (width, height), most_pixels, jpeg=True)
    return _decode_ordinary_jpeg(data, (width, height), _largest_factor(min(width, height), spec))


def _decode_ordinary_jpeg(data: bytes, size: tuple[int, int], factor: int) -> Pixels | None:
    """Decode a JPEG at 1/factor of `size` (width, height), rounded up as libjpeg does; None where it is damaged."""
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, min_height=-(-size[1] // factor), min_width=-(-size[0] // factor))
    except ValueError:
        return None  # Pillow finds out what is wrong, or what can be done
    return pixels


def _orientation(image: Image.Image) -> int:
    # Most JPEGs have no EXIF block, and Pillow takes its time to find that out; TIFF keeps the tag elsewhere.
    has_tags = "exif" in image.info or image.format != "JPEG"
    orientation = image.getexif().get(_ORIENTATION_TAG) if has_tags else 1
    return orientation if isinstance(orientation, int) else 1  # the tag may hold a text


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn or mirror pixels as the EXIF tag says (1 to 8; anything else is taken for 1)."""
    turns = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
    if orientation not in turns:
        return pixels
    quarter_turns, mirror = turns[orientation]
    turned = np.rot90(pixels, quarter_turns)
    return np.ascontiguousarray(turned[:, ::-1] if mirror else turned)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":  # 16-bit PNGs in some versions of Pillow, else 32-bit TIFFs
        levels = np.asarray(image)
        shift = 8 if levels.max() > 255 else 0
        return Image.fromarray(np.clip(levels >> shift, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        levels = np.nan_to_num(np.asarray(image))
        scale = 255 if levels.max() <= 1 else 1
        return Image.fromarray(np.clip(levels * scale, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _describe_unidentified(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image"
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return "HEIC is not supported; convert it to JPEG"
    if data[4:12] == b"ftypavif":
        return "AVIF is not supported; convert it to JPEG"
    if start.startswith(b"<svg") or b"<svg" in start:
        return "SVG is not supported; convert it to PNG"
    return "not an image, or damaged from its first bytes on"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
