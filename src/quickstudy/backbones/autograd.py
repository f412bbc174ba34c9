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

from quickstudy.backbones.graphs import weights_of
from quickstudy.backbones.operators import OPERATORS
from quickstudy.errors import BackboneError


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
        # In the order in which the image meets them, so that depth can be told from the order.
        self.weight_names = tuple(trained)
        self._input, self._output = graph.input[0].name, graph.output[0].name
        self._steps = [
            (
                OPERATORS[node.op_type],
                tuple(node.input),
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
            tuple({name for name in step[1] if uses[name] == number and name not in self._places} - {self._output, ""})
            for number, step in enumerate(self._steps)
        ]

    def weight(self, name: str) -> nn.Parameter:
        """Return the parameter that was made of an initializer."""
        parameter: nn.Parameter = getattr(self, self._places[name])
        return parameter

    def forward(self, x: Tensor) -> Tensor:
        """Run the graph: its output for its input."""
        values: dict[str, Any] = {"": None, self._input: x}
        for name, place in self._places.items():
            values[name] = getattr(self, place)
        for (operator, inputs, outputs, attributes), done in zip(self._steps, self._last_uses, strict=True):
            result = operator([values[name] for name in inputs], attributes)
            values.update(zip(outputs, result if isinstance(result, tuple) else (result,), strict=False))
            for name in done:  # without gradients, memory is free again at once
                values.pop(name, None)
        output: Tensor = values[self._output]
        return output

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
