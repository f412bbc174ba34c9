"""Fine-tuning: what the cache is worth at each cut, and what comes of it.

    python benchmarks/finetuning.py epoch PHOTOS [--cuts block_15,block_12,block_8]
    python benchmarks/finetuning.py accuracy PHOTOS [--cut block_12]
    python benchmarks/finetuning.py curves PHOTOS [--cuts features,block_15,block_12]
    python benchmarks/finetuning.py keras PHOTOS --weights INCEPTION_V3 --tensorflow TF_PYTHON

`epoch` times steps of the same loop on the same images with the same weights to begin with: with activations from the
store, and with the whole network in every step, its images decoded from their files each time or lying decoded in
memory. `accuracy` is the whole command from an empty cache. `curves` repeats it with some of the training images.
`keras` is the same job, on 500 of the training photos, beside Keras on TensorFlow after its own guide: InceptionV3 up
to mixed8 with ImageNet's weights, the classifier and what follows mixed7 trained.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from common import fresh, quickstudy, run_measured, save
from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.graphs.autograd import GraphModule
from quickstudy.backbones.graphs.cutting import keep_until
from quickstudy.backbones.graphs.runtime import optimised
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.images.decoding import decode
from quickstudy.images.distortions import Distortions
from quickstudy.images.imageset import load_image_set
from quickstudy.images.views import render_view
from quickstudy.learning.averages import choose_precision
from quickstudy.process import usable_cores
from quickstudy.retraining.config import Method
from quickstudy.retraining.network import SuffixNetwork, suffix_graph
from quickstudy.retraining.tuning import TuningImages, fine_tune

_IMAGES = 320
_STEPS_LEFT_OUT = 2


def main() -> None:
    """Measure what is asked for and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("epoch", "accuracy", "curves", "keras"))
    parser.add_argument("photos", type=Path)
    parser.add_argument("--cuts", default="")
    parser.add_argument("--cut", default="block_12")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", type=Path, help="keras: folder of InceptionV3's weights up to mixed8")
    parser.add_argument("--tensorflow", help="keras: the Python of an environment with tensorflow")
    options = parser.parse_args()
    if options.what == "epoch":
        cuts = options.cuts or "stem,block_3,block_5,block_8,block_10,block_12,block_14,block_15,block_16,head"
        _epoch(options.photos, options.backbone, cuts.split(","))
    elif options.what == "accuracy":
        _accuracy(options.photos, options.backbone, options.cut)
    elif options.what == "keras":
        _keras(options.photos, options.weights, options.tensorflow)
    else:
        _curves(options.photos, options.backbone, (options.cuts or "features,block_15,block_12").split(","))


