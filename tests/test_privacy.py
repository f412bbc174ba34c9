"""What quickstudy runs on must not tell anybody about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from quickstudy.backbones.backbone import Backbone


def test_onnx_runtime_leaves_no_telemetry(backbone: Backbone, tmp_path: Path) -> None:
    """From 1.29 on it keeps a device's number and a queue of events in the user's cache, to be sent."""
    script = (
        "import sys, numpy, quickstudy; quickstudy.load\n"
        "from pathlib import Path\n"
        "from quickstudy.backbones.graphs.runtime import open_session\n"
        "session = open_session(Path(sys.argv[1]))\n"
        "shape = (1, *session.get_inputs()[0].shape[1:])\n"
        "for _ in range(3):\n"
        "    session.run(None, {'image': numpy.zeros(shape, numpy.uint8)})\n"
        "import onnxruntime, onnxruntime.quantization, os; onnxruntime.get_available_providers()\n"
        "assert 'ORT_DISABLE_TELEMETRY' not in os.environ\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    places = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    run = [sys.executable, "-c", script, str(backbone.path)]
    subprocess.run(run, env=environment | places, check=True, timeout=120)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
