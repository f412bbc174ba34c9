"""How fast backbones are on this machine: measured once, then remembered beside them.

They are measured as extraction runs them: called by as many threads as there are cores, one image at a time. Decoding
is left out; it takes about a millisecond an image, whatever the backbone.
"""

from __future__ import annotations

import contextlib
import json
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.engine import Engine
from quickstudy.backbones.engines.named import ONNX_RUNTIME
from quickstudy.files import write_json_atomically
from quickstudy.process import usable_cores

SECONDS = 1.0
"""Seconds that a measurement takes."""
LEAST_SHARE = 0.9
"""Share of the cores' time that a measurement must have had to be remembered; less, and other programs were running."""


def measure_speed(backbone: Backbone, *, seconds: float = SECONDS, engine: Engine = ONNX_RUNTIME) -> float:
    """Measure images a second up to the features, from pixels in memory, on all cores.

    Args:
        backbone: what to measure.
        seconds: for how long.
        engine: what runs it; what ONNX Runtime does is remembered for `known_speed`, unless other programs had more
            than a tenth of the cores meanwhile: such a speed is true of that moment only.

    Raises:
        BackboneError: the engine cannot load it.
    """
    prefix = engine.open(backbone, backbone.cuts[-1].name, backbone.cuts[-1].shape)
    shape, threads = backbone.input.shape, engine.threads or usable_cores()
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (engine.batch or 1, *shape), np.uint8)

    def run_for_a_while(_: int) -> int:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            prefix(pixels)
            count += len(pixels)
        return count

    prefix(pixels)  # the first one is slower
    began, computed = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(run_for_a_while, range(threads)))
    elapsed = time.perf_counter() - began
    share = (time.process_time() - computed) / (elapsed * threads)
    speed = count / elapsed
    prefix.close()
    if engine is ONNX_RUNTIME and share >= LEAST_SHARE:
        _remember(backbone, speed)
    return speed


def known_speed(backbone: Backbone) -> float | None:
    """Look up what `measure_speed` found on this machine for this graph; None where it has not been asked."""
    try:
        note = json.loads(_place(backbone).read_text(encoding="utf-8"))
        if note["fingerprint"] == backbone.fingerprint:
            return float(note["images_per_second"][machine()])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def machine() -> str:
    """Name this machine as measurements are filed: its name, processor and usable cores."""
    return f"{platform.node()}, {platform.machine()}, {usable_cores()} cores"


def _place(backbone: Backbone) -> Path:
    return backbone.path.with_suffix(".speed.json")


def _remember(backbone: Backbone, speed: float) -> None:
    """Note a speed beside those of other machines that share the cache folder.

    A folder that cannot be written costs another measurement only.
    """
    speeds = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        note = json.loads(_place(backbone).read_text(encoding="utf-8"))
        speeds = dict(note["images_per_second"]) if note["fingerprint"] == backbone.fingerprint else {}
    speeds[machine()] = round(speed, 2)
    with contextlib.suppress(OSError):
        write_json_atomically(_place(backbone), {"fingerprint": backbone.fingerprint, "images_per_second": speeds})
