"""`quickstudy compare`: two models on the same labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quickstudy.cli.display import format_score, print_json, print_judgement, print_skipped, progress_for
from quickstudy.cli.options import Everything, Json, Quiet
from quickstudy.wording import count, printable

_MOST_SHOWN = 10


def command(
    first: Annotated[Path, typer.Argument(help="A model (.onnx).", show_default=False)],
    second: Annotated[Path, typer.Argument(help="The model to compare it with.", show_default=False)],
    images: Annotated[
        Path,
        typer.Argument(help="Labelled images, laid out as for retrain; if there is a test split, only that is used."),
    ],
    everything: Everything = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score two models on the same labelled images: is one better, and where do they differ?"""
    from quickstudy.retraining.evaluation import compare

    found = compare(first, second, images, everything=everything, progress=progress_for(quiet=quiet))
    if as_json:
        print_json(found.to_dict())
        return
    if found.average_precision:
        print("Images all of whose labels are right:")
    width = max(len(str(first)), len(str(second)))
    print(f"{first!s:<{width}}  {format_score(found.first)}")
    print(f"{second!s:<{width}}  {format_score(found.second)}")
    low, high = found.interval
    print(
        f"\nDifference: {100 * found.difference:+.1f} points for {second} "
        f"(95 % interval {100 * low:+.1f} to {100 * high:+.1f}, paired)"
    )
    print(
        f"{count(found.only_first, 'image')} right by {first} alone, {found.only_second:,} by {second} alone: "
        f"McNemar's exact p = {found.p_value:.2g}"
    )
    if not found.only_first and not found.only_second:
        print("Both are right on the same images, so nothing here tells which is better")
    elif found.p_value >= 0.05:
        print("This may be chance: two equally good models would often differ this much")
    if (gain := found.average_precision) and gain.value is not None:
        print(
            f"Mean average precision: {100 * gain.value:+.1f} points for {second} "
            f"(95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f}, paired bootstrap)"
        )
    print_judgement(found.judgement, models=2)
    if found.differences:
        print(f"\nPredicted differently: {count(len(found.differences), 'image')}")
        for item in found.differences[:_MOST_SHOWN]:
            print(f"  {printable(item.path)} ({item.label}): {item.first} / {item.second}")
        if len(found.differences) > _MOST_SHOWN:
            print(f"  … and {len(found.differences) - _MOST_SHOWN} more; --json lists all")
    print_skipped(found.skipped)
