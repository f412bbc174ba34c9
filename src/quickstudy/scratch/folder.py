"""A run's folder: what is where, who is writing, whether the run has ended."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quickstudy.errors import OptionError, RunError
from quickstudy.files import write_bytes_atomically, write_json_atomically
from quickstudy.learning.checkpoints import Checkpoints
from quickstudy.scratch.data import DataFacts
from quickstudy.scratch.recipe import Recipe

METRICS = "metrics.jsonl"
"""Name of the file that the training loop writes its numbers to, a line a report."""
RESULT = "result.json"
"""Name of the file that is there once the run has ended."""
EVALUATIONS = "evaluations.jsonl"
"""Name of the file that the evaluator writes to, a line a checkpoint."""
_LOCK_ATTEMPTS = 10
"""Number of attempts to take the lock, a twentieth of a second apart."""


class RunFolder:
    """The folder of one run.

    It holds `config.json`, `lock`, `checkpoints/`, `metrics.jsonl`, `evaluations.jsonl`, `tensorboard/` and, once the
    run has ended, `result.json`.
    """

    def __init__(self, path: Path, *, keep: int = 5) -> None:
        """Name the folder; nothing is read or written yet. `keep` is the number of newest checkpoints to keep."""
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints", keep=keep)

    @staticmethod
    def existing(path: Path) -> RunFolder:
        """Open the folder of a run that has begun.

        Raises:
            RunError: this is none.
        """
        if not (path / "config.json").is_file():
            raise RunError(f"'{path}' is no run: it has no config.json; start one with: quickstudy train cifar10-fast")
        return RunFolder(path)

    def config(self) -> dict[str, Any]:
        """Read the configuration that `begin` has written.

        Raises:
            RunError: the file is damaged.
        """
        try:
            values = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
            return dict(values)
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"'{self.path / 'config.json'}' is damaged: {error}") from None

    def recipe(self) -> Recipe:
        """Read the run's recipe.

        Raises:
            RunError: it is damaged, or of another version.
        """
        try:
            return Recipe.from_dict(self.config())
        except OptionError as error:
            raise RunError(f"'{self.path / 'config.json'}': {error}") from None

    def facts(self) -> DataFacts:
        """Read what is known of the data that the run trains on.

        Raises:
            RunError: the configuration is damaged.
        """
        try:
            return DataFacts.from_dict(self.config()["data_facts"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"'{self.path / 'config.json'}' is damaged: {error!r}") from None

    def begin(self, recipe: Recipe, facts: DataFacts) -> None:
        """Write the configuration, or see that a run that goes on has the same.

        Raises:
            RunError: the folder holds a run with another configuration, or cannot be written.
        """
        config = recipe.to_dict() | {"data_facts": facts.to_dict()}
        if (self.path / "config.json").exists():
            try:
                differences = _differences(self.config(), config)
            except (AttributeError, TypeError, ValueError) as error:
                raise RunError(f"'{self.path / 'config.json'}' is damaged: {error!r}") from None
            if differences:
                raise RunError(
                    f"'{self.path}' holds a run with other values ({'; '.join(differences)}); "
                    "name another folder with --run, or delete this one"
                )
            return
        try:
            write_json_atomically(self.path / "config.json", config)
        except OSError as error:
            raise RunError(f"Cannot write to '{self.path}': {error.strerror}; name another folder with --run") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who trains here; the system takes the lock away when the process ends, however it ends.

        Raises:
            RunError: somebody else does.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            opened = (self.path / "lock").open("a+")
        except OSError as error:
            raise RunError(f"Cannot write to '{self.path}': {error.strerror}; name another folder with --run") from None
        with opened as file:
            for attempt in range(_LOCK_ATTEMPTS):
                if _try_lock(file.fileno()):
                    break
                if attempt < _LOCK_ATTEMPTS - 1:
                    time.sleep(0.05)  # an evaluator that looks whether the run is active holds it for an instant
            else:
                raise RunError(f"Another process is training in '{self.path}'; wait for it, or name another folder")
            yield

    def is_active(self) -> bool:
        """Whether somebody is training here now."""
        try:
            with (self.path / "lock").open("a+") as file:
                return not _try_lock(file.fileno())
        except OSError:
            return False

    def result(self) -> dict[str, Any] | None:
        """Read what the run came to, as `RunResult.to_dict` gave it; None before it has ended."""
        try:
            return dict(json.loads((self.path / RESULT).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def finish(self, result: dict[str, Any]) -> None:
        """Write what the run came to, which says that it has ended."""
        write_json_atomically(self.path / RESULT, result)

    def best_step(self) -> int | None:
        """The step whose checkpoint the evaluator found best; None where it has found none."""
        evaluations = [line for line in self.lines(EVALUATIONS) if "precision" in line]
        best = max(evaluations, key=lambda line: (line["precision"], line["step"]), default=None)
        return None if best is None else int(best["step"])

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Read a .jsonl file of the run; a last line that a kill cut off is left out."""
        found = []
        try:
            text = (self.path / name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        for line in text.splitlines():
            try:
                found.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                continue
        return found

    def forget_after(self, name: str, step: int) -> None:
        """Drop what a .jsonl file says of steps after this one, which will be made again."""
        if (self.path / name).exists():
            kept = [json.dumps(line) + "\n" for line in self.lines(name) if line.get("step", 0) <= step]
            write_bytes_atomically(self.path / name, "".join(kept).encode())


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Add one JSON line, in one write, so that a reader sees whole lines but for a kill in its midst."""
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        whole = file.read(1) in (b"", b"\n")  # what a kill has cut off must not spoil this line, too
        file.write((("" if whole else "\n") + json.dumps(values) + "\n").encode())


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say for people what differs: options by name, and the images."""
    before, now = dict(old.get("options", {})), json.loads(json.dumps(new["options"]))
    found = [
        f"{name} is {before.get(name)} there, {now.get(name)} here"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if old.get("recipe") != new["recipe"]:
        found.insert(0, f"the recipe is {old.get('recipe')} there, {new['recipe']} here")
    if old.get("data_facts", {}).get("fingerprint") != new["data_facts"]["fingerprint"]:
        found.append("the training images are others")
    return found


def _try_lock(descriptor: int) -> bool:
    """Take the lock of an open file, unless another process has it; whether it was taken."""
    if os.name == "nt":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
