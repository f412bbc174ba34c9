"""What a GPU makes of it, in sections in order of worth, each with its own time limit: 8 minutes at most in all.

    python benchmarks/gpu.py --photos clothing/train --cifar FOLDER --mnist FOLDER [--peer airbench94_muon.py]
    python benchmarks/gpu.py … --only extract --only finetune
    python benchmarks/gpu.py … --device cpu --small     # all of it in miniature, to see that it runs

`--cifar` and `--mnist` name folders in the official layout, `--peer` the published script, which is run as it is but
for its number of runs, its compiler's mode, its images, which are written out for it, and the one function that it
takes of torchvision. Each section is a process of its own, which prints figures as it has them; one that fails or takes
too long costs its own remaining figures only, as does each of its parts. What an ended one said is in the JSON, too.
docs/benchmarks.md says what was expected of each. The JSON goes to `benchmarks/results/gpu.json`, or to `--json`, anew
with every figure. However the command is ended, no process of it goes on, and no temporary file is left.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import platform
import queue
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

from common import RESULTS, machine, photos, repeat_photos, spread

_BEGAN = time.monotonic()
_LIMIT_SECONDS = 470.0
_BACKBONE = "efficientnet_lite0"
_CUT = "block_12"
_MARK, _SECONDS = "QUICKSTUDY_GPU_SECTION", "QUICKSTUDY_GPU_SECONDS"
"""Variables that a section's processes have: what they are known by, and the seconds that the section has."""
_TAIL = 40
"""Last lines of what an ended process said that are kept with its error."""
_FOLDER = "quickstudy-gpu-"
"""How the name of the folder begins that all temporary files of a run lie in."""
_ENDING_SECONDS = 3.0
"""Seconds that processes which a section has left behind have to end by themselves, and then once they are killed."""
_MACHINE_SECONDS = 60.0
"""Seconds that the device has to say what it is."""


def main() -> None:
    """Run the sections, one after the other, and write down what they print."""
    options = _options()
    if options.section:
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        # A section that hangs says where before it is ended.
        faulthandler.dump_traceback_later(max(0.5, float(os.environ.get(_SECONDS, "1e4")) - 3), exit=False)
        _SECTIONS[options.section][0](options)
        return
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # like Ctrl-C, by an exception
    values: dict[str, Any] = {"machine": {}, "small": options.small, "sections": {}}

    def write() -> None:
        values["seconds"] = round(time.monotonic() - _BEGAN, 1)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        beside = options.json.with_name(f"{options.json.name}.part")
        beside.write_text(json.dumps(values, indent=1) + "\n")
        beside.replace(options.json)

    with tempfile.TemporaryDirectory(prefix=_FOLDER, ignore_cleanup_errors=True) as folder:
        values["machine"] = _machine()
        for name in options.only or _SECTIONS:
            limit = min(_SECTIONS[name][1], options.each, options.limit - (time.monotonic() - _BEGAN))
            found = values["sections"][name] = {}
            if limit < 1:
                found["error"] = f"no time was left of {options.limit:.0f} s"
                write()
            else:
                _run_section(name, limit, found, write, folder)
    print(f"written: {options.json}")


def _run_section(name: str, limit: float, found: dict[str, Any], write: Callable[[], None], folder: str) -> None:
    """Run a section in a process of its own, and note what it tells, and what ended it if that was not its end.

    Args:
        name: the section's.
        limit: seconds that it may take.
        found: takes the figures.
        write: is called whenever there are new ones.
        folder: where its temporary files go.
    """
    print(f"== {name}, at most {limit:.0f} s", flush=True)
    began, mark = time.monotonic(), uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, __file__, *sys.argv[1:], "--section", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        env={**os.environ, _MARK: mark, _SECONDS: str(limit), "TMPDIR": folder},
    )
    try:
        _follow(process, began, limit, found, write)
    except BaseException as error:  # this process is asked to end
        found["error"] = f"{type(error).__name__} ended the command"
        raise
    finally:
        _kill(process)
        if left := _end_marked(mark, grace=0.0 if "error" in found else _ENDING_SECONDS):
            found["ended_by_force"] = left
        found["seconds"] = round(time.monotonic() - began, 2)
        write()


