"""The job of `keras_tutorial.py` as quickstudy does it: bottlenecks of the same photos, then the head on them.

The head is fitted to its optimum, and its regularisation chosen by cross-validation.

    python quickstudy_tutorial.py --folder photos --images 244 --backbone NAME --cache FOLDER [--engine openvino]

The backbone was added to the cache folder before. What the first run puts there, the second takes from it. Prints one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from keras_tutorial import choose_photos

from quickstudy.backbones.engines.named import engine_for
from quickstudy.backbones.loading import load_backbone
from quickstudy.bottlenecks.extraction import extract
from quickstudy.bottlenecks.store import Store
from quickstudy.learning.selection import fit_head


def main() -> None:
    """Do the job and print how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--engine", default="onnxruntime")
    options = parser.parse_args()
    files = choose_photos(options.folder, options.images)
    started = time.perf_counter()
    extraction = extract(
        files,
        load_backbone(options.backbone, options.cache),
        Store(options.cache / "bottlenecks"),
        engine=engine_for(options.engine),
    )
    digests = [digest for digest in extraction.digests if digest]
    names = sorted({path.parent.name for path in files})
    labels = np.array([names.index(path.parent.name) for path in files])
    fit_head(extraction.gather(digests), labels, digests, classes=len(names))
    print(json.dumps({"seconds": time.perf_counter() - started, "forward_passes": extraction.computed}))


if __name__ == "__main__":
    main()
