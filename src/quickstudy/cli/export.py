"""`quickstudy export`: a run as a model, and a model in other forms, each run and compared before it is handed over."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quickstudy.cli.display import format_score, print_json, progress_for
from quickstudy.cli.options import CheckpointStep, Json, Quiet
from quickstudy.cli.usage import refuse_beside
from quickstudy.extras import require
from quickstudy.files import require_place_for, write_bytes_atomically
from quickstudy.wording import pasted

if TYPE_CHECKING:
    from quickstudy.models.conversion import Conversion, Form
    from quickstudy.models.model import Model


def command(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="MODEL|RUN", help="A model (.onnx), or a run's folder.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The model to write [default: RUN/model.onnx, MODEL.int8.onnx, …]."),
    ] = None,
    checkpoint: CheckpointStep = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Compute in 8-bit integers: a third of the size, faster; needs --calibrate.")
    ] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Keep the weights as float16: half the size.")] = False,
    web: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a static web page that classifies photos in the browser.")
    ] = None,
    trainable: Annotated[
        bool, typer.Option("--trainable", help="--web: the page also learns classes that are shown to it.")
    ] = False,
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGES", help="--trainable: the page begins with the classes of these images, 50 of each."
        ),
    ] = None,
    coreml: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a Core ML package (.mlpackage) for apps on Apple's devices."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the classes to this file, one on each line.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a model card to this file, in Markdown.")
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="IMAGES", help="--int8: a hundred photos or more, like those that the model is for."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGES",
            help="Photos on which to compare the export with the original; with labels, also its accuracy.",
        ),
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(metavar="DIR|TGZ", help="--web: take onnxruntime-web from here instead of fetching it with npm."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Write the export even if it differs from the original by more than is tolerated."
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a run as a model, or a model in other forms, each checked against what it was made from."""
    if int8 and fp16:
        raise typer.BadParameter("choose one of --int8 and --fp16")
    if int8 and calibrate is None:
        raise typer.BadParameter("--int8 needs photos to calibrate on, as in: --int8 --calibrate photos/")
    if trainable and web is None:
        raise typer.BadParameter("--trainable is for a page: --web DIR --trainable")
    if start is not None and not trainable:
        raise typer.BadParameter("--start is for a page that learns: --web DIR --trainable --start IMAGES")
    if not int8:
        refuse_beside(context, "is for --int8, whose scales it chooses; leave it out, or add --int8", "calibrate")
    if not int8 and not fp16:
        refuse_beside(context, "is for --int8 and --fp16; without them it would do nothing", "check", "force")
    if web is None:
        refuse_beside(context, "is for a page: --web DIR; without it, it would do nothing", "runtime")
    forms = any((int8, fp16, web, coreml, labels, card))
    is_run = source.is_dir() or source.suffix != ".onnx"
    if not forms and not is_run:
        raise typer.BadParameter("say what to make of the model: --int8, --fp16, --web, --coreml, --labels or --card")
    if output is not None and not is_run and not (int8 or fp16):
        raise typer.BadParameter(
            f"--output is for --int8, --fp16 or a run; what is made of {source} here has places of its own: --web DIR, "
            "--coreml, --labels and --card FILE"
        )
    if checkpoint is not None and not is_run:
        raise typer.BadParameter(f"--checkpoint is for a run's folder; {source} is a model")
    for what, path, own in (("list of classes", labels, _is_text), ("card", card, _is_card)):
        if path is not None:
            require_place_for(what, path, own=own, sources=[source, output, check, calibrate])
    opened = functools.cache(_open)
    if labels is not None and not is_run and labels.exists():
        _require_own_list(labels, opened(source).classes)
    results: dict[str, Any] = {}
    model = source
    if is_run:
        require("torch", extra="train")
        from quickstudy.scratch.export import export

        exported = export(source, None if forms and (int8 or fp16) else output, checkpoint=checkpoint or "newest")
        model, of = exported.model, f" of {exported.steps:,}" if exported.steps else ""
        results["model"] = {"model": str(model), "bytes": model.stat().st_size, "step": exported.step}
        if not as_json:
            print(
                f"Model: {model} ({model.stat().st_size / 1e6:.1f} MB), of step {exported.step:,}{of}, "
                "its golden checks passed"
            )
    if int8 or fp16:
        conversion = _convert(model, output, "int8" if int8 else "fp16", calibrate, check, force, quiet, opened)
        results[conversion.kind] = conversion.to_dict()
        if not as_json:
            _print_conversion(conversion)
        model = conversion.path
    if web is not None:
        from quickstudy.models.web import write_site

        site = write_site(
            model, web, trainable=trainable, start=start, runtime=runtime, progress=progress_for(quiet=quiet)
        )
        results["web"] = site.to_dict()
        if not as_json:
            print(f"Page:  {site.page} ({site.bytes / 1e6:.1f} MB), its model's golden checks passed")
            print("Next:  open it in a browser, by a double click or from any web server")
    if coreml is not None:
        require("coremltools", extra="coreml")
        require("torch", extra="coreml")
        from quickstudy.models.coreml import write_core_ml

        package = write_core_ml(model, coreml)
        results["coreml"] = package.to_dict()
        if not as_json:
            print(f"Core ML: {coreml}; {package.checked}")
    _write_texts(model, labels, card, results, opened, as_json=as_json)
    if as_json:
        print_json(results)
    elif model.suffix == ".onnx" and (int8 or fp16 or not forms):
        print(f"Next:  {pasted('predict', model, 'new.jpg')}")


