"""Keras models of one's own: what is inside that a backbone cannot have is left out, or named."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from small_networks import photos, run

from lazily import lazily
from quickstudy.backbones.graphs.preprocessing import PREPROCESSINGS
from quickstudy.backbones.sources.keras_models import import_keras_model
from quickstudy.errors import BackboneError

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("torch")
keras, layers = lazily("keras"), lazily("keras.layers")
NONE = PREPROCESSINGS["none"]


def body(x: keras.KerasTensor) -> keras.KerasTensor:
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
    return layers.Conv2D(12, 3, strides=2, padding="same", activation="relu")(x)


def top(x: keras.KerasTensor, classes: int = 5, **options: str) -> keras.KerasTensor:
    return layers.Dense(classes, activation="softmax", **options)(layers.GlobalAveragePooling2D()(x))


def made_of(network: Callable[[keras.KerasTensor], keras.KerasTensor]) -> keras.Model:
    image = keras.Input((32, 32, 3))
    return keras.Model(image, network(image))


def given_by(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(images.astype(np.float32), training=False))


RANDOM = {
    "one by one": lambda x: layers.RandomZoom(0.1)(layers.RandomRotation(0.1)(layers.RandomFlip()(x))),
    "in a model of their own": lambda x: keras.Sequential(
        [layers.RandomFlip("horizontal"), layers.RandomContrast(0.2), layers.RandomTranslation(0.1, 0.1)]
    )(x),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_layers_that_change_images_at_random_are_left_out(kind: str) -> None:
    model = made_of(lambda x: top(body(RANDOM[kind](x))))
    imported = import_keras_model(model, preprocessing=NONE)
    images = photos(3, 32)
    np.testing.assert_allclose(run(imported.graph, "probabilities", images), given_by(model, images), atol=1e-5)
    assert imported.cuts[-1] == "features"
    assert len(imported.classes) == 5


def test_several_outputs_are_named() -> None:
    image = keras.Input((32, 32, 3))
    x = body(image)
    model = keras.Model(image, [top(x, name="main"), top(x, 2, name="side")])
    with pytest.raises(BackboneError, match="2 outputs: 'main', 'side'"):
        import_keras_model(model, preprocessing=NONE)
    with pytest.raises(BackboneError, match="no output 'third'; it has: 'main', 'side'"):
        import_keras_model(model, preprocessing=NONE, output="third")
    images = photos(3, 32)
    imported = import_keras_model(model, preprocessing=NONE, output="side")
    expected = keras.ops.convert_to_numpy(model(images.astype(np.float32), training=False)[1])
    np.testing.assert_allclose(run(imported.graph, "probabilities", images), expected, atol=1e-5)


def test_a_model_that_has_not_been_built_says_how_to() -> None:
    model = keras.Sequential([layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(3)])
    with pytest.raises(BackboneError, match=r"has not been built.*keras\.Input"):
        import_keras_model(model, preprocessing=NONE)
    model.build((None, 32, 32, 3))
    assert len(import_keras_model(model, preprocessing=NONE).classes) == 3


def test_mixed_precision_hides_no_classifier() -> None:
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = made_of(
            lambda x: layers.Activation("softmax", dtype="float32")(
                layers.Dense(5)(layers.GlobalAveragePooling2D()(body(x)))
            )
        )
    finally:
        keras.mixed_precision.set_global_policy("float32")
    imported = import_keras_model(model, preprocessing=PREPROCESSINGS["tf"])
    assert len(imported.classes) == 5
    assert imported.found["features"].startswith("12,")
    images = photos(3, 32)
    expected = given_by(model, images / 127.5 - 1)
    np.testing.assert_allclose(run(imported.graph, "probabilities", images), expected, atol=5e-3)


NORMALISING = {
    "rescaled": lambda x: layers.Rescaling(1 / 127.5, offset=-1)(x),
    "normalised": lambda x: layers.Normalization(mean=[123.0, 117.0, 104.0], variance=[3364.0, 3249.0, 3306.0])(x),
}


@pytest.mark.parametrize("kind", NORMALISING)
def test_a_model_that_normalises_images_itself_is_not_given_normalised_ones(kind: str) -> None:
    model = made_of(lambda x: top(body(NORMALISING[kind](x))))
    imported = import_keras_model(model)
    assert imported.found["preprocessing"] == "in the network, which takes values from 0 to 255"
    images = photos(3, 32)
    np.testing.assert_allclose(run(imported.graph, "probabilities", images), given_by(model, images), atol=1e-5)
    with pytest.raises(BackboneError, match="normalises images itself"):
        import_keras_model(model, preprocessing=PREPROCESSINGS["tf"])


def test_what_torch_says_is_said_without_its_colours() -> None:
    @keras.saving.register_keras_serializable("quickstudy_tests")
    class Stubborn(layers.Layer):
        def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
            return x if isinstance(x, keras.KerasTensor) else x * float(x.sum().numpy() > 0)

    with pytest.raises(BackboneError) as caught:
        import_keras_model(made_of(lambda x: top(body(Stubborn()(x)))), preprocessing=NONE)
    assert "\x1b" not in str(caught.value)
    assert "step 1/3" not in str(caught.value)
