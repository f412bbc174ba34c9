"""The training loop, one for all recipes and devices; `_Training.run` reads top to bottom as the algorithm.

`train` starts the replicas and loads the data, `train_recipe` trains on data in memory. Both go on where an earlier
process stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quickstudy.errors import (
    DeviceError,
    OptionError,
    QuickstudyError,
    RunError,
    TrainingError,
    WriteError,
    first_line,
)
from quickstudy.files import as_path
from quickstudy.images.pixels import PixelSet
from quickstudy.learning.averages import computing_on
from quickstudy.learning.checkpoints import Interrupts
from quickstudy.learning.scores import Scores
from quickstudy.scratch.data import ImagesAtHand, TrainingData, load_training_data
from quickstudy.scratch.evaluation import evaluate_state
from quickstudy.scratch.folder import RunFolder
from quickstudy.scratch.layers import Cost, cost_of
from quickstudy.scratch.parallel import (
    Replica,
    agree_on_step,
    choose_device,
    joined,
    largest_of_all,
    run_replicas,
    torchrun_replica,
)
from quickstudy.scratch.recipe import Recipe, RunSettings
from quickstudy.scratch.state import Course, TrainingState
from quickstudy.scratch.summaries import Reporter, RunBegun, RunLog

_ROWS_NAMED = 16
"""Most images that the error of a loss that is no number names."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run came to."""

    run: Path
    """The run's folder."""
    steps: int
    """Number of steps made."""
    test: Scores
    """Scores on all test images."""
    validation: Scores | None
    """Scores on the images held out to choose by; None where none are."""
    seconds: float
    """Time spent on the run by all processes that took part one after the other, in seconds."""
    training_seconds: float
    """Part of `seconds` that was spent on steps: without start-up and evaluations."""
    cost: Cost
    """Size and work of the network."""
    together: int = 1
    """Number of runs that its process trained at once, this one included; of more than one, `seconds` and
    `training_seconds` are its share of the time that all of them took, and no measure of its own cost."""

    def to_dict(self) -> dict[str, Any]:
        """Give the result as JSON values, without the folder; `from_dict` reads them back."""
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "training_seconds": self.training_seconds,
            "together": self.together,
            "parameters": self.cost.parameters,
            "multiply_adds": self.cost.multiply_adds,
            "test": self.test.to_dict(),
            "validation": None if self.validation is None else self.validation.to_dict(),
        }

    @staticmethod
    def from_dict(run: Path, values: Mapping[str, Any]) -> RunResult:
        """Make the result of the run in this folder from what `to_dict` gave."""
        held = values["validation"]
        return RunResult(
            run=run,
            steps=values["steps"],
            test=Scores.from_dict(values["test"]),
            validation=None if held is None else Scores.from_dict(held),
            seconds=values["seconds"],
            training_seconds=values["training_seconds"],
            together=values.get("together", 1),
            cost=Cost(parameters=values["parameters"], multiply_adds=values["multiply_adds"]),
        )


def train(
    recipe: Recipe, run: str | Path, *, settings: RunSettings | None = None, report: Reporter | None = None
) -> RunResult | None:
    """Train a recipe in a folder, going on where an earlier process stopped.

    Args:
        recipe: what to train.
        run: the run's folder; made where there is none.
        settings: how to carry it out.
        report: function that is told what happens, every `log_steps` steps.

    Returns:
        What it came to; None in replicas other than the first, where torchrun has started several.

    Raises:
        OptionError: an option cannot be used.
        ImageSetError: the data is not there, or cannot be used.
        RunError: the folder is in use, or holds another run.
        WriteError: it cannot be written.
        TrainingError: the loss is not a number any more, or a replica died.
        DeviceError: there is no such device, it has too little memory, or the network cannot be compiled here.
    """
    settings, folder = settings or RunSettings(), as_path(run)
    recipe.check()
    settings.check()
    device_type = choose_device(settings.device)
    replica = torchrun_replica(device_type)
    if replica is not None and settings.devices > 1:
        raise OptionError(
            f"devices is {settings.devices}, and the environment says that torchrun has started {replica.world} "
            "replicas (RANK, WORLD_SIZE, MASTER_ADDR); leave out --devices, or unset these variables"
        )
    if replica is None and settings.devices > 1:
        run_replicas(settings.devices, device_type, train_replica, recipe, folder, settings, report)
        result = RunFolder(folder).result()
        if result is None:
            raise RunError(f"The replicas ended without a result in '{run}'; the same command continues the run")
        return RunResult.from_dict(folder, result)
    replica = replica or Replica(device_type=device_type)
    with joined(replica):
        return train_replica(replica, recipe, folder, settings, report)


