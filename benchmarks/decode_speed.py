"""How long photos take to decode with this version and with another, in turn, and how many come out the same.

    python benchmarks/decode_speed.py PHOTOS --before OTHER_CHECKOUT/src [--photos 3409] [--rounds 5]

Each version has a process of its own, which holds all files in memory and decodes them when it is told to; the two take
turns, so that whatever else the machine does slows both. The median of the rounds' ratios is what counts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path


def worker(photos: Path, count: int) -> None:
    """Decode all photos, as for a network of 224 pixels, once for each line that comes; print seconds and a hash."""
    from quickstudy.images.decoding import InputSpec, decode, to_input

    spec = InputSpec(size=224)
    files = [path.read_bytes() for path in sorted(photos.rglob("*.jpg"))[:count]]
    print(json.dumps({"files": len(files), "bytes": sum(map(len, files))}), flush=True)
    for line in sys.stdin:
        started, cpu, total = time.perf_counter(), time.process_time(), hashlib.sha256()
        for data in files:
            pixels = decode(data, spec)
            if line.strip() == "hash":
                total.update(to_input(pixels, spec).tobytes())
        values = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
        print(json.dumps({**values, "pixels": total.hexdigest()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--before", type=Path, help="the other version's src")
    parser.add_argument("--photos", dest="count", type=int, default=3409)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.worker:
        worker(told.photos, told.count)
        return
    sources = {"before": told.before, "now": Path(__file__).resolve().parent.parent / "src"}
    command = [sys.executable, __file__, str(told.photos), "--photos", str(told.count), "--worker"]
    pipes = {
        name: subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, source in sources.items()
    }

    def ask(name: str, what: str = "") -> dict[str, object]:
        pipe = pipes[name]
        assert pipe.stdin and pipe.stdout
        if what:
            pipe.stdin.write(f"{what}\n")
            pipe.stdin.flush()
        answer: dict[str, object] = json.loads(pipe.stdout.readline())
        return answer

    found = {name: ask(name) for name in pipes}
    same = len({str(ask(name, "hash")["pixels"]) for name in pipes}) == 1
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for number in range(told.rounds):
        for name in list(pipes) if number % 2 else list(pipes)[::-1]:
            seconds[name].append(float(str(ask(name, "decode")["cpu"])))
    for pipe in pipes.values():
        assert pipe.stdin
        pipe.stdin.close()
        pipe.wait()
    ratios = [now / before for before, now in zip(seconds["before"], seconds["now"], strict=True)]
    print(
        json.dumps(
            {
                **found["now"],
                "same_pixels": same,
                "ms_before": round(1000 * statistics.median(seconds["before"]) / int(str(found["now"]["files"])), 4),
                "ms_now": round(1000 * statistics.median(seconds["now"]) / int(str(found["now"]["files"])), 4),
                "ratio": round(statistics.median(ratios), 4),
                "ratios": [round(ratio, 4) for ratio in ratios],
            }
        )
    )


if __name__ == "__main__":
    main()
