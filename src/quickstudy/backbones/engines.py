"""The engines that there are, by name; a further one is a module that makes an `Engine`, and a line here."""

from __future__ import annotations

from quickstudy.backbones.engine import Engine
from quickstudy.backbones.runtime import ONNX_RUNTIME
from quickstudy.errors import BackboneError, DeviceError, MissingExtraError
from quickstudy.extras import require

GPUS = ("cuda",)
"""Kinds of GPUs that bottlenecks are computed on, as PyTorch names them."""


def engine_for(name: str) -> Engine:
    """Open the engine that somebody asks for.

    Args:
        name: `onnxruntime`, `onnxruntime-int8` or `openvino`, on the processor, or a GPU as PyTorch names it (`cuda`,
            `cuda:1`).

    Raises:
        BackboneError: there is no such engine.
        DeviceError: there is no such GPU.
        MissingExtraError: what runs it is not installed.
    """
    if name == ONNX_RUNTIME.name:
        return ONNX_RUNTIME
    if name == "onnxruntime-int8":
        from quickstudy.backbones.int8 import INT8

        return INT8
    if name == "openvino":
        require("openvino", extra="openvino", what="Engine 'openvino'")
        from quickstudy.backbones.openvino import openvino_engine

        return openvino_engine()
    if not is_gpu(name):
        raise BackboneError(f"The engine is '{name}'; expected onnxruntime, onnxruntime-int8, openvino or cuda")
    require("torch", extra="train", what=f"Engine '{name}'")
    from quickstudy.backbones.batched import engine_on

    return engine_on(name)


def is_gpu(name: str) -> bool:
    """Say whether an engine is a GPU, named as PyTorch names it."""
    return name.partition(":")[0] in GPUS


def device_of(engine: str) -> str:
    """Say where PyTorch trains when this engine computes bottlenecks: on the GPU that it names, or on the processor."""
    return engine if is_gpu(engine) else "cpu"


def engine_named(name: str) -> Engine:
    """Return the engine of a name in keys and models; where it cannot be had, ONNX Runtime, which always can."""
    # After the hyphen, others have the precision that this machine takes.
    asked = {"torch": "cuda", "openvino": "openvino"}.get(name.partition("-")[0], name)
    try:
        engine = engine_for(asked)
    except (BackboneError, DeviceError, MissingExtraError):
        return ONNX_RUNTIME
    return engine if engine.name == name else ONNX_RUNTIME