def _kill(process: subprocess.Popen[str]) -> None:
    """End a section and what it has begun in its group, if it has not ended."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _follow(
    process: subprocess.Popen[str], began: float, limit: float, found: dict[str, Any], write: Callable[[], None]
) -> None:
    """Note what a section tells until it ends, or its time is over."""
    lines: queue.Queue[str | None] = queue.Queue()
    said: deque[str] = deque(maxlen=_TAIL)

    def read(pipe: IO[str] | None) -> None:
        for line in pipe or ():
            lines.put(line)
        lines.put(None)

    def listen(pipe: IO[str] | None) -> None:
        for line in pipe or ():
            said.append(line.rstrip())
            print(f"        {line.rstrip()}", file=sys.stderr, flush=True)

    threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
    listener = threading.Thread(target=listen, args=(process.stderr,), daemon=True)
    listener.start()
    error, ended = None, None
    while True:
        try:
            line = lines.get(timeout=max(0.0, min(1.0, began + limit - time.monotonic())))
        except queue.Empty:
            if time.monotonic() >= began + limit:
                error = f"took longer than {limit:.0f} s"
                break
            # What it has begun may keep its output open.
            ended = ended or (time.monotonic() if process.poll() is not None else None)
            if ended is not None and time.monotonic() > ended + 3:
                break
            continue
        if line is None:
            break
        if line.startswith(_TOLD):
            found.update(json.loads(line.removeprefix(_TOLD)))
            write()
        print(f"{time.monotonic() - began:6.1f}  {line.rstrip()}", flush=True)
    try:
        process.wait(0 if error else 10)
    except subprocess.TimeoutExpired:
        error = error or "did not end"
        _kill(process)
    if error is None and process.returncode:
        error = f"exit status {process.returncode}"
    listener.join(2)
    if error:
        found |= {"error": error, "said": list(said)}


def _end_marked(mark: str, *, grace: float) -> int:
    """End what processes a section has left behind, which have its mark in their environment: how many there were.

    They have `grace` seconds to end by themselves. What is killed has gone when this returns, so that the device's
    memory is free.
    """
    ended: set[int] = set()
    for seconds in (grace, _ENDING_SECONDS):
        until = time.monotonic() + seconds
        while (left := _marked(mark)) and time.monotonic() < until:
            time.sleep(0.05)
        for number in left:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
                ended.add(number)
    return len(ended)


def _marked(mark: str) -> list[int]:
    """List the processes that have a section's mark in their environment, but for this one."""
    wanted, found = f"{_MARK}={mark}".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(place.name) != os.getpid() and wanted in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
    return found


