"""The channel layer in event loops that are soon over, as synchronous code has them: nothing of it may remain.

Each program runs in a process of its own, in Python's development mode, in which every warning is an error.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from tests.e2e.harness import Stack

PROLOGUE = """
import asyncio, gc, os, sys, threading, time
import django
django.setup()
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

MESSAGE = {"type": "some.message"}
layer = get_channel_layer()
unraisable = []
sys.unraisablehook = lambda each: unraisable.append((type(each.exc_value), str(each.exc_value)))  # not the object

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def at_rest():
    '''How many descriptors there are once everything that is on its way out has gone.'''
    deadline = time.monotonic() + 30
    while descriptors() > before + ALLOWED and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)
    gc.collect()
    return descriptors()

async def send():
    await layer.group_send("someones.group", MESSAGE)

IS_CLOSED_EARLY = False
ALLOWED = 3  # one connection that synchronous callers share, and what an event loop has of its own
"""

EPILOGUE = """
after = at_rest()
if IS_CLOSED_EARLY:  # then Python itself says that its transports were not closed; nothing else may be wrong
    unraisable[:] = [each for each in unraisable if each[0] is not ResourceWarning]
assert after <= before + ALLOWED, f"{after - before} descriptors remain"
assert not unraisable, unraisable[0]
print("nothing remains")
"""

PROGRAMS = {
    "one thread": """
        async_to_sync(send)()
        before = descriptors()
        for _ in range(100):
            async_to_sync(layer.group_send)("someones.group", MESSAGE)
    """,
    "many threads": """
        def work():
            for _ in range(25):
                async_to_sync(layer.group_send)("someones.group", MESSAGE)

        async_to_sync(send)()
        before = descriptors()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    """,
    "asyncio.run": """
        asyncio.run(send())
        before = descriptors()
        for _ in range(20):
            asyncio.run(send())
    """,
    "a loop that is closed without a shutdown": """
        IS_CLOSED_EARLY = True

        def work():
            loop = asyncio.new_event_loop()
            loop.run_until_complete(send())
            loop.close()

        work()
        before = descriptors()
        for _ in range(20):
            work()
    """,
    "consumers' channels": """
        async def receive():
            channel = await layer.new_channel()
            await layer.group_add("someones.group", channel)
            await send()
            assert await layer.receive(channel) == MESSAGE
            await layer.group_discard("someones.group", channel)

        asyncio.run(receive())
        before = descriptors()
        for _ in range(20):
            asyncio.run(receive())
    """,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_remains_of_an_event_loop_that_is_over(tmp_path: Path, redis_url: str, name: str):
    program = PROLOGUE + dedent(PROGRAMS[name]) + EPILOGUE
    with Stack(tmp_path, redis_url) as stack:
        options = ("-X", "dev", "-W", "error", "-c", program)
        done = stack.run(*options, DJANGO_SETTINGS_MODULE="realtime.settings.sockets")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "nothing remains\n"
    # On a busy machine the development mode also tells what took long.
    assert [line for line in done.stderr.splitlines() if "Executing <" not in line] == []
