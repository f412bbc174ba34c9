"""The engines that there are, by name: ONNX Runtime, the usual one, and others with a module and a line here.

A session uses one thread and is meant to be called from as many threads as there are cores, one image at a time.
Measured on EfficientNet-Lite0, that is a quarter faster than one session that spreads a batch over all cores, because
an image's activations then stay in one core's cache, and decoding overlaps by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.engine import Engine
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.errors import DeviceError, MissingExtraError, OptionError
from quickstudy.extras import require

GPUS = ("cuda",)
"""Kinds of GPUs that bottlenecks are computed on, as PyTorch names them."""


class Prefix:
    """The frozen part of a backbone, up to a cut, in ONNX Runtime. Several threads may call it at once."""

    def __init__(self, backbone: Backbone, cut: str, shape: tuple[int, ...]) -> None:
        from quickstudy.backbones.engines.tiles import prefix_graph

        self._session = open_session(prefix_graph(backbone, cut, shape).SerializeToString())
        self._cut = cut

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the bottlenecks (N × shape of the cut) of images (uint8, N × the shape of an input)."""
        bottlenecks: NDArray[np.float32] = self._session.run([self._cut], {"image": images})[0]
        return bottlenecks

    def close(self) -> None:
        """Do nothing: the session goes with this object."""


ONNX_RUNTIME = Engine(name="onnxruntime", open=Prefix)
"""The usual engine, on the processor."""


def engine_for(name: str) -> Engine:
    """Open the engine that somebody asks for.

    Args:
        name: `onnxruntime`, `onnxruntime-int8` or `openvino`, on the processor, or a GPU as PyTorch names it (`cuda`,
            `cuda:1`).

    Raises:
        OptionError: there is no such engine.
        DeviceError: there is no such GPU.
        MissingExtraError: what runs it is not installed.
    """
    if name == ONNX_RUNTIME.name:
        return ONNX_RUNTIME
    if name == "onnxruntime-int8":
        from quickstudy.backbones.engines.int8 import INT8

        return INT8
    if name == "openvino":
        require("openvino", extra="openvino", what="Engine 'openvino'")
        from quickstudy.backbones.engines.openvino import openvino_engine

        return openvino_engine()
    if not is_gpu(name):
        raise OptionError(f"The engine is '{name}'; expected onnxruntime, onnxruntime-int8, openvino or cuda")
    require("torch", extra="train", what=f"Engine '{name}'")
    from quickstudy.backbones.engines.batched import engine_on

    return engine_on(name)


def is_gpu(name: str) -> bool:
    """Say whether an engine is a GPU, named as PyTorch names it."""
    kind, colon, number = name.partition(":")
    return kind in GPUS and (number.isdecimal() if colon else True)


def device_of(engine: str) -> str:
    """Say where PyTorch trains when this engine computes bottlenecks: on the GPU that it names, or on the processor."""
    return engine if is_gpu(engine) else "cpu"


def engine_named(name: str) -> Engine:
    """Return the engine of a name in keys and models; where it cannot be had, ONNX Runtime, which always can."""
    # After the hyphen, others have the precision that this machine takes.
    asked = {"torch": "cuda", "openvino": "openvino"}.get(name.partition("-")[0], name)
    try:
        engine = engine_for(asked)
    except (OptionError, DeviceError, MissingExtraError):
        return ONNX_RUNTIME
    return engine if engine.name == name else ONNX_RUNTIME
