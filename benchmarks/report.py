"""What the report adds to a retraining, and how large it is: whole processes, with everything in the cache and without.

    python benchmarks/report.py FOLDER [--runs 7]

Cold: no looks, map and duplicates in the cache yet, but all bottlenecks. Warm: nothing has changed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from common import quickstudy, run_measured, save, spread


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache, model = Path(temporary) / "cache", Path(temporary) / "model.onnx"
        retrain = quickstudy("retrain", str(options.folder), "--output", str(model), "--cache", str(cache))
        report = quickstudy("report", str(model), "--cache", str(cache), "--no-open")
        run_measured(retrain)
        cold = []
        for _ in range(3):
            for name in ("looks", "reports"):
                shutil.rmtree(cache / name, ignore_errors=True)
            cold.append(run_measured(report)["wall_seconds"])
        # Alternating, so that a drift of the machine meets all three.
        runs = [
            [run_measured(command) for command in (retrain, [*retrain, "--report"], report)]
            for _ in range(options.runs)
        ]
        megabytes = model.with_suffix(".report.html").stat().st_size / 1e6
    plain, with_report, alone = ([run[place]["wall_seconds"] for run in runs] for place in range(3))
    save(
        "report",
        {
            "retrain_seconds": spread(plain),
            "retrain_with_report_seconds": spread(with_report),
            "added_seconds": spread([b - a for a, b in zip(plain, with_report, strict=True)]),
            "report_alone_seconds": spread(alone),
            "report_alone_cold_seconds": spread(cold),
            "peak_megabytes": max(run[2]["peak_megabytes"] for run in runs),
            "page_megabytes": megabytes,
        },
    )


if __name__ == "__main__":
    main()
