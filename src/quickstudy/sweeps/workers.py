"""Workers are processes that stay: each carries out one trial after the other, and here is the parent's side, too.

A worker keeps torch and the data loaded from one trial to the next. Where the system can, it is forked from a process
that has torch imported already. When it dies, however it dies, another takes its place and goes on with the trial from
its newest checkpoint; a trial whose worker dies three times is given up.

Each has one thread: two one-thread trainings of a small network at a time are quicker than one after the other with two
threads. Runs that differ in seed only are not trained at once either. With torch.func's `vmap` over stacked parameters,
five networks of the batch-norm study take as long as one after the other on a processor (0.99 to 1.36 times; 1.5 times
for networks of a few thousand parameters). On a GPU it should pay; none was at hand to measure it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

from quickstudy.errors import QuickstudyError
from quickstudy.process import leave_group, own_processes, settle_own_process, starting_own_process
from quickstudy.sweeps.study import Trial
from quickstudy.sweeps.tasks import Conditions, Note, TrialProgress

_ATTEMPTS = 3
_ENDING_SECONDS = 60.0
"""Seconds that a worker has to save what it has when it is asked to stop."""


@dataclass(frozen=True, kw_only=True)
class TrialNews:
    """Brings news of one trial: it has begun or is further, it has ended, or it has failed."""

    trial: Trial
    progress: TrialProgress | None = None
    """How far the trial is, while it runs; None once it has ended or failed."""
    ended: bool = False
    """Whether the trial has ended, and not failed."""
    error: str | None = None
    """Reason of a failure; None where there was none."""


def run_locally(trials: Sequence[Trial], runs: Path, conditions: Conditions) -> Generator[TrialNews, None, None]:
    """Carry out trials in worker processes on this machine, and tell how they go."""
    waiting, attempts = deque(trials), Counter[str]()
    workers = [_Worker(runs, conditions) for _ in range(min(conditions.workers, len(trials)))]
    try:
        while waiting or any(worker.trial for worker in workers):
            for worker in workers:
                if worker.trial is None and waiting:
                    worker.begin(waiting.popleft())
            connection.wait([worker.pipe for worker in workers if worker.trial is not None])
            for number, worker in enumerate(workers):
                trial = worker.trial
                if trial is None or not worker.pipe.poll():
                    continue
                try:
                    progress, error = worker.pipe.recv()
                except (EOFError, OSError):
                    how = worker.death()
                    workers[number] = _Worker(runs, conditions)
                    attempts[trial.identity] += 1
                    if attempts[trial.identity] < _ATTEMPTS:
                        waiting.appendleft(trial)
                    else:
                        yield TrialNews(trial=trial, error=f"The process that ran it died {_ATTEMPTS} times ({how})")
                    continue
                if progress is None:
                    worker.trial = None
                yield TrialNews(trial=trial, progress=progress, ended=progress is None and error is None, error=error)
    finally:
        for worker in workers:
            worker.ask_to_end()
        for worker in workers:
            worker.end()


class _Worker:
    """Keeps the parent's side of one worker."""

    def __init__(self, runs: Path, conditions: Conditions) -> None:
        context = own_processes()
        self.pipe, theirs = context.Pipe()
        self.trial: Trial | None = None
        self.process = context.Process(target=_serve, args=(theirs, runs, conditions), daemon=True)
        with starting_own_process():
            self.process.start()
        theirs.close()

    def begin(self, trial: Trial) -> None:
        self.trial = trial
        with contextlib.suppress(OSError):  # it has died: seen when its news are read
            self.pipe.send(trial)

    def death(self) -> str:
        self.process.join()
        self.pipe.close()
        code = self.process.exitcode or 0
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def ask_to_end(self) -> None:
        """Ask the worker to stop, as Ctrl-C does; it saves what it has."""
        if self.trial is None:
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

    def tell(progress: TrialProgress) -> None:
        try:
            pipe.send((progress, None))
        except ConnectionError:  # the parent has gone; what is trained here is saved all the same
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        settle_own_process()
        while True:
            trial: Trial = pipe.recv()
            folder = runs / trial.folder
            pipe.send((None, attempt(trial, folder, conditions, tell)))
    except (EOFError, ConnectionError, KeyboardInterrupt, SystemExit):  # the parent has gone, or wants it to stop
        # At once: there is nothing to clean up, and the interpreter's own end can hang on torch's threads.
        sys.stdout.flush()
        os._exit(0)


def attempt(trial: Trial, folder: Path, conditions: Conditions, note: Note) -> str | None:
    """Carry out a trial, here or on a cluster; gives the error, if there was one."""
    try:
        trial.task.run(folder, conditions, note)
    except BrokenPipeError:  # who read the notes has gone
        raise
    except QuickstudyError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    return None