def _end_with_parent(parent: int) -> None:
    """End this section, what it has begun and its temporary files once the process that began it has been killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    folder = Path(tempfile.gettempdir())
    if folder.name.startswith(_FOLDER):  # removed once this process, whose other threads go on, writes there no more
        clean = ["sh", "-c", 'sleep 1; rm -rf "$0"', str(folder)]
        subprocess.Popen(clean, start_new_session=True, env={"PATH": os.environ["PATH"]})
    _end_marked(os.environ[_MARK], grace=0.0)
    os._exit(1)


_TOLD = "figures: "


def _tell(**values: Any) -> None:
    """Print figures, which the parent keeps from then on."""
    print(_TOLD + json.dumps(values), flush=True)


class _TooLongError(BaseException):
    """Ends a part of a section that takes too long; no `except Exception` of a library on its way keeps it."""


_AGAIN_SECONDS = 10.0
"""Seconds from one exception that ends a part to the next, enough to let go of processes and files."""
Part = tuple[str, Callable[[], None]] | tuple[str, Callable[[], None], float]
"""A part of a section: its name, what it does, and the most seconds that it may take, where that is said."""


def _each(parts: Iterable[Part]) -> None:
    """Run the parts of a section; one that fails or takes too long is told, and the next one is run."""
    failed = False
    for name, part, *limit in parts:
        began = time.perf_counter()
        print(f"-- {name}", flush=True)
        try:
            with _at_most(*limit):
                part()
        except (Exception, _TooLongError) as error:
            failed = True
            trace = traceback.format_exc()
            print(trace, file=sys.stderr, flush=True)
            _tell(**{f"{name}_error": f"{type(error).__name__}: {error}"[-1500:], f"{name}_trace": trace[-1500:]})
        _tell(**{f"{name}_part_seconds": round(time.perf_counter() - began, 2)})
    if failed:
        raise SystemExit(1)


@contextmanager
def _at_most(seconds: float = 0.0) -> Any:
    """End what is done inside this context by an exception after so many seconds; 0: never.

    It comes again while it has not ended it: what is raised in a callback, say, is lost.
    """

    def end(_number: int, _frame: object) -> None:
        raise _TooLongError(f"took longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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

        @cache
        def opened() -> Any:
            return engine.open(net.kept, net.kept.cut, net.kept.cut_shape)

        def bare() -> None:
            began = time.perf_counter()
            network = opened().network
            _tell(ready_after_seconds=time.perf_counter() - began, images_at_once=opened().batch, engine=engine.name)
            for batch in (1, 2) if options.small else (32, 128, 512):
                shape = (batch, *net.input.shape)
                pixels = torch.randint(0, 256, shape, dtype=torch.uint8).to(options.device)

                def some(number: int, network: Any = network, pixels: Any = pixels) -> None:
                    for _ in range(number):
                        network(pixels)

                rates[str(batch)] = batch * _rate(some, options.device, seconds)
                _tell(bare_images_per_second=rates)

        def from_memory() -> None:
            prefix = opened()
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
            for kind in ("processes", "threads"):
                rate = _decoding_rate(paths, net.input, Distortions(), cores, apart=kind == "processes")
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
                        f"folder_to_store_{number}_share_of_bare": rate / max(rates.values()) if rates else None,
                        f"folder_to_store_{number}_thread_seconds": vars(found.timings),
                        f"folder_to_store_{number}_unusable": len(found.reasons),
                    }
                )
            if options.device.startswith("cuda"):
                _tell(most_memory_gigabytes=torch.cuda.max_memory_allocated(options.device) / 1e9)

        def on_the_processor() -> None:
            some = paths[: 4 if options.small else 2048]
            began = time.perf_counter()
            found = extract_images(some, net, Store(folder / "processor"))
            _tell(onnxruntime_images_per_second=found.computed / (time.perf_counter() - began))

        _each(
            [
                ("bare", bare, 40),
                ("to_the_store", to_the_store, 40),
                ("from_memory", from_memory, 15),
                ("decoding", decoding, 20),
                ("on_the_processor", on_the_processor, 15),
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

        def device() -> None:
            run(options.device, 2 if options.small else 12)

        there: list[Part] = [("device", device, 50)] if options.device != "cpu" else []
        _each([*there, ("processor", lambda: run("onnxruntime", 1))])


def _photos_for_tuning(options: argparse.Namespace, folder: Path) -> Path:
    """The photos as they are; in miniature, a few of them."""
    if not options.small:
        return Path(options.photos)
    if not (folder / "few").exists():
        for place in [path for path in sorted(options.photos.iterdir()) if path.is_dir()][:3]:
            repeat_photos(place, folder / "few" / place.name, 12)
    return folder / "few"


class _Trainings:
    """Trainings of a recipe on CIFAR-10 in this process, without the compiler unless it is asked for."""

    def __init__(self, options: argparse.Namespace, name: str) -> None:
        from quickstudy.process import settle_own_process
        from quickstudy.scratch.data import ImagesAtHand, load_training_data
        from quickstudy.scratch.parallel import Replica
        from quickstudy.scratch.recipe import recipe_named

        settle_own_process()
        self.small = options.small
        self.data = load_training_data(str(options.cifar), image_size=32, validation=0.0)
        self.replica = Replica(device_type=options.device)
        self.images = ImagesAtHand(self.data, self.replica, threads=0)
        self.recipe = recipe_named(name).with_options({"compiled": False})
        if options.small:
            self.recipe = self.recipe.with_options({"widths": "8,8", "batch": 20, "steps": 4, "epochs": 0})
        self.found: dict[str, tuple[float, float]] = {}
        """Median seconds, as the published scripts count them, and mean accuracy of each kind of training."""

    def trained(self, one: Any) -> tuple[Any, Any]:
        """Train a recipe: the training, and its result."""
        from quickstudy.scratch.folder import RunFolder
        from quickstudy.scratch.recipe import RunSettings
        from quickstudy.scratch.train import RunTraining

        quiet = RunSettings(summary_steps=0, log_steps=1000, checkpoint_seconds=1e9, keep=1)
        with tempfile.TemporaryDirectory() as folder:
            place = RunFolder(Path(folder) / "run")
            place.begin(one, self.data.facts)
            training = RunTraining(one, self.images, place, self.replica, quiet, None)
            result = training.run()
            assert result is not None
            return training, result

    def seeds(self, name: str, count: int, *, first: dict[str, Any] | None = None, **chosen: Any) -> None:
        """Train by so many seeds, and tell of each, and what all come to so far, which is kept where time runs out.

        `first` has options of the training before the first seed's, which does not count.
        """
        from quickstudy.scratch.evaluation import evaluate_state
        from quickstudy.scratch.parallel import joined

        rows = []
        with joined(self.replica):
            for seed in range(-1, 1 if self.small else count):  # the first one warms up
                began = time.perf_counter()
                warm = first if first and seed < 0 and not self.small else {}
                one = self.recipe.with_options({**chosen, **warm, "seed": max(seed, 0)})
                training, result = self.trained(one)
                took = time.perf_counter() - began
                accuracy = result.test.score.accuracy
                # What the published script's seconds have besides steps: the first layer's filters, and the evaluation.
                began = time.perf_counter()
                evaluate_state(training.state, one, self.data.test, self.data.moments)
                training.state.prepare(self.images.to_prepare(one))
                training.state.is_finite()  # which waits for all of it
                around = time.perf_counter() - began
                rows.append({"training": result.training_seconds, "around": around, "all": took, "accuracy": accuracy})
                _tell(**{f"{name}_rows": rows})
                if counted := rows[1:]:
                    totals = [row["training"] + row["around"] for row in counted]
                    self.found[name] = statistics.median(totals), statistics.mean(row["accuracy"] for row in counted)
                    _tell(
                        **{
                            f"{name}_training_seconds": spread([row["training"] for row in counted]),
                            f"{name}_seconds_as_the_peer_counts": spread(totals),
                            f"{name}_accuracy": self.found[name][1],
                        }
                    )

    def tried(self, name: str, count: int, **options: Any) -> None:
        """Do what `seeds` does, and let cuDNN try its convolutions."""
        import torch

        torch.backends.cudnn.benchmark = True
        try:
            self.seeds(name, count, **options)
        finally:
            torch.backends.cudnn.benchmark = False


def cifar94(options: argparse.Namespace) -> None:
    """`cifar10-gpu` against the published script: seconds and accuracies, seed by seed, and whole processes."""
    from quickstudy.scratch.parallel import joined

    trainings = _Trainings(options, "cifar10-gpu")
    seeds, found, data = trainings.seeds, trainings.found, trainings.data

    def waits() -> None:
        """Where steps wait for the GPU, by PyTorch's own count: lines that do so more often in more steps."""
        with joined(trainings.replica):
            fewer, more = (
                _waits(partial(trainings.trained, trainings.recipe.with_options({"steps": steps})))
                for steps in (15, 40)
            )
        _tell(waits_in_25_steps=dict(more - fewer))

    def whole_process(name: str, *chosen: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "quickstudy", "train", "cifar10-gpu", "--data", str(options.cifar)]
            command += ["--run", f"{folder}/run", "--json", "--device", options.device, *chosen]
            if options.small:
                command += ["--set", "widths=8,8", "--batch", "20", "--steps", "4"]
            # The compiler begins with nothing kept, and then with what the first process has left.
            kept = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled"}
            seconds, output = _timed(command, **kept)
            _tell(**{f"{name}_process_seconds": seconds, f"{name}_process_says": json.loads(output)})
            command[command.index(f"{folder}/run")] = f"{folder}/again"
            _tell(**{f"{name}_process_again_seconds": _timed(command, **kept)[0]})

    def peer() -> None:
        if options.peer:
            _peer(options, data, found)

    def compare() -> None:
        if "peer" in found:
            for name in sorted(found.keys() - {"peer"}):
                _tell(
                    **{
                        f"{name}_share_of_the_peers_seconds": found[name][0] / found["peer"][0],
                        f"{name}_accuracy_beyond_the_peers": found[name][1] - found["peer"][1],
                    }
                )

    on_a_gpu: list[Part] = [
        ("compiled", lambda: seeds("compiled", 10, compiled=True), 90),
        ("eager_process", lambda: whole_process("eager", "--set", "compiled=off", "--summary-steps", "0"), 30),
        # As documented: compiled, with the network's graph and summaries.
        ("process", lambda: whole_process("documented"), 75),
        ("tried", lambda: trainings.tried("tried", 3), 20),
        ("waits", waits, 15),
        ("small_rates", lambda: seeds("small_rates", 3, **_SMALL_RATES), 15),
    ]
    _each(
        [
            ("eager", lambda: seeds("eager", 10), 60),
            ("peer", peer, 90),
            ("compare", compare),
            *(on_a_gpu[1:2] if options.small else on_a_gpu),
            ("compare", compare),
        ]
    )


