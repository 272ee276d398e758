"""What groups ask of Redis."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from typing import Any

import pytest
from redis.exceptions import RedisError

from realtime.layers.history_reader import HistoryReader
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.inprocess import PATIENCE, eventually
from tests.layers.support import (
    ROOM,
    Ears,
    Layers,
    calls,
    members,
    message,
    receive,
    receive_several,
    subscriptions,
)


async def test_group_costs_one_subscription_however_many_are_in_it(alone: Layers, server: EmbeddedRedis):
    layer = alone.make()
    await members(layer, 300, "hub.thread.1", "hub.thread.2")
    assert subscriptions(server) == [4]  # and the process's own channel, and that of all processes


async def test_channels_alone_cost_nothing(alone: Layers, server: EmbeddedRedis):
    layer = alone.make()
    for _ in range(300):
        await layer.new_channel()
    assert subscriptions(server) == [2]
    assert calls(server, "subscribe") == 1


async def test_groups_joined_at_once_are_subscribed_to_at_once(alone: Layers, server: EmbeddedRedis):
    layer = alone.make()
    channel = await layer.new_channel()
    before = calls(server, "subscribe"), calls(server, "evalsha")
    await asyncio.gather(*(layer.group_add(f"hub.user.{n}", channel) for n in range(500)))
    assert subscriptions(server) == [502]
    assert calls(server, "subscribe") - before[0] == 1
    assert calls(server, "evalsha") - before[1] <= 2


async def test_last_member_that_leaves_ends_the_subscription(alone: Layers, server: EmbeddedRedis):
    layer = alone.make()
    one, other = await members(layer, 2, "hub.thread.1", "hub.thread.2")
    await layer.group_discard("hub.thread.1", one)
    await layer.group_discard("hub.thread.2", one)
    await layer.group_discard("hub.thread.2", other)
    await eventually(lambda: subscriptions(server) == [3])


async def test_messages_published_at_once_travel_together(alone: Layers, server: EmbeddedRedis):
    layer = alone.make()
    (channel,) = await members(layer, 1, "group")

    def reads() -> int:
        with server.client() as redis:
            statistics: Any = redis.info("stats")
            return statistics["total_reads_processed"]

    before = reads()
    await asyncio.gather(*(layer.group_send("group", message(n)) for n in range(500)))
    assert reads() - before < 50
    assert await receive_several(layer, channel, 500) == list(range(500))


@pytest.mark.parametrize("turns", range(6))
async def test_channel_that_leaves_before_redis_has_confirmed_does_not_hold_up_one_that_joined_with_it(
    alone: Layers, server: EmbeddedRedis, turns: int
):
    layer = alone.make()
    leaves, stays = await layer.new_channel(), await layer.new_channel()
    joining = [
        asyncio.create_task(layer.group_add("hub.thread.1", leaves)),
        asyncio.create_task(layer.group_add("hub.thread.2", stays)),
    ]
    for _ in range(turns + 1):
        await asyncio.sleep(0)
    layer.detach(leaves)
    await asyncio.wait_for(asyncio.gather(*joining), PATIENCE)
    await layer.group_send("hub.thread.2", message())
    assert await receive(layer, stays) == message()
    await eventually(lambda: subscriptions(server) == [3])


@pytest.mark.parametrize("turns", range(6))
async def test_group_left_and_joined_again_in_any_moment_is_joined(layer: Any, turns: int):
    channel = await layer.new_channel()
    for n in range(20):
        joining = asyncio.create_task(layer.group_add("hub.thread.1", channel))
        for _ in range(turns):
            await asyncio.sleep(0)
        await layer.group_discard("hub.thread.1", channel)
        await layer.group_add("hub.thread.1", channel)
        await layer.group_send("hub.thread.1", message(n))
        assert await receive(layer, channel) == message(n)
        await asyncio.wait_for(joining, PATIENCE)


async def test_room_that_could_not_be_entered_does_not_keep_connections(layer: Any, monkeypatch):
    """In an outage they are all that try. (One is kept by the traceback of the last failure.)"""

    async def fail(self: HistoryReader, groups: Any) -> Any:
        raise RedisError("away")

    async def try_to_enter() -> weakref.ref[Ears]:
        ears = Ears()
        with contextlib.suppress(RedisError):
            await ears.enter(layer, ROOM)
        layer.detach(ears.channel)
        return weakref.ref(ears)

    monkeypatch.setattr(HistoryReader, "learn_ends", fail)
    kept = await asyncio.gather(*(try_to_enter() for _ in range(5)))
    gc.collect()
    assert len([ears for ears in kept if ears() is not None]) <= 1
