"""Data parallel: one replica a device, each with its part of every batch, gradients averaged before every step.

Replicas on one machine are started here; over several machines torchrun starts them. They compute together through
torch.distributed: gloo on processors, NCCL on GPUs. Replicas of one machine need no server: they meet through a file,
and gloo is told to use the loopback device, since torch's rendezvous store would listen on all addresses.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed

from quickstudy import errors
from quickstudy.errors import DeviceError, OptionError, QuickstudyError, RunError, TrainingError
from quickstudy.learning.checkpoints import Interrupts
from quickstudy.process import (
    how_it_ended,
    leave_group,
    own_process,
    settle_own_process,
    starting_own_process,
    usable_cores,
)

_TIMEOUT = datetime.timedelta(minutes=10)
"""Time after which a replica gives up waiting for the others."""
_ENDING_SECONDS = 20.0
"""Seconds that replicas have to end by themselves when one has ended before its time; none can go on without it."""
_STOPS = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit statuses of a replica that was asked to stop."""


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One of the processes that train together, by its place among them."""

    rank: int = 0
    """Number of the replica, counted from 0."""
    world: int = 1
    """Number of replicas."""
    local_rank: int = 0
    """Number of the replica on its machine, counted from 0."""
    local_world: int = 1
    """Number of processes on its machine that share the cores."""
    device_type: str = "cpu"
    """Kind of device: cpu or cuda."""

    @property
    def is_first(self) -> bool:
        """Whether this is the replica that writes files and speaks."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The device that this replica computes on."""
        return torch.device("cpu") if self.device_type == "cpu" else torch.device(self.device_type, self.local_rank)


def choose_device(name: str = "auto") -> str:
    """Choose `cpu` or `cuda`; `auto` takes a GPU where there is one.

    Raises:
        OptionError: the name is none.
        DeviceError: there is no such device here.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise OptionError(f"device is '{name}'; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device is 'cuda', but torch finds no CUDA device here; take cpu or auto")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def torchrun_replica(device_type: str) -> Replica | None:
    """Find this process's place among the replicas where torchrun, or one like it, has started it; None elsewhere.

    Raises:
        OptionError: the environment has a place that cannot be.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ and not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        return None
    number = {}
    for name, default in _TORCHRUN:
        if not (given := os.environ.get(name, default)).isdecimal():
            raise OptionError(f"{name} is '{given}' in the environment; expected a whole number. {_AS_TORCHRUN}")
        number[name] = int(given)
    for name, of in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if number[name] >= number[of]:
            raise OptionError(
                f"{name} is {number[name]} in the environment, and {of} is {number[of]}; expected less than that. "
                + _AS_TORCHRUN
            )
    if number["WORLD_SIZE"] > 1 and not 0 < number["MASTER_PORT"] < 65536:
        raise OptionError(
            f"MASTER_PORT is '{os.environ.get('MASTER_PORT', '')}' in the environment; expected a port from 1 to "
            f"65535. {_AS_TORCHRUN}"
        )
    return Replica(
        rank=number["RANK"],
        world=number["WORLD_SIZE"],
        local_rank=number["LOCAL_RANK"],
        local_world=number["LOCAL_WORLD_SIZE"],
        device_type=device_type,
    )


_TORCHRUN = (
    ("RANK", "0"),
    ("WORLD_SIZE", "1"),
    ("LOCAL_RANK", "0"),
    ("LOCAL_WORLD_SIZE", "1"),
    ("MASTER_PORT", "0"),
)
_AS_TORCHRUN = "If torchrun has not set these, unset RANK, WORLD_SIZE and MASTER_ADDR"


