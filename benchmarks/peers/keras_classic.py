"""The classic network in Keras on TensorFlow: a compiled step on one batch in memory; prints examples a second.

python keras_classic.py [--steps 60]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import keras


def network() -> keras.Model:
    """The deep-CNN tutorial's network."""
    layers, decay = keras.layers, keras.regularizers.L2(0.002)

    def lrn(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.lrn(x, 4, bias=1.0, alpha=0.001 / 9.0, beta=0.75)

    return keras.Sequential(
        [
            keras.Input((24, 24, 3)),
            layers.Conv2D(64, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(3, 2, padding="same"),
            layers.Lambda(lrn),
            layers.Conv2D(64, 5, padding="same", activation="relu"),
            layers.Lambda(lrn),
            layers.MaxPooling2D(3, 2, padding="same"),
            layers.Flatten(),
            layers.Dense(384, activation="relu", kernel_regularizer=decay),
            layers.Dense(192, activation="relu", kernel_regularizer=decay),
            layers.Dense(10),
        ]
    )


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    net = network()
    assert net.count_params() == 1_068_298
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimiser = keras.optimizers.SGD(0.01)
    optimiser.build(net.trainable_variables)

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, net(images, training=True)) + tf.add_n(net.losses)
        optimiser.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)
        return loss

    random = np.random.default_rng(0)
    images = tf.constant(random.normal(size=(options.batch, 24, 24, 3)).astype(np.float32))
    labels = tf.constant(random.integers(0, 10, options.batch))
    seconds = []
    for _ in range(options.steps):
        started = time.perf_counter()
        step(images, labels).numpy()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"examples_per_second": options.batch / statistics.median(seconds[10:])}))


if __name__ == "__main__":
    main()
