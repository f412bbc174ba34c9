"""`quickstudy backbone`: pretrained networks; adding others, what they cost, where they can be cut."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from quickstudy.cli.display import print_json
from quickstudy.cli.options import Cache, EngineName, Json
from quickstudy.cli.usage import Commands
from quickstudy.extras import installation_of
from quickstudy.wording import pasted

if TYPE_CHECKING:
    from quickstudy.backbones.backbone import Backbone
    from quickstudy.backbones.engines.engine import Engine
    from quickstudy.backbones.sources.graph_import import Imported

app = typer.Typer(
    cls=Commands,
    help="Add pretrained networks, list and compare them, show where they can be cut.",
    epilog="Example: quickstudy backbone list",
    rich_markup_mode=None,
)

_BYTES_A_VALUE = 2  # float16, as the store keeps them


@app.command("add", epilog="Example: quickstudy backbone add keras:MobileNetV3Small")
def add(
    source: Annotated[
        str,
        typer.Argument(
            help="keras:NAME (in keras.applications), timm:NAME, hf:OWNER/REPO[@REVISION][:FILE], FILE.onnx, or what "
            "'backbone pack' has written."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the new backbone [default: made from SOURCE].")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights file; keras: *.h5, *.keras; timm: *.pth [default: those for ImageNet, downloaded once]."
        ),
    ] = None,
    top: Annotated[
        bool, typer.Option("--top/--no-top", help="keras, timm: take the network with its classifier, if it has one.")
    ] = True,
    size: Annotated[int | None, typer.Option(help="Side of the input in pixels, if SOURCE does not fix it.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="Layout of the input: NCHW or NHWC [default: told by its shape].")
    ] = None,
    preprocessing: Annotated[
        str | None,
        typer.Option(
            help="How the network expects pixels: tf, torch, caffe or none, as in Keras [default: from the graph]."
        ),
    ] = None,
    value_range: Annotated[
        str | None, typer.Option("--range", help="Instead of --preprocessing: what 0 and 255 become, such as -1..1.")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="What is then subtracted, such as 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option(help="What is then divided by, such as 0.229,0.224,0.225.")] = None,
    features: Annotated[
        str | None, typer.Option(help="Tensor of the penultimate layer's output [default: found by itself].")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="The output to use, if a file has several [default: image_embeds, last_hidden_state or pooler_output]."
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            help="What to take of a transformer's tokens: cls, mean (of the patches) or both [default: as its family "
            "does]."
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            help="How photos are resized: own (quickstudy's way, the fastest), nearest, bilinear, bicubic or lanczos "
            "(Pillow's) [default: as SOURCE says, else own]."
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="Text file with one class name on each line [default: the names in the file, if quickstudy wrote it; "
            "ImageNet's, if there are 1,000]."
        ),
    ] = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Make a backbone from a network, compare it with the original, and keep it."""
    from quickstudy.backbones.graphs.preprocessing import choose_preprocessing
    from quickstudy.backbones.sources.adding import BackboneSource, add_from, read_classes
    from quickstudy.backbones.sources.packing import add_packed, is_packed
    from quickstudy.errors import OptionError
    from quickstudy.files import as_path, cache_folder

    wanted = BackboneSource(
        place=source,
        weights=weights,
        top=top,
        size=size,
        layout=layout,
        preprocessing=choose_preprocessing(preprocessing, value_range=value_range, mean=mean, std=std),
        features=features or "",
        output=output,
        tokens=tokens or "",
        resize=resize or "",
        classes=read_classes(classes) if classes is not None else None,
    )
    if is_packed(as_path(source)):
        if wanted != BackboneSource(place=source):
            raise OptionError(f"'{source}' holds a backbone as it was packed; leave out all options but --name")
        packed = add_packed(as_path(source), cache_folder(cache), name=name)
        if as_json:
            print_json(_describe(packed))
        else:
            _print_unpacked(packed)
        return
    added, imported = add_from(wanted, cache_folder(cache), name=name)
    if as_json:
        print_json({**_describe(added), "found": imported.found, "difference": imported.difference})
    else:
        print_added(added, imported)


