"""Which axis of a study plays which part in its pictures and conclusions, and the rows that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quickstudy.experiments.results import Row
from quickstudy.experiments.study import CASE, Study


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which axis of a study plays which part; empty where none does."""

    x: str
    lines: str
    panels: str


def layout_of(study: Study, rows: Sequence[Row]) -> Layout:
    """As the study says, or the first axis of numbers from left to right, the last of the others as lines."""
    axes = list(study.axes)
    x = study.x or next((name for name in axes if _is_numeric(rows, name)), axes[0] if axes else "")
    others = [name for name in axes if name not in (x, study.lines, study.panels)]
    lines = study.lines or (others.pop() if others else "")
    panels = study.panels or (others.pop() if others else "")
    return Layout(x=x, lines=lines, panels=panels)


def values_of(rows: Sequence[Row], name: str) -> list[Any]:
    """The values of an axis, in the order in which they first come; [None] where there is no such axis."""
    return list(dict.fromkeys(label_of(row, name) for row in rows)) if name else [None]


def group(rows: Sequence[Row], layout: Layout, x: Any, line: Any, panel: Any) -> list[Row]:
    """The rows, one a seed, of one point; where two axes play no part, of all their values."""
    wanted = ((layout.x, x), (layout.lines, line), (layout.panels, panel))
    return [row for row in rows if all(not name or label_of(row, name) == value for name, value in wanted)]


def label_of(row: Row, name: str) -> Any:
    """A row's value on an axis; None where it has none."""
    return row.trial.labels.get(name)


def have_target(rows: Sequence[Row]) -> bool:
    """Whether the runs end at a target."""
    return any("steps_to_target" in row.values for row in rows)


def largest(values: Sequence[Any]) -> Any:
    """Of the numbers among values; the last value, where there is no number."""
    numbers = [value for value in values if isinstance(value, int | float)]
    return max(numbers) if numbers else values[-1]


def name_of(axis: str, value: Any) -> str:
    """A value for people, with its axis where it would not speak for itself: `depth 7`, but `sigmoid`."""
    if not axis or value is None:
        return ""
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return shown if axis in (CASE, "activation") else f"{axis} {shown}"


def _is_numeric(rows: Sequence[Row], name: str) -> bool:
    values = [label_of(row, name) for row in rows]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
