"""Processes that start in a moment: forked from one that has imported everything and done nothing else."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

# What a training imports, some of it in its first step only.
IMPORTED = (
    "quickstudy.sweeps.workers",
    "quickstudy.scratch.train",
    "quickstudy.scratch.evaluation",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "sklearn.datasets",
)


def quick_processes() -> ForkServerContext:
    """Such processes; a sweep's workers come from the same one, if this is called first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    forkserver.ensure_running()
    return context
