"""Ephemeral events, and what may be on its way to Redis."""

from __future__ import annotations

import asyncio
import contextlib
from signal import SIGCONT, SIGKILL, SIGSTOP
from types import SimpleNamespace
from typing import Any

import pytest
from channels.exceptions import ChannelFull
from redis.exceptions import RedisError

from realtime.layers import fanout, loop_layer
from realtime.layers.outlets import Ephemeral
from realtime.redis import pipelining
from realtime.redis.pipelining import Pipes
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.inprocess import eventually
from tests.layers.support import END, ROOM, Ears, Gap, Layers, message, published, said, subscriptions


@pytest.mark.parametrize(("size", "outbox"), [(0, 10 * pipelining.COMMAND_BYTES), (100_000, 1_000_000)])
async def test_outbox_that_is_full_refuses_and_takes_more_once_redis_has_answered(
    layers: Layers, layer: Any, monkeypatch, size: int, outbox: int
):
    """However many messages there are, and however large."""
    monkeypatch.setattr(loop_layer, "OUTBOX", outbox)
    large = message("x" * size)
    for _ in range(2):
        answers = await asyncio.gather(
            *(layer.group_send("group", large) for _ in range(20)), return_exceptions=True
        )
        taken = answers.count(None)
        assert 5 < taken <= 10
        assert [type(answer) for answer in answers] == [type(None)] * taken + [ChannelFull] * (20 - taken)
    large_event = Ephemeral("thread:42", b"x" * outbox, "c" * 32)
    for each in (layer, layers.make()):  # which is not alone from here on
        await Ears.in_rooms(each, ROOM)
    await layer.emit([ROOM], large_event)
    with pytest.raises(RedisError):
        await layer.emit([ROOM], large_event)


async def test_emitted_message_reaches_every_process_once(layers: Layers):
    here, there = layers.make(), layers.make()
    near, far = await Ears.in_rooms(here, ROOM), await Ears.in_rooms(there, ROOM)
    for n in range(20):
        await here.emit([ROOM], said(n))
    await here.group_send(ROOM, END)
    expected = [str(n) for n in range(20)] + [END]
    await near.hear(*expected)
    await far.hear(*expected)


async def test_emitted_message_is_not_for_its_sender_nor_for_listeners_that_are_behind_or_paused(
    layers: Layers,
):
    class Behind(Ears):
        is_behind = True

    here, there = layers.make(), layers.make()
    sender, paused = await Ears("c" * 32).enter(there, ROOM), await Ears().enter(there, ROOM)
    sender.start()
    behind, other = await Behind.in_rooms(there, ROOM), await Ears.in_rooms(there, ROOM)
    await here.emit([ROOM], said("hello"))
    await here.group_send(ROOM, END)
    await other.hear("hello", END)
    for ears in (sender, paused, behind):
        await ears.hear(END)


async def test_emitted_message_is_counted_once_a_connection(layer: Any, monkeypatch):
    counted: list[int] = []
    rooms = ["hub.thread.42", "portal.thread.42"]
    all_ears = [await Ears.in_rooms(layer, room) for room in rooms for _ in range(3)]
    tally = SimpleNamespace(sent=lambda kind, frame, connections: counted.append(connections))
    monkeypatch.setattr(fanout, "tally", tally)
    await layer.emit(rooms, said("hello"))
    for ears in all_ears:
        await ears.hear("hello")
    assert counted == [3, 3]


async def test_emitted_message_reaches_local_members_before_redis_has_it(
    alone: Layers, server: EmbeddedRedis
):
    layer = alone.make()
    ears = await Ears.in_rooms(layer, ROOM)
    assert server.process is not None
    server.process.send_signal(SIGSTOP)
    try:
        await layer.emit([ROOM], said("hello"))
        await ears.hear("hello")
    finally:
        server.process.send_signal(SIGCONT)
    await layer.group_send(ROOM, END)
    await ears.hear("hello", END)


async def until_alone(layer: Any, server: EmbeddedRedis) -> None:
    """Wait until the layer publishes nothing of what it emits."""

    async def is_alone() -> bool:
        before = published(server)
        await layer.emit([ROOM], said("are you there?"))
        await layer.group_send("group", message())  # its answer comes after that of the former
        return published(server) == before + 1

    await eventually(is_alone)


async def test_instance_that_is_alone_keeps_what_it_emits_to_itself(alone: Layers, server: EmbeddedRedis):
    layer = alone.make()
    ears = await Ears.in_rooms(layer, ROOM)
    await until_alone(layer, server)
    ears.heard.clear()
    before = published(server)
    await layer.emit([ROOM], said("hello"))
    await ears.hear("hello")
    assert published(server) == before


async def test_instance_is_not_alone_from_the_moment_another_one_is_there(
    alone: Layers, server: EmbeddedRedis, settings
):
    settings.REALTIME = {**settings.REALTIME, "NODE_LEASE": 0.8}
    layer, other = alone.make(), alone.make()
    await Ears.in_rooms(layer, ROOM)
    await until_alone(layer, server)
    ears = await Ears.in_rooms(other, ROOM)
    await layer.emit([ROOM], said("hello"))
    await ears.hear("hello")
    await other.flush()
    await until_alone(layer, server)


async def test_instance_whose_subscription_is_back_is_not_overlooked(
    alone: Layers, server: EmbeddedRedis, monkeypatch
):
    """The check of an instance may fall into the time in which another one has lost its subscription."""
    layer, other = alone.make(), alone.make()
    ears = await Ears.in_rooms(other, ROOM)
    listeners = Pipes.listeners

    async def misses_the_other(pipes: Pipes, channel: bytes) -> int:
        return min(await listeners(pipes, channel), 1)

    with monkeypatch.context() as patch:
        patch.setattr(Pipes, "listeners", misses_the_other)
        await Ears.in_rooms(layer, ROOM)
        await until_alone(layer, server)
    with server.client() as redis:
        redis.client_kill_filter(_type="pubsub")  # the other introduces itself again
    await eventually(lambda: subscriptions(server) == [3, 3])

    async def is_reached() -> bool:
        with contextlib.suppress(RedisError):  # its own subscription is not back yet
            await layer.emit([ROOM], said("hello"))
        return "hello" in ears.heard

    await eventually(is_reached)


async def test_emitted_message_reaches_local_members_without_redis(alone: Layers, server: EmbeddedRedis):
    layer = alone.make()
    ears = await Ears.in_rooms(layer, ROOM)
    server.stop(SIGKILL)
    told = 0

    async def is_noticed() -> bool:
        nonlocal told
        told += 1
        try:
            await layer.emit([ROOM], said("hello"))
        except RedisError:
            return True
        return False

    await eventually(is_noticed)
    server.start()
    await eventually(lambda: subscriptions(server) == [3])
    await layer.group_send(ROOM, END)
    await eventually(lambda: END in ears.heard)
    heard = [heard for heard in ears.heard if not isinstance(heard, Gap)]
    assert heard == [*["hello"] * told, END]
