"""Loads graphs in ONNX Runtime on the CPU, and optimises them there."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from quickstudy.errors import BackboneError
from quickstudy.process import TELEMETRY_OFF, default_variable

if TYPE_CHECKING:
    import onnx
    import onnxruntime


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime with its telemetry switched off: nobody's photos are anybody's business.

    From 1.29 on it tells its makers about the machine and what it runs: it leaves a device's number and a queue of
    events in the user's cache. It reads ORT_DISABLE_TELEMETRY once, when it is imported. Measured with 1.31: set for
    the import alone, nothing is left, however many sessions follow; set between import and first session, or with
    `disable_telemetry_events()` instead, both files are. So the variable is set for the import and taken back, and
    whoever has imported ONNX Runtime before, or has set the variable, has decided it themselves. A test sees to it that
    nothing is left to be sent.
    """
    with default_variable(*TELEMETRY_OFF):
        return importlib.import_module("onnxruntime")


def open_session(graph: bytes | Path) -> onnxruntime.InferenceSession:
    """Load a graph, given as a file or as its bytes, for one core of the processor.

    Raises:
        BackboneError: ONNX Runtime cannot load it.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong comes as an exception, too
    try:
        return onnxruntime.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime raises its own unexported kinds
        raise BackboneError(f"ONNX Runtime cannot load the graph: {error}") from error


def optimised(model: onnx.ModelProto, *, without: Sequence[str] = ()) -> onnx.ModelProto:
    """Optimise a graph as ONNX Runtime does at its basic level: constants folded, batch norms gone into convolutions.

    What comes back has operators of the ONNX standard only.

    Args:
        model: left as it is.
        without: optimisations that are left out, by ONNX Runtime's names.

    Raises:
        BackboneError: ONNX Runtime cannot load it.
    """
    import onnx

    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1  # nothing is run
    options.log_severity_level = 4  # what goes wrong comes as an exception, too
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(without),
            )
        except Exception as error:  # ONNX Runtime raises its own unexported kinds
            raise BackboneError(f"ONNX Runtime cannot load the graph: {error}") from error
        result = onnx.load(options.optimized_model_filepath)
    used = {node.domain for node in result.graph.node}
    result.ir_version = model.ir_version
    del result.opset_import[:]  # ONNX Runtime lists all that it knows
    result.opset_import.extend(entry for entry in model.opset_import if entry.domain in used)
    return result
