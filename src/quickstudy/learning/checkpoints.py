"""Checkpoints of a training, and the interrupts after which they let it go on.

`step-NNNNNN.pt` holds everything that a run needs to go on as if it had not stopped; `step-NNNNNN.json` beside it its
SHA-256. Each appears whole or not at all, is checked before it is believed, and never unpickled. The hash is there
before the checkpoint, so a checkpoint without its hash, or with another, is damaged.

Ctrl-C or SIGTERM in the midst of a training is only noted, so that the step is finished and saved first.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from quickstudy.errors import RunError, WriteError
from quickstudy.files import TEMPORARY_PREFIX, write_bytes_atomically, write_json_atomically

_PATTERN = "step-*.pt"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that has been read and found whole."""

    path: Path
    """Path of the file."""
    step: int
    """Number of steps that had been made."""
    state: dict[str, Any]
    """All that was saved, by name."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, keep: int = 5) -> None:
        self.folder, self.keep = folder, keep
        self.damaged: list[Path] = []
        """Damaged checkpoints that `newest` has passed over."""

    def steps(self) -> list[int]:
        """List the steps of all checkpoints that are there, oldest first."""
        names = [path.stem.removeprefix("step-") for path in self.folder.glob(_PATTERN)]
        return sorted(int(name) for name in names if name.isdecimal())

    def path(self, step: int) -> Path:
        """Name the file of a step's checkpoint, whether it is there or not."""
        return self.folder / f"step-{step:06}.pt"

    def save(self, step: int, state: dict[str, Any], *, best: int | None = None) -> Path:
        """Write a checkpoint durably, then delete the oldest beyond `keep`, but never the `best`.

        Raises:
            WriteError: it cannot be written; those that are there stay.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getbuffer()
        path = self.path(step)
        try:
            write_json_atomically(
                path.with_suffix(".json"),
                {"step": step, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)},
            )
            write_bytes_atomically(path, data)
        except OSError as error:
            raise WriteError(
                f"Cannot write the checkpoint '{path}': {error.strerror}. Those before it are safe; "
                "free some space and start the same command again to go on"
            ) from error
        for rubbish in self.folder.glob(f"{TEMPORARY_PREFIX}*"):  # of a process that was killed while it wrote
            rubbish.unlink(missing_ok=True)
        for old in self.steps()[: -self.keep]:
            if old not in (best, step):
                with contextlib.suppress(OSError):
                    self.path(old).unlink()
                    self.path(old).with_suffix(".json").unlink()
        return path

    def newest(self, *, after: int = -1) -> Checkpoint | None:
        """Read the newest checkpoint that is whole, of a step greater than `after`; None where there is none."""
        seen: set[int] = set()
        while steps := [step for step in self.steps() if step > after and step not in seen]:
            seen.add(steps[-1])
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed: then there are newer ones
                try:
                    return self.load(steps[-1])
                except RunError:
                    self.damaged.append(self.path(steps[-1]))
        return None

    def load(self, step: int) -> Checkpoint:
        """Read the checkpoint of a step.

        Raises:
            RunError: it is damaged.
            FileNotFoundError: it is not there.
        """
        path = self.path(step)
        try:
            data = path.read_bytes()
            expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
            if hashlib.sha256(data).hexdigest() != expected:
                raise ValueError("its bytes are not those that were written")
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # torch's reader raises anything when it is given garbage
            if isinstance(error, FileNotFoundError) and not path.exists():
                raise
            raise RunError(f"The checkpoint '{path}' is damaged: {error}") from None
        return Checkpoint(path=path, step=step, state=state)


class Interrupts:
    """A context in which the first signal to end is only noted; the second ends the process as usual.

    A signal that nobody has looked at until the context ends, ends the process then.
    """

    def __init__(self, hand_on: Callable[[int], None] = lambda _number: None) -> None:
        """Args: `hand_on`: is told the number of the signal as it comes, in the midst of whatever is done."""
        self.hand_on = hand_on
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
        if kind is None:
            self.raise_pending()

    def raise_pending(self) -> None:
        """End as the signal asked for, if one came."""
        if self.pending is not None:
            raise KeyboardInterrupt if self.pending == signal.SIGINT else SystemExit(128 + self.pending)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.pending = number
        self._restore()
        self.hand_on(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}
