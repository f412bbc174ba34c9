"""Weights for Keras applications: Keras' own, or those in a file that need not be trusted."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quickstudy.backbones.untrusted import first_line
from quickstudy.errors import BackboneError, UnsafeFileError

if TYPE_CHECKING:
    import keras

_MOST_BYTES = 4 << 30
_SUFFIXES = (".weights.h5", ".h5", ".keras")
_TOP_HINT = "Weights without the classifier need --no-top, those for other classes --classes"


def build(application: Callable[..., keras.Model], **arguments: Any) -> keras.Model:
    """The application, made with these arguments.

    Raises:
        BackboneError: Keras will not have them.
    """
    try:
        return application(**arguments)
    except ValueError as error:
        raise BackboneError(f"Keras cannot build {application.__name__}: {first_line(error)}") from None


def with_own_weights(application: Callable[..., keras.Model], **arguments: Any) -> keras.Model:
    """The application with the weights that Keras has for it, downloaded once to `~/.keras/models`.

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
    """The application with weights from a file, from which nothing else is taken: no configuration, no code.

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
            f"'{path}' is Keras' own file for {name}, with which Keras scales images in a way of its own; "
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
    """HDF5 can have a file's data read from any other file; Keras looks for that in its newer formats only."""
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
