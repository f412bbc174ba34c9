"""`quickstudy export`: a run as one .onnx model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quickstudy.cli.extras import require


def command(
    run: Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The model to write [default: RUN/model.onnx].")
    ] = None,
) -> None:
    """Write the newest checkpoint of a run as a model, checked against torch."""
    require("torch", extra="train")
    from quickstudy.training.export import export

    path = export(run, output)
    print(f"Model: {path} ({path.stat().st_size / 1e6:.1f} MB), its golden checks passed")
    print(f"Next:  quickstudy predict {path} new.jpg")
