"""What Channels asks of a channel layer, held against every layer one may configure; then what ours promises beyond."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import time
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from signal import SIGCONT, SIGKILL, SIGSTOP
from types import SimpleNamespace
from typing import Any, Self

import pytest
from channels.exceptions import ChannelFull
from channels.layers import InMemoryChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer
from redis.exceptions import RedisError

from dev.embedded_redis import EmbeddedRedis
from realtime.layers import fanout, gap_repair, group, history, liveness, loop_layer
from realtime.layers.fanout import SLICE
from realtime.layers.group import Group
from realtime.layers.listener import Listener, State
from realtime.layers.outlets import Ephemeral, Queue, payloads
from realtime.layers.room_layer import RoomChannelLayer
from realtime.protocol.publication import Entry, Publication, Unrecoverable, unpack
from realtime.redis import client as redis_module
from realtime.redis import connection, pipelining
from realtime.redis.client import client, key
from realtime.redis.pipelining import Pipes
from tests.inprocess import PATIENCE, eventually

# --- The layers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backend:
    """A channel layer, and what of Channels' specification it does not promise, each with the reason."""

    name: str
    make: Callable[..., Any]
    lacks: dict[str, str] = field(default_factory=dict)


OURS = Backend("ours", lambda url, prefix, **options: RoomChannelLayer(**options))
PUBSUB = Backend(
    "pubsub",
    lambda url, prefix, **options: RedisPubSubChannelLayer(hosts=[url], prefix=prefix, **options),
    {
        "buffer": "a channel exists from the moment that somebody receives from it",
        "capacity": "its queues have no bound",
        "capacity by name": "its queues have no bound",
        "expiry": "it keeps no messages outside the receiving process",
        "names": "it takes any name",
        "messages": "it sends whatever msgpack takes",
        "cancel": "a receive() that is cancelled ends the channel, whatever its name",
    },
)
MEMORY = Backend(
    "memory",
    lambda url, prefix, **options: InMemoryChannelLayer(**options),
    {
        "processes": "it is the memory of one process",
        "capacity by name": "it expects the patterns compiled, which Channels does not do for it",
    },
)
BACKENDS = (OURS, PUBSUB, MEMORY)


def promised(*promises: str) -> pytest.MarkDecorator:
    """Run the test over the backends that promise this."""
    fitting = [backend for backend in BACKENDS if not set(promises) & set(backend.lacks)]
    return pytest.mark.parametrize("backend", fitting, ids=lambda backend: backend.name)


class Layers:
    """The layer of this process, and those of others, on one installation."""

    def __init__(self, backend: Backend, url: str, prefix: str) -> None:
        self._backend = backend
        self._made: list[Any] = []
        self._make = lambda **options: backend.make(url, prefix, **options)

    def make(self, **options: Any) -> Any:
        """A layer of its own, as another process would have it."""
        self._made.append(self._make(**options))
        return self._made[-1]

    def another(self, layer: Any) -> Any:
        """A layer of another process, where there can be one."""
        return layer if "processes" in self._backend.lacks else self.make()

    async def flush(self) -> None:
        for layer in self._made:
            await layer.flush()


@pytest.fixture
def backend() -> Backend:
    """Ours, unless a test runs over several."""
    return OURS


@pytest.fixture
async def layers(backend: Backend, redis_url: str, process: str) -> AsyncIterator[Layers]:
    layers = Layers(backend, redis_url, process)
    yield layers
    await layers.flush()


@pytest.fixture
def layer(layers: Layers) -> Any:
    return layers.make()


async def receive(layer: Any, channel: str) -> dict[str, Any]:
    """The next message, which must come."""
    return await asyncio.wait_for(layer.receive(channel), PATIENCE)


async def receive_several(layer: Any, channel: str, count: int) -> list[Any]:
    """The numbers that the next messages carry."""
    return [(await receive(layer, channel))["n"] for _ in range(count)]


def message(n: Any = 1) -> dict[str, Any]:
    return {"type": "test.message", "n": n}


END = message("end")


async def members(layer: Any, count: int, *groups: str) -> list[str]:
    """Channels in all of these groups."""
    channels = [await layer.new_channel() for _ in range(count)]
    await asyncio.gather(*(layer.group_add(group, channel) for group in groups for channel in channels))
    return channels


# --- The specification: channels ---------------------------------------------------------------------


@promised()
async def test_extensions_are_declared(layer: Any):
    assert {"groups", "flush"} <= set(layer.extensions)


@promised()
async def test_message_sent_to_a_channel_is_received_from_it(layer: Any):
    channel = await layer.new_channel()
    await layer.send(channel, message())
    assert await receive(layer, channel) == message()


@promised()
async def test_receive_waits_for_a_message(layer: Any):
    channel = await layer.new_channel()
    receiving = asyncio.create_task(receive(layer, channel))
    await asyncio.sleep(0)
    assert not receiving.done()
    await layer.send(channel, message())
    assert await receiving == message()


@promised()
async def test_messages_of_a_channel_come_in_the_order_they_were_sent(layer: Any):
    channel = await layer.new_channel()
    for n in range(90):
        await layer.send(channel, message(n))
    assert await receive_several(layer, channel, 90) == list(range(90))


@promised()
async def test_channels_do_not_mix(layer: Any):
    one, other = await layer.new_channel(), await layer.new_channel()
    await layer.send(one, message("for one"))
    await layer.send(other, message("for other"))
    assert await receive_several(layer, other, 1) == ["for other"]
    assert await receive_several(layer, one, 1) == ["for one"]


