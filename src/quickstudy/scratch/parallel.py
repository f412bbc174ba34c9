"""Data parallel: one replica a device, each with its part of every batch, gradients averaged before every step.

Replicas on one machine are started here; over several machines torchrun starts them. They compute together through
torch.distributed: gloo on processors, NCCL on GPUs. Replicas of one machine need no server: they meet through a file,
and gloo is told to use the loopback device, since torch's rendezvous store would listen on all addresses.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from quickstudy import errors
from quickstudy.errors import DeviceError, OptionError, QuickstudyError, RunError, TrainingError
from quickstudy.process import settle_own_process, starting_own_process, usable_cores

_TIMEOUT = datetime.timedelta(minutes=10)
"""Time after which a replica gives up waiting for the others."""


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
        return torch.device(self.device_type, self.local_rank) if self.device_type == "cuda" else torch.device("cpu")


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
    """This process's place among the replicas where torchrun has started it; None elsewhere."""
    if "TORCHELASTIC_RUN_ID" not in os.environ and not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        return None
    number = {name: int(os.environ.get(name, default)) for name, default in _TORCHRUN}
    return Replica(
        rank=number["RANK"],
        world=number["WORLD_SIZE"],
        local_rank=number["LOCAL_RANK"],
        local_world=number["LOCAL_WORLD_SIZE"],
        device_type=device_type,
    )


_TORCHRUN = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def joined(replica: Replica, meeting: str = "env://") -> Iterator[None]:
    """Be one of the replicas inside this context; `meeting` is the address where they find each other."""
    torch.set_num_threads(max(1, usable_cores() // replica.local_world))
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


def agree_on_step(replica: Replica, step: int) -> None:
    """See that all replicas go on from the same step.

    Raises:
        RunError: they do not, so they do not share the run's folder.
    """
    if replica.world == 1:
        return
    ends = torch.tensor([step, -step], device=replica.device)
    torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
    highest, lowest = ends[0].item(), -ends[1].item()
    if highest != lowest:
        raise RunError(
            f"The replicas would go on from different steps, {lowest} and {highest}; "
            "all machines have to share the run's folder"
        )


def decided_by_first(replica: Replica, yes: bool) -> bool:
    """Give all replicas the first one's decision; what the others decided does not count."""
    if replica.world == 1:
        return yes
    answer = torch.tensor(int(yes), device=replica.device)
    torch.distributed.broadcast(answer, 0)
    return bool(answer.item())


def run_replicas(world: int, device_type: str, work: Callable[..., Any], *arguments: Any) -> None:
    """Run `work(replica, *arguments)` in `world` processes on this machine; all of them end before this returns.

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
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

    with tempfile.TemporaryDirectory(prefix="quickstudy-") as folder:
        with starting_own_process():
            replicas = start_processes(  # type: ignore[no-untyped-call]
                _replica, (world, device_type, Path(folder), work, arguments), nprocs=world, join=False
            )
        try:
            while not replicas.join():
                pass
        except (ProcessExitedException, ProcessRaisedException) as error:
            # Where one dies, all others fail or are ended, and may be noticed first.
            for index, process in enumerate(replicas.processes):
                if process.exitcode not in (0, 1, -signal.SIGTERM, 128 + signal.SIGTERM):
                    raise _death(index, process.exitcode) from None
            if isinstance(error, ProcessExitedException) and error.exit_code != 1:
                raise _death(error.error_index, error.exit_code) from None
            raise _failure(Path(folder) / _ERROR, str(error)) from None


def _death(index: int, exit_code: int) -> TrainingError:
    """The error of a replica that died."""
    how = f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit status {exit_code}"
    return TrainingError(
        f"Replica {index} died ({how}), so the others were ended; the same command continues from the newest checkpoint"
    )


def _failure(path: Path, otherwise: str) -> QuickstudyError:
    """The first error of a replica, as it was raised there."""
    try:
        kind, message = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return TrainingError(f"A replica failed: {otherwise.strip()}")
    known = getattr(errors, kind, None)
    return known(message) if known is not None else TrainingError(f"A replica failed: {kind}: {message}")


_ERROR = "error.json"
"""Name of the file in which the first replica that fails says why."""


def _replica(
    rank: int, world: int, device_type: str, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Be one replica, from the start of its process to its end."""
    # This process was started by `run_replicas` and ends with this function, so its environment is nobody else's.
    settle_own_process()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    replica = Replica(rank=rank, world=world, local_rank=rank, local_world=world, device_type=device_type)
    status = 0
    with joined(replica, (folder / "meeting").as_uri()):
        try:
            work(replica, *arguments)
        except Exception as error:
            status = 1
            # Only the first counts: that it leaves makes the others fail.
            with contextlib.suppress(FileExistsError), (folder / _ERROR).open("x", encoding="utf-8") as file:
                json.dump([type(error).__name__, str(error)], file)
                if not isinstance(error, QuickstudyError):
                    traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: what gloo leaves behind aborts the interpreter's end now and then (torch 2.13, under load).
    os._exit(status)
