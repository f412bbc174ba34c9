"""What the commands print is made here: progress on a terminal, summaries, tables, and what Ctrl-C is answered with."""

from __future__ import annotations

import datetime
import io
import json
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from quickstudy.learning.scores import SEVERAL_FIGURES, told_of_never_held_out
from quickstudy.progress import Bar, Progress, silent
from quickstudy.wording import as_percent, count, pasted, printable

if TYPE_CHECKING:
    from pathlib import Path

    from quickstudy.images.census import Census, Content
    from quickstudy.images.imageset import Skipped
    from quickstudy.learning.scores import Interval, Score, Scores, SeveralScores
    from quickstudy.models.roles import Judgement
    from quickstudy.reports.plan import Step


_MOST_SKIPPED = 10
_MOST_CONFUSIONS = 5
_MOST_CONFLICTS = 5
_LIKE_NONE = ("none", "other", "others", "unknown", "background")
"""Names of classes, in lower case, that may stand for none of the classes."""


def progress_for(*, quiet: bool) -> Progress:
    """Choose a bar where somebody can see it, silence elsewhere."""
    return silent if quiet or not sys.stderr.isatty() else Bar()


def print_json(value: Any) -> None:
    """Print what a command has to say for machines, names as they are."""
    data_to_stdout()
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
    print()


def data_to_stdout() -> None:
    r"""Let what is printed from now on be UTF-8 whatever the locale, since programs read it.

    What is no text in a file's name comes out as an escape such as `\udce9`, which JSON reads back.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def format_score(score: Score) -> str:
    """Write a score for people, such as `91.4 % (95 % interval 88.1 to 93.8 %, n = 372)`."""
    if not score.n:
        return "not known (no images)"
    low, high = score.interval
    return f"{as_percent(score.accuracy)} (95 % interval {100 * low:.1f} to {100 * high:.1f} %, n = {score.n:,})"


def print_never_held_out(images: int, n: int, *, several: bool = False) -> None:
    """Print, under a figure of n cross-validated images, how many images are not among these; nothing if none."""
    if told := told_of_never_held_out(images, n, several=several):
        print(f"{'':25} {told}")


def format_interval(figure: Interval) -> str:
    """Write a figure with its interval for people, such as `91.4 % (95 % interval 88.1 to 93.8 %)`."""
    if figure.value is None:
        return "not known"
    return f"{as_percent(figure.value)} (95 % interval {100 * figure.low:.1f} to {100 * figure.high:.1f} %)"


def print_skipped(skipped: Sequence[Skipped]) -> None:
    """Print how many files were left out, and the first of them with their reasons."""
    if skipped:
        print(f"\nSkipped {count(len(skipped), 'file')}:")
        for item in skipped[:_MOST_SKIPPED]:
            print(f"  {printable(item.path)}: {item.reason}")
        if len(skipped) > _MOST_SKIPPED:
            print(f"  … and {len(skipped) - _MOST_SKIPPED} more; --json lists all")


def print_plan(path: Path, steps: Sequence[Step], images: Path) -> None:
    """Say where a plan for images was written, what is in it, and what comes next."""
    from quickstudy.reports.plan import summarise

    counts = ", ".join(f"{number:,} {action}" for action, number in summarise(steps).items() if number)
    print(f"\nPlan: {path} ({counts or 'nothing to do'}); review it, then: {pasted('audit', images, '--apply', path)}")


def print_census(census: Census) -> None:
    """Print what stands out in an image set: classes that are empty or alike, copies, leaks and contradictions."""
    for name in census.empty_classes:
        print(f"WARNING: the class '{name}' has no usable image, so the model will not know it")
    for name, content in census.single.items():
        print(
            f"WARNING: the class '{name}' has a single image, '{content.path}'; at least two are needed, one to train "
            "on and one to test, so the model will not know it; with --test-share 0, it would learn from that one"
        )
    if strangers := census.strangers:
        listed = ", ".join(f"'{name}' ({number:,})" for name, number in strangers.items())
        print(f"WARNING: these classes have test images but no training images, so they are not scored: {listed}")
    for name in census.everywhere:
        print(f"WARNING: every image has the label '{name}', so there is nothing to tell it from; it is not learned")
    for name in census.classes:
        if name.casefold() in _LIKE_NONE and not census.several:
            way = _way_to_none(census, name)
            print(f"'{name}' is learned as a class; if its images are of none of the classes, {way}")
    print_alike(census.alike_classes)
    print_copies(census.copies)
    if census.leaks:
        print(
            f"{count(census.leaks, 'image')} in more than one of the given splits; each is used in one only: test "
            "before validation before train"
        )
    print_conflicts(census.conflicting)
    if passed := census.passed_over:
        from quickstudy.images.kinds import counted

        print("Passed over: " + ", ".join(counted(number, kind) for kind, number in passed))


def print_alike(pairs: Iterable[tuple[str, str]]) -> None:
    """Print pairs of classes that may be meant as one; nothing if none."""
    for one, other in pairs:
        how = "capitals" if one.casefold() == other.casefold() else "how they are written (blanks, hyphens, zeros, …)"
        print(f"WARNING: the classes '{one}' and '{other}' differ only in {how}; rename one if they are the same")


def _way_to_none(census: Census, name: str) -> str:
    """Say how a class's images become examples of none of the classes: of few, or beside few, they would be useless."""
    from quickstudy.images.census import FEWEST_EXAMPLES
    from quickstudy.learning.strangeness import FEWEST

    counts = census.counts("train", "validation")
    examples, others = counts[name], counts.total() - counts[name]
    if examples >= FEWEST_EXAMPLES and others >= FEWEST:
        return f"add: --none {name}"
    return (
        f"--none {name} would need {FEWEST_EXAMPLES} of them and {FEWEST} of the classes to learn from; there are "
        f"{examples:,} and {others:,}, so that it is better as a class"
    )


