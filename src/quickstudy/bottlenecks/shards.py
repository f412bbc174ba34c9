"""Shards, the files that a store consists of, and the sources that they belong to.

A shard is an Arrow IPC file with the columns `key` (32 bytes) and `bottleneck` (fixed-size list of float16 or float32),
or `record` where a source keeps records; the schema's metadata name the source and the shape. float16, the usual one,
takes half the space and leads to the same decisions. The key holds the number of a view and its distortions (see
`quickstudy.images.views.view_key`), not a column of its own: so it names everything that changes the value besides the
source, and one column is enough. Stores on a disk and in object storage hold the same files, so a shard can be copied
between them as it is, and its name tells whether it arrived whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SUFFIX = ".arrow"
"""The suffix of shards."""
_USUAL_ENGINE = "onnxruntime"
_ARROW_TYPES = {"float16": pa.float16(), "float32": pa.float32()}
_RECORD_TYPES = {"int": pa.int32(), "float": pa.float32(), "bytes": pa.binary()}


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """All that decides a bottleneck besides the image and its view."""

    backbone: str
    """Name of the network, for people; no part of the identity."""
    fingerprint: str
    """Hash of the backbone's graph and weights."""
    cut: str
    """Name of the tensor at which freezing ends."""
    input: Mapping[str, Any]
    """The input specification that turned the file into pixels."""
    shape: tuple[int, ...]
    """Shape of one bottleneck; empty for records."""
    dtype: str = "float16"
    """Type of the values, `float16` or `float32`; `record` for records."""
    engine: str = _USUAL_ENGINE
    """Name of the engine that ran the network; empty where none did."""
    record: tuple[tuple[str, str], ...] = ()
    """Name and kind of each field of a record, where a source keeps records and no bottlenecks; empty elsewhere."""

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values, which are written to `source.json`."""
        return {
            "version": 1,
            "backbone": self.backbone,
            "fingerprint": self.fingerprint,
            "cut": self.cut,
            "input": dict(self.input),
            "shape": list(self.shape),
            "dtype": self.dtype,
            **({} if self.engine == _USUAL_ENGINE else {"engine": self.engine}),
            **({"record": [list(field) for field in self.record]} if self.record else {}),
        }

    @property
    def identity(self) -> str:
        """The name of the source's folder: a hash of everything above but the name for people."""
        named = {name: value for name, value in self.to_dict().items() if name != "backbone"}
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def width(self) -> int:
        """Number of values in a bottleneck."""
        return int(np.prod(self.shape))

    @property
    def value_type(self) -> pa.DataType:
        """Arrow type of what is kept under a key."""
        if self.record:
            return pa.struct([pa.field(name, _RECORD_TYPES[kind], nullable=False) for name, kind in self.record])
        return pa.list_(_ARROW_TYPES[self.dtype], self.width)


@dataclass(kw_only=True)
class Shard:
    """A shard on this machine's disk, mapped into memory."""

    path: Path
    """Path of the file."""
    keys: list[bytes]
    """The keys, 32 bytes each, in the order of the rows."""
    spec: SourceSpec = field(repr=False)
    """The source of the bottlenecks."""
    mapped: pa.Buffer = field(repr=False)
    """The bytes of the file, which stay mapped when it is deleted."""

    @cached_property
    def values(self) -> Any:
        """The bottlenecks, len(keys) × width, flat and mapped; or an Arrow array of records."""
        batch = _read_batch(pa.ipc.open_file(pa.BufferReader(self.mapped)), self.spec)
        return batch.column(1) if self.spec.record else _values(batch, self.spec)


def shard_name(data: bytes | memoryview) -> str:
    """Work out the file name of a shard with these bytes."""
    return f"{hashlib.sha256(data).hexdigest()}{SUFFIX}"


def serialise(spec: SourceSpec, keys: Sequence[bytes], rows: Any) -> memoryview:
    """Write a shard to bytes.

    Args:
        spec: the source.
        keys: the keys, 32 bytes each.
        rows: len(keys) × width, contiguous, in the source's dtype; or records.
    """
    metadata = {"shape": json.dumps(list(spec.shape)), "source": spec.identity}
    schema = pa.schema(
        [
            pa.field("key", pa.binary(32), nullable=False),
            pa.field("record" if spec.record else "bottleneck", spec.value_type, nullable=False),
        ],
        metadata=metadata,
    )
    columns = [
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(keys), [None, pa.py_buffer(b"".join(keys))]),
        pa.array(list(rows), spec.value_type)
        if spec.record
        else pa.FixedSizeListArray.from_arrays(_flat(rows), spec.width),
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    return memoryview(sink.getvalue())


def _flat(rows: NDArray[np.floating]) -> pa.Array:
    # Not `pa.array`, which imports pandas wherever it is installed: half a second.
    return pa.Array.from_buffers(pa.from_numpy_dtype(rows.dtype), rows.size, [None, pa.py_buffer(rows)])


def map_shard(path: Path, spec: SourceSpec) -> Shard:
    """Map a shard on the disk into memory.

    Raises:
        FileNotFoundError: it is gone.
        OSError, pyarrow.ArrowException, ValueError, IndexError: it is damaged, or no shard of this source.
    """
    # Mapped twice: what is read here leaves the memory with the batch, and of the other nothing is in it before values
    # are read. Pages of a mapped file come in groups of up to 2 MB, so a million bottlenecks' keys would take 1 GB.
    with pa.memory_map(str(path)) as file:
        mapped = file.read_buffer()
    batch = _map_batch(path, spec)
    keys, lists = batch.column(0), batch.column(1)
    if keys.type != pa.binary(32) or lists.type != spec.value_type:
        raise ValueError("columns of other types")
    return Shard(path=path, keys=_split(keys), spec=spec, mapped=mapped)


def map_values(path: Path, spec: SourceSpec) -> NDArray[np.floating]:
    """Map the bottlenecks of a shard (rows × width), which is no longer mapped when the array is gone.

    Raises:
        FileNotFoundError: it is gone.
        OSError, pyarrow.ArrowException, ValueError, IndexError: it is damaged, or no shard of this source.
    """
    return _values(_map_batch(path, spec), spec)


def _map_batch(path: Path, spec: SourceSpec) -> pa.RecordBatch:
    # Closed at once, the file stays mapped for as long as the batch lives; open files would run out in long runs.
    with pa.memory_map(str(path)) as mapped:
        batch = _read_batch(pa.ipc.open_file(mapped), spec)
    batch.validate()
    return batch


def _values(batch: pa.RecordBatch, spec: SourceSpec) -> NDArray[np.floating]:
    lists = batch.column(1)
    values = np.frombuffer(lists.values.buffers()[1], np.dtype(spec.dtype), count=len(lists) * spec.width)
    return values.reshape(len(lists), spec.width)


def values_in(data: bytes, spec: SourceSpec) -> NDArray[np.floating]:
    """Give the bottlenecks (rows × width) of a shard that was read as a whole.

    Raises:
        OSError, pyarrow.ArrowException, ValueError, IndexError: it is damaged, or no shard of this source.
    """
    batch = _read_batch(pa.ipc.open_file(pa.BufferReader(data)), spec)
    batch.validate()
    return _values(batch, spec)


def read_keys(file: pa.NativeFile, spec: SourceSpec) -> list[bytes]:
    """Read the keys of a shard in a file that can be read at any place; of its bottlenecks, nothing is read.

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
