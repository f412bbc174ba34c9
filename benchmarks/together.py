"""What it costs to ask for the steps of many runs: the batch-norm study's 70, its sigmoids, 70 seeds of one network.

    python benchmarks/together.py

On a GPU a step of a small network takes less time than the processor takes to ask for it. So this counts, for a step of
all runs, the operators that a device is asked for, each of which is a kernel or more there, and the processor's time
with batches of two images, which leave next to nothing but asking. The same for an evaluation of all runs, and for what
a run takes besides. Separate runs against runs that are trained together, on the digits that come with scikit-learn.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common import save
from quickstudy.scratch.data import TrainingData, load_training_data
from quickstudy.scratch.folder import RunFolder
from quickstudy.scratch.recipe import Recipe, RunSettings, recipe_named
from quickstudy.scratch.together import train_together
from quickstudy.scratch.train import train_recipe
from quickstudy.sweeps.study import study_named
from quickstudy.sweeps.tasks import Training

_QUIET = RunSettings(threads=0, summary_steps=0, log_steps=10_000, graph=False)


def main() -> None:
    """Measure and write the result."""
    torch.set_num_threads(1)
    tasks = [trial.task for trial in study_named("batchnorm").trials()]
    study = [task.recipe for task in tasks if isinstance(task, Training)]
    sigmoids = [recipe for recipe in study if recipe.network.activation == "sigmoid"]
    mlp = recipe_named("mlp")
    sets = {
        "the study's 70 networks": study,
        "its 14 with sigmoids": sigmoids,
        "the deepest of those": [sigmoids[-2]],
        "70 seeds of one network": [mlp.with_options({"seed": seed}) for seed in range(70)],
        "70 rates of one network": [mlp.with_options({"rate": 1e-5 * number}) for number in range(1, 71)],
    }
    data = load_training_data("digits", image_size=32, validation=0)
    found = {}
    for name, recipes in sets.items():
        small = [
            recipe.with_options({"data": "digits", "batch": 2, "widths": "8,8,7,6,5,4,3", "target": 0})
            for recipe in recipes
        ]
        found[name] = {
            "separate": _measured(small, data, together=False),
            "together": _measured(small, data, together=True),
        }
        print(name, found[name], flush=True)
    save("together", {"sets": found})


def _measured(recipes: Sequence[Recipe], data: TrainingData, *, together: bool) -> dict[str, float]:
    """Operators and milliseconds of a step, and of an evaluation, of all recipes; milliseconds of a run besides."""

    def carried_out(steps: int, every: int) -> float:
        changed = [recipe.with_options({"steps": steps, "evaluate_steps": every}) for recipe in recipes]
        with tempfile.TemporaryDirectory() as name:
            folders = [RunFolder(Path(name) / str(number)) for number in range(len(recipes))]
            began = time.process_time()
            if together:
                reports = [lambda _: None] * len(recipes)
                train_together(changed, data, folders, settings=_QUIET, reports=reports, ended=_must_end)
            else:
                for recipe, folder in zip(changed, folders, strict=True):
                    train_recipe(recipe, data, folder, settings=_QUIET)
            return 1e3 * (time.process_time() - began)

    carried_out(1, 0)
    counts = []
    for steps, every in ((2, 0), (4, 0), (4, 2), (4, 1)):
        with _Counted() as counted:
            carried_out(steps, every)
        counts.append(counted.number)
    few, many = carried_out(4, 0), carried_out(24, 0)
    return {
        "operators_a_step": (counts[1] - counts[0]) / 2,
        "operators_an_evaluation": (counts[3] - counts[2]) / 2,
        "milliseconds_a_step": (many - few) / 20,
        "milliseconds_a_run_besides": (few - (many - few) / 5) / len(recipes),
    }


def _must_end(_number: int, error: Exception | None) -> None:
    if error is not None:
        raise error


class _Counted(TorchDispatchMode):
    """Counts the operators that compute or copy; views do neither."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not func.is_view
        return func(*args, **kwargs or {})


if __name__ == "__main__":
    main()
