"""Runs ONNX graphs in PyTorch, node by node, so that gradients flow through them and their weights can be trained.

ONNX Runtime is faster where nothing is trained; this is for what follows a cut. Weights keep the names of the graph's
initializers and go back there by name, so nothing is exported and nothing can drift. Batch norms are always in
inference mode: they are part of what was learned before, and small batches must not move them.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from quickstudy.backbones.graphs.cutting import weights_of
from quickstudy.backbones.graphs.operators import OPERATORS
from quickstudy.errors import BackboneError

_NUMBERS: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "ReduceL2": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Resize": (2,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Unsqueeze": (1,),
}
"""Places of the inputs that operators read as numbers, by the operators' names."""


class GraphModule(nn.Module):
    """An ONNX graph with one input and one output as a PyTorch module.

    Shapes, dtypes and meaning are the graph's. Weights and biases of layers are parameters; all else stays as it is.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Prepare a graph to be run.

        Raises:
            BackboneError: it has operators that cannot be run, which the message names.
        """
        super().__init__()
        graph = model.graph
        if unknown := sorted({node.op_type for node in graph.node if node.op_type not in OPERATORS or node.domain}):
            raise BackboneError(
                f"The graph '{graph.name}' cannot be trained: {', '.join(unknown)} cannot be run in PyTorch here. "
                "Cut behind the last of them, or at features"
            )
        self._model = model
        self._opset = next((entry.version for entry in model.opset_import if not entry.domain), 1)
        trained = weights_of(graph, graph.node)
        self._places: dict[str, str] = {}
        for number, tensor in enumerate(graph.initializer):
            value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            place = f"{'weight' if tensor.name in trained else 'constant'}_{number}"
            self._places[tensor.name] = place
            if tensor.name in trained:
                self.register_parameter(place, nn.Parameter(value))
            else:
                self.register_buffer(place, value, persistent=False)
        # What operators read as numbers stays with the processor: a GPU would be waited for at every one of them.
        self._numbers = {
            _as_numbers(name): getattr(self, self._places[name])
            for node in graph.node
            for name in map(node.input.__getitem__, _places_of_numbers(node))
            if name in self._places and name not in trained
        }
        # In the order in which the image meets them, so that depth can be told from the order.
        self.weight_names = tuple(trained)
        self._input, self._output = graph.input[0].name, graph.output[0].name
        self._steps = [
            (
                OPERATORS[node.op_type],
                self._inputs(node),
                tuple(node.output),
                {
                    "opset": self._opset,
                    "num_outputs": len(node.output),
                    **{a.name: helper.get_attribute_value(a) for a in node.attribute},
                },
            )
            for node in graph.node
        ]
        uses = {name: number for number, step in enumerate(self._steps) for name in step[1]}
        self._last_uses = [
            tuple(
                {name for name in step[1] if uses[name] == number} - {self._output, "", *self._places, *self._numbers}
            )
            for number, step in enumerate(self._steps)
        ]

    def _inputs(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """Name what a node takes, constants that it reads as numbers by their other name."""
        numbers = _places_of_numbers(node)
        names = [_as_numbers(name) if place in numbers else name for place, name in enumerate(node.input)]
        return tuple(name if name in self._numbers else given for name, given in zip(names, node.input, strict=True))

    def weight(self, name: str) -> nn.Parameter:
        """Return the parameter that was made of an initializer."""
        parameter: nn.Parameter = getattr(self, self._places[name])
        return parameter

    def forward(self, x: Tensor) -> Tensor:
        """Run the graph: its output for its input."""
        values: dict[str, Any] = {"": None, self._input: x, **self._numbers}
        for name, place in self._places.items():
            values[name] = getattr(self, place)
        for (operator, inputs, outputs, attributes), done in zip(self._steps, self._last_uses, strict=True):
            result = operator([values[name] for name in inputs], attributes)
            values.update(zip(outputs, result if isinstance(result, tuple) else (result,), strict=False))
            for name in done:  # without gradients, memory is free again at once
                values.pop(name, None)
        output: Tensor = values[self._output]
        return output

    def lay_channels_last(self) -> None:
        """Put the weights and constants of maps into the order in memory that convolutions are quickest with.

        `Module.to` would try it with masks of five sides, too, as those of windows, and fail.
        """
        self._apply(_channels_last)  # type: ignore[no-untyped-call]

    def to_onnx(self) -> onnx.ModelProto:
        """Return a copy of the graph with the weights as they are now."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for tensor in model.graph.initializer:
            if tensor.name in self.weight_names:
                now = self.weight(tensor.name).detach().to("cpu", torch.float32, copy=True).contiguous().numpy()
                dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
                tensor.CopyFrom(numpy_helper.from_array(now.astype(dtype), tensor.name))
        return model


def _channels_last(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


def _places_of_numbers(node: onnx.NodeProto) -> list[int]:
    return [place for place in _NUMBERS.get(node.op_type, ()) if place < len(node.input)]


def _as_numbers(name: str) -> str:
    """Name a constant where an operator reads it as numbers; no name in a graph has such an end."""
    return f"{name}\0numbers"
