"""The nearest training images, against a slow obvious search; and what is kept of them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
from PIL import Image

import quickstudy
from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.named import Prefix
from quickstudy.bottlenecks import looks
from quickstudy.errors import ModelError, UnusableImageError
from quickstudy.files import sha256_of_file
from quickstudy.images.census import Content
from quickstudy.images.decoding import decode, to_input
from quickstudy.images.imageset import ImageFile
from quickstudy.models.assemble import LinearHead, write_model
from quickstudy.models.loading import load
from quickstudy.models.model import Model
from quickstudy.models.neighbours import (
    Neighbours,
    keep_neighbours,
    load_neighbours,
    load_with_neighbours,
    neighbours_path,
)
from small_backbones import add_small_backbone, method_of

Images = list[Content]


@pytest.fixture(scope="module")
def model_path(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("neighbours") / "model.onnx"
    weights = np.random.Generator(np.random.PCG64(0)).normal(0, 0.05, (backbone.cut_shape[0], 3)).astype(np.float32)
    head = LinearHead(weights=weights, biases=np.zeros(3, np.float32))
    write_model(path, backbone, head, classes=("checks", "discs", "stripes"), training={})
    return path


@pytest.fixture
def copy(model_path: Path, tmp_path: Path) -> Path:
    """A copy of the model with nothing beside it."""
    (tmp_path / "copy.onnx").write_bytes(model_path.read_bytes())
    return tmp_path / "copy.onnx"


@pytest.fixture(scope="module")
def images(photo_source: Path) -> Images:
    return [a_content(path, path.parent.name) for path in sorted(photo_source.rglob("*.jpg"))]


def a_content(path: Path, label: str) -> Content:
    digest = hashlib.sha256(path.read_bytes() if path.exists() else str(path).encode()).digest()
    return Content(digest, (ImageFile(str(path), (label,)),), labels=(label,), role="train")


@pytest.fixture(scope="module")
def features(backbone: Backbone, images: Images) -> np.ndarray:
    """What the network gives, image by image."""
    prefix, spec = Prefix(backbone, backbone.cut, backbone.cut_shape), backbone.input
    return np.concatenate(
        [prefix(to_input(decode(path.read_bytes(), spec), spec)[None]) for path in (image.path for image in images)]
    )


@pytest.fixture(scope="module")
def kept(model_path: Path, images: Images, features: np.ndarray) -> Path:
    return keep_neighbours(model_path, images[:20], features=features[:20])


def load_both(path: Path) -> tuple[Model, Neighbours]:
    model, sha256, found = load_with_neighbours(path)
    assert sha256 == sha256_of_file(path)
    assert found is not None
    return model, found


def test_are_those_with_the_largest_cosine_of_signed_roots(
    model_path: Path, images: Images, features: np.ndarray, kept: Path
) -> None:
    model, found = load_both(model_path)
    assert (len(found), found.width) == (20, features.shape[1])

    def direction(row: int) -> np.ndarray:
        roots = np.array([np.sqrt(v) if v > 0 else -np.sqrt(-v) for v in features[row].astype(float)])
        return roots / np.sqrt((roots**2).sum())

    rows = [(direction(row), images[row].label) for row in range(20)]
    for query in (25, 31):
        expected = sorted(((float(row @ direction(query)), label) for row, label in rows), reverse=True)[:5]
        seen = model.examine(images[query].path.read_bytes()).features
        assert seen is not None
        nearest = found.nearest(seen, 5)
        assert [neighbour.label for neighbour in nearest] == [label for _, label in expected]
        np.testing.assert_allclose([n.similarity for n in nearest], [s for s, _ in expected], atol=1e-3)


def test_a_training_image_is_its_own_nearest(model_path: Path, images: Images, kept: Path) -> None:
    model, found = load_both(model_path)
    examined = model.examine(images[7].path.read_bytes())
    assert examined.probabilities is not None
    assert examined.features is not None
    usual = load(model_path).classify(images[7].path.read_bytes())
    np.testing.assert_allclose(examined.probabilities, usual, atol=1e-6)
    [nearest] = found.nearest(examined.features, 1)
    assert nearest.similarity == pytest.approx(1, abs=1e-3)
    with Image.open(io.BytesIO(nearest.thumbnail)) as thumbnail, Image.open(images[7].path) as original:
        assert thumbnail.size == (96, 84)
        small = original.resize((96, 84))
        assert np.abs(np.asarray(thumbnail, int) - np.asarray(small, int)).mean() < 8
    with pytest.raises(UnusableImageError):
        model.examine(b"no image")


def test_a_model_as_it_is_usually_loaded_gives_no_features(model_path: Path, images: Images) -> None:
    usual = load(model_path)
    assert usual.examine(images[0].path.read_bytes()).features is None
    with pytest.raises(ModelError, match="with_features"):
        usual.predict_pixels_with_features(np.zeros((1, usual.input.size, usual.input.size, 3), np.uint8))
    model = load(model_path, with_features=True)
    model.verify()
    [expected] = load(model_path).predict_proba(images[0].path)
    np.testing.assert_allclose(model.predict_proba(images[0].path)[0], expected, atol=1e-6)


def test_the_network_does_not_run_and_nothing_is_decoded_that_was_looked_at(
    copy: Path, images: Images, features: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("the network is loaded"))
    keep_neighbours(copy, images[:5], features=features[:5], cache=tmp_path / "cache")
    first = neighbours_path(copy).read_bytes()
    monkeypatch.setattr(looks, "read_image_file", lambda *_: pytest.fail("a photo is read"))
    keep_neighbours(copy, images[:5], features=features[:5], cache=tmp_path / "cache")
    assert neighbours_path(copy).read_bytes() == first


def test_files_that_have_gone_bad_since_are_left_out(
    copy: Path, images: Images, features: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"x")
    bad = [a_content(tmp_path / "bad.jpg", "checks"), a_content(tmp_path / "gone.jpg", "discs")]
    keep_neighbours(copy, [images[0], *bad, images[20]], features=features[[0, 1, 2, 20]])
    model, found = load_both(copy)
    assert len(found) == 2
    seen = model.examine(images[20].path.read_bytes()).features
    assert seen is not None
    [nearest] = found.nearest(seen, 1)
    assert nearest.label == images[20].label
    assert nearest.similarity == pytest.approx(1, abs=1e-3)
    keep_neighbours(copy, bad, features=features[:2])
    _, none = load_both(copy)
    assert len(none) == 0
    assert none.nearest(seen, 3) == []


@pytest.mark.parametrize("shape", [(3, 1280), (2, 1279), (2, 1280, 1), (2,)])
def test_features_of_another_shape_are_refused(model_path: Path, images: Images, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"expected \(2, 1280\)"):
        keep_neighbours(model_path, images[:2], features=np.zeros(shape, np.float32))


def test_holds_no_names_of_files(kept: Path, images: Images) -> None:
    data = kept.read_bytes()
    assert b".jpg" not in data
    assert str(images[0].path.parent).encode() not in data


def rename(kept: Path, model: Path, sha256: str, *, width: int | None = None) -> None:
    """Put thumbnails beside another model, as if they were of what has this hash; with other features if need be."""
    table = pa.ipc.open_file(kept).read_all()
    if width is not None:
        values = pa.array(np.zeros(len(table) * width, np.float16))
        table = table.set_column(2, "features", pa.FixedSizeListArray.from_arrays(values, width))
    table = table.replace_schema_metadata({"model": sha256})
    with pa.ipc.new_file(neighbours_path(model), table.schema) as writer:
        writer.write_table(table)


def test_belong_to_one_model(copy: Path, kept: Path) -> None:
    sha256 = sha256_of_file(copy)
    assert load_neighbours(copy, sha256) is None  # none are there
    assert load_with_neighbours(copy)[1:] == (sha256, None)
    rename(kept, copy, "0" * 64)
    assert load_neighbours(copy, sha256) is None  # another model's
    rename(kept, copy, sha256)
    assert len(load_both(copy)[1]) == 20


@pytest.mark.parametrize("end", [0, 4, 100, -10])
def test_a_damaged_file_is_refused(copy: Path, kept: Path, end: int) -> None:
    neighbours_path(copy).write_bytes(kept.read_bytes()[:end])
    with pytest.raises(ModelError, match="damaged"):
        load_with_neighbours(copy)


def test_features_that_the_model_does_not_give_are_refused(copy: Path, kept: Path) -> None:
    rename(kept, copy, sha256_of_file(copy), width=7)
    with pytest.raises(ModelError, match=r"damaged \(7 features an image are kept, the model gives 1280\)"):
        load_with_neighbours(copy)


def test_a_backbone_as_it_stands_has_no_head_to_compare_by(
    backbone: Backbone, images: Images, features: np.ndarray
) -> None:
    with pytest.raises(ModelError, match="no head"):
        keep_neighbours(backbone.path, images[:1], features=features[:1])


@pytest.mark.parametrize("tuned", [False, True], ids=["linear head", "fine-tuned"])
def test_retrain_keeps_what_the_written_model_gives(photo_source: Path, tmp_path: Path, tuned: bool) -> None:
    """Row by row: features that the model's own graph gives of an image, with this image's label and thumbnail."""
    path, cache = tmp_path / "a.onnx", tmp_path / "cache"
    options: dict[str, Any] = {"cache": cache}
    if tuned:
        add_small_backbone(cache)
        options |= {"backbone": "small", "cut": "block_1", "l2": 300.0, "method": method_of(epochs=12, rate=5e-3)}
    else:
        quickstudy.retrain(photo_source, path, **options)
        assert list(tmp_path.glob("*.arrow")) == []  # only when asked for
    result = quickstudy.retrain(photo_source, path, keep_thumbnails=True, **options)
    assert [found.name for found in tmp_path.glob("*.arrow")] == ["a.neighbours.arrow"]
    assert not tuned or result.tuning[-1]["kept"]["epoch"] > 0  # else the features would be those of the backbone

    model, found = load_both(path)
    assert len(found) == sum(result.train_counts.values())  # and none of the test images
    table = pa.ipc.open_file(neighbours_path(path)).read_all()
    rows = np.array(table.column("features").to_pylist(), np.float32)
    files = sorted(photo_source.rglob("*.jpg"))
    given = np.array([model.examine(file.read_bytes()).features for file in files])
    nearest = np.abs(rows[:, None] - given[None]).max(axis=2).argmin(axis=1)
    assert len(set(nearest.tolist())) == len(rows)
    # float16 has eleven bits; behind a cut, activations have been rounded to them before.
    np.testing.assert_allclose(rows, given[nearest], rtol=1e-3, atol=2e-3 * float(np.abs(given).max()))
    assert table.column("label").to_pylist() == [files[number].parent.name for number in nearest]
    expected = [looks.look_at(files[n].read_bytes()).thumbnail for n in nearest]
    assert table.column("thumbnail").to_pylist() == expected
