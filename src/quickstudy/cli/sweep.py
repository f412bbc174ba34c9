"""`quickstudy sweep`: grids of runs in parallel, and what they show."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quickstudy.cli.display import interruptible, print_json
from quickstudy.cli.options import Cache, DataFolder, Device, Json, Quiet
from quickstudy.cli.usage import refuse_beside
from quickstudy.extras import require
from quickstudy.process import begin_own_processes
from quickstudy.wording import as_percent, count

if TYPE_CHECKING:
    from quickstudy.sweeps.study import Study, Trial
    from quickstudy.sweeps.sweep import Planned, SweepResult
    from quickstudy.sweeps.workers import TrialNews

_MANY = 1000
"""Number of runs beyond which the command asks first."""
_SHOW = "show"


def command(
    context: typer.Context,
    study: Annotated[
        str,
        typer.Argument(
            help="A study (batchnorm, bottleneck, input, or a .toml file), a recipe to vary, or: show RESULTS.",
            show_default=False,
        ),
    ],
    shown: Annotated[Path | None, typer.Argument(metavar="[RESULTS]", help="After show: the sweep's folder.")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", help="An option to vary: NAME=1..7 or NAME=a,b (a;b if the values themselves have commas)."
        ),
    ] = None,
    options: Annotated[list[str] | None, typer.Option("--set", help="Set an option of all runs: NAME=VALUE.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of runs of each combination, each with another seed.")
    ] = None,
    target: Annotated[float | None, typer.Option(help="Accuracy at which a run ends early, such as 0.9.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of steps after which a run ends.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds of training after which a run ends.")] = None,
    results: Annotated[Path | None, typer.Option(help="The sweep's folder [default: sweeps/STUDY].")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of runs at a time [default: one a core; on a GPU all].")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Run on a Ray cluster: its address, or auto.", show_default=False)
    ] = None,
    device: Device = "auto",
    data_folder: DataFolder = None,
    cache: Cache = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help=f"Do not ask before more than {_MANY:,} runs.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a grid of trainings in parallel, or continue an earlier sweep in the same folder where it stopped."""
    from quickstudy.errors import SweepError

    require("torch", extra="train")
    require("matplotlib", extra="train")
    if study == _SHOW:
        if shown is None:
            raise SweepError("Which sweep? Name its folder: quickstudy sweep show sweeps/batchnorm")
        idle = [one.name for one in context.command.params if one.name not in ("study", "shown", "as_json", "quiet")]
        refuse_beside(context, "would do nothing: sweep show only shows what is there; leave it out", *idle)
        from quickstudy.sweeps.sweep import show

        _print_result(show(shown), as_json=as_json)
        return
    if shown is not None:
        raise SweepError(f"'{shown}' is not expected here; to name the folder to write to, use --results")
    if ray is not None:
        require("ray", extra="ray")
    else:
        begin_own_processes()
    from quickstudy.sweeps.study import study_named
    from quickstudy.sweeps.sweep import sweep

    named = {"target": target, "steps": steps, "seconds": seconds}
    fixed = {name: value for name, value in named.items() if value is not None}
    chosen = _changed(study_named(study), grid or [], options or [], fixed, seeds)
    runs = len(chosen.trials())
    if runs > _MANY and not yes and not _agrees(runs):
        raise SweepError(f"{runs:,} runs were not started; add --yes to start them without being asked")
    folder = results or Path("sweeps") / chosen.name
    with (
        _reporter(quiet=quiet or as_json) as report,
        interruptible(f"the same command continues the runs in {folder}"),
    ):
        result = sweep(
            chosen,
            folder,
            workers=workers,
            ray=ray,
            device=device,
            data_folder=data_folder,
            cache=cache,
            report=report,
        )
    _print_result(result, as_json=as_json)
    if result.failed:
        raise typer.Exit(1)


def _changed(study: Study, grid: list[str], options: list[str], fixed: dict[str, Any], seeds: int | None) -> Study:
    from quickstudy.options import read_assignments
    from quickstudy.sweeps.study import read_axis

    fixed = read_assignments(options, fixed) | fixed
    axes = {name: read_axis(study.grids[0].recipe, name, text) for name, text in read_assignments(grid).items()}
    return study.changed(fixed=fixed, axes=axes, seeds=seeds)


def _agrees(runs: int) -> bool:
    return sys.stdin.isatty() and typer.confirm(f"That is {runs:,} runs. Start them?", err=True)


@contextmanager
def _reporter(*, quiet: bool) -> Iterator[Any]:
    """Report in a live table on a terminal, in a line for each ended run elsewhere, and not at all if quiet."""
    if quiet:
        yield lambda _news: None
    elif sys.stderr.isatty():
        table = _LiveTable()
        try:
            yield table
        finally:
            table.finish()
    else:
        yield _Lines()


def _how(planned: Planned) -> str:
    """Say how many runs there are at a time, and why some are not trained together with the others."""
    if not planned.together:
        return f"{planned.workers} at a time"
    apart = "".join(f"; {trials:,} alone, since {reason}" for reason, trials in planned.apart.items())
    return f"{planned.together} trained together{apart}"


