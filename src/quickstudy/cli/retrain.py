"""`quickstudy retrain`: from a folder of photos to a verified classifier."""

from __future__ import annotations

import json
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quickstudy.cli.options import Cache, Json, Quiet

if TYPE_CHECKING:
    from quickstudy.retraining.retrain import RetrainResult


class ClassWeight(StrEnum):
    """Values of --class-weight."""

    BALANCED = "balanced"


class Dtype(StrEnum):
    """Values of --dtype."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"


def command(
    images: Annotated[
        Path,
        typer.Argument(help="photos/<class>/*.jpg, photos/train|test/<class>/*.jpg, or a .csv or .parquet manifest."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The model to write [default: <name of IMAGES>.onnx].")
    ] = None,
    backbone: Annotated[str, typer.Option(help="The pretrained network.")] = "efficientnet_lite0",
    views: Annotated[int, typer.Option(min=0, help="Distorted views an image to train on besides the plain one.")] = 0,
    flip: Annotated[bool, typer.Option(help="Views may be mirrored left to right.")] = True,
    random_crop: Annotated[float, typer.Option(help="Views: widest margin cut away, in percent of the side.")] = 10,
    random_scale: Annotated[float, typer.Option(help="Views: strongest enlargement, in percent.")] = 10,
    random_brightness: Annotated[float, typer.Option(help="Views: largest change of brightness, in percent.")] = 10,
    class_weight: Annotated[
        ClassWeight | None, typer.Option(help="Weigh all classes the same, however many images they have.")
    ] = None,
    l2: Annotated[
        float | None, typer.Option(help="Regularisation strength [default: chosen by cross-validation].")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="How bottlenecks are kept.")] = Dtype.FLOAT16,
    strict: Annotated[bool, typer.Option("--strict", help="A file that cannot be used is an error.")] = False,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier on a folder of images and write it as one .onnx file."""
    started = time.perf_counter()
    from quickstudy.cli.display import progress_for
    from quickstudy.images.views import Distortions
    from quickstudy.retraining.retrain import retrain

    result = retrain(
        images,
        output,
        backbone=backbone,
        views=views,
        distortions=Distortions(
            flip=flip, crop=random_crop / 100, scale=random_scale / 100, brightness=random_brightness / 100
        ),
        class_weight="balanced" if class_weight else None,
        l2=l2,
        dtype=dtype.value,
        cache=cache,
        strict=strict,
        progress=progress_for(quiet=quiet),
    )
    if as_json:
        json.dump(result.to_dict(), sys.stdout, indent=1)
        print()
    else:
        _print_summary(result, images, time.perf_counter() - started)


def _print_summary(result: RetrainResult, images: Path, seconds: float) -> None:
    from quickstudy.cli.display import count, format_score, print_evaluation, print_skipped
    from quickstudy.retraining.evaluation import score_predictions

    train, test = sum(result.train_counts.values()), sum(result.test_counts.values())
    print(
        f"{images}: {train + test:,} images of {len(result.classes)} classes; {train:,} to train on, {test:,} to test"
    )
    passes = count(result.computed, "forward pass", "forward passes")
    print(f"{passes}, {count(result.cached, 'bottleneck')} from the store")
    if result.copies:
        print(f"{result.copies:,} files are exact copies of others; each content counts once")
    if result.leaks:
        print(f"{result.leaks:,} images are in both train and test; left out of training")
    for group in result.conflicts[:5]:
        print(f"Conflict: the same image under different labels, left out: {', '.join(str(path) for path in group)}")
    if len(result.conflicts) > 5:
        print(f"… and {len(result.conflicts) - 5} more conflicts; --json lists all")
    print_skipped(result.skipped)
    evaluation = result.test or score_predictions([], [], result.classes)
    print_evaluation(evaluation, train_counts=result.train_counts)
    print(f"\nCross-validated accuracy  {format_score(result.cross_validation)}")
    print(f"Test accuracy             {format_score(evaluation.score)}")
    if not result.head.converged:
        print(f"Warning: the head has not converged; its loss may be {result.head.gap:.0e} nats above the optimum")
    strengths = ", ".join(f"{point.l2:.2g}: {point.log_loss:.3f}" for point in result.path)
    print(f"Regularisation {result.head.l2:.2g}" + (f", of log losses {strengths}" if strengths else ""))
    stages = ", ".join(f"{name} {spent:.2f}" for name, spent in result.seconds.items())
    print(f"Seconds: {stages}; {seconds:.2f} in all")
    print(f"\nModel: {result.model} ({result.model.stat().st_size / 1e6:.1f} MB), its golden checks passed")
    print(f"Next:  quickstudy predict {result.model} new.jpg")