def print_copies(copies: int) -> None:
    """Print how many files are not used since they are copies; nothing if none."""
    if copies:
        are = count(copies, "file is an exact copy of another", "files are exact copies of others")
        print(f"{are}; each image counts once")


def print_conflicts(conflicts: Sequence[Content]) -> None:
    """Print images that are left out since they are there under several classes; nothing if none."""
    for content in conflicts[:_MOST_CONFLICTS]:
        places = ", ".join(f"{printable(place.path)} ({place.label})" for place in content.places)
        print(f"Conflict: the same image under different labels, left out: {places}")
    if len(conflicts) > _MOST_CONFLICTS:
        print(f"… and {len(conflicts) - _MOST_CONFLICTS} more conflicts; --json lists all")


def print_way_to_a_test(census: Census) -> None:
    """Print how an image set whose splits have no test images comes to some; nothing where no splits are given."""
    if not census.given:
        return
    if census.source.is_dir():
        way = f"put images into {census.source}/test/<class>/, or use class folders without splits"
    else:
        way = f"give rows of {census.source} the split test, or leave out its split column"
    print(f"For a test accuracy, {way}")


def print_judgement(judged: Judgement, *, models: int = 1) -> None:
    """Print what the images are to the model or models: what was left out, and whether the figures are a test."""
    the_model = "the model" if models == 1 else "a model"
    if judged.left_out:
        they, them = ("it", "it") if judged.left_out == 1 else ("they", "them")
        print(
            f"\n{count(judged.left_out, 'image')} left out: {the_model} has learned or was chosen by {them}, so {they} "
            f"cannot be a test; --all scores {them}, too"
        )
    if judged.beside_test:
        them = "it" if judged.beside_test == 1 else "them"
        print(
            f"\n{count(judged.beside_test, 'image')} left out: the set comes with a test split, and only that is "
            f"scored; --all scores {them}, too"
        )
    if judged.is_test is False and judged.roles:
        seen = judged.roles["trained_on"] + judged.roles["chosen_by"]
        print(f"\nThis is not a test: {the_model} has learned or was chosen by {seen:,} of the images")
    if judged.is_test is None:
        print(f"\nThis may not be a test: {the_model} does not say which images it was made from")
    if judged.unknown:
        listed = ", ".join(f"'{name}' ({number:,})" for name, number in judged.unknown.items())
        lacking = "the model does not know" if models == 1 else "not both models know"
        print(f"\nNot scored, since {lacking} their classes: {listed}")
    if judged.none:
        learned = judged.none - len(judged.examples)
        print(
            f"\nNot scored, since labelled as of none of the classes: {count(judged.none, 'image')}"
            + (f", of which {the_model} has learned or was chosen by {learned:,}" if learned else "")
        )
    if judged.conflicts or judged.copies:
        print()
        print_copies(judged.copies)
        print_conflicts(judged.conflicts)


