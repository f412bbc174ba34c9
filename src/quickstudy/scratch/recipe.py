"""Recipes: named, complete training configurations. They differ in their values, not in the loop that runs them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quickstudy.errors import OptionError
from quickstudy.learning.schedules import OneCycle, Staircase
from quickstudy.options import options_of, with_options
from quickstudy.scratch.input import Distortions
from quickstudy.scratch.networks import ClassicNetwork, FastNetwork, MlpNetwork


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """How parameters follow their gradients."""

    method: str = "sgd"
    """sgd, adam, or muon: for the convolutions' weights, which batch norms must follow, and sgd for all else."""
    batch: int = 128
    """Images a step, over all devices."""
    momentum: float = 0.0
    """Of sgd; adam has its own."""
    nesterov: bool = False
    muon_momentum: float = 0.6
    weight_decay: float = 0.0
    """Factor of half the sum of squares of the decayed weights, which is added to the loss."""
    bias_rate: float = 1.0
    """Factor of the learning rate for biases."""
    head_rate: float = 1.0
    """Factor of the learning rate for the last layer."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes (Szegedy et al., 2016, section 7)."""
    average_decay: float = 0.0
    """Decay of the moving averages of all parameters that evaluation uses; 0: it uses the parameters themselves."""
    average_every: int = 1
    """Steps from one update of the averages to the next."""
    compiled: bool = False
    """On a GPU, let torch.compile fuse the network's operations; it takes a minute at the start."""
    precision: str = "float32"
    """float32, bfloat16, or auto: bfloat16 where the machine multiplies it faster."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a training gives."""

    name: str
    network: ClassicNetwork | FastNetwork | MlpNetwork
    distortions: Distortions
    optimiser: Optimiser
    schedule: Staircase | OneCycle
    data: str = "cifar10"
    """A named data set, or a folder or manifest of images."""
    image_size: int = 32
    """Side to which image files are decoded; named data sets have their own."""
    validation: float = 0.0
    """Share of the training images that is held out to choose by, never trained on."""
    steps: int = 0
    """Steps to train for; 0: as many as `epochs` takes."""
    epochs: float = 0.0
    """Passes over the training images; used where `steps` is 0."""
    seconds: float = 0.0
    """Time to train for at most, start-up and evaluation left out; 0: as long as it takes."""
    evaluate_steps: int = 0
    """Steps from one evaluation within the run to the next, on the validation images where some are held out, else on
    the test images; 0: none until the end."""
    target: float = 0.0
    """Precision at which such an evaluation ends the run; 0: none does."""
    mirrored_test: bool = False
    """Evaluate, and export, the mean over an image and its mirror image."""
    shifted_test: int = 0
    """Evaluate, and export, the mean over an image (half the weight) and two copies of it, shifted by so many pixels to
    the upper left and the lower right (a quarter each); 0: no copies."""
    seed: int = 0

    def total_steps(self, images: int) -> int:
        """Steps to train for on so many images."""
        return self.steps or max(1, round(self.epochs * images / self.optimiser.batch))

    def options(self) -> dict[str, Any]:
        """All options by name, with their values; names are unique over the parts of a recipe."""
        return options_of(self)

    def with_options(self, options: Mapping[str, Any]) -> Recipe:
        """The recipe with other values, by option name; strings are read as the option's type.

        Raises:
            OptionError: there is no such option, or it cannot have this value.
        """
        recipe = with_options(self, options, owner=f"The recipe '{self.name}'")
        recipe.check()
        return recipe

    def check(self) -> None:
        """Raise a OptionError where a value cannot be used, before any work is done."""
        for name, value in self.options().items():
            if name not in _RANGES:
                continue
            low, high = _RANGES[name]
            if not (low <= value <= high and math.isfinite(value)):
                upper = f" to {high:g}" if high < math.inf else " or more"
                raise OptionError(f"{name} is {value:g}; expected {low:g}{upper}")
        if not self.steps and not self.epochs:
            raise OptionError("Both steps and epochs are 0; set one of them to say how long to train")
        if self.target and not self.evaluate_steps:
            raise OptionError(
                f"target is {self.target:g}, but evaluate_steps is 0, so that it is never looked at; "
                "set evaluate_steps=10, or so"
            )
        if self.optimiser.method not in ("sgd", "adam", "muon"):
            raise OptionError(f"method is '{self.optimiser.method}'; expected sgd, adam or muon")
        if self.optimiser.precision not in ("float32", "bfloat16", "auto"):
            raise OptionError(f"precision is '{self.optimiser.precision}'; expected float32, bfloat16 or auto")
        if self.optimiser.nesterov and not self.optimiser.momentum:
            raise OptionError("nesterov is on, which takes a momentum above 0; set momentum, or nesterov=off")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `from_dict` reads them back."""
        return {"recipe": self.name, "options": self.options()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """From what `to_dict` gave.

        Raises:
            OptionError: the values are not those of a recipe of this version.
        """
        try:
            return recipe_named(values["recipe"]).with_options(values["options"])
        except (KeyError, TypeError, AttributeError) as error:
            raise OptionError(f"This is no recipe of this version of quickstudy: {error!r}") from None


def recipe_named(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        OptionError: there is none.
    """
    if name not in RECIPES:
        raise OptionError(f"There is no recipe '{name}'; there are: {', '.join(RECIPES)}")
    return RECIPES[name]


