"""A small modern network that learns in few passes: whitened patches, then blocks of 3×3 convolutions and batch norms.

After Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024, https://arxiv.org/abs/2404.00498), with widths
that suit a processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from quickstudy.errors import OptionError
from quickstudy.training.networks.layers import ACTIVATIONS, Whitening


@dataclass(frozen=True, kw_only=True)
class FastNetwork:
    """What may be varied in the fast network."""

    activation: str = "silu"
    """One of relu, gelu, silu, sigmoid, tanh, leaky_relu, elu."""
    widths: tuple[int, ...] = (16, 64, 128)
    """Channels of each block; a block halves the side."""
    convolutions: int = 3
    """3×3 convolutions a block."""
    residual: bool = True
    """Add a block's input after pooling to its output."""
    whitening: bool = True
    """Take the first layer from the images' patches instead of training it."""
    directions: int = 8
    """Of the whitened 2×2 patches, the strongest first, at most all (12 in RGB); each is a filter with both signs."""
    logit_scale: float = 1 / 9
    """Factor of the logits."""
    batch_norm_momentum: float = 0.6
    """Share of the newest batch in the running statistics; high, since runs are short."""

    def build(self, *, size: int, channels: int, classes: int) -> FastNet:
        """The network for images of `channels`×`size`×`size`."""
        if self.activation not in ACTIVATIONS:
            raise OptionError(f"activation is '{self.activation}'; expected one of {', '.join(ACTIVATIONS)}")
        if not self.widths or min(self.widths) < 1:
            shown = ",".join(map(str, self.widths)) or "empty"
            raise OptionError(f"widths is {shown}; expected the channels of each block, 1 or more, such as 32,64,128")
        if size < (least := 2 ** (len(self.widths) + 1)):
            raise OptionError(
                f"Images of {size} pixels a side are too small for {len(self.widths)} blocks, which take {least}; "
                "set fewer widths, such as widths=32,64, or larger images"
            )
        return FastNet(self, channels=channels, classes=classes)


class FastNet(nn.Module):
    """N×C×S×S images to N×classes logits; S may vary from batch to batch."""

    def __init__(self, config: FastNetwork, *, channels: int, classes: int) -> None:
        super().__init__()
        self.active = ACTIVATIONS[config.activation]()
        self.logit_scale = config.logit_scale
        self.first: nn.Conv2d = Whitening(channels, kernel=2, directions=config.directions)
        if not config.whitening:
            self.first = nn.Conv2d(channels, self.first.out_channels, 2)
        self.blocks = nn.ModuleList()
        width_in = self.first.out_channels
        for width in config.widths:
            self.blocks.append(Block(width_in, width, config))
            width_in = width
        self.linear = nn.Linear(width_in, classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """The layers, in order."""
        x = self.active(self.first(images))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.linear(x.amax((2, 3))) * self.logit_scale
        return logits

    def decayed(self) -> Iterator[Tensor]:
        """Everything that is trained."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def prepare(self, images: Tensor) -> None:
        """Take the first layer from these images."""
        if isinstance(self.first, Whitening):
            self.first.fit(images)


class Block(nn.Module):
    """Convolution, pooling, batch norm, activation; then further convolutions without pooling."""

    def __init__(self, channels: int, width: int, config: FastNetwork) -> None:
        super().__init__()
        self.residual = config.residual
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
        """N×C×H×W to N×width×H/2×W/2."""
        x = pooled = self.actives[0](self.norms[0](functional.max_pool2d(self.convolutions[0](x), 2)))
        for number in range(1, len(self.convolutions)):
            x = self.actives[number](self.norms[number](self.convolutions[number](x)))
        return x + pooled if self.residual and x is not pooled else x
