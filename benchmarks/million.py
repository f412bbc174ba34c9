"""A head for a million images: how much memory and time it takes, from a store's shards to the weights.

    python benchmarks/million.py [--rows 1000000] [--classes 10] [--folder SCRATCH]

A store of drawn bottlenecks is written, as `cache fill` writes it (2.6 GB for a million rows of 1,280 values in 16
bits). Then processes of their own, each measured from its start to its end, do with it what `retrain`, `evaluate` and
`report` do with theirs: open the source, fit the head with the choice of its regularisation, and leave one out. The
most memory counts everything that the process had in memory at once, pages of the store among it.

Expected before it was first run: 3.5 GB, of which 2.6 GB are the features in 16 bits, and three minutes for the head.
The first run took 5.3 GB: opening a store left parts of its shards in memory, and five folds side by side their logits.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from common import machine, save
from head import drawn

_ROWS_A_SHARD = 2048
_FINGERPRINT = "d" * 64


def _spec(features: int) -> Any:
    from quickstudy.bottlenecks.shards import SourceSpec

    return SourceSpec(backbone="drawn", fingerprint=_FINGERPRINT, cut="features", input={}, shape=(features,))


def _key(row: int) -> bytes:
    return (row * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(8, "big") + bytes(16) + row.to_bytes(8, "big")


def fill(folder: Path, rows: int, classes: int) -> None:
    """Write the store, and the rows' classes beside it."""
    from quickstudy.bottlenecks.shards import serialise, shard_name

    spec = _spec(1280)
    place = folder / spec.identity
    place.mkdir(parents=True)
    (place / "source.json").write_text(json.dumps(spec.to_dict()))
    values, labels, _ = drawn(rows, classes)
    for first in range(0, rows, _ROWS_A_SHARD):
        part = values[first : first + _ROWS_A_SHARD]
        data = serialise(spec, [_key(row) for row in range(first, first + len(part))], part)
        (place / shard_name(data)).write_bytes(data)
    np.save(folder / "labels.npy", labels)


def work(folder: Path, what: str) -> None:
    """Do one thing with the store, and print what it took."""
    from quickstudy.bottlenecks.store import Source
    from quickstudy.learning.ridge import leave_one_out
    from quickstudy.learning.selection import fit_head

    started = time.perf_counter()
    spec = _spec(1280)
    labels = np.load(folder / "labels.npy")
    keys = [_key(row) for row in range(len(labels))]
    rows = Source(folder / spec.identity, spec).rows(keys)
    opened = time.perf_counter()
    found: dict[str, Any]
    if what == "head":
        head = fit_head(rows, labels, keys, classes=int(labels.max()) + 1)
        found = {
            "accuracy": head.held_out_right / len(head.held_out),
            "l2": head.l2,
            "gap": head.gap,
            "path": [[point.l2, point.log_loss, point.folds] for point in head.path],
        }
    else:
        left_out = leave_one_out(rows, labels, classes=int(labels.max()) + 1)
        found = {"accuracy": left_out.best.right / left_out.n, "l2": left_out.best.l2}
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "open_seconds": opened - started,
                "seconds": time.perf_counter() - opened,
                "cpu_seconds": usage.ru_utime + usage.ru_stime,
                "most_gigabytes": usage.ru_maxrss / 1e6,
                **found,
            }
        )
    )


def main() -> None:
    """Fill the store, do each thing in a process of its own, and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="number of images")
    parser.add_argument("--classes", type=int, default=10, help="number of classes")
    parser.add_argument("--folder", type=Path, help="where the store goes; a temporary folder if left out")
    parser.add_argument("--only", choices=["fill", "head", "leave_one_out"], help="do one thing, in this process")
    given = parser.parse_args()
    if given.only == "fill":
        fill(given.folder, given.rows, given.classes)
        return
    if given.only:
        work(given.folder, given.only)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)

        def done(what: str) -> str:
            command = [sys.executable, __file__, "--only", what, "--folder", str(folder)]
            command += ["--rows", str(given.rows), "--classes", str(given.classes)]
            return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

        if not (folder / "labels.npy").exists():
            done("fill")
        found: dict[str, Any] = {"machine": machine(), "rows": given.rows, "classes": given.classes}
        for what in ("head", "leave_one_out"):
            found[what] = json.loads(done(what))
            print(what, json.dumps(found[what], indent=1), flush=True)
    save("million", found)


if __name__ == "__main__":
    main()
