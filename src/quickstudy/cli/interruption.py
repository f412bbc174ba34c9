"""Ctrl-C, and SIGTERM where a command saves first: what the user is told."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def interruptible(what_stays: str) -> Iterator[None]:
    """End the command as the signal asked for, with a line that says what stays and how to go on.

    Raises:
        typer.Exit: with 128 and the signal's number, as shells have it.
    """
    try:
        yield
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except SystemExit as stop:
        if stop.code != 128 + signal.SIGTERM:
            raise
        code = 128 + signal.SIGTERM
    else:
        return
    print(f"\nquickstudy: interrupted; {what_stays}", file=sys.stderr)
    raise typer.Exit(code)
