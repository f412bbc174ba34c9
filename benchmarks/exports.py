"""A model as it is, in float16 and in 8 bits: size, images a second, accuracy and agreement on the test photos.

python benchmarks/exports.py MODEL FOLDER

FOLDER has splits: calibration takes training photos, comparison the test photos.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import save, spread
from quickstudy.models.checks import images_per_second, photos_for_calibration, photos_for_checking
from quickstudy.models.conversion import convert
from quickstudy.models.loading import load

_ROUNDS = 200
_REPEATS = 5


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    check, calibrate = photos_for_checking(options.folder), photos_for_calibration(options.folder)
    with tempfile.TemporaryDirectory() as folder:
        forms = {
            kind: convert(
                options.model, Path(folder) / f"{kind}.onnx", kind, calibrate=calibrate, check=check, force=True
            )
            for kind in ("fp16", "int8")
        }
        models = [load(options.model), *(load(done.path) for done in forms.values())]
        speeds = [images_per_second(models, rounds=_ROUNDS) for _ in range(_REPEATS)]
    by_model = dict(zip(("float32", *forms), zip(*speeds, strict=True), strict=True))
    save(
        "exports",
        {
            "photos": len(check),
            "images_per_second_one_thread": {name: spread(values) for name, values in by_model.items()},
            "forms": {
                kind: {k: v for k, v in done.to_dict().items() if k not in ("source", "model")}
                for kind, done in forms.items()
            },
        },
    )


if __name__ == "__main__":
    main()