class _Lines:
    """Prints a line for each run that has ended or failed, for a log."""

    def __init__(self) -> None:
        self.ended, self.total = 0, 0
        self.accuracy: dict[str, float] = {}

    def __call__(self, news: Planned | TrialNews) -> None:
        from quickstudy.sweeps.sweep import Planned

        if isinstance(news, Planned):
            self.ended, self.total = news.done, news.trials
            done = f", {news.done} of them done" if news.done else ""
            print(f"{count(news.trials, 'run')}{done}; {_how(news)}", flush=True)
        elif news.halved is not None:
            print(f"{news.trial} and those trained with it: again in two halves, since {news.halved}", flush=True)
        elif news.ended or news.error is not None:
            self.ended += 1
            print(f"{self.ended}/{self.total}  {self.describe(news)}", flush=True)
        elif news.progress is not None and news.progress.accuracy is not None:
            self.accuracy[news.trial.folder] = news.progress.accuracy

    def describe(self, news: TrialNews) -> str:
        if news.error is not None:
            return f"{news.trial}: failed: {news.error.splitlines()[0]}"
        accuracy = self.accuracy.get(news.trial.folder)
        return f"{news.trial}" + ("" if accuracy is None else f": accuracy = {accuracy:.3f}")


class _LiveTable(_Lines):
    """Shows a bar over all runs, and one for each that is on its way, on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.all = self.progress.add_task("runs", total=None, note="")
        self.bars: dict[str, Any] = {}
        self.progress.start()

    def __call__(self, news: Planned | TrialNews) -> None:
        from quickstudy.sweeps.sweep import Planned

        if isinstance(news, Planned):
            self.ended, self.total = news.done, news.trials
            self.progress.update(self.all, total=news.trials, completed=news.done)
            if news.together:
                self.progress.console.print(f"{count(news.trials, 'run')}; {_how(news)}", highlight=False)
            return
        if news.halved is not None:
            return
        if news.ended or news.error is not None:
            self.ended += 1
            self.progress.console.print(f"{self.ended}/{self.total}  {self.describe(news)}", highlight=False)
            self.progress.update(self.all, completed=self.ended)
            if (bar := self.bars.pop(news.trial.folder, None)) is not None:
                self.progress.remove_task(bar)
            return
        self._move(news.trial, news)

    def finish(self) -> None:
        self.progress.stop()

    def _move(self, trial: Trial, news: TrialNews) -> None:
        if news.progress is None:
            return
        if trial.folder not in self.bars:
            self.bars[trial.folder] = self.progress.add_task(f"  {trial}", total=news.progress.steps, note="")
        note = ""
        if news.progress.accuracy is not None:
            self.accuracy[trial.folder] = news.progress.accuracy
            note = f"accuracy {news.progress.accuracy:.3f}"
        self.progress.update(self.bars[trial.folder], completed=news.progress.step, note=note)


def _print_result(result: SweepResult, *, as_json: bool) -> None:
    if as_json:
        values = {
            "folder": str(result.folder),
            "rows": result.table.to_pylist(),
            "pictures": [str(path) for path in result.pictures],
            "conclusion": result.conclusion,
        }
        print_json(values)
        return
    _print_table(result)
    print()
    print(result.conclusion)
    print(f"Table:    {result.folder / 'results.parquet'} (and .csv)")
    if result.pictures:
        print(f"Pictures: {result.folder / 'pictures'} ({', '.join(path.stem for path in result.pictures)})")
    runs = result.folder / "runs"
    if any(runs.glob("*/tensorboard")):
        print(f"Curves:   tensorboard --logdir {shlex.quote(str(runs))}")


def _print_table(result: SweepResult) -> None:
    """Print the columns in which there is something, in the order of the table; the runs' folders are in the files."""
    rows = [{name: value for name, value in row.items() if name not in _HIDDEN} for row in result.table.to_pylist()]
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    if any(name in names for name in ("validation", "cross_validation")):
        names.remove("accuracy")  # the test is for the one that was chosen, and said once
    if all(row["status"] == "done" for row in rows):
        names.remove("status")
    if "together" in names and all(row["together"] in (None, 1) for row in rows):
        names.remove("together")
    heads = [_HEADS.get(name, name) for name in names]
    cells = [[_cell(name, row[name]) for name in names] for row in rows]
    widths = [max(len(head), *(len(line[place]) for line in cells)) for place, head in enumerate(heads)]
    for line in (heads, *cells):
        print("  ".join(f"{text:>{width}}" for text, width in zip(line, widths, strict=True)))


_HIDDEN = ("run", "error", "multiply_adds", "seconds", "training_seconds")
_HEADS = {
    "milliseconds_a_step": "ms/step",
    "steps_to_target": "steps to target",
    "seconds_to_target": "seconds to target",
    "cross_validation": "cross-validation",
}


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name in ("accuracy", "validation", "cross_validation"):
        return as_percent(value)
    if name == "milliseconds_a_step":
        return f"{value:.1f}"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
