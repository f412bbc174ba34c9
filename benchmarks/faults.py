"""What survives: training killed at random moments, and many processes that fill one empty store at once.

    python benchmarks/faults.py --folder PHOTOS --kills 30

Kills `quickstudy.retrain` with SIGKILL at random moments, checks after each kill that the store is whole and that no
file stands half-written, and starts it again on what is left; when a run comes to its end, its model must be that of an
uninterrupted run, byte for byte. Then lets several processes extract the same photos into one empty store. Exits with 1
when anything is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import RESULTS, machine, photos
from quickstudy.bottlenecks.store import Store
from quickstudy.files import TEMPORARY_PREFIX

RETRAIN = """
import re, sys
import quickstudy.retraining.retrain

class Told:
    def start(self, task, total): print("bottlenecks 0", flush=True)
    def update(self, *, done, note):
        if counted := re.search(r"(\\d+) computed", note):
            print("bottlenecks", counted[1], flush=True)
    def finish(self): print("head", flush=True)

print("ready", flush=True)
quickstudy.retrain(sys.argv[1], sys.argv[2], cache=sys.argv[3], progress=Told())
"""

EXTRACT = """
import hashlib, sys
from pathlib import Path
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.images.imageset import load_image_set

files = [file.path for file in load_image_set(Path(sys.argv[1])).files]
backbone = load_backbone("efficientnet_lite0", Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
extraction = extract(files, backbone, Store(Path(sys.argv[3])))
found = sorted({digest for digest in extraction.digests if digest})
print(hashlib.sha256(extraction.gather(found).tobytes()).hexdigest(), len(found), extraction.computed)
"""


@dataclass(kw_only=True)
class Kills:
    """What the kills led to."""

    kills: int = 0
    in_stage: dict[str, int] = field(default_factory=lambda: {"before": 0, "bottlenecks": 0, "head": 0})
    """How many hit a run before, in and after its extraction."""
    finished_runs: int = 0
    """Runs that came to their end on what killed runs had left."""
    identical_models: int = 0
    """Of those, how many wrote what an uninterrupted run writes, byte for byte."""
    damaged_shards: int = 0
    half_written_files: int = 0
    """Models or descriptions that could not be read or were not those of an uninterrupted run."""
    lost_shards: int = 0
    """Times that the store held fewer bottlenecks after a kill than before the run."""
    failed_runs: list[str] = field(default_factory=list)
    """What runs said that failed by themselves."""
    most_lost_images: int = 0
    """Most forward passes that one kill undid."""
    uninterrupted_seconds: float = 0.0
    cached_seconds: float = 0.0
    """A run that finds all bottlenecks in the store."""

    @property
    def is_right(self) -> bool:
        """Whether all is as it should be."""
        wrong = self.damaged_shards or self.half_written_files or self.lost_shards or self.failed_runs
        return not wrong and self.identical_models == self.finished_runs > 0


@dataclass(kw_only=True)
class Crowd:
    """What came of many processes on one store."""

    processes: int
    failed: list[str]
    distinct_results: int
    """1 where all processes and a single one in a store of its own give the same bottlenecks."""
    images: int
    in_store: int
    computed: int
    """Forward passes of all together; what several computed at once counts as often."""
    damaged_shards: int
    leftover_files: int

    @property
    def is_right(self) -> bool:
        """Whether all is as it should be."""
        wrong = self.failed or self.damaged_shards or self.leftover_files
        return not wrong and self.distinct_results == 1 and self.in_store == self.images


def main() -> int:
    """Run both and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="Class folders of photos.")
    parser.add_argument("--limit", type=int, help="Take so many photos, evenly over the folder; all if left out.")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=RESULTS / "faults.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        folder = copy_some(options.folder, temporary / "photos", options.limit) if options.limit else options.folder
        kills = kill_often(folder, temporary / "kills", options.kills, random.Random(options.seed))
        crowd = crowd_in(folder, temporary / "crowd", options.processes)
        count = len(photos(folder))
    result = {"machine": machine(), "photos": count, "seed": options.seed}
    result |= {"kills": {**asdict(kills), "is_right": kills.is_right}}
    result |= {"processes": {**asdict(crowd), "is_right": crowd.is_right}}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if kills.is_right and crowd.is_right else 1


def copy_some(source: Path, target: Path, limit: int) -> Path:
    """Copy `limit` photos, evenly spread over the folder, into class folders."""
    files = photos(source)
    for number in range(min(limit, len(files))):
        path = files[number * len(files) // min(limit, len(files))]
        place = target / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place / f"{path.parent.parent.name}-{path.name}")
    return target


