"""Coroutines whose first step is taken without a task."""

from __future__ import annotations

import asyncio

import pytest

from realtime.tasks.stepping import first_step


async def test_coroutine_that_waits_for_nothing_is_over_after_its_first_step():
    done = []

    async def work() -> None:
        done.append(1)

    assert first_step(work()) is None
    assert done == [1]


async def test_rest_of_a_coroutine_goes_on_in_a_task():
    loop, seen = asyncio.get_running_loop(), []
    futures = [loop.create_future() for _ in range(2)]

    async def work() -> None:
        for future in futures:
            seen.append(await future)
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await asyncio.sleep(0.001)

    rest = first_step(work())
    assert rest is not None
    futures[0].set_result("a")
    loop.call_soon(futures[1].set_result, "b")
    await asyncio.create_task(_awaiting(rest))
    assert seen == ["a", "b"]


async def _awaiting(rest) -> None:
    await rest


async def test_failures_are_raised_by_the_first_step_and_by_the_rest():
    async def fail(*, late: bool) -> None:
        if late:
            await asyncio.sleep(0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        first_step(fail(late=False))
    rest = first_step(fail(late=True))
    assert rest is not None
    with pytest.raises(ValueError, match="no"):
        await rest


async def test_cancellation_reaches_a_coroutine_that_waits():
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    rest = first_step(work())
    assert rest is not None
    task = asyncio.create_task(_awaiting(rest))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
