"""A sweep carries out all trials of a study that have not ended yet, then says what they show."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from quickstudy.errors import ImageSetError, OptionError
from quickstudy.files import as_path, cache_folder, sha256_of_file, write_bytes_atomically
from quickstudy.images.census import take_census
from quickstudy.process import usable_cores
from quickstudy.retraining.evaluation import stat_index
from quickstudy.scratch.parallel import choose_device
from quickstudy.sweeps.conclusion import conclude
from quickstudy.sweeps.results import SweepFolder, TrialRow, table_of
from quickstudy.sweeps.study import Study, Trial
from quickstudy.sweeps.tasks import RETRAIN, Conditions, Training
from quickstudy.sweeps.workers import TrialNews, run_locally

_MOST_TOGETHER = 128
"""Most trials that one process trains at once."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Says what a sweep is about to do."""

    trials: int
    """Number of trials in all."""
    done: int
    """Number of trials that ended before."""
    workers: int
    """Number of processes that carry out a trial, or trials together, at a time."""
    together: int = 0
    """Number of trials that are trained together with others in one process, as on a GPU."""
    apart: Mapping[str, int] = field(default_factory=dict)
    """Number of those that could not be, by reason; empty where none was to be."""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep came to."""

    folder: Path
    """Folder of the sweep."""
    study: Study
    """What was asked."""
    rows: tuple[TrialRow, ...]
    """One row for each trial."""
    table: pa.Table
    """The same as a table, as `results.parquet` holds it."""
    pictures: tuple[Path, ...]
    """Paths of the pictures that were drawn."""
    conclusion: str
    """What came out, in words, as Markdown."""

    @property
    def failed(self) -> list[TrialRow]:
        """Trials that failed."""
        return [row for row in self.rows if row.status == "failed"]


Report = Callable[[Planned | TrialNews], None]


def sweep(
    study: Study,
    results: str | Path,
    *,
    workers: int | None = None,
    ray: str | None = None,
    device: str = "auto",
    data_folder: Path | None = None,
    cache: Path | None = None,
    report: Report = lambda _news: None,
) -> SweepResult:
    """Carry out a study; trials that ended before are not repeated, those that failed are.

    Args:
        study: what is varied.
        results: the sweep's folder; made where there is none.
        workers: trials at a time, each in a process; left out, one for each core, or all that can be trained together
            on a GPU.
        ray: `auto` or the address of a Ray cluster to send the trials to.
        device: auto, cpu or cuda.
        data_folder: where named data sets lie.
        cache: where bottlenecks lie, for retraining.
        report: is told what happens.

    Raises:
        SweepError: the study, the folder or the cluster cannot be used.
        OptionError: an option is unknown or has a value that cannot be used.
        ImageSetError: the data is not there, or cannot be used.
    """
    folder = SweepFolder(Path(results))
    study = replace(study, contents=_fingerprints(study.trials(), cache))
    trials = study.trials()
    if workers is not None and workers < 1:
        raise OptionError(f"workers is {workers}; expected 1 or more")
    conditions = Conditions(device=device, data_folder=data_folder, cache=cache)
    todo = [trial for trial in trials if not folder.is_done(trial)]
    for trial in todo:
        trial.task.check(conditions)
    # The longest first, so that no worker is left alone with one at the end.
    todo.sort(key=lambda trial: -trial.task.work(conditions))
    folder.begin(study)
    at_once = workers is None and ray is None and choose_device(device) != "cpu"
    jobs, apart = jobs_of(todo) if at_once else ([[trial] for trial in todo], {})
    count = min(workers or usable_workers(device), max(len(jobs), 1))
    together = sum(len(job) for job in jobs if len(job) > 1)
    report(
        Planned(trials=len(trials), done=len(trials) - len(todo), workers=count, together=together, apart=dict(apart))
    )
    for trial in todo:
        folder.forget_failure(trial)
    if ray is not None:
        from quickstudy.sweeps.on_ray import run_on_ray

        news = run_on_ray(todo, folder.runs, conditions, address=ray)
    else:
        # Workers may come from a process that was begun before the environment said where the cache is.
        news = run_locally(jobs, folder.runs, replace(conditions, workers=count, cache=cache_folder(cache)))
    with contextlib.closing(news):  # whatever ends it, workers save what they have
        for went in news:
            from quickstudy.sweeps import pictures  # noqa: F401  which takes its second while the workers are busy

            if went.error is not None:
                folder.failed(went.trial, went.error)
            report(went)
    return conclude_sweep(folder, study, trials)


def jobs_of(trials: Sequence[Trial]) -> tuple[list[list[Trial]], Mapping[str, int]]:
    """Put together what one process trains at once: trainings on the same images, unless something is against it.

    Returns:
        The jobs, and the number of trials that are jobs of their own by the reason for that.
    """
    jobs: dict[Any, list[Trial]] = {}
    apart = Counter[str]()
    for trial in trials:
        task, reason = trial.task, trial.task.why_apart()
        if reason or not isinstance(task, Training):
            apart[reason] += 1
            jobs[trial.identity] = [trial]
        else:
            jobs.setdefault(task.images, []).append(trial)
    parts = [
        job[start : start + _MOST_TOGETHER] for job in jobs.values() for start in range(0, len(job), _MOST_TOGETHER)
    ]
    return parts, apart


def _fingerprints(trials: Sequence[Trial], cache: Path | None) -> dict[str, str]:
    """Find out by path what trials retrain on: the census' fingerprint of image sets, the hash of role-giving models.

    What cannot be read is left out; its trial tells.
    """
    found = {}
    options = [trial.task.options() for trial in trials if trial.task.name == RETRAIN]
    for data in {str(values["data"]) for values in options if values["data"]}:
        with contextlib.suppress(ImageSetError):
            found[data] = take_census(as_path(data), stat_index(cache)).fingerprint
    for model in {str(values["roles_of"]) for values in options if values["roles_of"]}:
        with contextlib.suppress(OSError):
            found[model] = sha256_of_file(as_path(model))
    return found


def show(results: str | Path) -> SweepResult:
    """Make table, pictures and conclusion again, from what a sweep's folder has.

    Raises:
        SweepError: this is no sweep, or one of another version.
    """
    folder = SweepFolder(Path(results))
    study = folder.study()
    return conclude_sweep(folder, study, study.trials())


def conclude_sweep(folder: SweepFolder, study: Study, trials: list[Trial]) -> SweepResult:
    """Write table, pictures and conclusion, from what the runs have."""
    from quickstudy.sweeps.pictures import draw_all

    rows = folder.rows(trials)
    table = table_of(study, rows)
    folder.write_table(table)
    done = [row for row in rows if row.status == "done"]
    pictures = draw_all(study, done, folder.pictures) if done else []
    conclusion = conclude(study, rows)
    write_bytes_atomically(folder.path / "conclusion.md", conclusion.encode())
    return SweepResult(
        folder=folder.path,
        study=study,
        rows=tuple(rows),
        table=table,
        pictures=tuple(pictures),
        conclusion=conclusion,
    )


def usable_workers(device: str) -> int:
    """Tell how many processes at a time pay: one on a GPU, else one for each core.

    Two one-thread trainings of a small network at a time are quicker than one after the other with two threads.
    """
    return 1 if choose_device(device) == "cuda" else usable_cores()
