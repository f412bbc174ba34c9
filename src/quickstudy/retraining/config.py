"""What `retrain` may be told is defined here, once: `RetrainConfig`, and in it `Method`, how fine-tuning is done.

From `RetrainConfig` follow the options of `quickstudy retrain`, the arguments of `quickstudy.retrain`, the axes of a
sweep, and the record in the model. Nothing heavy is imported, as the command line reads it before anything is done. No
default of `Method` depends on the backbone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from quickstudy.backbones.cuts import FEATURES
from quickstudy.errors import OptionError
from quickstudy.images.distortions import Distortions
from quickstudy.learning.schedules import OneCycle
from quickstudy.options import (
    Field,
    Option,
    fields_of,
    options_of,
    parse_bytes,
    parse_seconds,
    require_in_range,
    with_options,
)

VIEWS = 1
"""Number of distorted views an image, besides the plain one, where something is fine-tuned and nothing is said."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """Decides, with the network and the images, what fine-tuning gives."""

    epochs: Annotated[int, Option("Fine-tune for so many passes over the training images at most.", least=1)] = 12
    batch: int = 32
    """Number of images a step, at least 1."""
    schedule: OneCycle = field(default_factory=lambda: OneCycle(rate=1e-3, rate_start=0.04, rate_end=0.0, warmup=0.2))
    """Learning rate of the last layer before the head, as a function of the step."""
    depth_decay: float = 0.7
    """Share of that learning rate at which the first layer after the cut learns, above 0 and at most 1.

    The rate rises geometrically from layer to layer; 1 lets all layers learn at one rate.
    """
    head_rate: float = 1.0
    """Learning rate of the head, as a multiple of that of the layer before it; 0 keeps the head as it is."""
    weight_decay: float = 0.05
    """Share of each weight that a step of learning rate 1 takes away; 0 takes nothing."""
    label_smoothing: float = 0.1
    """Share of each label that is spread over all classes, from 0 (none) to 1 (the labels say nothing)."""
    mixup: float = 0.0
    """Parameter of the beta distribution by which pairs of activations are mixed (Verma et al., 2019,
    arXiv:1806.05236); 0 mixes nothing."""
    average_decay: float = 0.99
    """Decay a step of the moving averages of all weights, which are evaluated and kept, below 1; 0 averages nothing."""
    patience: int = 6
    """Number of epochs in a row, at least 1, with fewer validation images right than at the start that end training."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Kind of numbers that layers multiply; auto takes bfloat16 where the machine has instructions for it."""
    seed: int = 0
    """Number, at least 0, that all random numbers follow from."""

    def __post_init__(self) -> None:
        values = options_of(self)
        require_in_range(values, _RANGES)
        for name in ("rate", "depth_decay"):
            if not 0 < (value := values[name]) < math.inf:
                raise OptionError(f"{name} is {value:g}; expected a positive number, such as {_EXAMPLES[name]:g}")


_RANGES = {
    "epochs": (1, math.inf),
    "batch": (1, math.inf),
    "rate_start": (0, 1),
    "rate_end": (0, 1),
    "warmup": (0, 1),
    "depth_decay": (0, 1),
    "head_rate": (0, math.inf),
    "weight_decay": (0, math.inf),
    "label_smoothing": (0, 1),
    "mixup": (0, math.inf),
    "average_decay": (0, 0.999999),
    "patience": (1, math.inf),
    "seed": (0, math.inf),
}
_EXAMPLES = {"rate": 1e-3, "depth_decay": 0.7}


Levels = Literal["auto", "last", "all"]
"""What a linear head may see: the last features, all levels, or whichever cross-validates better."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A backbone and what the head sees of it, by one name."""

    backbone: str
    """Name of the pretrained network, or of several, joined by `+`."""
    levels: Levels
    """What the head sees."""


