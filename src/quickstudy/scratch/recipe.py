"""Recipes, which decide what a training gives, and `RunSettings`, which decide how it is carried out.

Recipes are named, complete configurations. They differ in their values, not in the loop that runs them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quickstudy.errors import OptionError
from quickstudy.learning.schedules import OneCycle, Staircase
from quickstudy.options import Range, options_of, require_in_range, with_options
from quickstudy.scratch.input import Augmentation
from quickstudy.scratch.networks import ClassicNetworkOptions, FastNetworkOptions, MlpNetworkOptions


@dataclass(frozen=True, kw_only=True)
class OptimiserOptions:
    """How parameters follow their gradients: values for the optimisers in state.py."""

    method: str = "sgd"
    """Method: sgd, adam, or muon (Muon for convolutions' weights, which batch norms must follow; sgd for the rest)."""
    batch: int = 128
    """Number of images in a step, over all devices."""
    momentum: float = 0.0
    """Momentum of sgd, alone or beside Muon, 0 to 1; 0: none. adam ignores it."""
    nesterov: bool = False
    """Whether sgd looks ahead along its momentum (Nesterov, 1983), which must be above 0. adam ignores it."""
    muon_momentum: float = 0.6
    """Momentum of Muon, 0 to 1; the other methods ignore it."""
    weight_decay: float = 0.0
    """Factor of half the sum of squares of the decayed weights, which is added to the loss; 0: nothing decays."""
    bias_rate: float = 1.0
    """Factor of the learning rate for biases; 1: they learn like the rest."""
    head_rate: float = 1.0
    """Factor of the learning rate for the last layer; 1: it learns like the rest."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes (Szegedy et al., 2016, section 7); 0: none."""
    average_decay: float = 0.0
    """Decay of the moving averages of all parameters, which evaluation uses; 0: it uses the parameters themselves."""
    average_every: int = 1
    """Number of steps from one update of the averages to the next."""
    lookahead_every: int = 0
    """Number of steps after which all parameters are set to slow values, which follow them (Zhang et al., 2019), as
    after the last step of all; 0: no slow values."""
    lookahead_decay: float = 0.774
    """Share of themselves that the slow values keep at the end; it rises with the cube of the share of steps made."""
    compiled: bool = False
    """Whether torch.compile fuses the operations of steps, on a GPU or the processor, which takes a minute at first; on
    a GPU the quickest of its library's convolutions are found out by trying, too."""
    precision: str = "float32"
    """Type in which layers multiply: float32, bfloat16, or auto (bfloat16 where the machine is faster in it)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a training gives."""

    name: str
    """Name under which `recipe_named` finds it."""
    network: ClassicNetworkOptions | FastNetworkOptions | MlpNetworkOptions
    """What is trained."""
    augmentation: Augmentation
    """How images become the network's input."""
    optimiser: OptimiserOptions
    """How parameters follow their gradients."""
    schedule: Staircase | OneCycle
    """Learning rate of each step."""
    data: str = "cifar10"
    """Name of a data set, or a folder or manifest of images."""
    image_size: int = 32
    """Side to which image files are decoded, in pixels; named data sets have their own."""
    validation: float = 0.0
    """Share of the training images that is held out to choose by, never trained on; 0: none."""
    steps: int = 0
    """Number of steps to train for; 0: as many as `epochs` takes."""
    epochs: float = 0.0
    """Number of passes over the training images; used where `steps` is 0."""
    seconds: float = 0.0
    """Most time to spend on steps, in seconds, without start-up and evaluation; 0: as long as it takes."""
    evaluate_steps: int = 0
    """Number of steps from one evaluation within the run to the next, on the validation images where some are held out,
    else on the test images; 0: none until the end."""
    target: float = 0.0
    """Accuracy, 0 to 1, at which an evaluation within the run ends it; 0: none does."""
    mirrored_test: bool = False
    """Whether evaluation and the exported model take the mean over an image and its mirror image."""
    shifted_test: int = 0
    """Number of pixels by which two copies of an image are shifted, one to the upper left and one to the lower right;
    evaluation and the exported model take the mean over the image (half the weight) and them; 0: no copies."""
    unsure_lead: float = 1.0
    """Largest lead of the first class over the second, in probability, at which an image is unsure without
    `shifted_test`'s copies, which count for unsure images only; 1: they count for all."""
    seed: int = 0
    """Seed of all random numbers."""

    def total_steps(self, images: int) -> int:
        """Work out the number of steps to train for on so many images."""
        return self.steps or max(1, round(self.epochs * images / self.optimiser.batch))

    def options(self) -> dict[str, Any]:
        """List all options by name, with their values; names are unique over the parts of a recipe."""
        return options_of(self)

    def with_options(self, options: Mapping[str, Any]) -> Recipe:
        """Make the recipe with other values, by option name; strings are read as the option's type.

        Raises:
            OptionError: there is no such option, or it cannot have this value.
        """
        recipe = with_options(self, options, owner=f"The recipe '{self.name}'")
        recipe.check()
        return recipe

    def check(self) -> None:
        """Raise an OptionError where a value cannot be used, before any work is done."""
        require_in_range(self.options(), _RANGES)
        if not self.steps and not self.epochs:
            raise OptionError("Both steps and epochs are 0; set one of them to say how long to train")
        if self.target and not self.evaluate_steps:
            raise OptionError(
                f"target is {self.target:g}, but evaluate_steps is 0, so the accuracy is never measured; "
                "set evaluate_steps, for example to 10"
            )
        if self.optimiser.method not in ("sgd", "adam", "muon"):
            raise OptionError(f"method is '{self.optimiser.method}'; expected sgd, adam or muon")
        if self.optimiser.precision not in ("float32", "bfloat16", "auto"):
            raise OptionError(f"precision is '{self.optimiser.precision}'; expected float32, bfloat16 or auto")
        if self.optimiser.nesterov and not self.optimiser.momentum:
            raise OptionError("nesterov is on, which needs a momentum above 0; set momentum, or nesterov=off")

    def to_dict(self) -> dict[str, Any]:
        """Give the recipe as JSON values; `from_dict` reads them back."""
        return {"recipe": self.name, "options": self.options()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """Make a recipe from what `to_dict` gave.

        Raises:
            OptionError: the values are not those of a recipe of this version.
        """
        try:
            return recipe_named(values["recipe"]).with_options(values["options"])
        except (KeyError, TypeError, AttributeError) as error:
            raise OptionError(f"This is not a recipe of this version of quickstudy: {error!r}") from None


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run is carried out; nothing here changes what it gives, but for the rounding of sums over devices."""

    devices: int = 1
    """Number of replicas on this machine."""
    device: str = "auto"
    """Kind of device to compute on: auto, cpu or cuda."""
    threads: int = 16
    """Number of threads that prepare batches; 0: the training thread prepares them itself."""
    data_folder: Path | None = None
    """Folder where named data sets lie; None: see `images.named.data_folder`."""
    log_steps: int = 10
    """Number of steps from one report to the next."""
    summary_steps: int = 100
    """Number of steps from one set of histograms and images to the next; 0: no TensorBoard."""
    graph: bool = True
    """Whether TensorBoard gets the network's graph, which takes some tenths of a second to trace."""
    checkpoint_seconds: float = 60.0
    """Time from one checkpoint to the next, in seconds."""
    keep: int = 5
    """Number of newest checkpoints that are kept, besides the best."""

    def check(self) -> None:
        """Raise an OptionError where a value cannot be used."""
        require_in_range(vars(self), _SETTINGS)


def recipe_named(name: str) -> Recipe:
    """Find the recipe of this name.

    Raises:
        OptionError: there is none.
    """
    if name not in RECIPES:
        raise OptionError(f"There is no recipe '{name}'; there are: {', '.join(RECIPES)}")
    return RECIPES[name]


_RANGES: dict[str, Range] = {
    "batch": Range(1),
    "steps": Range(0),
    "epochs": Range(0),
    "seconds": Range(0),
    "evaluate_steps": Range(0),
    "target": Range(0, 1),
    "shifted_test": Range(0, 7),
    "unsure_lead": Range(0, 1),
    "rate": Range(0),
    "momentum": Range(0, 1, below=True),
    "weight_decay": Range(0),
    "label_smoothing": Range(0, 1, below=True),
    "average_decay": Range(0, 1),
    "average_every": Range(1),
    "lookahead_every": Range(0),
    "lookahead_decay": Range(0, 1),
    "validation": Range(0, 0.9),
    "image_size": Range(8, 4096),
    "seed": Range(0, 2**63 - 1),
    "warmup": Range(0, 1),
    "rate_start": Range(0, 1),
    "rate_end": Range(0, 1),
    "rate_decay": Range(0),
    "batch_norm_momentum": Range(0, 1),
    "logit_scale": Range(0, above=True),
    "bottleneck": Range(0, 4096),
    "convolutions": Range(1, 64),
    "directions": Range(1, 4096),
    "whitening_bias_epochs": Range(0),
    "whitening_bias_rate": Range(0.001),
    "bias_rate": Range(0.001),
    "head_rate": Range(0.001),
    "muon_momentum": Range(0, 1, below=True),
    "rate_decay_epochs": Range(0.001),
}

_SETTINGS = {
    "devices": Range(1),
    "threads": Range(0),
    "log_steps": Range(1),
    "summary_steps": Range(0),
    "checkpoint_seconds": Range(0),
    "keep": Range(1),
}

_CLASSIC = Recipe(
    name="cifar10-classic",
    network=ClassicNetworkOptions(),
    augmentation=Augmentation(crop=24, brightness=63, contrast=(0.2, 1.8)),
    optimiser=OptimiserOptions(batch=128, weight_decay=0.004, average_decay=0.9999),
    schedule=Staircase(rate=0.1, rate_decay=0.1, rate_decay_epochs=350),
    steps=60_000,
)
# Muon, since it is right on 85.2 % of 10,000 held-out training images, gradient descent with the same work on 84.0 %.
# Copies of the unsure, since they brought 0.2 to 0.5 points in six trainings, for as much work as 0.1 of an epoch; they
# pay for 5.2 epochs instead of 5.6.
_FAST = Recipe(
    name="cifar10-fast",
    network=FastNetworkOptions(),
    augmentation=Augmentation(pad=2, alternate=True, standardise="set"),
    optimiser=OptimiserOptions(
        method="muon", batch=256, momentum=0.85, nesterov=True, weight_decay=0.0064, bias_rate=0.66, head_rate=8.4,
        label_smoothing=0.2, precision="auto",
    ),
    schedule=OneCycle(rate=0.08, warmup=0.01, rate_end=0.0),
    epochs=5.2,
    mirrored_test=True,
    shifted_test=1,
    unsure_lead=0.35,
)  # fmt: skip
_WIDE = FastNetworkOptions(widths=(64, 256, 256))
_LONG = dataclasses.replace(
    _FAST,
    name="cifar10-long",
    network=dataclasses.replace(_WIDE, directions=12),
    augmentation=dataclasses.replace(_FAST.augmentation, pad=4),
    epochs=24,
    unsure_lead=1.0,
)
# The values of airbench94_muon, worked out for what is another way round here. Its batch norms' 0.6 is the share that
# the old statistics keep; here, as in torch, the option is the share of the newest batch. Its loss is the sum over a
# batch of 2,000, which counts where the optimiser is plain descent: for a mean, with this head's initial weights, its
# rates of 0.053 for biases and 0.67 for the last layer are 442 and 7.3 times 0.24. Trained on 40,000 of the training
# images, they got 58.4 % of the others right after 60 steps on crops of 16×16, and rates that take the sum for a mean
# 55.9 %; with a narrow network (16, 64, 64), after 160 steps on whole images, 83.7 and 82.5 %. The whitening layer's
# bias learns at the other biases' rate, which falls to nothing in its three epochs.
_GPU_NETWORK = dataclasses.replace(
    _WIDE, directions=12, convolutions=2, residual=False, activation="gelu", batch_norm_momentum=0.4,
    whitening_bias_epochs=3,
)  # fmt: skip
_GPU = dataclasses.replace(
    _FAST,
    name="cifar10-gpu",
    network=dataclasses.replace(_GPU_NETWORK, whitening_bias_rate=442, whitening_bias_fall=True),
    optimiser=dataclasses.replace(
        _FAST.optimiser, batch=2000, weight_decay=0.017, bias_rate=442, head_rate=7.3, compiled=True
    ),
    schedule=OneCycle(rate=0.24, warmup=0.0, rate_end=0.0),
    epochs=8,
    unsure_lead=1.0,
)
# The values of airbench95 and of the older airbench96 (not the later one, which trains on what a small network finds
# hard). They descend without Muon. Their 10 and 9 are rates for 1,024 images, over what momentum makes of a gradient
# that stays the same, 1 + 1/0.15; so is the decay of a step, 0.0153 and 0.012. As a batch has 1,024 images, these are
# the rates for the mean. The source leaves out the 848 images of a pass that fill no batch: its 15 and 37 passes are
# 720 and 1,776 steps, as are 14.75 and 36.37 whole ones. Its 96 % takes PyTorch's usual share of a batch norm, 0.1.
_MOMENTUM_SUM = 1 + 1 / (1 - 0.85)
_GPU95 = dataclasses.replace(
    _GPU,
    name="cifar10-gpu95",
    network=dataclasses.replace(_GPU_NETWORK, widths=(128, 384, 384)),
    optimiser=OptimiserOptions(
        batch=1024, momentum=0.85, nesterov=True, weight_decay=0.0153 / 10, bias_rate=64, label_smoothing=0.2,
        lookahead_every=5, lookahead_decay=0.95**5, compiled=True, precision="auto",
    ),
    schedule=OneCycle(rate=10 / _MOMENTUM_SUM, warmup=0.23, rate_end=0.07),
    epochs=14.75,
)  # fmt: skip
_GPU96 = dataclasses.replace(
    _GPU95,
    name="cifar10-gpu96",
    network=dataclasses.replace(
        _GPU_NETWORK, widths=(128, 384, 512), convolutions=3, residual=True, activate_sum=True, batch_norm_momentum=0.1
    ),
    augmentation=dataclasses.replace(_GPU.augmentation, pad=4, cutout=12),
    optimiser=dataclasses.replace(_GPU95.optimiser, weight_decay=0.012 / 9),
    schedule=OneCycle(rate=9 / _MOMENTUM_SUM, warmup=0.1, rate_end=0.0),
    epochs=36.37,
)
_MLP = Recipe(
    name="mlp",
    network=MlpNetworkOptions(),
    augmentation=Augmentation(flip=False, standardise="none"),
    optimiser=OptimiserOptions(method="adam", batch=500),
    schedule=Staircase(rate=0.001),
    data="mnist",
    steps=1000,
)

RECIPES = {recipe.name: recipe for recipe in (_CLASSIC, _FAST, _LONG, _GPU, _GPU95, _GPU96, _MLP)}
"""All recipes by name."""
