"""The networks that recipes train, each with its options: classic, fast, and fully connected (MLP).

A network takes N×C×S×S images and gives N×classes logits. It says which of its weights decay (`decayed`), may take
from training images what it does not train (`prepare`), and may stop training a part of itself (`stop_training_at`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from quickstudy.errors import OptionError
from quickstudy.scratch.layers import (
    ACTIVATIONS,
    RISING,
    Dense,
    LocallyConnected,
    LocalResponseNorm,
    Whitening,
    after_pooling,
    truncated_normal,
)

_FILTERS = 64
"""Number of channels of the classic network's convolutions."""
_HIDDEN = (384, 192)
"""Numbers of units of the classic network's two hidden dense layers."""
_LOCAL = (64, 32)
"""Numbers of channels of the two locally connected layers that may stand in their place."""


@dataclass(frozen=True, kw_only=True)
class ClassicNetworkOptions:
    """Options of the classic network."""

    activation: str = "relu"
    """Activation of all hidden layers: relu, gelu, silu, sigmoid, tanh, leaky_relu or elu."""
    normalisation: str = "lrn"
    """Normalisation after each convolution: lrn (local response normalisation), batch_norm, or none."""
    top: str = "dense"
    """Kind of the two hidden layers after the convolutions: dense, or local (locally connected) as in cuda-convnet."""
    bottleneck: int = 0
    """Number of channels of a 1×1 bottleneck around the second convolution; 0: no bottleneck."""

    def build(self, *, size: int, channels: int, classes: int) -> ClassicNet:
        """Make the network for images of `channels`×`size`×`size`.

        Raises:
            OptionError: an option has a value that it cannot have, or that does not go with such images.
        """
        for name, value, known in (
            ("activation", self.activation, tuple(ACTIVATIONS)),
            ("normalisation", self.normalisation, ("lrn", "batch_norm", "none")),
            ("top", self.top, ("dense", "local")),
        ):
            if value not in known:
                raise OptionError(f"{name} is '{value}'; expected one of {', '.join(known)}")
        return ClassicNet(self, size=size, channels=channels, classes=classes)


class ClassicNet(nn.Module):
    """The deep-CNN tutorial's network for CIFAR-10, and its variants.

    Two convolutions with max-pooling and local response normalisation, two hidden dense layers, a linear layer; after
    cuda-convnet's layers-80sec and TensorFlow's "Deep CNN" tutorial (2015), whose initial values and biases it has.
    """

    def __init__(self, config: ClassicNetworkOptions, *, size: int, channels: int, classes: int) -> None:
        super().__init__()
        activation = ACTIVATIONS[config.activation]
        self.conv1 = nn.Conv2d(channels, _FILTERS, 5, padding=2)
        self.active1 = activation()
        self.norm1 = _normalisation(config.normalisation)
        self.conv2: nn.Module = nn.Conv2d(_FILTERS, _FILTERS, 5, padding=2)
        if config.bottleneck:
            self.conv2 = BottleneckConv(_FILTERS, config.bottleneck, activation=config.activation)
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
        """Pass images through the layers, in order."""
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
        """List the weights of the two hidden layers: those that the tutorial decays."""
        yield self.hidden1.weight
        yield self.hidden2.weight

    def prepare(self, images: Tensor) -> None:
        """Take nothing from the images."""

    def stop_training_at(self, epoch: float) -> bool:
        """Train all to the end."""
        del epoch
        return False

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


