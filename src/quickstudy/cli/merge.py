"""`quickstudy merge`: classes that were taught in browsers, as one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quickstudy.cli.options import Cache, Json


def command(
    files: Annotated[
        list[Path],
        typer.Argument(help="Files of classes that pages of export --web --trainable saved.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model to write.")] = Path("classes.onnx"),
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Join classes that were taught in browsers, of one person or several, and write them as a model."""
    from quickstudy.cli.display import format_score, print_json, print_never_held_out
    from quickstudy.retraining.merging import merge
    from quickstudy.wording import count, pasted

    merged = merge(files, output, cache=cache)
    if as_json:
        print_json(merged.to_dict())
        return
    if merged.copies:
        print(f"{count(merged.copies, 'picture')} more than once under one class; each counts once")
    for one in merged.contradictions:
        places = ", ".join(f"'{name}' in {path} ({picture})" for path, name, picture in one.places)
        print(f"Left out, since it is of two classes: {places}")
    width = max(map(len, [*merged.counts, "class"]))
    print(f"\n  {'class':{width}}  pictures")
    for name, number in merged.counts.items():
        print(f"  {name:{width}}  {number:8,}")
    if merged.cross_validation.n:
        print(f"\nCross-validated accuracy  {format_score(merged.cross_validation)}")
        print_never_held_out(merged.never_held_out, merged.cross_validation.n)
    print(f"\nModel: {output} ({output.stat().st_size / 1e6:.1f} MB), its golden checks passed")
    print(f"Next:  {pasted('predict', output, 'new.jpg')}")
