from __future__ import annotations

import asyncio

import pytest

from realtime.redis.client import client, key
from realtime.redis.lease import Lease
from tests.inprocess import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("process")


async def test_holder_keeps_it_by_asking_again():
    one, two = Lease("work", 60), Lease("work", 60)
    for _ in range(3):
        assert await one.hold()
    assert not await two.hold()


async def test_another_takes_over_when_the_holder_dies():
    one, two = Lease("work", 0.05), Lease("work", 0.05)
    assert await one.hold()
    assert await eventually(two.hold)
    assert not await one.hold()


async def test_another_takes_over_when_the_holder_dies_and_redis_clock_is_set_back():
    one, two = Lease("work", 60), Lease("work", 60)
    await one.hold()
    await client().pexpire(key("lease", "work"), 3_600_000)
    assert await two.hold()
    assert not await one.hold()


async def test_released_lease_can_be_had_at_once():
    one, two = Lease("work", 60), Lease("work", 60)
    await one.hold()
    await one.release()
    assert await two.hold()


async def test_who_does_not_hold_it_cannot_release_it():
    one, two = Lease("work", 60), Lease("work", 60)
    await one.hold()
    await two.release()
    assert not await two.hold()


async def test_leases_of_other_names_are_other_leases():
    assert await Lease("work", 60).hold()
    assert await Lease("play", 60).hold()


async def test_lease_is_kept_until_another_has_it():
    lease = Lease("work", 0.2)
    assert await lease.hold()
    keeping = asyncio.create_task(lease.keep())
    await asyncio.sleep(0.5)
    assert await client().get(key("lease", "work")) == lease.holder.encode()
    assert not keeping.done()
    await client().set(key("lease", "work"), "another")
    await asyncio.wait_for(keeping, PATIENCE)


async def test_lease_ends_by_itself():
    await Lease("work", 60).hold()
    assert 59_000 < await client().pttl(key("lease", "work")) <= 60_000
