"""Workers are processes that stay: each carries out one job after the other, and here is the parent's side, too.

A worker keeps torch and the data loaded from one job to the next. Where the system can, it is forked from a process
that has torch imported already. When it dies, however it dies, another takes its place and goes on with the trial from
its newest checkpoint; a trial whose worker dies three times is given up. After some errors a GPU answers a process
nothing any more: then another takes its place, too.

Each has one thread: two one-thread trainings of a small network at a time are quicker than one after the other with two
threads.

A job is one trial, or, on a GPU, all that can be trained together (`scratch/together.py`). Where such a job comes to
grief as a whole, for want of memory, or since its worker died, what is left of it is tried again in two halves. On a
processor trials are not trained together: five networks of the batch-norm study that differ in seed take as long as one
after the other (0.99 to 1.36 times; 1.5 times for networks of a few thousand parameters).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

from quickstudy.errors import QuickstudyError
from quickstudy.process import how_it_ended, leave_group, own_process, settle_own_process, starting_own_process
from quickstudy.sweeps.study import Trial
from quickstudy.sweeps.tasks import Conditions, Training, TrialProgress, TrialReporter, run_together

_ATTEMPTS = 3
_ENDING_SECONDS = 60.0
"""Seconds that a worker has to save what it has when it is asked to stop."""


@dataclass(frozen=True, kw_only=True)
class TrialNews:
    """Brings news of one trial: it has begun or is further, it has ended, or it has failed."""

    trial: Trial
    """The trial that the news is of."""
    progress: TrialProgress | None = None
    """How far the trial is, while it runs; None once it has ended or failed."""
    ended: bool = False
    """Whether the trial has ended, and not failed."""
    error: str | None = None
    """Reason of a failure; None where there was none."""
    halved: str | None = None
    """Reason why what is left of a job that this trial is in is tried again in two halves; None where it is not."""


def run_locally(
    jobs: Sequence[Sequence[Trial]], runs: Path, conditions: Conditions
) -> Generator[TrialNews, None, None]:
    """Carry out jobs in worker processes on this machine, and tell how their trials go."""
    waiting, attempts = deque(jobs), Counter[str]()
    workers = [_Worker(runs, conditions) for _ in range(min(conditions.workers, len(jobs)))]
    try:
        while waiting or any(worker.trials for worker in workers):
            for worker in workers:
                if not worker.trials and waiting:
                    worker.begin(waiting.popleft())
            connection.wait([worker.pipe for worker in workers if worker.trials])
            for number, worker in enumerate(workers):
                if not worker.trials or not worker.pipe.poll():
                    continue
                try:
                    told: _Told = worker.pipe.recv()
                except (EOFError, OSError):
                    told = _Told(died=worker.death())
                    workers[number] = _Worker(runs, conditions)
                if told.lost:
                    worker.death()
                    workers[number] = _Worker(runs, conditions)
                if told.identity is None:
                    left = list(worker.trials.values())
                    worker.trials = {}
                    if len(left) > 1:
                        waiting.extendleft((left[len(left) // 2 :], left[: len(left) // 2]))
                        reason = f"their process died ({told.died})" if told.died else told.failure
                        yield TrialNews(trial=left[0], halved=reason)
                        continue
                    attempts[left[0].identity] += bool(told.died)
                    if attempts[left[0].identity] < _ATTEMPTS:
                        waiting.appendleft(left)
                    else:
                        error = f"The process that ran it died {_ATTEMPTS} times ({told.died})"
                        yield TrialNews(trial=left[0], error=error)
                    continue
                trial = worker.trials[told.identity]
                if told.progress is None:
                    del worker.trials[told.identity]
                yield TrialNews(
                    trial=trial,
                    progress=told.progress,
                    ended=told.progress is None and told.failure is None,
                    error=told.failure,
                )
    finally:
        for worker in workers:
            worker.ask_to_end()
        for worker in workers:
            worker.end()


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What a worker tells its parent of one trial, or of its job as a whole."""

    identity: str | None = None
    """The trial's; None where it is of all that are left of the job."""
    progress: TrialProgress | None = None
    """How far it is; None where it has ended or failed."""
    failure: str | None = None
    lost: bool = False
    """Whether the process ends after this, since its GPU answers nothing any more."""
    died: str = ""
    """How its process died, which its parent tells itself; empty where it lives."""


