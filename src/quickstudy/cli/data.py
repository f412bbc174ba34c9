"""`quickstudy data`: named data sets, downloaded and listed."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from quickstudy.cli.display import interruptible, print_json
from quickstudy.cli.options import DataFolder, Json, Quiet
from quickstudy.cli.usage import Commands

app = typer.Typer(
    cls=Commands,
    help="Get and list named data sets, such as cifar10 and mnist.",
    epilog="Example: quickstudy data get mnist",
    rich_markup_mode=None,
)


@app.command("get", epilog="Example: quickstudy data get cifar10 --from https://mirror.example/cifar")
def get(
    name: Annotated[
        str, typer.Argument(help="Name of the data set; 'quickstudy data list' shows them.", show_default=False)
    ],
    source: Annotated[
        str | None,
        typer.Option("--from", help="Another source: the address of a mirror or file, or a local file or folder."),
    ] = None,
    data_folder: DataFolder = None,
    quiet: Quiet = False,
) -> None:
    """Download a data set, check it and unpack it; does nothing if it is already there."""
    from quickstudy.images import named
    from quickstudy.progress import Bar, silent

    progress = silent if quiet or not sys.stderr.isatty() else Bar(unit="bytes")
    with interruptible("complete files are kept, and the same command fetches the rest"):
        place = named.get(name, folder=data_folder, source=source, progress=progress)
    print(f"{name}: {place}")


@app.command("list", epilog="Example: quickstudy data list --json")
def list_data_sets(
    data_folder: DataFolder = None,
    as_json: Json = False,
) -> None:
    """List the named data sets: their images, the size to download, and where they are here."""
    from quickstudy.images import named

    places = {name: named.find(name, data_folder) for name in named.NAMED}
    if as_json:
        rows = [
            {
                "name": entry.name,
                "title": entry.title,
                "images": entry.images,
                "download_bytes": entry.download_bytes,
                "place": str(place) if (place := places[entry.name]) else None,
            }
            for entry in named.NAMED.values()
        ]
        print_json(rows)
        return
    print(f"Data folder: {named.data_folder(data_folder)}")
    print(f"  {'name':<13}  {'images':>7}  {'download':>9}  here")
    for entry in named.NAMED.values():
        size = f"{entry.download_bytes / 1e6:.0f} MB" if entry.files else "none"
        print(f"  {entry.name:<13}  {entry.images:>7,}  {size:>9}  {places[entry.name] or 'not here'}")
    print("Get one with: quickstudy data get NAME")
