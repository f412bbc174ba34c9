"""Bottlenecks of a folder of photos with Keras on TensorFlow, as fast as it goes: the peer's side.

A comparison is worth what the peer's side is worth, so this one is tuned on the spot, on the photos at hand:
- tf.data from file names, parallel decoding and resizing (AUTOTUNE), prefetch; JPEGs decoded with the fast
  integer transform and, where a photo is at least twice as large as needed, at a half, a quarter or an eighth
  of its size;
- the network as a plain tf.function, as one compiled by XLA, and as one whose variables are turned into
  constants (TensorFlow then folds batch norms into convolutions); the fastest counts;
- several batch sizes; the fastest counts.
Import, building, tracing and tuning are reported apart and are not in `seconds`.

    python keras_features.py --arch MobileNetV2 --folder photos --seconds 20 --json

Weights are random; speed does not depend on them. Needs tensorflow and keras. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import keras

# Input side in pixels. All three families preprocess by x / 127.5 - 1.
INPUT_SIDES = {"MobileNetV2": 224, "InceptionV3": 299, "ResNet50V2": 224}
EXECUTIONS = ("function", "constants", "jit")
BATCHES = (8, 16, 32, 64)
FIRST_BATCH = 32  # at which the ways to execute are compared
WARM_UP_BATCHES = 2
SHRINKS = (1, 2, 4, 8)  # what libjpeg can do while it decodes

Features = Callable[[tf.Tensor], tf.Tensor]


def seconds_since_process_start() -> float | None:
    """Seconds since the process began, interpreter and imports included; None where /proc does not tell."""
    try:
        # Field 22 of proc(5)'s stat; the second field may itself contain spaces, but ends with a bracket.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return round(time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"), 2)
    except (OSError, AttributeError):
        return None


def list_photos(folder: Path) -> list[str]:
    """Every JPEG below `folder`, sorted.

    Raises:
        SystemExit: there is none.
    """
    photos = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not photos:
        raise SystemExit(f"No JPEGs below {str(folder)!r}; expected a folder of .jpg or .jpeg files")
    return photos


def build(arch: str) -> keras.Model:
    """The frozen network, from float pixels (0 to 255) to pooled features, preprocessing inside."""
    side = INPUT_SIDES[arch]
    keras.utils.set_random_seed(0)
    pixels = keras.Input((side, side, 3), name="image")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(pixels)
    application = getattr(keras.applications, arch)
    network = application(weights=None, include_top=False, pooling="avg", input_tensor=scaled)
    model = keras.Model(pixels, keras.layers.Activation("linear", dtype="float32")(network.output))
    model.trainable = False
    return model


def decode(path: tf.Tensor, side: int) -> tf.Tensor:
    """One photo as float32 side x side x 3: read, decoded at the least size that will do, then resized."""
    data = tf.io.read_file(path)
    shape = tf.io.extract_jpeg_shape(data)
    room = tf.minimum(shape[0], shape[1]) // side
    choice = tf.reduce_sum(tf.cast(room >= SHRINKS[1:], tf.int32))

    def at(shrink: int) -> Callable[[], tf.Tensor]:
        return lambda: tf.io.decode_jpeg(data, channels=3, ratio=shrink, dct_method="INTEGER_FAST")

    photo = tf.switch_case(choice, [at(shrink) for shrink in SHRINKS])
    return tf.ensure_shape(tf.image.resize(photo, (side, side)), (side, side, 3))


def batches_of(photos: Sequence[str], side: int, batch: int) -> tf.data.Dataset:
    """Endless batches of (position in `photos`, pixels); whichever photo is ready first comes first."""
    return (
        tf.data.Dataset.from_tensor_slices(list(photos))
        .enumerate()
        .repeat()
        .map(
            lambda position, path: (position, decode(path, side)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=False,
        )
        .batch(batch, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def compile_features(model: keras.Model, execution: str, batch: int) -> tuple[Features, float]:
    """The network as a function of one batch, traced and run once; and the seconds that this took."""
    start = time.perf_counter()
    shape = (batch, *model.input_shape[1:])
    function = tf.function(
        lambda pixels: model(pixels, training=False),
        input_signature=[tf.TensorSpec(shape, tf.float32)],
        jit_compile=execution == "jit",
    )
    features: Features = function
    if execution == "constants":
        features = first_output(convert_variables_to_constants_v2(function.get_concrete_function()))
    features(tf.zeros(shape)).numpy()
    return features, time.perf_counter() - start


def first_output(function: Callable[[tf.Tensor], Sequence[tf.Tensor]]) -> Features:
    """A graph with constants returns a list of outputs; this takes the one there is."""
    return lambda pixels: function(pixels)[0]


def run(
    batches: Iterator[Any],
    features: Features,
    *,
    seconds: float,
    images: int,
) -> tuple[list[Any], float, float]:
    """Take batches until `seconds` are over or `images` are through.

    A few batches before that are not counted; they let the pipeline fill its buffers, which are as full at
    the end. Returns (positions, features) of each batch, the seconds that all took, and the cores that were
    busy meanwhile (well under all of them: something else was running).
    """
    for _ in range(WARM_UP_BATCHES):
        _, pixels = next(batches)
        features(pixels).numpy()
    results: list[tuple[NDArray[Any], NDArray[Any]]] = []
    done = 0
    cpu_start, start = time.process_time(), time.perf_counter()
    while done < images and time.perf_counter() < start + seconds:
        positions, pixels = next(batches)
        results.append((positions.numpy(), features(pixels).numpy()))
        done += len(results[-1][0])
    elapsed = time.perf_counter() - start
    return results, elapsed, (time.process_time() - cpu_start) / elapsed


def measure_all(
    model: keras.Model,
    photos: Sequence[str],
    choices: Sequence[tuple[str, int]],
    *,
    seconds: float,
    rounds: int,
) -> list[dict[str, Any]]:
    """Rate of each (execution, batch), the best of `rounds` short rounds taken in turn, fastest first."""
    side = model.input_shape[1]
    compiled = [compile_features(model, execution, batch) for execution, batch in choices]
    rates: list[list[tuple[float, float]]] = [[] for _ in choices]
    for _ in range(rounds):
        for (_, batch), (features, _), own in zip(choices, compiled, rates, strict=True):
            batches = iter(batches_of(photos, side, batch))
            results, elapsed, busy_cores = run(batches, features, seconds=seconds, images=sys.maxsize)
            own.append((len(results) * batch / elapsed, busy_cores))
    trials = [
        {
            "execution": execution,
            "batch": batch,
            "images_per_second": round(max(own)[0], 2),
            "busy_cores": round(max(own)[1], 2),
            "trace_seconds": round(trace_seconds, 2),
        }
        for (execution, batch), (_, trace_seconds), own in zip(choices, compiled, rates, strict=True)
    ]
    return sorted(trials, key=lambda trial: -trial["images_per_second"])


def tune(
    model: keras.Model,
    photos: Sequence[str],
    *,
    executions: Sequence[str],
    batches: Sequence[int],
    seconds: float,
    rounds: int = 3,
) -> tuple[str, int, list[dict[str, Any]]]:
    """The fastest way to execute, then the fastest batch size for it; and every trial that led there."""
    trials: list[dict[str, Any]] = []
    execution, batch = executions[0], batches[0]
    if len(executions) > 1:
        first = FIRST_BATCH if FIRST_BATCH in batches else batches[0]
        trials = measure_all(
            model,
            photos,
            [(name, first) for name in executions],
            seconds=seconds,
            rounds=rounds,
        )
        execution = trials[0]["execution"]
    if len(batches) > 1:
        sizes = [(execution, size) for size in batches]
        by_size = measure_all(model, photos, sizes, seconds=seconds, rounds=rounds)
        batch = by_size[0]["batch"]
        trials += by_size
    return execution, batch, trials


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure Keras's rate of bottlenecks from a folder of JPEGs.",
    )
    parser.add_argument("--arch", choices=sorted(INPUT_SIDES), required=True)
    parser.add_argument("--folder", type=Path, required=True, help="searched for JPEGs, subfolders included")
    parser.add_argument("--seconds", type=float, help="measure for so long (default: every photo once)")
    parser.add_argument(
        "--trial-seconds",
        type=float,
        default=2.0,
        help="per tuning trial and round (default 2)",
    )
    parser.add_argument("--batch", type=int, help="use this batch size instead of trying several")
    parser.add_argument("--execution", choices=EXECUTIONS, help="use this instead of trying all three")
    parser.add_argument(
        "--policy", choices=("float32", "mixed_bfloat16"), default="float32", help="what layers multiply in"
    )
    parser.add_argument("--json", action="store_true", help="on one line")
    arguments = parser.parse_args()

    import_seconds = seconds_since_process_start()
    photos = list_photos(arguments.folder)
    start = time.perf_counter()
    keras.config.set_dtype_policy(arguments.policy)
    model = build(arguments.arch)
    build_seconds = time.perf_counter() - start

    start = time.perf_counter()
    execution, batch, trials = tune(
        model,
        photos,
        executions=[arguments.execution] if arguments.execution else EXECUTIONS,
        batches=[arguments.batch] if arguments.batch else BATCHES,
        seconds=arguments.trial_seconds,
    )
    tune_seconds = time.perf_counter() - start

    features, trace_seconds = compile_features(model, execution, batch)
    batches = iter(batches_of(photos, model.input_shape[1], batch))
    # In whole batches; without --seconds as many as it takes for every photo once.
    results, seconds, busy_cores = run(
        batches,
        features,
        seconds=arguments.seconds or float("inf"),
        images=sys.maxsize if arguments.seconds else len(photos),
    )
    images = sum(len(positions) for positions, _ in results)
    report = {
        "peer": "keras",
        "arch": arguments.arch,
        "images": images,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 2),
        "execution": execution,
        "batch": batch,
        "busy_cores": round(busy_cores, 2),
        "feature_width": int(results[0][1].shape[1]),
        "photos_in_folder": len(photos),
        "import_seconds": import_seconds,
        "build_seconds": round(build_seconds, 2),
        "trace_seconds": round(trace_seconds, 2),
        "tune_seconds": round(tune_seconds, 2),
        "trials": trials,
        "settings": {
            "dct_method": "INTEGER_FAST",
            "shrink_on_decode": list(SHRINKS),
            "resize": "bilinear",
            "parallel_calls": "AUTOTUNE",
            "prefetch": "AUTOTUNE",
            "policy": arguments.policy,
            "cpus": os.cpu_count(),
            "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        },
        "versions": {module.__name__: module.__version__ for module in (tf, keras, np)},
    }
    print(json.dumps(report, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
