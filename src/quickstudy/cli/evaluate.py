"""`quickstudy evaluate`: a model's accuracy on labelled images, or that of a run's checkpoints."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quickstudy.cli.display import (
    format_score,
    now,
    print_evaluation,
    print_figures,
    print_json,
    print_judgement,
    print_skipped,
    progress_for,
)
from quickstudy.cli.options import CheckpointStep, DataFolder, Everything, Json, Quiet
from quickstudy.cli.usage import refuse_beside
from quickstudy.extras import require
from quickstudy.wording import count, quoted

if TYPE_CHECKING:
    from quickstudy.learning.scores import Score

_MOST_MISSING = 20


def command(
    context: typer.Context,
    model: Annotated[
        Path, typer.Argument(help="A model (.onnx), or the folder of a run of quickstudy train.", show_default=False)
    ],
    images: Annotated[
        Path | None,
        typer.Argument(help="Labelled images, laid out as for retrain; leave them out for a run, which has its own."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Run: follow it until it ends.")] = False,
    split: Annotated[
        str | None,
        typer.Option(help="Run: validation or test [default: validation if the run holds some out, else test]."),
    ] = None,
    checkpoint: CheckpointStep = None,
    data: Annotated[str | None, typer.Option(help="Run: where its images are now [default: where they were].")] = None,
    ema: Annotated[bool, typer.Option(help="Run: use the averaged parameters.")] = True,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Run: seconds between looks for a new checkpoint, with --watch.")
    ] = 5.0,
    data_folder: DataFolder = None,
    everything: Everything = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a model on labelled images, matching classes by name; or follow the checkpoints of a training."""
    is_run = (model / "config.json").is_file() or (images is None and (watch or model.suffix != ".onnx"))
    if is_run:
        if everything:
            raise typer.BadParameter("--all is for a model and labelled images; a run is scored on its own")
        if watch and checkpoint is not None:
            raise typer.BadParameter("--watch takes each newest checkpoint; leave out --checkpoint, or --watch")
        if not watch:
            refuse_beside(context, "is for --watch, without which nothing is waited for; leave it out", "interval")
        _evaluate_run(
            model, images, watch, checkpoint or "newest", split, ema, interval, data, data_folder, as_json, quiet
        )
        return
    why = f"is for the run of a training; '{model}' is a model, for which it would do nothing"
    refuse_beside(context, why, "watch", "split", "checkpoint", "data", "ema", "interval", "data_folder")
    if images is None:
        raise typer.BadParameter("name the labelled images, as in: quickstudy evaluate photos.onnx held_out/")
    from quickstudy.retraining.evaluation import evaluate

    evaluation = evaluate(model, images, everything=everything, progress=progress_for(quiet=quiet))
    if as_json:
        print_json(evaluation.to_dict())
        return
    caution = ", NOT A TEST" if evaluation.is_test is False else ""
    if evaluation.several:
        print(f"{model} on {images}: {count(evaluation.score.n, 'image')}{caution}")
        print_figures(evaluation.several, evaluation.score.n)
    else:
        print(f"{model} on {images}: accuracy {format_score(evaluation.score)}{caution}")
    if evaluation.answered is not None:
        refused = evaluation.score.n - evaluation.answered.n
        print(f"Without {refused:,} that it takes for none of these: {format_score(evaluation.answered)}")
    if evaluation.strangers is not None:
        print(f"Of {_refused(evaluation.strangers, 'of classes that it does not know')}")
    if evaluation.examples is not None:
        print(f"Of {_refused(evaluation.examples, 'labelled as of none of its classes')}")
    print_evaluation(evaluation)
    if evaluation.missing:
        missing = quoted(evaluation.missing, most=_MOST_MISSING)
        print(f"\nNo image that was scored is of these classes of the model: {missing}")
    print_judgement(evaluation.judgement)
    print_skipped(evaluation.skipped)


def _refused(score: Score, what: str) -> str:
    return f"{count(score.n, 'image')} {what}, it takes {score.right:,} for none of these"


def _evaluate_run(
    run: Path,
    images: Path | None,
    watch: bool,
    checkpoint: str,
    split: str | None,
    ema: bool,
    interval: float,
    data: str | None,
    data_folder: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    if images is not None:
        raise typer.BadParameter(f"a run brings its own images; to score it on {images}, export it first")
    if split not in (None, "validation", "test"):
        raise typer.BadParameter(f"--split is '{split}'; expected validation or test")
    require("torch", extra="train")
    from quickstudy.scratch.evaluation import Evaluator

    if watch:
        _await(run, interval, quiet=quiet)
    evaluator = Evaluator(run, split=split, averaged=ema, data=data, data_folder=data_folder)
    results = evaluator.follow(interval_seconds=interval) if watch else iter([evaluator.evaluate(checkpoint)])
    for result in results:
        if as_json:
            print(json.dumps({"step": result.step, "split": result.split, **result.scores.to_dict()}), flush=True)
            continue
        print(
            f"{now()}: accuracy = {result.score.accuracy:.3f} "
            f"(step {result.step:,} of {evaluator.steps:,}, {result.score.n:,} {result.split} images)",
            flush=True,
        )
        if not watch:
            print_evaluation(result.scores)


def _await(run: Path, interval: float, *, quiet: bool) -> None:
    """Wait for a run that has not begun yet; a folder that holds something else will not become one."""
    if (run / "config.json").is_file() or (run.exists() and (not run.is_dir() or any(run.iterdir()))):
        return
    if not quiet:
        print(f"Waiting for '{run}' to begin …", file=sys.stderr, flush=True)
    while not (run / "config.json").is_file():
        time.sleep(interval)
