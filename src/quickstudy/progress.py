"""Progress of long work: what is told, and to whom.

The library reports numbers through a `Progress` object and prints nothing itself. `silent` is the default for Python
callers; the command line passes a display made with Rich.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives how far a piece of work has come."""

    def start(self, task: str, total: int) -> None:
        """A task begins, with `total` items."""

    def update(self, *, done: int, note: str) -> None:
        """So many items are done; `note` says more in a few words."""

    def finish(self) -> None:
        """The task has ended, whether or not all is done."""


class _Silent:
    def start(self, task: str, total: int) -> None:
        pass

    def update(self, *, done: int, note: str) -> None:
        pass

    def finish(self) -> None:
        pass


silent: Progress = _Silent()
"""Reports to nobody."""
