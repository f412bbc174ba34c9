"""The options of commands: those that several share, and those that a configuration defines."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from quickstudy.images.manifests import Labelling
from quickstudy.options import Field, Option, fields_of, require_in_range
from quickstudy.retraining.config import RetrainConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache", help="Folder for bottlenecks and backbones [default: QUICKSTUDY_CACHE or the user's cache]."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON (UTF-8) instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="QUICKSTUDY_TOKEN",
        show_envvar=True,
        help="A secret that callers must send, better set in the environment; label makes one up if it is left out.",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="auto|ADDRESS",
        help="Compute on this Ray cluster, such as 10.0.0.1:6379; auto: the running one, or else this machine.",
    ),
]
SharedStorePlace = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="With --ray: a folder that all nodes share, or a URI such as s3://bucket/path "
        "[default: bottlenecks/ in the folder of --cache].",
    ),
]
Device = Annotated[str, typer.Option("--device", help="Kind of device: auto, cpu or cuda.")]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data-folder",
        help="Folder of named data sets [default: QUICKSTUDY_DATA or one in the user's data folder].",
    ),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Set any other option: NAME=VALUE.")]
CheckpointStep = Annotated[
    str | None,
    typer.Option(
        metavar="newest|best|STEP",
        help="Run: which checkpoint, the best being that on its validation images [default: newest].",
    ),
]
Everything = Annotated[
    bool,
    typer.Option(
        "--all", help="Score all images, even those that the model has learned; the result is then marked as no test."
    ),
]


def offering(config: DataclassInstance, *names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a configuration, all or those with these names, in the place of `given`.

    The command gets as `given` what the user has given, by option name; the defaults are the configuration's.
    """
    fields = [one for one in fields_of(config) if one.option and (not names or one.name in names)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            offered = parameter.name == "given"
            parameters += [_parameter(one) for one in fields] if offered else [parameter]

        @functools.wraps(command)
        def with_given(**values: Any) -> None:
            given = {one.name: _value(one, found) for one in fields if (found := values.pop(one.name)) is not None}
            command(**values, given=given)

        del with_given.__wrapped__
        with_given.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        with_given.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return with_given

    return decorate


def _parameter(field: Field) -> inspect.Parameter:
    """Make the parameter of a field's option, which is None where it is not given; its help tells the default."""
    option, kind, flag = _offered(field), field.kind, field.flag
    settings: dict[str, Any] = {"metavar": option.metavar or None}
    if option.word:
        kind = Literal[option.word]
    elif option.read is not None:
        kind = str
    if kind is bool:
        flag = flag if "/" in flag or not field.value else f"{flag}/--no-{flag.removeprefix('--')}"
    elif field.value is not None and not option.word:
        settings["help"] = f"{option.help.removesuffix('.')} [default: {field.shown}]."
    settings = {"help": option.help, **settings}
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, typer.Option(flag, **settings)],
    )


def _value(field: Field, given: Any) -> Any:
    option = _offered(field)
    if option.word:
        return True
    require_in_range({field.flag: given}, {field.flag: option.range})
    return given / 100 if option.percent else given


def _offered(field: Field) -> Option:
    if field.option is None:
        raise TypeError(f"{field.name} is not offered on the command line")
    return field.option


def _shared(name: str) -> Any:
    """Offer an option of `retrain` in a command that shares it, with that command's own default."""
    option = _offered(next(one for one in fields_of(RetrainConfig()) if one.name == name))
    help_text = re.sub(r" \[default: .*?\]", "", option.help)
    return typer.Option(option.flag_for(name), help=help_text, metavar=option.metavar or None)


def labelling_told(several: bool, separator: str | None, none: str | None, **others: Any) -> Labelling:
    """Make of these options how labels are to be read, with the same errors as `retrain`, other options' among them.

    Raises:
        OptionError: an option cannot have its value, or would do nothing beside the others.
    """
    given = {"several": several or None, "separator": separator, "none": none}
    return RetrainConfig.told({**given, **others}).labelling


Several = Annotated[bool, _shared("several")]
Separator = Annotated[str | None, _shared("separator")]
NoneLabel = Annotated[str | None, _shared("none")]
BackboneName = Annotated[
    str,
    typer.Option(help="Take this pretrained network, or several side by side, such as a+b; backbone list shows them."),
]
EngineName = Annotated[str, _shared("engine")]
