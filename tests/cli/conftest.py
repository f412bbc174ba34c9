"""The command line in this process, where it starts in no time."""

from __future__ import annotations

import pytest

from in_process import Done, Run, exit_code


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `quickstudy` with these arguments."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> Done:
        code = exit_code(monkeypatch, *arguments)
        captured = capfd.readouterr()
        return Done(code, captured.out, captured.err)

    return run
