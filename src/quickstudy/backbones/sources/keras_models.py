"""Backbones from keras.applications, and from any Keras model that takes images.

Keras runs on torch here, whose exporter makes the ONNX graph. What Keras' own `preprocess_input` does to pixels goes
into the graph; cuts bear the names of Keras' layers, found by comparing what layers and tensors hold for an image.
Weights are Keras' own, or those in a file that need not be trusted.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quickstudy.backbones.graphs.cleaning import find_image_input, widen
from quickstudy.backbones.graphs.comparison import TOLERANCE, run_until, sample_images
from quickstudy.backbones.graphs.preprocessing import PREPROCESSINGS, Preprocessing
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.backbones.sources.graph_import import Imported, import_graph
from quickstudy.backbones.sources.torch_export import export_module
from quickstudy.errors import BackboneError, MissingExtraError, UnsafeFileError, first_line
from quickstudy.extras import installation_of
from quickstudy.process import default_variable

if TYPE_CHECKING:
    import keras


_HALF_TOLERANCE = 0.02
"""Largest difference, as a share of the largest value, of a layer in half precision."""
_USUAL_SIZE = 224  # of networks that take any


def import_keras(
    name: str,
    *,
    weights: Path | None = None,
    top: bool = True,
    size: int | None = None,
    classes: Sequence[str] | None = None,
) -> Imported:
    """Make a backbone of a Keras application.

    Args:
        name: name of the application, such as `InceptionV3`, in capitals or not.
        weights: a file of this application's weights; left out, Keras' own, which it downloads once.
        top: whether the weights have a classifier, and the backbone shall have it.
        size: side of the input in pixels; left out, the application's usual one.
        classes: names of the classes; left out, ImageNet's where there are 1,000.

    Raises:
        MissingExtraError: Keras or torch is missing.
        BackboneError: Keras has no such application, or weights cannot be had or do not fit.
        UnsafeFileError: the file asks for others, or is too large.
    """
    keras = _keras()
    application = _application(keras, name)
    size = size or build(application, weights=None).input_shape[1] or _USUAL_SIZE
    keras.utils.clear_session(free_memory=False)  # names of layers are numbered from 1 again
    arguments = {"include_top": top, "input_shape": (size, size, 3)}
    if classes is not None and top:
        arguments["classes"] = len(classes)
    with keras.device("cpu"):
        if weights is None:
            model = with_own_weights(application, **arguments)
        else:
            model = with_weights_of(weights, application, **arguments)
        imported = import_keras_model(model, preprocessing=_preprocessing_of(application), classes=classes)
    name = application.__name__
    return replace(
        imported,
        name=snake_case(name),
        origin=f"keras:{name}" + (f" with the weights of {weights.name}" if weights else ""),
        top1=None if weights else _published_accuracy(name),
    )


def import_keras_model(
    model: keras.Model,
    *,
    preprocessing: Preprocessing | None = None,
    output: str | None = None,
    classes: Sequence[str] | None = None,
) -> Imported:
    """Make a backbone of a Keras model on the torch backend, from one square image to class scores, features or a map.

    A map becomes features by averaging over rows and columns. Layers that change images at random, which do nothing in
    inference, are left out.

    Args:
        model: takes N×size×size×3.
        preprocessing: what becomes of bytes before the model; left out, it is read from the model's first layers.
        output: name of the output that counts, where the model has several.
        classes: names in the order of the outputs; left out, ImageNet's where there are 1,000.

    Raises:
        BackboneError: the model takes something else, cannot be exported, or the backbone differs from it.
    """
    import torch

    keras = _keras()
    if not model.built or not getattr(model, "inputs", None):
        raise BackboneError(
            "The Keras model has not been built, so its input is not known; begin it with "
            "keras.Input((size, size, 3)), or call model.build((None, size, size, 3))"
        )
    model = _without_random_layers(keras, _with_output(keras, model, output))
    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or not shape[1]:
        raise BackboneError(f"The Keras model takes {shape}; expected (None, size, size, 3)")
    size = int(shape[1])
    graph = export_module(model, torch.zeros(1, size, size, 3))
    half = widen(graph)
    image = find_image_input(graph, layout="NHWC")
    session = open_session(graph.SerializeToString()) if half else None

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        if session is not None:  # half precision differs from what it is widened to in the third digit
            return np.concatenate([session.run(None, {image.name: one[None]})[0] for one in images])
        with torch.no_grad():
            return np.concatenate([keras.ops.convert_to_numpy(model(one[None], training=False)) for one in images])

    def name(graph: onnx.ModelProto, tensors: Sequence[str], known: Preprocessing) -> dict[str, str]:
        tolerance = _HALF_TOLERANCE if half else TOLERANCE
        return _layer_names(keras, model, graph, tensors, known.apply(sample_images(size)[:1]), tolerance)

    return import_graph(graph, image, reference=run, preprocessing=preprocessing, classes=classes, naming=name)


def _with_output(keras: Any, model: keras.Model, name: str | None) -> keras.Model:
    """Give the model with one output, that of this name where there are several."""
    outputs = dict(zip(getattr(model, "output_names", ()), model.outputs, strict=False))
    listed = ", ".join(f"'{one}'" for one in outputs)
    if name is not None and name not in outputs:
        raise BackboneError(f"The Keras model has no output '{name}'; it has: {listed}")
    if len(model.outputs) == 1:
        # A Sequential does not know its operations.
        return keras.Model(model.inputs, model.outputs[0]) if isinstance(model, keras.Sequential) else model
    if name is None:
        raise BackboneError(f"The Keras model has {len(model.outputs)} outputs: {listed}; choose one with output=…")
    return keras.Model(model.inputs[0] if len(model.inputs) == 1 else model.inputs, outputs[name])


def _without_random_layers(keras: Any, model: keras.Model) -> keras.Model:
    """Give the model with nothing in the place of layers that change images at random, which torch cannot export."""

    def is_random(layer: keras.Layer) -> bool:
        inside = getattr(layer, "layers", ())
        return _RANDOM.match(type(layer).__name__) is not None or any(is_random(one) for one in inside)

    def plain(layer: keras.Layer) -> keras.Layer:
        if not is_random(layer):
            return type(layer).from_config(layer.get_config())
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer, clone_function=plain)
        return keras.layers.Identity(name=layer.name)

    if not is_random(model):
        return model
    clone = keras.models.clone_model(model, clone_function=plain)
    clone.set_weights(model.get_weights())
    return clone


_RANDOM = re.compile(r"Random\w+|RandAugment|AugMix|MixUp|CutMix|GaussianNoise|Pipeline$")
"""Names of Keras' layers that change images at random in training."""


