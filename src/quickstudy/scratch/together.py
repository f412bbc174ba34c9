"""Runs that are trained together, in one process: networks that are alike become one, with a row for each run.

A GPU makes a step of a small network in less time than the processor takes to ask for it. So all runs step in turn with
one backward pass; those whose networks differ in their numbers only go through torch.func's `vmap` as one network,
whose tensors have one more dimension, and are optimised, averaged and evaluated as one. Each run has its own folder,
seed, batches, rate, target, and failure, and its parameters are those of a run on its own, but for rounding.

A run's own `TrainingState` is brought up to date when somebody looks at it: for its checkpoint and its histograms.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from quickstudy.errors import QuickstudyError
from quickstudy.learning.checkpoints import Interrupts
from quickstudy.learning.scores import score_numbers
from quickstudy.scratch.data import ImagesAtHand, TrainingData
from quickstudy.scratch.evaluation import evaluation_logits
from quickstudy.scratch.folder import RunFolder
from quickstudy.scratch.input import Batch
from quickstudy.scratch.parallel import Replica
from quickstudy.scratch.recipe import Recipe, RunSettings
from quickstudy.scratch.stacked import StackedNetwork, StackedState
from quickstudy.scratch.state import Clock
from quickstudy.scratch.summaries import Reporter, RunLog
from quickstudy.scratch.train import RunTraining, check_recipe, writing_to


def why_apart(recipe: Recipe) -> str:
    """Say why a run of this recipe cannot be trained together with others; empty where it can."""
    options = recipe.optimiser
    if options.method == "muon":
        return "Muon takes the weights of one network"
    if options.compiled:
        return "each network is compiled by itself"
    if options.precision != "float32":
        return f"precision is {options.precision}, not float32"
    if recipe.seconds:
        return "it ends by its own time"
    if recipe.shifted_test and recipe.unsure_lead < 1:
        return "each network is unsure of other images"
    if getattr(recipe.network, "whitening_bias_epochs", 0):
        return "each network stops training its whitening bias by itself"
    if getattr(recipe.network, "normalisation", "") == "lrn":
        return "local response normalisation takes one network"
    return ""


def train_together(
    recipes: Sequence[Recipe],
    data: TrainingData,
    folders: Sequence[RunFolder],
    *,
    replica: Replica | None = None,
    settings: RunSettings | None = None,
    reports: Sequence[Reporter],
    ended: Callable[[int, QuickstudyError | None], None],
) -> None:
    """Train recipes on the same images at the same time, each in its folder, going on where earlier processes stopped.

    Args:
        recipes: what to train; `why_apart` has nothing against them.
        data: the images.
        folders: one for each recipe.
        replica: says on which device.
        settings: how to carry it out.
        reports: one function for each recipe, which is told what happens.
        ended: is told the number of each run as it ends, counted from 0, and why it failed; the others go on.
    """
    replica, settings = replica or Replica(), settings or RunSettings()
    images = ImagesAtHand(data, replica, threads=0)
    group = _Group(settings, SharedTime(len(recipes)), ended)
    with ExitStack() as everything:
        for number, (recipe, folder, report) in enumerate(zip(recipes, folders, reports, strict=True)):
            own = everything.enter_context(ExitStack())
            with group.failing_alone(number, folder, own):
                check_recipe(recipe, data, replica)
                own.enter_context(folder.locked())
                folder.begin(recipe, data.facts)
                if folder.result() is not None:
                    group.end(number, own)
                    continue
                run = RunTraining(recipe, images, folder, replica, settings, report, together=len(recipes))
                run.state.clock = Clock(group.time)
                run.resume_or_prepare()
                run.announce()
                log = own.enter_context(closing(run.open_log(apart=True)))
                group.members[number] = _Member(number=number, run=run, log=log, own=own)
        group.train()


class SharedTime:
    """A clock that goes the slower the more runs share it, so that their seconds add up to those that passed."""

    def __init__(self, runs: int) -> None:
        self._runs, self._shared, self._at = max(runs, 1), 0.0, time.perf_counter()

    def __call__(self) -> float:
        """Seconds of each run so far."""
        now = time.perf_counter()
        self._shared += (now - self._at) / self._runs
        self._at = now
        return self._shared

    def share(self, runs: int) -> None:
        """Share the time that follows among so many runs."""
        self()
        self._runs = max(runs, 1)


@dataclass(frozen=True, kw_only=True)
class _Member:
    """One of the runs that are trained together, as long as it goes on."""

    number: int
    run: RunTraining
    log: RunLog
    own: ExitStack
    """What is to be closed when it ends."""


@dataclass
class _Group:
    """All runs that are trained together; `train` is the loop."""

    settings: RunSettings
    time: SharedTime
    ended: Callable[[int, QuickstudyError | None], None]
    members: dict[int, _Member] = field(default_factory=dict)
    """Those that go on, by number."""
    stacks: list[_Stack] = field(default_factory=list)
    """The same, those whose networks are alike side by side."""

    def train(self) -> None:
        """Train until each run has ended."""
        with Interrupts() as interrupts:
            for member in list(self.members.values()):
                member.run.state.clock.begin_steps(member.run.state.step)
                if member.run.state.ended or member.run.state.step >= member.run.steps:
                    self._finish(member)
            self.time.share(len(self.members))
            self.stacks = _stacked(list(self.members.values()))
            saved = time.monotonic()
            while self.members:
                batches: dict[Any, Batch] = {}
                losses = [stack.losses(batches) for stack in self.stacks]
                torch.cat(losses).sum().backward()  # type: ignore[no-untyped-call]
                for stack in self.stacks:
                    stack.follow_gradients()
                for stack in self.stacks:
                    self._look_at(stack)
                self._close_up()
                if interrupts.pending or time.monotonic() - saved >= self.settings.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()
                interrupts.raise_pending()

    def end(self, number: int, own: ExitStack, error: QuickstudyError | None = None) -> None:
        """Let go of a run that has ended, or failed."""
        self.members.pop(number, None)
        own.close()
        self.time.share(len(self.members))
        self.ended(number, error)

    @contextmanager
    def failing_alone(self, number: int, folder: RunFolder, own: ExitStack) -> Iterator[None]:
        """Let what goes wrong inside this context end this run only."""
        try:
            with writing_to(folder):
                yield
        except QuickstudyError as error:
            self.end(number, own, error)

    def _alone(self, member: _Member) -> Any:
        return self.failing_alone(member.number, member.run.folder, member.own)

    def _look_at(self, stack: _Stack) -> None:
        """Do for each run what is due after the step just made."""
        for part in stack.parts:
            for member, bad in part.not_numbers():
                with self._alone(member):
                    raise member.run.not_a_number(bad)
        if stack.evaluation_is_due():
            with ExitStack() as pauses:
                for member in self.members.values():  # all of them wait
                    pauses.enter_context(member.run.state.clock.paused())
                stack.evaluate()
        for part in stack.parts:
            reported = part.state.step % self.settings.log_steps == 0
            measures = part.state.measured_of_each(part.losses) if reported else []
            for row, member in enumerate(part.members):
                if member.number not in self.members:
                    continue
                run, log = member.run, member.log
                run.state.step = part.state.step
                with self._alone(member):
                    if log.summary_is_due(part.state.step):
                        part.state.show(row)
                        log.histograms()
                    if reported:
                        lap = run.state.clock.lap(part.state.step)
                        log.progress(measures[row], run.course(part.state.step - 1).rate, seconds_per_batch=lap)
                    run.state.ended = run.evaluate_and_decide(log)
                    if run.state.ended or part.state.step == run.steps:
                        part.state.give(row)
                        self._finish(member)

    def _close_up(self) -> None:
        self.stacks = [left for stack in self.stacks if (left := stack.left(self.members)) is not None]

    def _finish(self, member: _Member) -> None:
        with self._alone(member):
            member.run.save()
            member.run.result()
            self.end(member.number, member.own)

    def _save(self) -> None:
        for stack in self.stacks:
            stack.give_all(self.members)
        for member in list(self.members.values()):
            with self._alone(member):
                member.run.save()
        self._close_up()


def _stacked(members: Sequence[_Member]) -> list[_Stack]:
    """Put runs side by side that go through the same layers on batches of one size, and are at the same step."""
    alike: dict[Any, list[_Member]] = {}
    for member in members:
        recipe = member.run.recipe
        key = (
            dataclasses.replace(recipe.network, activation="relu"),
            recipe.augmentation,
            recipe.optimiser.batch,
            recipe.optimiser.label_smoothing,
            (recipe.evaluate_steps, recipe.mirrored_test, recipe.shifted_test),
            member.run.state.step,
        )
        alike.setdefault(key, []).append(member)
    return [_Stack(found) for found in alike.values()]


@dataclass
class _Part:
    """Runs of a stack with the same optimiser, rates and steps, so that one optimiser serves them."""

    members: Sequence[_Member]
    state: StackedState
    losses: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Losses of the step just made, 3×runs, as in `LOSS_TERMS`."""
    unchecked: list[tuple[int, Tensor]] = field(default_factory=list)
    """Steps, counted from 0, and their losses that nobody has looked at yet."""

    def follow_gradients(self, cross_entropies: Tensor) -> None:
        """Make a step by the gradients that the whole network has."""
        run, step = self.members[0].run, self.state.step
        self.state.take_gradients()
        self.losses = self.state.follow_gradients(run.course(step), cross_entropies)
        self.unchecked.append((step, self.losses[0]))

    def not_numbers(self) -> list[tuple[_Member, int]]:
        """Find the runs with a loss that is no number, and its step, where it is time to look."""
        run = self.members[0].run
        if self.state.step % run.check_every and self.state.step != run.steps:
            return []
        steps = [step for step, _ in self.unchecked]
        finite = torch.isfinite(torch.stack([loss for _, loss in self.unchecked])).T.tolist()
        self.unchecked = []
        return [
            (member, steps[one.index(False)]) for member, one in zip(self.members, finite, strict=True) if not all(one)
        ]


