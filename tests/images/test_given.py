"""What callers may give as images: what is clear is taken, what is not is refused with the way out."""

from __future__ import annotations

import copy
import io
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quickstudy.errors import UnusableImageError
from quickstudy.images.given import file_of, one_by_one, pixels_of
from quickstudy.models.loading import load
from quickstudy.models.model import Model
from small_models import CLASSES, write_small_model


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load(write_small_model(tmp_path / "small.onnx"))


@pytest.fixture
def photo(photo_source: Path) -> Path:
    return next(photo_source.rglob("*.jpg"))


def test_a_file_is_one_in_any_form(photo: Path, model: Model) -> None:
    data = photo.read_bytes()
    expected = model.predict_proba(photo)
    written = io.BytesIO()
    written.write(data)  # where it is at its end, as after saving
    entry = next(entry for entry in os.scandir(photo.parent) if entry.name == photo.name)
    with photo.open("rb") as file:
        for given in (data, bytearray(data), memoryview(data), written, file, entry, str(photo), Image.open(photo)):
            np.testing.assert_array_equal(model.predict_proba(given), expected)
            np.testing.assert_array_equal(model.predict_proba([given]), expected)


def test_arrays_of_paths_are_lists_of_them(photo: Path, model: Model) -> None:
    expected = model.predict_proba([photo, photo])
    for paths in (np.array([str(photo)] * 2), np.array([photo] * 2, object), np.array([[str(photo)], [str(photo)]])):
        np.testing.assert_array_equal(model.predict_proba(paths), expected)
    assert list(one_by_one(np.array("a.jpg"))) == ["a.jpg"]


def test_a_batch_is_its_images(photo: Path, model: Model) -> None:
    pixels = np.asarray(Image.open(photo))
    expected = model.predict_proba(pixels)
    for batch in (np.stack([pixels] * 2), np.stack([pixels.transpose(2, 0, 1)] * 2)):
        np.testing.assert_array_equal(model.predict_proba(batch), np.repeat(expected, 2, axis=0))


def test_tensors_and_floats_are_pictures(photo: Path) -> None:
    pixels = np.asarray(Image.open(photo))
    first = pixels.transpose(2, 0, 1)

    def tensor(array: Any) -> Any:
        return SimpleNamespace(detach=lambda: SimpleNamespace(cpu=lambda: SimpleNamespace(numpy=lambda: array)), cpu=0)

    for given in (tensor(first), tensor(first / 255), first, pixels / 255, (pixels / 255).astype(np.float32)):
        np.testing.assert_array_equal(pixels_of(given), pixels)
    grey = pixels[..., :1]
    np.testing.assert_array_equal(pixels_of(grey), np.repeat(grey, 3, axis=2))


def test_a_real_tensor(photo: Path, model: Model) -> None:
    torch = pytest.importorskip("torch")
    pixels = np.array(Image.open(photo))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    np.testing.assert_array_equal(model.predict_proba(tensor / 255.0), model.predict_proba(pixels))
    assert len(model.predict(torch.stack([tensor] * 3))) == 3


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "None, which is not an image; expected a path, an image file's bytes"),
        (7, "an int, which is not an image"),
        ([[1, 2]], "a list, which is not an image"),
        (np.full((4, 4, 3), 255.0), "values from 255 to 255; expected floats from 0 to 1, or uint8"),
        (np.full((4, 4, 3), -1.0), "values from -1 to -1"),
        (np.full((4, 4, 3), np.nan), "values from nan to nan"),
        (np.zeros((4, 4, 3), np.int64), "an array of int64 and shape (4, 4, 3); expected uint8"),
        (np.zeros((9, 5, 7), np.uint8), "give several images as a list"),
        (io.StringIO("text"), "a file that is open as text; open it as bytes ('rb')"),
        (b"text", "not an image"),
    ],
)
def test_what_is_unclear_is_refused_in_words(given: Any, told: str, model: Model) -> None:
    with pytest.raises(UnusableImageError) as caught:
        model.predict(given)
    assert told in str(caught.value)


def test_one_that_is_refused_ends_nothing(photo: Path, model: Model) -> None:
    first, second = model.predict_each([None, photo])  # type: ignore[list-item]
    assert first.probabilities is None
    assert second.probabilities is not None


def test_a_closed_file_is_said_to_be_one() -> None:
    file = io.BytesIO()
    file.close()
    with pytest.raises(UnusableImageError, match="a file that cannot be read"):
        file_of(file)


def test_a_model_is_its_file(photo: Path, model: Model, tmp_path: Path) -> None:
    written = pickle.dumps(model)
    (tmp_path / "small.onnx").unlink()
    for other in (pickle.loads(written), copy.deepcopy(model), copy.copy(model)):
        assert other.classes == model.classes
        assert other.metadata == model.metadata
        np.testing.assert_array_equal(other.predict_proba(photo), model.predict_proba(photo))


def test_a_model_says_what_it_is(model: Model) -> None:
    listed = ", ".join(f"'{name}'" for name in CLASSES)
    assert repr(model) == f"<quickstudy.Model of 4 classes ({listed}), 75.0 % right of 12 test images, on small>"


def test_an_empty_path_is_no_image() -> None:
    with pytest.raises(UnusableImageError, match="an empty path, ''"):
        file_of("")
