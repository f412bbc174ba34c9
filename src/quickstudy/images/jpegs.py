"""JPEGs are decoded here, and judged: what is missing or wrong in the coded data is found, what is superfluous passes.

simplejpeg hands the file to libjpeg-turbo, which notes in its warnings where coded data end before the last row, hold a
code that their tables do not have, or go on behind the last row; it stops at the first of them, and only then is the
file looked at closely. That way an ordinary photo costs nothing more. What is detected:

- coded data that end early, in any scan, whether an end marker follows or not, and scans that are missing: truncated;
- data in the middle that are gone or overwritten, by zeros for example: the codes behind them no longer lead to the
  last block where the data end, so that too few or too many are left. More than three bytes that are left over, and
  are not one value repeated, are taken for that;
- codes that no table has, restarts out of order, markers that belong elsewhere, tables that are missing.

A missing end marker, padding, garbage between segments and anything behind the end cost nothing. What cannot be told:
codes that were changed to others of the same length, since a JPEG has no checksum; a flipped bit may shift the
brightness of all blocks behind it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from quickstudy.errors import UnusableImageError
from quickstudy.images.colour import Pixels, is_managed, managed
from quickstudy.images.structure import Jpeg, essential, read_jpeg, require_few_pixels

_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_SPARE_BYTES = 3
"""The most bytes of any value that may be left over at the end of a scan; some cameras write one or two."""
_LOST_SHARE = 1 / 32
"""Share of the rows, the last ones, without any data from which on a scan is called truncated, not damaged."""
_ARITHMETIC = frozenset({0xC9, 0xCA})

_Any = NDArray[np.uint8]


def decode_jpeg(data: bytes, factor_for: Callable[[tuple[int, int]], int], most_pixels: int) -> tuple[Pixels, int]:
    """Decode a JPEG to sRGB pixels as they are stored, and say how they are to be turned: the orientation, 1 to 8.

    Args:
        data: the file's bytes.
        factor_for: chooses by width and height by how much libjpeg reduces the image: 1, 2, 4 or 8.
        most_pixels: images whose header announces more are refused.

    Raises:
        UnusableImageError: the image is not whole; the message is the reason.
    """
    jpeg = read_jpeg(data)
    frame = jpeg.frame
    require_few_pixels((frame.width, frame.height), most_pixels)
    if not jpeg.one_scan and (missing := jpeg.scans().missing):
        raise UnusableImageError(f"truncated ({missing})")
    colours = {1: "GRAY", 4: "CMYK"}.get(len(frame.components), "RGB")
    if colours == "GRAY" and not is_managed(jpeg.profile, "L"):
        colours = "RGB"
    factor = factor_for((frame.width, frame.height))
    # Rounded up, as libjpeg does.
    size = (-(-frame.height // factor), -(-frame.width // factor))
    pixels: _Any | Image.Image
    if jpeg.mended:
        pixels = _decode_mended(jpeg, colours, size)
    else:
        try:
            pixels = _decode(data, colours, size)
        except ValueError as error:
            pixels = _decode_mended(jpeg, colours, size, str(error))
    if colours == "CMYK":  # whatever the markers say, all programs write the inverted levels that Adobe's do
        pixels = Image.fromarray(255 - pixels, "CMYK") if isinstance(pixels, np.ndarray) else pixels
    elif isinstance(pixels, np.ndarray):
        if colours == "RGB" and not is_managed(jpeg.profile, "RGB"):
            return pixels, jpeg.orientation
        pixels = Image.fromarray(pixels if colours == "RGB" else pixels[..., 0])
    return managed(pixels, jpeg.profile), jpeg.orientation


def _decode(data: bytes, colours: str, size: tuple[int, int]) -> _Any:
    decoded: _Any = simplejpeg.decode_jpeg(data, colorspace=colours, min_height=size[0], min_width=size[1])
    return decoded


def _decode_mended(jpeg: Jpeg, colours: str, size: tuple[int, int], problem: str = "") -> _Any | Image.Image:
    """Decode an image anew from the parts that make its pixels, where libjpeg finds the file wanting."""
    scans, cut, tried = jpeg.scans(), dict[int, int](), set[int]()
    if scans.missing:
        raise UnusableImageError(f"truncated ({scans.missing})")
    for _ in range(2 * len(scans.coded) + 2):
        if "subsampling" in problem:
            return _decode_unusual(jpeg, size)
        file = essential(jpeg, cut=cut)
        try:
            return _decode(file, colours, size)
        except ValueError as error:
            problem = str(error)
        left_over = _LEFT_OVER.search(problem)
        if left_over is None:
            if not cut or "premature" not in problem:
                break
            cut.pop(max(cut))  # that scan was whole before
            continue
        place = _padded_scan(jpeg, int(left_over[1]), int(left_over[2], 16), tried)
        if place is None:
            break
        tried.add(place)
        cut[place] = int(left_over[1])
    raise UnusableImageError(_why(jpeg, file, problem))


def _padded_scan(jpeg: Jpeg, count: int, marker: int, tried: set[int]) -> int | None:
    """Find the scan at whose end, in front of this marker, so many bytes may be left over; None where there is none."""
    if 0xD0 <= marker <= 0xD7:
        return None
    for number, (begin, end) in enumerate(jpeg.scans().coded):
        tail = jpeg.data[max(begin, end - count) : end]
        if number not in tried and (count <= _SPARE_BYTES or tail == tail[:1] * count):
            return number
    return None


def _decode_unusual(jpeg: Jpeg, size: tuple[int, int]) -> Image.Image:
    """Decode an image in Pillow whose colours are sampled as simplejpeg does not know it.

    Pillow keeps libjpeg's warnings to itself, but says when it waits for more data: given zeros in place of the end
    marker, it has enough of them only where all rows are there.
    """
    file = essential(jpeg)
    if jpeg.one_scan:
        file = file[:-2] + bytes(64)
    try:
        image = Image.open(io.BytesIO(file), formats=("JPEG",))
        image.draft(None, (size[1], size[0]))
        image.load()
    except Exception as error:  # Pillow raises many kinds
        raise UnusableImageError(
            "truncated (the scan ends before its last row)" if "truncated" in str(error) else "damaged (its scan)"
        ) from None
    return image


def _why(jpeg: Jpeg, file: bytes, problem: str) -> str:
    """Say what is wrong in the words of the format."""
    if "premature end" in problem.lower():
        if jpeg.progressive:
            return "truncated (one of the scans ends before its last block)"
        share = _share_of_rows(file)
        if share < 1 - _LOST_SHARE:
            return f"truncated (the scan ends after {100 * share:.0f} % of the rows)"
        if jpeg.scans().has_end:
            return "damaged (data are missing within the scan, which ends before its last block)"
        return "truncated (the file ends before the last block of its scan)"
    if left_over := _LEFT_OVER.search(problem):
        return (
            f"damaged (the scan's data lost their place: {int(left_over[1]):,} bytes of them are left over in front of "
            f"the marker FF {left_over[2].upper()})"
        )
    if "bad huffman code" in problem.lower():
        return "damaged (the scan holds a code that its Huffman tables do not have)"
    if "instead of RST" in problem:
        return "damaged (the restart markers of the scan are out of order)"
    if "marker type" in problem:
        return "damaged (the scan holds a marker that does not belong there)"
    if "table" in problem.lower():
        return "damaged (a table that the scan needs is missing or broken)"
    if jpeg.frame.marker in _ARITHMETIC:
        return "a JPEG in arithmetic coding, which is not supported; convert it to an ordinary JPEG or PNG"
    return "damaged (the headers of frame and scans contradict each other)"


def _share_of_rows(file: bytes) -> float:
    """Measure the share of the rows before those at the end that are all of one colour, as nothing came for them."""
    try:
        height, *_ = simplejpeg.decode_jpeg_header(file)
        pixels: _Any = simplejpeg.decode_jpeg(file, "GRAY", min_height=-(-height // 8), strict=False)
    except ValueError:
        return 0.0
    rows = pixels.reshape(len(pixels), -1)
    blank = (rows == rows[-1, -1]).all(axis=1)
    there = np.flatnonzero(~blank)
    return (int(there[-1]) + 1) / len(rows) if len(there) else 0.0
