"""A small modern network that learns in few passes: whitened patches, then blocks of 3×3 convolutions and batch norms.

After Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024, https://arxiv.org/abs/2404.00498), with widths
that suit a processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from quickstudy.errors import RecipeError
from quickstudy.training.networks.layers import ACTIVATIONS, Whitening


@dataclass(frozen=True, kw_only=True)
class FastNetwork:
    """What may be varied in the fast network."""

    activation: str = "gelu"
    """One of relu, gelu, silu, sigmoid, tanh, leaky_relu, elu."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of each block; a block halves the side."""
    convolutions: int = 2
    """3×3 convolutions a block."""
    whitening: bool = True
    """Take the first layer from the images' patches instead of training it."""
    logit_scale: float = 1 / 9
    """Factor of the logits."""
    batch_norm_momentum: float = 0.6
    """Share of the newest batch in the running statistics; high, since runs are short."""

    def build(self, *, size: int, channels: int, classes: int) -> FastNet:
        """The network for images of `channels`×`size`×`size`."""
        if self.activation not in ACTIVATIONS:
            raise RecipeError(f"activation is '{self.activation}'; expected one of {', '.join(ACTIVATIONS)}")
        if size < 2 ** (len(self.widths) + 1):
            raise RecipeError(f"Images of {size} pixels a side are too small for {len(self.widths)} blocks")
        return FastNet(self, channels=channels, classes=classes)


class FastNet(nn.Module):
    """N×C×S×S images to N×classes logits; S may vary from batch to batch."""

    def __init__(self, config: FastNetwork, *, channels: int, classes: int) -> None:
        super().__init__()
        self.active = ACTIVATIONS[config.activation]()
        self.logit_scale = config.logit_scale
        first = Whitening(channels, kernel=2, stride=1)
        first.weight.requires_grad = not config.whitening
        self.first = first
        self.whitened = config.whitening
        self.blocks = nn.ModuleList()
        width_in = first.out_channels
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
        if self.whitened:
            self.first.fit(images)


class Block(nn.Module):
    """Convolution, pooling, batch norm, activation; then further convolutions without pooling."""

    def __init__(self, channels: int, width: int, config: FastNetwork) -> None:
        super().__init__()
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
        for number, (convolution, norm, active) in enumerate(
            zip(self.convolutions, self.norms, self.actives, strict=True)
        ):
            x = convolution(x)
            if not number:
                x = functional.max_pool2d(x, 2)
            x = active(norm(x))
        return x
