"""No room is served while orders may have been missed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from realtime.layers import gap_repair, history, liveness
from realtime.layers.fanout import SLICE, FanOut
from realtime.layers.gap_repair import GapRepair
from realtime.layers.group import Group
from realtime.layers.history_reader import HistoryReader
from realtime.layers.listener import Listener
from realtime.layers.outlets import PublicationBatch
from realtime.protocol.publication import Publication
from realtime.tasks.task_set import TaskSet
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.inprocess import PATIENCE, eventually
from tests.layers.support import ROOM, Ears, Layers, Slow, crowd, members, publish, turns_until


class Review:
    """What is awaited when orders may have been missed: it takes until it may go on."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.may_go_on = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await self.may_go_on.wait()


async def test_nothing_is_delivered_while_orders_may_have_been_missed_and_then_everything_is(
    alone: Layers, server: EmbeddedRedis
):
    layer, review = alone.make(), Review()
    await members(layer, 1, "orders")
    ears, paused = await Ears.in_rooms(layer, ROOM), await Ears().enter(layer, ROOM)
    layer.when_restored(review)
    with server.client() as redis:
        redis.client_kill_filter(_type="pubsub")
        await eventually(lambda: review.seconds)
        position = await publish("1", "2")
        await eventually(lambda: ears.listeners[0].group.tail == position)
        paused.start()
        late = await Ears.in_rooms(layer, ROOM)
        await publish("3")
        await late.hear()
        redis.client_kill_filter(_type="pubsub")  # once more, in the middle of the review
    await publish("4")
    review.may_go_on.set()
    await ears.hear("1", "2", "3", "4")
    await paused.hear("1", "2", "3", "4")
    await late.hear("3", "4")
    assert len(review.seconds) == 2
    assert review.seconds == sorted(review.seconds)  # both count from the first loss
    await publish("5")
    await ears.hear("1", "2", "3", "4", "5")


async def test_fan_out_that_is_under_way_stops_when_orders_are_missed_and_nothing_is_lost(
    alone: Layers, server: EmbeddedRedis
):
    layer, review = alone.make(), Review()
    await members(layer, 1, "orders")
    layer.when_restored(review)
    all_ears = await crowd(layer, ROOM, 6)
    quiet = await Ears.in_rooms(layer, "hub.thread.quiet")
    with server.client() as redis:
        await publish("1")
        await turns_until(lambda: any(each.heard for each in all_ears))
        redis.client_kill_filter(_type="pubsub")
    await eventually(lambda: review.seconds)
    served = sum(len(each.heard) for each in all_ears)
    for _ in range(20):
        await asyncio.sleep(0)
    assert sum(len(each.heard) for each in all_ears) == served
    review.may_go_on.set()
    for each in all_ears:
        await each.hear("1")
    await publish("2")
    for each in all_ears:
        await each.hear("1", "2")
    await quiet.hear()


async def test_replay_that_is_under_way_waits_while_orders_may_have_been_missed(
    alone: Layers, server: EmbeddedRedis
):
    layer, review = alone.make(), Review()
    await members(layer, 1, "orders")
    large = "x" * history.READ_BYTES
    ears = await Slow().enter(layer, ROOM)
    layer.when_restored(review)
    position = await publish(f"1{large}", f"2{large}", "3")
    await eventually(lambda: ears.listeners[0].group.tail == position)
    ears.start()
    await ears.hear(f"1{large}")
    with server.client() as redis:
        redis.client_kill_filter(_type="pubsub")
    await eventually(lambda: review.seconds)
    ears.may_go_on.set()
    late = await Ears.in_rooms(layer, "hub.thread.43")
    await publish("other", group="hub.thread.43")
    await late.hear()
    assert ears.heard == [f"1{large}"]
    review.may_go_on.set()
    await ears.hear(f"1{large}", f"2{large}", "3")


@pytest.mark.parametrize("check_is_first", [False, True])
async def test_orders_count_as_missed_from_the_moment_the_process_was_suspended(
    alone: Layers, server: EmbeddedRedis, settings, monkeypatch, check_is_first: bool
):
    settings.REALTIME = {**settings.REALTIME, "NODE_LEASE": 0.8}
    layer, review = alone.make(), Review()
    await members(layer, 1, "orders")
    layer.when_restored(review)
    hours, looked = 13 * 3600, 0

    def late() -> float:
        nonlocal looked
        looked += 1
        return time.time() + hours

    clock = SimpleNamespace(time=late)
    monkeypatch.setattr(liveness, "time", clock)  # it wakes up
    monkeypatch.setattr(gap_repair, "time", clock)
    if check_is_first:
        await eventually(lambda: looked)
    with server.client() as redis:
        redis.client_kill_filter(_type="pubsub")
    await eventually(lambda: review.seconds)
    review.may_go_on.set()
    assert review.seconds[0] >= hours


