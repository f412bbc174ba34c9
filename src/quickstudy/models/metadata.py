"""Names in a model file: of its metadata properties, whose values are JSON, and of what is looked for in its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

PREFIX = "quickstudy."
FORMAT = 3
"""Since 2, files end with a checksum; since 3, they carry the roles of the images that they were made from."""
HEAD_INPUT = "head/sign"
"""Name of the node that takes the features, whatever the features are called in the graph."""
HEAD_WEIGHTS = "head/weights"
"""Name of the head's weights, features × classes."""


def features_in(graph: onnx.ModelProto) -> str | None:
    """The name of the tensor that the head takes; None where there is no head of quickstudy's."""
    found = [node.input[0] for node in graph.graph.node if node.name == HEAD_INPUT and node.input]
    return found[0] if len(found) == 1 else None
