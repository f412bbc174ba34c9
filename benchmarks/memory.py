"""Peak memory of extraction alone, by the number of images.

    python benchmarks/memory.py FOLDER [--counts 1000 20000]

Each count runs in a process of its own, on the photos of FOLDER again and again under new bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from common import peak_megabytes, photos, repeat_photos, run_measured, save


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 20_000])
    parser.add_argument("--extract", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.extract:
        extract_all(options.folder, options.extract)
        return
    rows = []
    for count in options.counts:
        with tempfile.TemporaryDirectory() as temporary:
            repeat_photos(options.folder, Path(temporary) / "photos", count)
            command = [sys.executable, __file__, f"{temporary}/photos", "--extract", f"{temporary}/cache"]
            rows.append({"images": count, **json.loads(run_measured(command)["output"])})
    save("memory", {"rows": rows})


def extract_all(folder: Path, cache: Path) -> None:
    """Extract a folder and print the peak memory of this process."""
    from quickstudy.backbones.loading import load_backbone
    from quickstudy.bottlenecks.extraction import extract
    from quickstudy.bottlenecks.store import Store

    extraction = extract(photos(folder), load_backbone("efficientnet_lite0", cache), Store(cache / "bottlenecks"))
    print(json.dumps({"forward_passes": extraction.computed, "peak_megabytes": peak_megabytes()}))


if __name__ == "__main__":
    main()