@promised()
async def test_every_new_channel_is_another_one(layer: Any):
    channels = [await layer.new_channel() for _ in range(50)]
    assert len(set(channels)) == 50


@promised("names")
async def test_new_channel_has_a_valid_name_of_this_process_alone(layer: Any):
    for channel in (await layer.new_channel(), await layer.new_channel("a-prefix-of-its-own")):
        assert layer.require_valid_channel_name(channel)
        assert "!" in channel
    assert (await layer.new_channel("a-prefix-of-its-own")).startswith("a-prefix-of-its-own.")


@promised()
@pytest.mark.parametrize(
    "value",
    [
        "",
        "ünï©ode \N{GRINNING FACE}",
        b"\x00\xff",
        0,
        -1,
        2**53,
        1.5,
        True,
        None,
        [],
        [1, [2, {"a": None}]],
        {"a": {}},
    ],
    ids=repr,
)
async def test_values_arrive_as_they_were_sent(layers: Layers, value: Any):
    layer = layers.make()
    sender = layers.another(layer)
    (channel,) = await members(layer, 1, "group")
    await sender.send(channel, message(value))
    await sender.group_send("group", message(value))
    assert await receive_several(layer, channel, 2) == [value, value]


@promised()
async def test_what_its_sender_changes_later_does_not_change_the_message(layer: Any):
    (channel,) = await members(layer, 1, "group")
    sent = {"type": "test.message", "n": 1, "nested": {"list": [1]}}
    await layer.send(channel, sent)
    sent["n"] = 2
    sent["nested"]["list"].append(2)  # type: ignore[index]
    assert await receive(layer, channel) == {"type": "test.message", "n": 1, "nested": {"list": [1]}}


@promised()
async def test_each_receiver_may_change_its_message(layer: Any):
    channels = await members(layer, 3, "group")
    await layer.group_send("group", {"type": "test.message", "nested": {"list": [1]}})
    for channel in channels:
        received = await receive(layer, channel)
        assert received == {"type": "test.message", "nested": {"list": [1]}}
        received["nested"]["list"].append(2)
        received["type"] = "changed"


@promised("messages")
@pytest.mark.parametrize("wrong", [None, "text", b"bytes", 7, ["list"], [("a", 1)]], ids=repr)
async def test_message_that_is_no_dict_is_refused(layer: Any, wrong: Any):
    (channel,) = await members(layer, 1, "group")
    with pytest.raises((TypeError, AssertionError)):
        await layer.send(channel, wrong)
    with pytest.raises((TypeError, AssertionError)):
        await layer.group_send("group", wrong)


BAD_NAMES = ["", "a b", "a:b", "a/b", "a@b", "ä", "x" * 100, b"bytes", None, 7, ["a"]]


@promised("names")
@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
async def test_bad_name_is_a_type_error(layer: Any, name: Any):
    (channel,) = await members(layer, 1, "group")
    for refused in (
        layer.send(name, message()),
        layer.receive(name),
        layer.group_add(name, channel),
        layer.group_add("group", name),
        layer.group_discard(name, channel),
        layer.group_discard("group", name),
        layer.group_send(name, message()),
    ):
        with pytest.raises(TypeError):
            await refused


@promised("names")
@pytest.mark.parametrize("name", ["a", "A-Z_0.9", "x" * 99])
async def test_good_name_is_taken(layer: Any, name: str):
    (channel,) = await members(layer, 1, name)
    await layer.group_send(name, message())
    assert await receive(layer, channel) == message()
    await layer.group_discard(name, channel)


@promised("processes")
async def test_another_process_can_send_to_a_channel_as_soon_as_it_is_new(layers: Layers):
    here, there = layers.make(), layers.make()
    await there.group_send("nobody", message())  # it is connected
    channel = await here.new_channel()
    await there.send(channel, message())
    assert await receive(here, channel) == message()


@promised()
async def test_sending_to_a_channel_that_is_gone_is_fine(layers: Layers):
    here = layers.make()
    channel = await here.new_channel()
    receiving = asyncio.create_task(here.receive(channel))
    await asyncio.sleep(0)
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)
    await here.send(channel, message())
    await layers.another(here).send(channel, message())


# --- The specification: channels that belong to no process ---------------------------------------------


@promised("buffer")
async def test_message_waits_on_a_normal_channel_until_somebody_receives(layer: Any):
    await layer.send("work", message(1))
    await layer.send("work", message(2))
    assert await receive_several(layer, "work", 2) == [1, 2]


@promised("buffer", "processes")
async def test_normal_channel_is_one_for_all_processes(layers: Layers):
    await layers.make().send("work", message(1))
    await layers.make().send("work", message(2))
    assert await receive_several(layers.make(), "work", 2) == [1, 2]


@promised("buffer")
async def test_message_on_a_normal_channel_is_received_once_whoever_waits(layer: Any):
    receiving = [asyncio.create_task(receive(layer, "work")) for _ in range(20)]
    await asyncio.sleep(0)
    for n in range(20):
        await layer.send("work", message(n))
    received = [answer["n"] for answer in await asyncio.gather(*receiving)]
    assert sorted(received) == list(range(20))


