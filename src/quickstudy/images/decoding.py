"""The one way from the bytes of an image file to the pixels that a network takes.

Extraction and prediction both go through here, so what a model sees in use is what it was trained on. `InputSpec` names
everything that decides the pixels; it is part of every cache key and of every model file. The versions of Pillow and
ONNX Runtime are no part of the keys: their rounding differs at the seventh digit, and a cache that goes stale at every
update would cost more than it protects. A model's metadata name them.

What a file is, its bytes say. `structure.py` and `chunks.py` walk through its parts, of which those decide that make
pixels; `jpegs.py` decodes and judges JPEGs through libjpeg-turbo (simplejpeg, 0.4 MB to install), straight into a NumPy
array: 0.42 instead of 0.56 ms a photo (Zen 5) in Pillow, whose parsing of EXIF data in Python, during which no other
thread can go on, costs a tenth of what decoding does; `opened.py` has Pillow decode all else; `colour.py` makes 8-bit
sRGB of it. docs/images.md says what is read, how, and what is refused.

The network sees the centred square, whole, unless another fit is asked for (`fits.py`). With a linear head on
EfficientNet-Lite0 at 224 pixels, cross-validated on the 3,409 training images of the clothing photos: squashing the
image to a square 86.5 % and 0.387 nats, cutting out the centre at 7/8 as ImageNet evaluation does 87.9 % and 0.369,
padding 86.7 % and 0.379, the whole centred square 88.7 % and 0.341.

The resize is bilinear between the two nearest pixels, after halving, as often as it takes, has brought the image within
twice the target: TensorFlow's `resize` without antialiasing, with which EfficientNet-Lite was trained. On the clothing
photos, at 256 pixels, it gave better bottlenecks than Pillow's antialiased bicubic filter (cross-validated log loss
0.323 against 0.330 nats) in a quarter of the time, and its fixed-point arithmetic can be repeated to the bit in any
language. Networks of the hub were trained and published with Pillow's filters; with `resize` set to one, an image
becomes what transformers' and timm's own code make of it, from pixels decoded at full size.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from quickstudy.errors import UnusableImageError
from quickstudy.images.colour import Pixels, to_rgb
from quickstudy.images.fits import FITS, Fit, tiles_in
from quickstudy.images.jpegs import decode_jpeg
from quickstudy.images.opened import open_image, orientation_of
from quickstudy.images.structure import MOST_SCANS, read_jpeg, require_few_pixels

__all__ = [
    "COLOUR",
    "DECODER",
    "MOST_BYTES",
    "MOST_PIXELS",
    "MOST_SCANS",
    "OWN_RESIZE",
    "RESIZES",
    "USUAL_BITS",
    "InputSpec",
    "Pixels",
    "Resize",
    "bits_used",
    "decode",
    "encode_thumbnail",
    "frame_of",
    "is_broken",
    "resize_bilinear",
    "size_of",
    "to_input",
    "to_pixels",
]

MOST_PIXELS = 100_000_000
"""The most pixels of an image that is decoded; more are a decompression bomb, or a scan that wants resizing first.

Pillow's own check warns from 89 million on and raises from 179; this is one clear refusal in between, whatever the
process does with warnings (see `quickstudy.process`)."""
MOST_BYTES = 256 << 20
"""The largest image file that is read, in bytes."""
DECODER = f"2, Pillow {PIL.__version__}"
"""The version of decoding under which unusable contents are remembered; its first number is counted up when this module
comes to decode what it refused, or the other way."""

COLOUR = "srgb-1"
"""The rules by which levels become 8-bit sRGB, in `colour.py`; the name is to change with them."""
USUAL_BITS = 16
"""The number of significant bits of levels that have more than 8, where nothing else is known of a set."""
MARGIN = 127
"""The level of the margins that `pad` leaves, in all three colours: the middle, which networks scale to about nought.

That is what their own convolutions put around an image. On 1,500 clothing photos, margins of 0, 127 and 255 give
cross-validated log losses of 0.318, 0.322 and 0.313 nats."""
Resize = Literal[
    "reduce-bilinear-1",
    "pillow-nearest-1",
    "pillow-bilinear-1",
    "pillow-bicubic-1",
    "pillow-lanczos-1",
    "torchvision-bilinear-1",
    "torchvision-bicubic-1",
]
"""The arithmetic by which images are resized: quickstudy's own, or a filter of Pillow's.

