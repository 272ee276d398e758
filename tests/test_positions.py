from __future__ import annotations

import asyncio

import pytest

from realtime import positions
from realtime.positions import assign, ends
from realtime.redis import client, key
from realtime.rooms import HUB, PORTAL

HERE, THERE = (HUB, "thread:42"), (PORTAL, "thread:42")
pytestmark = pytest.mark.usefixtures("process")


async def give(entry: str, *targets: positions.Target, source: str = "stream", id: str | None = None):
    return await assign(targets or (HERE,), source=source, entry=entry, id=id)


async def position(entry: str, source: str = "stream") -> int:
    found = await give(entry, source=source)
    assert found is not None
    return int(found[HERE])


async def microseconds() -> int:
    seconds, micro = await client().time()
    return int(seconds) * 1_000_000 + int(micro)


# --- Ends --------------------------------------------------------------------------------------------


async def test_end_of_an_unknown_room_is_now():
    before = await microseconds()
    found = await ends([HERE])
    assert before <= int(found[HERE]) <= await microseconds()


async def test_end_stays_while_nothing_is_published():
    assert await ends([HERE]) == await ends([HERE])


async def test_end_is_the_position_of_the_last_entry():
    await give("1")
    last = await give("2")
    assert await ends([HERE]) == last


async def test_every_room_has_an_end_of_its_own():
    await give("1", HERE)
    before = await ends([HERE, THERE])
    await give("2", THERE)
    after = await ends([HERE, THERE])
    assert after[HERE] == before[HERE]
    assert int(after[THERE]) > int(before[THERE])


async def test_ends_of_no_rooms_are_none():
    assert await ends([]) == {}


async def test_quiet_room_is_remembered_for_a_week():
    await ends([HERE])
    (record,) = await client().keys(key("*room"))
    assert 7 * 86400 - 10 < await client().ttl(record) <= 7 * 86400


# --- Positions ---------------------------------------------------------------------------------------


async def test_positions_grow():
    found = [await position(str(entry)) for entry in range(1, 9)]
    assert found == sorted(set(found))


async def test_position_is_later_than_the_end_a_connection_saw_before():
    seen = int((await ends([HERE]))[HERE])
    assert await position("1") > seen


async def test_positions_follow_the_clock_so_that_redis_cannot_hand_out_an_old_one_after_losing_writes():
    before = await microseconds()
    assert await position("1") >= before


async def test_positions_grow_even_if_the_clock_goes_back():
    ahead = await microseconds() + 3_600_000_000
    await ends([HERE])
    (record,) = await client().keys(key("*room"))
    await client().hset(record, "position", str(ahead))
    assert await position("1") == ahead + 1
    assert await position("2") == ahead + 2


async def test_entry_gets_a_position_in_each_of_its_rooms():
    found = await give("1", HERE, THERE, (HUB, "user:7"))
    assert found is not None
    assert set(found) == {HERE, THERE, (HUB, "user:7")}


async def test_entry_asked_for_again_gets_the_same_position():
    first = await give("1", HERE, THERE)
    assert await give("1", HERE, THERE) == first


async def test_entry_that_was_delivered_to_some_rooms_only_is_completed():
    half = await give("1", HERE)
    whole = await give("1", HERE, THERE)
    assert half is not None
    assert whole is not None
    assert whole[HERE] == half[HERE]
    assert THERE in whole


async def test_entry_older_than_what_a_room_has_is_left_out_of_that_room():
    await give("2", HERE)
    found = await give("1", HERE, THERE)
    assert found is not None
    assert set(found) == {THERE}


async def test_sources_do_not_hide_each_others_entries():
    one = await position("9", source="stream")
    assert await position("1", source="presence") > one


async def test_entry_asked_for_again_gets_the_same_position_even_after_one_of_another_source():
    one = await position("9", source="stream")
    two = await position("1", source="presence")
    assert await position("9", source="stream") == one
    assert await position("1", source="presence") == two


async def test_concurrent_entries_never_share_a_position():
    found = await asyncio.gather(*(give("1", source=f"source-{n}") for n in range(50)))
    assert len({answer[HERE] for answer in found if answer}) == 50


# --- Idempotency -------------------------------------------------------------------------------------


async def test_entry_with_an_id_that_was_delivered_is_a_duplicate():
    assert await give("1", id="order-7") is not None
    assert await give("2", id="order-7") is None


async def test_id_counts_across_both_ways_in():
    assert await give("1", id="order-7", source="events") is not None
    assert await give("1", id="order-7", source="stream") is None


async def test_same_entry_asked_for_again_is_no_duplicate_of_itself():
    first = await give("1", id="order-7")
    assert await give("1", id="order-7") == first


async def test_other_ids_are_not_duplicates():
    assert await give("1", id="order-7") is not None
    assert await give("2", id="order-8") is not None


async def test_id_is_remembered_for_ten_minutes():
    await give("1", id="order-7")
    assert 590 < await client().ttl(key("delivered", "order-7")) <= 600


async def test_entry_for_nobody_is_still_found_to_be_a_duplicate():
    assert await assign((), source="stream", entry="1", id="d1") == {}
    assert await assign((), source="stream", entry="2", id="d1") is None
