"""What the commands print: progress on a terminal, summaries, tables."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quickstudy.images.imageset import Skipped
from quickstudy.progress import Bar, Progress, silent

if TYPE_CHECKING:
    from quickstudy.retraining.evaluation import Evaluation, Score

_MOST_SKIPPED = 10
_MOST_CONFUSIONS = 5


def progress_for(*, quiet: bool) -> Progress:
    """A bar where somebody can see it, silence elsewhere."""
    return silent if quiet or not sys.stderr.isatty() else Bar()


def format_score(score: Score) -> str:
    """Such as `91.4 % (95 % interval 88.1 to 93.8 %, n = 372)`."""
    if not score.n:
        return "not known (no images)"
    low, high = score.interval
    return f"{100 * score.accuracy:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f} %, n = {score.n:,})"


def print_skipped(skipped: Sequence[Skipped]) -> None:
    """How many files were left out, and the first of them with their reasons."""
    if skipped:
        print(f"\nSkipped {count(len(skipped), 'file')}:")
        for item in skipped[:_MOST_SKIPPED]:
            print(f"  {item.path}: {item.reason}")
        if len(skipped) > _MOST_SKIPPED:
            print(f"  … and {len(skipped) - _MOST_SKIPPED} more; --json lists all")


def print_evaluation(evaluation: Evaluation, *, train_counts: dict[str, int] | None = None) -> None:
    """The table of classes and the most confused pairs."""
    names = [score.name for score in evaluation.classes]
    width = max(5, *(len(name) for name in names))
    columns = [*(["train"] if train_counts else []), "test", "precision", "recall"]
    print(f"\n  {'class':<{width}}  " + "  ".join(f"{column:>9}" for column in columns))
    for score in evaluation.classes:
        values = [f"{train_counts.get(score.name, 0):,}"] if train_counts else []
        values += [f"{score.n:,}", _percent(score.precision), _percent(score.recall)]
        print(f"  {score.name:<{width}}  " + "  ".join(f"{value:>9}" for value in values))
    if evaluation.confusions:
        print("\nMost confused:")
        for pair in evaluation.confusions[:_MOST_CONFUSIONS]:
            print(f"  {count(pair.count, 'image')} of '{pair.truth}' taken for '{pair.predicted}'")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def count(number: int, noun: str, plural: str = "") -> str:
    """Such as `1 file` and `1,200 files`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def now() -> str:
    """The local time, such as `2026-01-31 13:05:09`, for lines of a log."""
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
