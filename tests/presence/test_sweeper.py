from __future__ import annotations

import asyncio
from itertools import chain, repeat
from unittest.mock import DEFAULT, AsyncMock

import pytest
from redis.exceptions import RedisError

from presence import store
from presence.sweeper import Sweeper
from tests.inprocess import PATIENCE, eventually

from .world import World

pytestmark = pytest.mark.usefixtures("process")


@pytest.fixture
def brief(settings) -> None:
    """Periods that a test can wait for."""
    settings.REALTIME = {**settings.REALTIME, "GRACE_PERIOD": 0.1, "AWAY_AFTER": 0.1, "NODE_LEASE": 0.1}


async def test_several_sweepers_announce_a_change_once(world: World):
    world.connect()
    world.disconnect()
    world.transitions()
    world.pass_deadline("grace")
    await asyncio.gather(*(Sweeper().sweep() for _ in range(10)))
    assert world.news() == [("online", "offline", "grace")]


async def test_running_sweeper_takes_a_user_from_online_to_offline(world: World, brief: None):
    world.connect()
    sweeping = asyncio.create_task(Sweeper().run())
    await eventually(lambda: world.status() is None)
    sweeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sweeping
    *_, (_, to, reason) = world.news()
    assert (to, reason) == ("offline", "lease")


async def test_sweeper_outlives_an_outage_of_redis(world: World, brief: None, monkeypatch, caplog):
    outages = chain([RedisError("gone"), RedisError("still gone")], repeat(DEFAULT))
    monkeypatch.setattr(store, "apply", AsyncMock(wraps=store.apply, side_effect=outages))
    world.connect()
    world.pass_deadline("away")
    sweeping = asyncio.create_task(Sweeper().run())
    await eventually(lambda: world.status() != "online")
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)
    assert caplog.text.count("sweep failed") == 2


async def test_sweeper_ends_even_if_the_cancellation_was_swallowed(monkeypatch):
    """Python 3.11's `asyncio.wait_for`, with which redis-py sends, can do that."""
    asked = asyncio.Event()

    async def swallow(*args, **kwargs):
        asked.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "", ["0"]

    monkeypatch.setattr(store, "apply", swallow)
    sweeping = asyncio.create_task(Sweeper().run())
    await asked.wait()
    sweeping.cancel()
    await asyncio.wait_for(asyncio.gather(sweeping, return_exceptions=True), PATIENCE)
