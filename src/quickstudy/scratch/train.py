"""The training loop: one for all recipes, top to bottom as the algorithm.

Train a recipe in a folder: on one device or several, from the start or from where an earlier process stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from quickstudy.errors import OptionError, RunError
from quickstudy.images.pixels import PixelSet
from quickstudy.learning.checkpoints import Interrupts
from quickstudy.learning.scores import Scores
from quickstudy.scratch.data import TrainingData, load_training_data
from quickstudy.scratch.evaluation import evaluate_state, undistorted
from quickstudy.scratch.folder import RunFolder
from quickstudy.scratch.input import Pipeline, evaluation_batches
from quickstudy.scratch.layers import cost_of
from quickstudy.scratch.parallel import (
    Replica,
    agree_on_step,
    choose_device,
    joined,
    run_replicas,
    said_by_first,
    torchrun_replica,
)
from quickstudy.scratch.recipe import Recipe
from quickstudy.scratch.settings import Begun, Report, RunResult, Settings
from quickstudy.scratch.state import TrainingState
from quickstudy.scratch.watch import Watch

_PREPARING_IMAGES = 2000
_KEPT_VALUES = 64_000_000  # 256 MB in float32


def fit(
    recipe: Recipe,
    data: TrainingData,
    folder: RunFolder,
    *,
    replica: Replica | None = None,
    settings: Settings | None = None,
    report: Report | None = None,
) -> RunResult | None:
    """Train on data that is in memory; `train` loads it first. All replicas of a run call this together.

    Returns:
        What it came to; None in replicas other than the first.

    Raises:
        OptionError: an option cannot be used with these images.
        RunError: the folder is in use, holds another run, or cannot be written.
        TrainingError: the loss is not a number any more.
    """
    replica, settings = replica or Replica(), settings or Settings()
    check_recipe(recipe, data, replica)
    if not replica.is_first and folder.result() is not None:
        return None
    try:
        with ExitStack() as stack:
            if replica.is_first:
                stack.enter_context(folder.locked())
                folder.begin(recipe, data.facts)
                if (finished := folder.result()) is not None:
                    return RunResult.from_dict(folder.path, finished)
            return _Training(recipe, data, folder, replica, settings, report).run()
    except BrokenPipeError:  # who read the reports has gone
        raise
    except OSError as error:
        raise RunError(
            f"Cannot write to '{folder.path}': {error.strerror or error}. Its checkpoints are safe; "
            "free some space and start the same command again to go on"
        ) from error


class _Training:
    """What the steps share; `run` is the algorithm."""

    def __init__(
        self,
        recipe: Recipe,
        data: TrainingData,
        folder: RunFolder,
        replica: Replica,
        settings: Settings,
        report: Report | None,
    ) -> None:
        self.started = time.perf_counter()
        self.recipe, self.data, self.folder, self.settings = recipe, data, folder, settings
        self.replica, self.device = replica, replica.device
        self.report = report if replica.is_first else None
        self.steps = recipe.total_steps(len(data.train))
        self.evaluated: tuple[int, PixelSet, Scores] | None = None
        """The newest evaluation: after which step, and on which images."""
        self.kept: dict[int, list[Tensor]] = {}
        """Images as they are evaluated on, by the identity of their set."""
        self.state = TrainingState(
            recipe, side=data.side, channels=data.channels, classes=len(data.classes), device=self.device
        )
        self.cost = cost_of(self.state.network, size=recipe.distortions.output_side(data.side), channels=data.channels)
        self.pipeline = Pipeline(
            data.train,
            recipe.distortions,
            batch=recipe.optimiser.batch,
            seed=recipe.seed,
            moments=data.moments,
            rank=replica.rank,
            world=replica.world,
            threads=settings.threads,
            device=self.device,
        )

    def run(self) -> RunResult | None:
        """Train to the last step, then evaluate."""
        state, recipe = self.state, self.recipe
        checkpoints = self.folder.checkpoints
        if (checkpoint := checkpoints.newest()) is not None:
            state.load_state_dict(checkpoint.state)
        else:
            state.prepare(self._first_images())
        agree_on_step(self.replica, state.step)
        self._announce()
        network = self._replicated()
        steps_per_epoch = len(self.data.train) / recipe.optimiser.batch
        state.network.train()
        with (
            Interrupts() as interrupts,
            closing(
                Watch(
                    state,
                    self.pipeline,
                    self.folder,
                    self.settings,
                    writes=self.replica.is_first,
                    report=self.report,
                    started=self.started,
                )
            ) as watch,
        ):
            for batch in self.pipeline.batches(range(state.step, state.step if state.ended else self.steps)):
                rate = recipe.schedule.at(batch.step, steps=self.steps, steps_per_epoch=steps_per_epoch)
                with watch.forward(batch), self._autocast():
                    logits = network(batch.images)
                cross_entropy = functional.cross_entropy(
                    logits.float(), batch.labels, label_smoothing=recipe.optimiser.label_smoothing
                )
                state.zero_grad()
                cross_entropy.backward()  # type: ignore[no-untyped-call]
                decay = state.decay_loss(recipe.optimiser.weight_decay)
                state.learn(rate)
                due = state.step % recipe.optimiser.average_every == 0 or state.step == self.steps
                if state.averages is not None and due:
                    state.averages.update()
                watch.after(batch, rate, cross_entropy.detach(), decay)
                state.ended = self._is_enough(watch)
                if interrupts.pending is not None:
                    watch.save()
                    interrupts.raise_pending()
                if state.ended:
                    break
            watch.save()
            return self._result(watch) if self.replica.is_first else None

    def _is_enough(self, watch: Watch) -> bool:
        """Whether the run has reached its target or used up its time; evaluates where that is due."""
        recipe, enough = self.recipe, False
        if self.replica.is_first:
            enough = 0 < recipe.seconds <= watch.training_seconds()
            if recipe.evaluate_steps and self.state.step % recipe.evaluate_steps == 0:
                name = "test" if self.data.validation is None else "validation"
                with watch.idling():
                    score = self._evaluate(self.data.split(name)).score
                watch.evaluated(score, split=name)
                enough = enough or 0 < recipe.target <= score.accuracy
        return said_by_first(self.replica, enough) if recipe.seconds or recipe.evaluate_steps else False

    def _first_images(self) -> Tensor:
        """Some training images, undistorted, from which a network may take its first layer."""
        some = self.data.train.pixels[:_PREPARING_IMAGES]
        batches = evaluation_batches(some, self.recipe.distortions, self.data.moments, device=self.device)
        return torch.cat(list(batches))

    def _replicated(self) -> nn.Module:
        network: nn.Module = self.state.network
        if self.recipe.optimiser.compiled and self.device.type == "cuda":
            network.compile()
        if self.replica.world > 1:
            places = [self.device.index] if self.device.type == "cuda" else None
            network = nn.parallel.DistributedDataParallel(network, device_ids=places)
        return network

    def _autocast(self) -> AbstractContextManager[object]:
        if self.state.precision is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.state.precision)

    def _announce(self) -> None:
        if self.report is None:
            return
        data = self.data
        counts = {"train": len(data.train), "test": len(data.test)}
        if data.validation is not None:
            counts["validation"] = len(data.validation)
        self.report(
            Begun(
                recipe=self.recipe,
                cost=self.cost,
                classes=data.classes,
                images=counts,
                skipped=data.skipped,
                steps=self.steps,
                step=self.state.step,
                damaged=tuple(self.folder.checkpoints.damaged),
                precision=str(self.state.precision).removeprefix("torch."),
                device=str(self.device),
                replicas=self.replica.world,
            )
        )

    def _result(self, watch: Watch) -> RunResult:
        training_seconds = watch.training_seconds()
        test = self._evaluate(self.data.test)
        validation = None if self.data.validation is None else self._evaluate(self.data.validation)
        result = RunResult(
            run=self.folder.path,
            steps=self.state.step,
            test=test,
            validation=validation,
            seconds=watch.seconds(),
            training_seconds=training_seconds,
            cost=self.cost,
        )
        self.folder.finish(result.to_dict())
        return result

    def _evaluate(self, data: PixelSet) -> Scores:
        if self.evaluated is None or self.evaluated[0] != self.state.step or self.evaluated[1] is not data:
            evaluation = evaluate_state(
                self.state, self.recipe, data, self.data.moments, batches=self._undistorted(data)
            )
            self.evaluated = (self.state.step, data, evaluation)
        return self.evaluated[2]

    def _undistorted(self, data: PixelSet) -> Iterable[Tensor]:
        """The images to evaluate on; kept where they are small and evaluated on again and again."""
        batches = undistorted(data, self.recipe, self.data.moments, device=self.device)
        if not self.recipe.evaluate_steps or data.pixels.size > _KEPT_VALUES:
            return batches
        if id(data) not in self.kept:
            self.kept[id(data)] = list(batches)
        return self.kept[id(data)]


def check_recipe(recipe: Recipe, data: TrainingData, replica: Replica) -> None:
    """Raise a OptionError where these images and this many replicas cannot be trained on; writes nothing."""
    recipe.distortions.check(data.side)
    if recipe.optimiser.batch % replica.world:
        raise OptionError(
            f"batch is {recipe.optimiser.batch}, which {replica.world} devices cannot share evenly; "
            f"take a multiple of {replica.world}"
        )
    with torch.device("meta"):  # tells whether there is such a network, before anything is written
        recipe.network.build(
            size=recipe.distortions.output_side(data.side), channels=data.channels, classes=len(data.classes)
        )


def train(
    recipe: Recipe, run: str | Path, *, settings: Settings | None = None, report: Report | None = None
) -> RunResult | None:
    """Train a recipe in a folder, going on where an earlier process stopped.

    Args:
        recipe: what to train.
        run: the run's folder; made where there is none.
        settings: how to carry it out.
        report: is told what happens, every `log_steps` steps.

    Returns:
        What it came to; None in replicas other than the first, where torchrun has started several.

    Raises:
        OptionError: an option cannot be used.
        ImageSetError: the data is not there, or cannot be used.
        RunError: the folder is in use, holds another run, or cannot be written.
        TrainingError: the loss is not a number any more, or a replica died.
    """
    settings = settings or Settings()
    recipe.check()
    settings.check()
    device_type = choose_device(settings.device)
    replica = torchrun_replica(device_type)
    if replica is None and settings.devices > 1:
        run_replicas(settings.devices, device_type, train_as, recipe, Path(run), settings, report)
        result = RunFolder(Path(run)).result()
        if result is None:
            raise RunError(f"The replicas ended without a result in '{run}'")
        return RunResult.from_dict(Path(run), result)
    replica = replica or Replica(device_type=device_type)
    with joined(replica):
        return train_as(replica, recipe, Path(run), settings, report)


def train_as(
    replica: Replica, recipe: Recipe, run: Path, settings: Settings, report: Report | None
) -> RunResult | None:
    """Train as one of the replicas of a run; each calls this with its own place."""
    data = load_training_data(
        recipe.data,
        image_size=recipe.image_size,
        validation=recipe.validation,
        folder=settings.data_folder,
    )
    return fit(recipe, data, RunFolder(run, keep=settings.keep), replica=replica, settings=settings, report=report)
