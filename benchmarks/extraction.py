"""From a folder of JPEGs to bottlenecks: how near to ONNX Runtime's own bare loop, and where the rest goes.

    python benchmarks/extraction.py FOLDER [--rounds 7] [--graph OUT.onnx --size 224 --features 1280]

Each round times the bare loop (the same graph, one image in memory, as many threads as cores: the fastest of ONNX
Runtime's configurations in `peers/bare_onnxruntime.py`), then quickstudy's extraction of the whole folder into an empty
store, in ONNX Runtime and in OpenVINO: reading, hashing, decoding, resizing and writing included; then the bare loop
again. The ratio is taken round by round, so that a machine whose speed drifts spoils neither side. A fourth side is the
naive loop: Pillow, resize, run, in the same threads.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

from common import backbone_from_graph, fresh, photos, save, spread
from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.engines.named import ONNX_RUNTIME, engine_for
from quickstudy.backbones.graphs.cutting import keep_until
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.process import usable_cores

Run = Callable[[Any], Any]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--most", type=int, default=1500, help="photos a round")
    parser.add_argument("--graph", type=Path, help="another backbone: image (uint8 NHWC) to features")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--name", default="extraction", help="of the result")
    options = parser.parse_args()
    files = photos(options.folder)[:: max(1, len(photos(options.folder)) // options.most)][: options.most]
    with tempfile.TemporaryDirectory() as temporary:
        backbone = backbone_of(options, Path(temporary))
        values = measure(files, backbone, Path(temporary), rounds=options.rounds)
    save(options.name, {"backbone": backbone.name, "input_pixels": backbone.input.size, "photos": len(files), **values})


def backbone_of(options: argparse.Namespace, folder: Path) -> Backbone:
    """quickstudy's own backbone, or a graph from elsewhere."""
    if options.graph is None:
        return load_backbone("efficientnet_lite0", folder)
    return backbone_from_graph(options.graph, size=options.size, features=options.features)


def measure(files: Sequence[Path], backbone: Backbone, folder: Path, *, rounds: int) -> dict[str, Any]:
    """Rates of the sides in turn, and where quickstudy's time goes."""
    graph = keep_until(onnx.load(backbone.path), backbone.cut, backbone.cut_shape).SerializeToString()
    session = open_session(graph)
    size = backbone.input.size
    image = np.random.default_rng(0).integers(0, 255, (1, size, size, 3), np.uint8)

    def bare(_: Path) -> None:
        session.run([backbone.cut], {"image": image})

    def naive(path: Path) -> None:
        pixels = np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
        session.run([backbone.cut], {"image": pixels[None]})

    engines = {"onnxruntime": ONNX_RUNTIME, "openvino": engine_for("openvino")}
    rates: dict[str, list[float]] = {side: [] for side in ("bare", "naive", *engines)}
    timings: dict[str, list[dict[str, float]]] = {side: [] for side in engines}
    for round_ in range(rounds + 1):
        found = {"naive": rate_of(naive, files[: len(files) // 3]), "bare": rate_of(bare, files)}
        for side, engine in engines.items():
            started = time.perf_counter()
            extraction = extract(files, backbone, Store(fresh(folder / "store")), engine=engine)
            found[side] = len(files) / (time.perf_counter() - started)
            if round_:
                timings[side].append(asdict(extraction.timings))
        found["bare"] = (found["bare"] + rate_of(bare, files)) / 2  # before and after, against drift
        print({side: round(rate, 1) for side, rate in found.items()}, flush=True)
        if round_:  # the first one warms up
            for side, rate in found.items():
                rates[side].append(rate)
    return {
        "openvino": engines["openvino"].name,
        "images_per_second": {side: spread(each) for side, each in rates.items()},
        "share_of_bare": {
            side: spread([rate / bare for rate, bare in zip(each, rates["bare"], strict=True)])
            for side, each in rates.items()
            if side != "bare"
        },
        "bare_milliseconds_an_image_and_core": 1000 * usable_cores() / spread(rates["bare"])["median"],
        "milliseconds_an_image_and_core": {side: breakdown(each, len(files)) for side, each in timings.items()},
    }


def breakdown(timings: Sequence[dict[str, float]], images: int) -> dict[str, float]:
    """Where an image's time goes, as medians over the rounds."""
    steps = ("read", "decode", "resize", "prefix", "store")
    return {
        **{step: 1000 * spread([timing[step] for timing in timings])["median"] / images for step in steps},
        "in all": 1000 * usable_cores() * spread([timing["wall"] for timing in timings])["median"] / images,
    }


def rate_of(run: Run, items: Sequence[Path]) -> float:
    """Items a second, taken one by one by as many threads as there are cores."""
    iterator, lock = iter(items), threading.Lock()

    def work(_: int) -> None:
        while True:
            with lock:
                item = next(iterator, None)
            if item is None:
                return
            run(item)

    started = time.perf_counter()
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(work, range(usable_cores())))
    return len(items) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
