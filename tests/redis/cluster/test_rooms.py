"""Rooms on all servers of a Cluster, and what a bridge delivers to them."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from typing import Any, cast

import pytest
import redis as redis_py

from presence import store
from presence.store import Caller
from realtime.bridge import stream_delivery
from realtime.layers import history
from realtime.protocol.publication import Draft
from realtime.publisher import apublish
from realtime.redis.client import client, key
from realtime.redis.pipelining import Pipe, Pipes
from realtime.redis.topology import slot
from tests.bridge.support import Room
from tests.inprocess import HUB, add, bridging, dead_letters, eventually
from tests.layers.support import Ears
from tests.redis.cluster.support import ANA_CONNECTS, ROOMS, everywhere, shards

pytestmark = pytest.mark.usefixtures("process")


async def test_entry_reaches_its_rooms_on_all_servers_once(layer: Any):
    assert len({slot(history.base(group)) // 5461 for group in ROOMS}) == 3
    ears = [await Ears.in_rooms(layer, group) for group in ROOMS]
    (positions,) = await history.append([everywhere("1")])
    assert len(positions) == len(ROOMS)
    assert await history.append([everywhere("1"), everywhere("2")]) == [
        [b""] * len(ROOMS),
        [str(end).encode() for end in (await history.ends(ROOMS)).values()],
    ]
    for each in ears:
        await each.hear("1", "2")
    assert [each.positions[0] for each in ears] == [int(position) for position in positions]


async def test_batch_that_failed_half_way_can_be_repeated(layer: Any, monkeypatch):
    """One of the servers is away: what the others did stays, and is not done again."""
    ears = [await Ears.in_rooms(layer, group) for group in ROOMS]
    run, broken = Pipe.run, slot(history.base(ROOMS[5]))

    def unreliable(self: Pipe, script: Any, keys: Any, arguments: Any) -> Any:
        if keys and slot(keys[0]) == broken:
            raise redis_py.ConnectionError("gone")
        return run(self, script, keys, arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Pipe, "run", unreliable)
        with pytest.raises(redis_py.ConnectionError):
            await history.append([everywhere("1"), everywhere("2")], cursor=(key("cursors"), b"s", b"2-0"))
    assert await client().hget(key("cursors"), "s") is None
    await history.append([everywhere("1"), everywhere("2")], cursor=(key("cursors"), b"s", b"2-0"))
    assert await client().hget(key("cursors"), "s") == b"2-0"
    for each in ears:
        await each.hear("1", "2")


async def test_entry_that_one_of_its_rooms_refuses_reaches_all_others_and_the_cursor_waits(layer: Any):
    ears = [await Ears.in_rooms(layer, group) for group in ROOMS[1:]]
    await client().set(f"{history.base(ROOMS[0])}:room", "not ours")
    entries = [everywhere("1", groups=ROOMS[1:]), everywhere("2"), everywhere("3", groups=ROOMS[1:])]
    appended = await history.append(entries, cursor=(key("cursors"), b"s", b"3-0"))
    ((number, why),) = history.refusals(appended, entries)
    assert number == b"1"
    assert why.startswith(b"WRONGTYPE")
    assert await client().hget(key("cursors"), "s") is None
    for each in ears:
        await each.hear("1", "2", "3")


async def test_cursor_of_a_bridge_that_is_behind_moves_nothing_back():
    for entry in (b"10-0", b"9-5", b"10-1", b"10-0"):
        await history.append([everywhere("1")], cursor=(key("cursors"), b"s", entry))
    assert await client().hget(key("cursors"), "s") == b"10-1"


async def test_what_large_bodies_in_many_slots_cost_is_bounded():
    rooms = [(f"hub.thread.{number}", b"") for number in range(1000)]
    large = Draft(rooms=rooms, tail=b"x" * 200_000, source="stream", entry=f"{1:0>20}")
    tracemalloc.start()
    try:
        await history.prepare_append(pipes := Pipes(), [large])()
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
        pipes.close()


async def test_id_is_remembered_by_every_room(layer: Any):
    ears = [await Ears.in_rooms(layer, group) for group in ROOMS[:6]]
    await history.append([everywhere("1", id="order-7", groups=ROOMS[:3])])
    await history.append([everywhere("2", id="order-7", groups=ROOMS[:6])])
    for each in ears[:3]:
        await each.hear("1")
    for each in ears[3:]:
        await each.hear("2")


async def test_former_holder_of_the_lease_publishes_nothing():
    await client().set(key("lease", "bridge"), "another bridge")
    assert await history.append([everywhere("1")], lease=(key("lease", "bridge"), "me")) == []


async def test_batch_that_goes_over_pipes_ends_with_them():
    """Lease and cursor go over them, too: what has begun uses nothing that might be closed before."""
    pipes, cursor = Pipes(), (key("cursors"), b"s", b"2-0")
    await client().set(key("lease", "bridge"), "me")
    assert await history.prepare_append(
        pipes, [everywhere("1")], lease=(key("lease", "bridge"), "me"), cursor=cursor
    )()
    assert await client().hget(key("cursors"), "s") == b"2-0"
    pipes.close()
    with pytest.raises(redis_py.RedisError):
        await history.prepare_append(pipes, [everywhere("2")], cursor=cursor)()


@pytest.mark.usefixtures("without_outbox")
async def test_bridge_delivers_from_streams_on_different_servers(layer: Any):
    rooms = [await Room().enter(f"thread:{number}") for number in range(12)]
    attendants = await Room().enter("presence:attendants")
    async with bridging():
        store.apply_sync(HUB, [{"does": "sweep"}])
        await store.apply(HUB, [ANA_CONNECTS], Caller("n", registers=True))
        for number in range(12):
            await apublish("thread:message", {"thread_id": number, "message_id": 1})
            await add("thread:message", {"thread_id": number, "message_id": 2})
        for room in rooms:
            assert await room.message_ids(2) == ["1", "2"]
        assert (await attendants.frame())["event"] == "attendant:online"
        await client().execute_command(
            "PUBLISH",
            key("events"),
            json.dumps({"event": "thread:message", "data": {"thread_id": 3, "message_id": 3}}),
            target_nodes="random",
        )
        assert await rooms[3].message_ids(1) == ["3"]


async def room_as_it_was(group: str) -> dict[str, bytes]:
    """The keys of a room, for `forget_the_rest`."""
    kept: dict[str, bytes] = {}
    for name in ("room", "log"):
        dumped: Any = await client().dump(f"{history.base(group)}:{name}")
        kept[f"{history.base(group)}:{name}"] = dumped
    return kept


async def forget_the_rest(kept: dict[str, bytes]) -> None:
    """As a replica that takes over without the newest writes."""
    for name, value in kept.items():
        await client().restore(name, 0, value, replace=True)


async def is_delivered() -> bool:
    """All of the stream, and the next bridge will know. (A dead letter is written before the cursor.)"""
    ((newest, _),) = cast(Any, await client().xrevrange(key("stream"), count=1))
    return bool(await client().hget(key("cursors"), key("stream")) == newest)


async def seen(group: str, position: int) -> list[str]:
    found = await history.after(group, position, 10)
    return [json.loads(each.frame)["data"]["message_id"] for each in found.publications]


def offsets(ears: Ears) -> list[int]:
    return [int(json.loads(text)["offset"]) for text in ears.heard if isinstance(text, str)]


@pytest.mark.parametrize("who", ["another bridge", "the same bridge"])
async def test_what_a_replica_never_got_is_delivered_again(layer: Any, who: str):
    """The cursor is on another server, and knows more than the room."""
    group = "hub.thread.42"
    found = shards()
    ears = await Ears.in_rooms(layer, group)
    async with contextlib.AsyncExitStack() as first:
        await first.enter_async_context(bridging())
        await add("thread:message", {"thread_id": 42, "message_id": 1})
        await eventually(lambda: len(offsets(ears)) == 1)
        kept = await room_as_it_was(group)
        await add("thread:message", {"thread_id": 42, "message_id": 2})
        await eventually(lambda: len(offsets(ears)) == 2)
        await add("no:such", {})
        await eventually(is_delivered)
        ears.leave(layer)  # else the history would be cut: an instance knows that the replica lacks something
        await forget_the_rest(kept)
        assert await seen(group, offsets(ears)[0]) == []
        if who == "the same bridge":
            for tell in tuple(found.on_arrival):
                tell()
            await eventually(lambda: seen(group, offsets(ears)[0]))
        else:
            await first.aclose()
            await first.enter_async_context(bridging())
        await add("thread:message", {"thread_id": 42, "message_id": 3})
        await eventually(lambda: seen_all(group, offsets(ears)[0]))
    again = await Ears().enter(layer, group)
    assert (
        await layer.missed(again.listeners[0], str(offsets(ears)[1])) is None
    )  # its position is nowhere any more
    assert len(await dead_letters()) == 1


async def seen_all(group: str, position: int) -> bool:
    return await seen(group, position) == ["2", "3"]


async def test_what_is_delivered_again_is_not_for_clients_that_came_later(layer: Any):
    async with bridging():
        await add("thread:message", {"thread_id": 42, "message_id": 1})
        await add("no:such", {})
        await eventually(is_delivered)
    ears = await Ears.in_rooms(layer, "hub.thread.42")
    async with bridging():
        await add("thread:message", {"thread_id": 42, "message_id": 2})
        await eventually(lambda: offsets(ears))
    assert [json.loads(text)["data"]["message_id"] for text in ears.heard] == ["2"]


async def test_what_has_been_delivered_again_does_not_move_the_cursor_back(layer: Any):
    ears = await Ears.in_rooms(layer, "hub.thread.42")
    async with bridging():
        for number in range(3):
            await add("thread:message", {"thread_id": 42, "message_id": number})
        await eventually(lambda: len(offsets(ears)) == 3)
        await eventually(is_delivered)
    before = await client().hgetall(key("cursors"))
    async with bridging():
        pass
    assert await client().hgetall(key("cursors")) == before


@pytest.mark.parametrize("is_with_the_stream", [True, False])
async def test_message_does_not_wait_for_the_next_one_nor_for_an_idle_stream(
    layer: Any, monkeypatch, caplog, is_with_the_stream: bool
):
    """A read that waits in Redis holds up what the bridge sends to that server after it."""
    monkeypatch.setattr(stream_delivery, "READ_BLOCK", 60.0)
    found = shards()
    await found.known()
    at = found.owner(key("stream"))
    places = ((found.owner(history.base(f"hub.thread.{number}")) == at, number) for number in range(100))
    thread = dict(places)[is_with_the_stream]
    ears = await Ears.in_rooms(layer, f"hub.thread.{thread}")
    async with bridging():
        for number in range(3):
            await add("thread:message", {"thread_id": thread, "message_id": number})
            await eventually(lambda number=number: len(offsets(ears)) == number + 1)
        assert "redis does not answer" not in caplog.text
