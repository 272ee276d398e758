from __future__ import annotations

import asyncio
import os
import threading

import pytest

from realtime.tasks.running import running_loop


async def here() -> bool:
    return running_loop() is asyncio.get_running_loop()


def test_loop_is_the_one_that_runs_now():
    assert asyncio.run(here())
    assert asyncio.run(here())


def test_no_loop_runs_after_its_end():
    asyncio.run(here())
    with pytest.raises(RuntimeError):
        running_loop()


async def test_other_thread_has_a_loop_of_its_own_or_none():
    found: list[object] = []

    def look() -> None:
        try:
            running_loop()
        except RuntimeError as error:
            found.append(type(error))
        found.append(asyncio.run(here()))

    assert await here()
    thread = threading.Thread(target=look)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert found == [RuntimeError, True]


@pytest.mark.filterwarnings("ignore:This process")
async def test_child_of_a_fork_runs_no_loop():
    assert await here()
    child = os.fork()
    if not child:
        try:
            running_loop()
        except RuntimeError:
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
