"""A sweep's folder holds what its runs came to, and here it becomes one table, always read from the runs themselves.

`sweep.json` says what the study is, `runs/` has a run folder for each trial, `results.parquet` and `results.csv` the
table, `pictures/` and `conclusion.md` what it shows. Those two share what stands at the end of this file: which axis of
a study plays which part (`Layout`), and which rows belong together.
"""

from __future__ import annotations

import dataclasses
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from quickstudy.errors import SweepError, WriteError
from quickstudy.files import write_bytes_atomically, write_json_atomically
from quickstudy.learning.scores import Score
from quickstudy.scratch.folder import METRICS, RESULT, RunFolder
from quickstudy.sweeps.study import CASE, Grid, Study, Trial
from quickstudy.sweeps.tasks import JUDGED, JUDGED_DIGITS

FORMAT = 1
"""Format of a sweep's folder; a folder of another format is not read."""
FAILURE = "failure.json"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Shows how a run went, evaluation by evaluation."""

    steps: tuple[int, ...]
    """Number of steps made until each evaluation."""
    accuracy: tuple[float, ...]
    """Accuracy in each evaluation, 0 to 1."""
    seconds: tuple[float, ...]
    """Seconds spent on steps until each evaluation."""
    norms: dict[str, tuple[tuple[int, float], ...]]
    """Steps and norms of the gradient, for each layer's weights, in the layers' order."""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """Shows one trial and what it came to."""

    trial: Trial
    """The trial, with its task and labels."""
    folder: Path
    """Path of its run folder."""
    status: str
    """What has become of the trial: `done`, `failed`, or `missing`."""
    error: str | None
    """Reason of a failure; None where there was none."""
    values: dict[str, Any]
    """Values of the table's columns that are not labels, by name; where `together` is above 1, seconds and milliseconds
    are the run's share of what so many runs took at once."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """What the trial's `result.json` holds; empty where it has not ended."""

    @property
    def test(self) -> Score | None:
        """Score on the test images; None where there are none."""
        found = self.result.get("test")
        return Score(right=found["right"], n=found["n"]) if found else None

    @property
    def chosen_by(self) -> Score | None:
        """Score on images that a choice may go by; None where there are none."""
        column = next((name for name in CHOOSING if self.values.get(name) is not None), None)
        if column is None:
            return None
        found = self.result.get(column)
        if column == "validation" and self.result.get("fine_tuning"):
            found = max((stage["kept"] for stage in self.result["fine_tuning"]), key=lambda kept: kept["right"])
        return Score(right=found["right"], n=found["n"]) if found else None

    @cached_property
    def judged(self) -> dict[str, bool]:
        """Whether it was right, by image; empty where that is not known."""
        try:
            values = json.loads((self.folder / JUDGED).read_text(encoding="utf-8"))
            digests, right = values["digests"], values["right"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        starts = range(0, len(digests), JUDGED_DIGITS)
        return {digests[at : at + JUDGED_DIGITS]: one == "1" for at, one in zip(starts, right, strict=False)}

    @cached_property
    def curve(self) -> Curve:
        """How the run went, by its `metrics.jsonl`."""
        lines = RunFolder(self.folder).lines(METRICS)
        evaluations = [line for line in lines if "accuracy" in line]
        norms: dict[str, list[tuple[int, float]]] = {}
        for line in lines:
            for name, value in line.items():
                if name.startswith(_NORM) and name.endswith(".weight") and "norm" not in name.removeprefix(_NORM):
                    layer = name.removeprefix(_NORM).removesuffix(".weight").removesuffix(".linear")
                    norms.setdefault(layer, []).append((line["step"], value))
        return Curve(
            steps=tuple(line["step"] for line in evaluations),
            accuracy=tuple(line["accuracy"] for line in evaluations),
            seconds=tuple(line["training_seconds"] for line in evaluations),
            norms={layer: tuple(points) for layer, points in norms.items()},
        )


_NORM = "gradient_norm/"


class SweepFolder:
    """Reads and writes a sweep's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = path / "runs"
        self.pictures = path / "pictures"

    def begin(self, study: Study) -> None:
        """Write what the study is; a study that was here before gives way, its runs stay.

        Raises:
            SweepError: the folder is of another version, or is something else.
            WriteError: it cannot be written.
        """
        if (self.path / _FILE).exists():
            self._read()
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise SweepError(f"'{self.path}' exists already and is not a sweep; name another folder with --results")
        try:
            write_json_atomically(self.path / _FILE, {"format": FORMAT, "study": dataclasses.asdict(study)})
        except OSError as error:
            raise WriteError(
                f"Cannot write to '{self.path}': {error.strerror or error}; name another folder with --results"
            ) from None

    def study(self) -> Study:
        """Read the study that was begun last.

        Raises:
            SweepError: this is no sweep, or one of another version.
        """
        try:
            return _from_json(self._read()["study"])
        except (KeyError, TypeError, ValueError) as error:
            raise SweepError(f"'{self.path / _FILE}' is damaged: {error!r}") from None

    def rows(self, trials: Sequence[Trial]) -> list[TrialRow]:
        """Read what the trials came to, as their folders have it."""
        return [self._row(trial) for trial in trials]

    def is_done(self, trial: Trial) -> bool:
        """Tell whether a trial has ended."""
        return (self.runs / trial.folder / RESULT).is_file()

    def failed(self, trial: Trial, error: str) -> None:
        """Record that a trial failed."""
        write_json_atomically(self.runs / trial.folder / FAILURE, {"error": error})

    def forget_failure(self, trial: Trial) -> None:
        """Forget that a trial failed, as it is about to be tried again."""
        (self.runs / trial.folder / FAILURE).unlink(missing_ok=True)

    def write_table(self, table: pa.Table) -> None:
        """Write the table, as Parquet and as CSV."""
        for name, write in (("parquet", pyarrow.parquet.write_table), ("csv", pyarrow.csv.write_csv)):
            buffer = io.BytesIO()
            write(table, buffer)
            write_bytes_atomically(self.path / f"results.{name}", buffer.getbuffer())

    def _row(self, trial: Trial) -> TrialRow:
        folder = self.runs / trial.folder
        try:
            result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            error = _failure(folder)
            return TrialRow(trial=trial, folder=folder, status="failed" if error else "missing", error=error, values={})
        except (OSError, ValueError) as error:
            raise SweepError(f"'{folder / RESULT}' is damaged ({error}); delete '{folder}' to run it again") from None
        row = TrialRow(trial=trial, folder=folder, status="done", error=None, values={}, result=result)
        row.values.update(_values(result))
        if trial.target:
            reached = [number for number, accuracy in enumerate(row.curve.accuracy) if accuracy >= trial.target]
            row.values["steps_to_target"] = row.curve.steps[reached[0]] if reached else None
            row.values["seconds_to_target"] = row.curve.seconds[reached[0]] if reached else None
        return row

    def _read(self) -> dict[str, Any]:
        path = self.path / _FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("it holds no object")
        except FileNotFoundError:
            raise SweepError(
                f"'{self.path}' is not a sweep: it has no {_FILE}; start one with: quickstudy sweep"
            ) from None
        except (OSError, ValueError) as error:
            raise SweepError(f"'{path}' is damaged: {error}") from None
        if values.get("format") != FORMAT:
            raise SweepError(
                f"'{self.path}' is a sweep of format {values.get('format')}; this version of quickstudy reads "
                f"{FORMAT}. Name another folder with --results"
            )
        return values


