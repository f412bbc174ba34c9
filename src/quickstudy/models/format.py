"""What a model file is made of: names, checksum and golden checks.

Its metadata are properties with names of their own, whose values are JSON.

The last of them, `quickstudy.sha256`, is a checksum over every byte before it, by which any change since the file was
written is noticed before anything is run: without parsing, 11 ms for 14 MB. Protocol buffers may be put together from
pieces, so for all other readers it is a property like the others. It protects against damage, not against malice:
whoever changes a file on purpose can seal it again, so what the graph holds is looked at, too (`check_graph`).

By the golden checks a model proves that it still gives what it gave. Their images are made from SHAKE-128 of a fixed
text, not from a generator of numbers, so that any language on any machine makes the same ones.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from quickstudy.errors import ModelError
from quickstudy.files import as_path
from quickstudy.images.decoding import InputSpec

PREFIX = "quickstudy."
"""The beginning of the name of each metadata property."""
FORMAT = 3
"""The version of the format. Since 2, files end with a checksum; since 3, they carry the roles of the images that they
were made from."""
HEAD_INPUT = "head/sign"
"""Name of the node that takes the features, whatever the features are called in the graph."""
HEAD_WEIGHTS = "head/weights"
"""Name of the head's weights, features × classes."""
HEAD_NAMES = "head/names"
"""Name of what the names of the classes say, features × classes, where they count."""
STRANGENESS = "strangeness"
"""Name of the second output, where a model has it, and of its golden checks."""


def model_path(output: str | Path) -> Path:
    """Take the place of a model that is to be written.

    Raises:
        ModelError: its name does not end with `.onnx`.
    """
    path = as_path(output)
    if path.suffix != ".onnx":
        raise ModelError(f"The model must be named *.onnx; got '{path}'")
    return path


def features_in(graph: onnx.ModelProto) -> str | None:
    """Find the name of the tensor that the head takes; None where there is no head of quickstudy's."""
    found = [node.input[0] for node in graph.graph.node if node.name == HEAD_INPUT and node.input]
    return found[0] if len(found) == 1 else None


# The checksum
_KEY = f"{PREFIX}sha256".encode()
_DIGITS = 64
_VALUE_BYTES = _DIGITS + 2  # in quotes, since all properties are JSON
# Field 14 of ModelProto, a message (wire type 2); in it field 1, the key, and field 2, the value.
_ENTRY = bytes([1 << 3 | 2, len(_KEY)]) + _KEY + bytes([2 << 3 | 2, _VALUE_BYTES])
_START = bytes([14 << 3 | 2, len(_ENTRY) + _VALUE_BYTES]) + _ENTRY
_SEAL_BYTES = len(_START) + _VALUE_BYTES


def sealed(graph: onnx.ModelProto) -> bytes:
    """Write a model file to bytes: the graph, and last the checksum; an older one is left out."""
    kept = [(entry.key, entry.value) for entry in graph.metadata_props if entry.key != _KEY.decode()]
    del graph.metadata_props[:]
    for key, value in kept:
        graph.metadata_props.add(key=key, value=value)
    body: bytes = graph.SerializeToString(deterministic=True)
    return body + _START + json.dumps(hashlib.sha256(body).hexdigest()).encode()


def examine_seal(data: bytes) -> Literal["intact", "broken", "missing"]:
    """Say whether a file is as it was written; `missing` where it does not end with a checksum."""
    end = memoryview(data)[-_SEAL_BYTES:]
    if len(end) < _SEAL_BYTES or end[: len(_START)] != _START:
        return "missing"
    expected = json.dumps(hashlib.sha256(memoryview(data)[:-_SEAL_BYTES]).hexdigest()).encode()
    return "intact" if end[len(_START) :] == expected else "broken"


# Golden checks
GOLDEN_COUNT = 3
"""Number of golden images."""
GOLDEN_TOLERANCE = 1e-4
"""Largest difference of a probability that counts as agreement; runtimes and processors differ by about 1e-6."""
STRANGENESS_LOOSER = 10
"""The number of times that the strangeness of a golden image may differ by more than a probability: it is a share of
images, and a small step of its scale passes several."""
LOOSEST_TOLERANCE = 0.1
"""The largest tolerance that a model may claim: rounding to 8 bits may fall the other way on another processor."""

_COARSE = 8


def golden_images(spec: InputSpec) -> NDArray[np.uint8]:
    """Make the images (GOLDEN_COUNT × `spec.shape`): 8×8 random tiles, each plus fine noise, like a coarse picture."""
    images, (height, width, _) = [], spec.shape
    for number in range(GOLDEN_COUNT):
        stream = hashlib.shake_128(f"quickstudy golden {number}".encode()).digest(_COARSE**2 * 3 + height * width * 3)
        tiles = np.frombuffer(stream[: _COARSE**2 * 3], np.uint8).reshape(_COARSE, _COARSE, 3)
        noise = np.frombuffer(stream[_COARSE**2 * 3 :], np.uint8).reshape(spec.shape)
        rows, columns = (np.arange(side) * _COARSE // side for side in (height, width))
        images.append((tiles[rows][:, columns] // 2 + noise // 4 + 16).astype(np.uint8))
    return np.stack(images)


# Limits of what a model says of itself
MOST_CLASSES = 1 << 20
"""The most classes."""
LARGEST_SIDE = 4096
"""The largest side of the input, in pixels."""
