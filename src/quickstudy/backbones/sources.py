"""Makes a backbone in the cache of what a user names: `keras:InceptionV3`, `timm:resnet18`, or an `.onnx` file.

An ONNX file may come from anybody; what is read of it, and what is refused, stands in `untrusted.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quickstudy.backbones.backbone import Backbone, add_backbone, check_name
from quickstudy.backbones.cleaning import choose_output, find_image_input, refuse_training_mode, widen
from quickstudy.backbones.graph_import import Imported, import_graph
from quickstudy.backbones.preprocessing import Preprocessing
from quickstudy.backbones.runtime import open_session
from quickstudy.backbones.untrusted import own_class_names, read_onnx
from quickstudy.errors import BackboneError


@dataclass(frozen=True, kw_only=True)
class BackboneSource:
    """What to make a backbone of, and what to know about it that it does not say itself."""

    place: str
    """Place of the network: `keras:NAME`, `timm:NAME` or the path of a file."""
    weights: Path | None = None
    """A file of weights for a Keras application or a timm network; None for its own weights."""
    top: bool = True
    """Whether the weights have a classifier and the backbone keeps it."""
    size: int | None = None
    """Side of the input, in pixels; None where the source says it."""
    layout: str | None = None
    """The order of the axes of a file's input, `NCHW` or `NHWC`; None where its shape says it."""
    preprocessing: Preprocessing | None = None
    """What becomes of bytes before the network in a file; None where the graph says it."""
    features: str = ""
    """Name of the tensor in a file that is the penultimate layer; empty where it is to be found."""
    output: str | None = None
    """Name of the output that counts, where the file has several."""
    classes: Sequence[str] | None = None
    """Names of the classes in the order of the outputs; None for those that a model of quickstudy carries, or
    ImageNet's where there are 1,000."""


def add_from(source: BackboneSource, cache: Path, *, name: str | None = None) -> tuple[Backbone, Imported]:
    """Import a network, compare it with its original, and keep it as a backbone.

    Args:
        source: the network.
        cache: the folder for everything that can be made again.
        name: by which it will be asked for; left out, made of the source's.

    Raises:
        BackboneError: it cannot be imported, which the message explains, or the name cannot be used.
        UnsafeFileError: a file holds something that is refused.
    """
    if name is not None:
        check_name(name)
    imported = _import(source)
    added = add_backbone(
        check_name(name or imported.name),
        imported.graph,
        cache,
        input_spec=imported.input_spec,
        cuts=imported.cuts,
        classes=imported.classes,
        origin=imported.origin,
        top1=imported.top1,
    )
    return added, imported


def _import(source: BackboneSource) -> Imported:
    kind, _, name = source.place.partition(":")
    if kind in ("keras", "timm") and not Path(source.place).exists():
        if source.layout or source.preprocessing or source.features or source.output:
            raise BackboneError(
                f"'{source.place}' already fixes what --layout, --preprocessing, --range, --mean, --std, --features "
                "and --output would say; leave them out"
            )
        # Here, not above: both need torch, which is not needed for files.
        if kind == "keras":
            from quickstudy.backbones.keras_models import import_keras as import_named
        else:
            from quickstudy.backbones.timm_models import import_timm as import_named
        return import_named(name, weights=source.weights, top=source.top, size=source.size, classes=source.classes)
    if source.weights is not None or not source.top:
        raise BackboneError(
            "--weights and --no-top are for keras: and timm: names; an .onnx file holds its own weights"
        )
    return import_onnx(
        Path(source.place),
        size=source.size,
        layout=source.layout,
        preprocessing=source.preprocessing,
        features=source.features,
        output=source.output,
        classes=source.classes,
    )


# ONNX files
_MOST_CLASSES_BYTES = 10 << 20


def import_onnx(
    path: Path,
    *,
    size: int | None = None,
    layout: str | None = None,
    preprocessing: Preprocessing | None = None,
    features: str = "",
    output: str | None = None,
    classes: Sequence[str] | None = None,
) -> Imported:
    """Make a backbone of an ONNX file, which need not be trusted.

    Args:
        path: the file.
        size: side of the input in pixels, where the file leaves it open.
        layout: `NCHW` or `NHWC`, where the file leaves it open.
        preprocessing: what becomes of bytes before the network; left out, it is read from the graph if it stands there.
        features: the tensor that is the penultimate layer; left out, it is found.
        output: name of the output that counts, where the file has several.
        classes: names in the order of the outputs; left out, those that a model of quickstudy carries, or ImageNet's
            where there are 1,000.

    Raises:
        BackboneError: the file is none, or is damaged, or does not say enough, or the backbone differs from it.
        UnsafeFileError: it is too large, or asks for files outside its folder or operators of libraries.
    """
    model = read_onnx(path)
    own = own_class_names(model)
    del model.metadata_props[:]
    choose_output(model, output)
    refuse_training_mode(model)
    widen(model)
    image = find_image_input(model, size=size, layout=layout)
    session = open_session(model.SerializeToString())
    given_by = model.graph.output[0].name

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        given = images.transpose(0, 3, 1, 2) if image.layout == "NCHW" else images
        given = given.astype(np.uint8) if image.as_bytes else given
        return np.concatenate([session.run([given_by], {image.name: one[None]})[0] for one in given])

    imported = import_graph(
        model,
        image,
        reference=run,
        preprocessing=preprocessing,
        features=features,
        classes=classes,
        own_classes=own,
    )
    return replace(imported, name=re.sub(r"[^a-z0-9]+", "_", path.stem.lower()).strip("_"), origin=path.name)


def read_classes(path: Path) -> tuple[str, ...]:
    """Read names of classes from a text file, one a line.

    Raises:
        BackboneError: there is no such file, or it is no such list.
    """
    try:
        if path.stat().st_size > _MOST_CLASSES_BYTES:
            raise BackboneError(f"'{path}' is larger than {_MOST_CLASSES_BYTES >> 20} MiB; expected names, one a line")
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise BackboneError(f"Cannot read the classes in '{path}': {error}; expected names, one a line") from None
    if len(set(names)) != len(names) or not all(names):
        raise BackboneError(f"'{path}' has a name twice or an empty line; expected a name for each class, one a line")
    return names