class _Stack:
    """Runs whose networks are alike, as one network; in parts, each of which has one optimiser."""

    def __init__(self, members: Sequence[_Member]) -> None:
        parts: dict[Any, list[_Member]] = {}
        # By activation first, so that equal ones lie side by side; one optimiser serves several activations.
        for member in sorted(members, key=lambda member: member.run.recipe.network.activation):
            recipe = member.run.recipe
            key = (recipe.optimiser, recipe.schedule, member.run.steps)
            parts.setdefault(key, []).append(member)
        self.members = [member for found in parts.values() for member in found]
        self.network = StackedNetwork(
            [member.run.state.network for member in self.members],
            [member.run.recipe.network.activation for member in self.members],
        )
        self.parts: list[_Part] = []
        """The runs in the order of the rows."""
        first = 0
        for found in parts.values():
            rows = slice(first, first + len(found))
            state = StackedState([member.run.state for member in found], rows, self.network)
            self.parts.append(_Part(found, state))
            first = rows.stop

    def losses(self, batches: dict[Any, Batch]) -> Tensor:
        """Make the forward pass; gives the cross-entropy of each run. A batch that several runs take is made once."""
        keys = []
        for member in self.members:
            run, step = member.run, self.parts[0].state.step
            keys.append((run.recipe.augmentation, run.recipe.optimiser.batch, run.recipe.seed, step))
            if keys[-1] not in batches:
                batches[keys[-1]] = run.pipeline.make(step)
            if member.log.summary_is_due(step + 1):
                self._show(member)
                with member.log.forward(batches[keys[-1]]):
                    pass
        found = [batches[key] for key in keys]
        shared = len(set(keys)) == 1
        images = found[0].images if shared else torch.stack([batch.images for batch in found])
        labels = torch.stack([batch.labels for batch in found])
        self.network.zero_grad()
        logits = self.network(images)
        smoothing = self.members[0].run.recipe.optimiser.label_smoothing
        each = functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing
        )
        self.latest = each.reshape(labels.shape).mean(dim=1)
        return self.latest

    def follow_gradients(self) -> None:
        """Make the step of each run."""
        for part in self.parts:
            part.follow_gradients(self.latest.detach()[part.state.rows])

    def evaluation_is_due(self) -> bool:
        """Tell whether the runs are to be evaluated after the step just made."""
        every = self.members[0].run.recipe.evaluate_steps
        return bool(every) and self.parts[0].state.step % every == 0

    def evaluate(self) -> None:
        """Evaluate all runs, and let each know its scores."""
        run = self.members[0].run
        data = run.data.test if run.data.validation is None else run.data.validation
        with ExitStack() as applied:
            for part in self.parts:
                applied.enter_context(part.state.averages_applied())
            logits = evaluation_logits(
                self.network,
                run.images.to_evaluate(run.recipe, data),
                mirrored=run.recipe.mirrored_test,
                shifted=run.recipe.shifted_test,
            )
        for member, numbers in zip(self.members, logits.argmax(dim=-1).numpy(), strict=True):
            member.run.evaluated = (self.parts[0].state.step, data, score_numbers(data.labels, numbers, data.classes))

    def give_all(self, going_on: Collection[int]) -> None:
        """Bring the runs that go on up to date."""
        for part in self.parts:
            for row, member in enumerate(part.members):
                if member.number in going_on:
                    part.state.give(row)

    def left(self, going_on: Collection[int]) -> _Stack | None:
        """Close up where runs have left; None where none goes on."""
        left = [member for member in self.members if member.number in going_on]
        if len(left) == len(self.members):
            return self
        self.give_all(going_on)
        return _Stack(left) if left else None

    def _show(self, member: _Member) -> None:
        for part in self.parts:
            if member in part.members:
                part.state.show(part.members.index(member))
