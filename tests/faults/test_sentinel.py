"""The primary dies under traffic, and Sentinel promotes the replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL

import pytest

from tests.e2e.harness import eventually
from tests.faults.world import World
from tests.servers import Watched


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[tuple[World, Watched]]:
    with Watched(tmp_path) as servers:
        async with World(tmp_path, servers) as world:
            yield world, servers


async def primary_is_killed(world: World, servers: Watched) -> float:
    """Seconds between the promotion and the moment at which every client has got a message written after it."""
    await asyncio.to_thread(servers.primary.stop, SIGKILL)
    await eventually(lambda: servers.is_promoted)
    return await world.all_hear()


async def test_fail_over_loses_and_doubles_nothing_that_the_replica_has(watched, record_property):
    world, servers = watched
    await asyncio.to_thread(world.start)
    await world.gather()
    async with world.traffic():
        seconds = await primary_is_killed(world, servers)
    record_property("seconds until delivery", f"{seconds:.2f}")
    # What the replica had not got yet when the primary died can only be told.
    account = await world.nothing_was_hidden(record_property)
    assert account.misordered == 0, account
    await world.presence_is_true()
    await world.part()


async def test_what_the_replica_never_got_is_said(watched, record_property):
    """The replica was cut off before the primary died: what was written in between is gone."""
    world, servers = watched
    await asyncio.to_thread(world.start)
    await world.gather()
    async with world.traffic():
        servers.cut_off_the_replica()
        # Of one who goes and one who comes now only the old primary knew.
        await world.people.pop().leave()
        await world.gather(count=1)
        # Now each client has a message that the replica never gets.
        await world.all_hear()
        await primary_is_killed(world, servers)
    newcomer = world.people.pop()
    account = await world.nothing_was_hidden(record_property)
    assert account.gaps > 0, account
    world.people.append(newcomer)
    assert world.flaps() == []
    await world.presence_is_true()
    await world.part()
