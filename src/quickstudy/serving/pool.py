"""Threads that work on images, as many as there are cores, and the bounded queue in front of them.

An image a thread, from the file's bytes to the probabilities: two one-thread runs side by side beat a batch over two
cores (`benchmarks/serving.py` measures it), so there is nothing to gain by holding images back until a batch is full.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


class OverloadedError(Exception):
    """There is no room; asking again in a moment may help."""


class Pool:
    """Takes jobs while there is room, and refuses at once when there is none."""

    def __init__(self, *, threads: int, queue: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="image")
        self._most = threads + queue
        self._lock = threading.Lock()
        self._pending = 0

    @property
    def pending(self) -> int:
        """Jobs that were taken and are not done."""
        return self._pending

    @property
    def is_full(self) -> bool:
        """Whether not even one more job would be taken."""
        return self._pending >= self._most

    async def run(self, jobs: Sequence[Callable[[], Result]]) -> list[Result]:
        """The results of all jobs, in their order; what has not begun when the caller gives up is dropped.

        Raises:
            OverloadedError: there is no room for all of them.
        """
        with self._lock:
            if self._pending + len(jobs) > self._most:
                raise OverloadedError
            self._pending += len(jobs)
        futures = []
        for job in jobs:
            future = self._executor.submit(job)
            future.add_done_callback(self._leave)
            futures.append(future)
        return await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))

    def close(self) -> None:
        """Wait for what was taken, and end the threads."""
        self._executor.shutdown()

    def _leave(self, _: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1
