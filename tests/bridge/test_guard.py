"""Ids that a writer of the stream may choose: none stops the bus, locks a user out, or loses an entry unseen."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from realtime.auth import revocation
from realtime.auth.verification import verify
from realtime.bridge import guard
from realtime.bridge.bus_entry import BUS
from realtime.bridge.guard import AHEAD_SECONDS, StreamGuard
from realtime.redis.client import client, key
from realtime.redis.pipelining import pipes
from tests.bridge.support import MESSAGE, Room, cursor
from tests.inprocess import HUB, add, bridging, connected, dead_letters, eventually, issue

pytestmark = pytest.mark.usefixtures("process")

LAST = f"{2**64 - 1}-{2**64 - 1}"
DAY = 86_400_000


async def now_ms() -> int:
    return int(await revocation.now() * 1000)


async def add_at(entry_id: str, message_id: Any, **options: Any) -> None:
    message = {"event": "thread:message", "data": {**MESSAGE, "message_id": message_id}}
    await client().xadd(key("stream"), {"message": json.dumps(message)}, id=entry_id, **options)


async def last_id_ms() -> int:
    info: Any = await client().xinfo_stream(key("stream"))
    return int(info["last-generated-id"].partition(b"-")[0])


# --- Ids of the future -------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [LAST, f"{2**63}-5", DAY, 10_000], ids=str)
async def test_entry_of_the_future_is_delivered_once_and_so_is_everything_after_it(room: Room, ahead: Any):
    entry_id = ahead if isinstance(ahead, str) else f"{await now_ms() + ahead}-0"
    async with bridging():
        await add("thread:message", {**MESSAGE, "message_id": 1})
        await add_at(entry_id, 2)
        assert await room.message_ids(2) == ["1", "2"]
        await eventually(no_longer_ahead)
        for n in range(3, 60):
            await add("thread:message", {**MESSAGE, "message_id": n})
        assert await room.message_ids(57) == [str(n) for n in range(3, 60)]
    assert await dead_letters() == []


async def no_longer_ahead() -> bool:
    return await last_id_ms() <= await now_ms() + AHEAD_SECONDS * 1000


async def test_backlog_behind_an_entry_of_the_future_keeps_its_order(room: Room):
    """Other publishers had no choice: Redis made their ids of the last one."""
    for n in range(300):
        await add("thread:message", {**MESSAGE, "message_id": n})
    await add_at(f"{await now_ms() + DAY}-0", 300)
    for n in range(301, 2500):
        await add("thread:message", {**MESSAGE, "message_id": n})
    async with bridging():
        assert await room.message_ids(2500) == [str(n) for n in range(2500)]
    assert await no_longer_ahead()
    assert await dead_letters() == []


async def test_last_possible_id_does_not_stop_publishers_even_if_nothing_of_it_is_left(room: Room):
    await add_at(LAST, 1, maxlen=0, approximate=False)
    async with bridging():
        await eventually(no_longer_ahead)
        await add("thread:message", {**MESSAGE, "message_id": 2})
        assert await room.message_ids(1) == ["2"]


async def test_entry_with_thousands_of_fields_does_not_keep_the_others_from_going_on(room: Room):
    fields = {f"f{n}": "x" for n in range(10_000)}
    await client().xadd(key("stream"), fields, id=f"{await now_ms() + DAY}-0")  # type: ignore[arg-type]
    await add("thread:message", {**MESSAGE, "message_id": 2})
    async with bridging():
        assert await room.message_ids(1) == ["2"]
        await eventually(dead_letters)
    (letter,) = await dead_letters()
    assert letter["reason"].startswith("invalid_message")


async def test_disconnect_of_the_future_does_not_lock_the_user_out():
    token = issue(user_id="7", role="attendant")
    order = {"event": "user:disconnect", "data": {"user_id": "7", "namespace": HUB}}
    async with bridging(), connected(HUB, "7") as there:
        await client().xadd(key("stream"), {"message": json.dumps(order)}, id=f"{await now_ms() + DAY}-0")
        await there.expect_close()
        assert not await revocation.must_leave(verify(token), HUB, await revocation.now() + AHEAD_SECONDS)


async def test_entry_that_is_a_little_ahead_keeps_its_id(room: Room):
    entry_id = f"{await now_ms() + 2000}-0"
    async with bridging():
        await add_at(entry_id, 1)
        assert await room.message_ids(1) == ["1"]
        await eventually(lambda: same(entry_id))


async def same(entry_id: str) -> bool:
    return await cursor() == entry_id


# --- Ids below the cursor ----------------------------------------------------------------------------


@pytest.mark.parametrize("back", [None, 1, 60_000], ids=["1-1", "1 ms before", "a minute before"])
async def test_entry_below_the_cursor_becomes_a_dead_letter(room: Room, back: int | None):
    async with bridging():
        read = await add("thread:message", {**MESSAGE, "message_id": 1})
        assert await room.message_ids(1) == ["1"]
        await client().delete(key("stream"))
        await asyncio.sleep(0.01)  # or the next id is the same again
        await add_at("1-1" if back is None else f"{int(read.partition('-')[0]) - back}-0", 2)
        await add("thread:message", {**MESSAGE, "message_id": 3})
        assert await room.message_ids(1) == ["3"]
        await eventually(dead_letters)
    (letter,) = await dead_letters()
    assert letter["reason"].startswith("below_cursor")
    assert json.loads(letter["message"])["data"]["message_id"] == 2


async def test_entry_by_the_very_id_that_was_read_becomes_a_dead_letter(room: Room):
    async with bridging():
        read = await add("thread:message", {**MESSAGE, "message_id": 1})
        assert await room.message_ids(1) == ["1"]
        await client().delete(key("stream"))
        await add_at(read, 2)
        await eventually(dead_letters)
    (letter,) = await dead_letters()
    assert json.loads(letter["message"])["data"]["message_id"] == 2


async def test_entries_added_below_the_cursor_while_no_bridge_ran_become_dead_letters(room: Room):
    async with bridging():
        await add("thread:message", {**MESSAGE, "message_id": 0})
        await room.message_ids(1)
        await eventually(lambda: client().hexists(key("cursors"), key("stream") + ":bridge"))
    await client().delete(key("stream"))
    for n in range(1, 1501):
        await add_at(f"{n}-1", n)
    await add("thread:message", {**MESSAGE, "message_id": 1501})
    async with bridging():
        assert await room.message_ids(1) == ["1501"]
        await eventually(only_one_left)
    letters = await dead_letters()
    assert {letter["reason"].partition(":")[0] for letter in letters} == {"below_cursor"}
    assert json.loads(letters[-1]["message"])["data"]["message_id"] == 1500


async def only_one_left() -> bool:
    return await client().xlen(key("stream")) == 1


async def test_what_was_delivered_is_no_dead_letter_when_the_guard_is_new(room: Room):
    """As after an upgrade: the stream has no group yet."""
    async with bridging():
        for n in range(20):
            await add("thread:message", {**MESSAGE, "message_id": n})
        await room.message_ids(20)
        await eventually(lambda: client().hexists(key("cursors"), key("stream") + ":bridge"))
    await client().hdel(key("cursors"), key("stream") + ":bridge")  # type: ignore[misc]
    await client().xgroup_destroy(key("stream"), guard.GROUP)
    async with bridging():
        await add("thread:message", {**MESSAGE, "message_id": 20})
        assert await room.message_ids(1) == ["20"]
    assert await dead_letters() == []


async def test_stream_that_was_deleted_and_goes_on_with_ids_of_its_own_loses_nothing(room: Room):
    async with bridging():
        for n in range(30):
            if n % 10 == 5:
                await client().delete(key("stream"))
                await asyncio.sleep(0.01)
            await add("thread:message", {**MESSAGE, "message_id": n})
            assert await room.message_ids(1) == [str(n)]
        checked = StreamGuard(BUS)
        await checked.check(pipes(), b"0-0")
        await eventually(lambda: client().hexists(key("cursors"), key("stream") + ":bridge"))
    assert await dead_letters() == []
