"""The nearest training images of an image: thumbnails and features of what a model was trained on, in a file beside it.

    photos.onnx             the model
    photos.neighbours.arrow thumbnails, labels and features of its training images

Thumbnails show somebody's images, so the file is written only when asked for, and never inside the model. One row an
image, without its name; the schema's metadata name the model by its hash, for features of another mean nothing.
Nearness is the cosine of what the head sees, the signed square roots of the features.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from quickstudy.backbones.runtime import open_session
from quickstudy.cores import usable_cores
from quickstudy.errors import ModelError, UnusableImageError
from quickstudy.files import sha256_of_file, write_bytes_atomically
from quickstudy.heads.softmax import signed_sqrt
from quickstudy.images.decoding import MOST_PIXELS, InputSpec, decode, fit
from quickstudy.images.identity import read_image_file
from quickstudy.models.assemble import HEAD_INPUT
from quickstudy.models.model import Model, load
from quickstudy.progress import Progress, silent

THUMBNAIL_PIXELS = 96
_QUALITY = 80
_THUMBNAIL = InputSpec(size=THUMBNAIL_PIXELS)


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A training image that is near."""

    label: str
    similarity: float
    """Cosine, at most 1."""
    thumbnail: bytes
    """A JPEG, 96×96 pixels."""


class Neighbours:
    """The training images of one model, to look up which are nearest. Safe to use from several threads."""

    def __init__(
        self,
        model: Model,
        graph: Path,
        features: NDArray[np.floating],
        labels: Sequence[str],
        thumbnails: Sequence[bytes],
    ) -> None:
        self._model = model
        self._features = _FeatureExtractor(graph)
        self._rows = _directions(features)
        self._labels = labels
        self._thumbnails = thumbnails

    def __len__(self) -> int:
        return len(self._labels)

    def nearest(self, image: bytes, count: int, *, most_pixels: int = MOST_PIXELS) -> list[Neighbour]:
        """The `count` training images nearest to an image file's bytes, nearest first.

        Raises:
            UnusableImageError: the bytes are no image that can be used.
        """
        pixels = fit(decode(image, self._model.input, most_pixels=most_pixels), self._model.input)
        similarities = self._rows @ _directions(self._features(pixels)[None])[0]
        order = np.argsort(-similarities, kind="stable")[:count]
        return [
            Neighbour(label=self._labels[row], similarity=float(similarities[row]), thumbnail=self._thumbnails[row])
            for row in order
        ]


def neighbours_path(model: Path) -> Path:
    """Where the training images of a model are kept, if they are."""
    return model.with_suffix(".neighbours.arrow")


def keep_neighbours(
    model: Path, images: Sequence[tuple[Path, str]], *, threads: int | None = None, progress: Progress = silent
) -> Path:
    """Write thumbnails, labels and features of a model's training images beside it; returns the file's path.

    Args:
        model: the `.onnx` file; each image passes through it once.
        images: files and their labels; one that can no longer be used is left out.
        threads: as many as there are cores if left out.
        progress: is told how far it has come.

    Raises:
        ModelError: the model has no such features, or the file cannot be written.
    """
    spec, extract = load(model).input, _FeatureExtractor(model)

    def row_of(item: tuple[Path, str]) -> tuple[str, bytes, NDArray[np.float16]] | None:
        try:
            data, _ = read_image_file(item[0])
            features = extract(fit(decode(data, spec), spec))
            return item[1], _thumbnail_of(data), features.astype(np.float16)
        except UnusableImageError:
            return None

    progress.start("thumbnails", len(images))
    rows = []
    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        for number, row in enumerate(pool.map(row_of, images), start=1):
            if row is not None:
                rows.append(row)
            progress.update(done=number, note="")
    progress.finish()
    path = neighbours_path(model)
    try:
        write_bytes_atomically(path, _serialise(rows, sha256_of_file(model)))
    except OSError as error:
        raise ModelError(f"Cannot write the thumbnails '{path}': {error.strerror}") from error
    return path


def load_neighbours(model: Model, graph: Path) -> Neighbours | None:
    """What is kept of a model's training images; None where nothing is, or what is there belongs to another model.

    Args:
        model: as loaded.
        graph: the file that it was loaded from.

    Raises:
        ModelError: the file of thumbnails is damaged.
    """
    path = neighbours_path(graph)
    if not path.is_file():
        return None
    try:
        with pa.memory_map(str(path)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        table.validate(full=True)
        if (table.schema.metadata or {}).get(b"model") != sha256_of_file(graph).encode():
            return None
        rows = table.column("features").combine_chunks()
        features = np.asarray(rows.flatten(), np.float16).reshape(len(rows), -1) if len(rows) else np.empty((0, 1))
        labels, thumbnails = table.column("label").to_pylist(), table.column("thumbnail").to_pylist()
        return Neighbours(model, graph, features, labels, thumbnails)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"The thumbnails '{path}' are damaged ({error}); write them anew or delete them") from None


class _FeatureExtractor:
    """A model up to what its head sees."""

    def __init__(self, graph: Path) -> None:
        proto = onnx.load(graph, load_external_data=False)
        # The head begins with the sign of the features, whatever the features are called in this graph.
        found = [node.input[0] for node in proto.graph.node if node.name == HEAD_INPUT]
        if len(found) != 1:
            raise ModelError(f"'{graph}' has no head of quickstudy's, whose features could be compared")
        del proto.graph.output[:]
        proto.graph.output.append(helper.make_tensor_value_info(found[0], TensorProto.FLOAT, None))
        self._output = found[0]
        self._session = open_session(proto.SerializeToString())

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        features: NDArray[np.float32] = self._session.run([self._output], {"image": pixels[None]})[0][0]
        return features


def _directions(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Signed square roots of rows (n×d), each scaled to length 1."""
    roots = signed_sqrt(features)
    lengths = np.linalg.norm(roots, axis=1, keepdims=True)
    return np.asarray(roots / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _thumbnail_of(data: bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(fit(decode(data, _THUMBNAIL), _THUMBNAIL)).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _serialise(rows: Sequence[tuple[str, bytes, NDArray[np.float16]]], model_sha256: str) -> memoryview:
    width = len(rows[0][2]) if rows else 1
    values = np.concatenate([features for *_, features in rows]) if rows else np.empty(0, np.float16)
    columns = {
        "label": pa.array([label for label, *_ in rows], pa.string()),
        "thumbnail": pa.array([thumbnail for _, thumbnail, _ in rows], pa.large_binary()),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float16()), width),
    }
    table = pa.table(columns).replace_schema_metadata({"model": model_sha256})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())
