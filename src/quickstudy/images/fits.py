"""Fits: how an image of any shape becomes what a network takes, which is square.

`crop` takes the centred square and loses the rest; `pad` keeps all of the image in its proportions, with grey margins;
`squash` keeps all of it and fills the square, so that things get narrower; `tiles2` and `tiles3` cut as many squares of
the shorter side, spread evenly along the longer one, which pass the network each on its own and whose features are
averaged. Nothing heavy is imported, as the command line reads this before anything is done.
"""

from __future__ import annotations

from typing import Literal, get_args

Fit = Literal["crop", "pad", "squash", "tiles2", "tiles3"]
"""How an image of any shape becomes a network's square input; see the module."""
FITS: tuple[Fit, ...] = get_args(Fit)
"""All fits, those of one pass first."""
_LONGEST_OF_TWO = 2.0
"""The largest aspect ratio at which two squares of the shorter side cover the whole image."""


def tiles_in(fit: Fit) -> int:
    """Count the squares that a fit makes of an image, each of which is a pass through the network: 1, 2 or 3."""
    return {"tiles2": 2, "tiles3": 3}.get(fit, 1)


def tiles_for(ratio: float) -> Fit:
    """Choose how many squares to take of images of this aspect ratio (longer side by shorter): 2 up to a ratio of 2."""
    return "tiles2" if ratio <= _LONGEST_OF_TWO else "tiles3"
