"""Trials run on a Ray cluster, each as a task whose folder is brought back whole when it has ended.

Only the data has to be where the workers find it. A run folder comes back as an archive, so that what is here is the
same as after a sweep on this machine.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

from quickstudy.cluster import connected
from quickstudy.files import TEMPORARY_PREFIX
from quickstudy.process import settle_own_process, usable_cores
from quickstudy.sweeps.study import Trial
from quickstudy.sweeps.tasks import Conditions
from quickstudy.sweeps.workers import TrialNews, attempt

_RETRIES = 2
"""Number of times that a task is tried again after its worker was lost."""


def run_on_ray(
    trials: Sequence[Trial], runs: Path, conditions: Conditions, *, address: str
) -> Generator[TrialNews, None, None]:
    """Carry out trials on a Ray cluster, one CPU (or GPU) each, and tell about each one when it has ended.

    Args:
        trials: what to carry out.
        runs: where the run folders go, on this machine.
        conditions: how to carry them out; `data_folder` and image folders must be where the workers find them.
        address: `auto` or the cluster's address.

    Raises:
        ClusterError: there is no cluster at this address.
    """
    import ray

    with connected(address):
        task = ray.remote(num_cpus=1, num_gpus=_gpus(conditions), max_retries=_RETRIES)(_carry_out)
        waiting = {task.remote(trial, conditions): trial for trial in trials}
        while waiting:
            ended, _ = ray.wait(list(waiting), num_returns=1)
            trial = waiting.pop(ended[0])
            try:
                archive, error = ray.get(ended[0])
            except ray.exceptions.RayError as lost:
                yield TrialNews(trial=trial, error=f"The worker that ran it was lost: {lost}")
                continue
            _unpack(archive, runs / trial.folder)
            yield TrialNews(trial=trial, ended=error is None, error=error)


def _gpus(conditions: Conditions) -> int:
    return 1 if conditions.device == "cuda" else 0


def _carry_out(trial: Trial, conditions: Conditions) -> tuple[bytes, str | None]:
    """Carry out a trial on the cluster; gives its folder as an archive, and the error, if there was one."""
    settle_own_process()
    alone = replace(conditions, workers=usable_cores())  # one core each, as it has asked for
    with tempfile.TemporaryDirectory(prefix="quickstudy-") as name:
        folder = Path(name) / trial.folder
        error = attempt(trial, folder, alone, lambda _moment: None)
        return _pack(folder), error


def _pack(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        if folder.exists():
            archive.add(folder, arcname=".")
    return buffer.getvalue()


def _unpack(archive: bytes, folder: Path) -> None:
    """Put a folder in its place, whole or not at all; what an earlier attempt left there gives way."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder.parent) as name:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as opened:
            opened.extractall(Path(name) / "new", filter="data")
        if folder.exists():
            folder.rename(Path(name) / "old")
        (Path(name) / "new").rename(folder)
