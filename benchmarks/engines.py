"""Engines side by side: from a folder to the store, beside ONNX Runtime's bare loop, and what the head makes of each.

    python benchmarks/engines.py FOLDER [--rounds 5] [--photos 120] [--heads 400]

Two networks: EfficientNet-Lite0, and a transformer of the size of DINOv2 ViT-S/14 at 224 pixels with random weights,
made by transformers and exported by quickstudy (extra transformers). In each round, all engines take the folder's
photos into an empty store in turn, between two bare loops: the same graph in float32, one image in memory, as many
threads as cores. The ratio is taken round by round, of images a second and of processor time an image, which other
programs disturb less.

`float16` and `static` are no engines of quickstudy's: they are what was tried. Accuracy is that of Lite0's heads on
some photos, cross-validated, and what a head of such bottlenecks does with those in float32, which its model computes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from common import fresh, photos, save, spread
from extraction import rate_of
from quickstudy.backbones.backbone import Backbone, add_backbone
from quickstudy.backbones.engines.engine import Engine
from quickstudy.backbones.engines.int8 import without_advice
from quickstudy.backbones.engines.named import engine_for
from quickstudy.backbones.engines.tiles import prefix_graph
from quickstudy.backbones.graphs.runtime import open_session, optimised
from quickstudy.backbones.loading import load_backbone
from quickstudy.backbones.sources.adding import import_onnx
from quickstudy.backbones.sources.hub_configs import read_configs
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.images.decoding import decode, to_input
from quickstudy.learning.selection import fit_head
from quickstudy.learning.strengths import log_losses
from quickstudy.models.conversion import quantised

NETWORKS = {
    "efficientnet_lite0": ("onnxruntime", "openvino", "static", "float16"),
    "vit_small": ("onnxruntime", "onnxruntime-int8", "openvino", "static", "float16"),
}
CALIBRATING = 32
PROCESSOR = {
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="class folders of JPEGs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=120, help="photos a round of Lite0; a third for the transformer")
    parser.add_argument("--heads", type=int, default=400, help="photos for the heads")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lite0, vit = load_backbone("efficientnet_lite0", folder), vit_small(folder)
        calibrating = some(options.folder, CALIBRATING)
        values: dict[str, Any] = {"photos": {lite0.name: options.photos, vit.name: options.photos // 3}, "networks": {}}
        for net in (lite0, vit):
            engines = {name: engine_of(name, calibrating) for name in NETWORKS[net.name]}
            files = some(options.folder, values["photos"][net.name])
            values["networks"][net.name] = speeds(net, engines, files, folder, rounds=options.rounds)
        engines = {name: engine_of(name, calibrating) for name in NETWORKS[lite0.name]}
        values["heads"] = heads(lite0, engines, some(options.folder, options.heads), folder)
    save("engines", values)


def some(folder: Path, count: int) -> list[Path]:
    """So many photos, evenly from all."""
    files = photos(folder)
    return files[:: max(1, len(files) // count)][:count]


def vit_small(folder: Path) -> Backbone:
    """A network of DINOv2 ViT-S/14's shape with random weights, as the hub's would become a backbone."""
    import torch
    import transformers

    from quickstudy.backbones.sources.transformers_models import export_transformers

    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=224, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(folder / "vit")
    told = read_configs(config.to_dict(), PROCESSOR)
    export_transformers(config.to_dict(), folder / "vit" / "model.safetensors", folder / "v.onnx", size=224, name="vit")
    made = import_onnx(
        folder / "v.onnx", preprocessing=told.preprocessing, preferred=told.outputs, tokens=told.tokens, usual_size=224
    )
    return add_backbone(
        "vit_small",
        made.graph,
        folder,
        input_spec=replace(made.input_spec, crop=told.crop, resize=told.resize),
        cuts=made.cuts,
        classes=(),
        origin="random weights",
        prefix_tokens=made.prefix_tokens,
    )


def engine_of(name: str, calibrating: Sequence[Path]) -> Engine:
    """One of quickstudy's engines, or what was tried."""
    if name not in ("float16", "static"):
        return engine_for(name)
    return Engine(name=name, open=partial(Tried, make=halved if name == "float16" else partial(static, calibrating)))


class Tried:
    """A prefix whose graph was made otherwise."""

    def __init__(self, net: Backbone, cut: str, shape: tuple[int, ...], *, make: Callable[..., bytes]) -> None:
        self._session = open_session(make(prefix_graph(net, cut, shape), net))

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the bottlenecks of images."""
        return np.concatenate([self._session.run(None, {"image": image[None]})[0] for image in images])

    def close(self) -> None:
        """Do nothing."""


def halved(graph: onnx.ModelProto, _: Backbone) -> bytes:
    """The same graph in float16, of which only input and output are none."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    made: bytes = convert_float_to_float16(optimised(graph), keep_io_types=True).SerializeToString()
    return made


