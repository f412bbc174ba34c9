"""What `retrain` may be told is defined here, once: `RetrainConfig`, and in it `Method`, how fine-tuning is done.

From `RetrainConfig` follow the options of `quickstudy retrain`, the arguments of `quickstudy.retrain`, the axes of a
sweep, and the record in the model. Nothing heavy is imported, as the command line reads it before anything is done. No
default of `Method` depends on the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from quickstudy.backbones.cuts import FEATURES
from quickstudy.errors import OptionError
from quickstudy.images.distortions import Distortions
from quickstudy.images.drawn_roles import TEST_SHARE
from quickstudy.images.fits import Fit
from quickstudy.images.manifests import Labelling
from quickstudy.learning.schedules import OneCycle
from quickstudy.options import (
    Field,
    Option,
    Range,
    fields_of,
    options_of,
    parse_bytes,
    parse_seconds,
    ranges_of,
    require_in_range,
    with_options,
)

VIEWS = 1
"""Number of distorted views an image, besides the plain one, where something is fine-tuned and nothing is said."""
_LEAST_PRECISION = 0.01  # 0.9 where percent are expected means 90


@dataclass(frozen=True, kw_only=True)
class Method:
    """Decides, with the network and the images, what fine-tuning gives."""

    epochs: Annotated[
        int, Option("Fine-tune for at most this many passes over the training images.", range=Range(1))
    ] = 12
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
        require_in_range(options_of(self), ranges_of(self) | _RANGES)


_RANGES = {
    "batch": Range(1),
    "rate_start": Range(0, 1),
    "rate_end": Range(0, 1),
    "warmup": Range(0, 1),
    "rate": Range(0, above=True),
    "depth_decay": Range(0, 1, above=True),
    "head_rate": Range(0),
    "weight_decay": Range(0),
    "label_smoothing": Range(0, 1, below=True),
    "mixup": Range(0),
    "average_decay": Range(0, 1, below=True),
    "patience": Range(1),
    "seed": Range(0),
}


AUTO = "auto"
"""The word by which cross-validation is asked to choose."""
RACE_SECONDS = 60.0
"""Seconds within which backbones are compared where nothing else is said."""

Levels = Literal["auto", "last", "all"]
"""What a linear head may see: the last features, all levels, or whichever cross-validates better."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A backbone and what the head sees of it, by one name."""

    backbone: str
    """Name of the pretrained network, or of several, joined by `+`."""
    levels: Levels
    """What the head sees."""