_RANGES: dict[str, tuple[float, float]] = {
    "batch": (1, math.inf),
    "steps": (0, math.inf),
    "epochs": (0, math.inf),
    "seconds": (0, math.inf),
    "evaluate_steps": (0, math.inf),
    "target": (0, 1),
    "shifted_test": (0, 7),
    "rate": (0, math.inf),
    "momentum": (0, 1),
    "weight_decay": (0, math.inf),
    "label_smoothing": (0, 1),
    "average_decay": (0, 1),
    "average_every": (1, math.inf),
    "validation": (0, 0.9),
    "image_size": (8, 4096),
    "seed": (0, 2**63 - 1),
    "warmup": (0, 1),
    "bottleneck": (0, 4096),
    "convolutions": (1, 64),
    "directions": (1, 4096),
    "bias_rate": (0.001, math.inf),
    "head_rate": (0.001, math.inf),
    "muon_momentum": (0, 1),
    "rate_decay_epochs": (0.001, math.inf),
}

_CLASSIC = Recipe(
    name="cifar10-classic",
    network=ClassicNetwork(),
    distortions=Distortions(crop=24, brightness=63, contrast=(0.2, 1.8)),
    optimiser=Optimiser(batch=128, weight_decay=0.004, average_decay=0.9999),
    schedule=Staircase(rate=0.1, rate_decay=0.1, rate_decay_epochs=350),
    steps=60_000,
)
_FAST = Recipe(
    name="cifar10-fast",
    network=FastNetwork(),
    distortions=Distortions(pad=2, alternate=True, standardise="set"),
    optimiser=Optimiser(
        method="muon", batch=256, momentum=0.85, nesterov=True, weight_decay=0.0064, bias_rate=0.66, head_rate=8.4,
        label_smoothing=0.2, precision="auto",
    ),
    schedule=OneCycle(rate=0.08, warmup=0.01, rate_end=0.0),
    epochs=5.6,
    mirrored_test=True,
)  # fmt: skip
_WIDE = FastNetwork(widths=(64, 256, 256))
_LONG = dataclasses.replace(
    _FAST,
    name="cifar10-long",
    network=dataclasses.replace(_WIDE, directions=12),
    distortions=dataclasses.replace(_FAST.distortions, pad=4),
    epochs=24,
    shifted_test=1,
)
_GPU = dataclasses.replace(
    _FAST,
    name="cifar10-gpu",
    network=dataclasses.replace(_WIDE, convolutions=2, residual=False, activation="gelu"),
    optimiser=dataclasses.replace(
        _FAST.optimiser, batch=2000, weight_decay=0.017, bias_rate=0.22, head_rate=2.8, compiled=True
    ),
    schedule=dataclasses.replace(_FAST.schedule, rate=0.24),
    epochs=8,
)
_MLP = Recipe(
    name="mlp",
    network=MlpNetwork(),
    distortions=Distortions(flip=False, standardise="none"),
    optimiser=Optimiser(method="adam", batch=500),
    schedule=Staircase(rate=0.001),
    data="mnist",
    steps=1000,
)

RECIPES = {recipe.name: recipe for recipe in (_CLASSIC, _FAST, _LONG, _GPU, _MLP)}
"""All recipes by name."""
