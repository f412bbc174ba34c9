"""Cropping, reduction and resizing against slow versions that say what is meant; JPEG reduction against block means."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quickstudy.images.decoding import (
    OWN_RESIZE,
    RESIZES,
    InputSpec,
    Pixels,
    Resize,
    decode,
    frame_of,
    resize_bilinear,
    to_input,
)

FULL_SIZE = InputSpec(size=100_000)
"""So large that no JPEG is reduced."""


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (height, width, 3), np.uint8)


def smooth_photo(width: int, height: int) -> Image.Image:
    """Waves of many lengths, long ones strongest, and a little grain: the spectrum of photos, near enough."""
    draw = np.random.Generator(np.random.PCG64(width))
    rows, columns = np.mgrid[0:height, 0:width] / max(width, height)
    values = np.zeros((height, width, 3))
    for channel in range(3):
        for _ in range(8):
            across, down = draw.normal(0, 6, 2)
            wave = np.cos(2 * np.pi * (across * columns + down * rows + draw.uniform()))
            values[..., channel] += wave / (1 + math.hypot(across, down))
    values = (values - values.min()) / np.ptp(values) * 230 + 10 + draw.normal(0, 2, values.shape)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def float_resize(pixels: Pixels, size: int) -> np.ndarray:
    """Bilinear between pixel centres in floating point, one output pixel after the other."""
    length = len(pixels)
    result = np.zeros((size, size, 3))
    for row in range(size):
        for column in range(size):
            y = min(max((row + 0.5) * length / size - 0.5, 0), length - 1)
            x = min(max((column + 0.5) * length / size - 0.5, 0), length - 1)
            top, left = math.floor(y), math.floor(x)
            below, right = min(top + 1, length - 1), min(left + 1, length - 1)
            upper = pixels[top, left] * (1 - (x - left)) + pixels[top, right] * (x - left)
            lower = pixels[below, left] * (1 - (x - left)) + pixels[below, right] * (x - left)
            result[row, column] = upper * (1 - (y - top)) + lower * (y - top)
    return result


def integer_resize(line: list[int], size: int) -> list[int]:
    """One line of values, resized in whole numbers: the arithmetic that "reduce-bilinear-1" names."""
    result = []
    for place in range(size):
        position = min(max((place + 0.5) * len(line) / size - 0.5, 0), len(line) - 1)
        lower = min(math.floor(position), max(len(line) - 2, 0))
        weight = round((position - lower) * 256)
        upper = min(lower + 1, len(line) - 1)
        result.append((line[lower] * (256 - weight) + line[upper] * weight + 128) // 256)
    return result


SIDES = [(1, 4), (2, 3), (3, 7), (7, 3), (20, 13), (13, 20), (24, 25), (25, 24), (31, 16), (32, 16), (33, 17)]


@pytest.mark.parametrize(("side", "size"), SIDES)
def test_resizing_is_bilinear_to_within_a_level(side: int, size: int) -> None:
    pixels = noise(side, side)
    assert (
        abs(resize_bilinear(pixels, size, size) - float_resize(pixels, size)).max() <= 1.5
    )  # 1 level, and rounding to it


@pytest.mark.parametrize(("side", "size"), SIDES)
def test_resizing_is_this_fixed_point_arithmetic(side: int, size: int) -> None:
    pixels = noise(side, side).astype(int)
    for channel in range(3):
        columns = [integer_resize(pixels[:, column, channel].tolist(), size) for column in range(side)]
        rows = [integer_resize([column[row] for column in columns], size) for row in range(size)]
        np.testing.assert_array_equal(resize_bilinear(pixels.astype(np.uint8), size, size)[..., channel], rows)


def test_resizing_by_hand() -> None:
    grey = np.repeat(np.array([[0, 100], [200, 255]], np.uint8)[..., None], 3, axis=-1)
    # At thirds of a 2-pixel side the places are -1/6 → 0, 1/2 and 7/6 → 1.
    expected = [[0, 50, 100], [100, 139, 178], [200, 228, 255]]  # 127.5 + 50 = 177.5, rounded up first: 178
    assert resize_bilinear(grey, 3, 3)[..., 1].tolist() == expected


@given(st.integers(0, 255), st.integers(1, 40), st.integers(1, 40))
def test_a_plain_colour_stays_what_it_is(level: int, side: int, size: int) -> None:
    resized = resize_bilinear(np.full((side, side, 3), level, np.uint8), size, size)
    assert resized.shape == (size, size, 3)
    assert (resized == level).all()


def test_white_does_not_overflow() -> None:
    checks = np.where(np.indices((300, 300)).sum(axis=0)[..., None] % 2, 255, 254).astype(np.uint8).repeat(3, axis=-1)
    assert resize_bilinear(checks, 256, 256).min() >= 254


@pytest.mark.parametrize("side", [255, 256, 257, 511, 512, 513, 767, 768, 1000])
def test_reduction_takes_means_of_whole_blocks_and_drops_the_rest_at_both_ends(side: int) -> None:
    size = 64
    pixels = noise(side, side)
    factor = 1 << ((side // size).bit_length() - 1)
    rest = side % factor
    kept = pixels[rest // 2 : rest // 2 + side - rest, rest // 2 : rest // 2 + side - rest].astype(float)
    blocks = kept.reshape(side // factor, factor, side // factor, factor, 3).mean(axis=(1, 3))
    expected = float_resize(blocks, size)
    found = to_input(pixels, InputSpec(size=size)).astype(float)
    # Means rounded, rows rounded, columns rounded, weights rounded to 1/256: less than 2 levels together.
    assert abs(found - expected).max() < 2
    assert abs(found - expected).mean() < 0.5


@pytest.mark.parametrize("side", [100, 255, 256])
def test_nothing_is_reduced_below_twice_the_target(side: int) -> None:
    pixels = noise(side, side)
    np.testing.assert_array_equal(to_input(pixels, InputSpec(size=129)), resize_bilinear(pixels, 129, 129))


def test_twice_the_target_is_the_mean_of_four() -> None:
    pixels = noise(512, 512)
    means = pixels.reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))
    assert abs(to_input(pixels, InputSpec(size=256)) - means).max() <= 0.5


@pytest.mark.parametrize(
    ("height", "width", "crop", "expected"),
    [
        (300, 400, 1.0, (50, 0, 300)),
        (401, 300, 1.0, (0, 50, 300)),
        (200, 200, 0.875, (12, 12, 175)),
        (1, 1000, 1.0, (499, 0, 1)),
        (1, 1, 0.1, (0, 0, 1)),
        (3, 3, 0.01, (1, 1, 1)),
    ],
)
def test_the_square_is_the_middle_of_the_image(
    height: int, width: int, crop: float, expected: tuple[int, int, int]
) -> None:
    left, top, side = expected
    assert frame_of((height, width, 3), InputSpec(size=10, crop=crop)) == (left, top, side, side)


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (1, 1000), (1000, 1), (2, 2), (255, 255), (256, 256), (257, 257), (511, 300), (512, 512), (300, 2000)],
)
def test_any_size_fits(height: int, width: int) -> None:
    pixels = noise(height, width)
    fitted = to_input(pixels, InputSpec(size=256))
    assert (fitted.shape, fitted.dtype, fitted.flags.c_contiguous) == ((256, 256, 3), np.uint8, True)
    if min(height, width) == 1:
        assert (fitted == pixels[height // 2 - (height > 1), width // 2 - (width > 1)]).all()
    if (height, width) == (256, 256):
        np.testing.assert_array_equal(fitted, pixels)


def test_a_box_cuts_out_that_square() -> None:
    pixels = noise(50, 80)
    np.testing.assert_array_equal(to_input(pixels, InputSpec(size=20), (30, 10, 20, 20)), pixels[10:30, 30:50])


def test_the_image_given_is_left_as_it_is() -> None:
    pixels = noise(64, 64)
    before = pixels.copy()
    for size in (16, 64, 100):
        to_input(pixels, InputSpec(size=size))
    np.testing.assert_array_equal(pixels, before)


def block_means(pixels: Pixels, factor: int) -> np.ndarray:
    height, width = (side // factor for side in pixels.shape[:2])
    whole = pixels[: height * factor, : width * factor].astype(float)
    return whole.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}], ids=str)
def test_a_reduced_jpeg_has_the_means_of_its_blocks(factor: int, options: dict[str, Any]) -> None:
    """Measured: 0.20 to 0.51 of 255 levels on average."""
    data = jpeg(smooth_photo(1024, 800), **options)
    reduced = decode(data, InputSpec(size=800 // factor))
    assert reduced.shape == (800 // factor, 1024 // factor, 3)
    assert abs(reduced - block_means(decode(data, FULL_SIZE), factor)).mean() < 0.7


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_reduced_real_photos_have_the_means_of_their_blocks(test_data: Path, factor: int) -> None:
    """Measured on 95 clothing photos: 0.40, 0.43 and 0.38 on average for 2, 4 and 8; the worst photo 0.76."""
    differences = []
    for path in sorted((test_data / "clothing" / "test").glob("*/*.jpg"))[::20]:
        data = path.read_bytes()
        full = decode(data, FULL_SIZE)
        means = block_means(full, factor)
        reduced = decode(data, InputSpec(size=min(full.shape[:2]) // factor))[: len(means), : means.shape[1]]
        differences.append(abs(reduced - means).mean())
    assert len(differences) > 10
    assert max(differences) < 1
    assert np.mean(differences) < 0.5


def test_a_photo_reduced_while_decoding_fits_like_one_reduced_afterwards() -> None:
    """Where both take the same means: 1,200 pixels are 4 times 300, so both resize 300 to 256. Measured: 0.27."""
    data = jpeg(smooth_photo(1600, 1200))
    spec = InputSpec(size=256)
    assert decode(data, spec).shape == (300, 400, 3)
    difference = to_input(decode(data, spec), spec).astype(int) - to_input(decode(data, FULL_SIZE), spec)
    assert abs(difference).mean() < 0.5
    assert abs(difference).max() <= 4


@pytest.mark.parametrize(
    ("size", "crop", "shape"),
    [
        (100, 1.0, (150, 200)),  # 600 = 4 × 150 ≥ 100, 8 × 75 < 100
        (75, 1.0, (75, 100)),
        (76, 1.0, (150, 200)),
        (300, 1.0, (300, 400)),
        (301, 1.0, (600, 800)),
        (300, 0.875, (600, 800)),  # the square has only 525 pixels
        (262, 0.875, (300, 400)),
        (5000, 1.0, (600, 800)),
    ],
)
def test_a_jpeg_is_reduced_as_long_as_the_square_keeps_the_networks_size(
    size: int, crop: float, shape: tuple[int, int]
) -> None:
    data = jpeg(Image.fromarray(noise(600, 800)))
    assert decode(data, InputSpec(size=size, crop=crop)).shape == (*shape, 3)


def test_jpegs_decode_to_the_bit_as_pillow_does(test_data: Path) -> None:
    """The short way through libjpeg-turbo and Pillow's own way are the same decoder, at every reduction."""
    for path in sorted((test_data / "clothing" / "test").glob("*/*.jpg"))[::30]:
        data = path.read_bytes()
        for factor in (1, 2, 4, 8):
            image = Image.open(io.BytesIO(data))
            size = min(image.size) // factor
            image.draft(None, (image.width // factor, image.height // factor))
            np.testing.assert_array_equal(decode(data, InputSpec(size=size)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (17, 9), (100, 257), (513, 511), (1025, 640)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}], ids=str)
def test_synthetic_jpegs_decode_to_the_bit_as_pillow_does(size: tuple[int, int], options: dict[str, Any]) -> None:
    data = jpeg(Image.fromarray(noise(*size)), **options)
    image = Image.open(io.BytesIO(data))
    factor = next(factor for factor in (8, 4, 2, 1) if factor == 1 or min(size) >= 64 * factor)
    image.draft(None, (image.width // factor, image.height // factor))
    np.testing.assert_array_equal(decode(data, InputSpec(size=64)), np.asarray(image.convert("RGB")))


def test_a_grey_jpeg_decodes_to_the_bit_as_pillow_does() -> None:
    data = jpeg(Image.fromarray(noise(90, 120)).convert("L"))
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(data, InputSpec(size=64)), expected)


FILTERS = {name: Image.Resampling[name.split("-")[1].upper()] for name in RESIZES if name != OWN_RESIZE}


@pytest.mark.parametrize("resize", FILTERS)
@pytest.mark.parametrize(("width", "height"), [(90, 61), (61, 90), (50, 50), (40, 28), (20, 300)])
def test_pillows_filters_give_what_resizing_and_cropping_give_one_after_the_other(
    resize: Resize, width: int, height: int
) -> None:
    pixels = noise(height, width)
    scaled = [32 if side <= other else 32 * side // other for side, other in ((width, height), (height, width))]
    whole = np.asarray(Image.fromarray(pixels).resize(scaled, FILTERS[resize]))
    # Where transformers' center_crop begins, and torchvision's.
    ways = {"pillow": lambda rest: rest // 2, "torchvision": lambda rest: round(rest / 2.0)}
    left, top = (ways[resize.split("-")[0]](side - 28) for side in scaled)
    given = to_input(pixels, InputSpec(size=28, crop=28 / 32, resize=resize))
    np.testing.assert_array_equal(given, whole[top : top + 28, left : left + 28])


def test_a_line_of_pixels_does_not_become_gigabytes() -> None:
    line = noise(1, 60_000)
    middle = to_input(line[:, 29_990:30_010], InputSpec(size=32, resize="pillow-bicubic-1"))
    np.testing.assert_array_equal(to_input(line, InputSpec(size=32, resize="pillow-bicubic-1")), middle)


@pytest.mark.parametrize("resize", FILTERS)
def test_pillows_filters_with_other_fits_and_parts(resize: Resize) -> None:
    pixels = noise(30, 50)
    image = Image.fromarray(pixels)
    squashed = to_input(pixels, InputSpec(size=20, fit="squash", resize=resize))
    np.testing.assert_array_equal(squashed, np.asarray(image.resize((20, 20), FILTERS[resize])))
    padded = to_input(pixels, InputSpec(size=20, fit="pad", resize=resize))
    np.testing.assert_array_equal(padded[4:16], np.asarray(image.resize((20, 12), FILTERS[resize])))
    part = to_input(pixels, InputSpec(size=20, resize=resize), (5, 3, 25, 25))
    np.testing.assert_array_equal(part, np.asarray(image.crop((5, 3, 30, 28)).resize((20, 20), FILTERS[resize])))


@pytest.mark.parametrize(("height", "width", "height_first"), [(100, 40, True), (78, 49, False), (79, 49, True)])
def test_the_side_that_shrinks_much_more_comes_first(height: int, width: int, height_first: bool) -> None:
    """The sides are resized in the order that Pillow has since version 13, whichever is installed."""
    pixels = np.random.Generator(np.random.PCG64(3)).integers(0, 256, (height, width, 3), np.uint8)
    image, bicubic = Image.fromarray(pixels), Image.Resampling.BICUBIC
    between = (width, 20) if height_first else (20, height)
    expected = np.asarray(image.resize(between, bicubic).resize((20, 20), bicubic))
    found = to_input(pixels, InputSpec(size=20, fit="squash", resize="pillow-bicubic-1"))
    np.testing.assert_array_equal(found, expected)
    if int(PIL.__version__.partition(".")[0]) >= 13:
        np.testing.assert_array_equal(found, np.asarray(image.resize((20, 20), bicubic)))


def test_before_pillows_filters_jpegs_keep_all_their_pixels() -> None:
    data = jpeg(smooth_photo(400, 300))
    assert decode(data, InputSpec(size=20)).shape == (38, 50, 3)
    assert decode(data, InputSpec(size=20, resize="pillow-bicubic-1")).shape == (300, 400, 3)


def test_ways_to_resize_have_keys_of_their_own() -> None:
    specs = [InputSpec(size=20, resize=resize) for resize in RESIZES]
    assert len({str(spec.to_dict()) for spec in specs}) == len(RESIZES)
    assert [InputSpec.from_dict(spec.to_dict()) for spec in specs] == specs
    with pytest.raises(ValueError, match="nearest"):
        InputSpec(size=20, resize="nearest")  # type: ignore[arg-type]
