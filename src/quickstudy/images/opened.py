"""Images of all formats but JPEG are opened here, in Pillow, of what the walk over their structure has left.

What is wrong with a file is said in the words of its format. An image comes with what decides its pixels besides:
orientation, profile, and the largest value where the file declares fewer bits than its levels take.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from quickstudy.errors import UnusableImageError
from quickstudy.images import tags
from quickstudy.images.chunks import read_png, read_webp
from quickstudy.images.colour import Pixels, is_deep, lower_bytes, to_rgb
from quickstudy.images.kinds import HEIC, PLUGINS, SNIFFED_BYTES, format_of, has_heic, is_read, why_no_image, why_unread
from quickstudy.images.structure import require_few_pixels

_TIFF_TAGS = (
    tags.NEW_SUBFILE_TYPE,
    tags.BITS,
    tags.ORIENTATION,
    tags.SUB_IFDS,
    tags.DNG_VERSION,
    tags.PROFILE,
)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An image whose header has been read, and what besides its pixels decides how it is shown."""

    name: str
    """Name of its format."""
    file: bytes
    """What Pillow reads of the file."""
    image: Image.Image
    """The image, not loaded yet."""
    orientation: int
    """How it is to be turned, 1 to 8."""
    profile: bytes
    """Colour profile; empty where there is none."""
    largest: float | None
    """Value of white, where the file declares fewer bits than its levels take."""
    deep: bool
    """Whether it has 16 bits a colour, of which Pillow keeps the upper 8."""

    @property
    def counts_bits(self) -> bool:
        """Whether its levels may use fewer bits than they have; Pillow has scaled those of other formats already."""
        return self.name in ("PNG", "TIFF") and self.largest is None

    def decode(self, bits: int) -> Pixels:
        """Decode to sRGB pixels as they are stored; `bits` are significant of levels of more than 8 bits.

        Raises:
            UnusableImageError: the pixels are not whole; the message is the reason.
        """
        bits = bits if self.counts_bits else 16
        try:
            self.image.load()
            if self.deep and bits < 16:
                lower = lower_bytes(_open(self.name, self.file))
                return to_rgb(_shifted(np.asarray(self.image), lower, bits), profile=self.profile)
            return to_rgb(self.image, bits=bits, largest=self.largest, profile=self.profile)
        except Exception as error:  # decoders raise many kinds on damaged pixels
            raise UnusableImageError(self._why(error)) from None

    def bits_used(self) -> int:
        """Count the bits up to the highest that is set in any level; 0 for an image of 8 bits or of floats.

        Raises:
            UnusableImageError: the pixels are not whole; the message is the reason.
        """
        if not self.counts_bits:
            return 0
        try:
            if self.image.mode.startswith("I"):
                return max(int(np.asarray(self.image).max()), 1).bit_length()
            if self.deep:
                upper = int(np.asarray(self.image)[..., :3].max())
                if upper:
                    return 8 + upper.bit_length()
                return max(int(lower_bytes(_open(self.name, self.file))[..., :3].max()), 1).bit_length()
        except Exception as error:  # as above
            raise UnusableImageError(self._why(error)) from None
        return 0

    def _why(self, error: Exception) -> str:
        if isinstance(error, UnusableImageError):
            return str(error)
        if isinstance(error, MemoryError):
            return f"too large to decode (a {self.name} of {self.image.width}x{self.image.height} pixels)"
        if "truncated" in str(error) or isinstance(error, EOFError):
            return f"truncated (the data of the {self.name} end before its last row)"
        return (
            f"damaged (the data of the {self.name} do not decode to its {self.image.width}x{self.image.height} pixels)"
        )


def _shifted(upper: Pixels, lower: Pixels, bits: int) -> Image.Image:
    levels = upper.astype(np.uint16) << 8 | lower
    return Image.fromarray(np.minimum(levels >> (bits - 8), 255).astype(np.uint8))


def open_image(data: bytes, most_pixels: int) -> Opened:
    """Read the header of an image file of any format but JPEG.

    Raises:
        UnusableImageError: it is no image, of a format that is not read, broken, or has too many pixels.
    """
    start = data[:SNIFFED_BYTES]
    name = format_of(start)
    if name is None or name not in PLUGINS:
        raise UnusableImageError(why_no_image(data[:512]))
    if not is_read(name):
        raise UnusableImageError(why_unread(name))
    file, orientation, profile, found = data, 1, None, None
    if name in ("PNG", "WebP"):
        chunks = read_png(data, most_pixels) if name == "PNG" else read_webp(data, most_pixels)
        file, orientation, profile = chunks.file, chunks.orientation, chunks.profile
    elif name == "TIFF":
        found = tags.read_tags(data, _TIFF_TAGS)
        _refuse_raw(found)
        orientation = tags.orientation_in(found)
        file, profile = tags.essential_tiff(data), bytes(int(value) & 255 for value in found.get(tags.PROFILE, ()))
    image = _open(name, file)
    require_few_pixels(image.size, most_pixels)
    if profile is None:
        embedded = image.info.get("icc_profile")
        profile = embedded if isinstance(embedded, bytes) else b""
    if name == "AVIF":
        orientation = orientation_of(image)
    declared = found.get(tags.BITS, ()) if found else ()
    return Opened(
        name=name,
        file=file,
        image=image,
        orientation=orientation,
        profile=profile,
        largest=2 ** declared[0] - 1 if declared and image.mode.startswith("I") and 8 < declared[0] < 16 else None,
        deep=image.mode in ("RGB", "RGBA") and is_deep(image),
    )


def _refuse_raw(found: tags.Tags) -> None:
    if tags.DNG_VERSION in found:
        raise UnusableImageError(why_unread("DNG"))
    if tags.SUB_IFDS in found and int(found.get(tags.NEW_SUBFILE_TYPE, (0,))[0]) & 1:
        raise UnusableImageError("a raw photo, of which only the preview can be read; export it as JPEG or PNG")


def _open(name: str, file: bytes) -> Image.Image:
    if name in HEIC and has_heic():
        import pillow_heif

        pillow_heif.register_heif_opener()
    try:
        return Image.open(io.BytesIO(file), formats=(PLUGINS[name],))
    except Image.DecompressionBombError:
        raise UnusableImageError("too many pixels (more than any image that is decoded)") from None
    except UnidentifiedImageError:
        raise UnusableImageError(
            f"damaged header (it begins as {name} does, but what follows is broken or of a kind that is not supported)"
        ) from None
    except Exception as error:  # decoders raise many kinds on damaged headers
        what = "ends early" if isinstance(error, EOFError) or "truncated" in str(error).lower() else "is broken"
        raise UnusableImageError(f"damaged header (the header of the {name} {what})") from None


def orientation_of(image: Image.Image) -> int:
    """Return the orientation, 1 to 8, of an image that Pillow has opened; EXIF data that cannot be read say nothing."""
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        return tags.exif_orientation(exif)
    try:
        value = image.getexif().get(tags.ORIENTATION)
    except Exception:  # Pillow's parser raises many kinds
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
