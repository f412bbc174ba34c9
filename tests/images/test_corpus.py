"""The corpus: files of all kinds come out right or are refused, and where most programs differ, the docs say why."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pytest
from corpus import picture
from corpus_kinds import KINDS
from PIL import Image, ImageOps

from quickstudy.errors import UnusableImageError
from quickstudy.images.decoding import InputSpec, decode, size_of
from quickstudy.images.kinds import format_of, is_read

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

SPEC = InputSpec(size=512)
SIZES = ((120, 88), (73, 131))
"""Two pictures of each kind, across and upright, whose sides blocks do not divide."""
DOCS = Path(__file__).parents[2] / "docs" / "images.md"
JUDGES = {"Pillow": "PIL", "OpenCV": "cv2", "libvips": "pyvips"}
LIKE = 6.0
"""Mean difference in levels up to which a judge sees the same."""


def missing(module: str) -> bool:
    try:
        return bool(module) and importlib.util.find_spec(module) is None
    except ImportError:
        return True


def ours(data: bytes) -> np.ndarray | str:
    try:
        return decode(data, SPEC)
    except UnusableImageError as error:
        return str(error)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_comes_out_right_or_is_refused(name: str) -> None:
    kind = KINDS[name]
    if missing(kind.needs):
        pytest.skip(f"{kind.needs} is not installed")
    for number, size in enumerate(SIZES):
        shown = picture(*size, seed=number)
        data = kind.make(shown)
        found = ours(data)
        if isinstance(kind.right, str):
            assert isinstance(found, str), f"read as {found.shape}"
            assert found.startswith(kind.right)
            assert "\n" not in found
            assert len(found) < 200
            continue
        right = kind.right(shown)
        assert not isinstance(found, str), found
        assert found.shape == right.shape
        assert np.abs(found.astype(int) - right).mean() <= kind.off
        assert size_of(data) == (right.shape[1], right.shape[0])
        assert is_read(format_of(data[:132]) or "")


def pillow(data: bytes) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    image.load()
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(image.convert("RGB"))


def opencv(data: bytes) -> np.ndarray:
    import cv2

    levels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if levels is None:
        raise ValueError("not read")
    return levels[..., ::-1]


def libvips(data: bytes) -> np.ndarray:
    import pyvips

    image = pyvips.Image.new_from_buffer(data, "", fail_on="error")
    image = image.autorot()
    if image.get_typeof("icc-profile-data"):
        image = image.icc_transform("srgb")
    if image.hasalpha():
        image = image.flatten(background=255)
    levels = image.colourspace("srgb").cast("uchar").numpy()
    return np.repeat(levels[..., None] if levels.ndim == 2 else levels, 3 if levels.ndim == 2 else 1, axis=-1)[..., :3]


def agrees(judge: str, data: bytes, found: np.ndarray | str) -> bool:
    try:
        seen = {"Pillow": pillow, "OpenCV": opencv, "libvips": libvips}[judge](data)
    except Exception:  # they raise many kinds
        return isinstance(found, str)
    if isinstance(found, str) or seen.shape != found.shape:
        return False
    return bool(np.abs(seen.astype(int) - found).mean() <= LIKE)


def documented() -> dict[str, str]:
    """The kinds of the table in the docs, with what most programs do."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", DOCS.read_text(), re.MULTILINE)
    return {name.strip(): why.strip() for name, _, why in rows if name.strip() in KINDS}


def judged(name: str) -> list[str]:
    """The judges that do not see what we do."""
    data = KINDS[name].make(picture(*SIZES[0], seed=0))
    found = ours(data)
    return [judge for judge in JUDGES if not agrees(judge, data, found)]


def test_where_most_judges_differ_the_docs_say_why() -> None:
    """The table names exactly the kinds in which two of the three judges differ from us."""
    absent = [module for module in (*JUDGES.values(), "pillow_heif") if missing(module)]
    if absent:
        pytest.skip(f"judges are missing: {', '.join(absent)}")
    differing = {name for name in KINDS if len(judged(name)) >= 2}
    assert differing == set(documented())
    assert all(documented().values())


def test_the_corpus_is_as_large_as_it_says() -> None:
    assert len(KINDS) >= 60
    assert len(KINDS) * len(SIZES) >= 120


@pytest.mark.parametrize("name", [name for name in KINDS if not isinstance(KINDS[name].right, str)])
def test_a_smaller_network_sees_the_same(name: str) -> None:
    """Reduced decoding, by which a large JPEG is decoded at a fraction of its size, judges and shows the same."""
    kind = KINDS[name]
    if missing(kind.needs):
        pytest.skip(f"{kind.needs} is not installed")
    shown = picture(256, 192, seed=3)
    whole, reduced = decode(kind.make(shown), SPEC), decode(kind.make(shown), InputSpec(size=48))
    factor = round(whole.shape[0] / reduced.shape[0])
    small = np.asarray(Image.fromarray(whole).reduce(factor)) if factor > 1 else whole
    assert small.shape == reduced.shape
    # Colours stored at a quarter of the width are smoothed on enlarging, which a reduced image does without.
    assert np.abs(small.astype(int) - reduced).mean() <= (8 if "quarter of the width" in name else 2.5)


@pytest.mark.parametrize("name", [name for name in KINDS if isinstance(KINDS[name].right, str)])
def test_a_smaller_network_refuses_the_same(name: str) -> None:
    data = KINDS[name].make(picture(256, 192, seed=3))
    with pytest.raises(UnusableImageError) as whole:
        decode(data, SPEC)
    with pytest.raises(UnusableImageError) as reduced:
        decode(data, InputSpec(size=48))
    assert str(reduced.value) == str(whole.value)
