from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from realtime.layers import history
from realtime.layers.history import after, append, ends
from realtime.protocol.publication import Draft, Unrecoverable, parse_position, unpack
from realtime.redis.client import client
from tests.inprocess import PATIENCE
from tests.layers.support import (
    EVERYTHING,
    HERE,
    THERE,
    entry,
    limited,
    logged,
    microseconds,
    names,
    names_of,
    one,
    put,
    several,
)

pytestmark = pytest.mark.usefixtures("process")


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
    """What is published in HERE, one after the other."""
    async with client().pubsub() as subscription:
        await subscription.subscribe(history.channel(HERE))
        await subscription.get_message(timeout=PATIENCE)

        async def next_one() -> bytes:
            message = await subscription.get_message(ignore_subscribe_messages=True, timeout=PATIENCE)
            assert message is not None
            return message["data"]

        yield next_one


# --- Positions ---------------------------------------------------------------------------------------


async def test_positions_of_a_room_strictly_increase():
    found = await several(5) + [position for (position,) in await put(*(entry(str(n)) for n in range(6, 60)))]
    assert found == sorted(set(found))


async def test_position_is_not_behind_the_clock_so_that_a_redis_that_lost_its_newest_writes_hands_out_no_old_one():
    before = await microseconds()
    assert before <= await one("1") <= await microseconds()


async def test_position_is_not_reused_when_the_room_is_forgotten():
    seen = await one("1")
    await client().delete(f"{history.base(HERE)}:room")
    assert await one("2") > seen
    await client().delete(f"{history.base(HERE)}:room", f"{history.base(HERE)}:log")
    assert await one("3") > seen


@pytest.fixture
async def ahead() -> int:
    """The end of HERE, an hour ahead of the clock: Redis' clock was set back, or another server took over."""
    await ends([HERE])
    ahead = await microseconds() + 3_600_000_000
    await client().hset(f"{history.base(HERE)}:room", "position", ahead)
    return ahead


async def test_positions_increase_while_the_clock_is_behind(ahead: int):
    assert await several(3) == [ahead + 1, ahead + 2, ahead + 3]
    assert (await after(HERE, ahead + 1, EVERYTHING)).missed == 2


async def test_position_is_not_reused_when_the_room_is_forgotten_while_the_clock_is_behind(ahead: int):
    seen = await one("1")
    await client().delete(f"{history.base(HERE)}:room")
    assert await one("2") > seen
    assert await names() == ["2"]


async def test_room_forgotten_while_its_log_was_not_recovers_nothing_from_before():
    first, *_ = await several(3)
    await client().delete(f"{history.base(HERE)}:room")
    (end,) = (await ends([HERE])).values()
    assert end > first
    with pytest.raises(Unrecoverable):
        await after(HERE, first, EVERYTHING)
    later = await one("4")
    assert (await after(HERE, end, EVERYTHING)).missed == 1
    with pytest.raises(Unrecoverable) as lost:
        await after(HERE, first, EVERYTHING)
    assert lost.value.end == later


async def test_rooms_have_positions_of_their_own():
    ((here, there),) = await put(entry("1", HERE, THERE))
    later = await one("2", HERE)
    assert here
    assert there
    assert await ends([HERE, THERE]) == {HERE: later, THERE: there}


async def test_concurrent_entries_never_share_a_position():
    found = await asyncio.gather(*(one("1", source=f"source-{n}") for n in range(50)))
    assert len(set(found)) == 50
    assert 0 not in found


# --- Rooms that were never entered ---------------------------------------------------------------------


async def test_nothing_is_kept_of_what_no_client_could_ever_ask_for():
    assert await append([entry("1", id="order-7")]) == [[b"0"]]
    assert await client().keys(f"{history.base(HERE)}*") == []


async def test_room_that_was_entered_is_kept_though_it_is_empty():
    end = (await ends([HERE]))[HERE]
    ((position,),) = await put(entry("1"), publish=True)
    assert position > end
    assert names_of((await after(HERE, end, EVERYTHING)).publications) == ["1"]


