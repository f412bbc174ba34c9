"""Progress of long work is told to whoever wants to hear of it.

The library reports numbers through a `Progress` object. `silent` is the default for Python callers, who may pass
`Bar()`; the command line does so where somebody can see it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import rich.progress


class Progress(Protocol):
    """Receives how far a piece of work has come."""

    def start(self, task: str, total: int) -> None:
        """Hear that a task begins, with `total` items."""

    def update(self, *, done: int, note: str) -> None:
        """Hear that so many items are done; `note` says more in a few words."""

    def finish(self) -> None:
        """Hear that the task has ended, whether or not all is done."""


class _Silent:
    def start(self, task: str, total: int) -> None:
        pass

    def update(self, *, done: int, note: str) -> None:
        pass

    def finish(self) -> None:
        pass


silent: Progress = _Silent()
"""Progress that is told to nobody."""


class Bar:
    """Shows a bar on standard error, or in a notebook, with images (or another unit) a second and the time left.

    With the unit `bytes`, numbers of bytes are shown in MB.
    """

    def __init__(self, *, unit: str = "images") -> None:
        self._unit = unit
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None

    def start(self, task: str, total: int) -> None:
        """Show an empty bar."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            DownloadColumn() if self._unit == "bytes" else MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(task, total=total, note="", rate="")
        self._bar.start()

    def update(self, *, done: int, note: str) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            speed = self._bar.tasks[0].speed
            self._bar.update(self._task, completed=done, note=note, rate=self._describe(speed) if speed else "")

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _describe(self, speed: float) -> str:
        return f"{speed / 1e6:.1f} MB/s" if self._unit == "bytes" else f"{speed:.0f} {self._unit}/s"
