"""What quickstudy runs on must not tell anybody about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_onnx_runtime_leaves_no_telemetry(tmp_path: Path) -> None:
    """From 1.29 on it keeps a device's number and a queue of events in the user's cache, to be sent."""
    script = "import numpy, quickstudy; quickstudy.load; import onnxruntime; onnxruntime.get_available_providers()"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    places = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    run = [sys.executable, "-c", script]
    subprocess.run(run, env=environment | places, check=True, timeout=120)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