async def test_review_that_fails_is_done_again_before_anything_is_delivered(
    alone: Layers, server: EmbeddedRedis, caplog
):
    layer, failures = alone.make(), [True]
    ears = await Ears.in_rooms(layer, ROOM)
    await members(layer, 1, "orders")

    async def review(seconds: float) -> None:
        assert ears.heard == []
        if failures:
            failures.pop()
            raise ZeroDivisionError

    layer.when_restored(review)
    with server.client() as redis:
        redis.client_kill_filter(_type="pubsub")
    await publish("hello")
    await ears.hear("hello")
    assert not failures
    assert "review failed" in caplog.text


async def test_fan_out_stops_in_the_moment_in_which_orders_are_missed(process: str):
    fan_out, tasks = FanOut(), TaskSet()
    groups: dict[bytes, Group] = {}
    repair = GapRepair(groups, lambda channel: True, HistoryReader(tasks), fan_out, tasks)
    orders, room = Group("orders", repair.read), Group(ROOM, repair.read)
    groups |= {orders.channel: orders, room.channel: room}
    all_ears = [Ears() for _ in range(3 * SLICE)]
    for each in all_ears:
        listener = Listener(room, each)
        room.listeners[listener] = None
        listener.start()
    room.receive(Publication(1, 0, "", b"hello"))
    fan_out.serve(room)
    await turns_until(lambda: any(each.heard for each in all_ears))
    repair.on_lost([orders.channel], since=time.time())
    served = sum(len(each.heard) for each in all_ears)
    for _ in range(20):
        await asyncio.sleep(0)
    assert sum(len(each.heard) for each in all_ears) == served < len(all_ears)


class Histories(HistoryReader):
    """Histories that hold one publication, and are not asked for by Redis."""

    def __init__(self) -> None:
        super().__init__(TaskSet())
        self.on_read: Callable[[], None] = lambda: None
        self.compared: list[str] = []
        self.failures = 0

    async def read(self, group: Group, position: int) -> PublicationBatch | None:
        self.on_read()
        return PublicationBatch([Publication(1, 0, "", b"hello")])

    async def learn_ends(self, groups: Sequence[Group]) -> list[Group]:
        self.compared += [group.name for group in groups]
        if self.failures:
            self.failures -= 1
            raise RedisConnectionError("refused")
        return []


@pytest.mark.parametrize("end", ["restored", "closed"])
async def test_what_was_read_waits_when_orders_were_missed_meanwhile(process: str, end: str):
    tasks, histories = TaskSet(), Histories()
    groups: dict[bytes, Group] = {}
    lost: set[bytes] = set()
    repair = GapRepair(groups, lost.__contains__, histories, FanOut(), tasks)
    orders, room = Group("orders", repair.read), Group(ROOM, repair.read)
    groups |= {orders.channel: orders, room.channel: room}
    histories.on_read = lambda: repair.on_lost([orders.channel], since=time.time())
    reading = asyncio.create_task(repair.read(room, 0))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not reading.done()
    if end == "restored":
        repair.on_restored([orders.channel])
    else:
        repair.close()  # the loop ends, and nothing may wait for what never comes
    assert (await asyncio.wait_for(reading, PATIENCE)) is not None
    await tasks.ended()


async def test_every_room_is_compared_though_redis_fails_once(process: str, monkeypatch):
    monkeypatch.setattr(gap_repair, "COMPARE_BATCH", 2)
    tasks, histories = TaskSet(), Histories()
    names = [f"hub.thread.{number}" for number in range(5)]
    groups: dict[bytes, Group] = {}
    repair = GapRepair(groups, lambda channel: False, histories, FanOut(), tasks)
    for name in names:
        group = Group(name, repair.read)
        groups[group.channel] = group
    histories.failures = 1
    repair.compare(*groups.values())
    await eventually(lambda: histories.compared[2:] == names)
    assert histories.compared[:2] == names[:2]
    await tasks.ended()


@pytest.mark.parametrize("end", ["restored", "left"])
async def test_rooms_wait_for_orders_that_are_lost_on_another_server(process: str, end: str):
    """As in a Cluster, where each server has a connection of its own."""
    tasks, review = TaskSet(), Review()
    groups: dict[bytes, Group] = {}
    lost: set[bytes] = set()
    repair = GapRepair(groups, lost.__contains__, HistoryReader(tasks), FanOut(), tasks)
    repair.reviews.append(review)
    orders, room = Group("orders", repair.read), Group(ROOM, repair.read)
    groups |= {orders.channel: orders, room.channel: room}
    lost.update(groups)
    repair.on_lost([orders.channel], since=time.time() - 1000)
    repair.on_lost([orders.channel, room.channel], since=time.time())
    lost.discard(room.channel)
    repair.on_restored([room.channel])
    await tasks.ended()
    assert not repair.hears_orders
    lost.clear()
    if end == "restored":
        repair.on_restored([orders.channel])
    else:
        del groups[orders.channel]
        repair.on_left(orders)
    await eventually(lambda: review.seconds)
    assert not repair.hears_orders  # until the review has ended
    review.may_go_on.set()
    await tasks.ended()
    assert repair.hears_orders
    assert len(review.seconds) == 1
    assert review.seconds[0] >= 1000  # since the first loss