@promised("buffer", "cancel")
async def test_receive_cancelled_at_any_moment_loses_no_message_of_a_normal_channel(layer: Any):
    chance = random.Random(1)
    received: set[int] = set()
    for n in range(60):
        receiving = asyncio.create_task(layer.receive("work"))
        await asyncio.sleep(chance.choice((0, 0, 0.0005, 0.001)))
        sending = asyncio.create_task(layer.send("work", message(n)))
        await asyncio.sleep(chance.choice((0, 0, 0.0002, 0.0005, 0.001)))
        receiving.cancel()
        await sending
        with contextlib.suppress(asyncio.CancelledError):
            received.add((await receiving)["n"])
    while len(received) < 60:
        received.add((await receive(layer, "work"))["n"])
    assert received == set(range(60))


@promised("expiry")
async def test_message_on_a_normal_channel_expires(layers: Layers):
    layer = layers.make(expiry=1)
    await layer.send("work", message("old"))
    await asyncio.sleep(1.1)
    await layer.send("work", message("new"))
    assert await receive_several(layer, "work", 1) == ["new"]


# --- The specification: capacity -----------------------------------------------------------------------


@promised("capacity")
@pytest.mark.parametrize("normal", [False, True], ids=["of a process", "normal"])
async def test_channel_that_is_full_refuses_messages_until_one_is_received(layers: Layers, normal: bool):
    layer = layers.make(capacity=3)
    channel = "work" if normal else await layer.new_channel()
    for n in range(3):
        await layer.send(channel, message(n))
    with pytest.raises(ChannelFull):
        await layer.send(channel, message("too many"))
    assert await receive_several(layer, channel, 1) == [0]
    await layer.send(channel, message(3))
    assert await receive_several(layer, channel, 3) == [1, 2, 3]


@promised("capacity by name")
async def test_capacity_may_be_of_channels_by_name(layers: Layers):
    layer = layers.make(capacity=1, channel_capacity={"large.*": 2})
    await layer.send("large.one", message())
    await layer.send("large.one", message())
    await layer.send("small.one", message())
    for channel in ("large.one", "small.one"):
        with pytest.raises(ChannelFull):
            await layer.send(channel, message())


@promised("capacity")
async def test_member_that_is_full_is_not_the_senders_business_and_not_the_other_members(layers: Layers):
    layer = layers.make(capacity=3)
    slow, quick = await members(layer, 2, "group")
    for n in range(10):
        await layer.group_send("group", message(n))
        assert await receive_several(layer, quick, 1) == [n]
    assert await receive_several(layer, slow, 3) == [0, 1, 2]


# --- The specification: groups -------------------------------------------------------------------------


@promised()
async def test_every_member_of_a_group_gets_what_is_sent_to_it(layer: Any):
    channels = await members(layer, 5, "group")
    await layer.group_send("group", message())
    for channel in channels:
        assert await receive(layer, channel) == message()


@promised()
async def test_nobody_else_gets_it(layer: Any):
    (outside,) = await members(layer, 1, "another-group")
    await members(layer, 2, "group")
    await layer.group_send("group", message())
    await layer.send(outside, END)
    assert await receive(layer, outside) == END


@promised()
async def test_channel_may_be_in_several_groups(layer: Any):
    (channel,) = await members(layer, 1, "one", "two", "three")
    for group in ("three", "one", "two"):
        await layer.group_send(group, message(group))
        assert await receive(layer, channel) == message(group)


@promised()
async def test_channel_added_twice_gets_it_once_and_is_out_when_discarded_once(layer: Any):
    (channel,) = await members(layer, 1, "group", "group")
    await layer.group_send("group", message())
    await layer.group_send("group", END)
    assert await receive_several(layer, channel, 2) == [1, "end"]
    await layer.group_discard("group", channel)
    await layer.group_send("group", message())
    await layer.send(channel, END)
    assert await receive(layer, channel) == END


@promised()
async def test_discarded_channel_gets_nothing_more_and_the_others_do(layer: Any):
    gone, stays = await members(layer, 2, "group")
    await layer.group_discard("group", gone)
    await layer.group_send("group", message())
    assert await receive(layer, stays) == message()
    await layer.send(gone, END)
    assert await receive(layer, gone) == END


@promised()
async def test_discarding_from_one_group_leaves_the_others(layer: Any):
    (channel,) = await members(layer, 1, "one", "two")
    await layer.group_discard("one", channel)
    await layer.group_send("one", message("one"))
    await layer.group_send("two", message("two"))
    assert await receive(layer, channel) == message("two")


@promised()
async def test_discarding_who_is_not_in_is_fine(layer: Any):
    (channel,) = await members(layer, 1, "group")
    await layer.group_discard("never-heard-of", channel)
    await layer.group_discard("group", await layer.new_channel())
    await layer.group_discard("group", channel)
    await layer.group_discard("group", channel)


@promised()
async def test_channel_may_come_back(layer: Any):
    (channel,) = await members(layer, 1, "group")
    for n in range(20):
        await layer.group_discard("group", channel)
        await layer.group_add("group", channel)
        await layer.group_send("group", message(n))
        assert await receive(layer, channel) == message(n)


@promised()
async def test_sending_to_a_group_without_members_is_fine(layer: Any):
    await layer.group_send("nobody", message())


@promised()
async def test_group_and_channel_of_the_same_name_are_different(layer: Any):
    (channel,) = await members(layer, 1, "name")
    receiving = asyncio.create_task(layer.receive("name"))
    await asyncio.sleep(0)
    await layer.group_send("name", message())
    assert await receive(layer, channel) == message()
    assert not receiving.done()
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)