def print_evaluation(evaluation: Scores, *, train_counts: dict[str, int] | None = None, noun: str = "class") -> None:
    """Print the table of classes and the most confused pairs; of several labels an image, with intervals.

    Args:
        evaluation: what is printed.
        train_counts: number of images to train on by class; not told if left out.
        noun: heading of the names, where nothing was scored that would say of which kind they are.
    """
    if evaluation.several:
        _print_labels(evaluation, evaluation.several, train_counts)
        return
    names = [score.name for score in evaluation.classes]
    width = max(len(noun), *(len(name) for name in names))
    columns = [*(["train"] if train_counts else []), "test", "precision", "recall"]
    print(f"\n  {noun:<{width}}  " + "  ".join(f"{column:>9}" for column in columns))
    for score in evaluation.classes:
        values = [f"{train_counts.get(score.name, 0):,}"] if train_counts else []
        values += [f"{score.n:,}", _percent(score.precision), _percent(score.recall)]
        print(f"  {score.name:<{width}}  " + "  ".join(f"{value:>9}" for value in values))
    if evaluation.confusions:
        print("\nMost confused:")
        for pair in evaluation.confusions[:_MOST_CONFUSIONS]:
            print(f"  {count(pair.count, 'image')} of '{pair.truth}' taken for '{pair.predicted}'")


def _print_labels(evaluation: Scores, several: SeveralScores, train_counts: dict[str, int] | None) -> None:
    width = max(5, *(len(score.name) for score in evaluation.classes))
    counted = ["train", "test"] if train_counts else ["test"]
    print(
        f"\n  {'label':<{width}}  "
        + "  ".join(f"{column:>7}" for column in counted)
        + "".join(f"  {column:<18}" for column in ("precision", "recall", "average precision")).rstrip()
    )
    for score in evaluation.classes:
        counts = [*([train_counts.get(score.name, 0)] if train_counts else []), score.n]
        figures = several.labels[score.name]
        print(
            f"  {score.name:<{width}}  "
            + "  ".join(f"{number:>7,}" for number in counts)
            + "".join(
                f"  {_short(figures[name]):<18}" for name in ("precision", "recall", "average_precision")
            ).rstrip()
        )
    if evaluation.confusions:
        print("\nMost often missed with another given instead:")
        for pair in evaluation.confusions[:_MOST_CONFUSIONS]:
            print(f"  {count(pair.count, 'image')} with '{pair.truth}' missed and '{pair.predicted}' given")


def _short(figure: Interval) -> str:
    if figure.value is None:
        return "–"
    return f"{as_percent(figure.value, 0)} ({100 * figure.low:.0f} to {100 * figure.high:.0f})"


def print_figures(several: SeveralScores, n: int) -> None:
    """Print what is measured over all of several labels, a line each."""
    for name, called in SEVERAL_FIGURES.items():
        known = f", n = {n:,}" if name == "exact_match" else ""
        print(f"{called:<24}  {format_interval(getattr(several, name))}{known}")


def _percent(share: float | None) -> str:
    return "–" if share is None else as_percent(share, 0)


def now() -> str:
    """Tell the local time, such as `2026-01-31 13:05:09`, for lines of a log."""
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")


@contextmanager
def interruptible(what_stays: str = "", *, speaks: bool = True) -> Iterator[None]:
    """End the command as the signal asked for, with a line that says what stays and how to go on, if there is anything.

    Args:
        what_stays: what the line says beside that it was interrupted.
        speaks: whether there is a line; one of several processes says it for all.

    Raises:
        typer.Exit: with 128 and the signal's number, as shells have it.
    """
    try:
        yield
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except SystemExit as stop:
        if stop.code != 128 + signal.SIGTERM:
            raise
        code = 128 + signal.SIGTERM
    else:
        return
    if speaks:
        print_interrupted(what_stays)
    raise typer.Exit(code)


def print_interrupted(what_stays: str = "") -> None:
    """Print the line of a command that a signal has ended, and what stays, if there is anything."""
    print("\nquickstudy: interrupted" + (f"; {what_stays}" if what_stays else ""), file=sys.stderr)
