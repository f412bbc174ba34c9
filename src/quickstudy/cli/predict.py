"""`quickstudy predict`: classes of images."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quickstudy.cli.display import data_to_stdout, interruptible, print_json
from quickstudy.cli.options import Cache, Json
from quickstudy.cli.usage import command_meant
from quickstudy.extras import require

if TYPE_CHECKING:
    from quickstudy.models.model import Model, Prediction

_ALL_FAILED, _SOME_FAILED = 1, 3  # exit statuses; 2 is an error of use


def command(
    model: Annotated[str, typer.Argument(help="A model (.onnx), or a backbone by name for ImageNet's classes.")],
    images: Annotated[
        list[str],
        typer.Argument(help="Images, folders or patterns such as 'new/*.jpg'; - reads a list of paths from stdin."),
    ],
    top: Annotated[
        int | None, typer.Option(min=1, help="Number of classes to show for each image [default: 1; 5 for backbones].")
    ] = None,
    abstain: Annotated[
        bool,
        typer.Option("--abstain", help="Answer 'don't know' where the probability is below the model's threshold."),
    ] = False,
    as_json: Json = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV in UTF-8: image, rank, label, probability, error.")
    ] = False,
    cache: Cache = None,
) -> None:
    """Print the most probable classes of images; files that cannot be used are named and left out.

    The exit status is 0 where all images could be used, 3 where some could not, and 1 where none could.
    """
    from quickstudy.images.imageset import Skipped

    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    classifier, usual = _load(model, cache)
    count = min(top or usual, len(classifier.classes))
    threshold = classifier.threshold() if abstain else None
    wrong: list[Skipped] = []
    predictions = classifier.predict_each(_expand(images, wrong))
    writer = _write_json if as_json else _write_csv if as_csv else _write_text
    with interruptible():
        done, failed = writer(classifier, predictions, count, threshold, wrong)
    if failed and not as_json and not as_csv:
        print(f"{failed} of {done + failed} could not be used", file=sys.stderr)
    if failed and (meant := command_meant(sys.argv[1:])):
        print(meant, file=sys.stderr)
    if failed:
        raise typer.Exit(_SOME_FAILED if done else _ALL_FAILED)


def _load(model: str, cache: Path | None) -> tuple[Model, int]:
    """Load the classifier; gives it, and how many classes to print unless told."""
    from quickstudy.errors import ModelError
    from quickstudy.models.model import from_backbone, load

    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():  # known without PyTorch
            raise ModelError(
                f"'{model}' is a folder, but not the run of a training; expected a model, such as photos.onnx"
            )
        require("torch", extra="train")
        from quickstudy.scratch.export import export

        return load(export(model).model), 1
    if not Path(model).exists() and Path(model).suffix != ".onnx":
        from quickstudy.backbones.backbone import backbone_names, load_backbone
        from quickstudy.files import cache_folder

        names = backbone_names(cache_folder(cache))
        if model not in names:
            raise ModelError(f"No such model: '{model}'; give an .onnx file or a backbone: {', '.join(names)}")
        backbone = load_backbone(model, cache_folder(cache))
        if not backbone.classes:
            raise ModelError(
                f"The backbone '{model}' has no classifier; train one: quickstudy retrain photos/ --backbone {model}"
            )
        return from_backbone(backbone), 5
    return load(model), 1


def _expand(arguments: list[str], wrong: list[Any]) -> Iterator[str | Path]:
    """Go through the images of files, folders, patterns and standard input; what leads to none goes to `wrong`."""
    import glob

    from quickstudy.images.imageset import Skipped, list_images
    from quickstudy.images.listing import place_of, why_no_file
    from quickstudy.images.manifests import read_list

    for argument in map(os.path.expanduser, arguments):
        if argument == "-":
            for line in read_list(sys.stdin.buffer):
                place = place_of(Path(), line)
                reason = why_no_file(place)
                if reason and os.path.lexists(place) and not os.path.isdir(place):  # noqa: PTH112 (never raises)
                    wrong.append(Skipped(path=place, reason=reason))  # a named pipe, say, to which nobody may write
                else:
                    yield from _expand([line if place == Path(line) else str(place)], wrong)
        elif Path(argument).is_dir():
            paths, skipped = list_images(Path(argument))
            wrong += skipped
            if not paths:
                wrong.append(Skipped(path=Path(argument), reason="no images in this folder"))
            yield from paths
        elif glob.has_magic(argument) and not Path(argument).exists():
            matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 (patterns may be absolute)
            if not matches:
                wrong.append(Skipped(path=Path(argument), reason="matches no file"))
            for match in matches:
                if Path(match).is_dir():
                    yield from _expand([match], wrong)
                elif reason := why_no_file(Path(match)):
                    wrong.append(Skipped(path=Path(match), reason=reason))
                else:
                    yield match
        else:
            yield argument


def _path(prediction: Prediction) -> str:
    return str(prediction.image)  # here every image is given as its path


def _ranked(model: Model, prediction: Prediction, count: int) -> list[tuple[str, float]]:
    if prediction.probabilities is None:
        return []
    return model.rank(prediction.probabilities, count)


def _answers(ranked: list[tuple[str, float]], threshold: float) -> bool:
    from quickstudy.models.model import is_answer

    return bool(ranked) and is_answer(ranked[0][1], threshold)


def _write_text(
    model: Model, predictions: Iterator[Prediction], count: int, threshold: float | None, wrong: list[Any]
) -> tuple[int, int]:
    done = failed = 0
    for prediction in predictions:
        if prediction.probabilities is None:
            failed += 1
            print(f"{_path(prediction)}: {prediction.reason}", file=sys.stderr)
        else:
            done += 1
            ranked = _ranked(model, prediction, count)
            shown = ", ".join(f"{name} {100 * share:.1f} %" for name, share in ranked)
            if threshold is not None and not _answers(ranked, threshold):
                shown = f"don't know (best guess {shown})"
            print(f"{_path(prediction)}: {shown}")
    for item in wrong:
        failed += 1
        print(f"{item.path}: {item.reason}", file=sys.stderr)
    return done, failed


def _write_csv(
    model: Model, predictions: Iterator[Prediction], count: int, threshold: float | None, wrong: list[Any]
) -> tuple[int, int]:
    data_to_stdout()
    writer = csv.writer(sys.stdout)
    # The column `answered` comes with --abstain only, so that what reads the table otherwise need not change.
    writer.writerow(
        ["image", "rank", "label", "probability", "error", *(["answered"] if threshold is not None else [])]
    )
    done = failed = 0
    for prediction in predictions:
        ranked = _ranked(model, prediction, count)
        answered = [] if threshold is None else ["yes" if _answers(ranked, threshold) else "no"]
        for rank, (name, share) in enumerate(ranked, start=1):
            writer.writerow([_path(prediction), rank, name, f"{share:.6f}", "", *answered])
        if prediction.probabilities is None:
            failed += 1
            writer.writerow([_path(prediction), "", "", "", prediction.reason, *answered])
        else:
            done += 1
    for item in wrong:
        failed += 1
        writer.writerow([item.path, "", "", "", item.reason, *([] if threshold is None else ["no"])])
    return done, failed


def _write_json(
    model: Model, predictions: Iterator[Prediction], count: int, threshold: float | None, wrong: list[Any]
) -> tuple[int, int]:
    rows: list[dict[str, Any]] = []
    for prediction in predictions:
        if prediction.probabilities is None:
            rows.append({"image": _path(prediction), "error": prediction.reason})
        else:
            ranked = _ranked(model, prediction, count)
            row = {
                "image": _path(prediction),
                "predictions": [{"label": name, "probability": round(share, 6)} for name, share in ranked],
            }
            rows.append(row if threshold is None else {**row, "answered": _answers(ranked, threshold)})
    rows += [{"image": str(item.path), "error": item.reason} for item in wrong]
    print_json(rows)
    failed = sum("error" in row for row in rows)
    return len(rows) - failed, failed
