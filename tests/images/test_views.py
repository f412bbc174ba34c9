"""Views: the same for the same image, different for different numbers, and never more distorted than allowed."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickstudy.errors import OptionError
from quickstudy.images.decoding import InputSpec, Pixels, to_input
from quickstudy.images.distortions import Distortions
from quickstudy.images.views import render_view, view_key

SPEC = InputSpec(size=32)
NONE = Distortions(flip=False, crop=0, scale=0, brightness=0)
ALL = Distortions()


def noise(height: int = 90, width: int = 70) -> Pixels:
    return np.random.Generator(np.random.PCG64(5)).integers(0, 256, (height, width, 3), np.uint8)


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


DIGEST = digest_of("an image")


def test_view_0_is_the_plain_image_whatever_the_distortions() -> None:
    pixels = noise()
    for distortions in (NONE, ALL, Distortions(crop=0.9, scale=0.9, brightness=0.9)):
        np.testing.assert_array_equal(render_view(pixels, SPEC, DIGEST, 0, distortions), to_input(pixels, SPEC))


@pytest.mark.parametrize("view", [1, 2, 77])
def test_without_distortions_every_view_is_the_plain_image(view: int) -> None:
    np.testing.assert_array_equal(render_view(noise(), SPEC, DIGEST, view, NONE), to_input(noise(), SPEC))


def test_the_same_view_twice_is_the_same_to_the_bit() -> None:
    for view in range(1, 10):
        once = render_view(noise(), SPEC, DIGEST, view, ALL)
        again = render_view(noise(), SPEC, DIGEST, view, Distortions())
        np.testing.assert_array_equal(once, again)


def test_views_are_the_same_in_every_version() -> None:
    """Written down once: whoever changes these numbers makes every store of distorted bottlenecks wrong."""
    rows, columns = np.mgrid[0:64, 0:64]
    pixels = np.stack([rows * 4, columns * 4, rows + columns], axis=-1).astype(np.uint8)
    found = [hashlib.sha256(render_view(pixels, SPEC, DIGEST, view, ALL).tobytes()).hexdigest()[:16] for view in (1, 2)]
    assert found == ["e7701e6e6d0f170c", "1461b560d4242bf7"]
    assert view_key(DIGEST, 1, ALL).hex()[:16] == "a377beb6335818a8"


def test_different_views_differ_and_so_do_different_images() -> None:
    views = {render_view(noise(), SPEC, DIGEST, view, ALL).tobytes() for view in range(20)}
    assert len(views) == 20
    others = {render_view(noise(), SPEC, digest_of(str(n)), 1, ALL).tobytes() for n in range(20)}
    assert len(others) == 20


def test_flip_alone_gives_the_plain_image_or_its_exact_mirror_about_as_often() -> None:
    distortions = dataclasses.replace(NONE, flip=True)
    plain = to_input(noise(), SPEC)
    mirrored = 0
    for view in range(1, 201):
        found = render_view(noise(), SPEC, DIGEST, view, distortions)
        is_mirror = np.array_equal(found, plain[:, ::-1])
        assert is_mirror or np.array_equal(found, plain)
        mirrored += is_mirror
    assert 75 <= mirrored <= 125


def test_brightness_alone_multiplies_all_values_by_one_factor_within_its_bounds() -> None:
    distortions = dataclasses.replace(NONE, brightness=0.25)
    plain = to_input(noise(), SPEC).astype(float)
    factors = []
    for view in range(1, 101):
        found = render_view(noise(), SPEC, DIGEST, view, distortions).astype(float)
        unclipped = (found > 0) & (found < 255) & (plain > 100)
        factor = (found[unclipped] / plain[unclipped]).mean()
        assert abs(found - np.clip(plain * factor, 0, 255)).max() <= 1
        factors.append(factor)
    assert 0.74 < min(factors) < 0.8
    assert 1.2 < max(factors) < 1.26


@pytest.mark.parametrize("distortions", [dataclasses.replace(NONE, crop=0.3), dataclasses.replace(NONE, scale=0.3)])
def test_crop_and_scale_show_a_smaller_square_that_lies_anywhere_within(distortions: Distortions) -> None:
    """On a map whose values are its coordinates, a view's values tell which square it shows."""
    rows, columns = np.mgrid[0:200, 0:240]
    pixels = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    sides, tops, lefts = [], [], []
    for view in range(1, 101):
        found = render_view(pixels, SPEC, DIGEST, view, distortions).astype(int)
        top, bottom = found[..., 0].min(), found[..., 0].max()
        left, right = found[..., 1].min(), found[..., 1].max()
        assert abs((bottom - top) - (right - left)) <= 1  # a square
        assert left >= 20  # within the centred square of 200
        assert right <= 219
        sides.append(bottom - top)
        tops.append(top)
        lefts.append(left)
    # The least is 200 / 1.3 = 154 pixels; the outermost pixels' centres lie a reduced pixel of 6 within.
    assert 145 <= min(sides) <= 165
    assert 185 <= max(sides) <= 200
    assert max(tops) > 30
    assert max(lefts) > 50
    assert np.corrcoef(tops, lefts)[0, 1] < 0.9  # up and across are drawn apart


def test_the_key_of_view_0_is_the_content_alone() -> None:
    assert view_key(DIGEST, 0, ALL) == DIGEST
    assert view_key(DIGEST, 0, NONE) == DIGEST


def test_the_key_names_everything_that_decides_the_view() -> None:
    keys = {
        view_key(DIGEST, 1, ALL),
        view_key(DIGEST, 2, ALL),
        view_key(DIGEST, 12, ALL),
        view_key(digest_of("another image"), 1, ALL),
        view_key(DIGEST, 1, Distortions(flip=False)),
        view_key(DIGEST, 1, Distortions(crop=0.2)),
        view_key(DIGEST, 1, Distortions(scale=0.2)),
        view_key(DIGEST, 1, Distortions(brightness=0.2)),
    }
    assert len(keys) == 8
    assert {len(key) for key in keys} == {32}
    assert DIGEST not in keys


def test_a_new_field_of_the_distortions_is_in_the_key_too() -> None:
    for field in dataclasses.fields(Distortions):
        value = not getattr(ALL, field.name) if field.type == "bool" else 0.5
        changed = dataclasses.replace(ALL, **{field.name: value})
        assert view_key(DIGEST, 1, changed) != view_key(DIGEST, 1, ALL), field.name


@pytest.mark.parametrize("name", ["crop", "scale", "brightness"])
@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan"), float("inf")])
def test_impossible_distortions_are_refused(name: str, value: float) -> None:
    with pytest.raises(OptionError, match=f"--random-{name} is {100 * value:g} %; expected 0 to below 100 %"):
        Distortions(**{name: value})


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 10**9),
    st.builds(
        Distortions,
        flip=st.booleans(),
        crop=st.floats(0, 0.99),
        scale=st.floats(0, 0.99),
        brightness=st.floats(0, 0.99),
    ),
)
def test_any_view_of_any_image_is_an_input(height: int, width: int, view: int, distortions: Distortions) -> None:
    found = render_view(noise(height, width), SPEC, DIGEST, view, distortions)
    assert (found.shape, found.dtype, found.flags.c_contiguous) == ((32, 32, 3), np.uint8, True)
