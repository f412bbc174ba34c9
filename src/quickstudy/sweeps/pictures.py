"""A sweep's pictures are drawn as PNG and SVG; the study says what varies from left to right, by line and by panel."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from quickstudy.files import write_bytes_atomically
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
    value_on,
    values_of,
)
from quickstudy.sweeps.study import CASE, Study

_STYLES = ("-", "--", ":", "-.")  # where there are more lines than colours
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
"""Colours that everybody can tell apart (Okabe & Ito, 2008)."""
_MARKERS = "osD^vPX*"
_MOST_LINES = 24
_BESIDE = 0.06
"""Distance from one line to the next, as a share of a step of the axis, where lines are drawn side by side."""
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.hashsalt": "quickstudy",
    "svg.fonttype": "none",
    "savefig.dpi": 150,
}


def draw_all(study: Study, rows: Sequence[TrialRow], folder: Path) -> list[Path]:
    """Draw everything that the rows, all of runs that have ended, allow; gives the paths of the PNG files."""
    layout = axes_of(study, rows)
    drawn = []
    with mpl.rc_context(_STYLE):
        for name, draw in _PICTURES.items():
            figure = draw(study, layout, rows)
            if figure is not None:
                drawn.append(_save(figure, folder / name))
    return drawn


def _steps_to_target(study: Study, layout: Layout, rows: Sequence[TrialRow]) -> Figure | None:
    return _to_target(layout, rows, "steps_to_target", "steps", study)


def _seconds_to_target(study: Study, layout: Layout, rows: Sequence[TrialRow]) -> Figure | None:
    return _to_target(layout, rows, "seconds_to_target", "seconds of training", study) if have_own_time(rows) else None


def _to_target(layout: Layout, rows: Sequence[TrialRow], column: str, unit: str, study: Study) -> Figure | None:
    """Draw the median over seeds against x, with the range; runs that never get there are at the top."""
    if not any(column in row.values for row in rows):
        return None
    reached = [row.values[column] for row in rows if row.values.get(column) is not None]
    if not reached:
        return None
    ceiling = 2 * max(reached)
    target = max(row.trial.target for row in rows)
    figure, panels = _panels(layout, rows)
    for axes, panel in panels:
        _draw_lines(axes, layout, rows, panel, lambda row: row.values.get(column), ceiling=ceiling)
        _plain_log(axes.set_yscale, axes.yaxis)
        if any(row.values.get(column) is None for row in rows):
            axes.axhline(ceiling, color="grey", linewidth=0.8, linestyle=":")
            axes.annotate(
                "never in this run", (0.01, ceiling), xycoords=("axes fraction", "data"),
                xytext=(0, 3), textcoords="offset points", fontsize=7, color="grey",
            )  # fmt: skip
            axes.set_ylim(top=ceiling * 1.5)
    panels[0][0].set_ylabel(f"{unit} to {100 * target:g} % test accuracy")
    return _finish(figure, panels, study.title)


def _step_cost(study: Study, layout: Layout, rows: Sequence[TrialRow]) -> Figure | None:
    """Draw milliseconds a step against x, one line for each panel of the other pictures, over all their lines."""
    known = any("milliseconds_a_step" in row.values for row in rows) and have_own_time(rows)
    if not known or not layout.panels or layout.panels == CASE:
        return None
    flat = Layout(x=layout.x, lines=layout.panels, panels="")
    figure, panels = _panels(flat, rows)
    axes = panels[0][0]
    _draw_lines(axes, flat, rows, None, lambda row: row.values.get("milliseconds_a_step"))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("milliseconds a step")
    return _finish(figure, panels, study.title)


def _accuracy(study: Study, layout: Layout, rows: Sequence[TrialRow]) -> Figure | None:
    return _against_x(study, layout, rows, "accuracy", "test accuracy, %", 100)


def _seconds(study: Study, layout: Layout, rows: Sequence[TrialRow]) -> Figure | None:
    if not have_own_time(rows):
        return None
    if any("milliseconds_a_step" in row.values for row in rows):
        return _against_x(study, layout, rows, "milliseconds_a_step", "milliseconds a step", 1)
    return _against_x(study, layout, rows, "seconds", "seconds", 1)


def _parameters(study: Study, layout: Layout, rows: Sequence[TrialRow]) -> Figure | None:
    counts = {row.values.get("parameters") for row in rows}
    if len(counts) < 3:
        return None
    return _against_x(study, layout, rows, "parameters", "parameters, thousands", 1e-3)


def _against_x(
    study: Study, layout: Layout, rows: Sequence[TrialRow], column: str, label: str, factor: float
) -> Figure | None:
    """Draw a column against x, where runs do not end at a target, and cases are not all there is."""
    if have_target(rows) or layout.x in ("", CASE):
        return None

    def value(row: TrialRow) -> float | None:
        found = row.values.get(column)
        return None if found is None else factor * found

    figure, panels = _panels(layout, rows, share=False)
    for axes, panel in panels:
        _draw_lines(axes, layout, rows, panel, value, apart=0 if layout.x == "bottleneck" else None)
    panels[0][0].set_ylabel(label)
    return _finish(figure, panels, study.title)


def _cases(study: Study, layout: Layout, rows: Sequence[TrialRow]) -> Figure | None:
    """Draw each case's accuracy beside that of the first, where the cases are all there is."""
    if layout.x != CASE:
        return None
    names = values_of(rows, CASE)
    figure = Figure(figsize=(6.4, 0.9 + 0.36 * len(names)), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(names):
        values = [100 * row.values["accuracy"] for row in group(rows, layout, name, None, None)]
        axes.plot(values, [place] * len(values), "o", color=_COLOURS[0], alpha=0.5, markersize=5)
        axes.plot(sum(values) / len(values), place, "|", color="black", markersize=14, markeredgewidth=2)
    first = [100 * row.values["accuracy"] for row in group(rows, layout, names[0], None, None)]
    axes.axvline(sum(first) / len(first), color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, % (a dot a seed; | their mean)")
    axes.set_title(study.title, fontsize=10, loc="left")
    return figure


def _learning_curves(study: Study, layout: Layout, rows: Sequence[TrialRow]) -> Figure | None:
    """Draw accuracy against steps, for the largest x, or for each x where there is nothing else."""
    at = largest(values_of(rows, layout.x))
    chosen = [row for row in rows if layout.lines == "" or layout.x == "" or value_on(row, layout.x) == at]
    if layout.lines == "":  # then x itself is what tells the curves apart
        layout = Layout(x="", lines=layout.x, panels=layout.panels)
    if not any(len(row.curve.steps) > 1 for row in chosen) or len(values_of(chosen, layout.lines)) > _MOST_LINES:
        return None
    figure, panels = _panels(layout, chosen, same_x=True)
    for axes, panel in panels:
        for number, line in enumerate(values_of(chosen, layout.lines)):
            for row in group(chosen, Layout(x="", lines=layout.lines, panels=layout.panels), None, line, panel):
                label = shown_on(layout.lines, line) if axes is panels[0][0] and not row.trial.seed else None
                axes.plot(
                    row.curve.steps, [100 * value for value in row.curve.accuracy], label=label,
                    color=_COLOURS[number % len(_COLOURS)], linewidth=1.2, alpha=0.9,
                    linestyle=_STYLES[number // len(_COLOURS) % len(_STYLES)],
                )  # fmt: skip
        axes.set_xlabel("step")
        _plain_log(axes.set_xscale, axes.xaxis)
    panels[0][0].set_ylabel("test accuracy, %")
    where = f"{study.title}: {layout.x} {at}" if layout.x else study.title
    return _finish(figure, panels, where)


def _gradient_norms(study: Study, layout: Layout, rows: Sequence[TrialRow]) -> Figure | None:
    """Draw norms of the gradients by layer over time, for the largest x: a row a panel, a column a line."""
    at = largest(values_of(rows, layout.x))
    chosen = [row for row in rows if not row.trial.seed and (not layout.x or value_on(row, layout.x) == at)]
    chosen = [row for row in chosen if len(row.curve.norms) > 2 and max(map(len, row.curve.norms.values())) > 1]
    panel_values, line_values = values_of(chosen, layout.panels), values_of(chosen, layout.lines)
    if not chosen or not layout.lines or layout.x == CASE or layout.panels == CASE or len(line_values) > 8:
        return None
    figure = Figure(figsize=(2.1 * len(line_values) + 1, 2.0 * len(panel_values) + 0.6), layout="constrained")
    grid = figure.subplots(len(panel_values), len(line_values), sharex=True, sharey=True, squeeze=False)
    for across, panel in zip(grid, panel_values, strict=True):
        for axes, line in zip(across, line_values, strict=True):
            for row in group(chosen, Layout(x="", lines=layout.lines, panels=layout.panels), None, line, panel):
                shades = mpl.colormaps["viridis"]
                for number, (layer, points) in enumerate(row.curve.norms.items()):
                    steps, norms = zip(*points, strict=True)
                    axes.plot(
                        steps, norms, label=layer, linewidth=1.2,
                        color=shades(0.95 * number / max(len(row.curve.norms) - 1, 1)),
                    )  # fmt: skip
            axes.set_yscale("log")
            axes.minorticks_off()
            _plain_log(axes.set_xscale, axes.xaxis)
            axes.set_title(
                ", ".join(filter(None, (shown_on(layout.lines, line), shown_on(layout.panels, panel)))), fontsize=8
            )
    for axes in grid[-1]:
        axes.set_xlabel("step")
    for across in grid:
        across[0].set_ylabel("norm of the gradient")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7, title="layer")
    figure.suptitle(f"{study.title}: {layout.x} {at}", fontsize=10)
    return figure


_PICTURES: dict[str, Callable[[Study, Layout, Sequence[TrialRow]], Figure | None]] = {
    "steps_to_target": _steps_to_target,
    "seconds_to_target": _seconds_to_target,
    "step_cost": _step_cost,
    "accuracy": _accuracy,
    "seconds": _seconds,
    "parameters": _parameters,
    "cases": _cases,
    "learning_curves": _learning_curves,
    "gradient_norms": _gradient_norms,
}


def _draw_lines(
    axes: Axes,
    layout: Layout,
    rows: Sequence[TrialRow],
    panel: Any,
    value: Callable[[TrialRow], float | None],
    *,
    ceiling: float | None = None,
    apart: Any = None,
) -> None:
    """Draw one line for each value of the lines' axis: median over seeds, and their range.

    What has no value is drawn at the `ceiling`, where there is one. The x that is `apart` stands for "none": it is a
    level and not a point.
    """
    lines = values_of(rows, layout.lines)
    for number, line in enumerate(lines):
        points = list(_points(layout, rows, line, panel, value, ceiling))
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        for point in points:
            if apart is not None and point.x == apart:
                axes.axhline(point.middle, color=colour, linestyle="--", linewidth=1)
                axes.annotate(
                    "without", (1, point.middle), xycoords=("axes fraction", "data"), xytext=(-2, 3), ha="right",
                    textcoords="offset points", fontsize=7, color=colour,
                )  # fmt: skip
        points = [point for point in points if apart is None or point.x != apart]
        # Lines that are the same are seen side by side.
        aside = _BESIDE * (number - (len(lines) - 1) / 2) if all(isinstance(point.x, int) for point in points) else 0
        xs = [point.x + aside if aside else point.x for point in points]
        axes.plot(
            xs, [point.middle for point in points], color=colour, marker=marker, markersize=4, linewidth=1.3,
            label=shown_on(layout.lines, line) or None,
        )  # fmt: skip
        for x, point in zip(xs, points, strict=True):
            if point.never:
                axes.plot(x, point.middle, marker, color="white", markeredgecolor=colour, markersize=7)
        if any(point.low != point.high for point in points):
            lows, highs = [point.low for point in points], [point.high for point in points]
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)
    shown = [x for x in values_of(rows, layout.x) if x != apart]
    axes.set_xlabel(layout.x)
    if shown and all(isinstance(x, int | float) for x in shown) and min(shown) > 0 and max(shown) >= 16 * min(shown):
        axes.set_xscale("log")
    if len(shown) <= 12:
        axes.set_xticks(shown, [str(x) for x in shown])
        axes.minorticks_off()


@dataclass(frozen=True, kw_only=True)
class _Point:
    """Holds what several seeds came to at one x."""

    x: Any
    middle: float
    low: float
    high: float
    never: bool
    """Whether most of the seeds came to nothing."""


def _points(
    layout: Layout,
    rows: Sequence[TrialRow],
    line: Any,
    panel: Any,
    value: Callable[[TrialRow], float | None],
    ceiling: float | None,
) -> Iterator[_Point]:
    for x in values_of(rows, layout.x):
        values = [value(row) for row in group(rows, layout, x, line, panel)]
        middle, known = median(values), [found for found in values if found is not None]
        if (middle is None and ceiling is None) or not values:
            continue
        top = math.inf if ceiling is None else ceiling
        yield _Point(
            x=x,
            middle=top if middle is None else middle,
            low=min(known, default=top),
            high=top if len(known) < len(values) else max(known),
            never=middle is None,
        )


def _panels(
    layout: Layout, rows: Sequence[TrialRow], *, share: bool = True, same_x: bool = False
) -> tuple[Figure, list[tuple[Axes, Any]]]:
    values = values_of(rows, layout.panels)
    figure = Figure(figsize=(3.6 * len(values) + 1.6, 3.4), layout="constrained")
    grid = figure.subplots(1, len(values), sharex=same_x, sharey=share, squeeze=False)[0]
    for axes, value in zip(grid, values, strict=True):
        axes.set_title(shown_on(layout.panels, value), fontsize=9)
    return figure, list(zip(grid, values, strict=True))


def _finish(figure: Figure, panels: list[tuple[Axes, Any]], title: str) -> Figure:
    handles, labels = panels[0][0].get_legend_handles_labels()
    if len(labels) > 1 and len(panels) > 1:
        figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    elif len(labels) > 1:
        panels[0][0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")  # worked out once for both files
    for kind in ("svg", "png"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
        write_bytes_atomically(path.with_suffix(f".{kind}"), buffer.getbuffer())
    return path.with_suffix(".png")


def _plain_log(set_scale: Callable[[str], object], axis: Axis) -> None:
    """Make an axis logarithmic, with 10, 20, 50, 100 and so on at its ticks."""
    set_scale("log")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())  # each tick would be drawn twice: half of the time of a picture
