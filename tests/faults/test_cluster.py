"""Redis Cluster: three primaries with a replica each, rooms in many slots, and a server that dies under traffic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL

import pytest

from realtime.redis.topology import slot
from tests.e2e.harness import eventually
from tests.faults.world import World
from tests.servers import Cluster

THREADS = 24


@pytest.fixture
async def clustered(tmp_path: Path) -> AsyncIterator[tuple[World, Cluster]]:
    with Cluster(tmp_path) as servers:
        async with World(tmp_path, servers, threads=THREADS) as world:
            yield world, servers


def server_of(key: str) -> int:
    """Which of the three primaries serves it at first."""
    return next(number for number, end in enumerate((5461, 10923, 16384)) if slot(key) < end)


async def primary_is_killed(world: World, servers: Cluster, number: int) -> float:
    """Seconds between the promotion and the moment at which every client has got a message written after it."""
    await asyncio.to_thread(servers.primaries[number].stop, SIGKILL)
    await eventually(lambda: servers.is_promoted(number))
    return await world.all_hear()


async def test_servers_that_hand_over_to_their_replicas_in_turn_lose_nothing(clustered, record_property):
    """As for maintenance. Before it, every client resumes: it reads the logs of its rooms, wherever they are."""
    world, servers = clustered
    rooms = {server_of(f"{world.stack.prefix}:{{hub.thread.{thread}}}") for thread in world.threads}
    assert rooms == {0, 1, 2}
    await asyncio.to_thread(world.start)
    await world.gather()
    async with world.traffic(before=2):
        for person in world.people:
            person.drop()
        world.bridges.pop(0).signal(SIGKILL)
        await world.all_are_present()
        for number, replica in enumerate(servers.replicas):
            replica.call("CLUSTER", "FAILOVER")
            await eventually(lambda number=number: servers.is_promoted(number))
            await asyncio.sleep(1)
    await world.nothing_happened(record_property)
    await world.presence_is_true()
    await world.part()


async def test_servers_that_die_lose_nothing_that_their_replicas_have(clustered, record_property):
    """Both have rooms as well; the third stays, because the addresses in REDIS_URL are those of the primaries."""
    world, servers = clustered
    holders = [server_of(world.stack.key(name)) for name in ("stream", "presence")]
    await asyncio.to_thread(world.start)
    await world.gather()
    for number in dict.fromkeys(holders):
        async with world.traffic():
            seconds = await primary_is_killed(world, servers, number)
        record_property("seconds until delivery", f"{seconds:.2f}")
        # What the replica had not got yet when the primary died can only be told.
        account = await world.nothing_was_hidden(record_property)
        assert account.misordered == 0, account
        await world.presence_is_true()
        world.forget()
    await world.part()