def cifar95(options: argparse.Namespace) -> None:
    """`cifar10-gpu95` as its source runs, without the compiler, and compiled: seconds and accuracies."""
    trainings = _Trainings(options, "cifar10-gpu95")
    compiled: Part = ("compiled", lambda: trainings.seeds("compiled", 2, first=_WARM, compiled=True), 50)
    _each([("tried", lambda: trainings.tried("tried", 2, first=_WARM), 40), *([] if options.small else [compiled])])


def cifar96(options: argparse.Namespace) -> None:
    """`cifar10-gpu96` as its source runs, without the compiler: seconds and accuracy of one seed."""
    trainings = _Trainings(options, "cifar10-gpu96")
    _each([("tried", lambda: trainings.tried("tried", 1, first=_WARM), 60)])


_SMALL_RATES = {"bias_rate": 0.22, "whitening_bias_rate": 0.22, "head_rate": 2.8}
"""The rates of a recipe that takes its source's sum over a batch for a mean."""
_WARM = {"steps": 20, "whitening_bias_epochs": 0.2}
"""Options of a short training that asks for all that a long one does, once the first layer's bias stays, too."""


def _waits(work: Callable[[], object]) -> Counter[str]:
    """Count what waits for the GPU in this work, by the line that does."""
    import torch

    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{Path(one.filename).name}:{one.lineno}" for one in noted if "synchroniz" in str(one.message))