async def test_room_that_redis_forgot_is_kept_for_clients_that_are_in_it():
    async with listening():
        assert await put(entry("1"), publish=True) != [[0]]


async def test_entry_is_delivered_in_rooms_that_were_entered_and_nowhere_else():
    await ends([THERE])
    ((here, there),) = await put(entry("1", HERE, THERE, id="order-7"), publish=True)
    assert (here, bool(there)) == (0, True)
    await ends([HERE])  # who comes later does not get it when a bridge submits it again
    assert await put(entry("1", HERE, THERE, id="order-7"), publish=True) == [[0, 0]]
    assert await names() == []


# --- Ends --------------------------------------------------------------------------------------------


async def test_end_of_an_unknown_room_is_now():
    before = await microseconds()
    assert before <= (await ends([HERE]))[HERE] <= await microseconds()


async def test_quiet_room_is_remembered_for_a_week():
    await ends([HERE])
    assert 7 * 86400 - 10 < await client().ttl(f"{history.base(HERE)}:room") <= 7 * 86400


async def test_room_is_never_forgotten_before_its_log(settings):
    limited(settings, HISTORY_TTL=30 * 86400)
    await one("1")
    await ends([HERE])
    assert await client().ttl(f"{history.base(HERE)}:room") >= await client().ttl(f"{history.base(HERE)}:log")


# --- Frames and publishing ---------------------------------------------------------------------------


async def test_what_is_published_is_what_is_in_the_log():
    excluded = ["a", "c" * 32, "another's idea of a connection id " * 5, "ünïcode", ""]
    entries = [
        entry(f"{number}", exclude=each, body="ünï".encode()) for number, each in enumerate(excluded, 1)
    ]
    async with listening() as next_one:
        await put(*entries, publish=True)
        published = [unpack(await next_one()) for _ in entries]
    assert published == await logged()
    assert [publication.exclude for publication in published] == excluded
    assert [publication.previous for publication in published[1:]] == [p.position for p in published[:-1]]


async def test_nothing_is_published_when_another_channel_layer_does_that():
    async with listening() as next_one:
        await put(entry("1"), publish=False)
        await client().publish(history.channel(HERE), b"end")
        assert await next_one() == b"end"
    assert await names() == ["1"]


# --- Many rooms --------------------------------------------------------------------------------------


ROOMS = [f"hub.thread.{number}" for number in range(200)]
BODY = b"x" * 100_000


def everywhere(name: str, groups: Sequence[str] = ROOMS) -> Draft:
    rooms = [(group, f"{name}@".encode()) for group in groups]
    return Draft(rooms=rooms, tail=BODY, source="stream", entry=f"{name:0>20}")


async def test_body_is_sent_once_however_many_rooms_get_it():
    await one("0")  # a server that does not have the script yet gets the command a second time, with it
    before = (await client().info("stats"))["total_net_input_bytes"]
    ((*positions,),) = await put(everywhere("1"))
    assert all(positions)
    assert (await client().info("stats"))["total_net_input_bytes"] - before < 2 * len(BODY)
    assert all([(await logged(group))[0].frame.endswith(BODY) for group in ROOMS[::50]])


async def test_what_many_rooms_cost_is_bounded():
    entries = [everywhere(name, [f"hub.thread.{n}" for n in range(1000)]) for name in ("1", "2")]
    tracemalloc.start()
    try:
        await append(entries)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


# --- Offsets of clients ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1", "1795000000000000", "9" * 18])
def test_offset_that_could_be_ours_is_a_position(text: str):
    assert parse_position(text) == int(text)


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "+1", "1.5", " 1", "1 ", "1\n", "007", "1e5", "١", "9" * 19, "latest"]
)
def test_offset_that_cannot_be_ours_is_no_position(text: str):
    assert parse_position(text) is None
