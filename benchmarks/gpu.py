"""What a GPU makes of it, in sections in order of worth, each with its own time limit: 8 minutes at most in all.

    python benchmarks/gpu.py --photos clothing/train --cifar FOLDER --mnist FOLDER [--peer airbench94_muon.py]
    python benchmarks/gpu.py … --only extract --only finetune
    python benchmarks/gpu.py … --device cpu --small     # all of it in miniature, to see that it runs

`--cifar` and `--mnist` name folders in the official layout, `--peer` the published script, which is run as it is but
for its number of runs, its compiler's mode, and its images, which are written out for it. Each section is a process of
its own, which prints figures as it has them; one that fails or takes too long costs its own remaining figures only.
docs/benchmarks.md says what was expected of each. The JSON goes to `benchmarks/results/gpu.json`, or to `--json`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from common import RESULTS, machine, photos, repeat_photos, spread

_LIMIT_SECONDS = 470.0
_BACKBONE = "efficientnet_lite0"
_CUT = "block_12"


def main() -> None:
    """Run the sections, one after the other, and write down what they print."""
    options = _options()
    if options.section:
        _SECTIONS[options.section][0](options)
        return
    values: dict[str, Any] = {"machine": _machine(options.device), "small": options.small, "sections": {}}
    deadline = time.monotonic() + options.limit
    for name in options.only or _SECTIONS:
        limit = min(_SECTIONS[name][1], deadline - time.monotonic())
        if limit < 1:
            values["sections"][name] = {"error": f"no time was left of {options.limit:.0f} s"}
        else:
            values["sections"][name] = _run_section(name, limit)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(values, indent=1) + "\n")
    print(f"written: {options.json}")


def _run_section(name: str, limit: float) -> dict[str, Any]:
    """Run a section in a process of its own: what it told, and what ended it if that was not its end."""
    print(f"== {name}, at most {limit:.0f} s", flush=True)
    began, found = time.monotonic(), {}
    process = subprocess.Popen(
        [sys.executable, __file__, *sys.argv[1:], "--section", name],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    error = None
    while True:
        try:
            line = lines.get(timeout=max(0.0, began + limit - time.monotonic()))
        except queue.Empty:
            error = f"took longer than {limit:.0f} s"
            break
        if line is None:
            break
        if line.startswith(_TOLD):
            found.update(json.loads(line.removeprefix(_TOLD)))
        print(f"{time.monotonic() - began:6.1f}  {line.rstrip()}", flush=True)
    if error is not None or process.poll() is None:
        try:
            process.wait(0 if error else 10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
    if error is None and process.returncode:
        error = f"exit status {process.returncode}"
    return {**found, "seconds": round(time.monotonic() - began, 2), **({"error": error} if error else {})}


_TOLD = "figures: "


def _tell(**values: Any) -> None:
    """Print figures, which the parent keeps from then on."""
    print(_TOLD + json.dumps(values), flush=True)


def _each(parts: Iterable[tuple[str, Callable[[], None]]]) -> None:
    """Run the parts of a section; one that fails is told, and the next one is run."""
    failed = False
    for name, part in parts:
        try:
            part()
        except Exception as error:
            failed = True
            traceback.print_exc()
            _tell(**{f"{name}_error": f"{type(error).__name__}: {error}"[:500]})
    if failed:
        raise SystemExit(1)


# Sections


def extract(options: argparse.Namespace) -> None:
    """The bare network, decoding alone, and from a folder to the store."""
    import numpy as np
    import torch

    from quickstudy.backbones.engines.batched import engine_on
    from quickstudy.backbones.loading import load_backbone
    from quickstudy.bottlenecks.extraction import extract as extract_images
    from quickstudy.bottlenecks.store import Store
    from quickstudy.images.distortions import Distortions
    from quickstudy.process import settle_own_process, usable_cores
    from quickstudy.progress import Progress

    settle_own_process()
    count, seconds = (8, 0.1) if options.small else (8192, 2.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repeat_photos(options.photos, folder / "photos", count)
        paths = photos(folder / "photos")
        net = load_backbone(_BACKBONE, folder)
        engine = engine_on(options.device)
        if options.small:
            engine = replace(engine, open=partial(engine.open, batch=2), batch=2)
        rates: dict[str, float] = {}

        def bare() -> None:
            for batch in (1, 2) if options.small else (32, 128, 512):
                prefix = engine.open(net.kept, net.kept.cut, net.kept.cut_shape)
                network = prefix.network
                shape = (batch, *net.input.shape)
                pixels = torch.randint(0, 256, shape, dtype=torch.uint8).to(options.device)

                def some(number: int, network: Any = network, pixels: Any = pixels) -> None:
                    for _ in range(number):
                        network(pixels)

                rates[str(batch)] = batch * _rate(some, options.device, seconds)
                _tell(bare_images_per_second=rates)

        def from_memory() -> None:
            prefix = engine.open(net.kept, net.kept.cut, net.kept.cut_shape)
            pixels = np.zeros((engine.batch or 1, *net.input.shape), np.uint8)
            for threads in (1, 3):
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(lambda _: prefix(pixels), range(threads)))
                    began, rounds = time.perf_counter(), threads * (1 if options.small else 6)
                    list(pool.map(lambda _: prefix(pixels), range(rounds)))
                    rate = rounds * len(pixels) / (time.perf_counter() - began)
                _tell(**{f"from_memory_{threads}_threads_images_per_second": rate})

        def decoding() -> None:
            cores = usable_cores()
            some = paths[: max(16, len(paths) // 2)]
            for kind in ("processes", "threads"):
                rate = _decoding_rate(some, net.input, Distortions(), cores, apart=kind == "processes")
                _tell(**{f"decoding_{cores}_{kind}_images_per_second": rate})

        class Told(Progress):
            """Notes when the first bottlenecks are there."""

            first = 0.0

            def start(self, task: str, total: int) -> None:  # noqa: ARG002
                self.began = time.perf_counter()

            def update(self, *, done: int, note: str) -> None:  # noqa: ARG002
                if done and not self.first:
                    self.first = time.perf_counter() - self.began

            def finish(self) -> None:
                pass

        def to_the_store() -> None:
            for number in range(2):  # the second time the files are in memory and the libraries loaded
                told = Told()
                began = time.perf_counter()
                found = extract_images(paths, net, Store(folder / f"store{number}"), engine=engine, progress=told)
                took = time.perf_counter() - began
                rate = found.computed / took
                _tell(
                    **{
                        f"folder_to_store_{number}_images_per_second": rate,
                        f"folder_to_store_{number}_first_after_seconds": told.first,
                        f"folder_to_store_{number}_share_of_bare": rate / max(rates.values(), default=float("nan")),
                        f"folder_to_store_{number}_thread_seconds": vars(found.timings),
                    }
                )

        def on_the_processor() -> None:
            some = paths[: 4 if options.small else 2048]
            began = time.perf_counter()
            found = extract_images(some, net, Store(folder / "processor"))
            _tell(onnxruntime_images_per_second=found.computed / (time.perf_counter() - began))

        _each(
            [
                ("bare", bare),
                ("to_the_store", to_the_store),
                ("from_memory", from_memory),
                ("decoding", decoding),
                ("on_the_processor", on_the_processor),
            ]
        )


def finetune(options: argparse.Namespace) -> None:
    """Fine-tuning from a late cut: seconds an epoch there and on the processor, and what comes of it."""
    import quickstudy

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(engine: str, epochs: int) -> None:
            began = time.perf_counter()
            result = quickstudy.retrain(
                _photos_for_tuning(options, folder),
                folder / f"{engine}.onnx",
                cut=_CUT,
                epochs=epochs,
                patience=epochs,
                engine=engine,
                cache=folder / "cache",
            )
            stage = result.tuning[-1]
            kind = "processor" if engine == "onnxruntime" else "device"
            _tell(
                **{
                    f"{kind}_seconds": time.perf_counter() - began,
                    f"{kind}_parts_seconds": result.seconds,
                    f"{kind}_epochs": len(stage["epochs"]) - 1,
                    f"{kind}_seconds_an_epoch": stage["seconds"] / (len(stage["epochs"]) - 1),
                    f"{kind}_kept": stage["kept"],
                    f"{kind}_test": result.test.score.to_dict() if result.test else None,
                }
            )

        there = [("device", lambda: run(options.device, 2 if options.small else 12))] if options.device != "cpu" else []
        _each([*there, ("processor", lambda: run("onnxruntime", 1))])


def _photos_for_tuning(options: argparse.Namespace, folder: Path) -> Path:
    """The photos as they are; in miniature, a few of them."""
    if not options.small:
        return Path(options.photos)
    if not (folder / "few").exists():
        for place in [path for path in sorted(options.photos.iterdir()) if path.is_dir()][:3]:
            repeat_photos(place, folder / "few" / place.name, 12)
    return folder / "few"


def cifar94(options: argparse.Namespace) -> None:
    """`cifar10-gpu` against the published script: seconds and accuracies, seed by seed, and whole processes."""
    from quickstudy.process import settle_own_process
    from quickstudy.scratch.data import load_training_data
    from quickstudy.scratch.folder import RunFolder
    from quickstudy.scratch.parallel import Replica, joined
    from quickstudy.scratch.recipe import RunSettings, recipe_named
    from quickstudy.scratch.train import train_recipe

    settle_own_process()
    data = load_training_data(str(options.cifar), image_size=32, validation=0.0)
    quiet = RunSettings(summary_steps=0, log_steps=1000, checkpoint_seconds=1e9, keep=1)
    replica = Replica(device_type=options.device)
    recipe = recipe_named("cifar10-gpu").with_options({"shifted_test": 1})
    if options.small:
        recipe = recipe.with_options({"widths": "8,8", "batch": 20, "steps": 4, "epochs": 0, "compiled": False})

    def seeds(name: str, compiled: bool, count: int) -> None:
        rows = []
        with tempfile.TemporaryDirectory() as folder, joined(replica):
            for seed in range(count + 1):  # the first warms up and does not count
                began = time.perf_counter()
                one = recipe.with_options({"seed": seed, "compiled": compiled})
                run = RunFolder(Path(folder) / f"{name}-{seed}")
                result = train_recipe(one, data, run, replica=replica, settings=quiet)
                took = time.perf_counter() - began
                assert result is not None
                rows.append({"training": result.training_seconds, "all": took, "accuracy": result.test.score.accuracy})
                _tell(**{f"{name}_rows": rows})
        counted = rows[1:]
        _tell(
            **{
                f"{name}_training_seconds": spread([row["training"] for row in counted]),
                f"{name}_accuracy": statistics.mean(row["accuracy"] for row in counted),
            }
        )

    def whole_process(name: str, *chosen: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "quickstudy", "train", "cifar10-gpu", "--data", str(options.cifar)]
            command += ["--run", f"{folder}/run", "--json", "--device", options.device, *chosen]
            if options.small:
                command += ["--set", "widths=8,8", "--batch", "20", "--steps", "4"]
            _tell(**{f"{name}_process_seconds": _seconds(command)})

    def peer() -> None:
        if options.peer:
            _peer(options, data)

    _each(
        [
            ("eager", lambda: seeds("eager", compiled=False, count=1 if options.small else 10)),
            ("eager_process", lambda: whole_process("eager", "--set", "compiled=off", "--summary-steps", "0")),
            ("peer", peer),
            ("compiled", lambda: None if options.small else seeds("compiled", compiled=True, count=10)),
            # As documented: compiled, with the network's graph and summaries.
            ("process", lambda: None if options.small else whole_process("documented")),
        ]
    )


def _peer(options: argparse.Namespace, data: Any) -> None:
    """Run the published script ten times on these pixels, in the compiler's default mode."""
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cifar10").mkdir()
        for split, part in (("train", data.train), ("test", data.test)):
            values = {"images": torch.from_numpy(part.pixels), "labels": torch.from_numpy(part.labels)}
            torch.save({**values, "classes": list(part.classes)}, folder / "cifar10" / f"{split}.pt")
        text = Path(options.peer).read_text()
        text = re.sub(r"mode=[\"']max-autotune[\"']", "", text)
        text, changed = re.subn(r"range\(200\)", f"range({1 if options.small else 10})", text)
        if not changed:
            raise ValueError(f"'{options.peer}' has no range(200), its number of runs; expected airbench94_muon.py")
        (folder / "peer.py").write_text(text)
        if importlib.util.find_spec("torchvision") is None:  # of which it takes one function
            (folder / "torchvision").mkdir()
            (folder / "torchvision" / "__init__.py").write_text("")
            (folder / "torchvision" / "transforms.py").write_text(_NORMALIZE)
        process = subprocess.Popen(
            [sys.executable, "peer.py"],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_UNBUFFERED},
        )
        rows: list[dict[str, float]] = []
        for line in process.stdout or ():
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            if len(cells) == 6 and cells[1] == "eval":
                rows.append({"accuracy": float(cells[4]), "training": float(cells[5])})
                _tell(peer_rows=rows)
        if process.wait():
            raise ValueError(f"the peer ended with exit status {process.returncode}")
    counted = rows[1:]
    _tell(
        peer_training_seconds=spread([row["training"] for row in counted]),
        peer_accuracy=statistics.mean(row["accuracy"] for row in counted),
    )


