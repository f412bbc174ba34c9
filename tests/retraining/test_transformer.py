"""`Bottleneck` behaves as scikit-learn expects of a transformer, and goes through the store."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

import quickstudy
from quickstudy.bottlenecks.store import Store
from quickstudy.errors import UnusableImageError


def test_clone_keeps_the_parameters(cache: Path) -> None:
    transformer = quickstudy.Bottleneck(cache=cache, dtype="float32", engine="openvino")
    assert clone(transformer).get_params() == {
        "backbone": "efficientnet_lite0",
        "levels": False,
        "image_fit": None,
        "cache": cache,
        "dtype": "float32",
        "engine": "openvino",
    }


def test_a_pipeline_is_cross_validated_with_one_forward_pass_an_image(photos: Path, cache: Path) -> None:
    paths = sorted(photos.rglob("*.jpg"))
    labels = [path.parent.name for path in paths]
    pipeline = make_pipeline(quickstudy.Bottleneck(cache=cache), LogisticRegression(C=0.1))
    assert cross_val_score(pipeline, paths, labels, cv=3).mean() > 0.9
    assert sum(summary.bottlenecks for summary in Store(cache / "bottlenecks").summaries()) == len(paths)


def test_paths_images_and_arrays_of_one_picture_give_one_bottleneck(photos: Path, cache: Path) -> None:
    path = sorted(photos.rglob("*.jpg"))[0]
    image = Image.open(path)
    pixels = np.asarray(image)
    given = [str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), image, pixels, pixels / 255]
    transformer = quickstudy.Bottleneck(cache=cache)
    features = transformer.fit_transform(given)
    assert features.shape == (len(given), 1280)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, np.repeat(features[:1], len(given), axis=0))
    np.testing.assert_array_equal(transformer.transform(path), features[:1])
    with pytest.raises(UnusableImageError, match="Cannot use image 0 of X: None, which is not an image"):
        transformer.transform([None])


def test_an_unusable_image_is_named(photos: Path, cache: Path) -> None:
    broken = photos / "broken.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(UnusableImageError, match=r"image 1 of X: not an image"):
        quickstudy.Bottleneck(cache=cache).transform([sorted(photos.rglob("*/*.jpg"))[0], broken])


def test_the_public_names_are_all_there() -> None:
    for name in quickstudy.__all__:
        assert getattr(quickstudy, name)
    with pytest.raises(AttributeError, match="nonsense"):
        quickstudy.nonsense  # noqa: B018
