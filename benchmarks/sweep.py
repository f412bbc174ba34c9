"""The batch-norm study: wall time, what the sweep costs beside the bare steps, and what a second worker is worth.

    python benchmarks/sweep.py [--rounds 3]

Reads MNIST from QUICKSTUDY_DATA. In each round the same runs are carried out by `quickstudy sweep batchnorm` with two
workers and with one, and by a bare PyTorch loop in two processes, for exactly as many steps as the sweep needed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import quickstudy, run_measured, save, spread

_BARE = Path(__file__).parent / "peers" / "bare_mlp.py"


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    two, one, bare, compute = [], [], [], []
    for _ in range(options.rounds):
        seconds, rows = _sweep(2)
        two.append(seconds)
        compute.append(sum(row["seconds"] for row in rows) / 2)
        bare.append(_bare(rows))
        one.append(_sweep(1)[0])
        print({"two workers": two[-1], "one": one[-1], "bare": bare[-1], "compute": compute[-1]}, flush=True)
    save(
        "sweep",
        {
            "runs": len(rows),
            "steps": sum(row["steps"] for row in rows),
            "two_workers_seconds": spread(two),
            "one_worker_seconds": spread(one),
            "bare_two_processes_seconds": spread(bare),
            "overhead_over_bare_percent": spread([100 * (a / b - 1) for a, b in zip(two, bare, strict=True)]),
            "start_up_and_bookkeeping_percent": spread([100 * (a / b - 1) for a, b in zip(two, compute, strict=True)]),
            "times_one_worker": spread([a / b for a, b in zip(one, two, strict=True)]),
        },
    )


def _sweep(workers: int) -> tuple[float, list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        command = quickstudy("sweep", "batchnorm", "--results", f"{folder}/sweep", "--workers", str(workers), "--json")
        measured = run_measured(command)
        return measured["wall_seconds"], json.loads(measured["output"])["rows"]


def _bare(rows: list[dict[str, Any]]) -> float:
    # The longest first, now that it is known which they are: the bare loop has both processes busy to the end.
    rows = sorted(rows, key=lambda row: -row["steps"] * row["multiply_adds"])
    runs = [{name: row[name] for name in ("depth", "batch_norm", "activation", "steps")} for row in rows]
    output = subprocess.run(
        [sys.executable, _BARE, "2"], input=json.dumps(runs), check=True, capture_output=True, text=True
    ).stdout
    return float(json.loads(output)["seconds"])


if __name__ == "__main__":
    main()
