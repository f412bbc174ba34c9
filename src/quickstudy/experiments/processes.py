"""How worker processes are started. Apart from `worker`, so that it can happen before torch is imported."""

from __future__ import annotations

import multiprocessing
from typing import Any

from quickstudy.process import starting_own_process

_PRELOADED = "quickstudy.experiments.worker"


def start_method() -> Any:
    """Workers come from a process that has torch imported, where the system can do that; else each imports it."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED])
    return context


def warm_up() -> None:
    """Let that process begin its imports, while this one does its own."""
    if start_method().get_start_method() == "forkserver":
        from multiprocessing import forkserver

        with starting_own_process():
            forkserver.ensure_running()