@app.command("pack", epilog="Example: quickstudy backbone pack efficientnet_lite0 -o lite0.backbone")
def pack(
    name: Annotated[str, typer.Argument(help="A backbone's name, as 'quickstudy backbone list' shows it, or hf:….")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write [default: NAME.backbone].")
    ] = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Write a backbone to one file, which 'quickstudy backbone add FILE' takes on a machine without a network."""
    from quickstudy.backbones.loading import load_backbone
    from quickstudy.backbones.names import reads_names
    from quickstudy.backbones.sources.packing import pack_backbone
    from quickstudy.files import cache_folder

    backbone = load_backbone(name, cache_folder(cache))
    path = output or Path(f"{backbone.name}.backbone")
    pack_backbone(backbone, path)
    without_text = reads_names(backbone)
    if as_json:
        left_out = ["text tower"] if without_text else []
        print_json({**_describe(backbone), "packed": str(path), "bytes": path.stat().st_size, "left_out": left_out})
    else:
        print(f"Packed {backbone.name}, from {backbone.origin}, as {path} ({path.stat().st_size / 1e6:.1f} MB)")
        if without_text:
            print(
                "Left out: the tower for text; where this is to go, 'suggest' and '--prior names' need the hub, or a "
                "copy of its cache"
            )
        print(f"Next, where it is to go:  {pasted('backbone', 'add', path)}")


@app.command("list", epilog="Example: quickstudy backbone list --json")
def list_backbones(
    available: Annotated[
        bool, typer.Option("--available", help="List what is worth trying on the hub instead, with published figures.")
    ] = False,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """List the backbones; those not yet measured on this machine are measured first, a second each.

    A speed measured beside other busy programs is measured again next time. Exits with 2 if no backbone can be used.
    """
    from quickstudy.backbones.backbone import backbone_names
    from quickstudy.files import cache_folder

    if available:
        _print_available(cache_folder(cache), as_json=as_json)
        return
    _print_table(_rows(backbone_names(cache_folder(cache)), cache), as_json=as_json)


@app.command("bench", epilog="Example: quickstudy backbone bench efficientnet_lite0 efficientnet_lite2")
def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Backbones [default: all].")] = None,
    engine: EngineName = "onnxruntime",
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Measure again how fast backbones are on this machine: images a second up to the features, without decoding."""
    from quickstudy.backbones.backbone import backbone_names
    from quickstudy.backbones.engines.named import engine_for
    from quickstudy.backbones.loading import load_backbone
    from quickstudy.files import cache_folder

    runner = engine_for(engine)
    for name in names or ():
        load_backbone(name, cache_folder(cache))  # what was asked for by name is an error where it cannot be had
    _print_table(_rows(names or backbone_names(cache_folder(cache)), cache, measured_with=runner), as_json=as_json)


@app.command("show", epilog="Example: quickstudy backbone show efficientnet_lite0")
def show(
    name: Annotated[str, typer.Argument(help="A backbone's name, as 'quickstudy backbone list' shows it.")],
    images: Annotated[int, typer.Option(min=1, help="How many images to predict times and sizes for.")] = 1000,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Show where a backbone can be cut, and what each cut costs, measured on this machine if torch is installed."""
    from quickstudy.backbones.loading import load_backbone
    from quickstudy.files import cache_folder

    backbone = load_backbone(name, cache_folder(cache))
    cuts = _cuts(backbone, images)
    work = backbone.cuts[-1].multiply_adds
    if as_json:
        print_json({**_describe(backbone), "images": images, "cuts": cuts})
        return
    print(f"{backbone.name}, from {backbone.origin}: {backbone.input.size}×{backbone.input.size} pixels, ", end="")
    print(f"{work / 1e6:,.1f} million multiply-adds, {len(backbone.classes):,} classes\n")
    rows = [
        (
            cut["name"],
            "×".join(str(side) for side in cut["shape"]),
            f"{cut['bytes'] / 1e3:,.1f}",
            f"{100 * cut['work_frozen']:.1f} %",
            f"{cut['parameters_after']:,}",
            f"{images * cut['bytes'] / 1e6:,.1f}",
            *(("–" if cut[key] is None else f"{cut[key]:,.1f}") for key in ("fill_seconds", "epoch_seconds")),
        )
        for cut in cuts
    ]
    head = ("cut", "shape", "kB an image", "work frozen", "parameters after", "MB", "s to fill", "s an epoch")
    _print_rows(head, rows, left=2)
    print(
        f"\nMB, seconds to fill the store and seconds an epoch are for {images:,} images, one view, without decoding",
        end="",
    )
    print("." if cuts[-1]["fill_seconds"] is not None else f"; seconds need PyTorch: {installation_of('train')}")
    print(f"Next:  quickstudy retrain photos/ --backbone {name} --cut {_middle(backbone)}")


def _cuts(backbone: Backbone, images: int) -> list[dict[str, Any]]:
    """Describe each cut; seconds are None where there is no torch to measure them with."""
    import importlib.util

    work = backbone.cuts[-1].multiply_adds
    cuts: list[dict[str, Any]] = [
        {
            **asdict(cut),
            "bytes": cut.values * _BYTES_A_VALUE,
            "work_frozen": round(cut.multiply_adds / work, 4),
            "fill_seconds": None,
            "epoch_seconds": None,
        }
        for cut in backbone.cuts
    ]
    if importlib.util.find_spec("torch") is not None:
        from quickstudy.retraining.planning import measure_costs

        for cut, cost in zip(cuts, measure_costs(backbone), strict=True):
            cut["fill_seconds"] = images * cost.prefix_seconds
            cut["epoch_seconds"] = images * cost.training_seconds if cost.trainable else None
    return cuts


def _middle(backbone: Backbone) -> str:
    """Name a cut worth trying: about two thirds on."""
    cuts = backbone.cuts[:-1] or backbone.cuts
    return cuts[2 * len(cuts) // 3].name


def _rows(names: Sequence[str], cache: Path | None, *, measured_with: Engine | None = None) -> list[dict[str, Any]]:
    """Describe each backbone, or say why it cannot be had; known speeds count where no engine is named."""
    from quickstudy.backbones.engines.named import ONNX_RUNTIME
    from quickstudy.backbones.engines.speed import known_speed, measure_speed
    from quickstudy.backbones.loading import load_backbone
    from quickstudy.errors import BackboneError, InstallationError
    from quickstudy.files import cache_folder

    rows = []
    for name in names:
        try:
            backbone = load_backbone(name, cache_folder(cache))
            speed = None if measured_with else known_speed(backbone)
            if speed is None and sys.stderr.isatty():
                print(f"Measuring {name} …", file=sys.stderr)
            speed = speed or measure_speed(backbone, engine=measured_with or ONNX_RUNTIME)
            rows.append({**_describe(backbone), "images_per_second": speed})
        except (BackboneError, InstallationError) as error:
            rows.append({"name": name, "error": str(error)})
    return rows


def _describe(backbone: Backbone) -> dict[str, Any]:
    return {
        "name": backbone.name,
        "origin": backbone.origin,
        "licence": backbone.licence or None,
        "input_size": backbone.input.size,
        "megabytes": round(backbone.path.stat().st_size / 1e6, 1),
        "features": backbone.cuts[-1].values,
        "multiply_adds": backbone.cuts[-1].multiply_adds,
        "classes": len(backbone.classes),
        "imagenet_top1": backbone.top1,
        "cuts": [cut.name for cut in backbone.cuts],
        "fingerprint": backbone.fingerprint,
    }


def print_added(added: Backbone, imported: Imported, *, file: TextIO | None = None) -> None:
    """Print what was found out about a network that has become a backbone, to `file` or the standard output."""
    print(f"Added {added.name} from {added.origin} ({added.path.stat().st_size / 1e6:.1f} MB)", file=file)
    for what, value in imported.found.items():
        print(f"  {what:<13}  {value}", file=file)
    print(f"  {'cuts':<13}  {', '.join(cut.name for cut in added.cuts)}", file=file)
    told = f"differs from the original by {imported.difference:.1e} of the largest value"
    print(f"  {'verified':<13}  {told}", file=file)
    print(f"\nNext:  quickstudy retrain photos/ --backbone {added.name}", file=file)


def _print_unpacked(added: Backbone) -> None:
    print(f"Added {added.name} from {added.origin} ({added.path.stat().st_size / 1e6:.1f} MB)")
    print(f"  {'licence':<13}  {added.licence or 'not stated'}")
    print(f"  {'verified':<13}  the graph has the hash with which it was packed")
    print(f"\nNext:  quickstudy retrain photos/ --backbone {added.name}")


def _print_table(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print what is known of each backbone; exits with 2 where that is nothing but errors."""
    failed = all("error" in row for row in rows)
    if as_json:
        print_json(list(rows))
        if failed:
            raise typer.Exit(2)
        return
    table = [
        (
            row["name"],
            f"{row['images_per_second']:.0f}" if row["images_per_second"] >= 10 else f"{row['images_per_second']:.1f}",
            f"{row['megabytes']:,.1f}",
            str(row["input_size"]),
            f"{row['features']:,}",
            "–" if row["imagenet_top1"] is None else f"{row['imagenet_top1']:.1f} %",
            row["origin"],
        )
        for row in rows
        if "error" not in row
    ]
    if table:
        head = ("name", "images/s", "megabytes", "pixels", "features", "ImageNet", "from")
        _print_rows(head, table, left=1, right=6)
    for row in rows:
        if "error" in row:
            print(f"{row['name']}: {row['error']}", file=sys.stderr if failed else sys.stdout)
    if failed:
        raise typer.Exit(2)


def _print_available(cache: Path, *, as_json: bool) -> None:
    """Print what is worth trying on the hub, and whether it is here."""
    from quickstudy.backbones.sources.available import AVAILABLE

    if as_json:
        print_json([{**asdict(one), "name": one.name, "here": one.is_here(cache)} for one in AVAILABLE])
        return
    rows = [
        (
            one.place,
            str(one.megabytes),
            "–" if one.top1 is None else f"{one.top1:.1f} %",
            one.licence,
            one.extra,
            "here" if one.is_here(cache) else "",
            one.source,
        )
        for one in AVAILABLE
    ]
    head = ("name", "megabytes", "published", "licence", "extra", "", "what is published, and by whom (ImageNet)")
    _print_rows(head, rows, left=1, right=3)
    print(f"\nNext:  {pasted('backbone', 'add', AVAILABLE[0].place)}")


def _print_rows(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int, right: int | None = None) -> None:
    """Print a table whose columns from `left` on, up to `right`, are numbers."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = [
            f"{cell:>{width}}" if left <= column < (right or len(head)) else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
