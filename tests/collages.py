"""Collages: images with several labels, made of photos of one kind each, and manifests that say which."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from drawn_photos import draw_photo

KINDS = ("checks", "discs", "stripes")
Part = Callable[[str, int], Image.Image]
"""Gives the photo of a kind with a number."""


def make_collages(
    folder: Path, count: int, *, kinds: Sequence[str] = KINDS, part: Part = draw_photo, side: int = 160, first: int = 0
) -> dict[str, tuple[str, ...]]:
    """Write so many collages of up to four photos, from `first` on; give the kinds in each, none in every tenth.

    A collage has four fields, of which one to four hold a photo; the others are grey.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[str, ...]] = {}
    for number in range(first, first + count):
        draws = random.Random(number)
        picture = Image.new("RGB", (2 * side, 2 * side), (128, 128, 128))
        chosen = [] if number % 10 == 9 else [draws.choice(kinds) for _ in range(draws.randint(1, 4))]
        for place, kind in zip(draws.sample(range(4), len(chosen)), chosen, strict=True):
            photo = part(kind, draws.randrange(1000)).convert("RGB").resize((side, side))
            picture.paste(photo, (place % 2 * side, place // 2 * side))
        name = f"{number:05}.jpg"
        picture.putpixel((0, 0), (number % 256, number // 256, 7))  # else all that are empty would be one image
        picture.save(folder / name, quality=90)
        found[name] = tuple(sorted(set(chosen)))
    return found


def write_manifest(path: Path, labels: dict[str, tuple[str, ...]], *, folder: str = "", separator: str = "|") -> Path:
    """Write a manifest with the columns `path,labels`."""
    between = ";" if separator == "," else ","
    lines = [f"{folder}{name}{between}{separator.join(names)}" for name, names in labels.items()]
    head = f"path{between}labels"
    path.write_text("\n".join([head, *lines, ""]), encoding="utf-8")
    return path
