"""Train a recipe in a folder: on one device or several, from the start or from where an earlier process stopped."""

from __future__ import annotations

from pathlib import Path

from quickstudy.errors import RunError
from quickstudy.training.data import load_training_data
from quickstudy.training.folder import RunFolder
from quickstudy.training.loop import fit
from quickstudy.training.parallel import Replica, choose_device, joined, run_replicas, torchrun_replica
from quickstudy.training.recipe import Recipe
from quickstudy.training.settings import Report, RunResult, Settings


def train(
    recipe: Recipe, run: str | Path, *, settings: Settings | None = None, report: Report | None = None
) -> RunResult | None:
    """Train a recipe in a folder, going on where an earlier process stopped.

    Args:
        recipe: what to train.
        run: the run's folder; made where there is none.
        settings: how to carry it out.
        report: is told what happens, every `log_steps` steps.

    Returns:
        What it came to; None in replicas other than the first, where torchrun has started several.

    Raises:
        OptionError: an option cannot be used.
        ImageSetError: the data is not there, or cannot be used.
        RunError: the folder is in use, holds another run, or cannot be written.
        TrainingError: the loss is not a number any more, or a replica died.
    """
    settings = settings or Settings()
    recipe.check()
    settings.check()
    device_type = choose_device(settings.device)
    replica = torchrun_replica(device_type)
    if replica is None and settings.devices > 1:
        run_replicas(settings.devices, device_type, train_as, recipe, Path(run), settings, report)
        result = RunFolder(Path(run)).result()
        if result is None:
            raise RunError(f"The replicas ended without a result in '{run}'")
        return RunResult.from_dict(Path(run), result)
    replica = replica or Replica(device_type=device_type)
    with joined(replica):
        return train_as(replica, recipe, Path(run), settings, report)


def train_as(
    replica: Replica, recipe: Recipe, run: Path, settings: Settings, report: Report | None
) -> RunResult | None:
    """Train as one of the replicas of a run; each calls this with its own place."""
    data = load_training_data(
        recipe.data,
        image_size=recipe.image_size,
        validation=recipe.validation,
        folder=settings.data_folder,
    )
    return fit(recipe, data, RunFolder(run, keep=settings.keep), replica=replica, settings=settings, report=report)
