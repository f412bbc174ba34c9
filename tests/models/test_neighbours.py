"""The nearest training images, against a slow obvious search; and what is kept of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import quickstudy
from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.runtime import Prefix
from quickstudy.errors import ModelError, UnusableImageError
from quickstudy.images.decoding import decode, fit
from quickstudy.models.assemble import LinearHead, write_model
from quickstudy.models.model import load
from quickstudy.models.neighbours import keep_neighbours, load_neighbours, neighbours_path


@pytest.fixture(scope="module")
def model_path(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("neighbours") / "model.onnx"
    weights = np.random.Generator(np.random.PCG64(0)).normal(0, 0.05, (backbone.cut_shape[0], 3)).astype(np.float32)
    head = LinearHead(weights=weights, biases=np.zeros(3, np.float32))
    write_model(path, backbone, head, classes=("checks", "discs", "stripes"), training={})
    return path


@pytest.fixture(scope="module")
def images(photo_source: Path) -> list[tuple[Path, str]]:
    return [(path, path.parent.name) for path in sorted(photo_source.rglob("*.jpg"))]


@pytest.fixture(scope="module")
def kept(model_path: Path, images: list[tuple[Path, str]]) -> Path:
    return keep_neighbours(model_path, images[:20])


def test_are_those_with_the_largest_cosine_of_signed_roots(
    backbone: Backbone, model_path: Path, images: list[tuple[Path, str]], kept: Path
) -> None:
    model = load(model_path)
    neighbours = load_neighbours(model, model_path)
    assert neighbours is not None
    assert len(neighbours) == 20
    prefix = Prefix(backbone, backbone.cut, backbone.cut_shape)

    def direction(path: Path) -> np.ndarray:
        values = prefix(fit(decode(path.read_bytes(), model.input), model.input)[None])[0].astype(float)
        roots = np.array([np.sqrt(v) if v > 0 else -np.sqrt(-v) for v in values])
        return roots / np.sqrt((roots**2).sum())

    rows = [(direction(path), label) for path, label in images[:20]]
    for path, _ in (images[25], images[31]):
        query = direction(path)
        expected = sorted(((float(row @ query), label) for row, label in rows), reverse=True)[:5]
        found = neighbours.nearest(path.read_bytes(), 5)
        assert [neighbour.label for neighbour in found] == [label for _, label in expected]
        np.testing.assert_allclose([n.similarity for n in found], [s for s, _ in expected], atol=1e-3)


def test_a_training_image_is_its_own_nearest(model_path: Path, images: list[tuple[Path, str]], kept: Path) -> None:
    neighbours = load_neighbours(load(model_path), model_path)
    assert neighbours is not None
    [nearest] = neighbours.nearest(images[7][0].read_bytes(), 1)
    assert nearest.similarity == pytest.approx(1, abs=1e-3)
    with Image.open(io.BytesIO(nearest.thumbnail)) as thumbnail, Image.open(images[7][0]) as original:
        assert thumbnail.size == (96, 96)
        square = original.crop((20, 0, 300, 280)).resize((96, 96))
        assert np.abs(np.asarray(thumbnail, int) - np.asarray(square, int)).mean() < 8
    with pytest.raises(UnusableImageError):
        neighbours.nearest(b"no image", 1)


def test_files_that_have_gone_bad_since_are_left_out(
    model_path: Path, images: list[tuple[Path, str]], tmp_path: Path
) -> None:
    copy = tmp_path / "model.onnx"
    copy.write_bytes(model_path.read_bytes())
    (tmp_path / "bad.jpg").write_bytes(b"x")
    keep_neighbours(copy, [images[0], (tmp_path / "bad.jpg", "checks"), (tmp_path / "gone.jpg", "discs"), images[1]])
    neighbours = load_neighbours(load(copy), copy)
    assert neighbours is not None
    assert len(neighbours) == 2


def test_holds_no_names_of_files(kept: Path, images: list[tuple[Path, str]]) -> None:
    data = kept.read_bytes()
    assert b".jpg" not in data
    assert str(images[0][0].parent).encode() not in data


def test_belong_to_one_model(model_path: Path, kept: Path, tmp_path: Path) -> None:
    model = load(model_path)
    other = tmp_path / "other.onnx"
    other.write_bytes(model_path.read_bytes() + b"\x00\x00"[:0])
    assert load_neighbours(model, other) is None  # none are there
    table = pa.ipc.open_file(kept).read_all()
    with pa.ipc.new_file(neighbours_path(other), table.schema.with_metadata({"model": "0" * 64})) as writer:
        writer.write_table(table.replace_schema_metadata({"model": "0" * 64}))
    assert load_neighbours(model, other) is None  # another model's


@pytest.mark.parametrize("end", [0, 4, 100, -10])
def test_a_damaged_file_is_refused(model_path: Path, kept: Path, tmp_path: Path, end: int) -> None:
    copy = tmp_path / "model.onnx"
    copy.write_bytes(model_path.read_bytes())
    neighbours_path(copy).write_bytes(kept.read_bytes()[:end])
    with pytest.raises(ModelError, match="damaged"):
        load_neighbours(load(copy), copy)


def test_a_backbone_as_it_stands_has_no_head_to_compare_by(backbone: Backbone, images: list[tuple[Path, str]]) -> None:
    with pytest.raises(ModelError):
        keep_neighbours(backbone.path, images[:1])


def test_retrain_keeps_them_only_when_asked(photo_source: Path, tmp_path: Path) -> None:
    quickstudy.retrain(photo_source, tmp_path / "a.onnx", cache=tmp_path / "cache")
    assert sorted(path.name for path in tmp_path.glob("*.arrow")) == []
    result = quickstudy.retrain(photo_source, tmp_path / "a.onnx", cache=tmp_path / "cache", keep_thumbnails=True)
    assert [path.name for path in tmp_path.glob("*.arrow")] == ["a.neighbours.arrow"]
    neighbours = load_neighbours(load(tmp_path / "a.onnx"), tmp_path / "a.onnx")
    assert neighbours is not None
    assert len(neighbours) == sum(result.train_counts.values())  # and none of the test images
