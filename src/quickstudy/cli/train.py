"""`quickstudy train`: a small network from scratch, by a recipe."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quickstudy.cli.display import format_score, interruptible, now, print_json, print_skipped
from quickstudy.cli.options import DataFolder, Device, Json, Quiet
from quickstudy.extras import require
from quickstudy.options import read_assignments
from quickstudy.process import begin_own_processes
from quickstudy.wording import pasted

if TYPE_CHECKING:
    from quickstudy.progress import Bar
    from quickstudy.scratch.summaries import RunBegun, RunEvaluation, RunProgress
    from quickstudy.scratch.train import RunResult


def command(
    recipe: Annotated[
        str,
        typer.Argument(
            help="cifar10-classic, cifar10-fast, cifar10-long, cifar10-gpu, cifar10-gpu95, cifar10-gpu96 or mlp.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="A named data set, a folder in its official layout, or images laid out as for retrain."),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="The run's folder [default: runs/RECIPE].")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps to train for.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the training images, instead of steps.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images a step, over all devices.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of all random numbers.")] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="Change any option of the recipe: NAME=VALUE.")
    ] = None,
    devices: Annotated[
        int,
        typer.Option(
            "--devices", "--num_gpus", min=1, help="Number of devices on this machine to train on, in data parallel."
        ),
    ] = 1,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Threads that prepare batches.")] = 16,
    data_folder: DataFolder = None,
    summary_steps: Annotated[
        int, typer.Option(min=0, help="Steps between summaries for TensorBoard; 0 writes none.")
    ] = 100,
    checkpoint_seconds: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 60,
    keep: Annotated[
        int, typer.Option(min=1, help="Number of newest checkpoints to keep; the best one is always kept.")
    ] = 5,
    show_options: Annotated[bool, typer.Option("--options", help="Print the recipe's options and end.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a network from scratch, or continue an earlier run in the same folder where it stopped."""
    require("torch", extra="train")
    if devices > 1:
        begin_own_processes()
    from quickstudy.scratch.parallel import leave, torchrun_replica
    from quickstudy.scratch.recipe import RunSettings, recipe_named
    from quickstudy.scratch.train import train

    named = {"data": data, "steps": steps, "epochs": epochs, "batch": batch, "seed": seed}
    values: dict[str, object] = {name: value for name, value in named.items() if value is not None}
    assigned = read_assignments(options or [], values)
    if epochs is not None and steps is None:
        values["steps"] = 0
    values |= assigned
    chosen = recipe_named(recipe).with_options(values)
    if show_options:
        print_json(chosen.options())
        return
    folder = run or Path("runs") / recipe
    shows_bar = not quiet and not as_json and sys.stderr.isatty()
    reporter = None if quiet or as_json else _Reporter(folder, bar=shows_bar)
    replica = torchrun_replica("cpu")
    speaks = replica is None or replica.is_first
    try:
        with interruptible(f"the same command continues from the checkpoint in {folder}", speaks=speaks):
            result = train(
                chosen,
                folder,
                settings=RunSettings(
                    devices=devices,
                    device=device,
                    threads=threads,
                    data_folder=data_folder,
                    summary_steps=summary_steps,
                    checkpoint_seconds=checkpoint_seconds,
                    keep=keep,
                ),
                report=reporter,
            )
    finally:
        if reporter is not None:
            reporter.finish()
    if result is None:  # another replica than the first, started by torchrun
        leave(0)
    if as_json:
        print_json({"run": str(folder), **result.to_dict()})
    else:
        _print_result(result, folder)


class _Reporter:
    """Prints lines for a log, on a terminal with a bar below them; replicas can be sent it, as the bar is made late."""

    def __init__(self, folder: Path, *, bar: bool) -> None:
        self.folder, self.wants_bar = folder, bar
        self.bar: Bar | None = None

    def __call__(self, news: RunBegun | RunProgress | RunEvaluation) -> None:
        from quickstudy.scratch.summaries import RunBegun, RunEvaluation

        if isinstance(news, RunBegun):
            self._begin(news)
        elif isinstance(news, RunEvaluation):
            print(f"{now()}: step {news.step}, {news.split} accuracy = {news.score.accuracy:.3f}")
        else:
            self._progress(news)
        sys.stdout.flush()

    def finish(self) -> None:
        if self.bar is not None:
            self.bar.finish()

    def _begin(self, news: RunBegun) -> None:
        counts = ", ".join(f"{count:,} to {_PURPOSES[name]}" for name, count in news.images.items())
        print(f"{news.recipe.data}: {len(news.classes)} classes; {counts}")
        print_skipped(news.skipped)
        replicas = f" ×{news.replicas}" if news.replicas > 1 else ""
        print(
            f"{news.recipe.name}: {news.cost.parameters:,} parameters, "
            f"{news.cost.multiply_adds / 1e6:.1f} million multiply-adds an image; "
            f"{news.steps:,} steps of {news.recipe.optimiser.batch} images, {news.precision} on {news.device}{replicas}"
        )
        if told := _too_little(news):
            print(told, file=sys.stderr)
        for path in news.damaged:
            instead = "an older one is used" if news.step else "there is no older one, so the run starts again"
            print(f"Warning: the checkpoint {path} is damaged; {instead}", file=sys.stderr)
        if news.step:
            print(f"Continuing from step {news.step:,} of the run in {self.folder}")
        if self.wants_bar:
            from quickstudy.progress import Bar

            self.bar = Bar(unit="steps")
            self.bar.start("training", news.steps)

    def _progress(self, news: RunProgress) -> None:
        print(
            f"{now()}: step {news.step}, loss = {news.loss:.2f} "
            f"({news.examples_per_second:.1f} examples/s; {news.seconds_per_batch:.3f} s/batch)"
        )
        if self.bar is not None:
            self.bar.update(done=news.step, note=f"loss {news.smoothed_loss:.2f}")


def _too_little(news: RunBegun) -> str:
    """Say what comes of so few photos or steps, and what to do instead; empty where there are enough.

    240 photos of two classes at 64 pixels, of which a retraining gets all right, come to 49 % in six steps. A data set
    with a name was chosen for what it is.
    """
    from quickstudy.images.named import NAMED

    data, images, classes = news.recipe.data, news.images["train"], len(news.classes)
    if data in NAMED or (images >= _ENOUGH_IMAGES * classes and news.steps >= _ENOUGH_STEPS):
        return ""
    chance = f"{100 / classes:.0f} %, which is chance"
    expected = (
        f"little more than {chance}" if news.steps < _ENOUGH_STEPS else "far less than a pretrained network gives"
    )
    return (
        f"WARNING: {images:,} images of {classes} classes and {news.steps:,} steps are too few to train from scratch; "
        f"expect {expected}. With few photos, start from a pretrained network: {pasted('retrain', data)}"
    )


_ENOUGH_IMAGES, _ENOUGH_STEPS = 500, 200
"""Number of images a class, and of steps, with which training from scratch begins to make sense."""
_PURPOSES = {"train": "train on", "test": "test on", "validation": "validate on"}


def _print_result(result: RunResult, folder: Path) -> None:
    if result.validation is not None:
        print(f"Validation: accuracy = {result.validation.score.accuracy:.3f}")
    print(f"accuracy = {result.test.score.accuracy:.3f}")
    print(f"Test accuracy {format_score(result.test.score)}; {result.steps:,} steps in {result.seconds:.1f} s")
    events = folder / "tensorboard"
    print(f"\nRun:   {folder}" + (f" (tensorboard --logdir {shlex.quote(str(events))})" if events.exists() else ""))
    print(f"Next:  {pasted('export', folder)}")
