"""Colour as it is meant: any image that Pillow has opened becomes 8-bit sRGB, by rules that no single image decides.

A profile that is not sRGB's is applied (Little CMS, relative colorimetric with black point compensation). What a
profile is, its effect on a grid of colours tells, not its name, and is remembered by its bytes: an ordinary photo with
an sRGB profile pays for looking them up. A profile that is broken, or of another kind than the image, is as if there
were none.

Levels of more than 8 bits are divided by what the file declares, else by what the whole set was said to hold
(`InputSpec.bits`), never by an image's own largest value: two photos of one thing, one with a highlight, stay alike.
Floats run from 0, black, to 1, white, unless the file declares a largest sample. Alpha is laid over white.
"""

from __future__ import annotations

import functools
import io
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Pixels = NDArray[np.uint8]
"""An image as height×width×3 RGB values from 0 to 255."""

MOST_DIFFERENCE = 4
"""The most levels by which a profile may move a colour and still be taken for sRGB: there are many sRGB profiles, which
differ by rounding and in near black, and converting photos between them would cost time for nothing."""
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION


def to_rgb(image: Image.Image, *, bits: int = 16, largest: float | None = None, profile: bytes | None = None) -> Pixels:
    """Turn a loaded Pillow image of any mode into 8-bit sRGB pixels, as it is stored.

    Args:
        image: the image.
        bits: number of significant bits of levels that have more than 8, where the file does not declare it.
        largest: the value of white that the file declares, if it does.
        profile: the colour profile; that of `image.info` if left out, none if empty.
    """
    profile = _embedded(image) if profile is None else profile
    transparent = image.has_transparency_data
    if image.mode.startswith("I") or image.mode == "F":
        grey = levels(image, bits=bits, largest=largest)
        opaque = _opaque(image) if transparent else None
        pixels = managed(Image.fromarray(grey), profile)
        return pixels if opaque is None else np.where(opaque[..., None], pixels, np.uint8(255))
    if image.mode == "LAB":
        return np.asarray(ImageCms.applyTransform(image, _from_lab()))
    if transparent:
        layer = image.convert("RGBA")
        grey_profile = image.mode in ("L", "LA", "La", "1")
        flat = layer.convert("L") if grey_profile else layer.convert("RGB")
        coloured = Image.fromarray(managed(flat, profile))
        coloured.putalpha(layer.getchannel("A"))
        return np.asarray(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), coloured).convert("RGB"))
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return managed(image, profile)


def managed(image: Image.Image, profile: bytes) -> Pixels:
    """Turn an image of mode RGB, L or CMYK into sRGB pixels by its profile, where that is usable and not sRGB."""
    transform = _transform(profile, image.mode) if profile else None
    if transform is None:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return np.asarray(ImageCms.applyTransform(image, transform))


def is_managed(profile: bytes, mode: str) -> bool:
    """Say whether pixels of this mode (RGB, L or CMYK) change by this profile."""
    return bool(profile) and _transform(profile, mode) is not None


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Make the transform to sRGB; None where the profile cannot be used, or does next to nothing."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _SPACES.get(opened.profile.xcolor_space) != mode:
            return None
        transform = ImageCms.buildTransform(
            opened, _srgb(), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, flags=_FLAGS
        )
        if mode == "CMYK":
            return transform
        grid = _grid(mode)
        found = np.asarray(ImageCms.applyTransform(grid, transform), np.int16)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    plain = np.asarray(grid.convert("RGB"), np.int16)
    return transform if np.abs(found - plain).max() > MOST_DIFFERENCE else None


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@functools.cache
def _from_lab() -> ImageCms.ImageCmsTransform:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    return ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)


def _grid(mode: str) -> Image.Image:
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    colours = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    return Image.fromarray(np.ascontiguousarray(colours.reshape(27, 27, 3)))


def _embedded(image: Image.Image) -> bytes:
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) else b""


# Levels of more than 8 bits


def levels(image: Image.Image, *, bits: int = 16, largest: float | None = None) -> Pixels:
    """Turn a grey image of integers or floats into height×width levels from 0 to 255."""
    values = np.asarray(image)
    if image.mode == "F":
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.nan_to_num(values * np.float32(255 / (largest or 1)), nan=0.0, posinf=255, neginf=0)
        return np.clip(scaled, 0, 255).astype(np.uint8)
    if largest:
        bits = max(int(largest).bit_length(), 8)
    shifted: Pixels = np.clip(values.astype(np.int64) >> (bits - 8), 0, 255).astype(np.uint8)
    return shifted


def _opaque(image: Image.Image) -> NDArray[np.bool_] | None:
    """Say which pixels of a grey image are not of the one level that is transparent; None where that is not said."""
    transparent = image.info.get("transparency")
    return np.asarray(image) != transparent if isinstance(transparent, int) else None


_OTHER_ENDS = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGB;16N": f"RGB;16{'B' if sys.byteorder == 'little' else 'L'}",
    "RGBA;16N": f"RGBA;16{'B' if sys.byteorder == 'little' else 'L'}",
}
"""Pillow keeps the upper byte of a sample of 16 bits; told the other order of bytes, it keeps the lower one."""


def is_deep(image: Image.Image) -> bool:
    """Say whether an image, opened but not loaded, has 16 bits a colour, of which Pillow keeps the upper 8."""
    tiles: list[Any] = getattr(image, "tile", [])
    return bool(tiles) and all(_arguments(tile)[0] in _OTHER_ENDS for tile in tiles)


def lower_bytes(image: Image.Image) -> NDArray[np.uint8]:
    """Decode an image that is deep, opened but not loaded, to the lower bytes of its samples."""
    tiles = image.tile  # type: ignore[attr-defined]
    image.tile = [  # type: ignore[attr-defined]
        tile._replace(args=(other, *rest) if rest else other)
        for tile in tiles
        for mode, *rest in [_arguments(tile)]
        for other in [_OTHER_ENDS[mode]]
    ]
    return np.asarray(image)


def _arguments(tile: Any) -> tuple[Any, ...]:
    return tile.args if isinstance(tile.args, tuple) else (tile.args,)
