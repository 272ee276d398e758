"""Outlets, listeners and queues of the room layer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from channels.exceptions import ChannelFull

from realtime.layers import fanout, history
from realtime.layers.fanout import SLICE
from realtime.layers.listener import State
from tests.inprocess import PATIENCE, eventually
from tests.layers.support import (
    END,
    ROOM,
    Broken,
    Ears,
    Layers,
    draft,
    keep_publishing,
    members,
    message,
    publish,
    receive,
    receive_several,
    said,
    silently,
)


async def test_outlet_is_called_with_messages_and_publications(layer: Any):
    ears = await Ears.in_rooms(layer, ROOM)
    await layer.group_send(ROOM, message(1))
    await ears.hear(message(1))
    await layer.send(ears.channel, message(2))  # does not go through Redis: it would overtake the first
    await publish("hello", "again")
    await ears.hear(message(1), message(2), "hello", "again")


async def test_no_task_is_woken_for_an_outlet(layer: Any):
    all_ears = [await Ears.in_rooms(layer, ROOM) for _ in range(100)]
    before = len(asyncio.all_tasks())
    await publish(*range(10))
    await eventually(lambda: all(len(ears.heard) == 10 for ears in all_ears))
    assert len(asyncio.all_tasks()) <= before + 1  # Redis' own


async def test_channel_with_an_outlet_is_not_received_from(layer: Any):
    ears = await Ears.in_rooms(layer, ROOM)
    with pytest.raises(RuntimeError):
        await layer.receive(ears.channel)


async def test_outlet_that_left_and_was_detached_hears_nothing_more(layer: Any):
    gone, stays = await Ears.in_rooms(layer, ROOM), await Ears.in_rooms(layer, ROOM)
    gone.leave(layer)
    await publish("hello")
    await layer.group_send(ROOM, message())
    await layer.send(gone.channel, message())
    await stays.hear("hello", message())
    await gone.hear()


async def test_outlet_that_fails_is_not_the_others_problem(layer: Any, caplog):
    before, broken, after = [await kind.in_rooms(layer, ROOM) for kind in (Ears, Broken, Ears)]
    broken.failures = 1000
    await publish("hello")
    await layer.group_send(ROOM, message())
    for ears in (before, after):
        await ears.hear("hello", message())
    assert "delivery failed" in caplog.text


async def test_outlet_that_failed_once_gets_what_it_lacks_with_the_next_publication(layer: Any, caplog):
    broken = await Broken.in_rooms(layer, ROOM)
    await publish("hello")
    await eventually(lambda: not broken.failures)  # else both may come together
    await publish("again")
    await broken.hear("hello", "again")
    assert "delivery failed" in caplog.text


async def test_outlet_that_fails_also_at_catching_up_is_closed_so_that_its_client_comes_back(layer: Any):
    broken = await Broken.in_rooms(layer, ROOM)
    broken.failures = 2
    await publish("hello")
    await publish("again")
    await eventually(lambda: broken.has_failed)


async def test_paused_listener_gets_nothing_and_once_started_everything_above_its_position(layer: Any):
    ears, others = await Ears().enter(layer, ROOM), await Ears.in_rooms(layer, ROOM)
    await publish("while", "paused")
    await others.hear("while", "paused")
    await layer.emit([ROOM], said("typing"))
    await others.hear("while", "paused", "typing")
    await layer.group_send(ROOM, message())  # what is not the room's comes all the same
    await ears.hear(message())
    ears.start()
    await publish("after")
    await ears.hear(message(), "while", "paused", "after")


async def test_listener_paused_in_the_middle_gets_the_rest_once_started_again(layer: Any):
    ears = await Ears.in_rooms(layer, ROOM)
    await publish("before")
    await ears.hear("before")
    (listener,) = ears.listeners
    listener.pause()
    await publish("while paused")
    await eventually(lambda: listener.group.tail > listener.position)
    await ears.hear("before")
    listener.start()
    await ears.hear("before", "while paused")


async def test_listener_that_stood_somewhere_else_goes_on_from_there(layer: Any):
    first = await Ears.in_rooms(layer, ROOM)
    await publish("1", "2", "3")
    await first.hear("1", "2", "3")
    second = await Ears().enter(layer, ROOM)
    assert await layer.missed(second.listeners[0], str(first.positions[0])) == 2
    second.start()
    await publish("4")
    await second.hear("2", "3", "4")


async def test_closed_listener_is_never_started_again(layer: Any):
    ears = await Ears.in_rooms(layer, ROOM)
    (listener,) = ears.listeners
    listener.close()
    listener.pause()
    listener.start()
    others = await Ears.in_rooms(layer, ROOM)
    await publish("hello")
    await others.hear("hello")
    await ears.hear()


async def test_who_listens_gets_exactly_what_comes_after_the_position_it_was_told(layer: Any):
    """While others publish at full speed."""
    publishing = asyncio.create_task(keep_publishing(300))
    joined: list[tuple[Ears, int]] = []
    while not publishing.done():
        ears = await Ears().enter(layer, ROOM)
        joined.append((ears, ears.listeners[0].position))
        await asyncio.sleep(0.001 * (len(joined) % 3))
        ears.start()
    positions = await publishing
    assert len(joined) > 5
    for ears, position in joined:
        expected = [p for p in positions if p > position]
        await eventually(lambda ears=ears, expected=expected: len(ears.positions) >= len(expected))
        assert ears.positions == expected


async def test_publication_that_leaves_a_connection_out_is_not_written_to_it(layer: Any):
    me, other = await Ears("m" * 32).enter(layer, ROOM), await Ears("o" * 32).enter(layer, ROOM)
    for ears in (me, other):
        ears.start()
    await history.append([draft("a", exclude="m" * 32), draft("b")])
    await publish("c")
    await me.hear("b", "c")
    await other.hear("a", "b", "c")


async def test_publication_that_leaves_a_connection_out_is_not_replayed_to_it_either(layer: Any):
    me = await Ears("m" * 32).enter(layer, ROOM)
    await history.append([draft("a", exclude="m" * 32)])
    await publish("b")
    (listener,) = me.listeners
    await eventually(lambda: listener.group.tail > listener.position)
    me.start()
    await me.hear("b")


async def test_publications_are_for_listeners_alone(layer: Any):
    (channel,) = await members(layer, 1, ROOM)
    ears = await Ears.in_rooms(layer, ROOM)
    await publish("hello")
    await ears.hear("hello")
    await layer.group_send(ROOM, END)
    assert await receive(layer, channel) == END


async def test_queue_that_overflows_says_so_and_goes_on_once_it_was_read(layers: Layers):
    layer = layers.make(capacity=3)
    slow, quick = await members(layer, 2, ROOM)
    for n in range(10):
        await layer.group_send(ROOM, message(n))
        await receive(layer, quick)
    assert await receive_several(layer, slow, 3) == [0, 1, 2]
    assert await receive(layer, slow) == {"type": "channel.overflow"}
    await layer.group_send(ROOM, END)
    assert await receive(layer, slow) == END


async def test_messages_beyond_what_may_wait_for_a_fan_out_are_dropped_and_that_is_told(
    layer: Any, monkeypatch, caplog
):
    monkeypatch.setattr(fanout, "WAITING_BYTES", 20_000)
    channels = await members(layer, 2 * SLICE, "group")
    ears = await Ears.in_rooms(layer, ROOM)
    for _ in range(3):
        await asyncio.gather(*(layer.group_send("group", message("x" * 1000)) for _ in range(100)))
    await layer.group_send("group", END)
    for channel in (channels[0], channels[-1]):
        got = [await receive(layer, channel)]
        while got[-1] != END:
            got.append(await receive(layer, channel))
        assert {"type": "channel.overflow"} in got
        assert len(got) < 300
    assert "messages dropped" in caplog.text
    await publish("hello")
    await ears.hear("hello")


async def test_channel_that_is_received_from_twice_at_once_gives_each_message_to_one_of_the_two(
    layers: Layers,
):
    layer = layers.make()
    channel = await layer.new_channel()
    receiving = [asyncio.create_task(layer.receive(channel)) for _ in range(3)]
    await asyncio.sleep(0)
    receiving.pop().cancel()
    for n in range(2):
        await layer.send(channel, message(n))
    got = [await asyncio.wait_for(task, PATIENCE) for task in receiving]
    assert sorted(got, key=str) == [message(0), message(1)]
    receiving = [asyncio.create_task(layer.receive(channel)) for _ in range(2)]
    await asyncio.sleep(0)
    await layer.send(channel, message(2))
    receiving[0].cancel()  # it was told, and has not taken it
    assert await asyncio.wait_for(receiving[1], PATIENCE) == message(2)


async def test_messages_that_were_not_received_in_time_expire_and_take_no_room(layers: Layers):
    layer = layers.make(expiry=1, capacity=2)
    (channel,) = await members(layer, 1, "group")
    for n in range(3):
        await layer.group_send("group", message(n))  # the last of them makes it overflow
    with pytest.raises(ChannelFull):
        await layer.send(channel, message())
    await asyncio.sleep(1.1)
    await layer.send(channel, message("new"))
    await layer.group_send("group", END)
    assert await receive_several(layer, channel, 2) == ["new", "end"]


async def test_channel_of_another_process_is_not_received_from_nor_added(layers: Layers):
    here, there = layers.make(), layers.make()
    channel = await there.new_channel()
    with pytest.raises(RuntimeError):
        await here.receive(channel)
    with pytest.raises(RuntimeError):
        await here.group_add("group", channel)


async def test_replay_is_reported_until_the_listener_is_live(layer: Any):
    first = await Ears.in_rooms(layer, ROOM)
    await publish("1", "2")
    await first.hear("1", "2")
    ears, replayed = await Ears().enter(layer, ROOM), []
    (listener,) = ears.listeners
    await layer.missed(listener, str(first.positions[0]))
    listener.on_replay = replayed.append
    ears.start()
    await ears.hear("2")
    await eventually(lambda: listener.state is State.LIVE)
    await silently("3")
    await publish("4")
    await ears.hear("2", "3", "4")  # the third was missed, and not asked for
    assert len(replayed) == 1
