"""How many bits of a level count: one number for a set, by which it is trained and by which the model reads."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import quickstudy
from drawn_photos import draw_photo
from quickstudy.backbones.loading import load_backbone
from quickstudy.errors import OptionError
from quickstudy.images.census import take_census
from quickstudy.images.decoding import InputSpec, bits_used, decode
from quickstudy.images.depth import rounded, significant_bits
from quickstudy.images.identity import StatIndex

CLASSES = ("checks", "discs", "stripes")


def grey(name: str, number: int) -> np.ndarray:
    return np.asarray(draw_photo(name, number).convert("L"))


def encoded(levels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, kind)
    return buffer.getvalue()


def fill(folder: Path, *, shift: int, count: int = 4) -> Path:
    """Class folders of 16-bit PNGs and TIFFs whose levels are those of 8 bits, shifted to the left by so many."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            kind = "PNG" if number % 2 else "TIFF"
            data = encoded(grey(name, number).astype(np.uint16) << shift, kind)
            (folder / name / f"{number}.{kind.lower()}").write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("bits", "expected"),
    [([], 16), ([0, 0], 16), ([3], 8), ([0, 8], 8), ([9], 10), ([11, 12], 12), ([14, 2], 14), ([15], 16), ([20], 16)],
)
def test_the_most_bits_are_rounded_up_to_those_of_a_sensor(bits: list[int], expected: int) -> None:
    assert rounded(bits) == expected


@pytest.mark.parametrize("shift", [0, 2, 4, 6, 8])
def test_twelve_bits_in_sixteen_are_the_levels_of_eight(tmp_path: Path, shift: int) -> None:
    census = take_census(fill(tmp_path / "photos", shift=shift), tmp_path / "index.sqlite")
    bits = significant_bits(census, tmp_path / "index.sqlite")
    assert bits == 8 + shift
    for kind in ("PNG", "TIFF"):
        data = encoded(grey("discs", 0).astype(np.uint16) << shift, kind)
        found = decode(data, InputSpec(size=224, bits=bits))
        np.testing.assert_array_equal(found[..., 1], grey("discs", 0), err_msg=kind)


def test_colour_of_sixteen_bits_keeps_its_lower_bytes(tmp_path: Path) -> None:
    """Pillow gives the upper bytes alone; the lower ones come from a second reading in the other order of bytes."""
    cv2 = pytest.importorskip("cv2")
    levels = np.random.Generator(np.random.PCG64(1)).integers(0, 4096, (30, 40, 3)).astype(np.uint16)
    for suffix in (".png", ".tiff"):
        data = cv2.imencode(suffix, levels[..., ::-1])[1].tobytes()
        assert bits_used(data) == 12
        np.testing.assert_array_equal(decode(data, InputSpec(size=224, bits=12)), levels >> 4, err_msg=suffix)
        np.testing.assert_array_equal(decode(data, InputSpec(size=224)), levels >> 8, err_msg=suffix)


def test_what_contents_use_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, index = fill(tmp_path / "photos", shift=4), tmp_path / "index.sqlite"
    census = take_census(folder, index)
    assert significant_bits(census, index) == 12
    assert set(StatIndex(index).bits_used()) == set(census.contents)
    monkeypatch.setattr("quickstudy.images.depth.bits_of", lambda path, digest: pytest.fail("looked at again"))
    assert significant_bits(census, index) == 12


def test_the_bits_are_in_the_key_and_read_back() -> None:
    plain, twelve = InputSpec(size=224), InputSpec(size=224, bits=12)
    assert "bits" not in plain.to_dict()
    assert twelve.to_dict() == {**plain.to_dict(), "bits": 12}
    assert InputSpec.from_dict(twelve.to_dict()) == twelve
    assert (
        InputSpec.from_dict({"size": plain.size, "crop": plain.crop, "resize": "reduce-bilinear-1"}) == plain
    )  # a model from before colours were managed
    with pytest.raises(ValueError, match="bits is 7; expected 8 to 16"):
        InputSpec(size=224, bits=7)


@pytest.mark.heavy
def test_retraining_takes_the_bits_of_the_set_into_the_model(tmp_path: Path, cache: Path) -> None:
    folder = fill(tmp_path / "photos", shift=4, count=6)
    quickstudy.retrain(folder, tmp_path / "found.onnx", cache=cache)
    model = quickstudy.load(tmp_path / "found.onnx")
    assert model.input.bits == 12
    assert model.metadata["input"]["bits"] == 12
    eight = fill(tmp_path / "eight", shift=0, count=6)
    quickstudy.retrain(eight, tmp_path / "eight.onnx", cache=cache)
    other = quickstudy.load(tmp_path / "eight.onnx")
    assert other.input.bits == 8
    one = model.classify((folder / "discs" / "1.png").read_bytes())
    np.testing.assert_allclose(one, other.classify((eight / "discs" / "1.png").read_bytes()), atol=1e-3)
    quickstudy.retrain(folder, tmp_path / "told.onnx", cache=cache, bits=16)
    assert quickstudy.load(tmp_path / "told.onnx").input.bits == 16
    with pytest.raises(OptionError, match="bits is 17; expected 8 to 16"):
        quickstudy.retrain(folder, tmp_path / "told.onnx", cache=cache, bits=17)


def test_a_backbone_reads_so_many_bits(cache: Path) -> None:
    net = load_backbone("efficientnet_lite0", cache)
    assert net.reading(12).input == InputSpec(size=net.input.size, bits=12)