class BottleneckConv(nn.Module):
    """1×1 down to `width` channels, 5×5 there, 1×1 up again (He et al., 2016, section 4.1), without the shortcut."""

    def __init__(self, channels: int, width: int, *, activation: str) -> None:
        super().__init__()
        self.active1, self.active2 = ACTIVATIONS[activation](), ACTIVATIONS[activation]()
        self.reduce = nn.Conv2d(channels, width, 1)
        self.conv = nn.Conv2d(width, width, 5, padding=2)
        self.expand = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape, N×C×H×W."""
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


@dataclass(frozen=True, kw_only=True)
class FastNetworkOptions:
    """Options of the fast network."""

    activation: str = "silu"
    """Activation of all hidden layers: relu, gelu, silu, sigmoid, tanh, leaky_relu or elu."""
    widths: tuple[int, ...] = (16, 64, 128)
    """Numbers of channels of the blocks; a block halves the side."""
    convolutions: int = 3
    """Number of 3×3 convolutions in a block."""
    residual: bool = True
    """Whether a block's input after pooling is added to its output."""
    activate_sum: bool = False
    """Whether the last activation of a block comes after that sum (He et al., 2016) and not before; needs residual."""
    whitening: bool = True
    """Whether the first layer is taken from the images' patches instead of being trained."""
    directions: int = 8
    """Number of directions of 2×2 patches in the first layer, the strongest first, at most all (12 in RGB); each makes
    two filters, one of each sign."""
    whitening_bias_epochs: float = 0.0
    """Epochs for which a bias of the whitened patches is trained, which then stays as it is; 0: there is none."""
    whitening_bias_rate: float = 1.0
    """Factor of the learning rate for that bias, in place of `bias_rate`."""
    whitening_bias_fall: bool = False
    """Whether that bias's rate falls from the highest to nothing in its epochs; off: it follows the schedule."""
    logit_scale: float = 1 / 9
    """Factor of the logits, above 0."""
    batch_norm_momentum: float = 0.6
    """Share of the newest batch in the running statistics, 0 to 1; high, since runs are short."""

    def build(self, *, size: int, channels: int, classes: int) -> FastNet:
        """Make the network for images of `channels`×`size`×`size`.

        Raises:
            OptionError: an option has a value that it cannot have, or that does not go with such images.
        """
        if self.activation not in ACTIVATIONS:
            raise OptionError(f"activation is '{self.activation}'; expected one of {', '.join(ACTIVATIONS)}")
        if not self.widths or min(self.widths) < 1:
            shown = ",".join(map(str, self.widths)) or "empty"
            raise OptionError(f"widths is {shown}; expected the channels of each block, 1 or more, such as 32,64,128")
        if self.activate_sum and not self.residual:
            raise OptionError("activate_sum is on, but residual is off, so there is no sum; set one of them otherwise")
        if self.whitening_bias_epochs and not self.whitening:
            raise OptionError(
                f"whitening_bias_epochs is {self.whitening_bias_epochs:g}, but whitening is off, so the first layer is "
                "trained with its bias to the end; set one of them otherwise"
            )
        if size < (least := 1 << (len(self.widths) + 1)):
            raise OptionError(
                f"Images of {size} pixels a side are too small for {len(self.widths)} blocks, which take {least}; "
                "set fewer widths, such as widths=32,64, or larger images"
            )
        return FastNet(self, channels=channels, classes=classes)


