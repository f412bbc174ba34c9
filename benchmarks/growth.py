"""How time and memory grow with the number of images: cold and warm runs of the whole command.

    python benchmarks/growth.py FOLDER [--counts 1000 10000 100000]

The images are those of FOLDER again and again, each under new bytes, so each is decoded and passes the network.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import quickstudy, repeat_photos, run_measured, save


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for count in options.counts:
        with tempfile.TemporaryDirectory() as temporary:
            repeat_photos(options.folder, Path(temporary) / "photos", count)
            command = quickstudy(
                *("retrain", f"{temporary}/photos", "--output", f"{temporary}/model.onnx"),
                *("--cache", f"{temporary}/cache", "--json"),
            )
            for state in ("cold", "warm"):
                run = run_measured(command)
                result = json.loads(run.pop("output"))
                rows.append({"images": count, "state": state, **run, "stages_seconds": result["seconds"]})
                save("growth", {"rows": rows})  # each as it comes: the last takes minutes


if __name__ == "__main__":
    main()
