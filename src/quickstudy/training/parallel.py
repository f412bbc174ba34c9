"""Data parallel: one replica a device, each with its part of every batch, gradients averaged before every step.

Replicas on one machine are started here; over several machines torchrun starts them. They meet through
torch.distributed: gloo on processors, NCCL on GPUs. Nothing listens beyond the loopback device unless torchrun says so.
"""

from __future__ import annotations

import datetime
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from quickstudy.cores import usable_cores
from quickstudy.errors import RecipeError, TrainingError

_TIMEOUT = datetime.timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One of the processes that train together."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    device_type: str = "cpu"

    @property
    def is_first(self) -> bool:
        """The one that writes files and speaks."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this replica computes."""
        return torch.device(self.device_type, self.local_rank) if self.device_type == "cuda" else torch.device("cpu")


def choose_device(name: str = "auto") -> str:
    """`cpu` or `cuda`; `auto` takes a GPU where there is one.

    Raises:
        RecipeError: there is no such device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise RecipeError(f"device is '{name}'; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device is 'cuda', but torch finds no CUDA device here; take cpu or auto")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def torchrun_replica(device_type: str) -> Replica | None:
    """This process's place where torchrun has started it; None elsewhere."""
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
    """Be one of the replicas inside this context; alone, nothing is set up."""
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


def run_replicas(world: int, device_type: str, work: Callable[..., Any], *arguments: Any) -> None:
    """Run `work(replica, *arguments)` in `world` processes on this machine; all of them end before this returns.

    Args:
        world: how many.
        device_type: cpu or cuda.
        work: a function of a module, so that another process can import it.
        arguments: passed on.

    Raises:
        TrainingError: one of them died; the others have been ended.
        RecipeError: there are not so many devices.
    """
    if device_type == "cuda" and world > torch.cuda.device_count():
        raise RecipeError(f"devices is {world}; there are {torch.cuda.device_count()} GPUs here")
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

    with tempfile.TemporaryDirectory(prefix="quickstudy-") as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        try:
            spawn(_replica, (world, device_type, meeting, work, arguments), nprocs=world)  # type: ignore[no-untyped-call]
        except ProcessRaisedException as error:
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            raise TrainingError(f"A replica failed: {lines[-1] if lines else error}") from None
        except ProcessExitedException as error:
            how = f"signal {error.signal_name}" if error.signal_name else f"exit status {error.exit_code}"
            raise TrainingError(
                f"Replica {error.error_index} died ({how}), so the others were ended; "
                "the same command goes on from the newest checkpoint"
            ) from None


def _replica(
    rank: int, world: int, device_type: str, meeting: str, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    replica = Replica(rank=rank, world=world, local_rank=rank, local_world=world, device_type=device_type)
    with joined(replica, meeting):
        work(replica, *arguments)
