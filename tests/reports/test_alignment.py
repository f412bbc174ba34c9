"""Pictures are recognised through what copies go through, and told from others of their kind."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from drawn_photos import draw_photo
from quickstudy.reports.duplicates import AGREEMENT, SIDE, correlate


def picture(seed: int) -> Image.Image:
    """A scene of overlapping shapes of many sizes, different for each seed."""
    draws = np.random.Generator(np.random.PCG64(seed))
    image = Image.new("L", (400, 300), int(draws.integers(100, 200)))
    pen = ImageDraw.Draw(image)
    for size in (160, 120, 90, 60, 60, 40, 40, 30, 30, 20):
        left, top = int(draws.integers(-20, 360)), int(draws.integers(-20, 260))
        shape = pen.ellipse if draws.random() < 0.5 else pen.rectangle
        shape((left, top, left + size, top + int(size * draws.uniform(0.4, 1.4))), fill=int(draws.integers(0, 256)))
    return image


def square(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))[None]


def agreement(first: Image.Image, second: Image.Image) -> float:
    return float(correlate(square(first), square(second))[0])


CHANGES = {
    "same": lambda image: image,
    "smaller": lambda image: image.resize((130, 90)),
    "mirrored": ImageOps.mirror,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker": lambda image: image.point(lambda level: 0.5 * level),
    "negative slope is not wanted, contrast is": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "cropped": lambda image: image.crop((20, 9, 388, 288)),
    "cropped and mirrored": lambda image: ImageOps.mirror(image.crop((8, 15, 380, 300))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("seed", range(4))
def test_a_changed_copy_is_recognised_either_way_round(change, seed) -> None:
    original = picture(seed)
    copy = change(original)
    assert agreement(original, copy) >= AGREEMENT
    assert agreement(copy, original) >= AGREEMENT


def test_other_pictures_are_not() -> None:
    pictures = [picture(seed) for seed in range(12)]
    pairs = [(a, b) for a in range(12) for b in range(a)]
    first, second = (np.concatenate([square(pictures[pair[k]]) for pair in pairs]) for k in (0, 1))
    assert correlate(first, second).max() < 0.8


def test_two_photos_of_one_kind_are_not_one() -> None:
    for name in ("checks", "discs"):
        assert agreement(draw_photo(name, 0), draw_photo(name, 3)) < AGREEMENT


def test_pairs_do_not_influence_each_other() -> None:
    pictures = [picture(seed) for seed in range(3)]
    copies = [pictures[0].crop((20, 9, 388, 288)), pictures[2], ImageOps.mirror(pictures[2])]
    together = correlate(*(np.concatenate([square(image) for image in side]) for side in (pictures, copies)))
    alone = [agreement(*pair) for pair in zip(pictures, copies, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_picture_without_details_agrees_with_nothing() -> None:
    grey = Image.new("L", (100, 100), 128)
    assert agreement(grey, grey) == -1
    assert agreement(grey, picture(0)) == -1


def test_no_pairs() -> None:
    none = np.zeros((0, SIDE, SIDE), np.uint8)
    assert correlate(none, none).shape == (0,)
