"""A sweep's numbers are put into words: every sentence is made from the rows, and none is there unless they say it."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quickstudy.learning.scores import Paired, share_interval
from quickstudy.sweeps.results import (
    Layout,
    TrialRow,
    axes_of,
    group,
    have_own_time,
    have_target,
    largest,
    median,
    shown_on,
    shown_value,
    values_of,
)
from quickstudy.sweeps.study import CASE, Study
from quickstudy.wording import as_percent, count

_NEAR = 0.01
"""Share of accuracy that a narrow layer may cost and still count as wide enough: a point."""


def conclude(study: Study, rows: Sequence[TrialRow]) -> str:
    """Write in Markdown what was run, and what came out."""
    done = [row for row in rows if row.status == "done"]
    lines = [f"# {study.title or study.name}", "", *_what_ran(rows, done), ""]
    if done:
        layout = axes_of(study, done)
        said = [
            *_best(study, layout, done),
            *_quickest(layout, done),
            *_compared(layout, done),
            *_narrowed(layout, done),
            *_without(layout, done),
        ]
        lines += [f"- {sentence}" for sentence in said]
    return "\n".join(lines).rstrip() + "\n"


def _what_ran(rows: Sequence[TrialRow], done: Sequence[TrialRow]) -> Iterator[str]:
    counts = sorted(set(Counter(tuple(row.trial.labels.items()) for row in rows).values()))
    random = any(row.trial.seed is not None for row in rows)
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    seeds = "" if not random else ", one seed each" if counts == [1] else f", {many} seeds each"
    yield f"{len(done)} of {len(rows)} runs have ended{seeds}."
    if not have_own_time(done):
        yield "Some were trained together, so seconds are shares of what all of them took, and are not compared."
    for row in rows:
        if row.status == "failed" and row.error:
            yield f"Failed: {row.trial}: {row.error.splitlines()[0]}"


def _best(study: Study, layout: Layout, rows: Sequence[TrialRow]) -> Iterator[str]:
    """Name the best combination by images that may choose, what is as good, and its test accuracy, once.

    It is silent where runs end at a target, and where cases say more.
    """
    if have_target(rows) or not study.axes or layout.x == CASE:
        return
    for case in values_of(rows, CASE) if CASE in study.axes else [None]:
        points: dict[tuple[Any, ...], list[TrialRow]] = {}
        for row in rows:
            if case is None or row.trial.labels.get(CASE) == case:
                points.setdefault(tuple(row.trial.labels.items()), []).append(row)
        if len(points) < 2:
            continue
        if any(row.chosen_by is None for members in points.values() for row in members):
            named = f"{case}: n" if case else "N"
            yield (
                f"{named}one is named the best: no images are held out to choose by, and test images are for the test "
                "alone. Hold some out with --set validation=0.1."
            )
            continue
        yield from _chosen(points)


def _chosen(points: Mapping[tuple[Any, ...], Sequence[TrialRow]]) -> Iterator[str]:
    shared = set.intersection(*(set(row.judged) for members in points.values() for row in members))
    means = {key: statistics.mean(_accuracy(row, shared) for row in members) for key, members in points.items()}
    best = max(means, key=lambda key: means[key])
    by = "validation" if all(row.values.get("validation") is not None for row in points[best]) else "cross-validated"
    yield f"Best {by} accuracy: {as_percent(means[best])}, with {_named(best)}."
    differences = {key: _difference(points[best], points[key], shared) for key in points if key != best}
    ties = sorted((key for key in differences if differences[key][1] >= 0), key=lambda key: -means[key])
    if ties:
        shown = [
            f"{_named(key)} ({100 * (means[key] - means[best]):+.1f} points, 95 % interval "
            f"{100 * differences[key][0]:+.1f} to {100 * differences[key][1]:+.1f})"
            for key in ties[:_MOST_TIES]
        ]
        more = f"; and {len(ties) - _MOST_TIES} more" if len(ties) > _MOST_TIES else ""
        yield f"No worse beyond chance: {'; '.join(shown)}{more}."
    tests = [row.test for row in points[best] if row.test is not None]
    if tests:
        low, high = share_interval(round(statistics.mean(test.right for test in tests)), tests[0].n)
        seeds = f", mean of {len(tests)} seeds" if len(tests) > 1 else ""
        yield (
            f"Test accuracy of the best: {as_percent(statistics.mean(test.accuracy for test in tests))} (95 % interval "
            f"{100 * low:.1f} to {100 * high:.1f} %, n = {tests[0].n:,}{seeds})."
        )


_MOST_TIES = 5


def _named(labels: tuple[tuple[str, Any], ...]) -> str:
    return ", ".join(str(value) if name == CASE else f"{name} {shown_value(value)}" for name, value in labels)


def _accuracy(row: TrialRow, shared: set[str]) -> float:
    """Find the accuracy that a choice goes by: on the images that all trials were judged by, where that is known."""
    if shared:
        return sum(row.judged[image] for image in shared) / len(shared)
    return row.chosen_by.accuracy if row.chosen_by else math.nan


def _difference(best: Sequence[TrialRow], other: Sequence[TrialRow], shared: set[str]) -> tuple[float, float]:
    """Ends of the 95 % interval of how much better the other is: paired by image, else by seed, else not at all."""
    pairs = [(a, b) for a in best for b in other if a.trial.seed == b.trial.seed]
    if len(pairs) > 1:
        differences = [_accuracy(b, shared) - _accuracy(a, shared) for a, b in pairs]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        half = _T95.get(len(differences), 2.0) * error
        return statistics.mean(differences) - half, statistics.mean(differences) + half
    first, second = best[0], other[0]
    if shared:
        images = sorted(shared)
        return Paired.of([first.judged[one] for one in images], [second.judged[one] for one in images]).interval
    one, two = first.chosen_by, second.chosen_by
    if one is None or two is None:
        return -1.0, 1.0
    half = math.hypot(*((high - low) / 2 for low, high in (one.interval, two.interval)))
    return two.accuracy - one.accuracy - half, two.accuracy - one.accuracy + half


def _quickest(layout: Layout, rows: Sequence[TrialRow]) -> Iterator[str]:
    """Say for each line where the target is reached in the fewest and in the most steps, if nothing is compared."""
    if len(values_of(rows, layout.panels)) > 1 or not have_target(rows):
        return
    for line in values_of(rows, layout.lines):
        steps = {}
        for x in values_of(rows, layout.x):
            members = [row.values.get("steps_to_target") for row in group(rows, layout, x, line, None)]
            if members:
                steps[x] = median(members)
        if not steps:
            continue
        best, worst = (choose(steps, key=lambda x: _or_never(steps[x])) for choose in (min, max))
        parts = [f"{_steps(steps[x])} with {shown_on(layout.x, x)}" for x in dict.fromkeys((best, worst))]
        yield ": ".join(filter(None, (shown_on(layout.lines, line), "; ".join(parts)))) + "."


def _compared(layout: Layout, rows: Sequence[TrialRow]) -> Iterator[str]:
    """Compare each value of the panels' axis with the first one: steps, seconds and what a step costs."""
    values = values_of(rows, layout.panels)
    if len(values) < 2 or layout.panels == CASE:
        return
    first = values[0]
    if have_target(rows):
        target = max(row.trial.target for row in rows)
        for value in values:
            members = [row for row in rows if row.trial.labels.get(layout.panels) == value]
            reached = sum(row.values.get("steps_to_target") is not None for row in members)
            yield (
                f"{shown_on(layout.panels, value)}: {reached} of {len(members)} runs reach {as_percent(target)} test "
                f"accuracy within their steps."
            )
        for value in values[1:]:
            yield from _to_target(layout, rows, first, value)
    for value in values[1:] if have_own_time(rows) else []:
        ratios = list(_ratios(layout, rows, "milliseconds_a_step", first, value))
        if ratios:
            yield (
                f"A step with {shown_on(layout.panels, value)} takes {statistics.median(ratios):.2f} times as long as "
                f"with {shown_on(layout.panels, first)} (from {min(ratios):.2f} to {max(ratios):.2f} over "
                f"{count(len(ratios), 'combination')})."
            )