def kill_often(folder: Path, work: Path, kills: int, chance: random.Random) -> Kills:
    """Kill runs until there were so many kills.

    Once the store is full, one more run is killed, the next comes to its end, and all starts afresh.
    """
    found = Kills()
    reference = Site(work / "reference")
    found.uninterrupted_seconds = reference.run(folder, found)
    found.cached_seconds = reference.run(folder, found)
    total = reference.stored()
    number, pace = 0, 1.0
    while found.kills < kills and not found.failed_runs:
        number += 1
        site, killed_when_full, stored = Site(work / str(number)), False, 0
        while True:
            left = 1 - stored / total
            expected = pace * (found.cached_seconds + left * (found.uninterrupted_seconds - found.cached_seconds))
            before, last = found.kills, found.kills >= kills or killed_when_full
            killed_when_full = left == 0
            seconds = site.run(folder, found, kill_after=None if last else chance.uniform(0, expected))
            site.check(reference, found)
            stored_before, stored = stored, site.stored()
            if found.kills == before:
                pace *= min(1.0, seconds / expected)  # the machine has become quicker: kill sooner
            elif left and stored == stored_before:
                pace *= 1.2  # nothing was flushed: kill later, or it would go on so
            print(f"{found.kills} kills, {stored} of {total} bottlenecks stored", flush=True)
            if found.kills == before:
                break
        if not found.failed_runs:
            found.finished_runs += 1
            found.identical_models += site.model.read_bytes() == reference.model.read_bytes()
        shutil.rmtree(site.folder)
    return found


class Site:
    """A cache, and a model that runs share, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache, self.model = folder, folder / "cache", folder / "output" / "model.onnx"
        self.store = Store(self.cache / "bottlenecks")
        self.model.parent.mkdir(parents=True)

    def stored(self) -> int:
        """Bottlenecks in the store."""
        return sum(summary.bottlenecks for summary in self.store.summaries())

    def run(self, folder: Path, found: Kills, kill_after: float | None = None) -> float:
        """Train; kill the process so many seconds after it is ready, if it still runs. Returns the seconds it ran."""
        before = self.stored()
        command = [sys.executable, "-c", RETRAIN, str(folder), str(self.model), str(self.cache)]
        lines: list[str] = []
        ready = threading.Event()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:

                def listen() -> None:
                    assert process.stdout
                    for line in process.stdout:
                        lines.append(line.strip())
                        ready.set()
                    ready.set()

                listener = threading.Thread(target=listen)
                listener.start()
                ready.wait()
                started = time.perf_counter()
                try:
                    process.wait(kill_after)
                except subprocess.TimeoutExpired:
                    process.kill()
                process.wait()
                seconds = time.perf_counter() - started
                listener.join()
                errors = process.stderr.read() if process.stderr else ""
            finally:
                process.kill()
        if process.returncode == 0:
            return seconds
        if kill_after is None or process.returncode > 0:
            found.failed_runs.append(errors)
            return seconds
        stage, _, computed = lines[-1].partition(" ")
        found.kills += 1
        found.in_stage[stage if stage in found.in_stage else "before"] += 1
        kept = self.stored() - before
        found.lost_shards += kept < 0
        if stage == "bottlenecks":
            found.most_lost_images = max(found.most_lost_images, int(computed) - kept)
        return seconds

    def check(self, reference: Site, found: Kills) -> None:
        """Whatever stands under its final name must be whole."""
        found.damaged_shards += len(self.store.verify().damaged)
        for mine, whole in (
            (self.model, reference.model),
            (
                self.cache / "backbones" / "efficientnet_lite0.onnx",
                reference.cache / "backbones" / "efficientnet_lite0.onnx",
            ),
        ):
            found.half_written_files += mine.exists() and mine.read_bytes() != whole.read_bytes()


def crowd_in(folder: Path, work: Path, count: int) -> Crowd:
    """Let so many processes extract the same photos into one empty store, all starting at once."""
    # A backbone for all of them, and what a single process gives.
    [alone], _ = extract_together(folder, work / "cache", work / "alone", 1)
    results, failed = extract_together(folder, work / "cache", work / "store", count)
    store = Store(work / "store")
    check = store.verify()
    return Crowd(
        processes=count,
        failed=failed,
        distinct_results=len({result[0] for result in [alone, *results]}),
        images=int(alone[1]),
        in_store=sum(summary.bottlenecks for summary in store.summaries()),
        computed=sum(int(result[2]) for result in results),
        damaged_shards=len(check.damaged),
        leftover_files=sum(path.name.startswith(TEMPORARY_PREFIX) for path in store.folder.rglob("*")),
    )


def extract_together(folder: Path, cache: Path, store: Path, count: int) -> tuple[list[list[str]], list[str]]:
    """What each process printed (hash of the bottlenecks, images, forward passes), and what failed ones said."""
    command = [sys.executable, "-c", EXTRACT, str(folder), str(cache), str(store)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(count)]
    results, failed = [], []
    try:
        for process in processes:
            assert process.stdout
            process.stdout.readline()
        for process in processes:
            assert process.stdin
            if process.poll() is None:
                process.stdin.write("go\n")
                process.stdin.flush()
        for process in processes:
            output, errors = process.communicate()
            if process.returncode == 0:
                results.append(output.split())
            else:
                failed.append(errors)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return results, failed


if __name__ == "__main__":
    raise SystemExit(main())