def train_replica(
    replica: Replica, recipe: Recipe, run: Path, settings: RunSettings, report: Reporter | None
) -> RunResult | None:
    """Load the data and train as one of the replicas of a run; each calls this with its own place."""
    data = load_training_data(
        recipe.data, image_size=recipe.image_size, validation=recipe.validation, folder=settings.data_folder
    )
    folder = RunFolder(run, keep=settings.keep)
    return train_recipe(recipe, data, folder, replica=replica, settings=settings, report=report)


def train_recipe(
    recipe: Recipe,
    data: TrainingData,
    folder: RunFolder,
    *,
    replica: Replica | None = None,
    settings: RunSettings | None = None,
    report: Reporter | None = None,
) -> RunResult | None:
    """Train a recipe on data in memory; all replicas of a run call this together.

    Returns:
        What it came to; None in replicas other than the first.

    Raises:
        OptionError: an option cannot be used with these images.
        RunError: the folder is in use, or holds another run.
        WriteError: it cannot be written.
        TrainingError: the loss is not a number any more.
        DeviceError: the device has too little memory, or the network cannot be compiled here.
    """
    replica, settings = replica or Replica(), settings or RunSettings()
    check_recipe(recipe, data, replica)
    if not replica.is_first and folder.result() is not None:
        return None
    with (
        writing_to(folder),
        computing_on(replica.device, otherwise="train in smaller batches, in another folder (--batch, --run)"),
        ExitStack() as stack,
    ):
        if replica.is_first:
            stack.enter_context(folder.locked())
            folder.begin(recipe, data.facts)
            if (finished := folder.result()) is not None:
                return RunResult.from_dict(folder.path, finished)
        images = ImagesAtHand(data, replica, threads=settings.threads)
        return RunTraining(recipe, images, folder, replica, settings, report).run()


@contextmanager
def writing_to(folder: RunFolder) -> Iterator[None]:
    """Say in a WriteError what cannot be written inside this context."""
    try:
        yield
    except BrokenPipeError:  # who read the reports has gone
        raise
    except OSError as error:
        raise WriteError(
            f"Cannot write to '{folder.path}': {error.strerror or error}. Its checkpoints are safe; "
            "free some space and start the same command again to go on"
        ) from error


