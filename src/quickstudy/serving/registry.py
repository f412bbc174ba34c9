"""What is served, and who does the work: the models by name, and the threads with the bounded queue in front of them.

A model serves only after its golden checks. When a file changes, the new one is loaded and checked beside the old one,
which goes on serving until then, or for good if the new one is broken.

There are as many threads as cores, and each carries an image from the file's bytes to the probabilities. There are no
batches, as everywhere on a processor: two one-thread runs side by side beat a batch over two cores
(`benchmarks/serving.py` measures it), so there is nothing to gain by holding images back until a batch is full.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from quickstudy.errors import ModelError, OptionError, first_line
from quickstudy.files import as_path
from quickstudy.learning.drift import Drift, DriftWatch
from quickstudy.models.model import Model
from quickstudy.models.neighbours import Neighbours, load_with_neighbours, neighbours_path
from quickstudy.serving.metrics import Metrics

log = logging.getLogger("quickstudy.serving")

_NAME = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,99}")
"""Any name that a file can have on every system; in an address it is percent-encoded."""

_Stamp = tuple[tuple[int, int, int, int] | None, ...]


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a model's file, in use; requests keep the one that they began with."""

    model: Model
    """Model as it was loaded from the file."""
    sha256: str
    """SHA-256 of the file, in hexadecimal."""
    neighbours: Neighbours | None
    """Training images, where their thumbnails were kept; the model then gives features, too. None where they were
    not."""
    loaded: float
    """Time at which the version was loaded, in seconds since 1970."""
    watch: DriftWatch | None
    """What compares the images that come with those it learned from; None where it tells no strangeness."""


class Served:
    """Keeps a model's name, its file and the version in use."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.problem: str | None = None
        """Reason why the file that is there now is not in use; None where it is."""
        self._stamp = self._look()
        self._seen = self._stamp
        self.version = _load(path)

    def refresh(self) -> str | None:
        """Take up the file if it has changed and come to rest; gives `reloaded`, `refused`, or None for neither."""
        stamp = self._look()
        if stamp == self._stamp or stamp != self._seen:
            self._seen = stamp  # once more next time, lest a file be read while it is written
            return None
        self._stamp = stamp
        try:
            version = _load(self.path)
            if self._look() != stamp:
                raise ModelError("The file has changed while it was read")
        except Exception as error:  # whatever is wrong with it: the old model goes on, and files go on being watched
            self.problem = first_line(error)
            return "refused"
        self.version, self.problem = version, None
        return "reloaded"

    def look_at_drift(self) -> Drift | None:
        """Say what is known of a shift of the images that come; None where the model tells no strangeness."""
        return self.version.watch.drift if self.version.watch else None

    def describe(self) -> dict[str, Any]:
        """Describe the model and its version as JSON values."""
        version = self.version
        training = version.model.metadata.get("training") or {}
        return {
            "name": self.name,
            "classes": list(version.model.classes),
            "input": version.model.input.to_dict(),
            "sha256": version.sha256,
            "loaded": _date(version.loaded),
            "problem": self.problem,
            "neighbours": len(version.neighbours) if version.neighbours else 0,
            "thresholds": version.model.thresholds or None,
            "drift": _shown(version.watch.drift) if version.watch else None,
            "strangeness": refusal.to_dict() if (refusal := version.model.refusal) else None,
            "test": training.get("test"),
            "backbone": version.model.metadata.get("backbone"),
            "versions": version.model.metadata.get("versions"),
        }

    def _look(self) -> _Stamp:
        """Look at what tells that the model or its neighbours have changed."""
        stamps: list[tuple[int, int, int, int] | None] = []
        for path in (self.path, neighbours_path(self.path)):
            try:
                stat = os.stat(path)
                stamps.append((stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino))
            except OSError:
                stamps.append(None)
        return tuple(stamps)


class Registry:
    """Keeps the models by name; the first is the one that is asked where no name is given."""

    def __init__(self, paths: Mapping[str, Path], metrics: Metrics) -> None:
        self._metrics = metrics
        self.models = {name: Served(name, path) for name, path in paths.items()}
        for served in self.models.values():
            metrics.model_loaded(served.name, served.version.loaded)
            metrics.watch_drift(served.name, served.look_at_drift)

    @property
    def default(self) -> Served:
        """The model that is asked where no name is given."""
        return next(iter(self.models.values()))

    def refresh(self) -> None:
        """Look at all files once, and say in log and metrics what has come of it."""
        for served in self.models.values():
            outcome = served.refresh()
            if outcome is None:
                continue
            self._metrics.reloads.labels(served.name, outcome).inc()
            self._metrics.model_problem(served.name, served.problem is not None)
            if outcome == "reloaded":
                self._metrics.model_loaded(served.name, served.version.loaded)
                self._metrics.watch_drift(served.name, served.look_at_drift)
                log.warning("%s: the new file passed its checks and is in use", served.name)
            else:
                log.error("%s: the new file is not used, the old model goes on: %s", served.name, served.problem)


def parse_models(arguments: list[str]) -> dict[str, Path]:
    """Read names and files from arguments such as `photos.onnx` or `clothes=other.onnx`.

    Raises:
        OptionError: a name cannot be part of an address, or comes twice.
    """
    models: dict[str, Path] = {}
    for argument in arguments:
        name, separator, file = argument.partition("=")
        if not separator or Path(argument).exists():
            name, file = Path(argument).stem, argument
        if not _NAME.fullmatch(name):
            raise OptionError(
                f"'{name}' cannot be a model's name: it is empty, too long, begins with a dot, or has a slash in it; "
                f"name it: photos={file}"
            )
        if not file:
            raise OptionError(f"'{argument}' names no file; expected NAME=FILE, such as {name}=photos.onnx")
        if name in models:
            raise OptionError(f"Two models are called '{name}'; name one of them: other={file}")
        models[name] = as_path(file)
    return models


def _load(path: Path) -> Version:
    model, sha256, neighbours = load_with_neighbours(path)
    model.verify()
    watch = DriftWatch(model.refusal.n) if model.refusal else None
    return Version(model=model, sha256=sha256, neighbours=neighbours, loaded=time.time(), watch=watch)


def _shown(drift: Drift) -> dict[str, Any]:
    """Describe drift as JSON values, with a date for people and programs."""
    return {**drift.to_dict(), "since": None if drift.since is None else _date(drift.since)}


def _date(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


Result = TypeVar("Result")


class OverloadedError(Exception):
    """There is no room; asking again in a moment may help."""


class Pool:
    """Takes jobs while there is room, and refuses at once when there is none."""

    def __init__(self, *, threads: int, queue: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="image")
        self._most = threads + queue
        self._lock = threading.Lock()
        self._pending = 0

    @property
    def pending(self) -> int:
        """Number of jobs that were taken and are not done."""
        return self._pending

    @property
    def is_full(self) -> bool:
        """Whether not even one more job would be taken."""
        return self._pending >= self._most

    async def run(self, jobs: Sequence[Callable[[], Result]]) -> list[Result]:
        """Run all jobs and give their results, in their order; jobs not begun when the caller gives up are dropped.

        Raises:
            OverloadedError: there is no room for all of them.
        """
        with self._lock:
            if self._pending + len(jobs) > self._most:
                raise OverloadedError
            self._pending += len(jobs)
        futures = []
        for job in jobs:
            future = self._executor.submit(job)
            future.add_done_callback(self._leave)
            futures.append(future)
        return await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))

    def close(self) -> None:
        """Wait for what was taken, and end the threads."""
        self._executor.shutdown()

    def _leave(self, _: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1
