"""The frozen part of a transformer in 8-bit integers, in ONNX Runtime: its matrix products, nearly all of its work.

It is ONNX Runtime's own dynamic quantisation: weights are rounded once, a scale for each column, and activations image
by image, so no photos are needed to calibrate on, and a bottleneck depends on its own image alone. On a processor with
VNNI, a ViT-S takes half the time (`benchmarks/engines.py`). Weights get 7 bits, as in `models/conversion.py`, so that
processors with AVX2 but without VNNI, which add pairs of products in 16 bits, do not overflow; that costs no time.

What else was tried there is no engine. In float16, which processors widen before they compute, the same network takes
longer than in float32. Convolutions gain by static quantisation only, Lite0 by 9 %. It is calibrated on photos, so
that what is kept of an image would depend on others, and bottlenecks differ by a quarter of their length from those in
float32, though the heads lose nothing by it. Matrix products that are calibrated so are slower than dynamic ones.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.engine import Engine
from quickstudy.backbones.engines.tiles import prefix_graph
from quickstudy.backbones.graphs.runtime import import_onnxruntime, open_session, optimised
from quickstudy.errors import BackboneError

_OPERATORS = ("MatMul", "Gemm")


class Int8Prefix:
    """The frozen part of a backbone, up to a cut, its matrix products in 8 bits, for several threads at once."""

    def __init__(self, backbone: Backbone, cut: str, shape: tuple[int, ...]) -> None:
        """Load it, which takes seconds, as all weights are rounded.

        Raises:
            BackboneError: it has no matrix products with weights.
        """
        graph = prefix_graph(backbone, cut, shape)
        weights = {tensor.name for tensor in graph.graph.initializer}
        if not any(node.op_type in _OPERATORS and node.input[1] in weights for node in graph.graph.node):
            raise BackboneError(
                f"The engine onnxruntime-int8 computes matrix products in 8 bits, and '{backbone.name}' has none up to "
                f"'{cut}': its layers are convolutions. Take --engine openvino, or leave it out"
            )
        self._session = open_session(_rounded(graph).SerializeToString())
        self._cut = cut

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the bottlenecks (N × shape of the cut) of images (uint8, N × the shape of an input)."""
        # One by one: activations that pass together would share a scale.
        return np.concatenate([self._session.run([self._cut], {"image": image[None]})[0] for image in images])

    def close(self) -> None:
        """Do nothing: the session goes with this object."""


INT8 = Engine(name="onnxruntime-int8", open=Int8Prefix)
"""The engine for transformers on processors with instructions for 8-bit integers."""


def _rounded(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Make the same graph with its matrix products in 8 bits."""
    import_onnxruntime()  # first, with its telemetry off
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, without_advice():
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            optimised(graph),
            path,
            op_types_to_quantize=list(_OPERATORS),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(path)


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Silence ONNX Runtime's quantiser, which recommends what has been done already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
