"""Looks by hand-made pictures; the gallery keeps them, whatever happens to its files."""

from __future__ import annotations

import io
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from drawn_photos import draw_photo
from quickstudy.bottlenecks import looks as module
from quickstudy.bottlenecks import store
from quickstudy.bottlenecks.looks import THUMBNAIL_SIDE, Gallery, Thumbnails, look_at, sharpness, view_gallery
from quickstudy.errors import UnusableImageError
from quickstudy.images.identity import read_image_file
from quickstudy.reports.audit import LIMITS
from quickstudy.reports.evidence import KnownImage


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_size_brightness_and_shares_of_a_picture_in_halves() -> None:
    levels = np.full((300, 600, 3), 255, np.uint8)
    levels[:, :300] = 0
    look = look_at(encode(Image.fromarray(levels), "PNG"))
    assert (look.width, look.height) == (600, 300)
    assert look.brightness == pytest.approx(0.5, abs=0.01)
    assert look.contrast == pytest.approx(0.5, abs=0.01)
    assert look.black == pytest.approx(0.5, abs=0.01)
    assert look.white == pytest.approx(0.5, abs=0.01)


def test_the_size_is_that_of_the_upright_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    look = look_at(encode(Image.new("RGB", (640, 320), "gray"), exif=exif))
    assert (look.width, look.height) == (320, 640)
    with Image.open(io.BytesIO(look.thumbnail)) as thumbnail:
        assert thumbnail.size == (48, 96)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (40, 30), (1000, 10), (3000, 2000)])
def test_thumbnails_of_any_size_are_small_and_never_enlarged(size) -> None:
    look = look_at(encode(Image.new("RGB", size, "teal"), "PNG"))
    with Image.open(io.BytesIO(look.thumbnail)) as thumbnail:
        assert thumbnail.format == "JPEG"
        assert max(thumbnail.size) == min(max(size), THUMBNAIL_SIDE)


def test_sharpness_by_hand() -> None:
    # A ramp: pixels two apart differ twice as much as adjacent ones, H = 1.
    assert sharpness(np.tile(np.arange(0, 200, 2, np.uint8), (50, 1))) == pytest.approx(0, abs=1e-6)
    # One hard edge: twice as many pairs two apart straddle it, H = 1/2, but for the few pairs at the border.
    edge = np.zeros((200, 200), np.uint8)
    edge[:, 100:] = 200
    assert sharpness(edge) == pytest.approx(0.5, abs=0.01)
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (300, 300)).astype(np.uint8)
    assert sharpness(noise) == pytest.approx(1, abs=0.01)
    assert sharpness(np.full((50, 50), 7, np.uint8)) == 0


def test_a_photo_is_sharp_and_its_blurred_copy_is_not_at_any_size() -> None:
    photo = draw_photo("discs", 3).resize((1280, 1120))
    for side in (320, 1280):
        small = photo.resize((side, side * 7 // 8))
        blurred = small.filter(ImageFilter.GaussianBlur(side / 60))
        assert look_at(encode(small)).sharpness > 1.5 * LIMITS["blurred"]
        assert look_at(encode(blurred)).sharpness < LIMITS["blurred"]


@pytest.mark.parametrize("colour", ["black", "white", "#18181c"])
def test_a_photo_between_bars_is_a_screenshot(colour: str) -> None:
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)).resize((1080, 810))
    screen = Image.new("RGB", (1080, 2340), colour)
    screen.paste(photo, (0, 765))
    ImageDraw.Draw(screen).text((40, 20), "12:41", fill="gray", font_size=34)
    assert look_at(encode(screen)).bars == pytest.approx(1530 / 2340, abs=0.03)
    assert look_at(encode(screen.transpose(Image.Transpose.ROTATE_90))).bars == pytest.approx(1530 / 2340, abs=0.03)
    assert look_at(encode(screen.crop((0, 0, 1080, 1575)))).bars == 0  # one bar alone
    assert look_at(encode(photo)).bars == 0


def test_a_thing_on_a_plain_background_is_no_screenshot() -> None:
    picture = Image.new("RGB", (400, 600), "white")
    ImageDraw.Draw(picture).ellipse((60, 100, 340, 500), fill="navy")
    assert look_at(encode(picture)).bars == 0
    assert look_at(encode(Image.new("RGB", (400, 600), "white"))).bars == 0
    flag = Image.new("RGB", (300, 300), "red")
    ImageDraw.Draw(flag).rectangle((0, 100, 300, 200), fill="white")
    assert look_at(encode(flag)).bars == 0


