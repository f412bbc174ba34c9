"""A study says what is varied, as grids of options; it is read from a TOML file, of which some come with quickstudy."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from quickstudy.errors import SweepError
from quickstudy.options import require_known
from quickstudy.scratch.recipe import RECIPES
from quickstudy.sweeps.tasks import RETRAIN, Task, task_named

_EVALUATE_STEPS = 10
"""Number of steps from one evaluation to the next where there is a target and nothing else is said."""
_QUIET_OPTIONS = ("evaluate_steps", "target", "seed")
"""Options that are left out of folder names."""
_NAME_LENGTH = 100


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep."""

    task: Task
    """What the trial carries out: a training by a recipe, or a retraining."""
    labels: Mapping[str, Any]
    """What tells the trial from the others in the table: its case, if any, and the value of each axis."""
    seed: int | None
    """Number that all random numbers follow from; None where nothing in the trial is random."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints by path of what trials retrain on, as in `Study`."""

    @cached_property
    def identity(self) -> str:
        """Hash of all that decides what the trial gives, as 64 hexadecimal digits; images by content, not by path."""
        options = self.task.options()
        if self.task.name == RETRAIN:
            for name in ("data", "roles_of"):
                options[name] = self.contents.get(options[name], options[name])
        text = json.dumps([self.task.name, options], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def target(self) -> float:
        """Accuracy at which the trial ends early, 0 to 1; 0 where it never does."""
        return float(self.task.options().get("target") or 0)

    @cached_property
    def folder(self) -> str:
        """Name of the trial's folder: what differs from the recipe as it stands, for people, and the hash."""
        plain = task_named(self.task.name, {}).options()
        changed = {
            name: value
            for name, value in self.task.options().items()
            if value != plain[name] and name not in _QUIET_OPTIONS
        }
        shown = ",".join(f"{name}={_shown(value)}" for name, value in sorted(changed.items()))
        readable = re.sub(r"[^\w=.,+-]", "-", f"{self.task.name},{shown}" if shown else self.task.name)
        seed = "" if self.seed is None else f",seed={self.seed}"
        return f"{readable[:_NAME_LENGTH]}{seed}-{self.identity[:10]}"

    def __str__(self) -> str:
        """Write the trial for people, such as `depth 7, activation sigmoid, seed 0`."""
        parts = [str(value) if name == CASE else f"{name} {_shown(value)}" for name, value in self.labels.items()]
        return ", ".join(parts if self.seed is None else [*parts, f"seed {self.seed}"])


CASE = "case"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A recipe, and which values its options take: every combination is a trial."""

    recipe: str
    """Name of the recipe, or `retrain`."""
    case: str = ""
    """Name of the grid in the table, where a study has several; empty otherwise."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Options with one value, by name."""
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Options with several values, by name; each is a value as the recipe has it or a text for it."""

    def trials(self, *, seeds: int, contents: Mapping[str, str] | None = None) -> Iterator[Trial]:
        """Make all trials; seeds change last, so that a part of a sweep is a whole one with fewer seeds.

        Raises:
            OptionError: an option is unknown or cannot have its value.
        """
        known = task_named(self.recipe, {}).options()
        require_known([*self.fixed, *self.axes], known, f"The recipe '{self.recipe}'")
        for number in range(seeds):
            for values in itertools.product(*self.axes.values()):
                chosen = dict(zip(self.axes, values, strict=True))
                task = task_named(self.recipe, {**self.fixed, **chosen})
                seed = int(self.fixed.get("seed", 0)) + number if task.random and "seed" not in self.axes else None
                if seed is not None:
                    task = task_named(self.recipe, {**self.fixed, **chosen, "seed": seed})
                elif number:
                    continue  # it would only give the same again
                options = task.options()
                labels = {CASE: self.case} if self.case else {}
                labels |= {name: options[name] for name in chosen}
                yield Trial(task=task, labels=labels, seed=seed, contents=contents or {})


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, and the grids of runs that answer it."""

    name: str
    """Name of the study."""
    grids: tuple[Grid, ...]
    """Its grids, at least one."""
    title: str = ""
    """Title of its pictures and its conclusion; empty where it has none."""
    seeds: int = 1
    """Number of runs of each combination, at least 1, from seed 0 on."""
    x: str = ""
    """Name of the axis from left to right in pictures; empty takes the first one whose values are numbers."""
    lines: str = ""
    """Name of the axis with one line for each value; empty takes the last one that is left."""
    panels: str = ""
    """Name of the axis with a panel for each value, the first of which the others are compared with; empty takes the
    last one that is left."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints by path of the image sets that trials retrain on, and hashes of models that they take roles from."""

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Names of what tells trials apart, `case` first where there are several."""
        names = [CASE] if any(grid.case for grid in self.grids) else []
        return (*names, *dict.fromkeys(name for grid in self.grids for name in grid.axes))

    def trials(self) -> list[Trial]:
        """Make the trials of all grids; those with the same configuration count once.

        Raises:
            OptionError: an option is unknown or cannot have its value.
            SweepError: there is nothing to do.
        """
        if self.seeds < 1:
            raise SweepError(f"seeds is {self.seeds}; expected 1 or more")
        if self.seeds > 1 and any("seed" in grid.axes for grid in self.grids):
            raise SweepError(f"seeds is {self.seeds}, and the grid names the seeds itself; leave out --seeds, or seed")
        found = {
            trial.identity: trial
            for grid in self.grids
            for trial in grid.trials(seeds=self.seeds, contents=self.contents)
        }
        if not found:
            raise SweepError(f"The study '{self.name}' has no runs; give every axis at least one value")
        return list(found.values())

    def changed(
        self,
        *,
        fixed: Mapping[str, Any] | None = None,
        axes: Mapping[str, tuple[Any, ...]] | None = None,
        seeds: int | None = None,
    ) -> Study:
        """Give options other values in all grids; an axis takes the place of a fixed value, and the other way.

        Raises:
            SweepError: an option is given one value and several.
        """
        fixed, axes = dict(fixed or {}), dict(axes or {})
        for name in axes:
            if name in fixed:
                raise SweepError(f"{name} is set to {fixed[name]} and varied, too; leave out one of the two")
        if "target" in fixed and "evaluate_steps" not in fixed:
            fixed["evaluate_steps"] = _EVALUATE_STEPS
        grids = tuple(
            replace(
                grid,
                fixed={name: value for name, value in grid.fixed.items() if name not in axes} | fixed,
                axes={name: values for name, values in grid.axes.items() if name not in fixed} | axes,
            )
            for grid in self.grids
        )
        return replace(self, grids=grids, seeds=self.seeds if seeds is None else seeds)


def study_named(name: str) -> Study:
    """Find a study by its TOML file, the name of one that comes with quickstudy, or a recipe with nothing varied yet.

    Raises:
        SweepError: there is no such study, or its file cannot be used.
    """
    if name.endswith(".toml"):
        path = Path(name)
        try:
            return read_study(path.read_text(encoding="utf-8"), name=path.stem, source=name)
        except (OSError, UnicodeDecodeError) as error:
            raise SweepError(f"Cannot read the study '{name}': {error}") from None
    if name in (known := built_in()):
        text = (resources.files(__package__) / "studies" / f"{name}.toml").read_text(encoding="utf-8")
        return read_study(text, name=name, source=name)
    if name in RECIPES or name == RETRAIN:
        return Study(name=name, grids=(Grid(recipe=name),))
    raise SweepError(
        f"There is no study or recipe '{name}'; studies: {', '.join(known)}; "
        f"recipes: {', '.join((*RECIPES, RETRAIN))}; or name a .toml file"
    )


def built_in() -> list[str]:
    """List the names of the studies that come with quickstudy."""
    folder = resources.files(__package__) / "studies"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def read_study(text: str, *, name: str, source: str) -> Study:
    """Read a study from TOML.

    Its entries are `title`, `recipe`, `seeds`, `target`, `x`, `lines` and `panels`; `[set]` with fixed options;
    `[grid]` with axes, as lists or as texts like those of `--grid`; and `[[cases]]`, each with a `name` and with its
    own recipe, `set` and `grid` beside those of all.

    Raises:
        SweepError: the text is no such TOML; the message names `source`.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SweepError(f"'{source}' is not valid TOML: {error}") from None
    _require_keys(values, _KEYS, source)
    cases = values.get("cases", [{}])
    if not isinstance(cases, list) or not cases:
        raise SweepError(f"'{source}': cases is {cases!r}; expected [[cases]] tables")
    grids = []
    for number, case in enumerate(cases):
        _require_keys(case, _CASE_KEYS, f"{source}, case {number + 1}")
        recipe = case.get("recipe", values.get("recipe"))
        if not isinstance(recipe, str):
            raise SweepError(f"'{source}' names no recipe; add recipe = \"mlp\", for example")
        grids.append(
            Grid(
                recipe=recipe,
                case=str(case.get("name", "")),
                fixed=_table(values, "set", source) | _table(case, "set", source),
                axes=_axes(recipe, _table(values, "grid", source) | _table(case, "grid", source)),
            )
        )
    texts = {key: values.get(key, "") for key in ("title", "x", "lines", "panels")}
    if wrong := [key for key, value in texts.items() if not isinstance(value, str)]:
        raise SweepError(f"'{source}': {wrong[0]} is {texts[wrong[0]]!r}; expected a text")
    seeds = values.get("seeds", 1)
    if not isinstance(seeds, int) or isinstance(seeds, bool):
        raise SweepError(f"'{source}': seeds is {seeds!r}; expected a whole number")
    study = Study(name=name, grids=tuple(grids), seeds=seeds, **texts)
    return study.changed(fixed={"target": values["target"]}) if "target" in values else study


def read_axis(recipe: str, name: str, text: str) -> tuple[Any, ...]:
    """Read values from a text: `1..7`, or values with commas between them (semicolons if a value has commas itself).

    Raises:
        OptionError: the recipe has no such option.
        SweepError: there is no value.
    """
    known = task_named(recipe, {}).options()
    require_known([name], known, f"The recipe '{recipe}'")
    if match := re.fullmatch(r"\s*(-?\d+)\s*\.\.\s*(-?\d+)\s*", text):
        first, last = map(int, match.groups())
        values: list[Any] = list(range(first, last + 1))
    else:
        separator = ";" if isinstance(known[name], tuple) or ";" in text else ","
        values = [part.strip() for part in text.split(separator)]
        values = [value for value in values if value]
    if not values:
        raise SweepError(f"The axis {name}={text} has no value; expected, for example, {name}=1..7 or {name}=a,b")
    return tuple(values)


def _axes(recipe: str, table: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    axes = {}
    for name, values in table.items():
        if isinstance(values, str):
            axes[name] = read_axis(recipe, name, values)
        elif isinstance(values, list) and values:
            axes[name] = tuple(values)
        else:
            raise SweepError(f'The axis {name} is {values!r}; expected a list of values, or a text such as "1..7"')
    return axes


def _table(values: Mapping[str, Any], name: str, source: str) -> dict[str, Any]:
    table = values.get(name, {})
    if not isinstance(table, dict):
        raise SweepError(f"'{source}': {name} is {table!r}; expected a table [{name}]")
    return table


def _require_keys(values: Mapping[str, Any], known: Sequence[str], source: str) -> None:
    for key in values:
        if key not in known:
            raise SweepError(f"'{source}' has an unknown entry '{key}'; known are {', '.join(known)}")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(_shown(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


_CASE_KEYS = ("name", "recipe", "set", "grid")
_KEYS = ("title", "recipe", "seeds", "target", "x", "lines", "panels", "set", "grid", "cases")