def _to_target(layout: Layout, rows: Sequence[TrialRow], first: Any, value: Any) -> Iterator[str]:
    sooner: list[str] = []
    later: list[str] = []
    last, timed = largest(values_of(rows, layout.x)), have_own_time(rows)
    for line in values_of(rows, layout.lines):
        for x in values_of(rows, layout.x):
            pairs = {
                column: tuple(
                    median([row.values.get(column) for row in group(rows, layout, x, line, panel)])
                    for panel in (first, value)
                )
                for column in ("steps_to_target", "seconds_to_target")
                if all(group(rows, layout, x, line, panel) for panel in (first, value))
            }
            if not pairs:
                continue
            name = ", ".join(filter(None, (shown_on(layout.lines, line), shown_on(layout.x, x))))
            before, after = pairs["seconds_to_target"]
            if _or_never(after) < _or_never(before):
                sooner.append(name)
            elif _or_never(before) < _or_never(after):
                later.append(name)
            if x == last:
                steps, seconds = pairs["steps_to_target"], pairs["seconds_to_target"]
                times = f"; in seconds of training {_seconds(seconds[0])} and {_seconds(seconds[1])}" if timed else ""
                yield (
                    f"{name}: {_steps(steps[0])} with {shown_on(layout.panels, first)}, {_steps(steps[1])} with "
                    f"{shown_on(layout.panels, value)}{times}."
                )
    total = len(sooner) + len(later)
    if total and timed:
        yield (
            f"In seconds, {shown_on(layout.panels, value)} gets there sooner than {shown_on(layout.panels, first)} in "
            f"{len(sooner)} of {total} combinations" + (f"; not with {'; '.join(later)}." if later else ".")
        )


