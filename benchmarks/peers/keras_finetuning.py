"""Fine-tuning as the Keras guides do it: freeze, train the top, unfreeze the last blocks, go on at a low rate.

Written after keras.io/guides/transfer_learning and TensorFlow's tutorial of the same name:
image_dataset_from_directory, random flips, prefetch, a frozen base in inference mode, Adam at 1e-3, then the base's
last layers unfrozen and Adam at 1e-5, 10 epochs each. The network is InceptionV3 up to mixed8 with given weights; what
is unfrozen follows mixed7.

    python keras_finetuning.py --folder photos --weights inception_v3 [--epochs 10] [--tuning-epochs 10]

`photos` has train/, validation/ and test/ with class folders in them; `weights` the convolutions as
`inception_v3_to_mixed8_float16.npz` and their order as `keras_order.txt`.

Needs tensorflow and keras. Prints a JSON object a line: seconds since the process began and validation accuracy after
each epoch; at the end, the test accuracy.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

SIDE = 299
BATCH = 32
_started = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time fine-tuning as the Keras guides do it.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10, help="of the top alone")
    parser.add_argument("--tuning-epochs", type=int, default=10)
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    import keras

    keras.utils.set_random_seed(0)

    def images(part: str) -> Any:
        return keras.utils.image_dataset_from_directory(
            options.folder / part, image_size=(SIDE, SIDE), batch_size=BATCH, seed=0, shuffle=part == "train",
            verbose=False,
        )  # fmt: skip

    train, validation, test = (images(part) for part in ("train", "validation", "test"))
    base = inception_to_mixed8(options.weights)
    base.trainable = False
    pixels = keras.Input((SIDE, SIDE, 3))
    flipped = keras.layers.RandomFlip("horizontal")(pixels)
    features = base(keras.layers.Rescaling(1 / 128, offset=-1.0)(flipped), training=False)
    pooled = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(features))
    model = keras.Model(pixels, keras.layers.Dense(len(train.class_names), activation="softmax")(pooled))

    def fit(stage: str, rate: float, epochs: int) -> None:
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        told = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: tell(stage, epoch + 1, logs))
        data = [part.prefetch(tf.data.AUTOTUNE) for part in (train, validation)]
        model.fit(data[0], validation_data=data[1], epochs=epochs, verbose=0, callbacks=[told])

    fit("top", 1e-3, options.epochs)
    base.trainable = True  # batch norms stay in inference mode: the base is called with training=False
    for layer in base.layers[: base.layers.index(base.get_layer("mixed7")) + 1]:
        layer.trainable = False
    print(json.dumps({"stage": "unfrozen", "parameters": count(base.trainable_variables)}), flush=True)
    fit("tuning", 1e-5, options.tuning_epochs)
    accuracy = model.evaluate(test.prefetch(tf.data.AUTOTUNE), verbose=0)[1]
    print(json.dumps({"stage": "test", "seconds": seconds(), "accuracy": float(accuracy)}), flush=True)


def inception_to_mixed8(folder: Path) -> Any:
    """The network with its weights: convolutions with the batch norms folded in, as biases of the norms that follow."""
    import numpy as np

    import keras

    whole = keras.applications.InceptionV3(include_top=False, weights=None, input_shape=(SIDE, SIDE, 3))
    weights = np.load(folder / "inception_v3_to_mixed8_float16.npz")
    names = [line.split("\t")[1] for line in (folder / "keras_order.txt").read_text().splitlines()]
    convolutions, norms = (
        sorted((layer for layer in whole.layers if isinstance(layer, kind)), key=_number)
        for kind in (keras.layers.Conv2D, keras.layers.BatchNormalization)
    )
    for name, convolution, norm in zip(names, convolutions, norms, strict=False):  # none for what follows mixed8
        bias = weights[f"{name}/bias"].astype(np.float32)
        convolution.set_weights([weights[f"{name}/kernel"].astype(np.float32)])
        norm.set_weights([bias, np.zeros_like(bias), np.full_like(bias, 1 - norm.epsilon)])
    return keras.Model(whole.input, whole.get_layer("mixed8").output)


def _number(layer: Any) -> int:
    """Layers are numbered in the order of their creation: conv2d, conv2d_1, …"""
    tail = layer.name.rpartition("_")[2]
    return int(tail) if tail.isdigit() else 0


def tell(stage: str, epoch: int, logs: dict[str, float]) -> None:
    line = {"stage": stage, "epoch": epoch, "seconds": seconds(), "validation_accuracy": logs["val_accuracy"]}
    print(json.dumps(line), flush=True)


def count(variables: list[Any]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def seconds() -> float:
    return round(time.perf_counter() - _started, 2)


if __name__ == "__main__":
    main()
