"""A fully connected network, for studies of depth, batch normalisation and activation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from quickstudy.errors import OptionError
from quickstudy.training.networks.dense import Dense
from quickstudy.training.networks.layers import ACTIVATIONS

_PLACES = ("off", "before", "after")


@dataclass(frozen=True, kw_only=True)
class MlpNetwork:
    """What may be varied in the fully connected network."""

    activation: str = "relu"
    """One of relu, gelu, silu, sigmoid, tanh, leaky_relu, elu."""
    widths: tuple[int, ...] = (500, 400, 300, 200, 100, 50, 25)
    """Units of the hidden layers, the first one first."""
    depth: int = 7
    """Hidden layers: the first so many of `widths`."""
    batch_norm: str = "off"
    """off, or batch normalisation before or after each activation (Ioffe & Szegedy, 2015, have it before)."""
    bottleneck: int = 0
    """Units of one more hidden layer, between the others and the classes; 0: none."""

    def build(self, *, size: int, channels: int, classes: int) -> Mlp:
        """The network for images of `channels`×`size`×`size`."""
        if self.activation not in ACTIVATIONS:
            raise OptionError(f"activation is '{self.activation}'; expected one of {', '.join(ACTIVATIONS)}")
        if self.batch_norm not in _PLACES:
            raise OptionError(f"batch_norm is '{self.batch_norm}'; expected one of {', '.join(_PLACES)}")
        if not self.widths or min(self.widths) < 1:
            shown = ",".join(map(str, self.widths)) or "empty"
            raise OptionError(f"widths is {shown}; expected the units of each layer, 1 or more, such as 500,400")
        if not 0 <= self.depth <= len(self.widths):
            raise OptionError(f"depth is {self.depth}; expected 0 to {len(self.widths)}, as many as widths has")
        return Mlp(self, inputs=channels * size**2, classes=classes)


class Mlp(nn.Module):
    """N×C×S×S images to N×classes logits."""

    def __init__(self, config: MlpNetwork, *, inputs: int, classes: int) -> None:
        super().__init__()
        widths = config.widths[: config.depth] + ((config.bottleneck,) if config.bottleneck else ())
        self.hidden = nn.ModuleList()
        for width in widths:
            self.hidden.append(Hidden(inputs, width, config))
            inputs = width
        self.linear = Dense(inputs, classes)
        _initialise(self.linear)

    def forward(self, images: Tensor) -> Tensor:
        """The layers, in order."""
        x = images.flatten(1)
        for layer in self.hidden:
            x = layer(x)
        logits: Tensor = self.linear(x)
        return logits

    def decayed(self) -> Iterator[Tensor]:
        """The weights of all layers."""
        return (parameter for parameter in self.parameters() if parameter.ndim == 2)

    def prepare(self, images: Tensor) -> None:
        """Nothing is taken from the images."""


class Hidden(nn.Module):
    """A linear layer and its activation, with a batch norm before or after that, or without one."""

    def __init__(self, inputs: int, width: int, config: MlpNetwork) -> None:
        super().__init__()
        # The shift of a batch norm that follows at once makes a bias of the linear layer superfluous.
        self.linear = Dense(inputs, width, bias=config.batch_norm != "before")
        _initialise(self.linear)
        self.norm = nn.Identity() if config.batch_norm == "off" else nn.BatchNorm1d(width)
        self.norm_first = config.batch_norm == "before"
        self.active = ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """N×inputs to N×width."""
        x = self.linear(x)
        result: Tensor = self.active(self.norm(x)) if self.norm_first else self.norm(self.active(x))
        return result


def _initialise(layer: nn.Linear) -> None:
    """Weights as Glorot & Bengio, 2010, have them; biases zero."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
