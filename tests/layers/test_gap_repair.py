"""Holes in the live tail, a Redis that has lost its data, and what stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import deque
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import pytest
from redis.exceptions import RedisError

from realtime.layers import history, loop_layer
from realtime.layers.group import Group
from realtime.layers.listener import Listener
from realtime.layers.outlets import Queue
from realtime.protocol.publication import Publication, unpack
from realtime.redis.client import client, key
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.inprocess import PATIENCE, eventually
from tests.layers.support import (
    END,
    LOST,
    ROOM,
    Ears,
    Gap,
    Layers,
    members,
    message,
    publish,
    receive,
    silently,
    subscriptions,
)


async def test_room_without_news_while_the_subscription_was_lost_says_nothing(
    alone: Layers, server: EmbeddedRedis
):
    layer = alone.make()
    busy, quiet = await Ears.in_rooms(layer, ROOM), await Ears.in_rooms(layer, "hub.thread.quiet")
    with server.client() as redis:
        redis.client_kill_filter(_type="pubsub")
    await publish("hello")
    await busy.hear("hello")
    await publish("hello", group="hub.thread.quiet")
    await quiet.hear("hello")


async def test_hole_that_the_log_no_longer_fills_is_said(alone: Layers, server: EmbeddedRedis):
    layer = alone.make()
    ears = await Ears.in_rooms(layer, ROOM)
    other = await Ears.in_rooms(layer, "hub.thread.other")
    await publish("before")
    await ears.hear("before")
    with server.client() as redis:
        await silently("lost")
        redis.delete(f"{history.base(ROOM)}:log")
    await publish("not before the gap")
    await ears.hear("before", LOST)
    await publish("after")
    await ears.hear("before", LOST, "after")
    await other.hear()


@pytest.mark.parametrize("read", ["after", "ends"])
async def test_history_that_cannot_be_read_for_a_moment_is_read_again(
    alone: Layers, server: EmbeddedRedis, monkeypatch, read: str
):
    """A listener reads on from where it stands (`after`), a room that is restored compares its end (`ends`)."""
    layer = alone.make()
    ears = await Ears.in_rooms(layer, ROOM)
    await publish("1")
    await ears.hear("1")
    failures, original = [RedisError("away")] * 2, getattr(history, read)

    async def unreliable(*arguments: Any, **more: Any) -> Any:
        if failures:
            raise failures.pop()
        return await original(*arguments, **more)

    monkeypatch.setattr(history, read, unreliable)
    await silently("2")
    if read == "ends":
        with server.client() as redis:
            redis.client_kill_filter(_type="pubsub")
    else:
        await publish("3")
    await ears.hear("1", "2", *(["3"] if read == "after" else []))
    assert not failures


async def test_hole_larger_than_one_slice_is_filled_in_order_while_more_is_published(layer: Any):
    ears = await Ears.in_rooms(layer, ROOM)
    await silently(*range(350))
    await asyncio.gather(*(publish(f"later {n}") for n in range(50)))
    await eventually(lambda: len(ears.heard) >= 400)
    assert ears.heard[:350] == [str(n) for n in range(350)]
    assert sorted(ears.heard[350:]) == sorted(f"later {n}" for n in range(50))
    assert ears.positions == sorted(set(ears.positions))


async def test_redis_restarted_empty_is_said_in_every_room(alone: Layers, server: EmbeddedRedis):
    layer = alone.make()
    spoken, silent = await Ears.in_rooms(layer, ROOM), await Ears.in_rooms(layer, "hub.thread.silent")
    (member,) = await members(layer, 1, "group-that-is-no-room")
    await publish("before")
    await spoken.hear("before")
    server.stop(SIGKILL)
    server.start()
    await eventually(lambda: spoken.gaps and silent.gaps)
    await publish("after")
    await publish("after", group="hub.thread.silent")
    await spoken.hear("before", LOST, "after")
    await silent.hear(Gap("thread:silent", "lost"), "after")
    await layer.group_send("group-that-is-no-room", END)
    assert await receive(layer, member) == END


async def test_data_wiped_without_a_lost_connection_is_said_at_the_next_publication(
    alone: Layers, server: EmbeddedRedis
):
    layer = alone.make()
    ears = await Ears.in_rooms(layer, ROOM)
    await publish("before")
    await ears.hear("before")
    with server.client() as redis:
        redis.flushall()
    await publish("not before the gap")
    await eventually(lambda: ears.gaps)
    await publish("after")
    await ears.hear("before", LOST, "after")


async def test_data_wiped_without_a_lost_connection_is_said_in_a_room_where_nothing_is_published(
    alone: Layers, server: EmbeddedRedis, settings
):
    settings.REALTIME = {**settings.REALTIME, "NODE_LEASE": 0.8}
    layer = alone.make()
    ears = await Ears.in_rooms(layer, ROOM)
    await eventually(lambda: client().exists(key("epoch")))
    with server.client() as redis:
        redis.flushall()
    await ears.hear(LOST)
    await publish("after")
    await ears.hear(LOST, "after")


async def test_redis_that_takes_no_writes_for_a_while_is_compared_with_later(
    alone: Layers, server: EmbeddedRedis, caplog
):
    """A primary that has just taken over has no replica yet (`min-replicas-to-write`): no room is the reason."""
    ears = [await Ears.in_rooms(alone.make(), *groups) for groups in ([ROOM], [ROOM, "hub.thread.other"])]
    await silently("missed")
    with server.client() as redis:
        redis.config_set("min-replicas-to-write", 1)
        redis.client_kill_filter(_type="pubsub")
        await eventually(lambda: caplog.text.count("subscription restored") == len(ears))
        await asyncio.sleep(0.2)  # until they have asked
        redis.config_set("min-replicas-to-write", 0)
    for each in ears:
        await each.hear("missed")
    assert "room refused" not in caplog.text


async def test_room_whose_key_is_not_ours_is_refused_alone(alone: Layers):
    layer = alone.make()
    await client().set(f"{history.base('hub.thread.1')}:room", "another program's")
    entering = [Ears().enter(layer, f"hub.thread.{number}") for number in range(3)]
    first, refused, last = await asyncio.gather(*entering, return_exceptions=True)
    assert isinstance(refused, RedisError)
    for group, text in (("hub.thread.0", "a"), ("hub.thread.2", "b")):
        await publish(text, group=group)
    for ears, text in ((first, "a"), (last, "b")):
        assert isinstance(ears, Ears)
        ears.start()
        await ears.hear(text)
    with pytest.raises(RedisError):
        await Ears().enter(layer, "hub.thread.1")


async def test_join_without_redis_fails_and_succeeds_when_it_is_back(
    alone: Layers, server: EmbeddedRedis, monkeypatch
):
    layer = alone.make()
    await Ears.in_rooms(layer, ROOM)
    ears = Ears()
    server.stop(SIGKILL)
    with monkeypatch.context() as patch:
        patch.setattr(loop_layer, "JOIN_SECONDS", 0.1)
        with pytest.raises((RedisError, OSError)):
            await asyncio.wait_for(ears.enter(layer, "hub.thread.1"), PATIENCE)
    server.start()

    async def joins() -> bool:
        with contextlib.suppress(RedisError, OSError):
            await ears.enter(layer, "hub.thread.1")
            return True
        return False

    await eventually(joins)
    ears.start()
    await publish("hello", group="hub.thread.1")
    await eventually(lambda: "hello" in ears.heard)


async def test_join_that_fails_late_takes_nothing_from_one_that_came_after_it(
    alone: Layers, server: EmbeddedRedis, monkeypatch
):
    layer = alone.make()
    await Ears.in_rooms(layer, "hub.thread.other")
    assert server.process is not None
    server.process.send_signal(SIGSTOP)
    monkeypatch.setattr(loop_layer, "JOIN_SECONDS", 0.3)
    first = asyncio.create_task(Ears.in_rooms(layer, ROOM))
    await asyncio.sleep(0.1)
    first.cancel()
    monkeypatch.setattr(loop_layer, "JOIN_SECONDS", PATIENCE)
    second = asyncio.create_task(Ears.in_rooms(layer, ROOM))
    await asyncio.sleep(0.4)  # the first has given up
    server.process.send_signal(SIGCONT)
    ears = await second
    await publish("1")
    await ears.hear("1")


async def test_send_without_redis_raises(alone: Layers, server: EmbeddedRedis):
    layer = alone.make()
    await layer.group_send("group", message())
    server.stop(SIGKILL)
    with pytest.raises(RedisError):
        await layer.group_send("group", message())
    server.start()
    await layer.group_send("group", message())


async def test_what_is_not_understood_is_left_out(layer: Any, caplog):
    ears = await Ears.in_rooms(layer, ROOM)
    for garbage in (b"", b"F", b"F" + b"x" * 50, b"M", b"M\xc1", b"E", b"?", b"F1"):
        await client().publish(history.channel(ROOM), garbage)
    instance = (await layer.new_channel()).partition("!")[0].rpartition(".")[2]
    for garbage in (b"S\xc1", b"S\x01", b"S\x92\x90\x80"):  # nothing, a number, a list for a channel
        await client().publish(key("process", instance), garbage)
    await layer.group_send(ROOM, END)
    await publish("hello")
    await ears.hear(END, "hello")
    assert "message not understood" in caplog.text
    assert "subscription lost" not in caplog.text


async def test_mistake_of_ours_does_not_end_the_subscription(layer: Any, monkeypatch, caplog):
    ears = await Ears.in_rooms(layer, ROOM)
    mistakes = iter([True])

    def unpack_or_fail(payload: bytes) -> Publication:
        if next(mistakes, False):
            raise RuntimeError("a mistake")
        return unpack(payload)

    monkeypatch.setattr(loop_layer, "unpack", unpack_or_fail)
    await publish("hello")
    await ears.hear("hello")
    assert "redis connection failed" in caplog.text


async def test_thousand_channels_that_came_and_went_leave_nothing_behind(
    alone: Layers, server: EmbeddedRedis
):
    layer = alone.make()
    stays = await Ears.in_rooms(layer, ROOM)
    kinds = (Group, Listener, Queue, Ears, asyncio.Future, asyncio.Task, set, deque)

    async def come_and_go(n: int) -> None:
        if n % 2:
            ears = await Ears.in_rooms(layer, ROOM, f"hub.user.{n}")
            ears.leave(layer)
        else:
            channel = await layer.new_channel()
            receiving = asyncio.create_task(layer.receive(channel))
            await layer.group_add(ROOM, channel)
            await layer.group_add(f"hub.user.{n}", channel)
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    def kept() -> list[int]:
        """Objects of each kind. (Weak references to them would be kept by what leaks, too.)"""
        gc.collect()
        everything = gc.get_objects()
        return [sum(type(each) is kind for each in everything) for kind in kinds]

    await come_and_go(0)
    await eventually(lambda: subscriptions(server) == [3])
    before, tasks = kept(), len(asyncio.all_tasks())
    for start in range(0, 1000, 100):
        await asyncio.gather(*(come_and_go(n) for n in range(start, start + 100)))
    await eventually(lambda: subscriptions(server) == [3])
    await publish("hello")
    await stays.hear("hello")
    await eventually(lambda: all(now <= then + 50 for now, then in zip(kept(), before, strict=True)))
    assert len(asyncio.all_tasks()) <= tasks


async def test_flushed_layer_leaves_no_task_and_no_connection(alone: Layers, server: EmbeddedRedis):
    before = asyncio.all_tasks()
    layer = alone.make()
    await Ears.in_rooms(layer, ROOM)
    await members(layer, 10, "group")
    await layer.group_send("group", message())
    await layer.flush()
    assert {task for task in asyncio.all_tasks() - before if not task.done()} == set()
    await eventually(lambda: subscriptions(server) == [])