def _narrowed(layout: Layout, rows: Sequence[TrialRow]) -> Iterator[str]:
    """Name the narrowest bottleneck that costs no more than a point of accuracy, where 0 stands for none."""
    if layout.x != "bottleneck":
        return
    for panel in values_of(rows, layout.panels):
        for line in values_of(rows, layout.lines):
            means = {}
            for x in values_of(rows, layout.x):
                values = [row.values["accuracy"] for row in group(rows, layout, x, line, panel)]
                if values:
                    means[x] = statistics.mean(values)
            if 0 not in means or len(means) < 2:
                continue
            enough = [x for x in sorted(means) if x and means[x] >= means[0] - _NEAR]
            name = ", ".join(filter(None, (shown_on(layout.panels, panel), shown_on(layout.lines, line))))
            widest = max(means)
            ending = (
                f"width {enough[0]} is enough to come within a point of that ({as_percent(means[enough[0]])})"
                if enough
                else f"no width up to {widest} comes within a point of that ({as_percent(means[widest])} at {widest})"
            )
            narrow = min(x for x in means if x)
            yield (
                f"{name or 'The network'}: {as_percent(means[0])} without a bottleneck; {ending}; "
                f"at width {narrow} {as_percent(means[narrow])} is left."
            )
            if enough:
                x = enough[0]
                sides = [_means(group(rows, layout, side, line, panel)) for side in (0, x)]
                if all(side["parameters"] for side in sides):
                    before, after = (side["milliseconds_a_step"] for side in sides)
                    cost = f", and {after:.1f} ms a step instead of {before:.1f}" if have_own_time(rows) else ""
                    yield (
                        f"{name or 'The network'}, width {x}: {sides[1]['parameters']:,.0f} parameters instead of "
                        f"{sides[0]['parameters']:,.0f}{cost}."
                    )


def _without(layout: Layout, rows: Sequence[TrialRow]) -> Iterator[str]:
    """Compare each case with the first one, seed by seed."""
    if layout.x != CASE:
        return
    names = values_of(rows, CASE)
    by_seed = {
        name: {row.trial.seed: row.values["accuracy"] for row in group(rows, layout, name, None, None)}
        for name in names
    }
    first = by_seed[names[0]]
    yield f"{names[0]}: {as_percent(statistics.mean(first.values()))}."
    for name in names[1:]:
        differences = [100 * (value - first[seed]) for seed, value in by_seed[name].items() if seed in first]
        if not differences:
            continue
        mean = statistics.mean(differences)
        if len(differences) < 2:
            verdict = "one seed, so this may be chance"
        else:
            error = statistics.stdev(differences) / math.sqrt(len(differences))
            far = abs(mean) > _T95.get(len(differences), 2.0) * error
            verdict = f"standard error {error:.2f}; " + ("more than chance" if far else "this may be chance")
        yield (
            f"{name}: {as_percent(statistics.mean(by_seed[name].values()))}, {mean:+.1f} points "
            f"({count(len(differences), 'seed')}; {verdict})."
        )


_T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Quantiles of Student's t for 95 %, two-sided, by the number of pairs."""


def _ratios(layout: Layout, rows: Sequence[TrialRow], column: str, first: Any, value: Any) -> Iterator[float]:
    for line in values_of(rows, layout.lines):
        for x in values_of(rows, layout.x):
            sides = [
                median([row.values.get(column) for row in group(rows, layout, x, line, panel)])
                for panel in (first, value)
            ]
            if sides[0] and sides[1]:
                yield sides[1] / sides[0]


def _means(rows: Sequence[TrialRow]) -> dict[str, float]:
    return {
        name: statistics.mean([row.values.get(name) or 0 for row in rows])
        for name in ("parameters", "milliseconds_a_step")
    }


def _or_never(value: float | None) -> float:
    return math.inf if value is None else value


def _steps(value: float | None) -> str:
    return "never there" if value is None else f"{value:,.0f} steps"


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"
