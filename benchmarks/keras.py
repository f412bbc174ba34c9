"""quickstudy against Keras on TensorFlow: same folder, same architecture, each with its own best input pipeline.

    python benchmarks/keras.py FOLDER --tensorflow TF_PYTHON --export EXPORT_PYTHON [--rounds 3] [--part tutorial]

TF_PYTHON is the Python of an environment with tensorflow; EXPORT_PYTHON that of one with keras, torch, onnx and
onnxscript. Random weights do: the work is the same. The sides run in turn, and ratios are taken pair by pair.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx

from common import backbone_from_graph, fresh, photos, save, spread
from quickstudy.backbones.backbone import Backbone, add_backbone
from quickstudy.backbones.engines.named import engine_for
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.images.decoding import InputSpec

_PEERS = Path(__file__).parent / "peers"
_ARCHITECTURES = {"MobileNetV2": (224, 1280), "InceptionV3": (299, 2048)}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tensorflow", required=True)
    parser.add_argument("--export", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=("extraction", "tutorial"), help="only this")
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for arch in _ARCHITECTURES:
            command = [options.export, _PEERS / "export_keras.py", arch, folder / f"{arch}.onnx"]
            subprocess.run(command, check=True, stdout=sys.stderr)
        if options.part != "tutorial":
            save("keras", {"extraction": {arch: compare_extraction(options, arch, folder) for arch in _ARCHITECTURES}})
        if options.part != "extraction":
            save("keras_tutorial", compare_tutorial(options, folder))


def compare_extraction(options: argparse.Namespace, arch: str, folder: Path) -> dict[str, Any]:
    """Images a second of both sides, in turn, and their ratios: with Keras as it comes, and tuned by hand."""
    graph = folder / f"{arch}.onnx"
    command = [options.tensorflow, _PEERS / "keras_features.py", "--arch", arch, "--folder", options.folder, "--json"]
    tuned = _json([*command, "--seconds", str(options.seconds)])
    engines = ("onnxruntime", "openvino")
    sides: dict[str, list[float]] = {"keras": [], "keras_tuned": [tuned["images_per_second"]]}
    sides |= {engine: [] for engine in engines}
    for _ in range(options.rounds):
        plain = [*command, "--seconds", str(options.seconds), "--batch", "32", "--execution", "function"]
        sides["keras"].append(_json(plain)["images_per_second"])
        for engine in engines:
            sides[engine].append(rate_of_quickstudy(options.folder, graph, arch, folder, engine))
        best = ["--batch", str(tuned["batch"]), "--execution", tuned["execution"]]
        sides["keras_tuned"].append(_json([*command, "--seconds", str(options.seconds), *best])["images_per_second"])
        print(arch, {side: rates[-1] for side, rates in sides.items()}, flush=True)
    against = {"ratio": sides["keras"], "ratio_tuned": sides["keras_tuned"][1:]}
    return {
        "images_per_second": {side: spread(rates) for side, rates in sides.items()},
        **{
            name: {e: spread([q / k for q, k in zip(sides[e], theirs, strict=True)]) for e in engines}
            for name, theirs in against.items()
        },
        "tuned": {name: tuned[name] for name in ("batch", "execution")},
    }


def rate_of_quickstudy(photo_folder: Path, graph: Path, arch: str, folder: Path, engine: str) -> float:
    """Images a second from the folder to bottlenecks in an empty store."""
    files = photos(photo_folder)[: 3000 if arch == "MobileNetV2" else 600]
    started = time.perf_counter()
    extract(files, _backbone(graph, arch), Store(fresh(folder / "store")), engine=engine_for(engine))
    return len(files) / (time.perf_counter() - started)


def compare_tutorial(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The Keras tutorial's job, whole processes and the work alone: theirs, ours the first time, ours the second.

    The network is at hand on both sides: with Keras, and as a backbone that has been added.
    """
    cache, photo_folder = folder / "cache", ["--folder", options.folder, "--images", "244"]
    add_inception(folder / "InceptionV3.onnx", cache)
    theirs = [options.tensorflow, _PEERS / "keras_tutorial.py", *photo_folder, "--epochs", "2", "--json"]
    ours = [sys.executable, _PEERS / "quickstudy_tutorial.py", *photo_folder, "--backbone", "inception_v3"]
    ours += ["--cache", cache]
    runs = {
        "keras": theirs,
        "first_openvino": [*ours, "--engine", "openvino"],
        "first": ours,
        "second": ours,
    }
    rows: dict[str, list[float]] = {name: [] for name in (*runs, "keras_fit", "second_work")}
    for _ in range(options.rounds):
        fresh(cache / "bottlenecks")
        for name, command in runs.items():
            started = time.perf_counter()
            result = _json(command)
            rows[name].append(time.perf_counter() - started)
            if name == "keras":
                rows["keras_fit"].append(result["fit_seconds"])
        rows["second_work"].append(result["seconds"])
        print({name: values[-1] for name, values in rows.items()}, flush=True)
    against = {"first": "keras", "first_openvino": "keras", "second": "keras", "second_work": "keras_fit"}
    return {
        "seconds": {name: spread(values) for name, values in rows.items()},
        "times_faster": {
            name: spread([k / q for k, q in zip(rows[other], rows[name], strict=True)])
            for name, other in against.items()
        },
    }


def add_inception(graph: Path, cache: Path) -> None:
    """What `quickstudy backbone add` does last."""
    add_backbone(
        "inception_v3",
        onnx.load(graph),
        cache,
        input_spec=InputSpec(size=_ARCHITECTURES["InceptionV3"][0]),
        cuts=["features"],
        classes=[],
        origin="random weights",
    )


def _backbone(graph: Path, arch: str) -> Backbone:
    size, features = _ARCHITECTURES[arch]
    return backbone_from_graph(graph, size=size, features=features)


def _json(command: list[Any]) -> dict[str, Any]:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr[-3000:]}")
    values: dict[str, Any] = json.loads(done.stdout)
    return values


if __name__ == "__main__":
    main()