By `pillow-…`, the middle of an image begins where transformers has it; by `torchvision-…`, where timm has it."""
RESIZES: tuple[Resize, ...] = get_args(Resize)
"""All ways to resize, quickstudy's own first; a name is to change with its arithmetic."""
OWN_RESIZE = RESIZES[0]
"""The name of quickstudy's own arithmetic, below."""
_FILTERS = {
    "pillow-nearest-1": Image.Resampling.NEAREST,
    "pillow-bilinear-1": Image.Resampling.BILINEAR,
    "pillow-bicubic-1": Image.Resampling.BICUBIC,
    "pillow-lanczos-1": Image.Resampling.LANCZOS,
    "torchvision-bilinear-1": Image.Resampling.BILINEAR,
    "torchvision-bicubic-1": Image.Resampling.BICUBIC,
}
_FAR = 20
_THUMBNAIL_QUALITY = 80
_JPEG = b"\xff\xd8"

Box = tuple[int, int, int, int]
"""A part of an image, in pixels: left, top, width and height."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How an image becomes a network's input: upright, made square as the fit says, and resized."""

    size: int
    """Side of the square that the network takes, in pixels."""
    crop: float = 1.0
    """Side of the centred square that is cut out, as a share of the image's shorter side."""

    bits: int = USUAL_BITS
    """Number of significant bits, 8 to 16, of levels that have more than 8 and whose file does not declare it.

    It is one for all images, of a model and the set it learned from: 12 for the pictures of many medical and industrial
    cameras, whose files have 16 bits a level of which the upper four are nought."""

    fit: Fit = "crop"
    """What becomes of images that are not square; see `fits.py`."""

    resize: Resize = OWN_RESIZE
    """The arithmetic by which images are resized."""

    def __post_init__(self) -> None:
        if not 8 <= self.bits <= 16:
            raise ValueError(f"bits is {self.bits}; expected 8 to 16")
        if self.fit not in FITS:
            raise ValueError(f"fit is {self.fit!r}; expected {', '.join(FITS[:-1])} or {FITS[-1]}")
        if self.fit != "crop" and self.crop != 1:
            raise ValueError(f"crop is {self.crop:g} with the fit '{self.fit}', which takes all; expected 1")
        if self.resize not in RESIZES:
            raise ValueError(f"resize is {self.resize!r}; expected {', '.join(RESIZES[:-1])} or {RESIZES[-1]}")

    @property
    def tiles(self) -> int:
        """Number of squares that an image makes, each a pass through the network."""
        return tiles_in(self.fit)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the input that an image makes: height, width and 3; several squares stand one above the other."""
        return self.tiles * self.size, self.size, 3

    def to_dict(self) -> dict[str, Any]:
        """Return all that decides the pixels, as JSON values."""
        named = {"size": self.size, "crop": self.crop, "resize": self.resize, "colour": COLOUR}
        # What is usual is left out, so that what was computed before there was a choice keeps its key.
        unusual = {"bits": self.bits} if self.bits != USUAL_BITS else {}
        return {**named, **unusual, **({"fit": self.fit} if self.fit != "crop" else {})}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> InputSpec:
        """Make an input specification of what `to_dict` gave, of this version or one before it managed colours.

        Raises:
            ValueError: the values are of another version of quickstudy.
        """
        spec = InputSpec(
            size=int(values["size"]),
            crop=float(values["crop"]),
            bits=int(values.get("bits", USUAL_BITS)),
            fit=values.get("fit", "crop"),
            resize=values.get("resize", ""),
        )
        # Before colours were managed, nothing was said of them; ordinary JPEGs have the same pixels by both.
        if values not in (spec.to_dict(), {k: v for k, v in spec.to_dict().items() if k != "colour"}):
            raise ValueError(f"unknown input specification {values!r}")
        return spec


def decode(data: bytes, spec: InputSpec, *, most_pixels: int = MOST_PIXELS) -> Pixels:
    """Decode an image file's bytes to upright 8-bit sRGB pixels.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where what the network sees stays no smaller than what it takes:
    libjpeg then skips most of the work and gives the mean of each 2×2, 4×4 or 8×8 pixels, as `to_input` would (on
    photos within 1 of 255 levels on average, where the sides divide). Alpha is laid over white, more bits become 8,
    profiles are applied, and of several frames the first is taken. An image whose header announces more than
    `most_pixels` is refused.

    Raises:
        UnusableImageError: the bytes are no image that can be used; the message is the reason.
    """
    if not data:
        raise UnusableImageError("empty file (0 bytes)")
    if data.startswith(_JPEG):
        pixels, orientation = decode_jpeg(data, lambda size: _largest_factor(size, spec), most_pixels)
        return _upright(pixels, orientation)
    opened = open_image(data, most_pixels)
    return _upright(opened.decode(spec.bits), opened.orientation)


def to_input(pixels: Pixels, spec: InputSpec, box: Box | None = None) -> Pixels:
    """Make the network's input of an image, of the shape `spec.shape`.

    Args:
        pixels: height×width×3, as `decode` gives it.
        spec: the network's input.
        box: the part of the image that is shown, of the proportions of `frame_of`, which is shown if left out.
    """
    if spec.resize != OWN_RESIZE and spec.fit == "crop" and box is None:
        return _middle(pixels, spec)
    left, top, width, height = box or frame_of(pixels.shape, spec)
    shown = pixels[top : top + height, left : left + width]
    if spec.fit == "pad":
        return _padded(shown, spec)
    if spec.tiles == 1:
        return _resized(shown, spec.size, spec.size, spec.resize)
    side, last = min(height, width), spec.tiles - 1
    starts = [(number * (height - side) // last, number * (width - side) // last) for number in range(spec.tiles)]
    squares = [shown[upper : upper + side, first : first + side] for upper, first in starts]
    return np.concatenate([_resized(square, spec.size, spec.size, spec.resize) for square in squares])


def _middle(pixels: Pixels, spec: InputSpec) -> Pixels:
    """Bring the shorter side to `size / crop` by a filter of Pillow's and take the middle, to their pixel and bit.

    So do transformers' image processors (`get_resize_output_image_size`, `center_crop`): sides are rounded down, and so
    is where the middle begins; torchvision's `CenterCrop` rounds that to the nearest pixel, halves to the even one.
    """
    shorter = min(pixels.shape[:2])
    # What lies many widths away is cut off before: a line of pixels would become an image of gigabytes.
    rows, columns = (
        slice(max(0, (side - _FAR * shorter) // 2), (side + _FAR * shorter) // 2) for side in pixels.shape[:2]
    )
    pixels = pixels[rows, columns]
    edge = round(spec.size / spec.crop)
    height, width = (edge * side // shorter for side in pixels.shape[:2])
    # Whole and then cut: by Pillow's `box`, whose sides are of single precision, some pixels come out one level apart.
    whole = _resized(pixels, height, width, spec.resize)
    rounded = round if spec.resize.startswith("torchvision") else math.floor
    top, left = (rounded((side - spec.size) / 2) for side in (height, width))
    return np.ascontiguousarray(whole[top : top + spec.size, left : left + spec.size])


def frame_of(shape: tuple[int, ...], spec: InputSpec) -> Box:
    """Find the part that the network sees of pixels of this shape (height, width, 3): a centred square, or all."""
    height, width = shape[:2]
    if spec.fit != "crop":
        return 0, 0, width, height
    side = max(1, round(min(width, height) * spec.crop))
    return (width - side) // 2, (height - side) // 2, side, side


def _padded(pixels: Pixels, spec: InputSpec) -> Pixels:
    """Bring the longer side to the input's and lay the image in the middle of a square of grey."""
    size = spec.size
    longer = max(pixels.shape[:2])
    height, width = (max(1, (2 * side * size + longer) // (2 * longer)) for side in pixels.shape[:2])
    square = np.full((size, size, 3), MARGIN, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = _resized(pixels, height, width, spec.resize)
    return square


def _resized(pixels: Pixels, height: int, width: int, resize: Resize) -> Pixels:
    """Resize to height×width×3 by a filter of Pillow's, or each side halved as often as it takes, then bilinearly."""
    if resize != OWN_RESIZE:
        return _by_pillow(pixels, height, width, _FILTERS[resize])
    factors = [_halvings(side, target) for side, target in zip(pixels.shape[:2], (height, width), strict=True)]
    if max(factors) > 1:
        # What does not divide goes, evenly from both ends, so that every pixel is the mean of equally many.
        rows, columns = (
            slice(side % factor // 2, side % factor // 2 + side - side % factor)
            for side, factor in zip(pixels.shape[:2], factors, strict=True)
        )
        whole = Image.fromarray(np.ascontiguousarray(pixels[rows, columns]))
        pixels = np.asarray(whole.reduce((factors[1], factors[0])))
    return resize_bilinear(pixels, height, width)


def _by_pillow(pixels: Pixels, height: int, width: int, resampling: Image.Resampling) -> Pixels:
    """Resize by a filter of Pillow's, one side and then the other, in the order that Pillow has since version 13.

    What lies between the two is rounded and clipped to levels, so the order is seen in the result. Before that version,
    the width always came first; here, a name stands for one arithmetic under all of them.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    height_first = image.height > height and image.height - height > 2 * (image.width - width)
    between = (image.width, height) if height_first else (width, image.height)
    return np.asarray(image.resize(between, resampling).resize((width, height), resampling))


def _halvings(side: int, target: int) -> int:
    """Return the largest power of two, as libjpeg has them, that a side can be divided by without falling below."""
    return 1 << max((side // target).bit_length() - 1, 0)


def resize_bilinear(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize to height×width×3, bilinearly between pixel centres, in fixed point with 8-bit weights.

    Rows are blended first, then columns, each rounded to the nearest level.
    """
    if pixels.shape[:2] == (height, width):
        return np.ascontiguousarray(pixels)
    upper, lower, upper_weight, lower_weight = _taps(len(pixels), height)
    blended = np.multiply(pixels[upper], upper_weight[:, None, None], dtype=np.uint16)
    blended += np.multiply(pixels[lower], lower_weight[:, None, None], dtype=np.uint16)
    blended += 128
    blended >>= 8
    blended = blended.reshape(height, -1)
    left, right, left_weight, right_weight = _channel_taps(pixels.shape[1], width)
    result = blended.take(left, axis=1, mode="wrap")  # nothing is out of range, and this mode is the fastest
    result *= left_weight
    other = blended.take(right, axis=1, mode="wrap")
    other *= right_weight
    result += other
    result += 128
    result >>= 8
    return result.astype(np.uint8).reshape(height, width, 3)


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


def _largest_factor(sides: tuple[int, int], spec: InputSpec) -> int:
    """Return the largest of libjpeg's fast reductions that leaves the image no smaller than the network's input.

    There is none before Pillow's filters, which weigh all pixels. With margins it is the longer side that becomes the
    input's; else it is the shorter one that must not fall below.
    """
    if spec.resize != OWN_RESIZE:
        return 1
    side = max(sides) if spec.fit == "pad" else min(sides) * spec.crop
    return next(factor for factor in (8, 4, 2, 1) if factor == 1 or side >= spec.size * factor)


def size_of(data: bytes) -> tuple[int, int]:
    """Return width and height of an image file as it is shown, upright, from its header.

    Raises:
        UnusableImageError: as `decode`.
    """
    if not data:
        raise UnusableImageError("empty file (0 bytes)")
    if data.startswith(_JPEG):
        jpeg = read_jpeg(data)
        width, height, orientation = jpeg.frame.width, jpeg.frame.height, jpeg.orientation
        require_few_pixels((width, height), MOST_PIXELS)
    else:
        opened = open_image(data, MOST_PIXELS)
        (width, height), orientation = opened.image.size, opened.orientation
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def bits_used(data: bytes) -> int:
    """Count the bits up to the highest that is set in an image file's levels; 0 where they have 8, or are floats.

    Raises:
        UnusableImageError: as `decode`.
    """
    return 0 if not data or data.startswith(_JPEG) else open_image(data, MOST_PIXELS).bits_used()


_BROKEN = ("truncated", "damaged", "empty file", "not an image", "an HTML page")


def is_broken(reason: str) -> bool:
    """Say whether the reason why a file cannot be used means that no program can show it.

    What is whole, but of a kind or size that is not read here, is not broken.
    """
    return reason.startswith(_BROKEN) and "not supported" not in reason


def to_pixels(image: Image.Image, *, bits: int = USUAL_BITS) -> Pixels:
    """Turn a loaded Pillow image into upright 8-bit sRGB pixels, as `decode` does for all modes and orientations."""
    return _upright(to_rgb(image, bits=bits), orientation_of(image))


def encode_thumbnail(pixels: Pixels) -> bytes:
    """Encode a small image as the bytes of a JPEG file to look at."""
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_THUMBNAIL_QUALITY)
    return encoded


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn or mirror pixels as the EXIF tag says (1 to 8; anything else is taken for 1)."""
    turns = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
    if orientation not in turns:
        return pixels
    quarter_turns, mirror = turns[orientation]
    turned = np.rot90(pixels, quarter_turns)
    return np.ascontiguousarray(turned[:, ::-1] if mirror else turned)