def snake_case(name: str) -> str:
    """Write a Keras application's name in small letters: `inception_v3` for `InceptionV3`."""
    breaks = r"(?<=[a-z\d])(?=V\d|ResNet)|(?<=[a-z])(?=B\d)|(?<=[a-z\d])(?=(?:Small|X?Large|Base|Tiny|Mobile)$)"
    return re.sub(breaks, "_", name).lower()


def _keras() -> Any:
    """Import Keras on the torch backend.

    Raises:
        MissingExtraError: it is missing.
        BackboneError: it runs on another backend already.
    """
    try:
        with default_variable("KERAS_BACKEND", "torch"):  # it is read when Keras is imported
            import keras
    except ImportError as error:
        raise MissingExtraError(
            f"keras: needs Keras and torch ({error}); install them: {installation_of('keras')}"
        ) from None
    if keras.backend.backend() != "torch":
        raise BackboneError(
            f"Keras runs on {keras.backend.backend()}; set the environment variable KERAS_BACKEND to torch"
        )
    keras.config.set_image_data_format("channels_last")
    return keras


def _application(keras: Any, name: str) -> Callable[..., keras.Model]:
    known = {
        found.lower(): getattr(keras.applications, found)
        for found in dir(keras.applications)
        if callable(getattr(keras.applications, found))
    }
    if name.lower() not in known:
        close = difflib.get_close_matches(name.lower(), known, 3) or known
        raise BackboneError(
            f"Keras has no application '{name}'; there are: {', '.join(known[one].__name__ for one in close)}"
        )
    application: Callable[..., keras.Model] = known[name.lower()]
    return application


def _published_accuracy(name: str) -> float | None:
    """Look up the accuracy of Keras' own weights on ImageNet, in percent; None where it is not known.

    The figures are from keras.io/api/applications, and for MobileNetV3 from Keras' source.
    """
    text = resources.files("quickstudy.backbones.sources").joinpath("keras_top1.json").read_text(encoding="utf-8")
    accuracies: dict[str, float] = json.loads(text)
    return accuracies.get(name)


