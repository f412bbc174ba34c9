"""`quickstudy retrain`: from a folder of photos to a verified classifier."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quickstudy.cli.display import (
    format_score,
    print_census,
    print_evaluation,
    print_figures,
    print_json,
    print_never_held_out,
    print_skipped,
    print_way_to_a_test,
    progress_for,
)
from quickstudy.cli.options import Cache, Json, Quiet, Ray, Set, SharedStorePlace, offering
from quickstudy.extras import installation_of, require
from quickstudy.learning.scores import Score, score_predictions
from quickstudy.options import read_assignments
from quickstudy.retraining.config import RetrainConfig
from quickstudy.wording import as_percent, count, pasted, quoted

if TYPE_CHECKING:
    from quickstudy.learning.answers import Thresholds
    from quickstudy.retraining.previous import Previous
    from quickstudy.retraining.result import RetrainResult

_FEW_TO_TRAIN, _FEW_TO_TEST, _MOST_FEW = 10, 5, 5


@offering(RetrainConfig())
def command(
    images: Annotated[
        Path,
        typer.Argument(
            help="photos/<class>/*.jpg, photos/train|test/<class>/*.jpg, an archive of these, or a manifest."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The model to write [default: <name of IMAGES>.onnx].")
    ] = None,
    *,
    given: dict[str, Any],
    options: Set = None,
    ray: Ray = None,
    store: SharedStorePlace = None,
    report: Annotated[
        bool, typer.Option("--report", help="Also write the report, <name of the model>.report.html.")
    ] = False,
    download: Annotated[
        bool,
        typer.Option(
            "--download",
            help="With --backbone auto: fetch what 'backbone list --available' lists first, as far as extras allow.",
        ),
    ] = False,
    cache: Cache = None,
    as_json: Json = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also print the log losses by which the regularisation was chosen.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier on a folder of images and write it as one .onnx file."""
    started = time.perf_counter()
    config = RetrainConfig.told(given | read_assignments(options or [], given))
    if config.tunes:
        require("torch", extra="train")
    if ray is not None:
        require("ray", extra="ray")
    from quickstudy.retraining.retrain import retrain

    if download:
        _download_candidates(config.network, cache)
    _fetch_from_hub(config.network, cache)
    result = retrain(images, output, config, ray=ray, store=store, cache=cache, progress=progress_for(quiet=quiet))
    seconds = time.perf_counter() - started
    written = None
    if report:
        from quickstudy.reports.report import report as write_report

        written = write_report(result.model, images, cache=cache, progress=progress_for(quiet=quiet))
    if as_json:
        print_json({**result.to_dict(), "report": str(written) if written else None})
    else:
        _print_summary(result, images, seconds, ray=ray, verbose=verbose)
        stale = result.previous and result.previous.report and not written
        print(
            f"Report: {written or pasted('report', result.model)}"
            + (f"  ({result.previous.report} is about the previous model)" if result.previous and stale else "")
        )


def _download_candidates(network: str, cache: Path | None) -> None:
    """Fetch the networks of the hub that may take part in the race, each announced by its size and licence.

    What cannot be had is told and left out: the race goes on without it.
    """
    from quickstudy.backbones.sources.adding import BackboneSource, add_from
    from quickstudy.backbones.sources.available import AVAILABLE
    from quickstudy.errors import OptionError, QuickstudyError
    from quickstudy.files import cache_folder

    if network != "auto":
        raise OptionError("--download fetches candidates for --backbone auto; give both, or name the backbone itself")
    for one in AVAILABLE:
        if one.is_here(cache_folder(cache)):
            continue
        told = f"{one.place} ({one.megabytes} MB, licence {one.licence})"
        if not one.can_be_added:
            print(f"Left out: {told}; it needs an extra: {installation_of(one.extra)}", file=sys.stderr)
            continue
        print(f"Fetching {told}", file=sys.stderr)
        try:
            add_from(BackboneSource(place=one.place), cache_folder(cache))
        except QuickstudyError as error:
            print(f"Left out: {one.place}: {error}", file=sys.stderr)


def _fetch_from_hub(network: str, cache: Path | None) -> None:
    """Fetch what is to come from the hub before all else, and tell on the error stream what was found out about it."""
    from quickstudy.backbones.backbone import JOINED, on_hub
    from quickstudy.files import cache_folder

    for place in network.split(JOINED):
        if on_hub(place):
            from quickstudy.backbones.sources.adding import from_hub
            from quickstudy.cli.backbone import print_added

            added, imported = from_hub(place, cache_folder(cache))
            if imported is not None:
                print_added(added, imported, file=sys.stderr)


