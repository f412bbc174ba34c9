"""`quickstudy evaluate`: a model's accuracy on labelled images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from quickstudy.cli.options import Json, Quiet


def command(
    model: Annotated[Path, typer.Argument(help="The model (.onnx).")],
    images: Annotated[Path, typer.Argument(help="Labelled images, laid out as for retrain.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a model on labelled images, matching classes by name."""
    from quickstudy.cli.display import format_score, print_evaluation, print_skipped, progress_for
    from quickstudy.retraining.evaluation import evaluate

    evaluation = evaluate(model, images, progress=progress_for(quiet=quiet))
    if as_json:
        json.dump(evaluation.to_dict(), sys.stdout, indent=1)
        print()
        return
    print(f"{model} on {images}: accuracy {format_score(evaluation.score)}")
    print_evaluation(evaluation)
    if evaluation.missing:
        print(f"\nNo images of these classes of the model: {', '.join(evaluation.missing)}")
    if evaluation.unknown:
        print(
            f"\nThe model does not know these classes, so their images are not scored: {', '.join(evaluation.unknown)}"
        )
    print_skipped(evaluation.skipped)