class FastNet(nn.Module):
    """A small modern network that learns in few passes: whitened patches, then blocks of 3×3 convolutions, batch norms.

    It follows Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024, https://arxiv.org/abs/2404.00498), with
    widths that suit a processor. The side of its images may vary from batch to batch.
    """

    def __init__(self, config: FastNetworkOptions, *, channels: int, classes: int) -> None:
        super().__init__()
        self.active = ACTIVATIONS[config.activation]()
        self.logit_scale = config.logit_scale
        self.options = config
        self.first: nn.Conv2d = Whitening(
            channels, kernel=2, directions=config.directions, bias=config.whitening_bias_epochs > 0
        )
        if not config.whitening:
            self.first = nn.Conv2d(channels, self.first.out_channels, 2)
        self.blocks = nn.ModuleList()
        width_in = self.first.out_channels
        for width in config.widths:
            self.blocks.append(Block(width_in, width, config))
            width_in = width
        self.linear = nn.Linear(width_in, classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Pass images through the layers, in order."""
        x = self.active(self.first(images))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.linear(_largest(x)) * self.logit_scale
        return logits

    def decayed(self) -> Iterator[Tensor]:
        """Everything that is trained."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def prepare(self, images: Tensor) -> None:
        """Take the first layer from these images."""
        if isinstance(self.first, Whitening):
            self.first.take_filters(images)

    @property
    def whitening_bias(self) -> nn.Parameter | None:
        """The bias of the first layer where that is not trained itself; None where there is none."""
        bias = self.first.bias if isinstance(self.first, Whitening) else None
        return bias if isinstance(bias, nn.Parameter) else None

    def stop_training_at(self, epoch: float) -> bool:
        """Train the whitening layer's bias no more from its last epoch on; tells whether it was trained before."""
        bias = self.whitening_bias
        if bias is None or not bias.requires_grad or epoch < self.options.whitening_bias_epochs:
            return False
        bias.requires_grad = False  # so that no gradient is worked out before the first convolution's
        return True


def _largest(x: Tensor) -> Tensor:
    """Take the largest value of each map.

    The gradient of `amax` goes where a value equals the largest, of which PyTorch's compiler, which rounds to bfloat16
    at other places forward than backward, may find none: it then divided by their number, 0. So there one value is
    remembered by its place.
    """
    return x.flatten(2).max(dim=2).values if torch.compiler.is_compiling() else x.amax((2, 3))


class Block(nn.Module):
    """Convolution, pooling, batch norm, activation; then further convolutions without pooling."""

    def __init__(self, channels: int, width: int, config: FastNetworkOptions) -> None:
        super().__init__()
        self.residual, self.activate_sum = config.residual, config.activate_sum
        self.convolutions, self.norms, self.actives = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for number in range(config.convolutions):
            conv = nn.Conv2d(width if number else channels, width, 3, padding=1, bias=False)
            # The first channels begin as copies of the input, so that the gradient passes from the first step on.
            nn.init.dirac_(conv.weight.data[: conv.in_channels])
            self.convolutions.append(conv)
            norm = nn.BatchNorm2d(width, momentum=config.batch_norm_momentum)
            norm.weight.requires_grad = False
            self.norms.append(norm)
            self.actives.append(ACTIVATIONS[config.activation]())

    def forward(self, x: Tensor) -> Tensor:
        """Take N×C×H×W to N×width×H/2×W/2."""
        x = pooled = self.actives[0](self.norms[0](functional.max_pool2d(self.convolutions[0](x), 2)))
        last = len(self.convolutions) - 1
        for number in range(1, last + 1):
            x = self.norms[number](self.convolutions[number](x))
            if number == last and self.activate_sum:
                x = x + pooled
            x = self.actives[number](x)
        return x + pooled if self.residual and not self.activate_sum and x is not pooled else x


_BATCH_NORM_PLACES = ("off", "before", "after")


@dataclass(frozen=True, kw_only=True)
class MlpNetworkOptions:
    """Options of the fully connected network."""

    activation: str = "relu"
    """Activation of all hidden layers: relu, gelu, silu, sigmoid, tanh, leaky_relu or elu."""
    widths: tuple[int, ...] = (500, 400, 300, 200, 100, 50, 25)
    """Numbers of units of the hidden layers, the first one first."""
    depth: int = 7
    """Number of hidden layers, the first so many of `widths`; 0: the classes follow the pixels at once."""
    batch_norm: str = "off"
    """Place of batch normalisation: off, before or after each activation (Ioffe & Szegedy, 2015, have it before)."""
    bottleneck: int = 0
    """Number of units of one more hidden layer, between the others and the classes; 0: no such layer."""

    def build(self, *, size: int, channels: int, classes: int) -> Mlp:
        """Make the network for images of `channels`×`size`×`size`.

        Raises:
            OptionError: an option has a value that it cannot have, or that does not go with such images.
        """
        if self.activation not in ACTIVATIONS:
            raise OptionError(f"activation is '{self.activation}'; expected one of {', '.join(ACTIVATIONS)}")
        if self.batch_norm not in _BATCH_NORM_PLACES:
            raise OptionError(f"batch_norm is '{self.batch_norm}'; expected one of {', '.join(_BATCH_NORM_PLACES)}")
        if not self.widths or min(self.widths) < 1:
            shown = ",".join(map(str, self.widths)) or "empty"
            raise OptionError(f"widths is {shown}; expected the units of each layer, 1 or more, such as 500,400")
        if not 0 <= self.depth <= len(self.widths):
            raise OptionError(f"depth is {self.depth}; expected 0 to {len(self.widths)}, as many as widths has")
        return Mlp(self, inputs=channels * size**2, classes=classes)


class Mlp(nn.Module):
    """A fully connected network, for studies of depth, batch normalisation and activation."""

    def __init__(self, config: MlpNetworkOptions, *, inputs: int, classes: int) -> None:
        super().__init__()
        widths = config.widths[: config.depth] + ((config.bottleneck,) if config.bottleneck else ())
        self.hidden = nn.ModuleList()
        for width in widths:
            self.hidden.append(Hidden(inputs, width, config))
            inputs = width
        self.linear = Dense(inputs, classes)
        _initialise(self.linear)

    def forward(self, images: Tensor) -> Tensor:
        """Pass images through the layers, in order."""
        x = images.flatten(1)
        for layer in self.hidden:
            x = layer(x)
        logits: Tensor = self.linear(x)
        return logits

    def decayed(self) -> Iterator[Tensor]:
        """List the weights of all layers."""
        return (parameter for parameter in self.parameters() if parameter.ndim == 2)

    def prepare(self, images: Tensor) -> None:
        """Take nothing from the images."""

    def stop_training_at(self, epoch: float) -> bool:
        """Train all to the end."""
        del epoch
        return False


class Hidden(nn.Module):
    """A linear layer and its activation, with a batch norm before or after that, or without one."""

    def __init__(self, inputs: int, width: int, config: MlpNetworkOptions) -> None:
        super().__init__()
        # The shift of a batch norm that follows at once makes a bias of the linear layer superfluous.
        self.linear = Dense(inputs, width, bias=config.batch_norm != "before")
        _initialise(self.linear)
        self.norm = nn.Identity() if config.batch_norm == "off" else nn.BatchNorm1d(width)
        self.norm_first = config.batch_norm == "before"
        self.active = ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Take N×inputs to N×width."""
        x = self.linear(x)
        result: Tensor = self.active(self.norm(x)) if self.norm_first else self.norm(self.active(x))
        return result


def _initialise(layer: nn.Linear) -> None:
    """Draw weights as Glorot & Bengio, 2010, do; set biases to zero."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
