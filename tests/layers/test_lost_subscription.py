"""Connections that are lost, and what their instance missed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from redis.exceptions import RedisError

from realtime.layers import history
from realtime.protocol.publication import Unrecoverable
from realtime.redis import connection, pipelining
from realtime.redis.client import client
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.inprocess import eventually
from tests.layers.support import (
    END,
    ROOM,
    Ears,
    Layers,
    Proxy,
    calls,
    keep_publishing,
    members,
    message,
    publish,
    receive,
)


async def test_what_comes_while_a_gap_is_found_out_is_not_forgotten(layer: Any, monkeypatch):
    """The log's end is asked for over one connection, what is published meanwhile comes over another."""
    ears = await Ears.in_rooms(layer, ROOM)
    await publish("first")
    await ears.hear("first")
    after, (listener,) = history.after, ears.listeners

    async def slow(*args: Any, **more: Any) -> Any:
        try:
            return await after(*args, **more)
        except Unrecoverable:
            monkeypatch.setattr(history, "after", after)
            tail = listener.group.tail
            await publish("meanwhile")
            await eventually(lambda: listener.group.tail > tail)
            raise

    monkeypatch.setattr(history, "after", slow)
    await client().delete(f"{history.base(ROOM)}:room", f"{history.base(ROOM)}:log")
    await publish("lost")
    await eventually(lambda: ears.heard[-1] == "meanwhile")
    assert len(ears.gaps) == 1


async def test_message_whose_connection_was_lost_is_not_sent_twice(alone: Layers, server: EmbeddedRedis):
    layer, sender = alone.make(), alone.make()
    (channel,) = await members(layer, 1, "group")

    async def send() -> int:
        failed = 0
        for n in range(400):
            with contextlib.suppress(RedisError):
                await sender.group_send("group", message(n))
                continue
            failed += 1
        return failed

    sending = asyncio.create_task(send())
    with server.client() as redis:
        while not sending.done():
            redis.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.005)
    failed = await sending
    await sender.group_send("group", END)
    heard = []
    while (got := await receive(layer, channel)) != END:
        heard.append(got["n"])
    assert heard == sorted(set(heard))
    assert len(heard) >= 400 - failed


async def test_subscription_that_died_in_silence_is_noticed_and_what_it_missed_is_fetched(
    behind: Layers, proxy: Proxy, caplog
):
    layer = behind.make()
    ears = await Ears.in_rooms(layer, ROOM)
    await publish("before")
    await ears.hear("before")
    assert proxy.go_deaf() == 1
    await publish("while deaf", "and more")
    await ears.hear("before", "while deaf", "and more")
    await publish("after")
    await ears.hear("before", "while deaf", "and more", "after")
    assert "redis does not answer" in caplog.text
    assert not ears.gaps


async def test_connection_that_is_accepted_and_never_answered_does_not_end_the_attempts(
    behind: Layers, proxy: Proxy, monkeypatch
):
    monkeypatch.setattr(connection, "TIMEOUT", 0.3)
    layer = behind.make()
    ears = await Ears.in_rooms(layer, ROOM)
    await layer.group_send("group", message())
    await publish("before")
    proxy.swallows_connections = True
    accepted = proxy.accepted
    proxy.go_deaf()
    await eventually(lambda: proxy.accepted > accepted + 1)
    proxy.swallows_connections = False
    await publish("after")
    await ears.hear("before", "after")


async def test_pipe_that_is_closed_while_it_connects_leaves_no_connection(process: str, monkeypatch):
    open_connection, opened = asyncio.open_unix_connection, []

    async def noted(*arguments: Any, **options: Any) -> Any:
        opened.append(await open_connection(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(asyncio, "open_unix_connection", noted)
    for turns in range(60):
        closed = pipelining.Pipe()
        answer = closed.send("PING")
        for _ in range(turns):
            await asyncio.sleep(0)
        closed.close()
        with contextlib.suppress(RedisError):  # it may have been answered
            await answer
        await eventually(lambda: all(writer.is_closing() for _, writer in opened))
    assert opened


async def test_subscription_that_is_merely_quiet_is_left_alone(
    behind: Layers, proxy: Proxy, server: EmbeddedRedis, caplog
):
    layer = behind.make()
    await Ears.in_rooms(layer, ROOM)
    accepted, asked = proxy.accepted, calls(server, "ping")
    await eventually(lambda: calls(server, "ping") >= asked + 4)
    assert proxy.accepted == accepted
    assert "subscription" not in caplog.text


@pytest.mark.parametrize("at_once", [1, 7])
async def test_subscription_killed_again_and_again_loses_nothing_and_repeats_nothing(
    alone: Layers, server: EmbeddedRedis, at_once: int
):
    layer = alone.make()
    rooms = [f"hub.thread.{n}" for n in range(3)]
    all_ears = {room: [await Ears.in_rooms(layer, room) for _ in range(3)] for room in rooms}
    publishing = [asyncio.create_task(keep_publishing(420, group=room, at_once=at_once)) for room in rooms]
    kills = 0
    with server.client() as redis:
        while not all(task.done() for task in publishing):
            kills += redis.client_kill_filter(_type="pubsub")
            await asyncio.sleep(0.02)
    assert kills
    for room, task in zip(rooms, publishing, strict=True):
        positions = await task
        for ears in all_ears[room]:
            await eventually(lambda ears=ears: len(ears.heard) >= 420)
            assert ears.heard == [str(n) for n in range(420)]
            assert ears.positions == positions


async def test_instance_does_not_take_its_own_channels_for_dead_ones(alone: Layers, server: EmbeddedRedis):
    layer, other = alone.make(), alone.make()
    ended, living, foreign = (
        await layer.attach(Ears()),
        await layer.attach(Ears()),
        await other.attach(Ears()),
    )
    layer.detach(ended)
    assert await layer.dead([ended, living, foreign]) == {ended}
    with server.client() as redis:
        redis.client_kill_filter(_type="pubsub")
    assert living not in await layer.dead([ended, living, foreign])
