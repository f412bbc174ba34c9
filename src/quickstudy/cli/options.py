"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache", help="Folder for bottlenecks and backbones [default: QUICKSTUDY_CACHE or the user's cache]."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


Everything = Annotated[
    bool,
    typer.Option(
        "--all", help="Score all images, those that the model has learned, too; that is no test, and says so."
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        metavar="onnxruntime|openvino|cuda",
        help="What computes bottlenecks: openvino is faster where the processor multiplies bfloat16; cuda is a GPU.",
    ),
]
