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
Device = Annotated[
    str, typer.Option(metavar="cpu|cuda", help="What runs the network: ONNX Runtime on the processor, or a GPU.")
]