_UNBUFFERED = {"PYTHONUNBUFFERED": "1"}
_NORMALIZE = """
import torch


class Normalize:
    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def __call__(self, images):
        mean, std = (value.to(images).view(-1, 1, 1) for value in (self.mean, self.std))
        return (images - mean) / std
"""


def sweep(options: argparse.Namespace) -> None:
    """The batch-norm study of 70 runs, trained together and one after the other, and whether both say the same."""
    found: dict[str, list[dict[str, Any]]] = {}

    def run(kind: str, study: list[str], workers: list[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "quickstudy", "sweep", *study, "--results", f"{folder}/sweep", *workers]
            command += ["--device", options.device, "--data-folder", str(options.mnist), "--yes", "--json"]
            began = time.perf_counter()
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            seconds = time.perf_counter() - began
        rows = found[kind] = json.loads(output)["rows"]
        _tell(**{f"{kind}_seconds": seconds, f"{kind}_in_runs_seconds": sum(row["seconds"] for row in rows)})
        _tell(**{f"{kind}_in_steps_seconds": sum(row["training_seconds"] for row in rows)})
        _tell(**{f"{kind}_at_once": max(row["together"] for row in rows)})

    def compare() -> None:
        pairs = list(zip(found["together"], found["separate"], strict=True))
        _tell(
            same_number_of_steps=sum(one["steps"] == other["steps"] for one, other in pairs),
            steps_differ_by_at_most=max(abs(one["steps"] - other["steps"]) for one, other in pairs),
            accuracies_differ_by_at_most=max(abs(one["accuracy"] - other["accuracy"]) for one, other in pairs),
            runs=len(pairs),
        )

    small = ["mlp", "--grid", "depth=1,2", "--steps", "4"]
    study = small if options.small else ["batchnorm"]
    # The first one reads libraries and draws a picture for the first time on this machine.
    first = [] if options.small else [("first", lambda: run("first", small, []))]
    _each(
        [
            *first,
            ("together", lambda: run("together", study, [])),
            ("separate", lambda: run("separate", study, ["--workers", "1"])),
            ("compare", compare),
        ]
    )


def classic(options: argparse.Namespace) -> None:
    """Steps of the classic recipe with all that it writes, there and on the processor: images a second."""

    def run(device: str) -> None:
        steps = 20 if options.small else 600
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "quickstudy", "train", "cifar10-classic", "--data", str(options.cifar)]
            command += ["--steps", str(steps), "--run", f"{folder}/run", "--json", "--device", device]
            command += ["--summary-steps", "10"] if options.small else []
            seconds = _seconds(command)
            lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        rates = [json.loads(line).get("examples_per_second") for line in lines]
        rate = statistics.median(rate for rate in rates if rate is not None)
        _tell(**{f"{device}_images_per_second": rate, f"{device}_process_seconds": seconds, "steps": steps})

    _each((device, lambda device=device: run(device)) for device in dict.fromkeys([options.device, "cpu"]))