@promised()
async def test_messages_to_a_group_come_in_the_order_they_were_sent(layer: Any):
    channels = await members(layer, 5, "group")
    for n in range(80):
        await layer.group_send("group", message(n))
    for channel in channels:
        assert await receive_several(layer, channel, 80) == list(range(80))


@promised("processes")
async def test_group_is_one_for_all_processes(layers: Layers):
    processes = [layers.make() for _ in range(3)]
    channels = [(await members(layer, 2, "group"), layer) for layer in processes]
    for n, sender in enumerate(processes):
        await sender.group_send("group", message(n))
        for own, layer in channels:
            for channel in own:
                assert await receive(layer, channel) == message(n)


@promised("processes")
async def test_process_without_members_can_send_to_a_group(layers: Layers):
    here, there = layers.make(), layers.make()
    (channel,) = await members(here, 1, "group")
    await there.group_send("group", message())
    assert await receive(here, channel) == message()


@promised()
async def test_two_hundred_join_at_once_and_all_of_them_are_in(layer: Any):
    channels = [await layer.new_channel() for _ in range(200)]
    await asyncio.gather(*(layer.group_add(f"group.{n}", channel) for n, channel in enumerate(channels)))
    await asyncio.gather(*(layer.group_add("all", channel) for channel in channels))
    await asyncio.gather(*(layer.group_send(f"group.{n}", message(n)) for n in range(200)))
    assert [(await receive(layer, channel))["n"] for channel in channels] == list(range(200))
    await layer.group_send("all", END)
    assert [await receive(layer, channel) for channel in channels] == [END] * 200


@promised()
async def test_hundred_receivers_wait_at_once_and_each_gets_everything(layer: Any):
    channels = await members(layer, 100, "group")
    receiving = [asyncio.create_task(receive_several(layer, channel, 20)) for channel in channels]
    await asyncio.sleep(0)
    for n in range(20):
        await layer.group_send("group", message(n))
    assert await asyncio.gather(*receiving) == [list(range(20))] * 100


# --- The specification: ends ---------------------------------------------------------------------------


@promised()
async def test_receive_can_be_cancelled_at_any_moment(layer: Any):
    for n in range(100):
        (channel,) = await members(layer, 1, "group")
        await layer.send(channel, message())
        receiving = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(n * 0.00002)
        receiving.cancel()
        await asyncio.wait_for(asyncio.gather(receiving, return_exceptions=True), PATIENCE)


@promised()
async def test_flushed_layer_is_like_new(layer: Any):
    (before,) = await members(layer, 1, "group")
    await layer.send(before, message("old"))
    await layer.flush()
    (channel,) = await members(layer, 1, "group")
    await layer.group_send("group", END)
    assert await receive(layer, channel) == END


@promised()
def test_layer_works_in_one_event_loop_after_another(backend: Backend, redis_url: str, realtime_redis: str):
    layer = backend.make(redis_url, realtime_redis)

    async def use() -> None:
        channels = await members(layer, 3, "group")
        await layer.group_send("group", message())
        for channel in channels:
            assert await receive(layer, channel) == message()
        await layer.flush()
        await redis_module.close()

    for _ in range(3):
        asyncio.run(use())


# --- Ours: what it asks of Redis -------------------------------------------------------------------------


@pytest.fixture
def server(realtime_redis: str, settings) -> Iterator[EmbeddedRedis]:
    """A Redis of the test's own, with nothing in it."""
    with EmbeddedRedis() as server:
        settings.REALTIME = {**settings.REALTIME, "REDIS_URL": server.url}
        yield server


@pytest.fixture
async def alone(process: str, server: EmbeddedRedis) -> AsyncIterator[Layers]:
    """Ours, on a Redis of its own."""
    layers = Layers(OURS, server.url, process)
    yield layers
    await layers.flush()


def calls(server: EmbeddedRedis, command: str) -> int:
    with server.client() as redis:
        statistics: Any = redis.info("commandstats")
        return statistics.get(f"cmdstat_{command}", {}).get("calls", 0)