def _preprocessing_of(application: Callable[..., keras.Model]) -> Preprocessing:
    """Find out what the application's own `preprocess_input` does, by showing it a few pixels."""
    pixels = np.array([[[[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]]], np.uint8)
    given = sys.modules[application.__module__].preprocess_input(pixels.astype(np.float32))
    for usual in PREPROCESSINGS.values():
        if np.allclose(usual.apply(pixels), given, atol=1e-4):
            return usual
    raise BackboneError(f"{application.__name__} preprocesses images in a way that quickstudy does not know")


def _layer_names(
    keras: Any,
    model: keras.Model,
    graph: onnx.ModelProto,
    tensors: Sequence[str],
    image: NDArray[np.float32],
    tolerance: float,
) -> dict[str, str]:
    """Find the names of the layers that give what these tensors hold; `image` is the first of the sample images."""
    held = dict(zip(tensors, run_until(graph, tensors, sample_images(image.shape[1])[:1]), strict=True))
    shapes = {shape for value in held.values() for shape in (value.shape[1:], value.transpose(0, 2, 3, 1).shape[1:])}
    layers = [
        layer  # or an operation that stands for itself, such as the addition in `x + y`
        for layer in model.operations
        if isinstance(layer.output, keras.KerasTensor) and tuple(layer.output.shape[1:]) in shapes
    ]
    outputs = keras.Model(model.input, [layer.output for layer in layers])(image, training=False)
    given = {layer.name: keras.ops.convert_to_numpy(output) for layer, output in zip(layers, outputs, strict=True)}
    names: dict[str, str] = {}
    for tensor, value in held.items():
        distances = {name: _distance(value, output) for name, output in given.items()}
        nearest = min(distances, key=distances.__getitem__, default=None)
        if nearest is not None and distances[nearest] <= tolerance:
            names[tensor] = nearest
            del given[nearest]
    return names


def _distance(held: NDArray[np.float32], given: NDArray[np.float32]) -> float:
    """Measure how far a tensor is from a layer, whose channels are last: at most, as a share of the largest value."""
    shares = [
        np.abs(value - given).max() / max(np.abs(given).max(), np.finfo(np.float32).tiny)
        for value in (held.transpose(0, 2, 3, 1), held)
        if value.shape == given.shape
    ]
    return float(min(shares, default=np.inf))


# Weights
_MOST_BYTES = 4 << 30
_SUFFIXES = (".weights.h5", ".h5", ".keras")
_TOP_HINT = "Weights without the classifier need --no-top, and weights for other classes need --classes"


def build(application: Callable[..., keras.Model], **arguments: Any) -> keras.Model:
    """Build the application with these arguments.

    Raises:
        BackboneError: Keras will not have them.
    """
    try:
        return application(**arguments)
    except ValueError as error:
        raise BackboneError(f"Keras cannot build {application.__name__}: {first_line(error)}") from None


def with_own_weights(application: Callable[..., keras.Model], **arguments: Any) -> keras.Model:
    """Build the application with the weights that Keras has for it, downloaded once to `~/.keras/models`.

    Raises:
        BackboneError: Keras will not have the arguments, or cannot download the weights.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return build(application, weights="imagenet", **arguments)
    except BackboneError:
        raise
    except Exception as error:  # what Keras raises where a download fails
        raise BackboneError(
            f"Keras cannot download the weights of {application.__name__} ({first_line(error)}); without a network, "
            "name a file with --weights, or put the one that Keras wants into ~/.keras/models"
        ) from None


def with_weights_of(path: Path, application: Callable[..., keras.Model], **arguments: Any) -> keras.Model:
    """Build the application with weights from a file, from which nothing else is taken: no configuration, no code.

    Raises:
        BackboneError: Keras will not have the arguments, or the file does not hold these weights.
        UnsafeFileError: it is too large, or leads to other files.
    """
    name, top = application.__name__, arguments["include_top"]
    if not path.is_file() or not path.name.endswith(_SUFFIXES):
        raise BackboneError(f"No weights in '{path}'; expected a file *{', *'.join(_SUFFIXES)}")
    if path.stat().st_size > _MOST_BYTES:
        raise UnsafeFileError(f"'{path}' is larger than {_MOST_BYTES >> 30} GiB; it was not read")
    if name.startswith("EfficientNetB") and _is_keras_own(path, application):
        raise BackboneError(
            f"'{path}' is Keras' own file for {name}, for which Keras scales images in a special way; "
            "put it into ~/.keras/models and leave --weights out"
        )
    model = build(application, weights=None, **arguments)
    try:
        if path.suffix == ".h5":
            _refuse_links(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what does not fit is an error; what Keras warns of does no harm
            model.load_weights(path)
    except UnsafeFileError:
        raise
    except Exception as error:  # Keras and h5py raise many kinds
        raise BackboneError(
            f"'{path}' does not hold the weights of {name} {'with' if top else 'without'} its classifier "
            f"({first_line(error).rstrip(':')}). {_TOP_HINT}"
        ) from None
    return model


def _is_keras_own(path: Path, application: Callable[..., keras.Model]) -> bool:
    hashes = sys.modules[application.__module__].WEIGHTS_HASHES.values()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return any(digest in pair for pair in hashes)


def _refuse_links(path: Path) -> None:
    """Refuse a file whose data HDF5 would read from other files; Keras looks for that in its newer formats only.

    Raises:
        UnsafeFileError: the file leads elsewhere.
    """
    import h5py

    with h5py.File(path) as file:
        # Whatever a visitor returns ends the visit.
        link = file.visititems_links(lambda name, link: None if isinstance(link, h5py.HardLink) else name)
        item = file.visititems(
            lambda name, item: name if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual) else None
        )
    for place in (link, item):
        if place is not None:
            raise UnsafeFileError(f"'{path}' takes what is at '{place}' from elsewhere; it was not read")