PRESETS = {
    "fast": Preset(backbone="efficientnet_lite0", levels="last"),
    "good": Preset(backbone="efficientnet_lite0", levels="auto"),
    "best": Preset(backbone="efficientnet_lite0+efficientnet_lite2", levels="auto"),
}
"""The presets, by name."""


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """Holds everything that `retrain` may be told about a training, besides its images and where it is written."""

    preset: Annotated[
        Literal["fast", "good", "best"],
        Option(
            "Take a small network's last features, fast; those or all that its blocks know, whichever cross-validates "
            "better, good; or the same of two networks side by side, best."
        ),
    ] = "good"
    backbone: Annotated[
        str | None,
        Option(
            "Take this pretrained network, or several side by side, such as a+b; backbone list shows what there is "
            "[default: the preset's]."
        ),
    ] = None
    levels: Annotated[
        Levels | None,
        Option(
            "Let the head see the last features, all levels, or whichever cross-validates better, auto [default: the "
            "preset's]."
        ),
    ] = None
    cut: Annotated[
        str, Option("Freeze the network up to here and fine-tune what follows; backbone show lists the cuts.")
    ] = FEATURES
    progressive: Annotated[
        bool,
        Option(
            "Fine-tune from a late cut, then from earlier ones, --cut at the earliest, while it helps.",
            flag="--unfreeze",
            word="progressive",
        ),
    ] = False
    budget_seconds: Annotated[
        float | None,
        Option(
            "Choose the cut, views and epochs that fit this time, such as 90s or 3m, and fine-tune.",
            flag="--budget",
            metavar="TIME",
            read=parse_seconds,
        ),
    ] = None
    disk_bytes: Annotated[
        float | None,
        Option(
            "With --budget, let the store grow by so much at most, such as 2GB.",
            flag="--disk",
            metavar="SIZE",
            read=parse_bytes,
        ),
    ] = None
    method: Method = field(default_factory=Method)
    """Values of fine-tuning; they do nothing where only the head is trained."""
    views: Annotated[
        int | None,
        Option(
            "Train on so many distorted views an image besides the plain one "
            f"[default: 0; {VIEWS} where something is fine-tuned].",
            least=0,
        ),
    ] = None
    distortions: Distortions = field(default_factory=Distortions)
    """Distortions by which views differ from the plain image; they do nothing where there are no views."""
    class_weight: Annotated[
        Literal["balanced"] | None, Option("Weigh all classes the same, however many images they have.")
    ] = None
    l2: Annotated[
        float | None, Option("Set the head's regularisation strength [default: chosen by cross-validation].")
    ] = None
    dtype: Annotated[Literal["float16", "float32"], Option("Keep bottlenecks in the store as these numbers.")] = (
        "float16"
    )
    bits: Annotated[
        int | None,
        Option(
            "Take so many bits of levels that have 16 as significant, 8 to 16 [default: as many as the images together "
            "use].",
            least=8,
        ),
    ] = None
    engine: Annotated[
        str,
        Option(
            "Compute bottlenecks by this: openvino is faster where the processor multiplies bfloat16; cuda is a GPU, "
            "on which is fine-tuned, too.",
            metavar="onnxruntime|openvino|cuda",
        ),
    ] = "onnxruntime"
    refuse: Annotated[
        float,
        Option(
            "Take so many percent of images of the own classes for none of these, the strangest, 0 to 50.",
            percent=True,
        ),
    ] = 0.02
    strict: Annotated[bool, Option("Take a file that cannot be used for an error.", recorded=False)] = False
    keep_thumbnails: Annotated[
        bool, Option("Write thumbnails of the training images beside the model, for serve to show.", recorded=False)
    ] = False
    roles_of: Annotated[
        Path | None,
        Option(
            "Let the images of this model keep their roles, so that its test images are tested on again [default: the "
            "model that is written over].",
            recorded=False,
        ),
    ] = None
    keep_roles: Annotated[
        bool,
        Option("Write into the model which images it was made from.", flag="--roles/--no-roles", recorded=False),
    ] = True

    def __post_init__(self) -> None:
        if self.views is not None and self.views < 0:
            raise OptionError(f"views is {self.views}; expected 0 or more")
        if self.bits is not None and not 8 <= self.bits <= 16:
            raise OptionError(f"bits is {self.bits}; expected 8 to 16")
        if not 0 <= self.refuse <= 0.5:
            raise OptionError(f"refuse is {100 * self.refuse:g} %; expected 0 to 50 %")
        for name in ("budget_seconds", "disk_bytes"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise OptionError(f"{name} is {value:g}; expected a positive number")

    @staticmethod
    def told(options: Mapping[str, Any], config: RetrainConfig | None = None) -> RetrainConfig:
        """Make the configuration with these options, by name; None leaves an option as it is.

        Raises:
            OptionError: there is no such option, it cannot have its value, or it would do nothing beside the others.
        """
        given = {name: value for name, value in options.items() if value is not None}
        config = (config or RetrainConfig())._with(given)
        for changed in config.fields(RetrainConfig()):
            given.setdefault(changed.name, changed.value)
        for name, why in config.idle().items():
            if name in given:
                raise OptionError(why)
        return config

    @staticmethod
    def recalled(values: Mapping[str, Any]) -> RetrainConfig:
        """Make the configuration again of which `recorded` gave these values.

        Raises:
            OptionError: the values are those of another version.
        """
        return RetrainConfig()._with(values)

    def _with(self, options: Mapping[str, Any]) -> RetrainConfig:
        return with_options(self, options, owner="A retraining")

    @property
    def network(self) -> str:
        """Name of the pretrained network, or of those side by side: the backbone, or else the preset's."""
        return PRESETS[self.preset].backbone if self.backbone is None else self.backbone

    @property
    def seen(self) -> Levels:
        """What the head sees: the levels that were named, or else the preset's; fine-tuning goes by the last features.

        It trains what makes the last features, and what earlier blocks know was computed before the cut.
        """
        return "last" if self.tunes else self.levels or PRESETS[self.preset].levels

    @property
    def tunes(self) -> bool:
        """Whether anything but the head is trained."""
        return self.budget_seconds is not None or self.progressive or self.cut != FEATURES

    @property
    def distorted(self) -> int:
        """Number of distorted views an image; where nothing is said, 1 if something is fine-tuned, else 0."""
        return (VIEWS if self.tunes else 0) if self.views is None else self.views

    def fields(self, other: RetrainConfig | None = None) -> list[Field]:
        """List all options, or those that differ from another configuration's."""
        known = options_of(other) if other else {}
        return [one for one in fields_of(self) if other is None or one.value != known[one.name]]

    def idle(self) -> dict[str, str]:
        """Find the options that would do nothing beside the others, and for each what to say about it."""
        why = {}
        for one in fields_of(self):
            if one.name == "preset" and self.backbone is not None and (self.levels is not None or self.tunes):
                why[one.name] = f"{one.flag} chooses the backbone and the levels, and both are named; leave one out"
            elif one.name == "levels" and self.tunes:
                why[one.name] = (
                    f"{one.flag} is for the linear head, and fine-tuning goes by the last features; leave it out"
                )
            elif one.part == "method" and not self.tunes:
                why[one.name] = f"{one.flag} is for fine-tuning; add --cut, or leave it out"
            elif one.part == "distortions" and not self.distorted:
                why[one.name] = f"{one.flag} distorts views, and there are none; add --views or --cut, or leave it out"
            elif one.name == "disk_bytes" and self.budget_seconds is None:
                why[one.name] = f"{one.flag} goes with --budget; name a time, too, or leave it out"
            elif one.name in ("cut", "progressive", "views", "epochs") and self.budget_seconds is not None:
                why[one.name] = f"--budget chooses cut, views and epochs itself; leave out {one.flag}, or --budget"
        return why

    def planned(self, **chosen: Any) -> RetrainConfig:
        """Put what a planner chose in the place of the budget: `cut`, `views` and `epochs`."""
        return replace(self, budget_seconds=None, disk_bytes=None)._with(chosen)

    def acting(self) -> RetrainConfig:
        """Give options that do nothing beside the others their defaults, so that equal trainings compare equal."""
        plain = options_of(RetrainConfig())
        return self._with({name: plain[name] for name in self.idle()})

    def recorded(self) -> dict[str, Any]:
        """Give what the model depends on, by option name, as JSON values."""
        return {one.name: one.value for one in fields_of(self) if one.option is None or one.option.recorded}

    def command_line(self) -> list[str]:
        """Give what to write after `quickstudy retrain IMAGES` for this configuration."""
        return [word for one in self.fields(RetrainConfig()) for word in one.words()]