_FILE = "sweep.json"


def table_of(study: Study, rows: Sequence[TrialRow]) -> pa.Table:
    """Make the table, one row a trial: labels, seed, status, then what it came to; None where that is not known."""
    values = []
    for row in rows:
        labels = {name: _cell(row.trial.labels.get(name)) for name in study.axes}
        values.append(
            {
                **labels,
                "seed": row.trial.seed,
                "status": row.status,
                **{name: row.values.get(name) for name in COLUMNS},
                "error": row.error,
                "run": row.trial.folder,
            }
        )
    return pa.Table.from_pylist(values)


COLUMNS = (
    "accuracy",
    "steps",
    "milliseconds_a_step",
    "steps_to_target",
    "seconds_to_target",
    "training_seconds",
    "seconds",
    "together",
    "parameters",
    "multiply_adds",
    "validation",
    "cross_validation",
)
CHOOSING = ("validation", "cross_validation")
"""Columns that a choice may go by, the one before the other; test images choose nothing."""


def _values(result: dict[str, Any]) -> dict[str, Any]:
    """Take the table's values from a training's result, or a retraining's."""
    test = result.get("test")
    values: dict[str, Any] = {"accuracy": test["accuracy"] if test else None}
    held = result.get("validation")
    values["validation"] = held["accuracy"] if held else None
    if "training_seconds" in result:
        values |= {name: result[name] for name in ("steps", "seconds", "training_seconds")}
        values |= {name: result[name] for name in ("parameters", "multiply_adds")}
        values["together"] = result.get("together", 1)
        values["milliseconds_a_step"] = 1e3 * result["training_seconds"] / max(result["steps"], 1)
    else:
        values["seconds"] = sum(result["seconds"].values())
        values["cross_validation"] = result["cross_validation"]["accuracy"]
        if result["fine_tuning"]:
            kept = max((stage["kept"] for stage in result["fine_tuning"]), key=lambda found: found["right"])
            values["validation"] = kept["right"] / kept["n"]
    return values


