"""A shard: an immutable Arrow IPC file with bottlenecks of one source, named by the SHA-256 of its own bytes.

Its columns are `key` (32 bytes) and `bottleneck` (fixed-size list of float16 or float32); the schema's metadata name
the source and the shape. Stores on a disk and in object storage hold the same files, so a shard can be copied between
them as it is, and its name tells whether it arrived whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SUFFIX = ".arrow"
_USUAL_ENGINE = "onnxruntime"
_ARROW_TYPES = {"float16": pa.float16(), "float32": pa.float32()}


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """All that decides a bottleneck besides the image and its view."""

    backbone: str
    """Name, for people."""
    fingerprint: str
    """Hash of the backbone's graph and weights."""
    cut: str
    """Name of the tensor at which freezing ends."""
    input: Mapping[str, Any]
    """The input specification that turned the file into pixels."""
    shape: tuple[int, ...]
    """Shape of one bottleneck."""
    dtype: str = "float16"
    engine: str = _USUAL_ENGINE
    """What ran the network."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; what is written to `source.json`."""
        return {
            "version": 1,
            "backbone": self.backbone,
            "fingerprint": self.fingerprint,
            "cut": self.cut,
            "input": dict(self.input),
            "shape": list(self.shape),
            "dtype": self.dtype,
            **({} if self.engine == _USUAL_ENGINE else {"engine": self.engine}),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> SourceSpec:
        """The reverse of `to_dict`.

        Raises:
            KeyError, TypeError: something is missing, or of another kind.
        """
        return SourceSpec(
            backbone=values["backbone"],
            fingerprint=values["fingerprint"],
            cut=values["cut"],
            input=values["input"],
            shape=tuple(values["shape"]),
            dtype=values["dtype"],
            engine=values.get("engine", _USUAL_ENGINE),
        )

    @property
    def identity(self) -> str:
        """The name of the source's folder: a hash of everything above but the name for people."""
        named = {name: value for name, value in self.to_dict().items() if name != "backbone"}
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def width(self) -> int:
        """How many values a bottleneck has."""
        return int(np.prod(self.shape))


@dataclass(kw_only=True)
class Shard:
    """A shard on this machine's disk, mapped into memory."""

    path: Path
    keys: list[bytes]
    values: NDArray[np.floating]
    batch: object = field(repr=False)
    """Keeps the file mapped."""


def name_of(data: bytes | memoryview) -> str:
    """The file name of a shard with these bytes."""
    return f"{hashlib.sha256(data).hexdigest()}{SUFFIX}"


def serialise(spec: SourceSpec, keys: Sequence[bytes], rows: NDArray[np.floating]) -> memoryview:
    """The bytes of a shard: `keys` of 32 bytes each, `rows` len(keys) × width, contiguous, in the source's dtype."""
    metadata = {"shape": json.dumps(list(spec.shape)), "source": spec.identity}
    value_type = pa.list_(_ARROW_TYPES[spec.dtype], spec.width)
    schema = pa.schema(
        [pa.field("key", pa.binary(32), nullable=False), pa.field("bottleneck", value_type, nullable=False)],
        metadata=metadata,
    )
    columns = [
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(keys), [None, pa.py_buffer(b"".join(keys))]),
        pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), spec.width),
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    return memoryview(sink.getvalue())


def map_shard(path: Path, spec: SourceSpec) -> Shard:
    """Map a shard on the disk into memory.

    Raises:
        FileNotFoundError: it is gone.
        OSError, pyarrow.ArrowException, ValueError, IndexError: it is damaged, or no shard of this source.
    """
    # Closed at once, the file stays mapped for as long as the batch lives; open files would run out in long runs.
    with pa.memory_map(str(path)) as mapped:
        batch = _read_batch(pa.ipc.open_file(mapped), spec)
    batch.validate()
    keys, lists = batch.column(0), batch.column(1)
    if keys.type != pa.binary(32) or lists.type != pa.list_(_ARROW_TYPES[spec.dtype], spec.width):
        raise ValueError("columns of other types")
    values = np.frombuffer(lists.values.buffers()[1], np.dtype(spec.dtype), count=len(lists) * spec.width)
    return Shard(path=path, keys=_split(keys), values=values.reshape(len(lists), spec.width), batch=batch)


def read_keys(file: pa.NativeFile, spec: SourceSpec) -> list[bytes]:
    """The keys of a shard in a file that can be read at any place; of its bottlenecks, nothing is read.

    Raises:
        OSError, pyarrow.ArrowException, ValueError, IndexError: it is damaged, or no shard of this source.
    """
    batch = _read_batch(pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=[0])), spec)
    batch.validate()
    if batch.column(0).type != pa.binary(32):
        raise ValueError("columns of other types")
    return _split(batch.column(0))


def _read_batch(reader: pa.ipc.RecordBatchFileReader, spec: SourceSpec) -> pa.RecordBatch:
    metadata = reader.schema.metadata or {}
    if reader.num_record_batches != 1 or metadata.get(b"source") != spec.identity.encode():
        raise ValueError("not a shard of this source")
    return reader.get_batch(0)


def _split(keys: pa.FixedSizeBinaryArray) -> list[bytes]:
    raw = memoryview(keys.buffers()[1])
    return [bytes(raw[start : start + 32]) for start in range(0, 32 * len(keys), 32)]