def _print_summary(result: RetrainResult, images: Path, seconds: float, *, ray: str | None, verbose: bool) -> None:
    train, test = (len(result.census.digests(*roles)) for roles in (("train", "validation"), ("test",)))
    what = (
        f"with {count(len(result.classes), 'label')}" if result.census.several else f"of {len(result.classes)} classes"
    )
    examples = len(result.census.examples_of_none("train", "validation", "test"))
    beside = f" and {count(examples, 'example')} of none of them" if examples else ""
    print(f"{images}: {train + test - examples:,} images {what}{beside}; {train:,} to train on, {test:,} to test")
    passes = count(result.computed, "forward pass", "forward passes")
    print(f"{passes}, {count(result.cached, 'bottleneck')} from the store")
    print_census(result.census)
    print_skipped(result.skipped)
    evaluation = result.test or score_predictions([], [], result.classes)
    print_evaluation(evaluation, train_counts=result.train_counts, noun="label" if result.census.several else "class")
    if result.tuning:
        _print_tuning(result, seconds)
    elif not result.census.several:
        name = "Cross-validated accuracy " if ray is None else "Leave-one-out accuracy   "
        print(f"\n{name} {format_score(result.cross_validation)}")
        print_never_held_out(result.head.never_held_out, result.cross_validation.n)
    if evaluation.several:
        print("\nOn the test images:")
        print_figures(evaluation.several, evaluation.score.n)
    elif (unseen := result.cross_validated) and unseen.several:
        print("\nIn cross-validation, a little too good, since the thresholds were chosen on the same images:")
        print_figures(unseen.several, unseen.score.n)
        print("Nothing was tested: there are no test images")
    elif result.census.several:
        print("\nHow good it is, is not known: there are no test images, and too few others to cross-validate")
    else:
        print(f"Test accuracy             {format_score(evaluation.score)}")
    if not result.test_counts:
        print_way_to_a_test(result.census)
    _print_strangeness(result)
    _print_few(result)
    for choice in result.choices:
        print(f"{choice.what.capitalize()} chosen: {choice.told}")
    _print_levels(result)
    _print_names(result)
    chosen = " chosen" if len(result.path) > 1 else ""
    print(f"Regularisation{chosen}: {result.head.l2:.2g}")
    if verbose and result.path:
        print("Log losses: " + ", ".join(f"{point.l2:.2g}: {point.log_loss:.3f}" for point in result.path))
    stages = ", ".join(f"{name} {spent:.2f}" for name, spent in result.seconds.items())
    print(f"Seconds: {stages}; {seconds:.2f} in all")
    print(f"\nModel: {result.model} ({result.model.stat().st_size / 1e6:.1f} MB), its golden checks passed")
    if result.previous:
        _print_previous(result.previous)
    print(f"Next:  {pasted('predict', result.model, 'new.jpg')}")


def _print_levels(result: RetrainResult) -> None:
    """Say what the head sees, and what cross-validation found of the last features and of all levels."""
    if (compared := result.compared) is None:
        return
    found = (
        f"log loss {compared.log_loss_all:.3f} with all levels, {compared.log_loss_last:.3f} without, "
        f"±{compared.standard_error:.3f}"
    )
    print(f"Features chosen: {'all levels' if compared.all_pay else 'the last features only'} ({found})")


def _print_names(result: RetrainResult) -> None:
    """Say how much the names of the classes count, and what cross-validation found of it."""
    if (compared := result.prior) is None:
        if result.config.prior == "names":
            print("Names count 0: too few images of each class to cross-validate by")
        return
    print(
        f"Names count {compared.share:g} (log loss {compared.log_loss_with:.3f} with {compared.best:g} of them, "
        f"{compared.log_loss_without:.3f} without, ±{compared.standard_error:.3f}, {compared.log_loss_names:.3f} by "
        "names alone)"
    )


def _print_strangeness(result: RetrainResult) -> None:
    """Say how many images of its own the model takes for none of its classes; or how labels are given, if several."""
    from quickstudy.learning.answers import Thresholds

    if isinstance(result.answer, Thresholds):
        _print_thresholds(result, result.answer)
    elif (refusal := result.refusal) is None:
        from quickstudy.learning.strangeness import FEWEST

        examples = len(result.census.examples_of_none("train", "validation"))
        useless = f", and {count(examples, 'example teaches', 'examples teach')} it nothing" if examples else ""
        print(
            f"None of these: fewer than {FEWEST} images to tell by what is strange, so the model takes everything for "
            f"a class{useless}"
        )
    elif refusal.threshold < 1:
        low, high = (100 * end for end in refusal.interval)
        print(
            f"None of these: refuses {as_percent(refusal.share)} of its own kind "
            f"(95 % interval {low:.1f} to {high:.1f} %, n = {refusal.n:,})"
        )
        if refusal.examples:
            found = Score(right=refusal.examples_refused, n=refusal.examples)
            print(f"               and of the examples, each judged without itself, {format_score(found)}")
        if result.examples:
            print(f"               and of those of the test {format_score(result.examples)}")