def _peer(options: argparse.Namespace, data: Any, found: dict[str, tuple[float, float]]) -> None:
    """Run the published script ten times on these pixels, in the compiler's default mode.

    What its runs come to so far, but for the first, which it warms up with, goes to `found`: seconds, and accuracy.
    """
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cifar10").mkdir()
        for split, part in (("train", data.train), ("test", data.test)):
            values = {"images": torch.from_numpy(part.pixels), "labels": torch.from_numpy(part.labels)}
            torch.save({**values, "classes": list(part.classes)}, folder / "cifar10" / f"{split}.pt")
        text = Path(options.peer).read_text()
        text = re.sub(r"mode=[\"']max-autotune[\"']", "", text)
        text = text.replace(_RUNS, f"range({1 if options.small else 10})")
        (folder / "peer.py").write_text(text)
        # It takes one function of torchvision, whose versions have to match torch's to the digit.
        (folder / "torchvision").mkdir()
        (folder / "torchvision" / "__init__.py").write_text("")
        (folder / "torchvision" / "transforms.py").write_text(_NORMALIZE)
        rows: list[dict[str, float]] = []
        with (folder / "said").open("w+") as said:
            process = subprocess.Popen(
                [sys.executable, "peer.py"],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env={**os.environ, **_UNBUFFERED},
            )
            try:
                for line in process.stdout or ():
                    cells = [cell.strip() for cell in line.split("|")[1:-1]]
                    if len(cells) == 6 and cells[1] == "eval":
                        rows.append({"accuracy": float(cells[4]), "training": float(cells[5])})
                        _tell(peer_rows=rows)
                        if counted := rows[1:]:
                            seconds = spread([row["training"] for row in counted])
                            accuracy = statistics.mean(row["accuracy"] for row in counted)
                            found["peer"] = seconds["median"], accuracy
                            _tell(peer_training_seconds=seconds, peer_accuracy=accuracy)
                if process.wait():
                    said.seek(0)
                    raise ValueError(f"the peer ended with exit status {process.returncode}: {said.read()[-1200:]}")
                if "peer" not in found:
                    raise ValueError("the peer told no run besides its first; expected lines of six columns")
            finally:
                process.kill()
                process.wait()