@contextmanager
def joined(replica: Replica, meeting: str = "env://") -> Iterator[None]:
    """Be one of the replicas inside this context; `meeting` is the address where they find each other.

    PyTorch has this replica's share of the cores as threads inside, and as many as before afterwards.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, usable_cores() // replica.local_world))
    try:
        if replica.device_type == "cuda":
            torch.cuda.set_device(replica.device)
        if replica.world == 1:
            yield
            return
        torch.distributed.init_process_group(
            "nccl" if replica.device_type == "cuda" else "gloo",
            init_method=meeting,
            rank=replica.rank,
            world_size=replica.world,
            timeout=_TIMEOUT,
        )
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()
    finally:
        torch.set_num_threads(threads)


def agree_on_step(replica: Replica, step: int) -> None:
    """See that all replicas go on from the same step.

    Raises:
        RunError: they do not, so they do not share the run's folder.
    """
    highest, lowest = largest_of_all(replica, step, -step)
    lowest = -lowest
    if highest != lowest:
        raise RunError(
            f"The replicas would go on from different steps, {lowest} and {highest}; "
            "all machines have to share the run's folder"
        )


def largest_of_all(replica: Replica, *numbers: int) -> list[int]:
    """Give all replicas the largest of what each of them has, number by number; all of them call this together."""
    if replica.world == 1:
        return list(numbers)
    values = torch.tensor(numbers, device=replica.device)
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
    return [int(value) for value in values.tolist()]


def run_replicas(world: int, device_type: str, work: Callable[..., Any], *arguments: Any) -> None:
    """Run `work(replica, *arguments)` in `world` processes on this machine; all of them end before this returns.

    A signal to end, to this process or to one of them, ends all: they agree on a step, and one of them saves.

    Args:
        world: number of processes.
        device_type: cpu or cuda.
        work: a function of a module, so that another process can import it.
        arguments: what `work` gets beside its replica.

    Raises:
        QuickstudyError: one of them raised it.
        TrainingError: one of them died; the others have been ended.
        OptionError: there are not so many devices.
    """
    if device_type == "cuda" and world > torch.cuda.device_count():
        raise OptionError(f"devices is {world}; there are {torch.cuda.device_count()} GPUs here")
    with tempfile.TemporaryDirectory(prefix="quickstudy-") as name:
        folder = Path(name)
        replicas = [own_process(_replica, rank, world, device_type, folder, work, arguments) for rank in range(world)]

        def hand_on(number: int) -> None:
            for replica in replicas if hasattr(os, "setsid") else ():  # elsewhere a signal comes to all by itself
                if replica.pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(replica.pid, number)

        with Interrupts(hand_on) as interrupts:
            try:
                with starting_own_process():
                    for replica in replicas:
                        replica.start()
                _wait(replicas)
                codes = [replica.exitcode for replica in replicas]
            finally:
                for replica in replicas:
                    if replica.pid is not None:
                        replica.kill()
                        replica.join()
            # Where one dies, all others fail, and may be noticed first.
            for rank, code in enumerate(codes):
                if code is not None and code not in (0, 1, *_STOPS):
                    raise _death(rank, code)
            if interrupts.pending is None:
                interrupts.pending = next((code - 128 for code in codes if code in _STOPS), None)
            interrupts.raise_pending()
            if any(codes):
                raise _failure(folder / _ERROR)


def _wait(replicas: list[Any]) -> None:
    """Wait until all have ended; where one has done so before its time, not for long."""
    latest = None
    while alive := [replica for replica in replicas if replica.exitcode is None]:
        connection.wait([replica.sentinel for replica in alive], None if latest is None else latest - time.monotonic())
        if latest is None and any(replica.exitcode for replica in replicas):
            latest = time.monotonic() + _ENDING_SECONDS
        if latest is not None and time.monotonic() >= latest:
            return


def _death(rank: int, exit_code: int) -> TrainingError:
    """Make the error of a replica that died."""
    return TrainingError(
        f"Replica {rank} died ({how_it_ended(exit_code)}), so the others were ended; the same command continues from "
        "the newest checkpoint"
    )


def _failure(path: Path) -> QuickstudyError:
    """Find the first error of a replica, as it was raised there."""
    try:
        kind, message, trace = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return TrainingError(
            "A replica failed without a message; the same command continues from the newest checkpoint"
        )
    known = getattr(errors, kind, None)
    return known(message) if known is not None else TrainingError(f"A replica failed: {kind}: {message}\n{trace}")


_ERROR = "error.json"
"""Name of the file in which the first replica that fails says why."""


def _replica(
    rank: int, world: int, device_type: str, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Be one replica, from the start of its process to its end."""
    status = 1
    try:
        leave_group()
        # This process was started by `run_replicas` and ends with this function, so its environment is nobody else's.
        settle_own_process()
        threading.Thread(target=_end_with_parent, daemon=True).start()
        os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
        replica = Replica(rank=rank, world=world, local_rank=rank, local_world=world, device_type=device_type)
        with joined(replica, (folder / "meeting").as_uri()):
            try:
                work(replica, *arguments)
                status = 0
            except Exception as error:
                # Only the first counts: that it leaves makes the others fail.
                told = [type(error).__name__, str(error), traceback.format_exc()]
                with contextlib.suppress(OSError), (folder / _ERROR).open("x", encoding="utf-8") as file:
                    json.dump(told, file)
    # From inside each clause: what an exception holds, its frames' networks and gloo's objects, is then never freed,
    # which now and then waited for ever (torch 2.13).
    except KeyboardInterrupt:
        leave(128 + signal.SIGINT)
    except SystemExit as stop:
        leave(stop.code if isinstance(stop.code, int) else 1)
    finally:
        leave(status)


def _end_with_parent() -> None:
    """Ask this process to end once its parent has gone, however it went; all replicas do, and so agree."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def leave(status: int) -> NoReturn:
    """End this process at once: what gloo leaves behind aborts the interpreter's end now and then (torch 2.13)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
