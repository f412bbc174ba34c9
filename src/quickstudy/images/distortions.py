"""Distortions: how far the views of an image may differ from the plain one.

They are apart from `views.py`, which draws them, as the command line says what there is before NumPy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from quickstudy.errors import OptionError
from quickstudy.options import Option


@dataclass(frozen=True, kw_only=True)
class Distortions:
    """How far views may differ from the plain image: the four distortions of TensorFlow's `retrain.py`."""

    flip: Annotated[bool, Option("Mirror about half of the views left to right.")] = True
    """Whether every other view, on average, is mirrored left to right."""
    crop: Annotated[
        float,
        Option(
            "Crop a margin of up to this many percent of the side, at a random place.",
            flag="--random-crop",
            percent=True,
        ),
    ] = 0.1
    """Margin that is cut away at random places, as a share of the side, at most; from 0 to below 1."""
    scale: Annotated[
        float, Option("Enlarge the image by up to this many percent.", flag="--random-scale", percent=True)
    ] = 0.1
    """Share of the side by which the image is enlarged, at most; from 0 to below 1."""
    brightness: Annotated[
        float,
        Option(
            "Make the image brighter or darker by up to this many percent.",
            flag="--random-brightness",
            percent=True,
        ),
    ] = 0.1
    """Share of their value by which all values change, up or down, at most; from 0 to below 1."""

    def __post_init__(self) -> None:
        for name in ("crop", "scale", "brightness"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise OptionError(f"--random-{name} is {100 * value:g} %; expected 0 to below 100 %")