def _epoch(photos: Path, name: str, cuts: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        uncut = load_backbone(name, cache)
        paths = [file.path for file in load_image_set(photos).files][::3][:_IMAGES]
        rows = []
        for cut in cuts:
            net = uncut.at(cut)
            extraction = extract(paths, net, Store(cache / "bottlenecks"), views=1)
            digests = tuple(digest for digest in extraction.digests if digest is not None)
            prefix = _TorchPrefix(net, dict(zip(digests, paths, strict=True)))
            gathers = {"cached": extraction.gather, "whole": prefix, "decoded": prefix.in_memory()}
            seconds: dict[str, list[float]] = {kind: [] for kind in gathers}
            difference = _difference(extraction.gather(digests[:32]), prefix(digests[:32], 0))
            for _ in range(2):  # by turns
                for kind, gather in gathers.items():
                    seconds[kind] += _step_seconds(net, digests, gather)
            cached, whole, decoded = (1000 * float(np.median(seconds[kind])) for kind in gathers)
            rows.append(
                {
                    "cut": cut,
                    "work_frozen": next(c.multiply_adds for c in net.cuts if c.name == cut)
                    / net.cuts[-1].multiply_adds,
                    "cached_milliseconds_an_image": cached,
                    "whole_network_milliseconds_an_image": whole,
                    "whole_network_decoded_milliseconds_an_image": decoded,
                    "times_faster": whole / cached,
                    "times_faster_than_decoded": decoded / cached,
                    "largest_relative_difference_at_the_cut": difference,
                }
            )
            print(rows[-1], flush=True)
        save("finetuning_epoch", {"backbone": name, "images": len(digests), "batch": Method().batch, "cuts": rows})


class _TorchPrefix:
    """Activations at the cut, worked out anew each time, as a training without a cache does."""

    def __init__(self, net: Backbone, paths: dict[bytes, Path]) -> None:
        graph = keep_until(onnx.load(net.path), net.cut, net.cut_shape)
        self.module = GraphModule(optimised(graph)).to(memory_format=torch.channels_last)
        self.net, self.paths, self.precision = net, paths, choose_precision("auto", "cpu")
        self.pool = ThreadPoolExecutor(usable_cores())

    def __call__(self, digests: Sequence[bytes], view: int) -> NDArray[np.float32]:
        return self.run(list(self.pool.map(lambda digest: self.pixels(digest, view), digests)))

    def in_memory(self) -> Any:
        """The same, with all images decoded before."""
        held = {(digest, view): self.pixels(digest, view) for digest in self.paths for view in (0, 1)}
        return lambda digests, view: self.run([held[digest, view] for digest in digests])

    def pixels(self, digest: bytes, view: int) -> NDArray[np.uint8]:
        spec = self.net.input
        return render_view(decode(self.paths[digest].read_bytes(), spec), spec, digest, view, Distortions())

    def run(self, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32):
            return self.module(torch.from_numpy(np.stack(images))).float().numpy()


def _difference(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return float(np.abs(a.astype(np.float32) - b).max() / np.abs(b).max())


def _step_seconds(net: Backbone, digests: tuple[bytes, ...], gather: Any) -> list[float]:
    """Of each step, an image's share."""
    torch.manual_seed(0)
    labels = np.arange(len(digests)) % 10
    network = SuffixNetwork(
        GraphModule(suffix_graph(net)), np.zeros((net.cuts[-1].values, 10), np.float32), np.zeros(10, np.float32)
    )
    train = TuningImages(digests=digests, labels=labels, gather=gather, views=1)
    few = TuningImages(digests=digests[:1], labels=labels[:1], gather=gather)
    method = replace(Method(), epochs=1)
    times = [time.perf_counter()]
    fine_tune(network, train, few, method, report=lambda *_: times.append(time.perf_counter()))
    # The last step has an evaluation behind it.
    return [(b - a) / method.batch for a, b in itertools.pairwise(times)][_STEPS_LEFT_OUT:-1]


def _accuracy(photos: Path, name: str, cut: str) -> None:
    folder = fresh(Path(tempfile.gettempdir()) / "quickstudy-finetuning")
    results = {}
    for label, options in (("linear", []), ("fine-tuned", ["--cut", cut])):
        seconds, found = _retrain(photos, name, folder / label, options)
        results[label] = {
            "seconds": seconds,
            "test": found["test"],
            "cross_validation": found["cross_validation"],
            "fine_tuning": found["fine_tuning"],
            "stages": found["seconds"],
        }
    shutil.rmtree(folder)
    save("finetuning_accuracy", {"backbone": name, "cut": cut, **results})


def _retrain(photos: Path, backbone: str, cache: Path, options: Sequence[str]) -> tuple[float, dict[str, Any]]:
    """Seconds of the whole command, and what it found."""
    model = cache.parent / "model.onnx"
    measured = run_measured(
        quickstudy(
            "retrain", str(photos), "--backbone", backbone, "-o", str(model), "--cache", str(cache), "--json", *options
        )
    )
    found = json.loads(measured["output"])
    print(*options, measured["wall_seconds"], found["test"]["accuracy"], flush=True)
    return measured["wall_seconds"], found


def _curves(photos: Path, name: str, cuts: Sequence[str]) -> None:
    folder = fresh(Path(tempfile.gettempdir()) / "quickstudy-curves")
    files = load_image_set(photos).files
    train = [file for file in files if file.split != "test"]
    random.Random(0).shuffle(train)
    rows = []
    for share in (0.1, 0.25, 0.5, 1.0):
        manifest = folder / "some.csv"
        chosen = [*train[: round(share * len(train))], *(file for file in files if file.split == "test")]
        lines = [f"{file.path.resolve()},{file.label},{file.split}" for file in chosen]
        manifest.write_text("\n".join(["path,label,split", *lines]) + "\n")
        for cut in cuts:
            _, found = _retrain(manifest, name, folder / "cache", ["--cut", cut])
            row = {
                "images": sum(found["train_counts"].values()),
                "cut": cut,
                "accuracy": found["test"]["accuracy"],
            }
            rows.append(row)
            print(row, flush=True)
    shutil.rmtree(folder)
    save("finetuning_curves", {"backbone": name, "test_images": found["test"]["n"], "runs": rows})


def _keras(photos: Path, weights: Path, tensorflow: str) -> None:
    folder = fresh(Path(tempfile.gettempdir()) / "quickstudy-keras")
    some = folder / "photos"
    counts = {"train": 500, "validation": 170, "test": None}
    for part, count in counts.items():
        files = sorted(photos.joinpath(part).glob("*/*.jpg"))
        random.Random(0).shuffle(files)
        for file in files[:count]:
            link = some / part / file.parent.name / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    peers = Path(__file__).parent / "peers"
    add = [sys.executable, str(peers / "add_inception_v3.py"), str(weights), str(folder / "cache")]
    imported = run_measured(add)
    ours = {}
    for label, options in (("linear", []), ("fine-tuned", ["--cut", "mixed7"])):
        cache = folder / label
        shutil.copytree(folder / "cache", cache)
        seconds, found = _retrain(some, "inception_v3_mixed8", cache, options)
        ours[label] = {"seconds": seconds, "test": found["test"], "fine_tuning": found["fine_tuning"]}
    peer = [tensorflow, str(peers / "keras_finetuning.py"), "--folder", str(some), "--weights", str(weights)]
    measured = run_measured(peer)
    theirs = [json.loads(line) for line in measured["output"].splitlines()]
    shutil.rmtree(folder)
    save(
        "finetuning_keras",
        {
            "images": counts["train"],
            "import_seconds": imported["wall_seconds"],
            "quickstudy": ours,
            "keras": {"seconds": measured["wall_seconds"], "epochs": theirs[:-1], "test": theirs[-1]},
            "times_less": measured["wall_seconds"] / ours["fine-tuned"]["seconds"],
        },
    )


if __name__ == "__main__":
    main()