def _open(model: Path) -> Model:
    from quickstudy.models.loading import load

    return load(model)


def _is_text(start: bytes) -> bool:
    return b"\0" not in start


def _require_own_list(path: Path, classes: Sequence[str]) -> None:
    """Refuse to write a list of classes over a text that names none of them, a line each."""

    def own(start: bytes) -> bool:
        return not set(start.decode(errors="replace").splitlines()).isdisjoint(classes)

    require_place_for("list of these classes", path, own=own)


def _is_card(start: bytes) -> bool:
    return start.startswith(b"# ") and _is_text(start)


def _convert(
    model: Path,
    output: Path | None,
    kind: Form,
    calibrate: Path | None,
    check: Path | None,
    force: bool,
    quiet: bool,
    opened: Callable[[Path], Model],
) -> Conversion:
    from quickstudy.models.checks import photos_for_calibration, photos_for_checking
    from quickstudy.models.conversion import convert
    from quickstudy.retraining.evaluation import stat_index

    index = stat_index(None)
    return convert(
        model,
        output or model.with_suffix(f".{kind}.onnx"),
        kind,
        calibrate=photos_for_calibration(calibrate, index, opened(model).labelling) if calibrate else (),
        check=photos_for_checking(check, opened(model), index) if check else (),
        force=force,
        progress=progress_for(quiet=quiet),
    )


def _print_conversion(done: Conversion) -> None:
    from quickstudy.wording import as_percent, count

    print(f"Model: {done.path} ({done.bytes_after / 1e6:.1f} MB instead of {done.bytes_before / 1e6:.1f})")
    print(
        f"       {done.speed_after:.0f} images/s instead of {done.speed_before:.0f} "
        "(the network alone, one thread, here)"
    )
    print(f"       golden images: probabilities differ by at most {done.golden_difference:.2g}")
    if seen := done.agreement:
        same = f"{as_percent(seen.same_share)} {'of labels ' * (seen.each > 1)}{seen.told}"
        print(
            f"       {count(seen.n, 'photo')}: {same}; probabilities differ by {seen.mean_difference:.2g} on average, "
            f"{seen.largest_difference:.2g} at most"
        )
        if seen.refused:
            print(f"       none of these: {seen.refused[1]:,} of them instead of {seen.refused[0]:,}")
        if seen.labelled and seen.accuracy_loss is not None and seen.loss_interval is not None:
            low, high = seen.loss_interval
            print(f"       accuracy before  {format_score(seen.labelled.first)}")
            print(f"       accuracy after   {format_score(seen.labelled.second)}")
            print(f"       {change_told(seen.accuracy_loss, low, high)}")
    else:
        print("       not compared on photos; give some with --check photos/")
    for complaint in done.complaints:
        print(f"       forced although {complaint}")


def change_told(loss: float, low: float, high: float) -> str:
    """Say what an export loses or gains in accuracy, with the ends of the loss's interval."""
    gains = round(1000 * loss) < 0
    if gains:  # the ends change places
        loss, low, high = -loss, -high, -low
    points = round(100 * loss, 1) + 0.0
    what = f"{'gained' if gains else 'lost':<17}{points:.1f} points" if points else f"{'the same':<17}0.0 points apart"
    return f"{what} (95 % interval {round(100 * low, 1) + 0.0:.1f} to {round(100 * high, 1) + 0.0:.1f})"


def _write_texts(
    model: Path,
    labels: Path | None,
    card: Path | None,
    results: dict[str, Any],
    opened: Callable[[Path], Model],
    *,
    as_json: bool,
) -> None:
    """Write the classes and the model card, where they are asked for."""
    if labels is None and card is None:
        return
    from quickstudy.errors import ModelError, WriteError
    from quickstudy.models.card import model_card

    loaded = opened(model)
    if labels is not None:
        _require_own_list(labels, loaded.classes)
    if labels is not None and any("\n" in name or "\r" in name for name in loaded.classes):
        raise ModelError(
            "A class has a line break in its name; one name a line cannot hold it. The model's metadata can"
        )
    texts = {
        "labels": (labels, "".join(f"{name}\n" for name in loaded.classes)),
        "card": (card, model_card(loaded, model.stem) if card else ""),
    }
    for name, (path, text) in texts.items():
        if path is not None:
            try:
                write_bytes_atomically(path, text.encode())
            except OSError as error:
                raise WriteError(f"Cannot write '{path}': {error.strerror}") from None
            results[name] = str(path)
            if not as_json:
                print(f"{name.capitalize()}: {path}")
