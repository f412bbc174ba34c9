"""What the command line gives when it runs in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from quickstudy.cli.main import run as quickstudy


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


def run_here(folder: Path, *arguments: str) -> Done:
    """Run `quickstudy` with these arguments in a folder, for what is made once for several tests."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
        patched.chdir(folder)
        patched.setenv("COLUMNS", "100")
        code = exit_code(patched, *arguments)
    return Done(code, out.getvalue(), err.getvalue())


def exit_code(patched: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `quickstudy` with these arguments and return what it would exit with."""
    patched.setattr(sys, "argv", ["quickstudy", *arguments])
    try:
        quickstudy()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    return 0