def _print_thresholds(result: RetrainResult, thresholds: Thresholds) -> None:
    goal = "best F1" if thresholds.precision is None else f"precision of {100 * thresholds.precision:g} %"
    values = [value for value in thresholds.values if value <= 1]
    if not thresholds.n:
        print("Thresholds: labels are given from 50 % on, as there are too few images to choose others by")
    elif values:
        least, most = as_percent(min(values), 0), as_percent(max(values), 0)
        ends = most if least == most else f"{least.removesuffix(' %')} to {most}"
        print(
            f"Thresholds chosen: labels are given from {ends} on, for the {goal} on "
            f"{count(thresholds.n, 'image')} unseen in cross-validation"
        )
        print_never_held_out(result.head.never_held_out, thresholds.n, several=True)
    never = [name for name, value in zip(result.classes, thresholds.values, strict=True) if value > 1]
    if never:
        print(f"Never given, as no threshold has that precision: {quoted(never, most=_MOST_FEW)}")


def _print_few(result: RetrainResult) -> None:
    """Say which classes have so few photos that their figures mean little, and what the interval means."""
    from quickstudy.learning.links import FOLDS

    few_train = {name: n for name, n in result.train_counts.items() if n < _FEW_TO_TRAIN}
    few_test = {name: n for name in result.classes if 0 < (n := result.test_counts.get(name, 0)) < _FEW_TO_TEST}
    untested = [name for name in result.classes if not result.test_counts.get(name)]
    if few_train:
        print(f"Fewer than {_FEW_TO_TRAIN} photos to train on: {_listed(few_train)}; more of them would help most")
        if not result.config.several and not result.tuning and any(1 < n < FOLDS for n in few_train.values()):
            print(
                f"Of classes with 2 to {FOLDS - 1} photos, cross-validation says too little: a fit that has one photo "
                "less of the class judges each"
            )
        if result.test_counts and not result.census.given:
            tested = count(len(result.census.digests("test")), "photo is", "photos are")
            instead = " in place of --roles-of" if result.config.roles_of else ""
            print(f"{tested} kept for the test; with --test-share 0{instead}, the model would learn from all")
    if untested and result.test_counts:
        print(f"No photos to test: {quoted(untested, most=_MOST_FEW)}; the test accuracy says nothing of them")
    if few_test:
        print(f"Fewer than {_FEW_TO_TEST} photos to test: {_listed(few_test)}; their precision and recall say little")
        if result.config.several:
            return
        of = " of the classes that were tested" if untested else ""
        print(
            "The 95 % interval allows for that: in 19 of 20 cases, it contains the accuracy that many more would show"
            f"{of}"
        )


def _listed(counts: dict[str, int]) -> str:
    shown = [f"'{name}' ({n})" for name, n in list(counts.items())[:_MOST_FEW]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _print_previous(previous: Previous) -> None:
    was = ""
    if previous.test and previous.test.n:
        classes = count(len(previous.classes), "class", "classes")
        was = f" {as_percent(previous.test.accuracy)} on its test with {classes};"
    elif previous.classes:
        was = " without a test;"
    print(f"Before:{was} kept as {previous.kept}")
    if previous.common:
        before, now = previous.common
        print(
            f"        on {count(now.n, 'photo')} that test both: "
            f"{as_percent(before.accuracy)} before, {as_percent(now.accuracy)} now"
        )


_CHANCE = 6
"""Number of images more that are right below which it may be chance: 2 · 2⁻⁶ is less than 5 %, and 2 · 2⁻⁵ is not."""


def _print_tuning(result: RetrainResult, seconds: float) -> None:
    for stage in result.tuning:
        print(f"\nFine-tuned all that follows '{stage['cut']}': {stage['trained_parameters']:,} parameters")
        print("  epoch  training loss  trained weights  validation log loss  validation accuracy")
        for epoch in stage["epochs"]:
            loss = "–" if epoch["training_loss"] is None else f"{epoch['training_loss']:.3f}"
            share = f"{100 * epoch['share']:.0f} %"
            accuracy = as_percent(epoch["accuracy"])
            kept = "  kept" if epoch["epoch"] == stage["kept"]["epoch"] else ""
            print(f"  {epoch['epoch']:>5}  {loss:>13}  {share:>15}  {epoch['log_loss']:>19.3f}  {accuracy:>19}{kept}")
    first, last = result.tuning[0]["start"], max((stage["kept"] for stage in result.tuning), key=_rank)
    print()
    for name, found in (("linear head", first), ("fine-tuned", last)):
        score = Score(right=found["right"], n=found["n"])
        print(f"Validation, {name:<13} {format_score(score)}")
    gain = last["right"] - first["right"]
    if not gain:
        print(
            "Fine-tuning was no better than the linear head on the validation images, so the model is the linear head, "
            "fitted to all training images, validation images included"
        )
    elif gain < _CHANCE:
        images = count(gain, "validation image")
        print(f"Better on only {images}, which may be chance; to keep the linear head instead, leave out --cut")
    if result.plan:
        print(
            f"Planned: cut '{result.plan['cut']}', {count(result.plan['views'], 'view')}, "
            f"{count(result.plan['epochs'], 'epoch')}, {result.plan['seconds']:.0f} s; it took {seconds:.0f} s"
        )


def _rank(found: dict[str, Any]) -> tuple[int, float]:
    return found["right"], -found["log_loss"]
