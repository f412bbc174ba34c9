"""The frozen part of a backbone in OpenVINO: on the processor, in bfloat16 where it has instructions for that.

In bfloat16 OpenVINO runs EfficientNet-Lite0 1.9 times and InceptionV3 2.0 times as fast as ONNX Runtime in float32
(two cores, Zen 5), and in float32 about as fast. PyTorch in bfloat16, compiled or not, is slower than ONNX Runtime on
these networks. As in ONNX Runtime, an image keeps one core, and as many images run at once as there are cores.

OpenVINO is asked for by name. It is no part of the core (60 MB to download), and never chosen because it happens to be
installed: the same command would give other bottlenecks. What a model was trained with stands in the model, so a report
uses the same.
"""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
import openvino
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.engine import Engine
from quickstudy.backbones.engines.tiles import prefix_graph
from quickstudy.process import usable_cores


def openvino_engine() -> Engine:
    """Make the engine that computes in OpenVINO, at the lowest precision in which this processor is fast."""
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precision = "bfloat16" if "BF16" in capabilities else "float32"
    return Engine(name=f"openvino-{precision}", open=partial(OpenVinoPrefix, precision=precision))


class OpenVinoPrefix:
    """The frozen part of a backbone, up to a cut. It may be called from several threads at once."""

    def __init__(self, backbone: Backbone, cut: str, shape: tuple[int, ...], *, precision: str) -> None:
        core, one = openvino.Core(), (1, *backbone.input.shape)
        model = core.read_model(prefix_graph(backbone, cut, shape).SerializeToString())
        model.reshape({"image": list(one)})
        cores = usable_cores()
        options = {
            "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[precision],
            "NUM_STREAMS": cores,
            "INFERENCE_NUM_THREADS": cores,
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = core.compile_model(model, "CPU", options)
        self._of_thread = threading.local()
        # Two threads whose first inferences of the process meet can wait for each other for ever: OpenVINO fills a
        # table at its first access to a tensor's data, one of them inside that, waiting for Python's lock, the other
        # holding that lock (seen in one of 25 runs, with 2026.4.1). So the first is over before there are others.
        self(np.zeros(one, np.uint8))

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the bottlenecks (N × shape of the cut) of images (uint8, N × the shape of an input)."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        request = self._of_thread.request
        return np.concatenate([request.infer({0: image[None]})[0].copy() for image in images])

    def close(self) -> None:
        """Do nothing: the compiled graph goes with this object."""
