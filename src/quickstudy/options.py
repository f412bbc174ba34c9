"""Options are the values of a configuration, flat and by name, whatever parts it is made of.

A configuration is a frozen dataclass, whose fields are options or dataclasses of options. Defined there once, an option
can be given as an argument in Python, as `--name` on the command line (a field annotated with `Option` is offered
there), as NAME=VALUE with `--set` and `--grid`, and in a study's file; and it is written down by its name.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from quickstudy.errors import OptionError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """Holds what a number may be; infinite it may never be, nor not a number."""

    least: float = -math.inf
    """Smallest value that the number may have."""
    most: float = math.inf
    """Largest value that the number may have."""
    above: bool = False
    """Whether the number has to be above the smallest value."""
    below: bool = False
    """Whether the number has to be below the largest value."""

    def holds(self, value: float) -> bool:
        """Tell whether a number is one of these."""
        low = self.least < value if self.above else self.least <= value
        high = value < self.most if self.below else value <= self.most
        return math.isfinite(value) and low and high

    def __str__(self) -> str:
        """Write the range for people, such as `0 to 1` and `more than 0`."""
        low, high = f"{self.least:g}", f"{self.most:g}"
        if self.least == -math.inf:
            return "a finite number" if self.most == math.inf else f"{'less than' if self.below else 'at most'} {high}"
        if self.most == math.inf:
            return f"more than {low}" if self.above else f"{low} or more"
        if self.above or self.below:
            return f"{'more than ' if self.above else ''}{low} to {'less than ' if self.below else ''}{high}"
        return f"{low} to {high}"


@dataclass(frozen=True)
class Option:
    """Tells how the command line offers a field; it is the metadata of the field's `Annotated` type."""

    help: str
    """Help text, in a sentence; the default follows it by itself, unless the sentence says it."""
    flag: str = ""
    """Name on the command line; empty takes the field's, with dashes."""
    metavar: str = ""
    """Placeholder of the value in the help; empty leaves it to typer."""
    range: Range = Range()
    """What the field may be where it is a number."""
    read: Callable[[str], Any] | None = None
    """Makes a value of a text, where the type is not enough to do so."""
    percent: bool = False
    """Whether the command line takes percent where the field has a share, from 0 to 1."""
    word: str = ""
    """Word by which the command line turns the field on, such as `progressive` after `--unfreeze`; empty for others."""
    recorded: bool = True
    """Whether what is made depends on it, so that it is written down with what is made."""
    auto: bool = False
    """Whether `auto` is a value of the field; where it is none, and the field can be None, it is the word for None."""

    def flag_for(self, name: str) -> str:
        """Give the name on the command line of the field with this name, such as `--random-crop`."""
        return self.flag or f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Field:
    """Describes one option of a configuration, with its value there."""

    name: str
    """Name of the option."""
    type: Any
    """Type of the option, without annotations."""
    value: Any
    """Value of the option in the configuration that was asked."""
    option: Option | None
    """How the command line offers the option; None where `--set` alone does."""
    part: str
    """Name of the configuration's field that the option is a part of; empty where it is a field itself."""

    @property
    def kind(self) -> Any:
        """Type of a value that is given: the option's type without None."""
        if get_origin(self.type) in (Union, types.UnionType):
            return next(kind for kind in get_args(self.type) if kind is not types.NoneType)
        return self.type

    @property
    def flag(self) -> str:
        """Name of the option where it is spoken of: as the command line has it, or its own where it has none there."""
        return self.option.flag_for(self.name) if self.option else self.name

    @property
    def shown(self) -> str:
        """Value as the command line takes it: in percent where the option says so."""
        percent = self.option is not None and self.option.percent
        return as_text(round(100 * self.value, 9) if percent else self.value)

    def words(self) -> list[str]:
        """Give the words that set the option to this value on the command line."""
        if self.option is None:
            return ["--set", f"{self.name}={self.shown}"]
        if self.option.word:
            return [self.flag, self.option.word]
        if isinstance(self.value, bool):
            on, _, off = self.flag.partition("/")
            return [on if self.value else off or f"--no-{on.removeprefix('--')}"]
        return [self.flag, self.shown]


