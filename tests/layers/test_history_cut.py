"""Redis is set back, as by a replica without the newest writes, and an instance has received what is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from realtime.layers import history
from realtime.layers.outlets import PublicationBatch
from realtime.protocol.publication import Unrecoverable
from realtime.redis.client import client
from realtime.testing.embedded_redis import EmbeddedRedis
from tests.inprocess import eventually
from tests.layers.support import LOST, ROOM, Ears, Layers, publish, silently

QUIET = "hub.thread.quiet"


async def saved(group: str = ROOM) -> dict[str, Any]:
    """The keys of a room as they are now."""
    keys = [f"{history.base(group)}:{key}" for key in ("room", "log")]
    return {key: dumped for key in keys if (dumped := await client().dump(key)) is not None}


async def set_back(keys: dict[str, Any], group: str = ROOM) -> None:
    """The keys of a room are what they were."""
    await client().delete(*(f"{history.base(group)}:{key}" for key in ("room", "log")))
    for key, dumped in keys.items():
        await client().restore(key, 0, dumped)


@dataclass
class Room:
    """Two instances with one client each, of which the first has got something that Redis has lost since."""

    has_it: Ears
    lacks_it: Ears
    quiet: Ears
    """A client in a room that lost nothing."""
    instances: tuple[Any, Any]
    before: int
    """Position of what both have."""
    lost: int


@pytest.fixture(params=["first", "not the first"])
async def room(alone: Layers, request) -> AsyncIterator[Room]:
    one, other = alone.make(), alone.make()
    has_it, lacks_it = await Ears.in_rooms(one, ROOM), await Ears.in_rooms(other, ROOM)
    quiet = await Ears.in_rooms(other, QUIET)
    before = has_it.listeners[0].position
    if request.param == "not the first":
        before = await publish("1")
        await has_it.hear("1")
        await lacks_it.hear("1")
    replica = await saved()
    (lost,) = await silently("lost")
    group = has_it.listeners[0].group
    found = await history.after(ROOM, before, 10)
    group.receive(found.publications[-1])
    group.clear()
    has_it.listeners[0].take(PublicationBatch(found.publications))
    await set_back(replica)
    for ears in (has_it, lacks_it):
        ears.heard = ["…"]
    yield Room(has_it, lacks_it, quiet, (one, other), before, lost)
    await publish("after")
    for ears in (has_it, lacks_it):
        await eventually(lambda ears=ears: ears.heard[-1:] == ["after"])
        assert ears.gaps == [LOST]
    await publish("after", group=QUIET)
    await quiet.hear("after")


async def test_loss_that_one_instance_finds_on_being_connected_again_is_told_by_all(
    room: Room, server: EmbeddedRedis
):
    with server.client() as redis:
        redis.client_kill_filter(_type="pubsub")
    await room.has_it.hear("…", LOST)
    await room.lacks_it.hear("…", LOST)


async def test_loss_is_told_also_to_clients_that_have_gone_on_with_what_was_published_since(room: Room):
    await publish("since")
    await room.has_it.hear("…", LOST)
    await room.lacks_it.hear("…", "since", LOST)


async def test_loss_is_found_also_if_the_room_has_passed_what_was_lost(room: Room, server: EmbeddedRedis):
    """Where the room ends does not tell then: what was published since has higher positions."""
    assert min(await silently("since", "and since")) > room.lost
    with server.client() as redis:
        redis.client_kill_filter(_type="pubsub")
    await eventually(lambda: room.has_it.gaps and room.lacks_it.gaps)


async def test_loss_that_is_found_by_reading_for_a_client_that_comes_back_is_told_by_all(room: Room):
    instance, _ = room.instances
    again = await Ears().enter(instance, ROOM)
    assert await instance.missed(again.listeners[0], str(room.before)) is None
    await room.has_it.hear("…", LOST)
    await room.lacks_it.hear("…", LOST)


async def test_client_that_was_away_is_not_told_that_it_has_missed_nothing(room: Room, server: EmbeddedRedis):
    with server.client() as redis:
        redis.client_kill_filter(_type="pubsub")
    await eventually(lambda: room.lacks_it.gaps)
    _, instance = room.instances
    again = await Ears().enter(instance, ROOM)
    assert await instance.missed(again.listeners[0], str(room.before)) is None
    assert await instance.missed(again.listeners[0], str(room.lost)) is None


async def test_instance_that_was_cut_off_learns_of_it_later(room: Room, server: EmbeddedRedis, monkeypatch):
    """It did not hear of the cut: it compares its rooms once it is connected again."""
    group = room.lacks_it.listeners[0].group
    monkeypatch.setattr(type(group), "receive_cut", lambda group, end: None)
    await history.ends([ROOM], {ROOM: room.lost})
    with server.client() as redis:
        redis.client_kill_filter(_type="pubsub")
    await eventually(lambda: room.has_it.gaps and room.lacks_it.gaps)


async def test_loss_is_told_by_all_also_if_it_arrives_after_redis_was_read_again(
    alone: Layers, server: EmbeddedRedis
):
    """An instance that was suspended reads from the new primary before it has read what the old one had sent."""
    one, other = alone.make(), alone.make()
    has_it, lacks_it = await Ears.in_rooms(one, ROOM), await Ears.in_rooms(other, ROOM)
    start, before = has_it.listeners[0].position, await publish("1")
    await has_it.hear("1")
    await lacks_it.hear("1")
    replica = await saved()
    await silently("lost")
    group = has_it.listeners[0].group
    (late,) = (await history.after(ROOM, before, 1)).publications
    await set_back(replica)
    (since,) = await silently("since")
    again = await Ears().enter(one, ROOM)
    assert await one.missed(again.listeners[0], str(start)) == 2
    assert group.tail == since
    group.receive(late)
    group.clear()
    has_it.listeners[0].take(PublicationBatch([late]))
    with server.client() as redis:
        redis.client_kill_filter(_type="pubsub")
    await has_it.hear("1", "lost", LOST)
    await eventually(lambda: lacks_it.gaps == [LOST])


# --- What is no loss -----------------------------------------------------------------------------------


async def positions(count: int) -> list[int]:
    await history.ends([ROOM])
    return await silently(*map(str, range(count)))


@pytest.mark.parametrize("received", range(-1, 5))
async def test_history_that_has_what_was_received_is_left_as_it_is(process: str, received: int):
    (start,) = (await history.ends([ROOM])).values()
    known = [start, *await silently("0", "1", "2", "3")]
    position = known[received] if received >= 0 else 0  # nothing
    assert await history.ends([ROOM], {ROOM: position}) == {ROOM: known[-1]}
    assert (await history.after(ROOM, start, 10, (position,))).missed == 4


@pytest.mark.parametrize("trimmed", [1, 3, 4])
async def test_trimmed_history_is_no_loss(process: str, trimmed: int):
    known = await positions(4)
    await client().xtrim(f"{history.base(ROOM)}:log", maxlen=4 - trimmed, approximate=False)
    for received in known:
        assert await history.ends([ROOM], {ROOM: received}) == {ROOM: known[-1]}


async def test_wiped_history_is_not_cut_but_begins_anew(process: str):
    known = await positions(2)
    await set_back({})
    (end,) = (await history.ends([ROOM], {ROOM: known[-1]})).values()
    assert await history.ends([ROOM], {ROOM: known[-1]}) == {ROOM: end}


async def test_history_is_cut_once_however_many_instances_have_received_something_else(process: str):
    known = await positions(5)
    replica = await saved()
    lost = await silently("5", "6", "7")
    await set_back(replica)
    (cut,) = (await history.ends([ROOM], {ROOM: lost[1]})).values()
    assert cut > lost[2]
    for received in (*lost, *known):
        assert await history.ends([ROOM], {ROOM: received}) == {ROOM: cut}
    (after,) = await silently("8")
    for received in (*lost, *known, cut):
        assert await history.ends([ROOM], {ROOM: received}) == {ROOM: after}
    assert (await history.after(ROOM, cut, 10)).missed == 1
    for position in known:
        with pytest.raises(Unrecoverable):
            await history.after(ROOM, position, 10)
