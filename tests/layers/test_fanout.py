"""Fan-out to large rooms, and catching up together."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from typing import Any

import pytest

from realtime.layers import fanout, history
from realtime.layers import group as groups
from realtime.layers.fanout import SLICE
from realtime.layers.listener import State
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.inprocess import PATIENCE, eventually
from tests.layers.support import (
    END,
    ROOM,
    Clock,
    Ears,
    Layers,
    Slow,
    crowd,
    draft,
    keep_publishing,
    noted_reads,
    publish,
    said,
    silently,
    turns_until,
)


async def test_large_room_is_served_in_slices_so_that_the_loop_has_time_for_others(layer: Any):
    all_ears = await crowd(layer, ROOM, 5)
    for send in (
        lambda: publish("hello"),
        lambda: layer.group_send(ROOM, END),
        lambda: layer.emit([ROOM], said("end")),
    ):
        for each in all_ears:
            each.served.clear()
        sending = asyncio.create_task(send())
        await turns_until(lambda: all(each.served for each in all_ears))
        await sending
        served = [turn for each in all_ears for turn in each.served]
        assert len(served) == len(all_ears)
        assert max(served.count(turn) for turn in set(served)) <= SLICE


async def test_large_rooms_take_turns(layer: Any):
    rooms = ["hub.thread.1", "hub.thread.2"]
    one, other = [await crowd(layer, room, 6) for room in rooms]
    await history.append([draft(n, room) for n in range(3) for room in rooms])
    await turns_until(lambda: all(len(each.heard) == 3 for each in (*one, *other)))
    served = [sorted(turn for each in room for turn in each.served) for room in (one, other)]
    for turn in sorted({*served[0], *served[1]}):
        so_far = [bisect_right(turns, turn) for turns in served]
        assert abs(so_far[0] - so_far[1]) <= 3 * SLICE  # three publications that came together


async def test_small_room_is_served_in_the_turn_in_which_its_publication_comes(layer: Any):
    """Whatever waits for a large one."""
    large = await crowd(layer, "hub.thread.1", 10)
    small = await Clock.in_rooms(layer, ROOM)
    await history.append([*[draft(n, "hub.thread.1") for n in range(20)], draft("small")])
    await turns_until(lambda: bool(small.served))
    assert sum(bool(each.served) for each in large) <= SLICE
    await turns_until(lambda: all(len(each.heard) == 20 for each in large))


def test_group_has_a_queue_of_its_own_only_while_something_waits():
    one, other = (groups.Group(name, lambda _, position: asyncio.sleep(0)) for name in (ROOM, "hub.thread.2"))
    one.put(groups.Compare(1))
    assert not other.waiting
    assert one.waiting is not other.waiting
    one.next_item()
    assert one.waiting is other.waiting


@pytest.mark.parametrize("size", [1, 2 * SLICE])
async def test_mistake_of_ours_does_not_end_the_fan_out_of_a_room(layer: Any, monkeypatch, size: int, caplog):
    all_ears = [await Ears.in_rooms(layer, ROOM) for _ in range(size)]
    monkeypatch.setattr(fanout, "tally", None)
    await publish("1")
    await eventually(lambda: "fan-out failed" in caplog.text)
    monkeypatch.undo()
    await publish("2")
    for ears in all_ears:
        await ears.hear("1", "2")


async def test_listener_closed_in_the_middle_of_a_fan_out_gets_nothing_more(layer: Any):
    all_ears = await crowd(layer, ROOM, 4)
    await publish("hello")
    await turns_until(lambda: any(each.heard for each in all_ears))
    late = [each for each in all_ears if not each.heard]
    assert late
    closed, left = late[::2], late[1::2]
    for each in closed:
        each.listeners[0].close()
    for each in left:
        each.leave(layer)
    await publish("again")
    stay = [each for each in all_ears if each not in late]
    await turns_until(lambda: all(each.heard == ["hello", "again"] for each in stay))
    assert not any(each.heard for each in late)


async def test_rejoin_in_the_middle_of_a_fan_out_neither_doubles_nor_reorders(layer: Any):
    all_ears = await crowd(layer, ROOM, 4)
    numbers = [str(n) for n in range(12)]
    publishing = asyncio.create_task(keep_publishing(len(numbers)))
    chance = random.Random(1)
    while not publishing.done() or not all(len(each.heard) >= len(numbers) for each in all_ears):
        for each in chance.sample(all_ears, 20):
            (listener,) = each.listeners
            listener.pause()
            if chance.random() < 0.5:  # as a `resume` of a room that the connection is in
                since = each.positions[-1] if each.positions else listener.position
                assert await layer.missed(listener, str(since)) is not None
            listener.start()
        await asyncio.sleep(0)
    for each in all_ears:
        await each.hear(*numbers)


@pytest.mark.parametrize("slices_served", [0, 1, 2, 3])
async def test_subscription_cut_in_the_middle_of_a_fan_out_loses_nothing(
    alone: Layers, server: EmbeddedRedis, slices_served: int
):
    all_ears = await crowd(alone.make(), ROOM, 4)
    await publish("1", "2")
    await turns_until(lambda: sum(bool(each.heard) for each in all_ears) >= slices_served * SLICE)
    with server.client() as redis:
        redis.client_kill_filter(_type="pubsub")
    await publish("3")
    await asyncio.sleep(0)
    await publish("4")
    for each in all_ears:
        await each.hear("1", "2", "3", "4")


async def test_more_than_may_wait_for_a_fan_out_is_read_from_the_history(layer: Any, monkeypatch):
    monkeypatch.setattr(fanout, "WAITING_BYTES", 1000)
    monkeypatch.setattr(groups, "BATCH_BYTES", 300)
    reads = noted_reads(monkeypatch)
    all_ears = await crowd(layer, ROOM, 3)
    numbers = [f"{n:0100}" for n in range(150)]
    for start in range(0, len(numbers), 50):
        await publish(*numbers[start : start + 50])
    for each in all_ears:
        await each.hear(*numbers)
    assert reads
    await publish("after")
    for each in all_ears:
        await each.hear(*numbers, "after")


async def test_answers_about_the_end_of_a_room_that_cross_each_other_hide_nothing(layer: Any):
    ears = await Ears.in_rooms(layer, ROOM)
    group = ears.listeners[0].group
    asked = group.tail
    for end, tail in ((12, 12), (15, 15), (13, 15)):  # all three were asked before any of them was answered
        group.learn(asked + end, asked)
        assert group.tail == asked + tail
    group.learn(asked + 11, asked + 15)  # Redis has lost something
    assert group.tail == asked + 11


async def test_listeners_that_lack_the_same_read_it_together(layer: Any, monkeypatch):
    all_ears = [await Ears.in_rooms(layer, ROOM) for _ in range(100)]
    await silently(*range(3))
    reads = noted_reads(monkeypatch)
    await publish("3")
    for ears in all_ears:
        await ears.hear("0", "1", "2", "3")
    assert len(reads) == 1


async def test_closing_some_listeners_that_read_together_does_not_disturb_the_others(layer: Any, monkeypatch):
    all_ears = [await Ears.in_rooms(layer, ROOM) for _ in range(6)]
    after, asked, go_on = history.after, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any, **named: Any) -> Any:
        asked.set()
        await go_on.wait()
        return await after(*args, **named)

    monkeypatch.setattr(history, "after", slow)
    await silently("1")
    await publish("2")
    await asyncio.wait_for(asked.wait(), PATIENCE)
    all_ears[0].leave(layer)
    all_ears[1].listeners[0].close()
    all_ears[2].listeners[0].pause()
    go_on.set()
    for ears in all_ears[3:]:
        await ears.hear("1", "2")
    all_ears[2].start()
    await all_ears[2].hear("1", "2")
    assert not any(ears.heard for ears in all_ears[:2])


async def test_room_left_and_entered_again_while_its_history_is_read_gets_all_of_it_once(
    layer: Any, monkeypatch
):
    ears = await Ears.in_rooms(layer, ROOM)
    await publish("1")
    await ears.hear("1")
    after, asked, go_on = history.after, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any, **named: Any) -> Any:
        found = await after(*args, **named)
        asked.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(history, "after", slow)
    await silently("2")
    await publish("3")
    await asyncio.wait_for(asked.wait(), PATIENCE)
    since = ears.listeners[0].position
    ears.leave(layer)
    monkeypatch.setattr(history, "after", after)
    again = await Ears().enter(layer, ROOM)
    await publish("4", "5")
    assert await layer.missed(again.listeners[0], str(since)) == 4
    again.start()
    go_on.set()
    await publish("6")
    await again.hear("2", "3", "4", "5", "6")
    await ears.hear("1")


async def test_outlet_that_closes_its_listener_while_a_replay_is_written_gets_no_more_of_it(layer: Any):
    class Closes(Ears):
        def write(self, frames: bytes) -> None:
            super().write(frames)
            self.listeners[0].close()

    large = "x" * history.READ_BYTES
    ears = await Closes().enter(layer, ROOM)
    await publish(f"1{large}", f"2{large}", f"3{large}")
    (listener,) = ears.listeners
    await eventually(lambda: listener.group.tail > listener.position)
    ears.start()
    await eventually(lambda: ears.heard)
    others = await Ears.in_rooms(layer, ROOM)
    await publish("4")
    await others.hear("4")
    await ears.hear(f"1{large}")
    assert listener.state is State.CLOSED


async def test_replay_waits_for_a_client_that_reads_slowly_and_live_publications_for_the_replay(layer: Any):
    large = "x" * history.READ_BYTES
    others = await Ears.in_rooms(layer, ROOM)
    ears = await Slow().enter(layer, ROOM)
    await publish(f"1{large}", f"2{large}")
    await others.hear(f"1{large}", f"2{large}")
    ears.start()
    await publish("3")
    await others.hear(f"1{large}", f"2{large}", "3")
    await ears.hear(f"1{large}")
    ears.may_go_on.set()
    await ears.hear(f"1{large}", f"2{large}", "3")
    (listener,) = ears.listeners
    await eventually(lambda: listener.state is State.LIVE)