def fields_of(config: DataclassInstance) -> list[Field]:
    """List all options of a configuration, those of its parts, too; names are unique over the parts."""
    return list(_fields(config, ""))


def options_of(config: DataclassInstance) -> dict[str, Any]:
    """Give all options of a configuration by name, with their values."""
    return {field.name: field.value for field in fields_of(config)}


def with_options(config: T, options: Mapping[str, Any], *, owner: str) -> T:
    """Change values of a configuration, by option name; strings are read as the option's type.

    Args:
        config: the configuration; all its fields but `name` are options, or dataclasses of options.
        options: the values; a whole part may be given by its field's name, too.
        owner: what messages call the configuration.

    Raises:
        OptionError: there is no such option, or it cannot have this value.
    """
    whole = {
        item.name: options[item.name]
        for item in dataclasses.fields(config)
        if dataclasses.is_dataclass(getattr(config, item.name)) and not isinstance(options.get(item.name, ""), str)
    }
    for name, value in whole.items():
        if type(value) is not (kind := type(getattr(config, name))):
            raise OptionError(f"{name} is {value!r}; expected a {kind.__name__}")
    config = dataclasses.replace(config, **whole)
    known = {field.name: field for field in fields_of(config)}
    given = {name: value for name, value in options.items() if name not in whole}
    require_known(given, known, owner)
    return _replace(config, {name: _read(known[name], value) for name, value in given.items()})


def require_known(names: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Raise an OptionError that suggests the nearest option where one of the names is none."""
    known = sorted(known)
    for name in names:
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; it has {', '.join(known)}"
            raise OptionError(f"{owner} has no option '{name}'{hint}")


def ranges_of(config: DataclassInstance) -> dict[str, Range]:
    """Give what numbers may be, by the names of the options of a configuration that the command line offers."""
    return {field.name: field.option.range for field in fields_of(config) if field.option}


def require_in_range(values: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Raise an OptionError where a number, or one of several, is not in the range of its option, or not finite.

    All numbers that anybody gives come through here, whatever the command; what has no range has to be finite.
    """
    for name, value in values.items():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, int | float) and not isinstance(one, bool):
                limits = ranges.get(name, Range())
                if not limits.holds(one):
                    raise OptionError(f"{name} is {one:g}; expected {limits}")