@contextmanager
def _tried(wanted: bool) -> Iterator[None]:
    """Let cuDNN, where it is wanted, try inside this context which of its convolutions is quickest for each shape."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted or before
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def _compiling(wanted: bool) -> Iterator[None]:
    """Say in a DeviceError why a network that is to be compiled fails inside this context."""
    try:
        yield
    except Exception as error:
        if not wanted or isinstance(error, QuickstudyError | torch.OutOfMemoryError):
            raise
        cause = getattr(error, "inner_exception", error)  # of which PyTorch's own error is an envelope
        raise DeviceError(
            f"torch.compile fails here ({type(cause).__name__}: {first_line(cause)}). It needs a C compiler, Python's "
            "header files, and a folder to write to (TORCHINDUCTOR_CACHE_DIR): install gcc and python3-dev, say; or "
            "train without it, in a folder of its own: --set compiled=off --run FOLDER"
        ) from error


def check_recipe(recipe: Recipe, data: TrainingData, replica: Replica) -> None:
    """Raise an OptionError where these images and this many replicas cannot be trained on; nothing is written."""
    recipe.augmentation.check(data.side)
    if recipe.optimiser.batch % replica.world:
        raise OptionError(
            f"batch is {recipe.optimiser.batch}, which {replica.world} devices cannot share evenly; "
            f"take a multiple of {replica.world}"
        )
    with torch.device("meta"):  # tells whether there is such a network, before anything is written
        recipe.network.build(
            size=recipe.augmentation.output_side(data.side), channels=data.channels, classes=len(data.classes)
        )


class RunTraining:
    """One training in one replica; `run` is the algorithm, and what else stands here serves it."""

    def __init__(
        self,
        recipe: Recipe,
        images: ImagesAtHand,
        folder: RunFolder,
        replica: Replica,
        settings: RunSettings,
        report: Reporter | None,
        *,
        together: int = 1,
    ) -> None:
        """Make all that is there before the first step; `together` is the number of runs that are trained at once."""
        data = images.data
        self.recipe, self.data, self.folder, self.settings = recipe, data, folder, settings
        self.images, self.together = images, together
        self.replica, self.device = replica, replica.device
        self.report = report if replica.is_first else None
        self.steps = recipe.total_steps(len(data.train))
        self.state = TrainingState(
            recipe, side=data.side, channels=data.channels, classes=len(data.classes), device=self.device
        )
        self.cost = cost_of(self.state.network, size=recipe.augmentation.output_side(data.side), channels=data.channels)
        self.pipeline = images.pipeline(recipe)
        # A look at the loss makes a GPU wait, so there it is looked at only when it is reported.
        self.check_every = 1 if self.device.type == "cpu" else settings.log_steps
        self.unchecked: list[tuple[int, Tensor]] = []
        """Steps, counted from 0, and their losses that nobody has looked at yet."""
        self.saved_step = -1
        """Step of the newest checkpoint that is whole; -1 where there is none."""
        self.evaluated: tuple[int, PixelSet, Scores] | None = None
        """The newest evaluation: its step, the images and their scores."""

    def run(self) -> RunResult | None:
        """Train to the last step, then evaluate."""
        recipe, state, clock, settings = self.recipe, self.state, self.state.clock, self.settings
        self.resume_or_prepare()
        self.announce()
        network = self._wrapped_network()
        state.network.train()
        with Interrupts() as interrupts, closing(self.open_log()) as log, _tried(recipe.optimiser.compiled):
            agree_on_step(self.replica, state.step)
            clock.begin_steps(state.step)
            for batch in self.pipeline.batches(range(state.step, state.step if state.ended else self.steps)):
                course = self.course(batch.step)
                if state.network.stop_training_at(course.epoch):
                    network = self._wrapped_network()  # around what is trained from now on
                with self._autocast(), log.forward(batch), _compiling(recipe.optimiser.compiled):
                    logits = network(batch.images)
                cross_entropy = functional.cross_entropy(
                    logits.float(), batch.labels, label_smoothing=recipe.optimiser.label_smoothing
                )

                state.zero_grad()
                with _compiling(recipe.optimiser.compiled):
                    cross_entropy.backward()  # type: ignore[no-untyped-call]

                losses = state.follow_gradients(course, cross_entropy)

                self.unchecked.append((batch.step, losses[0]))
                if state.step % self.check_every == 0:
                    self._check_losses()
                log.histograms()
                if self.replica.is_first and state.step % settings.log_steps == 0:
                    log.progress(state.measured(losses), course.rate, seconds_per_batch=clock.lap(state.step))

                # Evaluated before the checkpoint is written: it says whether the run has ended, and a run that goes on
                # from it does not come to this step again.
                state.ended, asked = self._agreed(self.evaluate_and_decide(log), interrupts.pending)
                if self.replica.is_first and clock.seconds_since_checkpoint >= settings.checkpoint_seconds:
                    self.save()
                if asked:
                    self.save()
                    largest_of_all(self.replica, 0)  # the others wait until it is saved
                    interrupts.pending = asked
                    interrupts.raise_pending()
                if state.ended:
                    break
            self._check_losses()  # which waits for a GPU; what follows is not part of the steps
            with clock.paused():
                self.save()
        return self.result() if self.replica.is_first else None

    def resume_or_prepare(self) -> None:
        """Go on from the newest checkpoint that is whole; without one, let the network see its first images."""
        checkpoint = self.folder.checkpoints.newest()
        if checkpoint is not None:
            self.state.load_state_dict(checkpoint.state)
            # The checkpoint of this step is not written again, which would endanger it.
            self.saved_step = self.state.step or -1
        else:
            self.state.prepare(self.images.to_prepare(self.recipe))

    def course(self, step: int) -> Course:
        """Say where in the run a step is, counted from 0."""
        steps_per_epoch = len(self.data.train) / self.recipe.optimiser.batch
        rate = self.recipe.schedule.at(step, steps=self.steps, steps_per_epoch=steps_per_epoch)
        return Course(step=step, steps=self.steps, epoch=step / steps_per_epoch, rate=rate)

    def _wrapped_network(self) -> nn.Module:
        """Make the network as steps call it: compiled if asked for, and averaging gradients over replicas, if any."""
        network: nn.Module = self.state.network
        if self.replica.world > 1:
            places = None if self.device.type == "cpu" else [self.device.index]
            network = nn.parallel.DistributedDataParallel(network, device_ids=places)
        if self.recipe.optimiser.compiled:
            # Beside the network, which stays as it is for all else: summaries trace it, and evaluation has other sizes.
            with _compiling(True):
                network = torch.compile(network)  # type: ignore[assignment]
        return network

    def _autocast(self) -> AbstractContextManager[object]:
        if self.state.precision is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.state.precision)

    def evaluate_and_decide(self, log: RunLog) -> bool:
        """Evaluate where that is due, in the first replica; whether it has reached its target, or used up its time."""
        recipe, clock, enough = self.recipe, self.state.clock, False
        if self.replica.is_first:
            enough = 0 < recipe.seconds <= clock.training_seconds
            if recipe.evaluate_steps and self.state.step % recipe.evaluate_steps == 0:
                split = "test" if self.data.validation is None else "validation"
                with clock.paused():
                    score = self._evaluate(self.data.split(split)).score
                log.evaluated(score, split=split)
                enough = enough or 0 < recipe.target <= score.accuracy
        return enough

    def _agreed(self, enough: bool, pending: int | None) -> tuple[bool, int]:
        """Agree on whether the first replica has seen enough, and on the signal that any of them was asked to end with.

        The signal's number is 0 where none came. On a GPU, which an answer makes wait, signals are asked for as seldom
        as losses are looked at.
        """
        decides = self.recipe.seconds or self.recipe.evaluate_steps or self.state.step % self.check_every == 0
        if self.replica.world > 1 and not decides:
            return False, 0
        ended, asked = largest_of_all(self.replica, int(enough), pending or 0)
        return bool(ended), asked

    def _evaluate(self, data: PixelSet) -> Scores:
        """Scores of the network as it stands on all of these images; the same are not worked out twice in a row."""
        if self.evaluated is None or self.evaluated[0] != self.state.step or self.evaluated[1] is not data:
            scores = evaluate_state(
                self.state, self.recipe, data, self.data.moments, batches=self.images.to_evaluate(self.recipe, data)
            )
            self.evaluated = (self.state.step, data, scores)
        return self.evaluated[2]

    def _check_losses(self) -> None:
        """Raise a TrainingError where a loss that nobody has looked at is not a number."""
        unchecked, self.unchecked = self.unchecked, []
        if unchecked:
            finite = torch.isfinite(torch.stack([loss for _, loss in unchecked])).tolist()
            for (step, _), is_finite in zip(unchecked, finite, strict=True):
                if not is_finite:
                    raise self.not_a_number(step)

    def not_a_number(self, step: int) -> TrainingError:
        """Make the error of a step, counted from 0, whose loss is not a number."""
        rows = self.pipeline.rows(step).tolist()
        shown = ", ".join(str(row) for row in rows[:_ROWS_NAMED])
        rest = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
        kept = self.folder.checkpoints.steps()
        good = f"the checkpoint of step {kept[-1]} is good" if kept else "no checkpoint had been written"
        return TrainingError(
            f"The loss is not a number in step {step} (training images {shown}{rest}); {good}. "
            "Lower the rate (--set rate=…), or look at these images"
        )

    def save(self) -> None:
        """Write a checkpoint, unless there is one of this step; one whose parameters are no numbers is an error."""
        self._check_losses()
        if not self.replica.is_first or self.saved_step == self.state.step:
            return
        if not self.state.is_finite():
            raise self.not_a_number(self.state.step - 1)
        self.folder.checkpoints.save(self.state.step, self.state.state_dict(), best=self.folder.best_step())
        self.state.clock.checkpoint_written()
        self.saved_step = self.state.step

    def result(self) -> RunResult:
        """Evaluate the last step, and write what the run came to."""
        training_seconds = self.state.clock.training_seconds
        test = self._evaluate(self.data.test)
        validation = None if self.data.validation is None else self._evaluate(self.data.validation)
        result = RunResult(
            run=self.folder.path,
            steps=self.state.step,
            test=test,
            validation=validation,
            seconds=self.state.clock.run_seconds,
            training_seconds=training_seconds,
            cost=self.cost,
            together=self.together,
        )
        self.folder.finish(result.to_dict())
        return result

    def open_log(self, *, apart: bool = False) -> RunLog:
        """Open what tells and writes how the run goes; `apart` as in `RunLog`."""
        return RunLog(
            self.state,
            self.pipeline,
            self.folder,
            self.settings,
            writes=self.replica.is_first,
            report=self.report,
            apart=apart or self.recipe.optimiser.compiled,
        )

    def announce(self) -> None:
        """Tell what is known before the first step."""
        if self.report is None:
            return
        data = self.data
        counts = {"train": len(data.train), "test": len(data.test)}
        if data.validation is not None:
            counts["validation"] = len(data.validation)
        self.report(
            RunBegun(
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
