"""Networks on the hub that are worth trying, for people to choose from: size, licence, and what their authors publish.

Nothing here is measured by quickstudy, and no repository is asked: the table is as of 2025. Megabytes are what is
fetched. Accuracies are on ImageNet, in percent: of the network itself with its classifier (timm's own evaluation, at
the size at which it is added), of a linear head on its features, or of names alone.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quickstudy.backbones.backbone import find_backbone, name_of

Extra = Literal["hub", "transformers", "timm"]
_MODULES: dict[Extra, tuple[str, ...]] = {
    "hub": ("huggingface_hub",),
    "transformers": ("huggingface_hub", "transformers", "torch"),
    "timm": ("huggingface_hub", "timm", "torchvision", "torch"),
}
_TIMM = "classifier; timm's results-imagenet.csv"
_DINO = "linear head; DINOv2's README"


@dataclass(frozen=True, kw_only=True)
class Available:
    """A network that can be had."""

    place: str
    """Name of the network, as `--backbone` or `backbone add` takes it."""
    megabytes: int
    """Number of megabytes to fetch."""
    licence: str
    """Licence of the weights, as the repository names it."""
    top1: float | None
    """Published accuracy on ImageNet, in percent; None where none is known that can be compared."""
    source: str
    """What the accuracy is of, and who publishes it; empty where there is none."""
    extra: Extra
    """Name of the extra that it needs."""

    @property
    def name(self) -> str:
        """Name under which it is added unless another is given."""
        return name_of(self.place.removeprefix("timm:"))

    def is_here(self, cache: Path) -> bool:
        """Say whether it has been added, under its own name."""
        return find_backbone(self.name, cache) is not None

    @property
    def can_be_added(self) -> bool:
        """Whether the extra that it needs is installed."""
        return all(importlib.util.find_spec(module) is not None for module in _MODULES[self.extra])


def _one(place: str, megabytes: int, licence: str, top1: float | None, source: str, extra: Extra) -> Available:
    return Available(place=place, megabytes=megabytes, licence=licence, top1=top1, source=source, extra=extra)


AVAILABLE = (
    _one("hf:onnx-community/dinov2-small-ONNX", 88, "apache-2.0", 81.1, _DINO, "hub"),
    _one("hf:facebook/dinov2-with-registers-small", 88, "apache-2.0", 80.9, _DINO, "transformers"),
    _one("hf:facebook/dinov2-base", 346, "apache-2.0", 84.5, _DINO, "transformers"),
    _one("timm:mobilenetv4_conv_small.e2400_r224_in1k", 15, "apache-2.0", 73.8, _TIMM, "timm"),
    _one("timm:mobilenetv4_conv_medium.e500_r256_in1k", 39, "apache-2.0", 79.9, _TIMM, "timm"),
    _one("timm:efficientnetv2_rw_t.ra2_in1k", 55, "apache-2.0", 81.4, _TIMM, "timm"),
    _one("timm:tf_efficientnetv2_s.in21k_ft_in1k", 86, "apache-2.0", 83.3, _TIMM, "timm"),
    _one("timm:convnext_tiny.in12k_ft_in1k", 114, "apache-2.0", 84.2, _TIMM, "timm"),
    _one("timm:vit_small_patch16_dinov3.lvd1689m", 86, "dinov3-license", None, "", "timm"),
    _one("hf:Xenova/clip-vit-base-patch32", 352, "mit", 76.1, "linear head; CLIP, table 10", "hub"),
    _one(
        "hf:onnx-community/siglip2-base-patch16-224-ONNX",
        372,
        "apache-2.0",
        78.2,
        "names alone; SigLIP 2, table 1",
        "hub",
    ),
)
"""The networks, families together, smaller ones first."""
