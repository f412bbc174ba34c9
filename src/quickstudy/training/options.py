"""Options: the values of a configuration, flat and by name, whatever parts it is made of; read from text or JSON."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from quickstudy.errors import RecipeError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


T = TypeVar("T", bound="DataclassInstance")


def options_of(config: DataclassInstance) -> dict[str, Any]:
    """All options by name, with their values; names are unique over the parts of a configuration."""
    result: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            result |= {
                inner.name: _as_declared(inner, getattr(value, inner.name)) for inner in dataclasses.fields(value)
            }
        elif item.name != "name":
            result[item.name] = _as_declared(item, value)
    return result


def with_options(config: T, options: Mapping[str, Any], *, owner: str) -> T:
    """The configuration with other values, by option name; strings are read as the option's type.

    Args:
        config: a frozen dataclass; all its fields but `name` are options, or dataclasses of options.
        options: the values.
        owner: what messages call the configuration.

    Raises:
        RecipeError: there is no such option, or it cannot have this value.
    """
    known = options_of(config)
    require_known(options, known, owner)
    values = {name: _read(name, value, known[name]) for name, value in options.items()}
    parts: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        part = getattr(config, item.name)
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            parts[item.name] = dataclasses.replace(part, **_those_of(part, values))
        elif item.name in values:
            parts[item.name] = values[item.name]
    return dataclasses.replace(config, **parts)


def require_known(names: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Raise a RecipeError that suggests the nearest option where one of the names is none."""
    known = sorted(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; it has {', '.join(known)}"
            raise RecipeError(f"The recipe '{owner}' has no option '{name}'{hint}")


def read_assignment(text: str) -> tuple[str, str]:
    """Name and value of NAME=VALUE; dashes in the name count as underscores.

    Raises:
        RecipeError: there is no equals sign.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f"'{text}': expected NAME=VALUE, such as rate=0.05")
    return name.strip().replace("-", "_"), value.strip()


def _those_of(part: DataclassInstance, values: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in dataclasses.fields(part) if field.name in values}


def _as_declared(field: dataclasses.Field[Any], value: Any) -> Any:
    """A whole number that stands where any number may stand becomes a float, so that 2.5 can be put in its place."""
    return float(value) if field.type == "float" else value


def _read(name: str, value: Any, present: Any) -> Any:
    """A value of the type of the present one, from text or JSON."""
    try:
        if isinstance(present, bool):
            return value if isinstance(value, bool) else _SWITCH[str(value).lower()]
        if isinstance(present, tuple):
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(type(present[0])(part) for part in parts)
        if isinstance(present, int) and not isinstance(value, int):
            if isinstance(value, str) and value.strip().isdecimal():
                return int(value)  # not by way of a float, which has 53 bits
            if float(value) != int(float(value)):
                raise ValueError
            return int(float(value))
        return type(present)(value)
    except (KeyError, TypeError, ValueError, OverflowError):
        kind = "numbers with commas between them" if isinstance(present, tuple) else _KINDS[type(present)]
        raise RecipeError(f"{name} is '{value}'; expected {kind}, such as {_shown(present)}") from None


def _shown(value: Any) -> str:
    return ",".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)


_SWITCH = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
_KINDS = {bool: "on or off", int: "a whole number", float: "a number", str: "a name"}
