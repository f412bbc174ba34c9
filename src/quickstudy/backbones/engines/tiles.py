"""Several squares of one image: each passes the network by itself, and their features are averaged.

The squares of an image come one above the other, as one input (see `quickstudy.images.fits`), so whatever passes pixels
on need not know of them: the graph itself takes them apart and brings their features together. A network whose features
are means over all places of a map then gives the mean over all places of all squares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quickstudy.backbones.graphs.cutting import keep_until
from quickstudy.errors import BackboneError
from quickstudy.images.decoding import InputSpec

if TYPE_CHECKING:
    from quickstudy.backbones.backbone import Backbone

_SQUARES = "tiles/image"


def prefix_graph(backbone: Backbone, cut: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Load the part of a backbone that leads to a cut, from the input that `backbone.input` makes of an image.

    Args:
        backbone: the network.
        cut: name of the tensor at which it ends.
        shape: shape of one image's activation there.

    Raises:
        BackboneError: there is no such tensor; or an image makes several squares, and they have no features there.
    """
    graph = keep_until(onnx.load(backbone.path, load_external_data=False), cut, shape)
    if backbone.input.tiles == 1:
        return graph
    if len(shape) != 1:
        raise BackboneError(
            f"'{backbone.name}' cannot be cut at '{cut}' with the fit '{backbone.input.fit}', which averages the "
            "features of several squares: take crop, pad or squash, or leave out the cut"
        )
    return _over_squares(graph, backbone.input)


def _over_squares(graph: onnx.ModelProto, spec: InputSpec) -> onnx.ModelProto:
    """Let a graph from `image` to features take several squares an image, one above the other, and average them."""
    [output] = graph.graph.output
    features, inner = output.name, f"tiles/{output.name}"
    width = output.type.tensor_type.shape.dim[1].dim_value
    renamed = {"image": _SQUARES, features: inner}
    nodes = [helper.make_node("Reshape", ["image", "tiles/one"], [_SQUARES], name=_SQUARES)]
    for node in graph.graph.node:
        node.name = renamed.get(node.name, node.name)
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        nodes.append(node)
    # As a map with the squares as its places, since every version of the standard and every engine averages those.
    last = inner
    steps: tuple[tuple[str, list[str], dict[str, Any]], ...] = (
        ("Reshape", ["tiles/each"], {}),
        ("Transpose", [], {"perm": [0, 2, 1, 3]}),
        ("GlobalAveragePool", [], {}),
        ("Flatten", [], {}),
    )
    for operator, others, attributes in steps:
        made = features if operator == "Flatten" else f"{inner}/{operator.lower()}"
        nodes.append(helper.make_node(operator, [last, *others], [made], name=made, **attributes))
        last = made
    shapes = {"tiles/one": [-1, spec.size, spec.size, 3], "tiles/each": [-1, spec.tiles, width, 1]}
    result = helper.make_graph(
        nodes,
        graph.graph.name,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *spec.shape])],
        [output],
        [*graph.graph.initializer, *(numpy_helper.from_array(np.array(s), name) for name, s in shapes.items())],
    )
    return helper.make_model(result, opset_imports=graph.opset_import, ir_version=graph.ir_version)