_FOR_ONE_CLASS = {
    **dict.fromkeys(
        ("cut", "progressive", "budget_seconds"),
        "trains a network for one class an image, while several labels have linear heads of their own",
    ),
    "prior": "asks which of the names fits best, while several labels may fit an image",
    "class_weight": "weighs classes against each other, while several labels are learned each on its own",
    "refuse": "is about images of none of the classes, while an image may well have none of several labels",
}
"""The options that mean nothing where an image may have several labels, and why."""
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
            "Choose a setting by name. fast: the last features of a small network; good: with what its earlier blocks "
            "know, if cross-validation finds that better; best: the same with two networks side by side."
        ),
    ] = "good"
    several: Annotated[
        bool,
        Option(
            "Let images have any number of labels: one logistic head a label, with a threshold of its own, instead of "
            "one class an image.",
            flag="--several",
        ),
    ] = False
    separator: Annotated[
        str | None,
        Option(
            "With --several, split a manifest's labels at this [default: bar, semicolon or comma].",
            metavar="TEXT",
        ),
    ] = None
    least_precision: Annotated[
        float | None,
        Option(
            "With --several, give a label from the lowest probability on at which this many percent of what is given "
            "are right [default: the best F1].",
            percent=True,
            metavar="PERCENT",
        ),
    ] = None
    none: Annotated[
        str | None,
        Option(
            "Take images with this label, such as other, for examples of none of the classes, not for a class.",
            metavar="NAME",
        ),
    ] = None
    backbone: Annotated[
        str | None,
        Option(
            "Use this pretrained network, or two or three side by side, joined by +, or whichever cross-validates best "
            "on some of the images, auto; 'quickstudy backbone list' shows them [default: the preset's].",
            auto=True,
        ),
    ] = None
    race_seconds: Annotated[
        float,
        Option(
            "With --backbone auto, compare networks for so long, such as 90s or 3m.",
            flag="--race",
            metavar="TIME",
            read=parse_seconds,
            range=Range(0, above=True),
        ),
    ] = RACE_SECONDS
    fit: Annotated[
        Literal["crop", "pad", "squash", "tiles", "tiles2", "tiles3", "auto"] | None,
        Option(
            "Of images that are not square take the centred square, crop; all, with margins, pad, or squeezed, squash; "
            "two or three squares, as many passes, tiles; or whichever cross-validates better on some of them, auto "
            "[default: as the network was trained, mostly crop]."
        ),
    ] = None
    levels: Annotated[
        Levels | None,
        Option(
            "Choose what the head sees. last: the last features; all: also what earlier blocks know; auto: whichever "
            "cross-validates better [default: the preset's]."
        ),
    ] = None
    prior: Annotated[
        Literal["none", "names"],
        Option(
            "Mix into the head what the names of the classes say, if the network has a tower for text, as CLIP and "
            "SigLIP have, as far as cross-validation finds that better; it helps where images are few."
        ),
    ] = "none"
    cut: Annotated[
        str, Option("Freeze the network up to here and fine-tune the rest; 'quickstudy backbone show' lists the cuts.")
    ] = FEATURES
    progressive: Annotated[
        bool,
        Option(
            "Fine-tune from a late cut, then from earlier ones, down to --cut, for as long as it helps.",
            flag="--unfreeze",
            word="progressive",
        ),
    ] = False
    budget_seconds: Annotated[
        float | None,
        Option(
            "Fine-tune within this time, such as 90s or 3m; the cut, views and epochs are chosen to fit.",
            flag="--budget",
            metavar="TIME",
            read=parse_seconds,
            range=Range(0, above=True),
        ),
    ] = None
    disk_bytes: Annotated[
        float | None,
        Option(
            "With --budget: let the store grow by at most this much, such as 2GB.",
            flag="--disk",
            metavar="SIZE",
            read=parse_bytes,
            range=Range(0, above=True),
        ),
    ] = None
    method: Method = field(default_factory=Method)
    """Values of fine-tuning; they do nothing where only the head is trained."""
    views: Annotated[
        int | None,
        Option(
            "Train on this many distorted views of each image, besides the plain one "
            f"[default: 0; {VIEWS} when fine-tuning].",
            range=Range(0),
        ),
    ] = None
    distortions: Distortions = field(default_factory=Distortions)
    """Distortions by which views differ from the plain image; they do nothing where there are no views."""
    class_weight: Annotated[
        Literal["balanced"] | None, Option("Give all classes the same weight, however many images they have.")
    ] = None
    l2: Annotated[
        float | None,
        Option(
            "Set the head's regularisation strength [default: chosen by cross-validation].",
            range=Range(0, above=True),
        ),
    ] = None
    dtype: Annotated[Literal["float16", "float32"], Option("Store bottlenecks in this number format.")] = "float16"
    bits: Annotated[
        int | None,
        Option(
            "Use this many bits of images with 16 bits a channel, 8 to 16 [default: as many as the images together "
            "use].",
            range=Range(8, 16),
        ),
    ] = None
    engine: Annotated[
        str,
        Option(
            "Compute bottlenecks with this engine: openvino is faster on processors with bfloat16 instructions, "
            "onnxruntime-int8 with transformers on those with 8-bit ones; cuda uses a GPU, for fine-tuning too.",
            metavar="onnxruntime|onnxruntime-int8|openvino|cuda",
        ),
    ] = "onnxruntime"
    refuse: Annotated[
        float | None,
        Option(
            "Take this many percent of images of the known classes, the strangest, for none of these, 0 to 50 "
            "[default: 2; with --none, as many as tell its examples apart best].",
            percent=True,
            metavar="PERCENT",
        ),
    ] = None
    strict: Annotated[bool, Option("Stop with an error if a file or a class cannot be used.", recorded=False)] = False
    keep_thumbnails: Annotated[
        bool, Option("Write thumbnails of the training images beside the model, for serve to show.", recorded=False)
    ] = False
    test_share: Annotated[
        float | None,
        Option(
            "Hold out this many percent of each class for the test, 1 to 50, where images come without splits; 0 "
            "learns from all, and cross-validation alone tells how good the model is "
            f"[default: {100 * TEST_SHARE:g}].",
            percent=True,
            metavar="PERCENT",
        ),
    ] = None
    roles_of: Annotated[
        Path | None,
        Option(
            "Give images the roles that they have in this model, so that the same ones are tested on again [default: "
            "the model that is overwritten].",
            recorded=False,
        ),
    ] = None
    keep_roles: Annotated[
        bool,
        Option("Record in the model which images it was made from.", flag="--roles/--no-roles", recorded=False),
    ] = True

    def __post_init__(self) -> None:
        require_in_range({one.name: one.value for one in fields_of(self) if not one.part}, ranges_of(self))
        if self.refuse is not None and not 0 <= self.refuse <= 0.5:
            raise OptionError(f"--refuse is {100 * self.refuse:g} %; expected 0 to 50 %")
        if self.test_share is not None and self.test_share != 0 and not 0.01 <= self.test_share <= 0.5:
            raise OptionError(f"--test-share is {100 * self.test_share:g} %; expected 0, or 1 to 50 %, such as 20")
        if self.least_precision is not None and not _LEAST_PRECISION <= self.least_precision < 1:
            raise OptionError(
                f"--least-precision is {100 * self.least_precision:g} %; expected 1 to below 100 %, such as 90"
            )
        if self.fit is not None and self.fit.startswith("tiles") and not self.may_tile:
            raise OptionError(
                f"--fit {self.fit} averages the features of several squares, so nothing before them can be fine-tuned "
                "or distorted; use crop, pad or squash, or leave out --cut, --budget, --unfreeze and --views"
            )
        if self.fit == AUTO and self.budget_seconds is not None:
            raise OptionError("--fit auto takes time that --budget does not know of; name a fit, or a cut and epochs")
        if self.chooses_backbone and self.prior == "names":
            raise OptionError(
                "--prior names needs a network that reads names, and --backbone auto may choose one that does not; "
                "name the network, such as hf:Xenova/clip-vit-base-patch32"
            )
        if self.chooses_backbone and self.tunes:
            raise OptionError(
                "--backbone auto compares networks by the linear head, and cuts differ from one to the other; name a "
                "backbone to fine-tune it"
            )

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
    def labelling(self) -> Labelling:
        """How the labels of the images are to be read."""
        return Labelling(several=self.several, separator=self.separator, none=self.none, way_to_several="add --several")

    @property
    def chooses_backbone(self) -> bool:
        """Whether cross-validation is to choose the pretrained network."""
        return self.backbone == AUTO

    @property
    def named_fit(self) -> Fit | None:
        """The fit that was named; None where the network has its own, or the images are to decide."""
        return None if self.chooses_fit else cast("Fit | None", self.fit)

    @property
    def chooses_fit(self) -> bool:
        """Whether the images are to decide the fit, by their shapes or by cross-validation."""
        return self.fit in (AUTO, "tiles")

    @property
    def may_tile(self) -> bool:
        """Whether images may be taken apart into squares: features are averaged, so that nothing before them learns."""
        return not (self.tunes or self.distorted)

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
            if self.several and one.name in _FOR_ONE_CLASS:
                why[one.name] = f"{one.flag} {_FOR_ONE_CLASS[one.name]}; leave out {one.flag}, or --several"
            elif one.name in ("separator", "least_precision") and not self.several:
                why[one.name] = f"{one.flag} goes with --several; add it, or leave out {one.flag}"
            elif one.name == "preset" and self.backbone is not None and (self.levels is not None or self.tunes):
                why[one.name] = f"{one.flag} chooses the backbone and the levels, but you name both; leave one out"
            elif one.name == "levels" and self.tunes:
                why[one.name] = (
                    f"{one.flag} is for the linear head, but fine-tuning uses the last features only; leave it out"
                )
            elif one.name == "prior" and self.tunes:
                why[one.name] = (
                    f"{one.flag} is for the linear head; leave it out, or what fine-tunes: --cut or --budget"
                )
            elif one.part == "method" and not self.tunes:
                why[one.name] = f"{one.flag} is for fine-tuning; add --cut, or leave it out"
            elif one.part == "distortions" and not self.distorted:
                why[one.name] = f"{one.flag} distorts views, but there are none; add --views or --cut, or leave it out"
            elif one.name == "test_share" and self.roles_of is not None:
                why[one.name] = f"--roles-of says which images are tested on; leave out {one.flag}, or --roles-of"
            elif one.name == "race_seconds" and not self.chooses_backbone:
                why[one.name] = f"{one.flag} goes with --backbone auto; add it, or leave out {one.flag}"
            elif one.name == "disk_bytes" and self.budget_seconds is None:
                why[one.name] = f"{one.flag} only works with --budget; add a time, such as --budget 3m, or leave it out"
            elif one.name in ("cut", "progressive", "views", "epochs") and self.budget_seconds is not None:
                why[one.name] = f"--budget chooses the cut, views and epochs itself; leave out {one.flag} or --budget"
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
