"""A trial of a sweep is one of two tasks: a training by any recipe, or a retraining; both have options by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch

from quickstudy.backbones.engines.named import engine_for
from quickstudy.backbones.loading import load_backbone
from quickstudy.errors import OptionError, QuickstudyError
from quickstudy.files import cache_folder, write_json_atomically
from quickstudy.images.fits import tiles_in
from quickstudy.learning.answers import labels_given
from quickstudy.options import options_of, with_options
from quickstudy.retraining.config import RetrainConfig
from quickstudy.retraining.record import load_record
from quickstudy.retraining.result import RetrainResult
from quickstudy.retraining.retrain import retrain
from quickstudy.scratch.data import TrainingData, load_training_data
from quickstudy.scratch.folder import RESULT, RunFolder
from quickstudy.scratch.parallel import Replica, choose_device, joined
from quickstudy.scratch.recipe import RECIPES, Recipe, RunSettings
from quickstudy.scratch.summaries import Reporter, RunBegun, RunEvaluation, RunProgress
from quickstudy.scratch.together import train_together, why_apart
from quickstudy.scratch.train import check_recipe, train_recipe

RETRAIN = "retrain"
JUDGED = "judged.json"
"""Name of the file that says of which images, unseen in training, a retraining was right."""
JUDGED_DIGITS = 16
"""Number of hexadecimal digits of an image's hash in it."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The conditions under which trials are carried out; nothing here changes what they give."""

    workers: int = 1
    """Number of trials at a time on one machine, which share its cores evenly."""
    device: str = "auto"
    """Device to train on: auto, cpu or cuda."""
    data_folder: Path | None = None
    """Folder of named data sets; None takes the usual one."""
    cache: Path | None = None
    """Folder of bottlenecks and backbones, for retraining; None takes the usual one."""


@dataclass(frozen=True, kw_only=True)
class TrialProgress:
    """Tells how far a trial is."""

    step: int
    """Number of steps done."""
    steps: int
    """Number of steps in all."""
    accuracy: float | None = None
    """Accuracy in the newest evaluation, 0 to 1; None where none has been made."""


TrialReporter = Callable[[TrialProgress], None]


class Task(Protocol):
    """What a trial carries out."""

    @property
    def name(self) -> str:
        """Name of the recipe."""

    @property
    def random(self) -> bool:
        """Whether another seed gives another result."""

    def options(self) -> dict[str, Any]:
        """Give the options by name; together with the task's name they decide what the trial gives."""

    def check(self, conditions: Conditions) -> None:
        """Raise a QuickstudyError where the trial could not even begin."""

    def work(self, conditions: Conditions) -> float:
        """Estimate how much there is to do, comparably within a study, to begin with the longest trials."""

    def why_apart(self) -> str:
        """Say why the trial cannot be carried out together with others in one process; empty where it can."""

    def run(self, folder: Path, conditions: Conditions, report: TrialReporter) -> None:
        """Carry out the trial in a folder, which has `result.json` when it has ended."""


@dataclass(frozen=True)
class Training:
    """A training from scratch, by a recipe."""

    recipe: Recipe
    """Recipe with all its options."""

    @property
    def name(self) -> str:
        """Name of the recipe."""
        return self.recipe.name

    @property
    def random(self) -> bool:
        """Whether another seed gives another result, which it always does."""
        return True

    def options(self) -> dict[str, Any]:
        """Give the recipe's options by name."""
        return self.recipe.options()

    def check(self, conditions: Conditions) -> None:
        """Raise a QuickstudyError where the data is not there, or does not fit the network."""
        self.recipe.check()
        check_recipe(self.recipe, self._data(conditions), Replica())

    def work(self, conditions: Conditions) -> float:
        """Estimate the work as parameters times images: what dense layers take, and quickly counted."""
        recipe, data = self.recipe, self._data(conditions)
        with torch.device("meta"):
            network = recipe.network.build(
                size=recipe.augmentation.output_side(data.side), channels=data.channels, classes=len(data.classes)
            )
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return float(parameters * recipe.optimiser.batch * recipe.total_steps(len(data.train)))

    def why_apart(self) -> str:
        """Say why the run cannot be trained together with others; empty where it can."""
        return why_apart(self.recipe)

    @property
    def images(self) -> tuple[str, int, float]:
        """What tells the images of one training from those of another: those with the same share them."""
        return self.recipe.data, self.recipe.image_size, self.recipe.validation

    def run(self, folder: Path, conditions: Conditions, report: TrialReporter) -> None:
        """Train, or go on with a training."""
        replica = _replica(conditions)
        # No threads for the input: each worker has its cores busy with its own network.
        settings = RunSettings(threads=0 if conditions.workers > 1 else 2, graph=False)
        data, place = self._data(conditions), RunFolder(folder, keep=1)
        with joined(replica):
            train_recipe(self.recipe, data, place, replica=replica, settings=settings, report=_reporter(report))

    def _data(self, conditions: Conditions) -> TrainingData:
        recipe = self.recipe
        return _load(recipe.data, recipe.image_size, recipe.validation, conditions.data_folder)