_RUNS = "range(200)"
"""What says how often the published script trains."""
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
            seconds, output = _timed(command)
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
    first: list[Part] = [] if options.small else [("first", lambda: run("first", small, []), 30)]
    _each(
        [
            *first,
            ("together", lambda: run("together", study, []), 45),
            ("separate", lambda: run("separate", study, ["--workers", "1"]), 60),
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
            seconds, _ = _timed(command)
            lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        rates = [json.loads(line).get("examples_per_second") for line in lines]
        rate = statistics.median(rate for rate in rates if rate is not None)
        _tell(**{f"{device}_images_per_second": rate, f"{device}_process_seconds": seconds, "steps": steps})

    _each((device, lambda device=device: run(device)) for device in dict.fromkeys([options.device, "cpu"]))


def scaling(options: argparse.Namespace) -> None:
    """ONNX Runtime and decoding on 1, 2, 4 and more cores: images a second, and as a share of that many times one's."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    counts = [count for count in (1, 2, 4, 8, 16, 32, 64) if count <= len(cores)]
    counts.sort(key=lambda count: (count > 1, -count))  # those that tell most first: one, then all
    rates: dict[str, dict[str, float]] = {}

    def run(kind: str, count: int) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--part", kind]
        command += ["--cores", ",".join(map(str, cores[:count]))]
        _, output = _timed(command)
        rates.setdefault(kind, {})[str(count)] = float(output.strip().splitlines()[-1])
        shares = {
            name: {count: rate / (int(count) * found["1"]) for count, rate in found.items()}
            for name, found in rates.items()
            if "1" in found
        }
        _tell(images_per_second=rates, share_of_linear=shares)

    parts = _SCALED[:1] if options.small else _SCALED
    _each((f"{kind}_{count}", lambda kind=kind, count=count: run(kind, count)) for count in counts for kind in parts)


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
        wanted = 16 if options.small else 800 * cores
        some = (paths * (1 + wanted // len(paths)))[:wanted]
        return _decoding_rate(some, net.input, Distortions(), cores, apart=options.part == "decoding_processes")


_SECTIONS: dict[str, tuple[Callable[[argparse.Namespace], None], float]] = {
    "extract": (extract, 100.0),
    "finetune": (finetune, 75.0),
    "cifar94": (cifar94, 220.0),
    "sweep": (sweep, 90.0),
    "cifar95": (cifar95, 90.0),
    "cifar96": (cifar96, 65.0),
    "classic": (classic, 45.0),
    "scaling": (scaling, 60.0),
}
"""Sections, each with the most seconds it may take, in order of worth; what is left of all runs out with the last."""


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


def _timed(command: list[str], **variables: str) -> tuple[float, str]:
    """Run a command: its wall seconds from start to exit, and its output; an error has the end of what it said."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=said, text=True, env={**os.environ, **variables})
        try:
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        seconds = time.perf_counter() - began
        output.seek(0)
        said.seek(0)
        if code:
            raise RuntimeError(f"exit status {code} of {' '.join(command[1:5])}: {said.read()[-1200:]}")
        return seconds, output.read()


def _machine() -> dict[str, Any]:
    """What the figures were measured on; another process asks the device, which this one leaves to the sections."""
    try:
        with _at_most(_MACHINE_SECONDS):
            found = json.loads(_timed([sys.executable, __file__, *sys.argv[1:], "--part", "device"])[1])
    except (RuntimeError, ValueError, _TooLongError) as error:
        found = {"error": str(error)}
    return {**machine(), **found}


def _device(options: argparse.Namespace) -> dict[str, Any]:
    import sysconfig

    import torch

    from quickstudy.process import granted_cores

    # The compiler and the headers that Triton, which torch.compile uses on GPUs, looks for.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "device": platform.processor() or "processor",
        "c_compiler": os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"),
        "python_headers": (Path(sysconfig.get_paths(scheme)["include"]) / "Python.h").exists(),
    }
    if (granted := granted_cores()) < float("inf"):
        found["granted_cores"] = granted
    if options.device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(options.device)
        found |= {
            "device": torch.cuda.get_device_name(options.device),
            "capability": list(torch.cuda.get_device_capability(options.device)),
            "memory_gigabytes": total / 1e9,
            "free_memory_gigabytes": free / 1e9,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def _unusable(options: argparse.Namespace) -> str:
    """Say what of the data is not there, before any time is spent; nothing where all is."""
    from quickstudy.errors import ImageSetError
    from quickstudy.images.named import layout_of

    if not photos(options.photos):
        return f"'{options.photos}' holds no JPEG; --photos takes a folder with a folder of them for each class"
    for name, place in (("cifar10", options.cifar), ("mnist", options.mnist)):
        try:
            found = layout_of(place)
        except ImageSetError as error:
            return str(error)
        if found != name:
            return f"'{place}' does not hold {name} in its official layout; get it with: quickstudy data get {name}"
    if options.peer and not (options.peer.is_file() and _RUNS in options.peer.read_text()):
        return f"'{options.peer}' is no script with {_RUNS}, its number of runs; --peer takes airbench94_muon.py"
    return ""


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
    parser.add_argument("--each", type=float, default=_LIMIT_SECONDS, help="most seconds of a section")
    parser.add_argument("--json", type=Path, default=RESULTS / "gpu.json", help="file for the figures")
    parser.add_argument("--section", choices=list(_SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=("device", *_SCALED), help=argparse.SUPPRESS)
    parser.add_argument("--cores", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("photos", "cifar", "mnist"):  # commands run in other folders
        setattr(options, name, getattr(options, name).absolute())
    if not options.part and not options.section and (reason := _unusable(options)):
        parser.error(reason)
    if options.part:
        print(json.dumps(_device(options)) if options.part == "device" else _scaled(options))
        raise SystemExit
    return options


if __name__ == "__main__":
    main()
