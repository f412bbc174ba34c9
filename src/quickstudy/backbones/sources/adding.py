"""Makes a backbone in the cache of what a user names: `keras:InceptionV3`, `timm:resnet18`, `hf:OWNER/REPO`, a file.

An ONNX file may come from anybody; what is read of it, and what is refused, stands in `graphs/untrusted.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from quickstudy.backbones.backbone import HUB, Backbone, add_backbone, check_name, find_backbone, name_of, on_hub
from quickstudy.backbones.graphs.cleaning import (
    IMAGE_OUTPUTS,
    ImageInput,
    choose_output,
    find_image_input,
    refuse_training_mode,
    widen,
)
from quickstudy.backbones.graphs.preprocessing import Preprocessing
from quickstudy.backbones.graphs.runtime import open_session
from quickstudy.backbones.graphs.tokens import TokenPooling, Tokens, append_pooling, pooling_of, without_the_rest
from quickstudy.backbones.graphs.untrusted import own_class_names, read_onnx
from quickstudy.backbones.sources.graph_import import Imported, import_graph
from quickstudy.backbones.sources.hub import fetched, parse_place
from quickstudy.backbones.sources.hub_configs import FILTERS, read_configs
from quickstudy.errors import BackboneError, OptionError
from quickstudy.files import as_path


@dataclass(frozen=True, kw_only=True)
class BackboneSource:
    """What to make a backbone of, and what to know about it that it does not say itself."""

    place: str
    """Place of the network: `keras:NAME`, `timm:NAME`, `hf:OWNER/REPO[@REVISION][:FILE]` or the path of a file."""
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
    tokens: str = ""
    """What to make of a file's tokens, a name in `TOKENS`; empty for what is usual."""
    resize: str = ""
    """How images are resized, a name in `FILTERS`; empty for what the source says, else quickstudy's own way."""
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
        OptionError: an option has a value that it cannot have, or would do nothing with such a source.
        MissingExtraError: an extra is not installed.
        UnsafeFileError: a file holds something that is refused.
    """
    if name is not None:
        check_name(name)
    if source.resize and source.resize not in FILTERS:
        raise OptionError(f"Unknown way to resize '{source.resize}'; there are: {', '.join(FILTERS)}")
    imported = _import(source)
    if source.resize:
        spec = replace(imported.input_spec, resize=FILTERS[source.resize])
        imported = replace(imported, input_spec=spec)
    added = add_backbone(
        check_name(name or imported.name),
        imported.graph,
        cache,
        input_spec=imported.input_spec,
        cuts=imported.cuts,
        classes=imported.classes,
        origin=imported.origin,
        top1=imported.top1,
        prefix_tokens=imported.prefix_tokens,
        licence=imported.licence,
    )
    return added, imported


def from_hub(place: str, cache: Path) -> tuple[Backbone, Imported | None]:
    """Give the backbone that was made of a place on the hub; the first time, it is fetched and imported.

    From then on it stays as it is, whatever becomes of the repository, so that models and bottlenecks made with it stay
    comparable; `add_from` imports it anew.

    Returns:
        The backbone, and what was found out about the network where it was imported.

    Raises:
        BackboneError: there is no such network, or it cannot be imported.
        DownloadError: the hub cannot be reached.
        MissingExtraError: `huggingface_hub` is not installed.
    """
    repository = parse_place(place).repository
    found = find_backbone(_name_on_hub(place), cache)
    if found is not None and found.origin.startswith(f"{HUB}{repository}@"):
        return found, None
    return add_from(BackboneSource(place=place), cache)


def _import(source: BackboneSource) -> Imported:
    kind, _, name = source.place.partition(":")
    if kind in ("keras", "timm") and not Path(source.place).exists():
        if source.layout or source.preprocessing or source.features or source.output:
            raise OptionError(
                f"'{source.place}' already fixes what --layout, --preprocessing, --range, --mean, --std, --features "
                "and --output would say; leave them out"
            )
        # Here, not above: both need torch, which is not needed for files.
        if kind == "keras":
            from quickstudy.backbones.sources.keras_models import import_keras as import_named
        else:
            from quickstudy.backbones.sources.timm_models import import_timm as import_named
        return import_named(name, weights=source.weights, top=source.top, size=source.size, classes=source.classes)
    if source.weights is not None or not source.top:
        raise OptionError(
            "--weights and --no-top are for keras: and timm: names; an .onnx file, and a repository on the hub, have "
            "their own weights"
        )
    if on_hub(source.place) and not Path(source.place).exists():
        return _import_from_hub(source)
    return import_onnx(
        as_path(source.place),
        size=source.size,
        layout=source.layout,
        preprocessing=source.preprocessing,
        features=source.features,
        output=source.output,
        tokens=Tokens(take=source.tokens),
        classes=source.classes,
    )


def _import_from_hub(source: BackboneSource) -> Imported:
    place = parse_place(source.place)
    with fetched(place) as hub, tempfile.TemporaryDirectory() as folder:
        told = read_configs(hub.config, hub.preprocessor)
        file = hub.file
        if file.suffix != ".onnx" and "architecture" in hub.config:
            from quickstudy.backbones.sources.timm_models import import_timm_from_hub

            imported = import_timm_from_hub(hub, size=source.size, classes=source.classes)
            found = {**imported.found, "licence": hub.licence}
            name = _name_on_hub(source.place)
            return replace(imported, name=name, origin=hub.origin, licence=hub.licence, found=found)
        if file.suffix != ".onnx":
            from quickstudy.backbones.sources.transformers_models import export_transformers

            file = Path(folder) / "exported.onnx"
            size = source.size or told.size
            export_transformers(hub.config, hub.file, file, size=size, name=place.repository)
        imported = import_onnx(
            file,
            size=source.size,
            usual_size=told.size,
            layout=source.layout,
            preprocessing=source.preprocessing or told.preprocessing,
            features=source.features,
            output=source.output,
            preferred=told.outputs,
            tokens=replace(told.tokens, take=source.tokens),
            classes=source.classes,
            own_classes=told.classes,
        )
    said = {"file": hub.choice, "licence": hub.licence, "resizing": told.resizing}
    return replace(
        imported,
        name=_name_on_hub(source.place),
        origin=hub.origin,
        licence=hub.licence,
        input_spec=replace(imported.input_spec, crop=told.crop, fit=told.fit, resize=told.resize),
        found={**imported.found, **{what: value for what, value in said.items() if value}},
    )


# ONNX files
_MOST_CLASSES_BYTES = 10 << 20


def import_onnx(
    path: Path,
    *,
    size: int | None = None,
    usual_size: int | None = None,
    layout: str | None = None,
    preprocessing: Preprocessing | None = None,
    features: str = "",
    output: str | None = None,
    preferred: Sequence[str] = IMAGE_OUTPUTS,
    tokens: Tokens | None = None,
    classes: Sequence[str] | None = None,
    own_classes: Sequence[str] | None = None,
) -> Imported:
    """Make a backbone of an ONNX file, which need not be trusted.

    Args:
        path: the file.
        size: side of the input in pixels, where the file leaves it open.
        usual_size: the same, where nobody says it.
        layout: `NCHW` or `NHWC`, where the file leaves it open.
        preprocessing: what becomes of bytes before the network; left out, it is read from the graph if it stands there.
        features: the tensor that is the penultimate layer; left out, it is found.
        output: name of the output that counts, where the file has several; left out, the first of `preferred`.
        preferred: names of outputs that are worth having, best first.
        tokens: what to make of the tokens, where it gives tokens.
        classes: names in the order of the outputs; left out, those that a model of quickstudy carries, or ImageNet's
            where there are 1,000.
        own_classes: names that are known to belong to the file, where it carries none.

    Raises:
        BackboneError: the file is none, or is damaged, or does not say enough, or the backbone differs from it.
        UnsafeFileError: it is too large, or asks for files outside its folder or operators of libraries.
    """
    model = read_onnx(path)
    own = own_class_names(model) or own_classes
    del model.metadata_props[:]
    of_several = choose_output(model, output, preferred)
    without_the_rest(model)
    refuse_training_mode(model)
    widen(model)
    image = find_image_input(model, size=size, usual_size=usual_size, layout=layout)
    given_by = model.graph.output[0].name
    tokens_in = features or given_by
    pooling = _pooling(model, image, tokens_in, tokens or Tokens())
    session = open_session(model.SerializeToString())
    pools_output = pooling is not None and not features

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        given = images.transpose(0, 3, 1, 2) if image.layout == "NCHW" else images
        given = given.astype(np.uint8) if image.as_bytes else given
        results = np.concatenate([session.run([given_by], {image.name: one[None]})[0] for one in given])
        return pooling.apply(results) if pooling is not None and pools_output else results

    if pooling is not None:
        pooled = append_pooling(model, tokens_in, pooling)
        if pools_output:
            model.graph.output[0].CopyFrom(onnx.ValueInfoProto(name=pooled))
        features = pooled
    elif given_by in IMAGE_OUTPUTS:
        features = features or given_by  # an embedding, even where the last layer looks like a classifier
    imported = import_graph(
        model,
        image,
        reference=run,
        preprocessing=preprocessing,
        features=features,
        classes=classes,
        own_classes=own,
    )
    said = {"output": of_several}
    if pooling is not None:
        width = imported.found["features"].partition(", from ")[0]
        said |= {"features": f"{width}, from '{tokens_in}'", "tokens": str(pooling)}
    return replace(
        imported,
        name=name_of(path.stem),
        origin=path.name,
        prefix_tokens=pooling.prefix if pooling is not None else 0,
        found={**imported.found, **{what: value for what, value in said.items() if value}},
    )


def _name_on_hub(place: str) -> str:
    return name_of(f"{HUB}{place.partition(':')[2]}")


def _pooling(model: onnx.ModelProto, image: ImageInput, tensor: str, wanted: Tokens) -> TokenPooling | None:
    """Decide how features are made of a tensor's tokens (N×T×F); None where it holds none.

    Raises:
        BackboneError: somebody says what to make of tokens, and there are none, or it cannot be made of them.
    """
    shape = _shape_of(model, image, tensor)
    if len(shape) == 3 and min(shape[1:]) > 1:
        return pooling_of(shape[1], wanted, size=image.size)
    if wanted.take:
        known = "×".join(str(side) for side in ("N", *shape[1:])) if shape else "an unknown shape"
        raise BackboneError(f"--tokens {wanted.take} is for N×tokens×features, but '{tensor}' is {known}; leave it out")
    return None


def _shape_of(model: onnx.ModelProto, image: ImageInput, tensor: str) -> tuple[int, ...]:
    """Find the shape of a tensor by running the network on one black image; none where it does not run."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.append(onnx.ValueInfoProto(name=tensor))
    side = {"N": image.batch or 1, "C": 3, "H": image.size, "W": image.size}
    black = np.zeros([side[letter] for letter in image.layout], np.uint8 if image.as_bytes else np.float32)
    try:
        return tuple(open_session(probe.SerializeToString()).run([tensor], {image.name: black})[0].shape)
    except Exception:  # ONNX Runtime's own kinds; what is wrong is said where the network is compared
        return ()


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
