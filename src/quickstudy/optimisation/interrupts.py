"""Ctrl-C and SIGTERM in the midst of a training: the step is finished and saved first."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupts:
    """Inside this context the first signal to end is only noted; the second ends the process as usual."""

    def __init__(self) -> None:
        self.pending: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def raise_pending(self) -> None:
        """End as the signal asked for, if one came."""
        if self.pending is not None:
            raise KeyboardInterrupt if self.pending == signal.SIGINT else SystemExit(128 + self.pending)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.pending = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}
