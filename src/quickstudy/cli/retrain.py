"""`quickstudy retrain`: from a folder of photos to a verified classifier."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quickstudy.cli.display import print_json
from quickstudy.cli.options import Cache, Json, Quiet, Set, offering
from quickstudy.extras import require
from quickstudy.options import pasted, read_assignment
from quickstudy.retraining.config import RetrainConfig

if TYPE_CHECKING:
    from quickstudy.retraining.result import RetrainResult


@offering(RetrainConfig())
def command(
    images: Annotated[
        Path,
        typer.Argument(help="photos/<class>/*.jpg, photos/train|test/<class>/*.jpg, or a .csv or .parquet manifest."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The model to write [default: <name of IMAGES>.onnx].")
    ] = None,
    *,
    given: dict[str, Any],
    options: Set = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write the report, <name of the model>.report.html, at once.")
    ] = False,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier on a folder of images and write it as one .onnx file."""
    started = time.perf_counter()
    config = RetrainConfig.told(given | dict(map(read_assignment, options or [])))
    if config.tunes:
        require("torch", extra="train")
    from quickstudy.cli.display import progress_for
    from quickstudy.retraining.retrain import retrain

    result = retrain(images, output, config, cache=cache, progress=progress_for(quiet=quiet))
    seconds = time.perf_counter() - started
    written = None
    if report:
        from quickstudy.reports.report import report as write_report

        written = write_report(result.model, images, cache=cache, progress=progress_for(quiet=quiet))
    if as_json:
        print_json({**result.to_dict(), "report": str(written) if written else None})
    else:
        _print_summary(result, images, seconds)
        print(f"Report: {written or pasted('report', result.model)}")


def _print_summary(result: RetrainResult, images: Path, seconds: float) -> None:
    from quickstudy.cli.display import count, format_score, print_census, print_evaluation, print_skipped
    from quickstudy.learning.scores import score_predictions

    train, test = sum(result.train_counts.values()), sum(result.test_counts.values())
    print(
        f"{images}: {train + test:,} images of {len(result.classes)} classes; {train:,} to train on, {test:,} to test"
    )
    passes = count(result.computed, "forward pass", "forward passes")
    print(f"{passes}, {count(result.cached, 'bottleneck')} from the store")
    print_census(result.census)
    print_skipped(result.skipped)
    evaluation = result.test or score_predictions([], [], result.classes)
    print_evaluation(evaluation, train_counts=result.train_counts)
    if result.tuning:
        _print_tuning(result, seconds)
    else:
        print(f"\nCross-validated accuracy  {format_score(result.cross_validation)}")
    print(f"Test accuracy             {format_score(evaluation.score)}")
    if result.census.given and not result.test_counts:
        print(f"For a test, put images under {images}/test/<class>/, or lay them out without split folders")
    strengths = ", ".join(f"{point.l2:.2g}: {point.log_loss:.3f}" for point in result.path)
    print(f"Regularisation {result.head.l2:.2g}" + (f", of log losses {strengths}" if strengths else ""))
    stages = ", ".join(f"{name} {spent:.2f}" for name, spent in result.seconds.items())
    print(f"Seconds: {stages}; {seconds:.2f} in all")
    print(f"\nModel: {result.model} ({result.model.stat().st_size / 1e6:.1f} MB), its golden checks passed")
    print(f"Next:  {pasted('predict', result.model, 'new.jpg')}")


def _print_tuning(result: RetrainResult, seconds: float) -> None:
    from quickstudy.cli.display import count, format_score
    from quickstudy.learning.scores import Score

    for stage in result.tuning:
        print(f"\nFine-tuned all that follows '{stage['cut']}': {stage['trained_parameters']:,} parameters")
        print("  epoch  training loss  trained weights  validation log loss  validation accuracy")
        for epoch in stage["epochs"]:
            loss = "–" if epoch["training_loss"] is None else f"{epoch['training_loss']:.3f}"
            share = f"{100 * epoch['share']:.0f} %"
            accuracy = f"{100 * epoch['accuracy']:.1f} %"
            kept = "  kept" if epoch["epoch"] == stage["kept"]["epoch"] else ""
            print(f"  {epoch['epoch']:>5}  {loss:>13}  {share:>15}  {epoch['log_loss']:>19.3f}  {accuracy:>19}{kept}")
        if not stage["kept"]["epoch"]:
            print("  Nothing was better on the validation images than the linear head, which is what the model has.")
    first, last = result.tuning[0]["start"], max((stage["kept"] for stage in result.tuning), key=_rank)
    print()
    for name, found in (("linear head", first), ("fine-tuned", last)):
        score = Score(right=found["right"], n=found["n"])
        print(f"Validation, {name:<13} {format_score(score)}")
    if result.plan:
        print(
            f"Planned: cut '{result.plan['cut']}', {count(result.plan['views'], 'view')}, "
            f"{count(result.plan['epochs'], 'epoch')}, {result.plan['seconds']:.0f} s; it took {seconds:.0f} s"
        )


def _rank(found: dict[str, Any]) -> tuple[int, float]:
    return found["right"], -found["log_loss"]