def run_together(
    tasks: Sequence[Training],
    folders: Sequence[Path],
    conditions: Conditions,
    reports: Sequence[TrialReporter],
    ended: Callable[[int, QuickstudyError | None], None],
) -> None:
    """Carry out trainings on the same images at the same time; `ended` is told the number of each, and its failure."""
    replica = _replica(conditions)
    with joined(replica):
        train_together(
            [task.recipe for task in tasks],
            tasks[0]._data(conditions),
            [RunFolder(folder, keep=1) for folder in folders],
            replica=replica,
            settings=RunSettings(threads=0, graph=False),
            reports=[_reporter(report) for report in reports],
            ended=ended,
        )


def _replica(conditions: Conditions) -> Replica:
    return Replica(device_type=choose_device(conditions.device), local_world=conditions.workers)


def _reporter(tell: TrialReporter) -> Reporter:
    steps, accuracy = 0, None

    def report(news: RunBegun | RunProgress | RunEvaluation) -> None:
        nonlocal steps, accuracy
        if isinstance(news, RunBegun):
            steps = news.steps
        elif isinstance(news, RunEvaluation):
            accuracy = news.score.accuracy
        tell(TrialProgress(step=news.step, steps=steps, accuracy=accuracy))

    return report


@lru_cache(maxsize=2)
def _load(source: str, image_size: int, validation: float, folder: Path | None) -> TrainingData:
    return load_training_data(source, image_size=image_size, validation=validation, folder=folder)


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """A retraining of a model on images, with the configuration of `quickstudy.retrain`.

    Where a grid has a cut beside none, options that act only with a cut have their defaults in the trials without one.
    """

    name: str = RETRAIN
    """Name of the task, always `retrain`."""
    data: str = ""
    """Path of the images: class folders, split folders or a manifest."""
    config: RetrainConfig = field(default_factory=RetrainConfig)
    """Configuration that retrain is told."""

    @property
    def random(self) -> bool:
        """Whether another seed gives another result, as it does where something is fine-tuned.

        The head's optimum has no seed.
        """
        return self.config.tunes

    def options(self) -> dict[str, Any]:
        """Give all options by name, as JSON values."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in options_of(replace(self, config=self.config.acting())).items()
        }

    def check(self, conditions: Conditions) -> None:
        """Raise a QuickstudyError where a value cannot be used, the backbone cannot be had or has no such cut."""
        if not self.data:
            raise OptionError("A retraining needs images; name them with --set data=photos/")
        if not Path(self.data).exists():
            raise OptionError(f"data is '{self.data}'; there is no such file or folder")
        if conditions.device not in ("auto", "cpu"):
            raise OptionError(
                "--device is for training from scratch; leave it out, and choose the engine of a retraining with "
                f"--set engine={conditions.device}"
            )
        engine_for(self.config.engine)
        if not self.config.chooses_backbone:
            load_backbone(self.config.network, cache_folder(conditions.cache)).at(self.config.cut)

    def work(self, conditions: Conditions) -> float:
        """Estimate the work as the number of passes through the backbone for each image."""
        del conditions
        return tiles_in(self.config.named_fit or "crop") * (1.0 + self.config.distorted)

    def why_apart(self) -> str:
        """Say why: a retraining has the processor for itself."""
        return "it is a retraining"

    def run(self, folder: Path, conditions: Conditions, report: TrialReporter) -> None:
        """Retrain; the model lies in the folder, too."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomically(folder / "config.json", {"recipe": self.name, "options": self.options()})
        report(TrialProgress(step=0, steps=1))
        result = retrain(self.data, folder / "model.onnx", self.config.acting(), cache=conditions.cache)
        judged = _judged(result, cache_folder(conditions.cache))
        if judged:
            write_json_atomically(folder / JUDGED, judged)
        write_json_atomically(folder / RESULT, result.to_dict())
        right = judged.get("right", "")
        report(TrialProgress(step=1, steps=1, accuracy=right.count("1") / len(right) if right else None))


def _judged(result: RetrainResult, cache: Path) -> dict[str, str]:
    """Say of which images unseen in training the model was right, by content: those that may choose between models."""
    record = load_record(cache, result.model)
    parts = [part for part in record.unseen if part.by != "test"] if record else []
    if not parts:
        return {}
    found = labels_given(result.answer, parts[-1].logits, result.classes)
    said = dict(zip(parts[-1].digests, found, strict=True))
    labels, digests = result.census.names, sorted(said)
    return {
        "by": parts[-1].by,
        "digests": "".join(digest.hex()[:JUDGED_DIGITS] for digest in digests),
        "right": "".join(str(int(said[digest] == labels[digest])) for digest in digests),
    }


def task_named(name: str, options: Mapping[str, Any]) -> Task:
    """Make the task of this name with these options.

    Raises:
        OptionError: there is no such task or option, or a value cannot be used.
    """
    if name == RETRAIN:
        return with_options(Retraining(), options, owner=f"The recipe '{RETRAIN}'")
    if name not in RECIPES:
        raise OptionError(f"There is no recipe '{name}'; there are: {', '.join((*RECIPES, RETRAIN))}")
    return Training(RECIPES[name].with_options(options))
