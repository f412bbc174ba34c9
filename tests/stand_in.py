"""A device that is none: tensors on `standin` compute on the processor, and refuse those that were left there.

It is made with PyTorch's Python backend, so tensors say `standin:0`, `.to` and factories bring them there, and
gradients flow as on a GPU. An operator that meets tensors of both places raises, like a GPU's, with one exception: as
on a GPU, single numbers may come from the processor. Indices may not, which a GPU allows: they make it wait. So does
an operator with a generator of random numbers that is the processor's. What makes the processor wait for a GPU is
counted by `waits`: all that comes back, what goes there without `non_blocking`, and results whose size depends on
values. `rounding` gives products of float32 a GPU's precision. It cannot be unmade, so only tests that need it import
this.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

DEVICE = "standin"
_CROSSING = ("aten::copy_", "aten::_copy_from")
"""Operators whose tensors may be in two places: they bring values from one to the other."""
_SIZED_BY_VALUES = (
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::bincount",
    "aten::equal",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_consecutive",
    "aten::unique_dim",
)
"""Operators that give a number, or a tensor whose size a GPU has to tell before the processor can go on."""
_INDEXING = ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")
"""Operators that are among those where an index is a mask."""
_ROUNDED = ("aten::convolution", "aten::convolution_backward", "aten::_convolution", "aten::conv2d")
"""Operators whose products of float32 a GPU rounds, unless it is told not to."""
_counted: list[str] = []
_rounds = False


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        torch.set_rng_state(state)

    def is_autocast_enabled(self) -> bool:
        return torch.is_autocast_enabled(DEVICE)


class StandIn(Tensor):
    """A tensor on the stand-in device, around one on the processor that has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> StandIn:
        made: StandIn = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(DEVICE, 0),
        )
        made.inner = inner
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: object) -> StandIn:
        return StandIn(inner["inner"])

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.detach().__reduce_ex__(protocol)  # a checkpoint is read onto the processor

    def __repr__(self, **_: object) -> str:
        return f"StandIn({self.inner!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operator, *args, **kwargs or {})


def _run(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator on the processor, and say where its results are."""
    name = operator._schema.name
    given = list(_flat((args, kwargs)))
    tensors = [value for value in given if isinstance(value, Tensor)]
    here = [isinstance(tensor, StandIn) for tensor in tensors]
    left = [tuple(tensor.shape) for tensor, is_here in zip(tensors, here, strict=True) if not is_here and tensor.ndim]
    if left and any(here) and name not in _CROSSING:
        raise RuntimeError(f"{name} got tensors on {DEVICE}:0 and on cpu, of the shapes {left}")
    if any(isinstance(value, torch.Generator) for value in given):
        raise RuntimeError(f"{name} got a generator on cpu for tensors on {DEVICE}:0")
    devices = [value for value in given if isinstance(value, torch.device)]
    back = bool(devices) and devices[0].type == "cpu"  # from the device to the processor
    if kwargs.get("pin_memory") and not back:
        raise RuntimeError(f"{name} cannot pin a tensor on {DEVICE}:0; only those of the processor can be")
    if back or _makes_wait(name, args, kwargs, here):
        _counted.append(name)
    inside = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    inner = _mapped(_inner, args)
    if _rounds and name in _ROUNDED and torch.backends.cudnn.allow_tf32:
        inner = _mapped(_rounded, inner)
    result = operator(*inner, **_mapped(_inner, inside))
    if back:
        return result.clone()
    wrapped = _mapped(lambda value: StandIn(value) if isinstance(value, Tensor) else value, result)
    if name == "aten::copy_" and not here[0]:
        return args[0]
    return return_and_correct_aliasing(operator, args, kwargs, wrapped) if _shares(operator) else wrapped


@functools.cache
def _shares(operator: Any) -> bool:
    """Say whether a result of an operator can have memory of its arguments."""
    schema = operator._schema
    return any(value.alias_info is not None for value in (*schema.arguments, *schema.returns))


def _flat(value: Any) -> Iterator[Any]:
    """Yield what is in lists, tuples and dictionaries, several times sooner than PyTorch's general way."""
    if isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _flat(part)
    else:
        yield value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Change what is in lists, tuples and dictionaries."""
    if isinstance(value, dict):
        return {name: _mapped(change, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_mapped(change, part) for part in value])
    return change(value)


def _makes_wait(name: str, args: Any, kwargs: Any, here: list[bool]) -> bool:
    """Tell whether the processor would wait for a GPU to carry out this operator."""
    if name in _CROSSING:
        from_here = not here[0] if name == "aten::copy_" else here[0]
        place = 2  # of `non_blocking` among the arguments of both
        does_not_wait = bool(kwargs.get("non_blocking", args[place] if len(args) > place else False))
        return from_here or (not all(here) and not does_not_wait)
    if name in _INDEXING:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return name in _SIZED_BY_VALUES


def _rounded(value: Any) -> Any:
    """Round a tensor of float32 to the ten binary digits of TF32."""
    if not isinstance(value, Tensor) or value.dtype is not torch.float32:
        return value
    return ((value.contiguous().view(torch.int32) + (1 << 12)) & ~0x1FFF).view(torch.float32)


@contextmanager
def rounding() -> Iterator[None]:
    """Round inside this context what convolutions of float32 multiply, as GPUs do by default."""
    global _rounds
    _rounds = True
    try:
        yield
    finally:
        _rounds = False


def _inner(value: Any) -> Any:
    """Give what a value is on the processor."""
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.inner if isinstance(value, StandIn) else value


@contextmanager
def waits() -> Iterator[list[str]]:
    """Note inside this context, by operator, what made the processor wait for the device."""
    before = len(_counted)
    found: list[str] = []
    yield found
    found += _counted[before:]


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _setup_privateuseone_for_python_backend(DEVICE, backend_module=_Module())
_library = torch.library.Library("_", "IMPL")
_library.fallback(_run, "PrivateUse1")
_library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


def _lowered(operator: Any) -> Any:
    """Make an operator that multiplies in the type that autocast asks for, as GPUs do."""

    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(DEVICE)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            return operator(*_mapped(lambda value: _cast(value, dtype), args), **kwargs)

    return run


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


_aten = torch.library.Library("aten", "IMPL")
for _name in ("addmm", "baddbmm", "bmm", "conv2d", "linear", "matmul", "mm"):
    _aten.impl(_name, _lowered(getattr(torch.ops.aten, _name).default), "AutocastPrivateUse1")
for _operator in (torch.ops.aten.arange.default, torch.ops.aten.arange.start, torch.ops.aten.arange.start_step):
    # torch's own changes the size of an empty tensor, which one that stands around another cannot follow.
    _aten.impl(_operator, functools.partial(_run, _operator), "PrivateUse1")
