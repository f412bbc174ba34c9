"""Processes that start in a moment: forked from one that has imported everything and done nothing else."""

from __future__ import annotations

from typing import Any

from quickstudy.process import begin_own_processes, own_processes


def quick_processes() -> Any:
    """Such processes: those that sweeps and replicas are made in, too."""
    begin_own_processes()
    return own_processes()
