"""`quickstudy report`: one HTML file on how far to trust a model, and what is wrong with its images."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from quickstudy.cli.options import Cache, Quiet

Open = Annotated[
    bool | None,
    typer.Option("--open/--no-open", help="Open it in the browser [default: yes, in the terminal of a desktop]."),
]


def command(
    model: Annotated[Path, typer.Argument(help="A model (.onnx) that retrain wrote.", show_default=False)],
    images: Annotated[
        Path | None, typer.Argument(help="The images that it was trained on [default: where they were at that time].")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write [default: <name of MODEL>.report.html].")
    ] = None,
    open_: Open = None,
    cache: Cache = None,
    quiet: Quiet = False,
) -> None:
    """Write a report on a model and its images as one HTML file that needs no network."""
    from quickstudy.cli.display import progress_for
    from quickstudy.reports.report import report

    path = report(model, images, output=output, cache=cache, progress=progress_for(quiet=quiet))
    print(f"Report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if sees_browser() if open_ is None else open_:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


def sees_browser() -> bool:
    """Tell whether somebody sits at a terminal with a display, where a browser can be opened."""
    has_display = sys.platform in ("darwin", "win32") or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY"))
    return sys.stdout.isatty() and has_display and "SSH_CONNECTION" not in os.environ
