"""Makes backbones of ONNX files, whoever they come from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.graph_import import Imported, import_graph
from quickstudy.backbones.image_input import find_image_input
from quickstudy.backbones.preprocessing import Preprocessing
from quickstudy.backbones.runtime import open_session
from quickstudy.backbones.untrusted import read_onnx
from quickstudy.errors import BackboneError

_MOST_CLASSES_BYTES = 10 << 20


def import_onnx(
    path: Path,
    *,
    size: int | None = None,
    layout: str | None = None,
    preprocessing: Preprocessing | None = None,
    features: str = "",
    classes: Sequence[str] | None = None,
) -> Imported:
    """Make a backbone of an ONNX file, which need not be trusted.

    Args:
        path: the file.
        size: side of the input in pixels, where the file leaves it open.
        layout: `NCHW` or `NHWC`, where the file leaves it open.
        preprocessing: what becomes of bytes before the network; left out, it is read from the graph if it stands there.
        features: the tensor that is the penultimate layer; left out, it is found.
        classes: names in the order of the outputs; left out, ImageNet's where there are 1,000.

    Raises:
        BackboneError: the file is none, or is damaged, or does not say enough, or the backbone differs from it.
        UnsafeFileError: it is too large, or asks for files outside its folder or operators of libraries.
    """
    model = read_onnx(path)
    image = find_image_input(model, size=size, layout=layout)
    session = open_session(model.SerializeToString())
    output = model.graph.output[0].name

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        given = images.transpose(0, 3, 1, 2) if image.layout == "NCHW" else images
        given = given.astype(np.uint8) if image.as_bytes else given
        return np.concatenate([session.run([output], {image.name: one[None]})[0] for one in given])

    imported = import_graph(
        model, image, reference=run, preprocessing=preprocessing, features=features, classes=classes
    )
    return replace(imported, name=re.sub(r"[^a-z0-9]+", "_", path.stem.lower()).strip("_"), origin=path.name)


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of classes from a text file, one a line.

    Raises:
        BackboneError: there is no such file, or it is no such list.
    """
    try:
        if path.stat().st_size > _MOST_CLASSES_BYTES:
            raise BackboneError(f"'{path}' is larger than {_MOST_CLASSES_BYTES >> 20} MiB; expected names, one a line")
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise BackboneError(f"Cannot read the classes in '{path}': {error}; expected names, one a line") from None
    if len(set(names)) != len(names) or not all(names):
        raise BackboneError(f"'{path}' has a name twice or an empty line; expected a name for each class, one a line")
    return names
