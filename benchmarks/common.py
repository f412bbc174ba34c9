"""What the benchmark scripts share: photos under new bytes, whole-process figures, results as JSON."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quickstudy.backbones.backbone import Backbone
from quickstudy.files import sha256_of_file
from quickstudy.images.decoding import InputSpec
from quickstudy.learning.selection import Head, PathPoint
from quickstudy.process import TELEMETRY_OFF

os.environ.setdefault(*TELEMETRY_OFF)  # a benchmark's process is our own, as that of a command
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import numpy
    import onnxruntime
    import PIL

    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "onnxruntime": onnxruntime.__version__,
        "pillow": PIL.__version__,
    }


def save(name: str, values: dict[str, Any]) -> None:
    """Write a result and show it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **values}, indent=1) + "\n")
    print(json.dumps(values, indent=1))
    print(f"written: {path}")


def chosen_point(head: Head) -> PathPoint:
    """What cross-validation found of the strength that a head has."""
    return next(point for point in head.path if point.l2 == head.l2)


def photos(folder: Path) -> list[Path]:
    """The JPEG files under a folder, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


def repeat_photos(source: Path, target: Path, count: int) -> None:
    """Fill `target` with `count` photos in class folders: those of `source` again and again, each under new bytes.

    A few bytes behind a JPEG's end change its hash and nothing else.
    """
    files = photos(source)
    for number in range(count):
        original = files[number % len(files)]
        path = target / original.parent.name / f"{number:07}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(original.read_bytes() + number.to_bytes(8, "big"))


def run_measured(command: Sequence[str], **environment: str) -> dict[str, Any]:
    """Run a command to its end; its wall seconds, processor seconds, peak memory and output."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert process.stdout and process.stderr
    output = process.stdout.read()
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors}")
    return {
        "wall_seconds": wall,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_megabytes": usage.ru_maxrss / 1024,
        "output": output,
    }


def quickstudy(*arguments: str) -> list[str]:
    """The command line of the quickstudy beside this Python."""
    return [str(Path(sys.executable).parent / "quickstudy"), *arguments]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def backbone_from_graph(graph: Path, *, size: int, features: int) -> Backbone:
    """A graph from elsewhere, `image` (uint8, N×size×size×3) to `features`, as a backbone."""
    return Backbone(
        name=graph.stem,
        path=graph,
        fingerprint=sha256_of_file(graph),
        input=InputSpec(size=size),
        cut="features",
        cut_shape=(features,),
        classes=(),
    )


def fresh(folder: Path) -> Path:
    """An empty folder of this name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def peak_megabytes() -> float:
    """This process's peak resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _lines(path: str) -> Iterator[str]:
    try:
        yield from Path(path).read_text().splitlines()
    except OSError:
        return
