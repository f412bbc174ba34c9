"""A private Ray for tests: two cores, and nothing of it left behind."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quickstudy.cluster import connected

NO_RAY = "no Ray here; it comes with the extra 'ray'"


@contextmanager
def private_ray() -> Iterator[str]:
    """Start Ray as `auto` does where no cluster runs, with two cores; yields its address."""
    ray = pytest.importorskip("ray", reason=NO_RAY)
    with ray_folder() as folder, pytest.MonkeyPatch.context() as patched:
        patched.delenv("RAY_ADDRESS", raising=False)
        patched.setenv("RAY_TMPDIR", str(folder))
        patched.setattr("quickstudy.cluster.usable_cores", lambda: 2)
        with connected("auto"):
            yield ray.get_runtime_context().gcs_address


@contextmanager
def ray_folder() -> Iterator[Path]:
    """A folder for RAY_TMPDIR; at the end, no process may be left that was started with it."""
    # Short, as the paths of the sockets in it must be.
    folder = Path(tempfile.mkdtemp(prefix="qs", dir="/tmp" if sys.platform != "win32" else None))
    try:
        yield folder
        deadline = time.monotonic() + 20
        while left := {pid: command for pid, (_, command) in processes().items() if str(folder) in command}:
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def without_rays(errors: str) -> str:
    """Standard error without what Ray's core says of the way in which Ray Data starts its workers."""
    return "".join(line for line in errors.splitlines(keepends=True) if "core_worker.cc" not in line)


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line by process, on Linux; elsewhere none."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, ValueError, IndexError):
            continue  # gone meanwhile
        found[int(folder.name)] = parent, command
    return found


def ray_workers() -> list[int]:
    """Processes of this one's Ray that map blocks."""
    found = processes()
    family, before = {os.getpid()}, 0
    while len(family) > before:
        before = len(family)
        family |= {pid for pid, (parent, _) in found.items() if parent in family}
    return sorted(pid for pid in family if "MapWorker" in found[pid][1])
