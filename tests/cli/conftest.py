"""The command line in this process, where it starts in no time."""

from __future__ import annotations

import sys

import pytest
from in_process import Done, Run

from quickstudy.cli.main import run as quickstudy


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `quickstudy` with these arguments."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["quickstudy", *arguments])
        code = 0
        try:
            quickstudy()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        captured = capfd.readouterr()
        return Done(code, captured.out, captured.err)

    return run
