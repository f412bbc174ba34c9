"""Models of half the size: weights kept as float16, widened when the file is loaded.

What computes is the same graph in float32, so nothing is slower on a processor (where float16 arithmetic would be: few
have it) and only the weights' rounding, to 11 bits, can make a difference. ONNX Runtime widens them once, when it folds
constants. Good for downloads: app bundles, web pages.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quickstudy.backbones.runtime import optimised

_LEAST_VALUES = 256
"""Smaller tensors, such as biases, stay as they are: nothing to gain."""


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, batch norms folded, its large float32 weights kept as float16.

    Raises:
        BackboneError: ONNX Runtime cannot load it.
    """
    result = optimised(model)
    graph = result.graph
    widening = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _LEAST_VALUES:
            continue
        values = numpy_helper.to_array(tensor)
        if not np.abs(values).max() <= np.finfo(np.float16).max:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}/half"))
        widening.append(helper.make_node("Cast", [tensor.name], [name], name=name, to=TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*widening, *nodes])
    return result
