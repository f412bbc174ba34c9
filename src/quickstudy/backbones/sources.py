"""From what a user names to a backbone in the cache: `keras:InceptionV3`, `timm:resnet18`, or an `.onnx` file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quickstudy.backbones.backbone import Backbone, add_backbone, check_name
from quickstudy.backbones.graph_import import Imported
from quickstudy.backbones.onnx_files import import_onnx
from quickstudy.backbones.preprocessing import Preprocessing
from quickstudy.errors import BackboneError


@dataclass(frozen=True, kw_only=True)
class Source:
    """What to make a backbone of, and what to know about it that it does not say itself."""

    place: str
    """`keras:NAME`, `timm:NAME` or a file."""
    weights: Path | None = None
    """A file of weights for a Keras application or a timm network."""
    top: bool = True
    """Whether these have, and keep, their classifier."""
    size: int | None = None
    """Side of the input, in pixels."""
    layout: str | None = None
    """Of a file's input: `NCHW` or `NHWC`."""
    preprocessing: Preprocessing | None = None
    """Of a file: what becomes of bytes before it."""
    features: str = ""
    """Of a file: the tensor that is the penultimate layer."""
    classes: Sequence[str] | None = None
    """Names in the order of the outputs."""


def add_from(source: Source, cache: Path, *, name: str | None = None) -> tuple[Backbone, Imported]:
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


def _import(source: Source) -> Imported:
    kind, _, name = source.place.partition(":")
    if kind in ("keras", "timm") and not Path(source.place).exists():
        if source.layout or source.preprocessing or source.features:
            raise BackboneError(
                f"'{source.place}' says itself what --layout, --preprocessing, --range, --mean, --std and --features "
                "are for; leave them out"
            )
        # Here, not above: both need torch, which is not needed for files.
        if kind == "keras":
            from quickstudy.backbones.keras_applications import import_keras as import_named
        else:
            from quickstudy.backbones.timm_models import import_timm as import_named
        return import_named(name, weights=source.weights, top=source.top, size=source.size, classes=source.classes)
    if source.weights is not None or not source.top:
        raise BackboneError("--weights and --no-top are for keras: and timm: names; an .onnx file has its weights")
    return import_onnx(
        Path(source.place),
        size=source.size,
        layout=source.layout,
        preprocessing=source.preprocessing,
        features=source.features,
        classes=source.classes,
    )
