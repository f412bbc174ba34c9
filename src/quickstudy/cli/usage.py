"""What is wrong with a command line is said as all errors are: what was given, what was expected, and the way out.

Typer's own messages are put into such words (`reworded`). Where an error comes of words in the wrong order, or of
spaces that the shell took for ends of words, the command as it was meant is shown (`command_meant`).
"""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer
import typer.core

from quickstudy.errors import OptionError
from quickstudy.files import as_path
from quickstudy.options import require_in_range
from quickstudy.wording import pasted

# The base of all that typer says about words; it comes with typer, or with click in versions before.
UsageError: Any = typer.BadParameter.__base__

_LIMITS = (
    (r"greater than or equal to (\S+)", "{} or more"),
    (r"less than or equal to (\S+)", "at most {}"),
    (r"greater than (\S+)", "more than {}"),
    (r"less than (\S+)", "less than {}"),
    (r"valid integer", "a whole number"),
    (r"valid number", "a number"),
    (r"valid boolean", "on or off"),
)
_MODEL_FIRST = ("predict", "evaluate", "compare", "report", "export", "serve", "verify")


class Commands(typer.core.TyperGroup):
    """Lists its commands with their whole sentences, and gives that list where none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words before a command's name."""
        if not args:
            print(ctx.get_help(), file=sys.stderr)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named; an error in its words that does not say which command it is of, is told."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            name = ctx.invoked_subcommand
            if error.ctx is None and (command := self.get_command(ctx, name or "")) is not None:
                error.ctx = command.context_class(command, info_name=name, parent=ctx)
            raise

    def get_command(self, ctx: Any, name: str) -> Any:
        """Find a command, whose values are looked at before it gets them; see `_usable`."""
        command: Any = super().get_command(ctx, name)
        for parameter in command.params if command is not None else ():
            if not isinstance(parameter.process_value, functools.partial):
                parameter.process_value = functools.partial(_usable, parameter, parameter.process_value)
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands in the help."""
        for command in self.commands.values():
            command.short_help = command.help
        super().format_commands(ctx, formatter)


def _usable(parameter: Any, convert: Callable[[Any, Any], Any], context: Any, given: Any) -> Any:
    """Convert what was given for a parameter, with what typer does not see to.

    Numbers are finite; `~` is the home folder also where the shell leaves it, as in `--output=~/a.onnx`; and nothing is
    given as an empty text, such as a script's variable without a value, which would be the current folder.

    Raises:
        OptionError: the number is not finite, or the text is empty.
        QuickstudyError: a path begins with `~`, and there is no home folder.
    """
    if "" in (given if isinstance(given, list | tuple) else [given]) and parameter.default != "":
        raise OptionError(f"{_name_of(parameter)} is '', an empty text; expected: {_help_of(parameter)}")
    value = convert(context, given)
    if isinstance(value, float):
        require_in_range({_name_of(parameter): value}, {})
    if isinstance(value, list | tuple):
        return [as_path(one) if isinstance(one, Path) else one for one in value]
    return as_path(value) if isinstance(value, Path) else value


def refuse_beside(context: Any, why: str, *names: str) -> None:
    """Refuse options that would do nothing, where they were given on the command line.

    Args:
        context: of the command, as typer hands it over.
        why: what is said of the first of them, after its name.
        names: of the command's parameters.

    Raises:
        OptionError: one was given.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            off = context.params.get(parameter.name) is False and parameter.secondary_opts
            raise OptionError(f"{parameter.secondary_opts[0] if off else _name_of(parameter)} {why}")


def reworded(error: Any) -> str:
    """Put what typer says of a command line into our words, with the help to turn to."""
    context = error.ctx
    turn_to = f"\nMore: {context.command_path} --help" if context else ""
    return f"{_reworded(error)}{turn_to}"


def _reworded(error: Any) -> str:
    message, parameter = error.message, getattr(error, "param", None)
    if isinstance(error, typer.BadParameter) and parameter is not None:
        name = _name_of(parameter)
        if not message:  # typer says no more of what is missing
            return f"{name} is missing: {_help_of(parameter)}"
        for pattern, words in _LIMITS:
            if found := re.search(pattern, message):
                return f"{name} is {_given(error)}; expected {words.format(*found.groups())}"
        if choices := re.search(r"is not one of (.*?)\.?$", message):
            return f"{name} is {_given(error)}; expected {' or '.join(choices[1].rsplit(', ', 1))}"
        return f"{name} is {_given(error)}: {_ended(re.sub('^value error, ', '', message, flags=re.IGNORECASE))}"
    if extra := re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", message):
        return f"Unexpected argument '{extra[1]}'"
    if (option := getattr(error, "option_name", None)) and not hasattr(error, "possibilities"):
        return f"{option} takes no value" if "not take a value" in message else f"{option} needs a value"
    if option:
        near = _nearest(option, error.possibilities or ())
        return f"There is no option '{option}'" + (f"; did you mean {' or '.join(sorted(near))}?" if near else "")
    if command := re.match(r"No such command '(.*?)'", message):
        near = re.findall(r"'(\S+?)'", message[command.end() :])
        return f"There is no command '{command[1]}'" + (f"; did you mean {' or '.join(near)}?" if near else "")
    return _ended(message)


def _nearest(word: str, known: Sequence[str]) -> list[str]:
    """Choose of the known words those that are about as much like a word as the most similar one."""
    alike = {other: difflib.SequenceMatcher(None, word, other).ratio() for other in known}
    return [other for other in known if alike[other] > max(alike.values()) - 0.1]


def _ended(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".") if message[:2].istitle() else message.rstrip(".")


def _name_of(parameter: Any) -> str:
    return str(next((one for one in parameter.opts if one.startswith("--")), parameter.name.upper()))


def _help_of(parameter: Any) -> str:
    told = str(parameter.help or "").removesuffix(".")
    return told[:1].lower() + told[1:] if told[:2].istitle() else told


def _given(error: Any) -> str:
    """Find the value that was refused, which the validation behind the error knows."""
    known = getattr(error.__cause__, "errors", None)
    return f"'{known()[0]['input']}'" if known else "not usable"


def command_meant(words: Sequence[str]) -> str:
    """Show a command line as it was meant, where its words tell; empty where they do not.

    Args:
        words: all words after `quickstudy`.
    """
    if spaced := _spaced(words):
        name, meant = spaced
        return f"'{name}' is one name with spaces in it; put it in quotes: {pasted(*meant)}"
    if words and words[0] in _MODEL_FIRST:
        places = [
            place
            for place in range(1, len(words))
            if words[place].endswith(".onnx") and not words[place - 1].startswith("--") and Path(words[place]).is_file()
        ]
        if places and not words[1].startswith("-") and places[0] > 1:
            models = [words[place] for place in places]
            rest = [word for place, word in enumerate(words[1:], start=1) if place not in places]
            return f"The model comes first: {pasted(words[0], *models, *rest)}"
    return ""


def _spaced(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """Find words that are nothing alone and together a file or folder; gives its name and all words with it as one."""
    for start in range(1, len(words)):
        for end in range(len(words), start + 1, -1):
            part = words[start:end]
            if any(word.startswith("--") for word in part) or Path(part[0]).exists():
                continue
            if Path(name := " ".join(part)).exists():
                return name, [*words[:start], name, *words[end:]]
    return None
