"""The `quickstudy` command: its subcommands, and how errors reach the user.

Typer does without Rich markup, and commands import what they need inside, so that `quickstudy --help` answers at once.
"""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
from typing import Any

import typer
import typer.main

from quickstudy.cli import (
    audit,
    backbone,
    cache,
    census,
    compare,
    data,
    evaluate,
    export,
    label,
    merge,
    predict,
    report,
    retrain,
    serve,
    suggest,
    sweep,
    train,
    verify,
)
from quickstudy.cli.display import interruptible, print_interrupted
from quickstudy.cli.usage import Commands, UsageError, command_meant, reworded
from quickstudy.errors import QuickstudyError
from quickstudy.process import settle_own_process
from quickstudy.version import VERSION


class _Commands(Commands):
    def invoke(self, ctx: Any) -> Any:
        with interruptible("what has been computed stays in the cache, and the same command continues from there"):
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="Trains image classifiers dramatically faster, and proves it.",
    epilog="Start with: quickstudy retrain photos/   (with a folder for each class in photos/)",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("census", epilog="Example: quickstudy census photos/ --csv photos.csv")(census.command)
app.command("retrain", epilog="Example: quickstudy retrain photos/ --output flowers.onnx")(retrain.command)
app.command("label", epilog="Example: quickstudy label photos/")(label.command)
app.command("suggest", epilog="Example: quickstudy suggest photos/ --names cat,dog -o plan.csv")(suggest.command)
app.command("train", epilog="Example: quickstudy train cifar10-fast --data photos/ --run runs/fast")(train.command)
app.command("predict", epilog="Example: quickstudy predict photos.onnx new.jpg other/ 'more/*.png'")(predict.command)
app.command("evaluate", epilog="Example: quickstudy evaluate photos.onnx held_out/")(evaluate.command)
app.command("compare", epilog="Example: quickstudy compare old.onnx new.onnx held_out/")(compare.command)
app.command("report", epilog="Example: quickstudy report photos.onnx")(report.command)
app.command("audit", epilog="Example: quickstudy audit photos/ --fix plan.csv")(audit.command)
app.command("export", epilog="Example: quickstudy export photos.onnx --fp16 --check held_out/")(export.command)
app.command("merge", epilog="Example: quickstudy merge anna.json ben.json -o taught.onnx")(merge.command)
app.command("verify", epilog="Example: quickstudy verify photos.onnx")(verify.command)
app.command("serve", epilog="Example: quickstudy serve photos.onnx")(serve.command)
app.command("sweep", epilog="Example: quickstudy sweep mlp --grid depth=1..7 --target 0.9")(sweep.command)
app.add_typer(backbone.app, name="backbone")
app.add_typer(cache.app, name="cache")
app.add_typer(data.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"quickstudy {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


@functools.cache
def _command_line() -> Any:
    """Gather all commands with their options, once a process: it takes Typer some hundredths of a second."""
    return typer.main.get_command(app)


def run() -> None:
    """Run the command line: errors of use go to standard error without a traceback, with exit status 2."""
    settle_own_process()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be valid text
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(_command_line()(prog_name="quickstudy", standalone_mode=False))
    except (QuickstudyError, UsageError) as error:
        told = str(error) if isinstance(error, QuickstudyError) else reworded(error)
        print(f"quickstudy: {told}", file=sys.stderr)
        if meant := command_meant(sys.argv[1:]):
            print(meant, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before a command has begun
        print_interrupted()
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of a pipe has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