def static(calibrating: Sequence[Path], graph: onnx.ModelProto, net: Backbone) -> bytes:
    """The same graph with 8-bit integers calibrated on photos: convolutions as `export --int8`, or matrix products."""
    if sum(node.op_type == "Conv" for node in graph.graph.node) > 4:
        return quantised(graph, net.input, calibrating).SerializeToString()
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    pixels = iter([to_input(decode(path.read_bytes(), net.input), net.input) for path in calibrating])

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            image = next(pixels, None)
            return None if image is None else {"image": image[None]}

    with tempfile.TemporaryDirectory() as folder, without_advice():
        onnx.save(optimised(graph), f"{folder}/plain.onnx")
        quantize_static(
            f"{folder}/plain.onnx",
            f"{folder}/int8.onnx",
            Reader(),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return Path(folder, "int8.onnx").read_bytes()


def speeds(
    net: Backbone, engines: dict[str, Engine], files: Sequence[Path], folder: Path, *, rounds: int
) -> dict[str, Any]:
    """Rates of the engines and of the bare loop in turn, and how far their bottlenecks are from those in float32."""
    kept = net.kept
    session = open_session(prefix_graph(kept, kept.cut, kept.cut_shape).SerializeToString())
    image = np.random.default_rng(0).integers(0, 255, (1, *net.input.shape), np.uint8)

    def bare(_: Path) -> None:
        session.run([kept.cut], {"image": image})

    opened = {name: replace(engine, open=already(engine, kept)) for name, engine in engines.items()}
    kinds = ("rates", "shares", "seconds", "by_processor")
    found: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in kinds} for name in ("bare", *engines)}
    rows = {}
    for number in range(rounds + 1):
        before, spent = measured(partial(rate_of, bare, files))
        sides = {"bare": (before, spent / len(files))}
        for name, engine in opened.items():
            started = time.perf_counter()
            extraction, spent = measured(partial(extract, files, net, Store(fresh(folder / "store")), engine=engine))
            sides[name] = len(files) / (time.perf_counter() - started), spent / len(files)
            digests = [digest for digest in extraction.digests if digest is not None]
            rows[name] = extraction.gather(digests).astype(np.float64)
        after, spent_after = measured(partial(rate_of, bare, files))
        usual, cpu_usual = (before + after) / 2, (sides["bare"][1] + spent_after / len(files)) / 2  # against drift
        print({name: f"{rate:.1f}/s {1000 * cpu:.1f} ms" for name, (rate, cpu) in sides.items()}, flush=True)
        for name, (rate, cpu) in sides.items():
            if number:  # the first one warms up
                found[name]["rates"].append(rate)
                found[name]["shares"].append(rate / usual)
                found[name]["seconds"].append(cpu)
                found[name]["by_processor"].append(cpu_usual / cpu)
    exact = rows["onnxruntime"]
    return {
        name: {
            "images_per_second": spread(side["rates"]),
            "share_of_bare": spread(side["shares"]),
            "share_of_bare_by_processor_time": spread(side["by_processor"]),
            "processor_milliseconds_an_image": spread([1000 * value for value in side["seconds"]]),
            "differs": float(np.linalg.norm(rows[name] - exact) / np.linalg.norm(exact)) if name in rows else 0.0,
        }
        for name, side in found.items()
    }


def already(engine: Engine, net: Backbone) -> Callable[..., Any]:
    """What opens an engine's prefix, which is loaded here, so that no round loads it."""
    prefix = engine.open(net, net.cut, net.cut_shape)
    return lambda *_: prefix


def measured(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the processor seconds that it took."""
    started = time.process_time()
    return call(), time.process_time() - started


def heads(net: Backbone, engines: dict[str, Engine], files: Sequence[Path], folder: Path) -> dict[str, Any]:
    """What heads of each engine's bottlenecks make of photos that they have not seen: of the engine's, of float32's."""
    classes = sorted({path.parent.name for path in files})
    labels = np.array([classes.index(path.parent.name) for path in files])
    rows, keys = {}, []
    for name, engine in engines.items():
        extraction = extract(files, net, Store(fresh(folder / "store")), engine=engine)
        keys = [digest for digest in extraction.digests if digest is not None]
        rows[name] = extraction.gather(keys)
    half = np.arange(len(files)) % 2 == 0
    found = {}
    for name, values in rows.items():
        head = fit_head(values, labels, keys, classes=len(classes), widths=net.widths)
        truth = labels[head.held_out]
        in_float32 = []  # each half by the head of the other one
        for learned in (half, ~half):
            some_keys = [key for key, mine in zip(keys, learned, strict=True) if mine]
            other = fit_head(values[learned], labels[learned], some_keys, classes=len(classes), widths=net.widths)
            in_float32.append(other.logits(rows["onnxruntime"][~learned]).argmax(axis=1) == labels[~learned])
        found[name] = {
            "photos": len(files),
            "cross_validated_accuracy": head.held_out_right / head.held_out_count,
            "cross_validated_log_loss": float(log_losses(head.held_out_logits, truth).mean()),
            "accuracy_of_halves_in_float32": float(np.concatenate(in_float32).mean()),
        }
    return found


if __name__ == "__main__":
    main()
