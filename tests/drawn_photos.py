"""Photos for tests: drawn, easy to tell apart, and the same in every run."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw


def draw_photo(name: str, number: int) -> Image.Image:
    """Picture `number` of a class: its own pattern and hue, in a place and size that differ from picture to picture."""
    draws = np.random.Generator(np.random.PCG64([number, len(name)]))
    width, height, step = 320, 280, int(draws.integers(24, 48))
    hue = {"checks": 0, "discs": 85, "stripes": 170}[name] + int(draws.integers(-12, 13))
    image = Image.new("HSV", (width, height), (hue % 256, 60, int(draws.integers(170, 240))))
    pen, ink = ImageDraw.Draw(image), (hue % 256, 220, int(draws.integers(60, 140)))
    for left in range(int(draws.integers(step)), width, 2 * step):
        if name == "stripes":
            pen.rectangle((left, 0, left + step - 1, height), fill=ink)
            continue
        for top in range(int(draws.integers(step)), height, 2 * step):
            shape = pen.rectangle if name == "checks" else pen.ellipse
            shape((left, top, left + step - 1, top + step - 1), fill=ink)
    return image.convert("RGB")
