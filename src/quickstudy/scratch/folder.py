"""A run's folder: what is where, who is writing, whether the run has ended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quickstudy.errors import ImageSetError, OptionError, RunError, WriteError
from quickstudy.files import write_bytes_atomically, write_json_atomically
from quickstudy.images.named import NAMED
from quickstudy.learning.checkpoints import Checkpoint, Checkpoints
from quickstudy.scratch.data import DataFacts, TrainingData, load_training_data
from quickstudy.scratch.recipe import Recipe

METRICS = "metrics.jsonl"
"""Name of the file that the training loop writes its numbers to, a line a report."""
RESULT = "result.json"
"""Name of the file that is there once the run has ended."""
EVALUATIONS = "evaluations.jsonl"
"""Name of the file that the evaluator writes to, a line a checkpoint."""


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
            raise RunError(
                f"'{path}' is not a run: it has no config.json; start one with: quickstudy train cifar10-fast"
            )
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

    def load_data(self, source: str | None = None, *, folder: Path | None = None) -> TrainingData:
        """Load the images of the run, wherever they are now; where they were is a hint, what they are is checked.

        Args:
            source: where they are; None: where they were when somebody last trained here.
            folder: where named data sets lie.

        Raises:
            ImageSetError: they are not there, or cannot be used.
            RunError: these are other images than those that the run trains on.
        """
        recipe, facts = self.recipe(), self.facts()
        place = source or self.config().get("data_place", recipe.data)
        hint = "" if source else f"; say with --data where the images of '{self.path}' are now"
        try:
            data = load_training_data(
                place,
                image_size=recipe.image_size,
                validation=recipe.validation,
                folder=folder,
            )
        except ImageSetError as error:
            raise ImageSetError(f"{error}{hint}") from None
        if found := facts.differences(data.facts):
            raise RunError(f"The images in '{place}' are not those of '{self.path}': {'; '.join(found)}{hint}")
        return data

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
            RunError: the folder holds a run with another configuration.
            WriteError: it cannot be written.
        """
        place = Path(recipe.data)
        config = recipe.to_dict() | {"data_facts": facts.to_dict()}
        if recipe.data not in NAMED and place.exists():
            config["data_place"] = str(place.absolute())
        if (self.path / "config.json").exists():
            try:
                differences = _differences(self.config(), config)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise RunError(f"'{self.path / 'config.json'}' is damaged: {error!r}") from None
            if differences:
                raise RunError(
                    f"'{self.path}' holds a run with other values ({'; '.join(differences)}); "
                    "name another folder with --run, or delete this one"
                )
            config = self.config() | {name: config[name] for name in ("data_place",) if name in config}
            if config == self.config():
                return
        try:
            write_json_atomically(self.path / "config.json", config)
        except OSError as error:
            raise WriteError(
                f"Cannot write to '{self.path}': {error.strerror}; name another folder with --run"
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who trains here; the system takes the lock away when the process ends, however it ends.

        Raises:
            RunError: somebody else does.
            WriteError: the folder cannot be written.
        """
        import filelock  # 0.06 s; nothing to install, as PyTorch depends on it; maintained by the people of tox

        try:
            # It waits for an evaluator, which holds the lock for an instant when it looks whether a run is active.
            lock = filelock.FileLock(self.path / "lock", timeout=0.5).acquire()
        except filelock.Timeout:
            raise RunError(
                f"Another process is training in '{self.path}'; wait for it, or name another folder"
            ) from None
        except OSError as error:
            raise WriteError(
                f"Cannot write to '{self.path}': {error.strerror}; name another folder with --run"
            ) from None
        with lock:
            yield

    def is_active(self) -> bool:
        """Tell whether somebody is training here now."""
        import filelock

        if not self.path.is_dir():  # the lock would make it
            return False
        try:
            with filelock.FileLock(self.path / "lock", timeout=0):
                return False
        except filelock.Timeout:
            return True
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
        """Find the step of the checkpoint that does best on the validation images; None where none has been looked at.

        Test images choose nothing. What the averaged parameters do counts where there are some, since evaluation and
        export use them.
        """
        kept = self.checkpoints.steps()
        lines = [
            line
            for name in (EVALUATIONS, METRICS)
            for line in self.lines(name)
            if "accuracy" in line and line.get("split") == "validation" and line["step"] in kept
        ]
        averaged = [line for line in lines if line.get("averaged", True)]
        best = max(averaged or lines, key=lambda line: (line["accuracy"], line["step"]), default=None)
        return None if best is None else int(best["step"])

    def checkpoint(self, which: str = "newest") -> Checkpoint | None:
        """Read a checkpoint; None where there is none yet that is whole.

        Args:
            which: `newest`, `best` (on the validation images), or the number of a step.

        Raises:
            OptionError: it is none of these, or there is no such checkpoint.
            RunError: it is damaged.
        """
        if which == "newest":
            return self.checkpoints.newest()
        steps = self.checkpoints.steps()
        there = f"there are those of the steps {', '.join(map(str, steps))}" if steps else "there is none yet"
        step = self.best_step() if which == "best" else int(which) if which.isdecimal() else None
        if which == "best" and step is None:
            raise OptionError(
                f"The best checkpoint of '{self.path}' is not known, since none was evaluated on validation images; "
                "hold some out with --set validation=0.1 and follow the run with: quickstudy evaluate RUN --watch. "
                f"Or name one with --checkpoint: {there}"
            )
        if step is None or step not in steps:
            raise OptionError(f"checkpoint is '{which}'; expected newest, best or a step, and {there}")
        try:
            return self.checkpoints.load(step)
        except FileNotFoundError:
            raise RunError(f"The checkpoint of step {step} has been deleted meanwhile; {there}") from None

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
    before.pop("data", None)
    now.pop("data")  # a path is no more than a hint; the images tell
    found = [
        f"{name} is {before.get(name)} there, {now.get(name)} here"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if old.get("recipe") != new["recipe"]:
        found.insert(0, f"the recipe is {old.get('recipe')} there, {new['recipe']} here")
    return found + DataFacts.from_dict(old["data_facts"]).differences(DataFacts.from_dict(new["data_facts"]))