def test_grey_bands_of_a_damaged_photo_that_was_saved_anew_are_seen() -> None:
    photo = draw_photo("discs", 3)
    assert look_at(encode(photo)).grey == 0
    pixels = np.array(photo)
    pixels[200:] = 128
    look = look_at(encode(Image.fromarray(pixels)))
    assert look.grey == pytest.approx(80 / 280, abs=0.03)
    assert look_at(encode(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 0, 2))))).grey == look.grey


def test_the_bits_that_sixteen_use_are_told_and_what_they_show_is_seen() -> None:
    levels = np.asarray(draw_photo("discs", 3).convert("L")).astype(np.uint16)
    eight = look_at(encode(Image.fromarray(levels.astype(np.uint8)), "PNG"))
    twelve = look_at(encode(Image.fromarray(levels << 4), "PNG"))
    assert (eight.bits, twelve.bits) == (0, 12)
    assert twelve.brightness == pytest.approx(eight.brightness)


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(UnusableImageError):
        look_at(b"nothing")


@pytest.fixture
def images(photo_source: Path) -> list[KnownImage]:
    paths = sorted(photo_source.rglob("*.jpg"))[:6]
    return [KnownImage(path=path, digest=read_image_file(path)[1], label=None, split=None) for path in paths]


def columns(gallery: Gallery) -> list[list[float]]:
    return [getattr(gallery, name).tolist() for name in ("width", "height", "brightness", "sharpness")]


def refuse(*_: object) -> None:
    raise AssertionError("looked at again")


def test_looks_are_computed_once(images, tmp_path, monkeypatch) -> None:
    first = view_gallery(images, cache=tmp_path)
    assert first.width.tolist() == [320] * 6
    monkeypatch.setattr(module, "look_at", refuse)
    again = view_gallery(images[::-1], cache=tmp_path)
    assert columns(again) == [column[::-1] for column in columns(first)]
    assert again.thumbnails == first.thumbnails[::-1]


def test_thumbnails_come_at_once_and_from_the_store_once_looks_are_kept(images, tmp_path, monkeypatch) -> None:
    thumbnails = Thumbnails(tmp_path)
    quick = thumbnails.of(images)
    sizes = [Image.open(io.BytesIO(data)).size for data in quick]
    assert sizes == [(96, 84)] * 6
    assert view_gallery(images[:1], cache=tmp_path / "other").width.tolist() == [320]
    thumbnails.keep(images[:4])
    thumbnails.compact()
    gone = KnownImage(path=tmp_path / "gone.jpg", digest=b"x" * 32, label=None, split=None)
    monkeypatch.setattr(module, "look_at", refuse)
    assert thumbnails.of([*images, gone])[:4] == list(view_gallery(images[:4], cache=tmp_path).thumbnails)
    assert thumbnails.of([gone]) == [b""]


def test_a_damaged_file_is_passed_over_and_what_it_held_looked_at_again(images, tmp_path) -> None:
    first = view_gallery(images, cache=tmp_path)
    (path,) = (tmp_path / "bottlenecks").rglob("*.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert columns(view_gallery(images, cache=tmp_path)) == columns(first)


def test_many_small_files_become_one(images, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(store, "COMPACT_ABOVE", 3)
    for image in images:
        view_gallery([image], cache=tmp_path)
    assert len(list((tmp_path / "bottlenecks").rglob("*.arrow"))) <= 3
    monkeypatch.setattr(module, "look_at", refuse)
    assert view_gallery(images, cache=tmp_path).width.tolist() == [320] * 6


def _view(images: list[KnownImage], cache: Path) -> None:
    view_gallery(images, cache=cache)


def test_processes_may_look_at_once(images, tmp_path, monkeypatch) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_view, args=(images, tmp_path)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    monkeypatch.setattr(module, "look_at", refuse)
    assert view_gallery(images, cache=tmp_path).width.tolist() == [320] * 6


def test_a_file_that_has_gone_or_changed_has_no_look(images, tmp_path) -> None:
    gone = KnownImage(path=tmp_path / "gone.jpg", digest=b"1" * 32, label=None, split=None)
    changed = KnownImage(path=images[0].path, digest=b"2" * 32, label=None, split=None)
    found = view_gallery([gone, images[1], changed], cache=tmp_path / "cache")
    assert found.width.tolist() == [0, 320, 0]
    assert [bool(thumbnail) for thumbnail in found.thumbnails] == [False, True, False]


def test_a_cache_that_cannot_be_written_costs_only_time(images, tmp_path) -> None:
    (tmp_path / "bottlenecks").write_text("a file where the folder should be")
    assert view_gallery(images, cache=tmp_path).width.tolist() == [320] * 6
