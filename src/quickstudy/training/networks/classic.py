"""The deep-CNN tutorial's network for CIFAR-10, and its variants.

Two convolutions with max-pooling and local response normalisation, two hidden dense layers, a linear layer; after
cuda-convnet's layers-80sec and TensorFlow's "Deep CNN" tutorial (2015), whose initial values and biases it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from quickstudy.errors import OptionError
from quickstudy.training.networks.layers import (
    ACTIVATIONS,
    RISING,
    LocallyConnected,
    LocalResponseNorm,
    after_pooling,
    truncated_normal,
)

_FILTERS = 64
_HIDDEN = (384, 192)
_LOCAL = (64, 32)


@dataclass(frozen=True, kw_only=True)
class ClassicNetwork:
    """What may be varied in the classic network."""

    activation: str = "relu"
    """One of relu, gelu, silu, sigmoid, tanh, leaky_relu, elu."""
    normalisation: str = "lrn"
    """lrn (local response normalisation), batch_norm, or none."""
    top: str = "dense"
    """dense, or local: locally connected layers instead of the two hidden dense ones, as in cuda-convnet."""
    bottleneck: int = 0
    """Width of a 1×1 bottleneck around the second convolution; 0: none."""

    def build(self, *, size: int, channels: int, classes: int) -> ClassicNet:
        """The network for images of `channels`×`size`×`size`."""
        for name, value, known in (
            ("activation", self.activation, tuple(ACTIVATIONS)),
            ("normalisation", self.normalisation, ("lrn", "batch_norm", "none")),
            ("top", self.top, ("dense", "local")),
        ):
            if value not in known:
                raise OptionError(f"{name} is '{value}'; expected one of {', '.join(known)}")
        return ClassicNet(self, size=size, channels=channels, classes=classes)


class ClassicNet(nn.Module):
    """N×C×S×S images to N×classes logits."""

    def __init__(self, config: ClassicNetwork, *, size: int, channels: int, classes: int) -> None:
        super().__init__()
        activation = ACTIVATIONS[config.activation]
        self.conv1 = nn.Conv2d(channels, _FILTERS, 5, padding=2)
        self.active1 = activation()
        self.norm1 = _normalisation(config.normalisation)
        self.conv2: nn.Module = nn.Conv2d(_FILTERS, _FILTERS, 5, padding=2)
        if config.bottleneck:
            self.conv2 = Bottleneck(_FILTERS, config.bottleneck, activation=config.activation)
        self.active2 = activation()
        self.norm2 = _normalisation(config.normalisation)
        self.sides = (size, after_pooling(size))
        side = after_pooling(self.sides[1])
        if config.top == "dense":
            self.hidden1: nn.Linear | LocallyConnected = nn.Linear(_FILTERS * side**2, _HIDDEN[0])
            self.hidden2: nn.Linear | LocallyConnected = nn.Linear(*_HIDDEN)
            last = _HIDDEN[1]
        else:
            self.hidden1 = LocallyConnected(_FILTERS, _LOCAL[0], size=side, kernel=3)
            self.hidden2 = LocallyConnected(*_LOCAL, size=side, kernel=3)
            last = _LOCAL[1] * side**2
        self.active3, self.active4 = activation(), activation()
        self.linear = nn.Linear(last, classes)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        """The layers, in order."""
        x = self.conv1(images)
        if isinstance(self.active1, RISING):  # then pooling may come first, which leaves a quarter of the values
            x = self.active1(_pool(x, side=self.sides[0]))
        else:
            x = _pool(self.active1(x), side=self.sides[0])
        x = self.norm1(x)
        x = _pool(self.norm2(self.active2(self.conv2(x))), side=self.sides[1])
        if isinstance(self.hidden1, nn.Linear):
            x = x.flatten(1)
        x = self.active3(self.hidden1(x))
        x = self.active4(self.hidden2(x))
        logits: Tensor = self.linear(x.flatten(1))
        return logits

    def decayed(self) -> Iterator[Tensor]:
        """The weights of the two hidden layers: those that the tutorial decays."""
        yield self.hidden1.weight
        yield self.hidden2.weight

    def prepare(self, images: Tensor) -> None:
        """Nothing is taken from the images."""

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                truncated_normal(module.weight, 0.05)
                if module.bias is not None:
                    nn.init.constant_(module.bias, 0.0 if module is self.conv1 else 0.1)
        for layer in (self.hidden1, self.hidden2):
            truncated_normal(layer.weight, 0.04)
            nn.init.constant_(layer.bias, 0.1)
        truncated_normal(self.linear.weight, 1 / _HIDDEN[1])
        nn.init.zeros_(self.linear.bias)


class Bottleneck(nn.Module):
    """1×1 down to `width` channels, 5×5 there, 1×1 up again (He et al., 2016, section 4.1), without the shortcut."""

    def __init__(self, channels: int, width: int, *, activation: str) -> None:
        super().__init__()
        self.active1, self.active2 = ACTIVATIONS[activation](), ACTIVATIONS[activation]()
        self.reduce = nn.Conv2d(channels, width, 1)
        self.conv = nn.Conv2d(width, width, 5, padding=2)
        self.expand = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to the same shape."""
        expanded: Tensor = self.expand(self.active2(self.conv(self.active1(self.reduce(x)))))
        return expanded


def _normalisation(kind: str) -> nn.Module:
    if kind == "lrn":
        return LocalResponseNorm(_FILTERS, radius=4, bias=1.0, alpha=0.001 / 9, beta=0.75)
    return nn.BatchNorm2d(_FILTERS) if kind == "batch_norm" else nn.Identity()


def _pool(x: Tensor, *, side: int) -> Tensor:
    # TensorFlow's padding SAME: windows of 3 every 2 from the first pixel on, the last one cut off at the border; of an
    # odd side from one pixel before it, cut off at both ends.
    return functional.max_pool2d(x, 3, 2, padding=side % 2, ceil_mode=side % 2 == 0)
