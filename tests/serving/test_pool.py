"""The bounded queue: what has room is done, what has none is refused at once, what is given up makes room."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from quickstudy.serving.registry import OverloadedError, Pool


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(threads=2, queue=3)
    yield pool
    pool.close()


def test_results_come_in_the_jobs_order(pool: Pool) -> None:
    first = threading.Event()

    def slow() -> int:
        first.wait(10)
        return 0

    def quick() -> int:
        first.set()
        return 1

    assert asyncio.run(pool.run([slow, quick])) == [0, 1]
    assert pool.pending == 0


def test_no_more_than_threads_and_queue_are_taken_and_room_comes_back(pool: Pool) -> None:
    release = threading.Event()

    async def scenario() -> None:
        waiting = [asyncio.create_task(pool.run([release.wait])) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await pool.run([release.wait] * 3)  # all or nothing
        assert pool.pending == 3
        assert not pool.is_full
        waiting.append(asyncio.create_task(pool.run([release.wait] * 2)))
        await asyncio.sleep(0)
        assert pool.is_full
        with pytest.raises(OverloadedError):
            await pool.run([release.wait])
        release.set()
        assert [result for one in waiting for result in await one] == [True] * 5
        assert pool.pending == 0
        assert await pool.run([lambda: "again"]) == ["again"]

    asyncio.run(scenario())


def test_what_is_given_up_before_it_begins_is_never_done(pool: Pool) -> None:
    release, done = threading.Event(), []

    async def scenario() -> None:
        busy = asyncio.create_task(pool.run([release.wait] * 2))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await pool.run([lambda: done.append(1)])
        assert pool.pending == 2
        release.set()
        await busy
        await pool.run([lambda: None])

    asyncio.run(scenario())
    assert done == []


def test_what_a_job_raises_reaches_the_caller(pool: Pool) -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(pool.run([lambda: 1 // 0]))
    assert pool.pending == 0
