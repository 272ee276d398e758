"""Rooms on a channel layer that knows nothing of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer
from redis.exceptions import ConnectionError as RedisDown

from realtime.layers import history, stock
from realtime.layers.interface import room_layer
from realtime.layers.outlets import Ephemeral, Mailbox
from realtime.layers.stock import StockLayer
from realtime.protocol.rooms import group_name, room_of_group
from realtime.redis.client import client
from realtime.redis.pipelining import pipes
from tests.inprocess import eventually
from tests.layers.support import LOST, ROOM, Ears, Gap, draft

pytestmark = pytest.mark.usefixtures("process")


REFUSED = "hub.thread.13"


@pytest.fixture
def memory() -> InMemoryChannelLayer:
    return InMemoryChannelLayer()


@pytest.fixture
async def layer(memory: InMemoryChannelLayer, monkeypatch) -> AsyncIterator[StockLayer]:
    layer, attached = StockLayer(memory), []
    attach = layer.attach

    async def noted(mailbox: Mailbox) -> str:
        attached.append(await attach(mailbox))
        return attached[-1]

    monkeypatch.setattr(layer, "attach", noted)
    yield layer
    for channel in attached:
        layer.detach(channel)


async def publish(layer: StockLayer, *texts: str, exclude: str = "", group: str = ROOM) -> None:
    """As a bridge does."""
    await layer.prepare(pipes(), [draft(text, group, exclude) for text in texts])()


async def test_message_that_redis_refuses_holds_back_no_other(layer: Any):
    ears = await Ears.in_rooms(layer, ROOM)
    await client().set(f"{history.base(REFUSED)}:room", "not ours")
    entries = [draft("1"), draft("refused", REFUSED), draft("2")]
    appended = await layer.prepare(pipes(), entries)()
    await ears.hear("1", "2")
    assert [number for number, _ in history.refusals(appended, entries)] == [b"1"]


@pytest.mark.parametrize("room", [room_of_group(ROOM), "presence:Équipe São Paulo", "presence:" + "é" * 64])
async def test_listener_gets_what_is_published_and_what_is_emitted(layer: Any, room: str):
    group = group_name("hub", room)
    ears, other = await Ears("m" * 32).enter(layer, group), await Ears.in_rooms(layer, group)
    ears.start()
    await publish(layer, "1", group=group)
    await publish(layer, "not for me", exclude="m" * 32, group=group)
    await layer.emit([group], Ephemeral(room, b"typing", "m" * 32))
    await publish(layer, "2", group=group)
    await ears.hear("1", "2")
    await other.hear("1", "not for me", "typing", "2")
    ears.leave(layer)
    await publish(layer, "3", group=group)
    await other.hear("1", "not for me", "typing", "2", "3")
    await ears.hear("1", "2")


async def test_paused_listener_gets_what_came_meanwhile_once_started(layer: Any):
    ears = await Ears().enter(layer, ROOM)
    await publish(layer, "1", "2")
    await eventually(lambda: len(ears.listeners[0].group.waiting) == 2)
    await ears.hear()
    ears.start()
    await publish(layer, "3")
    await ears.hear("1", "2", "3")


@pytest.mark.parametrize("more", [[], ["5"]])
async def test_more_than_is_kept_for_a_paused_listener_is_a_gap(layer: Any, monkeypatch, more: list[str]):
    monkeypatch.setattr(stock, "WAITING_BYTES", 60)
    ears = await Ears().enter(layer, ROOM)
    (listener,) = ears.listeners
    await publish(layer, "1", "2", "3")  # of 18 bytes each
    await eventually(lambda: len(listener.group.waiting) == 3)
    await publish(layer, "4")
    await eventually(lambda: not listener.group.waiting)
    await publish(layer, *more)
    await eventually(lambda: len(listener.group.waiting) == len(more))
    ears.start()
    await ears.hear(LOST, *more)
    await publish(layer, "after")
    await ears.hear(LOST, *more, "after")


async def test_listener_that_left_hears_nothing_more(layer: Any):
    gone, stays = await Ears.in_rooms(layer, ROOM), await Ears.in_rooms(layer, ROOM)
    gone.leave(layer)
    await publish(layer, "hello")
    await stays.hear("hello")
    await gone.hear()


async def test_who_enters_a_room_again_before_the_layer_has_let_go_is_in_it(
    layer: Any, memory: InMemoryChannelLayer, monkeypatch
):
    discard, may_go_on, discarded = memory.group_discard, asyncio.Event(), asyncio.Event()

    async def discard_slowly(group: str, channel: str) -> None:
        await may_go_on.wait()
        await discard(group, channel)
        discarded.set()

    monkeypatch.setattr(memory, "group_discard", discard_slowly)
    ears = await Ears.in_rooms(layer, ROOM)
    layer.leave(ears.listeners[0], ears.channel)
    entering = asyncio.create_task(layer.enter([ROOM], ears, ears.channel))
    await asyncio.sleep(0.05)
    may_go_on.set()
    (listener,) = await entering
    listener.start()
    await discarded.wait()
    await publish(layer, "hello")
    await ears.hear("hello")


async def test_rooms_are_entered_all_or_none(memory: InMemoryChannelLayer, monkeypatch):
    groups: Any = memory.groups
    add, discarded = memory.group_add, Ears()

    async def add_or_fail(group: str, channel: str) -> None:
        if group == ROOM:
            raise RedisDown("away")
        await add(group, channel)

    monkeypatch.setattr(memory, "group_add", add_or_fail)
    layer: Any = StockLayer(memory)
    with pytest.raises(RedisDown):
        await discarded.enter(layer, "hub.thread.1", ROOM)
    await eventually(lambda: not groups.get("hub.thread.1"))


async def test_nothing_is_recovered(layer: Any):
    ears = await Ears.in_rooms(layer, ROOM)
    await publish(layer, "1")
    await ears.hear("1")
    (listener,) = ears.listeners
    listener.pause()
    assert await layer.missed(listener, "1") is None
    assert listener.position == ears.positions[-1]
    assert Gap("thread:42", "lost") not in ears.heard  # the answer says so


async def test_layer_is_wrapped_once(settings):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    assert isinstance(room_layer(), StockLayer)
    assert room_layer() is room_layer()
