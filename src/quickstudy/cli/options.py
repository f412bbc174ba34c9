"""Options that several commands share."""

from __future__ import annotations

import enum
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
Device = Annotated[str, typer.Option(metavar="cpu|cuda", help="What the network runs on: the processor, or a GPU.")]


class OnProcessor(enum.StrEnum):
    """What computes bottlenecks on the processor."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


Engine = Annotated[
    OnProcessor,
    typer.Option(help="What computes bottlenecks on the processor; openvino is faster where it multiplies bfloat16."),
]
