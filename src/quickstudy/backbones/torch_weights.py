"""Weights in PyTorch's old, pre-zip `.pth` format are read without PyTorch and without unpickling anything unsafe.

The format (PyTorch's `torch.serialization._legacy_save`) is five pickles one after the other: a magic number, a
protocol number, facts about the machine, the object with its storages left out as persistent ids, and the list of the
storages' keys; then each storage as an 8-byte element count and its raw little-endian elements. A pickle is a program,
so the reader lets it call nothing but the three names a state dict is made of, and refuses all else.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import UnsafeFileError

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_STORAGE_DTYPES: dict[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
}
_LARGEST_FILE_BYTES = 4 << 30


# What a pickle gets hold of here has no attributes of its own: its opcode BUILD could set them past all checks.
class _Storage(NamedTuple):
    key: str
    dtype: np.dtype[Any]
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _RebuildTensor:
    """Stands in for torch._utils._rebuild_tensor_v2: it notes the layout and builds nothing yet."""

    __slots__ = ()

    def __call__(self, storage: object, offset: object, shape: object, strides: object, *_: object) -> _Tensor:
        if not isinstance(storage, _Storage) or not isinstance(offset, int) or offset < 0:
            raise UnsafeFileError("a tensor refers to something that is not a storage")
        return _Tensor(storage=storage, offset=offset, shape=_sizes(shape), strides=_sizes(strides))


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(isinstance(n, int) and n >= 0 for n in value):
        raise UnsafeFileError(f"a tensor has the shape or strides {value!r}; expected non-negative integers")
    return value


class _StateDictUnpickler(pickle.Unpickler):
    """Unpickles a state dict's skeleton; any name outside the short list is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _RebuildTensor()
        if module == "torch" and name in _STORAGE_DTYPES:
            return name
        raise UnsafeFileError(f"it asks for '{module}.{name}', which no plain state dict needs; it was not loaded")

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", str(kind), str(key), str(), int(size), None):
                dtype = _STORAGE_DTYPES.get(kind)
                if dtype is not None:
                    return _Storage(key=key, dtype=dtype, size=size)
        raise UnsafeFileError(f"it refers to {pid!r}, which is not a tensor's storage")


def read_state_dict(path: Path) -> dict[str, NDArray[Any]]:
    """Read the tensors of a pre-zip `.pth` state dict as contiguous arrays, in the file's order.

    Raises:
        UnsafeFileError: the file holds anything but a plain state dict, or its sizes contradict one another.
        FileNotFoundError: there is no such file.
    """
    if path.stat().st_size > _LARGEST_FILE_BYTES:
        raise UnsafeFileError(f"'{path}' is larger than {_LARGEST_FILE_BYTES >> 30} GiB; no known weights file is")
    file = io.BytesIO(path.read_bytes())
    try:
        if _unpickle(file) != _MAGIC_NUMBER or _unpickle(file) != _PROTOCOL_VERSION:
            raise UnsafeFileError("it is not a PyTorch state dict in the pre-zip format (wrong magic number)")
        facts = _unpickle(file)
        if not isinstance(facts, dict) or facts.get("little_endian") is not True:
            raise UnsafeFileError("it was not written on a little-endian machine")
        tensors, keys = _tensors(_unpickle(file)), _unpickle(file)
        return _fill(tensors, _read_storages(file, tensors, keys))
    except UnsafeFileError as error:
        raise UnsafeFileError(f"Refused the weights file '{path}': {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UnsafeFileError(f"Refused the weights file '{path}': damaged or not a state dict ({error})") from error


def _unpickle(file: io.BytesIO) -> Any:
    return _StateDictUnpickler(file).load()


def _tensors(skeleton: object) -> dict[str, _Tensor]:
    # Not skeleton.items(): a pickle may give an OrderedDict attributes that hide its methods.
    named = dict(dict.items(skeleton)) if isinstance(skeleton, dict) else None
    if named is None or not all(isinstance(n, str) and isinstance(t, _Tensor) for n, t in named.items()):
        _refuse("its object is not a dict of tensors")
    return named


def _read_storages(file: io.BytesIO, tensors: dict[str, _Tensor], keys: object) -> dict[str, NDArray[Any]]:
    announced = {tensor.storage for tensor in tensors.values()}
    by_key = {storage.key: storage for storage in announced}
    if not isinstance(keys, list) or sorted(keys) != sorted(by_key) or len(announced) != len(by_key):
        _refuse("its list of storages does not match its tensors")
    storages = {}
    for key in keys:
        count, dtype = int.from_bytes(file.read(8), "little"), by_key[key].dtype
        if count != by_key[key].size:
            _refuse(f"storage {key} has {count} values where {by_key[key].size} were announced")
        data = file.read(count * dtype.itemsize)
        if len(data) != count * dtype.itemsize:
            _refuse(f"it ends inside storage {key}")
        storages[key] = np.frombuffer(data, dtype)
    return storages


def _fill(tensors: dict[str, _Tensor], storages: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name, tensor in tensors.items():
        storage = storages[tensor.storage.key]
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
        if 0 in tensor.shape or tensor.offset + last >= storage.size:
            _refuse(f"tensor '{name}' is empty or reaches beyond its storage")
        if math.prod(tensor.shape) > storage.size:  # strides of zero would make gigabytes of a few bytes
            _refuse(f"tensor '{name}' has more values than its storage")
        strides = [stride * storage.itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False)
        arrays[name] = np.ascontiguousarray(view).reshape(tensor.shape)
    return arrays


def _refuse(reason: str) -> NoReturn:
    raise UnsafeFileError(reason)
