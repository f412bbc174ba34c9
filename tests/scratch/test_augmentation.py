"""Distortions against a slow version that takes the tutorial's steps one after the other, and their random numbers."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quickstudy.errors import OptionError
from quickstudy.records import as_values, read_record
from quickstudy.scratch.input import Augmentation, Draws, Moments, augment, centred, draw, with_margin

CLASSIC = Augmentation(crop=24, brightness=63, contrast=(0.2, 1.8))
MOMENTS = Moments(mean=(120.0, 110.0, 100.0), deviation=(60.0, 65.0, 70.0))


def noise(*shape: int, seed: int = 0, low: int = 0, high: int = 256) -> NDArray[np.uint8]:
    return np.random.Generator(np.random.PCG64(seed)).integers(low, high, shape, np.uint8)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def some_draws(augmentation: Augmentation, n: int, *, side: int, seed: int = 0, epoch: int = 0) -> Draws:
    return draw(
        augmentation,
        generator(seed),
        side=side,
        epochs=np.full(n, epoch, np.int64),
        first=generator(seed + 1).random(n) < 0.5,
    )


def make(
    pixels: torch.Tensor,
    rows: torch.Tensor,
    draws: Draws,
    augmentation: Augmentation,
    moments: Moments,
    *,
    margin: int | None = None,
) -> torch.Tensor:
    """A batch of images that have no margin yet."""
    padded = torch.from_numpy(with_margin(pixels.numpy(), augmentation.pad if margin is None else margin))
    return augment(padded, rows, draws, augmentation, moments, side=augmentation.output_side(pixels.shape[1]))


def slow_augment(
    image: NDArray[np.uint8], draws: Draws, place: int, augmentation: Augmentation, moments: Moments
) -> tuple[NDArray[np.float64], float]:
    """One image by the book, H×W×C, and what it was divided by."""
    pad, out = augmentation.pad, augmentation.crop or len(image)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect") if pad else image
    top, left = int(draws.tops[place]), int(draws.lefts[place])
    x = padded[top : top + out, left : left + out].astype(np.float64)
    assert x.shape[:2] == (out, out)
    if draws.mirrored[place]:
        x = x[:, ::-1]
    x = x + float(draws.brightness[place])
    for channel in range(x.shape[2]):
        mean = x[..., channel].mean()
        x[..., channel] = (x[..., channel] - mean) * float(draws.contrast[place]) + mean
    if augmentation.standardise == "image":
        divisor = max(x.std(), 1 / math.sqrt(x.size))
        x = (x - x.mean()) / divisor
    elif augmentation.standardise == "set":
        divisor = min(moments.deviation)
        x = (x - np.array(moments.mean)) / np.array(moments.deviation)
    else:
        divisor = 255
        x = x / divisor
    if augmentation.cutout:
        row, column = draws.cutouts[place].tolist()
        assert 0 <= min(row, column) <= max(row, column) <= out - augmentation.cutout
        x[row : row + augmentation.cutout, column : column + augmentation.cutout] = 0
    return x, divisor


def assert_as_by_the_book(
    pixels: NDArray[np.uint8], rows: list[int], draws: Draws, augmentation: Augmentation, moments: Moments
) -> None:
    found = make(torch.from_numpy(pixels), torch.tensor(rows), draws, augmentation, moments)
    for place, row in enumerate(rows):
        expected, divisor = slow_augment(pixels[row], draws, place, augmentation, moments)
        # float32: a few roundings of values up to 255 (contrast makes them larger), divided.
        tolerance = 4 * 255 * max(1.0, float(draws.contrast[place])) * 2**-23 / divisor
        np.testing.assert_allclose(found[place].permute(1, 2, 0).numpy(), expected, rtol=1e-6, atol=tolerance)


@st.composite
def cases(draw_from: st.DrawFn) -> tuple[NDArray[np.uint8], list[int], Draws, Augmentation, Moments]:
    side = draw_from(st.integers(1, 9))
    channels = draw_from(st.sampled_from([1, 3]))
    low = draw_from(st.integers(0, 255))
    crop = draw_from(st.integers(0, side))
    augmentation = Augmentation(
        crop=crop,
        cutout=draw_from(st.integers(0, crop or side)),
        pad=draw_from(st.integers(0, side - 1)),
        flip=draw_from(st.booleans()),
        alternate=draw_from(st.booleans()),
        brightness=draw_from(st.floats(0, 80)),
        contrast=draw_from(st.sampled_from([(1.0, 1.0), (0.2, 1.8), (0.0, 0.5), (2.0, 2.0)])),
        standardise=draw_from(st.sampled_from(["image", "set", "none"])),
    )
    seed = draw_from(st.integers(0, 1000))
    pixels = noise(3, side, side, channels, seed=seed, low=low, high=draw_from(st.integers(low + 1, 256)))
    rows = draw_from(st.lists(st.integers(0, 2), min_size=1, max_size=4))
    draws = some_draws(augmentation, len(rows), side=side, seed=seed, epoch=draw_from(st.integers(0, 3)))
    return pixels, rows, draws, augmentation, Moments.of(pixels)


@given(cases())
def test_a_batch_is_what_the_steps_one_by_one_give(
    case: tuple[NDArray[np.uint8], list[int], Draws, Augmentation, Moments],
) -> None:
    assert_as_by_the_book(*case)


@pytest.mark.parametrize("standardise", ["image", "set", "none"])
def test_the_classic_distortions_at_full_size(standardise: str) -> None:
    augmentation = Augmentation(crop=24, brightness=63, contrast=(0.2, 1.8), standardise=standardise)
    pixels = noise(20, 32, 32, 3)
    draws = some_draws(augmentation, 30, side=32)
    assert_as_by_the_book(pixels, [*range(20), *range(10)], draws, augmentation, MOMENTS)


def test_brightness_and_contrast_by_hand() -> None:
    # Means 30 and 100; brightness takes 10 off, contrast halves the differences: 20±5 and 90±0.
    pixels = np.array([[[20, 100], [40, 100]]], np.uint8).reshape(1, 1, 2, 2).repeat(2, axis=1)
    pixels = np.concatenate([pixels, pixels[..., :1]], axis=3)
    draws = Draws(
        tops=torch.tensor([0]),
        lefts=torch.tensor([0]),
        mirrored=torch.tensor([True]),
        brightness=torch.tensor([-10.0]),
        contrast=torch.tensor([0.5]),
        cutouts=torch.zeros(1, 2, dtype=torch.int64),
    )
    found = make(
        torch.from_numpy(pixels),
        torch.tensor([0]),
        draws,
        Augmentation(contrast=(0.5, 0.5), standardise="none"),
        MOMENTS,
    )
    expected = np.array([[[25, 15], [25, 15]], [[90, 90], [90, 90]], [[25, 15], [25, 15]]])
    np.testing.assert_allclose(found[0].numpy() * 255, expected, rtol=1e-5)


@pytest.mark.parametrize(("side", "pad"), [(1, 0), (2, 1), (5, 2), (5, 4), (32, 4)])
def test_padding_mirrors_at_the_border_pixel(side: int, pad: int) -> None:
    pixels = noise(1, side, side, 3)
    padded = np.pad(pixels[0], ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    augmentation = Augmentation(pad=pad, flip=False, standardise="none")
    places = [(top, left) for top in range(2 * pad + 1) for left in range(2 * pad + 1)]
    draws = Draws(
        tops=torch.tensor([top for top, _ in places]),
        lefts=torch.tensor([left for _, left in places]),
        mirrored=torch.zeros(len(places), dtype=torch.bool),
        brightness=torch.zeros(len(places)),
        contrast=torch.ones(len(places)),
        cutouts=torch.zeros(len(places), 2, dtype=torch.int64),
    )
    rows = torch.zeros(len(places), dtype=torch.int64)
    found = make(torch.from_numpy(pixels), rows, draws, augmentation, MOMENTS)
    for (top, left), image in zip(places, found, strict=True):
        whole = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(whole, padded[top : top + side, left : left + side])


def test_a_standardised_image_has_mean_0_and_deviation_1() -> None:
    pixels = noise(8, 32, 32, 3, low=30, high=220)
    found = make(torch.from_numpy(pixels), torch.arange(8), some_draws(CLASSIC, 8, side=32), CLASSIC, MOMENTS)
    torch.testing.assert_close(found.mean(dim=(1, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(dim=(1, 2, 3), correction=0), torch.ones(8), atol=1e-5, rtol=0)


def test_a_standardised_set_has_mean_0_and_deviation_1_in_each_channel() -> None:
    pixels = noise(50, 8, 8, 3)
    pixels[..., 1] //= 3
    augmentation = Augmentation(standardise="set")
    found = make(
        torch.from_numpy(pixels),
        torch.arange(50),
        centred(augmentation, 50, side=8),
        augmentation,
        Moments.of(pixels),
        margin=0,
    )
    torch.testing.assert_close(found.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("level", [0, 1, 128, 255])
@pytest.mark.parametrize("standardise", ["image", "set", "none"])
@pytest.mark.parametrize("side", [1, 32])
def test_images_of_one_colour_give_numbers(level: int, standardise: str, side: int) -> None:
    pixels = np.full((4, side, side, 3), level, np.uint8)
    augmentation = Augmentation(brightness=63, contrast=(0.2, 1.8), standardise=standardise)
    draws = some_draws(augmentation, 4, side=side)
    found = make(torch.from_numpy(pixels), torch.arange(4), draws, augmentation, Moments.of(pixels))
    assert found.isfinite().all()
    expected = draws.brightness[:, None, None, None].expand_as(found)  # set: of deviation 0, taken as 1
    if standardise == "image":
        # Nothing but rounding is left, times √N, by the floor.
        torch.testing.assert_close(found, torch.zeros_like(found), atol=255 * 2**-22 * math.sqrt(3) * side, rtol=0)
    else:
        shown = expected if standardise == "set" else (expected + level) / 255
        torch.testing.assert_close(found, shown, atol=1e-4, rtol=1e-5)


def test_the_floor_of_the_deviation_is_one_over_the_root_of_n() -> None:
    # 300 values, one of them 1 above the rest: deviation 0.0576…, below the floor 1/√300 = 0.0577….
    pixels = np.full((1, 10, 10, 3), 77, np.uint8)
    pixels[0, 4, 4, 1] = 78
    augmentation = Augmentation()
    found = make(
        torch.from_numpy(pixels), torch.tensor([0]), centred(augmentation, 1, side=10), augmentation, MOMENTS, margin=0
    )
    assert found.max().item() == pytest.approx((1 - 1 / 300) * math.sqrt(300), rel=1e-4)


@pytest.mark.parametrize(("crop", "start"), [(24, 4), (0, 0), (32, 0), (31, 0), (23, 4)])
@pytest.mark.parametrize("pad", [0, 3])
def test_evaluation_is_the_plain_centre(crop: int, start: int, pad: int) -> None:
    augmentation = Augmentation(
        crop=crop, pad=pad, alternate=True, brightness=63, contrast=(0.2, 1.8), standardise="none", cutout=7
    )
    pixels = noise(3, 32, 32, 3)
    found = make(
        torch.from_numpy(pixels), torch.arange(3), centred(augmentation, 3, side=32), augmentation, MOMENTS, margin=0
    )
    side = crop or 32
    expected = pixels[:, start : start + side, start : start + side].transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_channels_last_float32(channels: int) -> None:
    pixels = noise(5, 32, 32, channels)
    found = make(torch.from_numpy(pixels), torch.arange(5), some_draws(CLASSIC, 5, side=32), CLASSIC, MOMENTS)
    assert (found.dtype, found.shape) == (torch.float32, (5, channels, 24, 24))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.stride(3) == channels


def test_the_images_are_left_as_they_are() -> None:
    pixels = noise(5, 32, 32, 3)
    before = pixels.copy()
    make(torch.from_numpy(pixels), torch.arange(5), some_draws(CLASSIC, 5, side=32), CLASSIC, MOMENTS)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_moments_are_mean_and_deviation(channels: int) -> None:
    pixels = noise(1003, 3, 5, channels)  # more than the thousand that are counted at a time
    pixels[..., 0] //= 2
    pixels[1000:] = 255
    moments = Moments.of(pixels)
    np.testing.assert_allclose(moments.mean, pixels.mean(axis=(0, 1, 2), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(moments.deviation, pixels.std(axis=(0, 1, 2), dtype=np.float64), rtol=1e-12)
    assert read_record(Moments, as_values(moments)) == moments


def test_moments_of_one_colour_divide_by_one() -> None:
    assert Moments.of(np.full((4, 2, 2, 1), 9, np.uint8)) == Moments(mean=(9.0,), deviation=(1.0,))


def test_draws_cover_the_whole_range() -> None:
    n = 20_000
    draws = some_draws(CLASSIC, n, side=32)
    places = Counter(zip(draws.tops.tolist(), draws.lefts.tolist(), strict=True))
    assert set(places) == {(top, left) for top in range(9) for left in range(9)}
    assert max(places.values()) < 1.4 * n / 81 and min(places.values()) > 0.6 * n / 81
    assert abs(draws.mirrored.float().mean() - 0.5) < 0.02
    for values, low, high in ((draws.brightness, -63, 63), (draws.contrast, 0.2, 1.8)):
        assert values.dtype == torch.float32
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high >= values.max() > high - 0.01 * (high - low)
        assert abs(values.mean() - (low + high) / 2) < 0.02 * (high - low)
        assert values.std().item() == pytest.approx((high - low) / math.sqrt(12), rel=0.02)
    together = np.corrcoef([draws.tops, draws.lefts, draws.mirrored, draws.brightness, draws.contrast])
    assert abs(together - np.eye(5)).max() < 0.03


def test_draws_with_padding_cover_every_shift() -> None:
    draws = some_draws(Augmentation(pad=2), 2000, side=32)
    assert set(draws.tops.tolist()) == set(draws.lefts.tolist()) == set(range(5))
    cropped = some_draws(Augmentation(pad=2, crop=28), 4000, side=32)
    assert set(cropped.tops.tolist()) == set(range(9))


def test_squares_are_cut_out_at_every_place_and_wholly_inside() -> None:
    augmentation = Augmentation(crop=8, cutout=3, standardise="set")
    n = 3000
    pixels = np.full((1, 10, 10, 3), 255, np.uint8)
    draws = some_draws(augmentation, n, side=10)
    found = make(torch.from_numpy(pixels), torch.zeros(n, dtype=torch.int64), draws, augmentation, MOMENTS)
    assert ((found == 0).sum(dim=(1, 2, 3)) == 3 * 3 * 3).all()
    places = Counter(map(tuple, draws.cutouts.tolist()))
    assert set(places) == {(row, column) for row in range(6) for column in range(6)}
    assert max(places.values()) < 1.5 * n / 36 and min(places.values()) > 0.5 * n / 36


def test_cutting_out_changes_no_other_random_number() -> None:
    draws = some_draws(CLASSIC, 50, side=32)
    others = some_draws(dataclasses.replace(CLASSIC, cutout=12), 50, side=32)
    assert [name for name, values in vars(draws).items() if not torch.equal(values, vars(others)[name])] == ["cutouts"]


def test_draws_without_distortion_are_plain() -> None:
    draws = some_draws(Augmentation(flip=False), 50, side=32)
    plain = centred(Augmentation(flip=False), 50, side=32)
    for name, values in vars(draws).items():
        if name == "cutouts":
            assert (values + Augmentation().cutout <= 32).all()  # never looked at
            continue
        np.testing.assert_array_equal(values, getattr(plain, name), err_msg=name)


def test_mirroring_alternates_between_epochs() -> None:
    first = np.array([True, False, True, False])
    for epochs in ([0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 3, 3]):
        for flip in (True, False):
            draws = draw(
                Augmentation(flip=flip, alternate=True), generator(), side=8, epochs=np.array(epochs), first=first
            )
            expected = [flip and was != (epoch % 2 == 1) for was, epoch in zip(first, epochs, strict=True)]
            assert draws.mirrored.tolist() == expected


def test_a_part_of_the_draws() -> None:
    draws = some_draws(CLASSIC, 10, side=32)
    part = draws[slice(3, 7)]
    for name, values in vars(draws).items():
        np.testing.assert_array_equal(getattr(part, name), values[3:7])


@pytest.mark.parametrize(("crop", "side"), [(0, 32), (24, 24), (32, 32)])
def test_the_output_side(crop: int, side: int) -> None:
    assert Augmentation(crop=crop, pad=4).output_side(32) == side


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"crop": 33}, "crop is 33"),
        ({"crop": -1}, "crop is -1"),
        ({"pad": 32}, "pad is 32"),
        ({"pad": -1}, "pad is -1"),
        ({"brightness": -1.0}, "brightness is -1"),
        ({"brightness": math.nan}, "brightness is nan"),
        ({"brightness": math.inf}, "brightness is inf"),
        ({"contrast": (1.8, 0.2)}, "contrast is 1.8,0.2"),
        ({"contrast": (-0.5, 1.0)}, "contrast is -0.5,1"),
        ({"contrast": (0.5,)}, "contrast is 0.5"),
        ({"contrast": (0.5, 1.0, 2.0)}, "contrast is 0.5,1,2"),
        ({"contrast": (0.5, math.nan)}, "contrast is 0.5,nan"),
        ({"standardise": "batch"}, "standardise is 'batch'"),
        ({"cutout": -1}, "cutout is -1"),
        ({"cutout": 33}, "cutout is 33"),
        ({"cutout": 25, "crop": 24}, "cutout is 25"),
    ],
)
def test_check_refuses(options: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        Augmentation(**options).check(32)  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{said}; expected")


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        CLASSIC,
        Augmentation(crop=32, pad=31),
        Augmentation(contrast=(0, 0)),
        Augmentation(cutout=32),
        Augmentation(crop=24, cutout=24),
    ],
)
def test_check_lets_pass(augmentation: Augmentation) -> None:
    augmentation.check(32)
