"""The census of many files: the first time, when all are hashed, and again, when none has changed.

    python benchmarks/census.py [--files 100000] [--kilobytes 60]

The files are random bytes named like JPEGs, in ten class folders: nothing is decoded in a census. Each figure is of a
process of its own; the hash's own rate is measured beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from common import run_measured, save, spread

_CENSUS = """
import json, resource, sys, time
from pathlib import Path
from quickstudy.images.census import take_census
from quickstudy.images.identity import identify
from quickstudy.images.imageset import load_image_set

started = time.perf_counter()
listed = load_image_set(Path(sys.argv[1]))
listing = time.perf_counter() - started
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
identify([file.path for file in listed.files], Path(sys.argv[2]))
identifying = time.perf_counter() - started
started = time.perf_counter()
census = take_census(listed, Path(sys.argv[2]))
all_but_listing = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"files": len(listed.files), "contents": len(census.contents), "listing": listing,
                  "identifying": identifying, "bringing together": all_but_listing, "peak_megabytes": peak / 1024}))
"""


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--kilobytes", type=int, default=60)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "photos"
        for number in range(options.files):
            path = root / f"class {number % 10}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(options.kilobytes << 10))
        time.sleep(3)  # what has just been changed is not trusted
        command = [sys.executable, "-c", _CENSUS, str(root), str(Path(temporary) / "files.sqlite")]
        cold, *warm = [json.loads(run_measured(command)["output"]) for _ in range(options.runs + 1)]
        sample = os.urandom(options.kilobytes << 10)
        started = time.perf_counter()
        for _ in range(2000):
            hashlib.sha256(sample).digest()
        hashing = (time.perf_counter() - started) / 2000
    steps = ("listing", "identifying", "bringing together", "peak_megabytes")
    save(
        "census",
        {
            "files": options.files,
            "kilobytes": options.kilobytes,
            "cold": cold,
            "hashing_alone_on_one_core_seconds": hashing * options.files,
            "warm": {step: spread([run[step] for run in warm]) for step in steps},
            # Identifying is a part of bringing together, measured apart for the breakdown.
            "warm_seconds": spread([run["listing"] + run["bringing together"] for run in warm]),
        },
    )


if __name__ == "__main__":
    main()
