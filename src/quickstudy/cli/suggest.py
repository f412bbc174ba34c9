"""`quickstudy suggest`: labels for photos without one, from the classes' names alone, as a plan to review."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quickstudy.cli.display import format_score, print_json, print_plan, print_skipped, progress_for
from quickstudy.cli.options import Cache, EngineName, Json, Quiet
from quickstudy.cli.usage import refuse_beside
from quickstudy.wording import as_probability, count, pasted

_NETWORK = "hf:Xenova/clip-vit-base-patch32"


def command(
    context: typer.Context,
    images: Annotated[
        Path,
        typer.Argument(help="A folder or manifest; photos without a label may lie loose in it or in unlabelled/."),
    ],
    names: Annotated[
        str | None,
        typer.Option(help="Names of the classes with commas between them [default: those of the labels there are]."),
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="A network with a tower for photos and one for text, such as CLIP or SigLIP.")
    ] = _NETWORK,
    template: Annotated[
        list[str] | None,
        typer.Option(help="A sentence with {} for the name; several times for their mean [default: a photo of a {}.]."),
    ] = None,
    sure: Annotated[
        float,
        typer.Option(min=0, max=100, metavar="PERCENT", help="Plan to label a photo from this probability on."),
    ] = 50.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PLAN", help="Write the plan, as CSV to review.")
    ] = None,
    engine: EngineName = "onnxruntime",
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many photos.")] = 10,
    cache: Cache = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Suggest labels for photos without one, from the names of the classes alone; nothing is learned or changed."""
    from quickstudy.backbones.names import TEMPLATES
    from quickstudy.reports.plan import require_new, write_plan
    from quickstudy.reports.suggesting import name_photos

    if output:
        require_new(output)
    else:
        refuse_beside(context, "is for the plan, which --output PLAN writes; without it, it would do nothing", "sure")
    found = name_photos(
        images,
        backbone=backbone,
        names=[name.strip() for name in (names or "").split(",") if name.strip()],
        templates=template or TEMPLATES,
        engine=engine,
        cache=cache,
        progress=progress_for(quiet=quiet),
    )
    steps = found.plan(sure / 100)
    if output:
        write_plan(output, steps)
    if as_json:
        print_json(found.to_dict())
        return
    print(f"{images}: {count(len(found.photos), 'photo')} without a label; names: {', '.join(found.names)}")
    print_skipped(found.skipped)
    if found.labelled.n:
        print(f"Of the photos that have a label, by its name alone: {format_score(found.labelled)} are right")
    if found.photos:
        print()
    for step, photo in list(zip(steps, found.photos, strict=True))[:limit]:
        print(f"  {as_probability(photo.probability, 0):>6}  {step.path}: '{photo.name}'")
    if len(found.photos) > limit:
        print(f"  … and {len(found.photos) - limit:,} more; --limit shows more, --json all")
    if output:
        print_plan(output, steps, images)
    elif found.photos:
        given = ("--names", names) if names else ()
        print(f"\nNext: {pasted('suggest', images, *given, '--backbone', backbone, '-o', 'plan.csv')}")