def read_assignments(texts: Iterable[str], given: Collection[str] = ()) -> dict[str, str]:
    """Split texts of the form NAME=VALUE into names and values; dashes in a name count as underscores.

    Args:
        texts: what was given.
        given: names of what has a value by an option of its own, which no text may give another one.

    Raises:
        OptionError: a text has no equals sign, or something is given two values.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise OptionError(f"'{text}': expected NAME=VALUE, such as rate=0.05")
        name, value = name.strip().replace("-", "_"), value.strip()
        if name in found:
            raise OptionError(f"{name} is given twice, as '{found[name]}' and '{value}'; leave out one of the two")
        if name in given:
            raise OptionError(f"{name} is given by its own option, and once more as '{text}'; leave out one of the two")
        found[name] = value
    return found


def with_arguments_of(config: DataclassInstance) -> Callable[[F], F]:
    """Let the signature of a function that takes `**options` name the fields of a configuration, with their values."""
    import inspect

    def decorate(function: F) -> F:
        hints = get_type_hints(type(config))
        fields = [
            inspect.Parameter(
                item.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(config, item.name),
                annotation=hints[item.name],
            )
            for item in dataclasses.fields(config)
        ]
        shown = inspect.signature(function)
        *own, options = shown.parameters.values()
        function.__signature__ = shown.replace(parameters=[*own, *fields, options])  # type: ignore[attr-defined]
        return function

    return decorate


def as_text(value: Any) -> str:
    """Write a value for people, as `--set` reads it back: `auto` for None, numbers without needless digits."""
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(map(as_text, value))
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def parse_seconds(text: str) -> float:
    """Read the seconds of a time such as `90s`, `3m`, `1.5h` or `1h30m`.

    Raises:
        OptionError: the text is no time, or not a positive one.
    """
    parts = re.findall(r"([\d.]+)\s*([a-z]*)", text.strip().lower())
    try:
        if re.sub(r"[\d.]+\s*[a-z]*\s*", "", text.strip().lower()):
            raise ValueError
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    except (KeyError, ValueError):
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise OptionError(f"'{text}' is not a time; expected, for example, 90s, 3m or 1h30m")
    return seconds


def parse_bytes(text: str) -> float:
    """Read the bytes of a size such as `500MB` or `2GB`.

    Raises:
        OptionError: the text is no size, or not a positive one.
    """
    found = re.fullmatch(r"([\d.]+)\s*([kmgt]?b)", text.strip().lower())
    try:
        size = float(found[1]) * _BYTES[found[2]] if found else 0.0
    except ValueError:
        size = 0.0
    if size <= 0:
        raise OptionError(f"'{text}' is not a size; expected, for example, 500MB or 2GB")
    return size


def _fields(config: DataclassInstance, part: str) -> Iterator[Field]:
    hints = _hints(type(config))
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _fields(value, part or item.name)
        elif part or item.name != "name":
            kind, option = hints[item.name], None
            if get_origin(kind) is Annotated:
                kind, *notes = get_args(kind)
                option = next((note for note in notes if isinstance(note, Option)), None)
            # A whole number where any number may stand becomes a float, so that 2.5 can be put in its place.
            value = float(value) if kind is float else value
            yield Field(item.name, kind, value, option, part)


@functools.cache
def _hints(config: type) -> dict[str, Any]:
    return get_type_hints(config, include_extras=True)


def _replace(config: T, values: Mapping[str, Any]) -> T:
    changed: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        part = getattr(config, item.name)
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            changed[item.name] = _replace(part, values)
        elif item.name in values:
            changed[item.name] = values[item.name]
    return dataclasses.replace(config, **changed)


def _read(field: Field, value: Any) -> Any:
    """Make a value of the field's type from text or JSON."""
    kind = field.kind
    if kind is not field.type and (
        value is None or (isinstance(value, str) and _is_none(field, value.strip().lower()))
    ):
        return None
    if field.option and field.option.read and isinstance(value, str):
        return field.option.read(value)
    if get_origin(kind) is Literal:
        if value in (choices := get_args(kind)):
            return value
        raise OptionError(f"{field.name} is '{value}'; expected {', '.join(choices[:-1])} or {choices[-1]}")
    try:
        found = _as_type(kind, value)
        if field.option:
            require_in_range({field.name: found}, {field.name: field.option.range})
        return found
    except (KeyError, TypeError, ValueError, OverflowError):
        kind = get_origin(kind) or kind
        example = f", such as {as_text(field.value)}" if field.value is not None else ""
        raise OptionError(f"{field.name} is '{value}'; expected {_KINDS[kind]}{example}") from None


def _is_none(field: Field, word: str) -> bool:
    """Say whether a word stands for None in this field."""
    has_auto = (field.option is not None and field.option.auto) or "auto" in get_args(field.kind)
    return word == "none" or (word == "auto" and not has_auto)


def _as_type(kind: Any, value: Any) -> Any:
    if kind is bool:
        return value if isinstance(value, bool) else _SWITCH[str(value).strip().lower()]
    if get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) and value.strip() else value
        return tuple(_as_type(get_args(kind)[0], part) for part in parts)
    if kind is int:
        if isinstance(value, str) and value.strip().isdecimal():
            return int(value)  # not by way of a float, which has 53 bits
        if not isinstance(value, int) and float(value) != int(float(value)):
            raise ValueError
        return value if isinstance(value, int) and not isinstance(value, bool) else int(float(value))
    return kind(value)


_SWITCH = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
_KINDS = {
    bool: "on or off",
    int: "a whole number",
    float: "a number",
    str: "a name",
    Path: "a path",
    tuple: "numbers with commas between them",
}
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
