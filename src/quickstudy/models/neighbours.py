"""The nearest training images of an image: thumbnails and features of what a model was trained on, in a file beside it.

    photos.onnx             the model
    photos.neighbours.arrow thumbnails, labels and features of its training images

Thumbnails show somebody's images, so the file is written only when asked for, and never inside the model. One row an
image, without its name; the schema's metadata name the model by its hash, for features of another mean nothing.
Nearness is the cosine of what the head sees, the signed square roots of the features. Those of the training images come
from who has trained the model, in float16; those of a new image from the model's own graph, in the pass that classifies
it. Both are the same tensor, so a training image is its own nearest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from quickstudy.backbones.graphs.untrusted import parse_onnx
from quickstudy.bottlenecks.looks import view_gallery
from quickstudy.errors import ModelError, WriteError
from quickstudy.files import write_bytes_atomically
from quickstudy.images.census import Content
from quickstudy.learning.features import signed_sqrt, unit_rows
from quickstudy.models.format import HEAD_WEIGHTS, features_in
from quickstudy.models.loading import load_bytes, read_model_file
from quickstudy.models.model import Model
from quickstudy.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A training image that is near."""

    label: str
    """The name of its class."""
    similarity: float
    """Cosine between what the head sees of the two images, from -1 to 1, the same direction."""
    thumbnail: bytes
    """The image as a JPEG file, at most 96 pixels wide and high."""


class Neighbours:
    """The training images of one model, to look up which are nearest. Several threads may use it at once."""

    def __init__(self, features: NDArray[np.floating], labels: Sequence[str], thumbnails: Sequence[bytes]) -> None:
        self._rows = unit_rows(signed_sqrt(features))
        self._labels = labels
        self._thumbnails = thumbnails

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def width(self) -> int:
        """Number of features of an image."""
        return int(self._rows.shape[1])

    def nearest(self, features: NDArray[np.floating], count: int) -> list[Neighbour]:
        """Find the `count` training images nearest to one whose features (d) the same model gave, nearest first."""
        similarities = self._rows @ unit_rows(signed_sqrt(features[None]))[0]
        order = np.argsort(-similarities, kind="stable")[:count]
        return [
            Neighbour(label=self._labels[row], similarity=float(similarities[row]), thumbnail=self._thumbnails[row])
            for row in order
        ]


def neighbours_path(model: Path) -> Path:
    """Say where the training images of a model are kept, if they are."""
    return model.with_suffix(".neighbours.arrow")


def keep_neighbours(
    model: Path,
    images: Sequence[Content],
    *,
    features: NDArray[np.floating],
    cache: str | Path | None = None,
    progress: Progress = silent,
) -> Path:
    """Write thumbnails, labels and features of a model's training images beside it, and return the file's path.

    The network does not run: who has trained the model has the features. Thumbnails are those of the images' looks,
    which are kept in the store, so nothing is decoded that was looked at before.

    Args:
        model: the `.onnx` file.
        images: the images with their labels; one that can no longer be used is left out.
        features: what the model's head sees of each image (n×d), in their order.
        cache: folder of the store; see `quickstudy.files.cache_folder`.
        progress: is told how far it has come.

    Raises:
        ModelError: the model's head sees no such features.
        WriteError: the file cannot be written.
    """
    data = read_model_file(model)
    _require_features(data, model, images=len(images), given=features.shape)
    thumbnails = view_gallery(images, cache=cache, progress=progress).thumbnails
    path = neighbours_path(model)
    try:
        labels = [image.label or "" for image in images]
        write_bytes_atomically(path, _serialise(labels, thumbnails, features, hashlib.sha256(data).hexdigest()))
    except OSError as error:
        raise WriteError(f"Cannot write the thumbnails '{path}': {error.strerror}") from error
    return path


def load_neighbours(model: Path, model_sha256: str) -> Neighbours | None:
    """Load what is kept of a model's training images; None where nothing is, or what is there is another model's.

    Args:
        model: the file beside which they lie.
        model_sha256: SHA-256 of the model file, 64 hexadecimal digits.

    Raises:
        ModelError: the file of thumbnails is damaged.
    """
    path = neighbours_path(model)
    if not path.is_file():
        return None
    try:
        with pa.memory_map(str(path)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        table.validate(full=True)
        if (table.schema.metadata or {}).get(b"model") != model_sha256.encode():
            return None
        rows = table.column("features").combine_chunks()
        features = np.asarray(rows.flatten(), np.float16).reshape(len(rows), rows.type.list_size)
        return Neighbours(features, table.column("label").to_pylist(), table.column("thumbnail").to_pylist())
    except (OSError, pa.ArrowException, AttributeError, KeyError, ValueError, TypeError) as error:
        raise _damaged(path, error) from None


def load_with_neighbours(path: Path) -> tuple[Model, str, Neighbours | None]:
    """Load a model, the SHA-256 of its file, and its training images where they are kept, for which it gives features.

    Raises:
        ModelError: as `load` and `load_neighbours`; or the model gives other features than are kept.
    """
    data = read_model_file(path)
    sha256 = hashlib.sha256(data).hexdigest()
    neighbours = load_neighbours(path, sha256)
    model = load_bytes(data, path, with_features=neighbours is not None)
    if neighbours is not None:
        features = model.predict_pixels_with_features(np.zeros((1, *model.input.shape), np.uint8))[1]
        if features.shape != (1, neighbours.width):
            difference = f"{neighbours.width} features an image are kept, the model gives {features.size}"
            raise _damaged(neighbours_path(path), difference)
    return model, sha256, neighbours


def _require_features(data: bytes, model: Path, *, images: int, given: tuple[int, ...]) -> None:
    """Check that the head of a model takes features of this width."""
    graph = parse_onnx(data, model)
    weights = [tensor.dims for tensor in graph.graph.initializer if tensor.name == HEAD_WEIGHTS]
    if features_in(graph) is None or len(weights) != 1:
        raise ModelError(f"'{model}' has no head of quickstudy's, whose features could be compared")
    wanted = weights[0][0]
    if given != (images, wanted):
        raise ModelError(
            f"The features are of shape {given}; expected ({images}, {wanted}), as the head of '{model}' sees"
        )


def _damaged(path: Path, reason: object) -> ModelError:
    return ModelError(f"The thumbnails '{path}' are damaged ({reason}); write them anew or delete them")


def _serialise(
    labels: Sequence[str], thumbnails: Sequence[bytes], features: NDArray[np.floating], model_sha256: str
) -> memoryview:
    """Write the file to bytes, without the images that have no thumbnail."""
    kept = [row for row, thumbnail in enumerate(thumbnails) if thumbnail]
    values = np.ascontiguousarray(features[kept], np.float16)
    columns = {
        "label": pa.array([labels[row] for row in kept], pa.string()),
        "thumbnail": pa.array([thumbnails[row] for row in kept], pa.large_binary()),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float16()), values.shape[1]),
    }
    table = pa.table(columns).replace_schema_metadata({"model": model_sha256})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())