def scaling(options: argparse.Namespace) -> None:
    """ONNX Runtime and decoding on 1, 2, 4 and more cores: images a second, and as a share of that many times one's."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    counts = [count for count in (1, 2, 4, 8, 16, 32, 64) if count <= len(cores)]
    rates: dict[str, dict[str, float]] = {}

    def run(kind: str, count: int) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--part", kind]
        command += ["--cores", ",".join(map(str, cores[:count]))]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rates.setdefault(kind, {})[str(count)] = float(output.strip().splitlines()[-1])
        shares = {
            name: {count: rate / (int(count) * found["1"]) for count, rate in found.items()}
            for name, found in rates.items()
            if "1" in found
        }
        _tell(images_per_second=rates, share_of_linear=shares)

    parts = _SCALED[:1] if options.small else _SCALED
    _each((f"{kind}_{count}", lambda kind=kind, count=count: run(kind, count)) for kind in parts for count in counts)


_SCALED = ("decoding_processes", "decoding_threads", "onnxruntime")


def _scaled(options: argparse.Namespace) -> float:
    """Images a second of one kind of work on the cores that are named."""
    os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    from quickstudy.backbones.loading import load_backbone
    from quickstudy.bottlenecks.extraction import extract as extract_images
    from quickstudy.bottlenecks.store import Store
    from quickstudy.images.distortions import Distortions
    from quickstudy.process import settle_own_process, usable_cores

    settle_own_process()
    cores = usable_cores()
    paths = photos(options.photos)
    with tempfile.TemporaryDirectory() as folder:
        net = load_backbone(_BACKBONE, Path(folder))
        if options.part == "onnxruntime":
            some = paths[: 60 * cores + 60]
            extract_images(paths[-cores:], net, Store(Path(folder) / "first"))
            began = time.perf_counter()
            found = extract_images(some, net, Store(Path(folder) / "store"))
            return found.computed / (time.perf_counter() - began)
        some = paths[: 16 if options.small else min(len(paths), 800 * cores)]
        return _decoding_rate(some, net.input, Distortions(), cores, apart=options.part == "decoding_processes")


_SECTIONS: dict[str, tuple[Callable[[argparse.Namespace], None], float]] = {
    "extract": (extract, 100.0),
    "finetune": (finetune, 70.0),
    "cifar94": (cifar94, 145.0),
    "sweep": (sweep, 85.0),
    "classic": (classic, 45.0),
    "scaling": (scaling, 55.0),
}
"""Sections, each with the most seconds it may take, in order of worth."""


# What sections share


def _decoding_rate(paths: list[Path], spec: Any, distortions: Any, workers: int, *, apart: bool) -> float:
    """Images a second that are made ready, several blocks at a time, the start of processes left out."""
    from quickstudy.bottlenecks.preparing import Preparers, Wanted

    rows = 512
    preparers = Preparers(spec, distortions, blocks=3, rows=rows, workers=workers, apart=apart)
    wanted = [Wanted(image=path, expected=None, views=(0,)) for path in paths]
    parts = [wanted[start : start + rows] for start in range(0, len(wanted), rows)]
    try:
        preparers.fill(0, (wanted * (1 + 64 * workers // len(wanted)))[: min(rows, 64 * workers)])
        free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for block in range(3):
            free.put(block)

        def fill(part: list[Any]) -> int:
            block = free.get()
            ready = preparers.fill(block, part)
            free.put(block)
            return sum(one.reason is None for one in ready)

        began = time.perf_counter()
        with ThreadPoolExecutor(3) as pool:
            count = sum(pool.map(fill, parts))
        return count / (time.perf_counter() - began)
    finally:
        preparers.close()


def _rate(some: Callable[[int], None], device: str, seconds: float) -> float:
    """Calls a second, once it is warm, and without waiting between them."""
    import torch

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    with torch.inference_mode():
        some(2)
        wait()
        began = time.perf_counter()
        some(1)
        wait()
        number = max(1, min(1000, int(seconds / max(time.perf_counter() - began, 1e-4))))
        began = time.perf_counter()
        some(number)
        wait()
    return number / (time.perf_counter() - began)


def _seconds(command: list[str]) -> float:
    """Wall seconds of a command, from start to exit; what it says of an error is shown."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _machine(device: str) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {**machine(), "torch": torch.__version__, "device": platform.processor() or "processor"}
    if device.startswith("cuda"):
        found |= {
            "device": torch.cuda.get_device_name(device),
            "memory_gigabytes": torch.cuda.get_device_properties(device).total_memory / 1e9,
            "cuda": torch.version.cuda,
        }
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="class folders of JPEGs")
    parser.add_argument("--cifar", type=Path, required=True, help="CIFAR-10 in its official binary layout")
    parser.add_argument("--mnist", type=Path, required=True, help="MNIST in its official layout")
    parser.add_argument("--peer", type=Path, help="airbench94_muon.py")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", action="append", choices=list(_SECTIONS), help="a section; all if left out")
    parser.add_argument("--small", action="store_true", help="in miniature")
    parser.add_argument("--limit", type=float, default=_LIMIT_SECONDS, help="most seconds in all")
    parser.add_argument("--json", type=Path, default=RESULTS / "gpu.json", help="file for the figures")
    parser.add_argument("--section", choices=list(_SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=_SCALED, help=argparse.SUPPRESS)
    parser.add_argument("--cores", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("photos", "cifar", "mnist"):  # sections run in other folders
        setattr(options, name, getattr(options, name).absolute())
    if options.part:
        print(_scaled(options))
        raise SystemExit
    return options


if __name__ == "__main__":
    main()
