"""The checksum at the end of a model file, by which any change since it was written is noticed before anything is run.

It is the last metadata property of the file, `quickstudy.sha256`, and covers every byte before it. Protocol buffers
may be put together from pieces, so for all other readers it is a property like the others. It protects against damage,
not against malice: whoever changes a file on purpose can seal it again. `safety.py` limits what such a file may hold.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Literal

from quickstudy.models.metadata import PREFIX

if TYPE_CHECKING:
    import onnx

_KEY = f"{PREFIX}sha256".encode()
_DIGITS = 64
_VALUE_BYTES = _DIGITS + 2  # in quotes, since all properties are JSON
# Field 14 of ModelProto, a message (wire type 2); in it field 1, the key, and field 2, the value.
_ENTRY = bytes([1 << 3 | 2, len(_KEY)]) + _KEY + bytes([2 << 3 | 2, _VALUE_BYTES])
_START = bytes([14 << 3 | 2, len(_ENTRY) + _VALUE_BYTES]) + _ENTRY
_SEAL_BYTES = len(_START) + _VALUE_BYTES


def sealed(graph: onnx.ModelProto) -> bytes:
    """The bytes of a model file: the graph, and last the checksum; an older one is left out."""
    kept = [(entry.key, entry.value) for entry in graph.metadata_props if entry.key != _KEY.decode()]
    del graph.metadata_props[:]
    for key, value in kept:
        graph.metadata_props.add(key=key, value=value)
    body: bytes = graph.SerializeToString(deterministic=True)
    return body + _START + json.dumps(hashlib.sha256(body).hexdigest()).encode()


def examine_seal(data: bytes) -> Literal["intact", "broken", "missing"]:
    """Whether a file is as it was written; `missing` where it does not end with a checksum."""
    end = memoryview(data)[-_SEAL_BYTES:]
    if len(end) < _SEAL_BYTES or end[: len(_START)] != _START:
        return "missing"
    expected = json.dumps(hashlib.sha256(memoryview(data)[:-_SEAL_BYTES]).hexdigest()).encode()
    return "intact" if end[len(_START) :] == expected else "broken"
