"""What becomes of images that are not square, against slow versions that say what is meant."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from quickstudy.images.decoding import MARGIN, InputSpec, Pixels, decode, frame_of, to_input
from quickstudy.images.distortions import Distortions
from quickstudy.images.fits import FITS, Fit, tiles_for, tiles_in
from quickstudy.images.views import render_view


def noise(height: int, width: int) -> Pixels:
    return np.random.Generator(np.random.PCG64(height)).integers(0, 256, (height, width, 3), np.uint8)


def ramp(height: int, width: int) -> Pixels:
    """Red says how far down a pixel is, green how far to the right, both from 0 to 255."""
    rows, columns = np.mgrid[0:height, 0:width]
    levels = [rows * 255 / (height - 1), columns * 255 / (width - 1), np.zeros((height, width))]
    return np.rint(np.stack(levels, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (37, 64), (200, 90), (64, 64), (33, 1000)])
def test_any_shape_makes_an_input(fit: Fit, height: int, width: int) -> None:
    spec = InputSpec(size=32, fit=fit)
    made = to_input(noise(height, width), spec)
    assert made.shape == spec.shape == (32 * tiles_in(fit), 32, 3)
    assert (made.dtype, made.flags.c_contiguous) == (np.uint8, True)
    if height == width and tiles_in(fit) == 1:
        np.testing.assert_array_equal(made, to_input(noise(height, width), InputSpec(size=32)))


def test_squash_takes_both_sides_whole() -> None:
    made = to_input(ramp(96, 400), InputSpec(size=32, fit="squash")).astype(int)
    assert abs(made[:, 0, 0] - made[:, -1, 0]).max() == 0
    # Pixel centres lie half a pixel inside: at (n + 1/2) / 32 of each side.
    wanted = (np.arange(32) + 0.5) / 32 * 255
    assert abs(made[:, 5, 0] - wanted).max() < 3
    assert abs(made[5, :, 1] - wanted).max() < 3


@pytest.mark.parametrize(("height", "width"), [(50, 200), (200, 50), (199, 64), (7, 640)])
def test_pad_keeps_proportions_in_the_middle_of_grey(height: int, width: int) -> None:
    made = to_input(np.full((height, width, 3), 200, np.uint8), InputSpec(size=64, fit="pad"))
    rows, columns = (np.flatnonzero((made == 200).all(axis=(2, axis))) for axis in (1, 0))
    shown = [round(side * 64 / max(height, width)) for side in (height, width)]
    plain = (made == 200).all(axis=2)
    assert plain.sum() == shown[0] * shown[1]
    assert (made[~plain] == MARGIN).all()
    top, left = ((64 - side) // 2 for side in shown)
    assert plain[top : top + shown[0], left : left + shown[1]].all()
    assert bool(len(rows)) == (shown[1] == 64)
    assert bool(len(columns)) == (shown[0] == 64)


def test_pad_shows_all_of_the_image() -> None:
    made = to_input(ramp(120, 480), InputSpec(size=64, fit="pad")).astype(int)[24:40]
    assert abs(made[0, :, 1] - (np.arange(64) + 0.5) / 64 * 255).max() < 3
    assert abs(made[:, 0, 0] - (np.arange(16) + 0.5) / 16 * 255).max() < 9


@pytest.mark.parametrize(("fit", "count"), [("tiles2", 2), ("tiles3", 3)])
@pytest.mark.parametrize("upright", [False, True])
def test_tiles_are_squares_from_end_to_end(fit: Fit, count: int, upright: bool) -> None:
    pixels = noise(40, 131)
    starts = [number * (131 - 40) // (count - 1) for number in range(count)]
    squares = [pixels[:, start : start + 40] for start in starts]
    if upright:
        pixels, squares = (
            np.ascontiguousarray(pixels.transpose(1, 0, 2)),
            [np.ascontiguousarray(square.transpose(1, 0, 2)) for square in squares],
        )
    wanted = [to_input(square, InputSpec(size=32)) for square in squares]
    np.testing.assert_array_equal(to_input(pixels, InputSpec(size=32, fit=fit)), np.concatenate(wanted))


def test_the_number_of_squares_follows_from_the_shape() -> None:
    assert [tiles_for(ratio) for ratio in (1.0, 1.5, 2.0, 2.01, 4.0)] == [
        "tiles2",
        "tiles2",
        "tiles2",
        "tiles3",
        "tiles3",
    ]


@pytest.mark.parametrize(
    ("fit", "shape"),
    [
        ("crop", (150, 600)),  # 600 = 4 × 150 ≥ 100, 8 × 75 < 100
        ("squash", (150, 600)),
        ("tiles3", (150, 600)),
        ("pad", (75, 300)),  # 2,400 = 8 × 300 ≥ 100
    ],
)
def test_jpegs_are_reduced_while_what_is_seen_stays_large_enough(fit: Fit, shape: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(ramp(600, 2400)).save(buffer, "JPEG")
    spec = InputSpec(size=100, fit=fit)
    assert decode(buffer.getvalue(), spec).shape[:2] == shape
    whole = to_input(ramp(600, 2400), spec).astype(int)
    assert abs(to_input(decode(buffer.getvalue(), spec), spec) - whole).mean() < 2


@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_views_show_parts_of_the_same_proportions(fit: Fit) -> None:
    pixels, spec = noise(60, 200), InputSpec(size=32, fit=fit)
    distortions = Distortions(flip=False, brightness=0)
    views = [render_view(pixels, spec, bytes(32), view, distortions) for view in range(4)]
    assert {view.tobytes() for view in views[1:]}.isdisjoint({views[0].tobytes()})
    if fit == "pad":
        margins = [np.flatnonzero((view == MARGIN).all(axis=(1, 2))) for view in views]
        assert all(abs(len(margin) - len(margins[0])) <= 2 for margin in margins)
    none = Distortions(flip=False, crop=0, scale=0, brightness=0)
    np.testing.assert_array_equal(render_view(pixels, spec, bytes(32), 1, none), views[0])


def test_what_is_usual_has_the_key_that_it_had() -> None:
    assert InputSpec(size=288).to_dict() == {
        "size": 288,
        "crop": 1.0,
        "resize": "reduce-bilinear-1",
        "colour": "srgb-1",
    }
    for fit in FITS:
        spec = InputSpec(size=40, fit=fit, bits=12)
        assert InputSpec.from_dict(spec.to_dict()) == spec
        assert frame_of((30, 50, 3), spec) == ((10, 0, 30, 30) if fit == "crop" else (0, 0, 50, 30))


@pytest.mark.parametrize(
    ("values", "words"), [({"fit": "stretch"}, "fit is 'stretch'"), ({"fit": "pad", "crop": 0.5}, "crop is 0.5")]
)
def test_a_fit_that_is_none_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        InputSpec(size=32, **values)  # type: ignore[arg-type]