def subscriptions(server: EmbeddedRedis) -> list[int]:
    """Channels subscribed to, by connection."""
    with server.client() as redis:
        return sorted(int(found["sub"]) for found in redis.client_list() if int(found["sub"]))


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
async def test_who_leaves_before_redis_has_confirmed_does_not_hold_up_who_joined_with_it(
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


# --- Ours: outlets and queues ----------------------------------------------------------------------------


class Ears:
    """An outlet that writes down what it is given."""

    is_behind = False

    def __init__(self, connection_id: str = "") -> None:
        self.connection_id = connection_id
        self.heard: list[Any] = []
        """What was written as the text it was published with, messages as they are, gaps as their room and reason."""
        self.positions: list[int] = []
        """Of the publications."""
        self.listeners: list[Listener] = []
        self.channel = ""

    @classmethod
    async def in_rooms(cls, layer: RoomChannelLayer, *groups: str) -> Self:
        """An outlet that listens to rooms."""
        ears = await cls().enter(layer, *groups)
        ears.start()
        return ears

    async def enter(self, layer: RoomChannelLayer, *groups: str) -> Self:
        """Enter rooms, paused."""
        self.channel = await layer.attach(self)
        self.listeners = await layer.enter(groups, self, self.channel)
        return self

    def start(self) -> None:
        for listener in self.listeners:
            listener.start()

    def leave(self, layer: RoomChannelLayer) -> None:
        """As a connection that ends."""
        for listener in self.listeners:
            layer.leave(listener, self.channel)
        layer.detach(self.channel)

    def write(self, frames: bytes) -> None:
        for payload in payloads(frames):
            text, at, position = payload.decode().partition("@")
            self.heard.append(text)
            if at:
                self.positions.append(int(position))
            elif '"offset":"' in text:  # from a bridge
                self.positions.append(int(json.loads(text)["offset"]))

    async def drained(self) -> None:
        pass

    def gap(self, room: str, reason: str) -> None:
        self.heard.append(Gap(room, reason))

    def message(self, message: dict[str, Any]) -> None:
        self.heard.append(message)

    async def hear(self, *expected: Any) -> None:
        """Wait until this, and only this, was heard."""
        with contextlib.suppress(AssertionError):
            await eventually(lambda: len(self.heard) >= len(expected))
        assert self.heard == list(expected)

    @property
    def gaps(self) -> list[Gap]:
        return [heard for heard in self.heard if isinstance(heard, Gap)]


@dataclass(frozen=True)
class Gap:
    """The client was told that publications are lost."""

    room: str
    reason: str


LOST = Gap("thread:42", "lost")


ROOM = "hub.thread.42"


async def publish(*texts: Any, group: str = ROOM) -> int:
    """Publish in a room as a bridge does; the last position."""
    found = await history.append([Entry(rooms=[(group, f"{text}@".encode())], tail=b"") for text in texts])
    return int(found[-1][0])


async def test_outlet_is_called_with_messages_and_publications(layer: Any):
    ears = await Ears.in_rooms(layer, ROOM)
    await layer.group_send(ROOM, message(1))
    await ears.hear(message(1))
    await layer.send(ears.channel, message(2))  # does not go through Redis: it would overtake the first
    await publish("hello", "again")
    await ears.hear(message(1), message(2), "hello", "again")


async def test_no_task_is_woken_for_an_outlet(layer: Any):
    everybody = [await Ears.in_rooms(layer, ROOM) for _ in range(100)]
    before = len(asyncio.all_tasks())
    await publish(*range(10))
    await eventually(lambda: all(len(ears.heard) == 10 for ears in everybody))
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


class Broken(Ears):
    """An outlet that fails so many times."""

    failures = 1
    has_failed = False

    def fail(self) -> None:
        self.has_failed = True

    def write(self, frames: bytes) -> None:
        self._fail()
        super().write(frames)

    def message(self, message: dict[str, Any]) -> None:
        self._fail()
        super().message(message)

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ZeroDivisionError


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


async def keep_publishing(count: int, *, group: str = ROOM, at_once: int = 1) -> list[int]:
    """Publish the numbers below `count`, as fast as Redis takes them; all the positions."""
    positions = []
    for start in range(0, count, at_once):
        entries = [Entry(rooms=[(group, f"{n}@".encode())], tail=b"") for n in range(start, start + at_once)]
        positions += [int(found[0]) for found in await history.append(entries)]
    return positions


async def test_publication_that_leaves_a_connection_out_is_not_written_to_it(layer: Any):
    me, other = await Ears("m" * 32).enter(layer, ROOM), await Ears("o" * 32).enter(layer, ROOM)
    for ears in (me, other):
        ears.start()
    await history.append(
        [Entry(rooms=[(ROOM, b"a@")], tail=b"", exclude="m" * 32), Entry(rooms=[(ROOM, b"b@")], tail=b"")]
    )
    await publish("c")
    await me.hear("b", "c")
    await other.hear("a", "b", "c")


async def test_publication_that_leaves_a_connection_out_is_not_replayed_to_it_either(layer: Any):
    me = await Ears("m" * 32).enter(layer, ROOM)
    await history.append([Entry(rooms=[(ROOM, b"a@")], tail=b"", exclude="m" * 32)])
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


async def test_message_that_nobody_received_in_time_expires(layers: Layers):
    layer = layers.make(expiry=1)
    channel = await layer.new_channel()
    await layer.send(channel, message("old"))
    await asyncio.sleep(1.1)
    await layer.send(channel, message("new"))
    assert await receive_several(layer, channel, 1) == ["new"]


async def test_expired_messages_take_no_room(layers: Layers):
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


class Clock(Ears):
    """An outlet that notes in which turn of the loop it was served."""

    turn = 0

    def __init__(self) -> None:
        super().__init__()
        self.served: list[int] = []

    def write(self, frames: bytes) -> None:
        self.served.append(Clock.turn)
        super().write(frames)

    def message(self, message: dict[str, Any]) -> None:
        self.served.append(Clock.turn)
        super().message(message)


async def crowd(layer: Any, group: str, slices: int) -> list[Clock]:
    """Listeners that fill so many slices."""
    return [await Clock.in_rooms(layer, group) for _ in range(slices * SLICE)]


async def turns_until(condition: Callable[[], bool]) -> None:
    """Count the turns of the loop."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            Clock.turn += 1
            await asyncio.sleep(0)


async def test_large_room_is_served_in_slices_so_that_the_loop_has_time_for_others(layer: Any):
    everybody = await crowd(layer, ROOM, 5)
    for send in (
        lambda: publish("hello"),
        lambda: layer.group_send(ROOM, END),
        lambda: layer.emit([ROOM], said("end")),
    ):
        for each in everybody:
            each.served.clear()
        sending = asyncio.create_task(send())
        await turns_until(lambda: all(each.served for each in everybody))
        await sending
        served = [turn for each in everybody for turn in each.served]
        assert len(served) == len(everybody)
        assert max(served.count(turn) for turn in set(served)) <= SLICE


async def test_large_rooms_take_turns(layer: Any):
    rooms = ["hub.thread.1", "hub.thread.2"]
    one, other = [await crowd(layer, room, 6) for room in rooms]
    await history.append(
        [Entry(rooms=[(room, f"{n}@".encode())], tail=b"") for n in range(3) for room in rooms]
    )
    await turns_until(lambda: all(len(each.heard) == 3 for each in (*one, *other)))
    served = [sorted(turn for each in room for turn in each.served) for room in (one, other)]
    for turn in sorted({*served[0], *served[1]}):
        so_far = [bisect_right(turns, turn) for turns in served]
        assert abs(so_far[0] - so_far[1]) <= 3 * SLICE  # three publications that came together


async def test_small_room_is_served_in_the_turn_in_which_its_publication_comes(layer: Any):
    """Whatever waits for a large one."""
    large = await crowd(layer, "hub.thread.1", 10)
    small = await Clock.in_rooms(layer, ROOM)
    await history.append(
        [
            *(Entry(rooms=[("hub.thread.1", f"{n}@".encode())], tail=b"") for n in range(20)),
            Entry(rooms=[(ROOM, b"small@")], tail=b""),
        ]
    )
    await turns_until(lambda: bool(small.served))
    assert sum(bool(each.served) for each in large) <= SLICE
    await turns_until(lambda: all(len(each.heard) == 20 for each in large))


@pytest.mark.parametrize("size", [1, 2 * SLICE])
async def test_mistake_of_ours_does_not_end_the_fan_out_of_a_room(layer: Any, monkeypatch, size: int, caplog):
    everybody = [await Ears.in_rooms(layer, ROOM) for _ in range(size)]
    monkeypatch.setattr(fanout, "tally", None)
    await publish("1")
    await eventually(lambda: "fan-out failed" in caplog.text)
    monkeypatch.undo()
    await publish("2")
    for ears in everybody:
        await ears.hear("1", "2")


async def test_listener_closed_in_the_middle_of_a_fan_out_gets_nothing_more(layer: Any):
    everybody = await crowd(layer, ROOM, 4)
    await publish("hello")
    await turns_until(lambda: any(each.heard for each in everybody))
    late = [each for each in everybody if not each.heard]
    assert late
    closed, left = late[::2], late[1::2]
    for each in closed:
        each.listeners[0].close()
    for each in left:
        each.leave(layer)
    await publish("again")
    stay = [each for each in everybody if each not in late]
    await turns_until(lambda: all(each.heard == ["hello", "again"] for each in stay))
    assert not any(each.heard for each in late)


async def test_rejoin_in_the_middle_of_a_fan_out_neither_doubles_nor_reorders(layer: Any):
    everybody = await crowd(layer, ROOM, 4)
    numbers = [str(n) for n in range(12)]
    publishing = asyncio.create_task(keep_publishing(len(numbers)))
    chance = random.Random(1)
    while not publishing.done() or not all(len(each.heard) >= len(numbers) for each in everybody):
        for each in chance.sample(everybody, 20):
            (listener,) = each.listeners
            listener.pause()
            if chance.random() < 0.5:  # as a `resume` of a room that the connection is in
                since = each.positions[-1] if each.positions else listener.position
                assert await layer.missed(listener, str(since)) is not None
            listener.start()
        await asyncio.sleep(0)
    for each in everybody:
        await each.hear(*numbers)


@pytest.mark.parametrize("slices_served", [0, 1, 2, 3])
async def test_subscription_cut_in_the_middle_of_a_fan_out_loses_nothing(
    alone: Layers, server: EmbeddedRedis, slices_served: int
):
    everybody = await crowd(alone.make(), ROOM, 4)
    await publish("1", "2")
    await turns_until(lambda: sum(bool(each.heard) for each in everybody) >= slices_served * SLICE)
    with server.client() as redis:
        redis.client_kill_filter(_type="pubsub")
    await publish("3")
    await asyncio.sleep(0)
    await publish("4")
    for each in everybody:
        await each.hear("1", "2", "3", "4")


async def test_more_than_may_wait_for_a_fan_out_is_read_from_the_history(layer: Any, monkeypatch):
    monkeypatch.setattr(fanout, "WAITING_BYTES", 1000)
    monkeypatch.setattr(group, "BATCH_BYTES", 300)
    reads = noted_reads(monkeypatch)
    everybody = await crowd(layer, ROOM, 3)
    numbers = [f"{n:0100}" for n in range(150)]
    for start in range(0, len(numbers), 50):
        await publish(*numbers[start : start + 50])
    for each in everybody:
        await each.hear(*numbers)
    assert reads
    await publish("after")
    for each in everybody:
        await each.hear(*numbers, "after")


def noted_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions above which a history is read."""
    after, reads = history.after, []

    async def noted(group: str, position: int, most: int, *rest: Any) -> Any:
        reads.append(position)
        return await after(group, position, most, *rest)

    monkeypatch.setattr(history, "after", noted)
    return reads


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
    everybody = [await Ears.in_rooms(layer, ROOM) for _ in range(100)]
    silent = [Entry(rooms=[(ROOM, f"{n}@".encode())], tail=b"") for n in range(3)]
    await history.append(silent, publish=False)
    reads = noted_reads(monkeypatch)
    await publish("3")
    for ears in everybody:
        await ears.hear("0", "1", "2", "3")
    assert len(reads) == 1


async def test_closing_some_of_those_who_read_together_does_not_disturb_the_others(layer: Any, monkeypatch):
    everybody = [await Ears.in_rooms(layer, ROOM) for _ in range(6)]
    after, asked, go_on = history.after, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Any:
        asked.set()
        await go_on.wait()
        return await after(*args)

    monkeypatch.setattr(history, "after", slow)
    await history.append([Entry(rooms=[(ROOM, b"1@")], tail=b"")], publish=False)
    await publish("2")
    await asyncio.wait_for(asked.wait(), PATIENCE)
    everybody[0].leave(layer)
    everybody[1].listeners[0].close()
    everybody[2].listeners[0].pause()
    go_on.set()
    for ears in everybody[3:]:
        await ears.hear("1", "2")
    everybody[2].start()
    await everybody[2].hear("1", "2")
    assert not any(ears.heard for ears in everybody[:2])


async def test_room_left_and_entered_again_while_its_history_is_read_gets_all_of_it_once(
    layer: Any, monkeypatch
):
    ears = await Ears.in_rooms(layer, ROOM)
    await publish("1")
    await ears.hear("1")
    after, asked, go_on = history.after, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Any:
        found = await after(*args)
        asked.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(history, "after", slow)
    await history.append([Entry(rooms=[(ROOM, b"2@")], tail=b"")], publish=False)
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
    class Slow(Ears):
        def __init__(self) -> None:
            super().__init__()
            self.may_go_on = asyncio.Event()

        async def drained(self) -> None:
            await self.may_go_on.wait()

    large = "x" * history.READ_BYTES
    ears = await Slow().enter(layer, ROOM)
    await publish(f"1{large}", f"2{large}")
    (listener,) = ears.listeners
    await eventually(lambda: listener.group.tail > listener.position)
    ears.start()
    others = await Ears.in_rooms(layer, ROOM)
    await publish("3")
    await others.hear("3")
    await ears.hear(f"1{large}")
    ears.may_go_on.set()
    await ears.hear(f"1{large}", f"2{large}", "3")
    await eventually(lambda: listener.state is State.LIVE)


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


# --- Ours: ephemeral events ------------------------------------------------------------------------------


def said(text: Any) -> Ephemeral:
    return Ephemeral("thread:42", str(text).encode(), "c" * 32)


async def test_emitted_message_reaches_every_process_once(layers: Layers):
    here, there = layers.make(), layers.make()
    near, far = await Ears.in_rooms(here, ROOM), await Ears.in_rooms(there, ROOM)
    for n in range(20):
        await here.emit([ROOM], said(n))
    await here.group_send(ROOM, END)
    expected = [str(n) for n in range(20)] + [END]
    await near.hear(*expected)
    await far.hear(*expected)


async def test_emitted_message_is_not_for_its_sender_nor_for_who_is_behind_or_paused(layers: Layers):
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
    everybody = [await Ears.in_rooms(layer, room) for room in rooms for _ in range(3)]
    tally = SimpleNamespace(sent=lambda kind, frame, connections: counted.append(connections))
    monkeypatch.setattr(fanout, "tally", tally)
    await layer.emit(rooms, said("hello"))
    for ears in everybody:
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


def published(server: EmbeddedRedis) -> int:
    """How often anything was published so far."""
    with server.client() as redis:
        return redis.info("commandstats").get("cmdstat_publish", {"calls": 0})["calls"]


async def until_alone(layer: Any, server: EmbeddedRedis) -> None:
    """Wait until the layer publishes nothing of what it emits."""

    async def is_alone() -> bool:
        before = published(server)
        await layer.emit([ROOM], said("are you there?"))
        await layer.send(await layer.new_channel(), message())  # a turn of the loop
        return published(server) == before

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

    monkeypatch.setattr(Pipes, "listeners", misses_the_other)
    await Ears.in_rooms(layer, ROOM)
    await until_alone(layer, server)
    monkeypatch.undo()
    with server.client() as redis:
        redis.client_kill_filter(_type="pubsub")  # the other introduces itself again
    await eventually(lambda: subscriptions(server) == [3, 3])

    async def is_reached() -> bool:
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


async def test_what_comes_while_a_gap_is_found_out_is_not_forgotten(layer: Any, monkeypatch):
    """The log's end is asked for over one connection, what is published meanwhile comes over another."""
    ears = await Ears.in_rooms(layer, ROOM)
    await publish("first")
    await ears.hear("first")
    after, (listener,) = history.after, ears.listeners

    async def slow(*args: Any) -> Any:
        try:
            return await after(*args)
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


# --- Ours: nothing is lost in silence ----------------------------------------------------------------------


class Proxy:
    """Stands between us and Redis, and can go deaf without a word."""

    def __init__(self, server: EmbeddedRedis) -> None:
        self._server = server
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._subscribers: set[asyncio.StreamWriter] = set()
        self._deaf: set[asyncio.StreamWriter] = set()
        self.pings = 0
        self.swallows_connections = False
        """New connections are accepted and never answered."""
        self.accepted = 0

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    def go_deaf(self) -> int:
        """Nothing more comes through for whoever is subscribed now; returns their number."""
        self._deaf |= self._subscribers
        return len(self._deaf)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        self._writers.append(writer)
        if self.swallows_connections:
            self._deaf.add(writer)
        connecting = asyncio.ensure_future(asyncio.open_unix_connection(str(self._server.socket)))
        connecting.add_done_callback(lambda done: done.cancelled() or self._writers.append(done.result()[1]))
        theirs, ours = await asyncio.shield(connecting)  # one that is cancelled may leave its socket open
        with contextlib.suppress(OSError):
            await asyncio.gather(self._pass(reader, ours, writer), self._pass(theirs, writer, writer))
        writer.close()
        ours.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, who: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            self.pings += data.count(b"PING")
            if b"SUBSCRIBE" in data:
                self._subscribers.add(who)
            if who not in self._deaf:
                writer.write(data)
        writer.close()


@pytest.fixture
async def proxy(server: EmbeddedRedis) -> AsyncIterator[Proxy]:
    async with Proxy(server) as proxy:
        yield proxy


@pytest.fixture
async def behind(process: str, settings, proxy: Proxy) -> AsyncIterator[Layers]:
    """Ours, on a Redis of its own behind a proxy, with a short lease: what is dead is found out soon."""
    settings.REALTIME = {**settings.REALTIME, "REDIS_URL": proxy.url, "NODE_LEASE": 0.8}
    layers = Layers(OURS, proxy.url, process)
    yield layers
    await layers.flush()


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
    everybody = {room: [await Ears.in_rooms(layer, room) for _ in range(3)] for room in rooms}
    publishing = [asyncio.create_task(keep_publishing(420, group=room, at_once=at_once)) for room in rooms]
    kills = 0
    with server.client() as redis:
        while not all(task.done() for task in publishing):
            kills += redis.client_kill_filter(_type="pubsub")
            await asyncio.sleep(0.02)
    assert kills
    for room, task in zip(rooms, publishing, strict=True):
        positions = await task
        for ears in everybody[room]:
            await eventually(lambda ears=ears: len(ears.heard) >= 420)
            assert ears.heard == [str(n) for n in range(420)]
            assert ears.positions == positions


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
    everybody = await crowd(layer, ROOM, 6)
    quiet = await Ears.in_rooms(layer, "hub.thread.quiet")
    with server.client() as redis:
        await publish("1")
        await turns_until(lambda: any(each.heard for each in everybody))
        redis.client_kill_filter(_type="pubsub")
    await eventually(lambda: review.seconds)
    served = sum(len(each.heard) for each in everybody)
    for _ in range(20):
        await asyncio.sleep(0)
    assert sum(len(each.heard) for each in everybody) == served
    review.may_go_on.set()
    for each in everybody:
        await each.hear("1")
    await publish("2")
    for each in everybody:
        await each.hear("1", "2")
    await quiet.hear()


async def test_replay_that_is_under_way_waits_while_orders_may_have_been_missed(
    alone: Layers, server: EmbeddedRedis
):
    class Slow(Ears):
        def __init__(self) -> None:
            super().__init__()
            self.may_go_on = asyncio.Event()

        async def drained(self) -> None:
            await self.may_go_on.wait()

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
    layer, failures = alone.make(), [True, True]
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
        await history.append([Entry(rooms=[(ROOM, b"lost@")], tail=b"")], publish=False)
        redis.delete(f"{history.base(ROOM)}:log")
    await publish("not before the gap")
    await ears.hear("before", LOST)
    await publish("after")
    await ears.hear("before", LOST, "after")
    await other.hear()


async def test_hole_that_was_published_to_somebody_else_only_is_filled(layer: Any):
    """A message that the subscription did not bring (it may have been cut in that moment) is missed at the next one."""
    ears = await Ears.in_rooms(layer, ROOM)
    await publish("1")
    await history.append(
        [Entry(rooms=[(ROOM, b"2@")], tail=b""), Entry(rooms=[(ROOM, b"3@")], tail=b"")], publish=False
    )
    await publish("4")
    await ears.hear("1", "2", "3", "4")


async def test_hole_larger_than_one_slice_is_filled_in_order_while_more_is_published(layer: Any):
    ears = await Ears.in_rooms(layer, ROOM)
    silent = [Entry(rooms=[(ROOM, f"{n}@".encode())], tail=b"") for n in range(350)]
    await history.append(silent, publish=False)
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


async def test_room_whose_key_is_not_ours_is_refused_alone(alone: Layers):
    layer = alone.make()
    await client().set(f"{history.base('hub.thread.1')}:room", "another program's")
    entering = [Ears().enter(layer, f"hub.thread.{number}") for number in range(3)]
    first, refused, last = await asyncio.gather(*entering, return_exceptions=True)
    assert isinstance(refused, RedisError)
    for group, text in (("hub.thread.0", "a"), ("hub.thread.2", "b")):
        await history.append([Entry(rooms=[(group, f"{text}@".encode())], tail=b"")])
    for ears, text in ((first, "a"), (last, "b")):
        assert isinstance(ears, Ears)
        ears.start()
        await ears.hear(text)
    with pytest.raises(RedisError):
        await Ears().enter(layer, "hub.thread.1")


async def test_join_without_redis_fails_and_succeeds_when_it_is_back(alone: Layers, server: EmbeddedRedis):
    layer = alone.make()
    await Ears.in_rooms(layer, ROOM)
    ears = Ears()
    server.stop(SIGKILL)
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


# --- Ours: nothing stays -------------------------------------------------------------------------------------


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