def _failure(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / FAILURE).read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cell(value: Any) -> Any:
    return "+".join(map(str, value)) if isinstance(value, tuple) else value


def median(values: Sequence[float | None]) -> float | None:
    """Find the median where None stands for more than any number; None if that is the median, or nothing is given."""
    ordered = sorted(values, key=lambda value: float("inf") if value is None else value)
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    return None if not middle or None in middle else statistics.mean(value for value in middle if value is not None)


def _from_json(values: dict[str, Any]) -> Study:
    grids = tuple(
        Grid(**{**grid, "axes": {name: tuple(_frozen(v) for v in axis) for name, axis in grid["axes"].items()}})
        for grid in values["grids"]
    )
    return Study(**{**values, "grids": grids})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Says which axis of a study plays which part; a name is empty where none does."""

    x: str
    """Name of the axis from left to right."""
    lines: str
    """Name of the axis with a line for each value."""
    panels: str
    """Name of the axis with a panel for each value."""


def axes_of(study: Study, rows: Sequence[TrialRow]) -> Layout:
    """Lay the axes out as the study says; else the first axis of numbers is x, the last of the others the lines."""
    axes = list(study.axes)
    x = study.x or next((name for name in axes if _is_numeric(rows, name)), axes[0] if axes else "")
    others = [name for name in axes if name not in (x, study.lines, study.panels)]
    lines = study.lines or (others.pop() if others else "")
    panels = study.panels or (others.pop() if others else "")
    return Layout(x=x, lines=lines, panels=panels)


def values_of(rows: Sequence[TrialRow], name: str) -> list[Any]:
    """List the values of an axis, in the order in which they first come; [None] where there is no such axis."""
    return list(dict.fromkeys(value_on(row, name) for row in rows)) if name else [None]


def group(rows: Sequence[TrialRow], layout: Layout, x: Any, line: Any, panel: Any) -> list[TrialRow]:
    """Find the rows of one point, one a seed; an axis that plays no part is not looked at."""
    wanted = ((layout.x, x), (layout.lines, line), (layout.panels, panel))
    return [row for row in rows if all(not name or value_on(row, name) == value for name, value in wanted)]


def value_on(row: TrialRow, name: str) -> Any:
    """Give a row's value on an axis; None where it has none."""
    return row.trial.labels.get(name)


def have_target(rows: Sequence[TrialRow]) -> bool:
    """Tell whether the runs end at a target."""
    return any("steps_to_target" in row.values for row in rows)


def have_own_time(rows: Sequence[TrialRow]) -> bool:
    """Tell whether each run had its process for itself, so that its seconds say what it costs.

    Those of runs that were trained together are shares: so long as all took, divided by their number at the time.
    """
    return all(row.values.get("together", 1) == 1 for row in rows)


def largest(values: Sequence[Any]) -> Any:
    """Find the largest of the numbers among values; the last value, where there is no number."""
    numbers = [value for value in values if isinstance(value, int | float)]
    return max(numbers) if numbers else values[-1]


def shown_value(value: Any) -> str:
    """Write a value as options are written: a tuple's numbers with commas between them."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def shown_on(axis: str, value: Any) -> str:
    """Write a value for people, with its axis where it would not speak for itself: `depth 7`, but `sigmoid`."""
    if not axis or value is None:
        return ""
    shown = shown_value(value)
    return shown if axis in (CASE, "activation") else f"{axis} {shown}"


def _is_numeric(rows: Sequence[TrialRow], name: str) -> bool:
    values = [value_on(row, name) for row in rows]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
