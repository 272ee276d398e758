"""The stream is trimmed behind the cursor, and nowhere else."""

from __future__ import annotations

import pytest

from realtime.bridge.bus_entry import BUS
from realtime.bridge.cursors import trim
from realtime.redis.client import client, key
from tests.bridge.support import MESSAGE
from tests.inprocess import add

pytestmark = pytest.mark.usefixtures("process")


async def test_entries_behind_the_cursor_are_forgotten_when_old_enough():
    """More of them than Redis trims at a time by default."""
    pipeline = client().pipeline(transaction=False)
    for n in range(25_000):
        pipeline.xadd(key("stream"), {"message": ""}, id=f"1000-{n}")
    await pipeline.execute()
    fresh = await add("thread:message", MESSAGE)
    await client().hset(key("cursors"), key("stream"), fresh)
    await trim([BUS])
    assert await client().xlen(key("stream")) < 300  # Redis cuts off whole nodes of about a hundred entries
    ((last, _),) = await client().xrevrange(key("stream"), count=1)
    assert last.decode() == fresh


async def test_young_entries_are_kept_even_behind_the_cursor():
    entries = [await add("thread:message", MESSAGE) for _ in range(300)]
    await client().hset(key("cursors"), key("stream"), entries[-1])
    await trim([BUS])
    assert await client().xlen(key("stream")) == 300


async def test_entries_ahead_of_the_cursor_are_never_forgotten():
    pipeline = client().pipeline(transaction=False)
    for n in range(300):
        pipeline.xadd(key("stream"), {"message": ""}, id=f"1000-{n}")
    await pipeline.execute()
    await client().hset(key("cursors"), key("stream"), "0-0")
    await trim([BUS])
    assert await client().xlen(key("stream")) == 300
