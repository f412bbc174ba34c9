"""HEIC is read with its extra, and named with it where it is missing; other formats are named for what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from corpus import BEGINS, clockwise, encoded, heic, picture

from quickstudy.errors import UnusableImageError
from quickstudy.images import kinds, opened
from quickstudy.images.decoding import InputSpec, decode, is_broken, size_of
from quickstudy.images.imageset import list_images
from quickstudy.images.kinds import READ, format_of, has_heic, image_format, is_read

SPEC = InputSpec(size=224)
SHOWN = picture(160, 120, seed=6)


def test_a_phones_photo_named_jpg_is_read_by_its_bytes(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    data = heic(SHOWN)
    (tmp_path / "IMG_0001.jpg").write_bytes(data)
    (tmp_path / "IMG_0002.HEIC").write_bytes(data)
    paths, wrong = list_images(tmp_path)
    assert (len(paths), wrong) == (2, [])
    assert np.abs(decode(data, SPEC).astype(int) - SHOWN).mean() < 4
    assert size_of(data) == (160, 120)


def test_it_comes_upright() -> None:
    pytest.importorskip("pillow_heif")
    data = heic(SHOWN, exif=clockwise(6))
    found = decode(data, SPEC)
    assert found.shape == (160, 120, 3)
    assert np.abs(found.astype(int) - np.rot90(SHOWN, -1)).mean() < 4
    assert size_of(data) == (120, 160)


def test_without_the_extra_the_reason_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "has_heic", lambda: False)
    monkeypatch.setattr(opened, "has_heic", lambda: False)
    data = BEGINS % (b"heic", b"mif1heic") + bytes(99)
    reason = (
        "HEIC needs the extra 'heic', which is not installed; install it with: pip install pillow-heif, or "
        "convert it to JPEG or PNG"
    )
    with pytest.raises(UnusableImageError) as caught:
        decode(data, SPEC)
    assert str(caught.value) == reason
    assert not is_broken(reason)
    (tmp_path / "x.heic").write_bytes(data)
    paths, wrong = list_images(tmp_path)
    assert (paths, [item.reason for item in wrong]) == ([], [reason])


def test_what_is_installed_is_found() -> None:
    import importlib.util

    assert has_heic() == (importlib.util.find_spec("pillow_heif") is not None)
    assert is_read("HEIC") == has_heic()


@pytest.mark.parametrize(
    ("brands", "expected"),
    [
        ((b"heic", b"mif1"), "HEIC"),
        ((b"mif1", b"mif1heic"), "HEIC"),
        ((b"mif1", b"mif1avif"), "AVIF"),
        ((b"mif1", b"miaf"), "HEIF"),
        ((b"avif", b"mif1"), "AVIF"),
        ((b"crx ", b"isom"), "CR3"),
        ((b"isom", b"mp42"), None),
    ],
)
def test_brands_tell_what_is_in_the_box(brands: tuple[bytes, bytes], expected: str | None) -> None:
    start = b"\0\0\0" + bytes([16 + len(brands[1])]) + b"ftyp" + brands[0] + bytes(4) + brands[1]
    assert format_of(start) == expected


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "PPM", "ICO"])
def test_formats_that_pillow_reads_are_listed_by_suffix_and_by_bytes(tmp_path: Path, kind: str) -> None:
    data = encoded(SHOWN, kind)
    assert image_format("x", data[:132]) in READ
    for name in ("photo", f"photo.{kind.lower().replace('jpeg2000', 'jp2')}", "photo.jpg"):
        (tmp_path / name).write_bytes(data)
    paths, wrong = list_images(tmp_path)
    assert (len(paths), wrong) == (3, [])
    for path in paths:
        assert decode(path.read_bytes(), SPEC).shape[2] == 3
