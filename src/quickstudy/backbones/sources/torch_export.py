"""Exports torch modules, Keras models on the torch backend among them, as ONNX graphs.

It needs torch and onnxscript, and is imported by what has made a module, never by what runs a backbone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from quickstudy.errors import BackboneError, first_line

if TYPE_CHECKING:
    import onnx
    import torch

_OPSET = 17


def export_module(module: torch.nn.Module, example: torch.Tensor, *, any_batch: bool = False) -> onnx.ModelProto:
    """Export a module in inference mode as an ONNX graph, for inputs of the shape of `example`.

    Args:
        module: with one input.
        example: an input.
        any_batch: whether the graph shall take any number of images, as far as the exporter manages it.

    Raises:
        BackboneError: torch's exporter cannot do it.
    """
    import torch

    module.eval()
    with torch.no_grad(), _quiet():
        # By way of TorchScript first: InceptionV3 takes 5 s so and 21 s the other way, small networks of runs 0.1 and
        # 3 s, and they come out the same once they are cleaned. But that way does not know everything, and torch means
        # to close it.
        for export in (by_torchscript, by_dynamo):
            try:
                return export(module, example, any_batch=any_batch)
            except Exception as error:  # exporters raise towers of their own kinds
                reason = error
    why = first_line(reason.__cause__ or reason)  # above it is what torch advises its developers to do
    raise BackboneError(f"torch cannot export the network to ONNX: {why}") from reason


def by_torchscript(module: torch.nn.Module, example: torch.Tensor, *, any_batch: bool = False) -> onnx.ModelProto:
    """Export a module by following what an example does to it."""
    import onnx
    import torch

    with tempfile.TemporaryDirectory() as folder:
        torch.onnx.export(
            module,
            (example,),
            Path(folder) / "graph.onnx",
            opset_version=_OPSET,
            dynamo=False,
            input_names=["images"] if any_batch else None,
            dynamic_axes={"images": [0]} if any_batch else None,
        )
        return onnx.load(Path(folder) / "graph.onnx")


def by_dynamo(module: torch.nn.Module, example: torch.Tensor, *, any_batch: bool = False) -> onnx.ModelProto:
    """Export a module by reading its code; this needs onnxscript."""
    import torch

    program = torch.onnx.export(
        module,
        (example,),
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim.AUTO},) if any_batch else None,
    )
    if program is None:
        raise RuntimeError("nothing was exported")
    model: onnx.ModelProto = program.model_proto
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters quiet: what they say is for their developers, and the result is checked.

    TorchScript's prints the whole graph where it fails, past Python, so standard output itself is led away, too.
    """
    previous, output = logging.root.manager.disable, os.dup(1)
    logging.disable(logging.WARNING)
    sys.stdout.flush()
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        os.dup2(output, 1)
        os.close(output)
        logging.disable(previous)
