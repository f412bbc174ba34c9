"""The network that is fine-tuned: the layers after a cut, and the head behind them, which starts from its optimum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quickstudy.backbones.backbone import Backbone
from quickstudy.backbones.cuts import FEATURES
from quickstudy.backbones.graphs.autograd import GraphModule
from quickstudy.backbones.graphs.cutting import keep_between
from quickstudy.backbones.graphs.runtime import optimised
from quickstudy.errors import BackboneError
from quickstudy.learning.averages import exactly, sent

# Below this, the square root's slope no longer grows: near zero it has none, and a network's zeros are common.
_STEEPEST_AT = 1e-2


def suffix_graph(backbone: Backbone) -> onnx.ModelProto:
    """Take the part of a backbone from its cut to the features, with batch norms folded into the layers before them.

    Batch norms are frozen, so they are constants: without them a step passes through memory less often, and what is
    trained is what runs later.

    Raises:
        BackboneError: more than the cut leads to the features.
    """
    model = onnx.load(backbone.path, load_external_data=False)
    features = next(cut for cut in backbone.cuts if cut.name == FEATURES)
    return optimised(keep_between(model, backbone.cut, backbone.cut_shape, FEATURES, features.shape))


class SuffixNetwork(nn.Module):
    """Makes logits (N×classes) of activations at a cut (N × its shape): suffix, signed square root, linear head."""

    def __init__(self, suffix: GraphModule, weights: NDArray[np.float32], biases: NDArray[np.float32]) -> None:
        """Begin with a head that has been fitted to the features (weights d×K, biases K), where the suffix is."""
        super().__init__()
        self.suffix = suffix
        device = device_of_module(suffix)
        self.weights = nn.Parameter(torch.from_numpy(weights.copy()).to(device))
        self.biases = nn.Parameter(torch.from_numpy(biases.copy()).to(device))
        self.suffix.lay_channels_last()

    def forward(self, activations: Tensor) -> Tensor:
        """Compute the logits (N×classes), in float32."""
        root: Tensor = _SignedSqrt.apply(self.suffix(channels_last(activations)).float())  # type: ignore[no-untyped-call]
        return root @ self.weights + self.biases

    def deepened(self, suffix: GraphModule) -> SuffixNetwork:
        """Make a network with this head and a longer suffix, which ends with the layers of this one as they are now.

        Raises:
            BackboneError: the longer suffix has not all the weights of this one.
        """
        if missing := set(self.suffix.weight_names) - set(suffix.weight_names):
            raise BackboneError(f"The deeper cut has no weights {', '.join(sorted(missing))}; cut at one place instead")
        with torch.no_grad():
            for name in self.suffix.weight_names:
                suffix.weight(name).copy_(self.suffix.weight(name))
        return SuffixNetwork(suffix, *(p.detach().cpu().numpy() for p in (self.weights, self.biases)))

    def parameter_groups(self, *, depth_decay: float, head_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Make groups for an optimiser, each with the factor by which the learning rate is multiplied.

        Layers learn the more slowly the nearer they are to the cut, from `depth_decay` to 1 (Howard & Ruder, 2018,
        arXiv:1801.06146): what they have learned is more general. Only weights decay, not biases.
        """
        names = self.suffix.weight_names
        groups = []
        for number, name in enumerate(names):
            parameter = self.suffix.weight(name)
            depth = (number + 1) / len(names)
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.append({"params": [parameter], "rate_factor": depth_decay ** (1 - depth), "weight_decay": decay})
        groups.append({"params": [self.weights], "rate_factor": head_rate, "weight_decay": weight_decay})
        groups.append({"params": [self.biases], "rate_factor": head_rate, "weight_decay": 0.0})
        return groups


def features_of(suffix: GraphModule, batches: Iterable[Tensor]) -> NDArray[np.float32]:
    """Compute the features (n×d) that a suffix gives for batches of activations at its cut."""
    device = device_of_module(suffix)
    with torch.inference_mode(), exactly():
        rows = torch.cat([suffix(channels_last(sent(batch, device))).float() for batch in batches])
    return rows.cpu().numpy()


def device_of_module(module: nn.Module) -> torch.device:
    """Say where a network computes; one without any values computes where its input is, and counts as the processor."""
    return next((value.device for value in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def channels_last(activations: Tensor) -> Tensor:
    """Put activations into the order in memory that convolutions are quickest with."""
    if activations.ndim != 4:
        return activations
    return activations.contiguous(memory_format=torch.channels_last)


class _SignedSqrt(torch.autograd.Function):
    """Computes sign(x)·√|x|, exactly as the linear head has it, with a slope that stays finite at zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign() * x.abs().sqrt()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        result: Tensor = gradient * 0.5 / x.abs().clamp_min(_STEEPEST_AT).sqrt()
        return result
