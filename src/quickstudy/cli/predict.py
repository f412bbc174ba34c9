"""`quickstudy predict`: classes of images."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quickstudy.cli.display import data_to_stdout, interruptible, print_json
from quickstudy.cli.options import Cache, Json
from quickstudy.cli.usage import command_meant, refuse_beside
from quickstudy.extras import require
from quickstudy.wording import as_probability, printable

if TYPE_CHECKING:
    from quickstudy.models.model import Model, Prediction

_ALL_FAILED, _SOME_FAILED = 1, 3  # exit statuses; 2 is an error of use


def command(
    context: typer.Context,
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
    sets: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            help="Name sets of classes: the right one is among them for so many percent of images, such as 95.",
        ),
    ] = None,
    by_class: Annotated[
        bool, typer.Option("--by-class", help="With --sets: let that hold for each class on its own, rare ones too.")
    ] = False,
    as_json: Json = False,
    as_csv: Annotated[
        bool,
        typer.Option("--csv", help="Print CSV in UTF-8: image, rank, label, probability, error, and what was asked."),
    ] = False,
    cache: Cache = None,
) -> None:
    """Print the most probable classes of images; files that cannot be used are named and left out.

    The exit status is 0 where all images could be used, 3 where some could not, and 1 where none could.
    """
    from quickstudy.images.imageset import Skipped

    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    if by_class and sets is None:
        raise typer.BadParameter("--by-class goes with --sets, such as --sets 95")
    if sets is not None and not as_json and not as_csv:
        refuse_beside(context, "would do nothing beside --sets, which names sets; for both, add --json or --csv", "top")
    classifier, usual = _load(model, cache)
    answers = _Answers(
        model=classifier,
        count=None if classifier.thresholds and top is None else min(top or usual, len(classifier.classes)),
        threshold=classifier.threshold() if abstain else None,
        level=None if sets is None else sets / 100,
        by_class=by_class,
    )
    if answers.level is not None:
        classifier.sets(classifier.predict_proba([]), answers.level)  # refused now, not after the first image
    wrong: list[Skipped] = []
    predictions = classifier.predict_each(files_of(images, wrong))
    writer = _write_json if as_json else _write_csv if as_csv else _write_text
    with interruptible():
        done, failed = writer(answers, predictions, wrong)
    if failed and not as_json and not as_csv:
        print(f"{failed} of {done + failed} could not be used", file=sys.stderr)
    if failed and (meant := command_meant(sys.argv[1:])):
        print(meant, file=sys.stderr)
    if failed:
        raise typer.Exit(_SOME_FAILED if done else _ALL_FAILED)


def _load(model: str, cache: Path | None) -> tuple[Model, int]:
    """Load the classifier; gives it, and how many classes to print unless told."""
    from quickstudy.errors import ModelError
    from quickstudy.files import expand_home
    from quickstudy.models.loading import from_backbone, load

    model = expand_home(model)
    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():  # known without PyTorch
            raise ModelError(
                f"'{model}' is a folder, but not the run of a training; expected a model, such as photos.onnx"
            )
        require("torch", extra="train")
        from quickstudy.scratch.export import export

        return load(export(model).model), 1
    if not Path(model).exists() and Path(model).suffix != ".onnx":
        from quickstudy.backbones.backbone import backbone_names
        from quickstudy.backbones.loading import load_backbone
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


def files_of(arguments: list[str], wrong: list[Any]) -> Iterator[str | Path]:
    """Go through the images of files, folders, patterns and standard input; what leads to none goes to `wrong`."""
    import glob

    from quickstudy.files import expand_home
    from quickstudy.images.imageset import Skipped, list_images
    from quickstudy.images.listing import place_of, why_no_file
    from quickstudy.images.manifests import MANIFEST_SUFFIXES, read_list

    for argument in map(expand_home, arguments):
        if argument == "-":
            line = None
            for line in read_list(sys.stdin.buffer):
                place = place_of(Path(), line)
                reason = why_no_file(place)
                if reason and os.path.lexists(place) and not os.path.isdir(place):  # noqa: PTH112 (never raises)
                    wrong.append(Skipped(path=place, reason=reason))  # a named pipe, say, to which nobody may write
                else:
                    yield from files_of([line if place == Path(line) else str(place)], wrong)
            if line is None:
                wrong.append(Skipped(path=Path(argument), reason="no paths on standard input"))
        elif Path(argument).is_dir():
            paths, skipped = list_images(Path(argument))
            wrong += skipped
            if not paths:
                wrong.append(Skipped(path=Path(argument), reason="no images in this folder"))
            yield from paths
        elif Path(argument).suffix.lower() in MANIFEST_SUFFIXES and Path(argument).is_file():
            reason = "a table, not an image; name the images, or give their paths, one a line, to: predict MODEL -"
            wrong.append(Skipped(path=Path(argument), reason=reason))
        elif glob.has_magic(argument) and not Path(argument).exists():
            matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 (patterns may be absolute)
            if not matches:
                wrong.append(Skipped(path=Path(argument), reason="matches no file"))
            for match in matches:
                if Path(match).is_dir():
                    yield from files_of([match], wrong)
                elif reason := why_no_file(Path(match)):
                    wrong.append(Skipped(path=Path(match), reason=reason))
                else:
                    yield match
        else:
            yield argument


def _path(prediction: Prediction) -> str:
    return str(prediction.image)  # here every image is given as its path


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """Decides what to say of an image, whatever it is written as."""

    model: Model
    count: int | None
    """Number of classes to name, at least 1; None names the labels that are given."""
    threshold: float | None
    """Probability below which the answer is "don't know"; None where that was not asked for."""
    level: float | None
    """Share of images whose right class is to be in its set, 0.01 to below 1; None where no sets were asked for."""
    by_class: bool
    """Whether the share is to hold for each class."""

    def ranked(self, prediction: Prediction) -> list[tuple[str, float]]:
        """Rank the most probable classes; none where the image cannot be used.

        Of several labels an image, these are the ones that are given, unless a number was asked for.
        """
        if prediction.probabilities is None:
            return []
        if self.model.thresholds and self.count is None:
            given = self.model.labels(prediction.probabilities)
            return [one for one in self.model.rank(prediction.probabilities) if one[0] in given]
        return self.model.rank(prediction.probabilities, self.count)

    def more(self, prediction: Prediction | None) -> dict[str, Any]:
        """Say what there is to say besides the ranked classes: only what the model tells, and what was asked for."""
        from quickstudy.models.model import is_answer

        found: dict[str, Any] = {}
        probabilities = prediction.probabilities if prediction else None
        if self.model.thresholds:
            found["labels"] = [] if probabilities is None else list(self.model.labels(probabilities))
        if self.threshold is not None:
            found["answered"] = probabilities is not None and is_answer(float(probabilities.max()), self.threshold)
        if self.model.refusal is not None:
            strangeness = prediction.strangeness if prediction else None
            found["strangeness"] = None if strangeness is None else round(strangeness, 6)
            found["none_of_these"] = None if strangeness is None else self.model.is_none_of_these(strangeness)
        if self.level is not None:
            sets = (
                ()
                if probabilities is None
                else self.model.sets(probabilities[None], self.level, by_class=self.by_class)
            )
            found["set"] = [name for members in sets for name in members]
        return found


def _write_text(answers: _Answers, predictions: Iterator[Prediction], wrong: list[Any]) -> tuple[int, int]:
    done = failed = 0
    for prediction in predictions:
        if prediction.probabilities is None:
            failed += 1
            print(f"{printable(_path(prediction))}: {prediction.reason}", file=sys.stderr)
            continue
        done += 1
        more = answers.more(prediction)
        told = ", ".join(f"{name} {as_probability(share)}" for name, share in answers.ranked(prediction))
        if "labels" in more and not more["labels"]:
            name, share = answers.model.rank(prediction.probabilities, 1)[0]
            told = f"none of the labels (nearest: {name} {as_probability(share)})"
        if "set" in more:
            told = f"{{{', '.join(more['set'])}}}"
        if more.get("none_of_these"):
            told = f"none of these (nearest: {told})"
        elif not more.get("answered", True):
            told = f"don't know (best guess {told})"
        print(f"{printable(_path(prediction))}: {told}")
    for item in wrong:
        failed += 1
        print(f"{printable(item.path)}: {item.reason}", file=sys.stderr)
    return done, failed


def _write_csv(answers: _Answers, predictions: Iterator[Prediction], wrong: list[Any]) -> tuple[int, int]:
    data_to_stdout()
    writer = csv.writer(sys.stdout)
    # Further columns come only where the model tells them, or they were asked for.
    columns = list(answers.more(None))
    writer.writerow(["image", "rank", "label", "probability", "error", *columns])
    done = failed = 0
    for prediction in predictions:
        more = [_cell(value) for value in answers.more(prediction).values()]
        for rank, (name, share) in enumerate(answers.ranked(prediction), start=1):
            writer.writerow([_path(prediction), rank, name, f"{share:.6f}", "", *more])
        if prediction.probabilities is None:
            failed += 1
            writer.writerow([_path(prediction), "", "", "", prediction.reason, *more])
        else:
            done += 1
            if not answers.ranked(prediction):
                writer.writerow([_path(prediction), "", "", "", "", *more])
    for item in wrong:
        failed += 1
        none = answers.more(None)
        writer.writerow([item.path, "", "", "", item.reason, *map(_cell, none.values())])
    return done, failed


def _cell(value: Any) -> str:
    """Write what JSON has as a value into a cell: yes or no, a share, names with `|` between, or nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "|".join(value)
    return "" if value is None else f"{value:.6f}"


def _write_json(answers: _Answers, predictions: Iterator[Prediction], wrong: list[Any]) -> tuple[int, int]:
    rows: list[dict[str, Any]] = []
    for prediction in predictions:
        if prediction.probabilities is None:
            rows.append({"image": _path(prediction), "error": prediction.reason})
        else:
            classes = [{"label": name, "probability": round(share, 6)} for name, share in answers.ranked(prediction)]
            rows.append({"image": _path(prediction), "predictions": classes, **answers.more(prediction)})
    rows += [{"image": str(item.path), "error": item.reason} for item in wrong]
    print_json(rows)
    failed = sum("error" in row for row in rows)
    return len(rows) - failed, failed
