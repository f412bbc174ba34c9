"""A sweep's numbers are put into words: every sentence is made from the rows, and none is there unless they say it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from quickstudy.sweeps.results import (
    Layout,
    TrialRow,
    axes_of,
    group,
    have_target,
    largest,
    median,
    shown_on,
    values_of,
)
from quickstudy.sweeps.study import CASE, Study

_NEAR = 0.01
"""Share of precision that a narrow layer may cost and still count as wide enough: a point."""


def conclude(study: Study, rows: Sequence[TrialRow]) -> str:
    """Write in Markdown what was run, and what came out."""
    done = [row for row in rows if row.status == "done"]
    lines = [f"# {study.title or study.name}", "", *_what_ran(study, rows, done), ""]
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


def _what_ran(study: Study, rows: Sequence[TrialRow], done: Sequence[TrialRow]) -> Iterator[str]:
    seeds = f", {study.seeds} seeds each" if study.seeds > 1 else ", one seed each"
    yield f"{len(done)} of {len(rows)} runs have ended{seeds}."
    for row in rows:
        if row.status == "failed" and row.error:
            yield f"Failed: {row.trial}: {row.error.splitlines()[0]}"


def _best(study: Study, layout: Layout, rows: Sequence[TrialRow]) -> Iterator[str]:
    """Name the best combination by precision, where runs do not end at a target and cases do not say more."""
    if have_target(rows) or not study.axes or layout.x == CASE:
        return
    for case in values_of(rows, CASE) if CASE in study.axes else [None]:
        points: dict[tuple[Any, ...], list[float]] = {}
        for row in rows:
            if (case is None or row.trial.labels.get(CASE) == case) and row.values.get("precision") is not None:
                points.setdefault(tuple(row.trial.labels.items()), []).append(row.values["precision"])
        if len(points) > 1:
            best = max(points, key=lambda key: statistics.mean(points[key]))
            shown = ", ".join(str(v) if name == CASE else f"{name} {v}" for name, v in best)
            yield f"Best precision: {_percent(statistics.mean(points[best]))}, with {shown}."


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
                f"{shown_on(layout.panels, value)}: {reached} of {len(members)} runs reach {_percent(target)} test "
                f"precision within their steps."
            )
        for value in values[1:]:
            yield from _to_target(layout, rows, first, value)
    for value in values[1:]:
        ratios = list(_ratios(layout, rows, "milliseconds_a_step", first, value))
        if ratios:
            yield (
                f"A step with {shown_on(layout.panels, value)} takes {statistics.median(ratios):.2f} times as long as "
                f"with {shown_on(layout.panels, first)} (from {min(ratios):.2f} to {max(ratios):.2f} over "
                f"{len(ratios)} combinations)."
            )


def _to_target(layout: Layout, rows: Sequence[TrialRow], first: Any, value: Any) -> Iterator[str]:
    sooner: list[str] = []
    later: list[str] = []
    last = largest(values_of(rows, layout.x))
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
                yield (
                    f"{name}: {_steps(steps[0])} with {shown_on(layout.panels, first)}, {_steps(steps[1])} with "
                    f"{shown_on(layout.panels, value)}; in seconds of training {_seconds(seconds[0])} and "
                    f"{_seconds(seconds[1])}."
                )
    total = len(sooner) + len(later)
    if total:
        yield (
            f"In seconds, {shown_on(layout.panels, value)} gets there sooner than {shown_on(layout.panels, first)} in "
            f"{len(sooner)} of {total} combinations" + (f"; not with {'; '.join(later)}." if later else ".")
        )


def _narrowed(layout: Layout, rows: Sequence[TrialRow]) -> Iterator[str]:
    """Name the narrowest bottleneck that costs no more than a point of precision, where 0 stands for none."""
    if layout.x != "bottleneck":
        return
    for panel in values_of(rows, layout.panels):
        for line in values_of(rows, layout.lines):
            means = {}
            for x in values_of(rows, layout.x):
                values = [row.values["precision"] for row in group(rows, layout, x, line, panel)]
                if values:
                    means[x] = statistics.mean(values)
            if 0 not in means or len(means) < 2:
                continue
            enough = [x for x in sorted(means) if x and means[x] >= means[0] - _NEAR]
            name = ", ".join(filter(None, (shown_on(layout.panels, panel), shown_on(layout.lines, line))))
            widest = max(means)
            ending = (
                f"width {enough[0]} is enough to come within a point of that ({_percent(means[enough[0]])})"
                if enough
                else f"no width up to {widest} comes within a point of that ({_percent(means[widest])} at {widest})"
            )
            narrow = min(x for x in means if x)
            yield (
                f"{name or 'The network'}: {_percent(means[0])} without a bottleneck; {ending}; "
                f"at width {narrow} {_percent(means[narrow])} is left."
            )
            if enough:
                x = enough[0]
                sides = [_means(group(rows, layout, side, line, panel)) for side in (0, x)]
                if all(side["parameters"] for side in sides):
                    yield (
                        f"{name or 'The network'}, width {x}: {sides[1]['parameters']:,.0f} parameters instead of "
                        f"{sides[0]['parameters']:,.0f}, and {sides[1]['milliseconds_a_step']:.1f} ms a step "
                        f"instead of {sides[0]['milliseconds_a_step']:.1f}."
                    )


def _without(layout: Layout, rows: Sequence[TrialRow]) -> Iterator[str]:
    """Compare each case with the first one, seed by seed."""
    if layout.x != CASE:
        return
    names = values_of(rows, CASE)
    by_seed = {
        name: {row.trial.seed: row.values["precision"] for row in group(rows, layout, name, None, None)}
        for name in names
    }
    first = by_seed[names[0]]
    yield f"{names[0]}: {_percent(statistics.mean(first.values()))}."
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
            f"{name}: {_percent(statistics.mean(by_seed[name].values()))}, {mean:+.1f} points "
            f"({len(differences)} seeds; {verdict})."
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


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
