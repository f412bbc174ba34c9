"""The classic Keras transfer-learning job: InceptionV3 frozen, a new softmax layer, two epochs, a few photos.

This is what a beginner runs, written as the Keras guides write it (keras.io/guides/transfer_learning):
image_dataset_from_directory, prefetch, frozen base, Dense, compile, fit. Nothing is cached: every epoch takes
every photo through the whole network, and that is the cost which the comparison is about. No validation, no
augmentation: both would only add to it.

    python keras_tutorial.py --folder photos --epochs 2 --images 244 --json

Weights are random; the time does not depend on them. What is timed: `process_seconds`, from the start of the
process (interpreter, imports, all of it) to the end of training, and `fit_seconds`, fit alone.

Needs tensorflow and keras. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

SIDE = 299
BATCH = 32  # the default of image_dataset_from_directory and of fit
_script_start = time.perf_counter()


def seconds_since_process_start() -> float:
    """Seconds since the process began; where /proc does not tell (not Linux), since this script did."""
    try:
        # Field 22 of proc(5)'s stat; the second field may itself contain spaces, but ends with a bracket.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.perf_counter() - _script_start


def choose_photos(folder: Path, count: int | None) -> list[Path]:
    """`count` photos (None: all), the same every time, as evenly from the class folders as they allow.

    Raises:
        SystemExit: there are not enough.
    """
    classes = [sorted(kind.glob("*.jp*g")) for kind in sorted(folder.iterdir()) if kind.is_dir()]
    in_turn = [photo for photo in chain.from_iterable(zip_longest(*classes)) if photo is not None]
    if not in_turn or len(in_turn) < (count or 0):
        raise SystemExit(
            f"{len(in_turn)} photos in the class folders of {str(folder)!r}; expected {count or 'some'}",
        )
    return in_turn[:count]


def link_photos(photos: list[Path], folder: Path) -> None:
    """Class folders below `folder` with links to `photos`: as a user with just these photos has them."""
    for photo in photos:
        link = folder / photo.parent.name / photo.name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(photo.resolve())


def train(folder: Path, *, epochs: int) -> dict[str, Any]:
    """The tutorial itself, on class folders; returns seconds, losses, accuracies and versions."""
    start = time.perf_counter()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    import keras

    import_seconds = time.perf_counter() - start

    keras.utils.set_random_seed(0)
    dataset = keras.utils.image_dataset_from_directory(
        folder, image_size=(SIDE, SIDE), batch_size=BATCH, seed=0, verbose=False
    )
    class_names = dataset.class_names
    dataset = dataset.prefetch(tf.data.AUTOTUNE)

    base = keras.applications.InceptionV3(
        weights=None,
        include_top=False,
        pooling="avg",
        input_shape=(SIDE, SIDE, 3),
    )
    base.trainable = False
    pixels = keras.Input((SIDE, SIDE, 3))
    features = base(keras.layers.Rescaling(1 / 127.5, offset=-1.0)(pixels), training=False)
    probabilities = keras.layers.Dense(len(class_names), activation="softmax")(features)
    model = keras.Model(pixels, probabilities)
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])

    start = time.perf_counter()
    history = model.fit(dataset, epochs=epochs, verbose=0)
    fit_seconds = time.perf_counter() - start
    return {
        "import_seconds": round(import_seconds, 2),
        "fit_seconds": round(fit_seconds, 2),
        "classes": len(class_names),
        "loss": [round(value, 4) for value in history.history["loss"]],
        "accuracy": [round(value, 4) for value in history.history["accuracy"]],
        "versions": {module.__name__: module.__version__ for module in (tf, keras)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the classic Keras transfer-learning tutorial.")
    parser.add_argument("--folder", type=Path, required=True, help="class folders of JPEGs")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--images",
        type=int,
        help="only so many photos, evenly from the classes (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="on one line")
    arguments = parser.parse_args()

    photos = choose_photos(arguments.folder, arguments.images)
    with tempfile.TemporaryDirectory() as folder:
        link_photos(photos, Path(folder))
        result = train(Path(folder), epochs=arguments.epochs)
    report = {
        "peer": "keras-tutorial",
        "arch": "InceptionV3",
        "images": len(photos),
        "epochs": arguments.epochs,
        "batch": BATCH,
        "process_seconds": round(seconds_since_process_start(), 2),
        **result,
    }
    print(json.dumps(report, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