class _Worker:
    """Keeps the parent's side of one worker."""

    def __init__(self, runs: Path, conditions: Conditions) -> None:
        self.pipe, theirs = connection.Pipe()
        self.trials: dict[str, Trial] = {}
        """Trials of its job that have not ended, by identity."""
        self.process = own_process(_serve, theirs, runs, conditions)
        with starting_own_process():
            self.process.start()
        theirs.close()

    def begin(self, job: Sequence[Trial]) -> None:
        self.trials = {trial.identity: trial for trial in job}
        with contextlib.suppress(OSError):  # it has died: seen when its news are read
            self.pipe.send(list(job))

    def death(self) -> str:
        self.process.join()
        self.pipe.close()
        return how_it_ended(self.process.exitcode or 0)

    def ask_to_end(self) -> None:
        """Ask the worker to stop, as Ctrl-C does; it saves what it has."""
        if not self.trials:
            self.pipe.close()  # which it waits for
        elif self.process.is_alive() and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)

    def end(self) -> None:
        """Wait for the worker to end, but not for ever."""
        self.process.join(_ENDING_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _serve(pipe: connection.Connection, runs: Path, conditions: Conditions) -> None:
    """Carry out, in a worker, what comes through the pipe until it closes."""
    leave_group()

    def tell(told: _Told) -> None:
        try:
            pipe.send(told)
        except ConnectionError:  # the parent has gone; what is trained here is saved all the same
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        settle_own_process()
        while True:
            job: list[Trial] = pipe.recv()
            if len(job) == 1:
                identity: str | None = job[0].identity
                error = attempt(job[0], runs / job[0].folder, conditions, _reporter(job[0], tell))
            else:
                identity, error = None, _attempt_together(job, runs, conditions, tell)
            lost = error is not None and _is_gpu_lost()
            if identity is not None or error is not None:
                pipe.send(_Told(identity=identity, failure=error, lost=lost))
            if lost:
                os._exit(1)
    except (EOFError, ConnectionError, KeyboardInterrupt, SystemExit):  # the parent has gone, or wants it to stop
        # At once: there is nothing to clean up, and the interpreter's own end can hang on torch's threads.
        sys.stdout.flush()
        os._exit(0)


def _reporter(trial: Trial, tell: Callable[[_Told], None]) -> TrialReporter:
    return lambda progress: tell(_Told(identity=trial.identity, progress=progress))


def _attempt_together(
    job: list[Trial], runs: Path, conditions: Conditions, tell: Callable[[_Told], None]
) -> str | None:
    """Carry out trials together, and tell of each as it ends; gives the error of all that are left, if any."""

    def ended(number: int, error: QuickstudyError | None) -> None:
        tell(_Told(identity=job[number].identity, failure=None if error is None else str(error)))

    tasks = [trial.task for trial in job if isinstance(trial.task, Training)]
    try:
        run_together(
            tasks, [runs / trial.folder for trial in job], conditions, [_reporter(trial, tell) for trial in job], ended
        )
    except BrokenPipeError:
        raise
    except Exception as error:  # whichever of them it is about
        return f"{type(error).__name__}: {error}"
    return None


def _is_gpu_lost() -> bool:
    """Say whether the GPU that this process has used answers it nothing any more, as after an assertion there."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def attempt(trial: Trial, folder: Path, conditions: Conditions, report: TrialReporter) -> str | None:
    """Carry out a trial, here or on a cluster; gives the error, if there was one."""
    try:
        trial.task.run(folder, conditions, report)
    except BrokenPipeError:  # who read the reports has gone
        raise
    except QuickstudyError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    return None
