"""The rooms of a connection: joining, leaving, resuming."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock

import pytest
from redis.exceptions import ConnectionError as RedisDown

from hub.consumers import HubConsumer
from realtime.auth import revocation
from realtime.auth.issuing import issue
from realtime.layers import history
from realtime.layers.room_layer import RoomChannelLayer
from realtime.redis import schema_version
from tests.connections.support import consumer
from tests.inprocess import Connection, add, bearer, bridging, connected

pytestmark = pytest.mark.usefixtures("process")


# --- Rooms -------------------------------------------------------------------------------------------


async def test_joining_answers_with_the_room_and_its_end():
    async with connected() as ana:
        answer = await ana.call("join:thread", {"thread_id": 42})
        ends = await history.ends(["hub.thread.42"])
        assert answer == {"room": "thread:42", "offset": str(ends["hub.thread.42"])}


async def test_joining_twice_is_fine():
    async with connected() as ana:
        assert await ana.call("join:thread", {"thread_id": 42}) == await ana.call(
            "join:thread", {"thread_id": "42"}
        )


@pytest.mark.parametrize("since", ["", "x" * 65, 7])
async def test_since_is_a_non_empty_opaque_string(since: Any):
    async with connected() as ana:
        assert (await ana.refused("join:thread", {"thread_id": 42, "since": since}))["code"] == (
            "invalid_payload"
        )


async def test_leaving_a_room_one_is_not_in_is_fine():
    async with connected() as ana:
        assert await ana.call("leave:thread", {"thread_id": 42}) == {"room": "thread:42"}


# --- Resume ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_in", [False, True])
async def test_resume_does_not_answer_for_a_room_that_its_member_is_expelled_from_meanwhile(
    monkeypatch, is_in: bool
):
    missed = RoomChannelLayer.missed

    async def missed_and_expelled(*args: Any) -> Any:
        found = await missed(*args)
        consumer().expel("thread:42", "expelled")
        return found

    async with connected() as ana:
        if is_in:
            await ana.call("join:thread", {"thread_id": "42"})
        monkeypatch.setattr(RoomChannelLayer, "missed", missed_and_expelled)
        answer = await ana.call("resume", {"rooms": {"thread:42": "1"}})
        assert answer["rooms"] == {"thread:42": {"error": "forbidden"}}
        await ana.expect("room:left", room="thread:42", reason="expelled")
        error = await ana.refused("join:thread", {"thread_id": "42", "since": "1"})
        assert error["code"] == "forbidden"
        assert "thread:42" not in consumer().rooms


@pytest.mark.parametrize("again", [{}, {"since": "1"}], ids=["join", "rejoin"])
async def test_expulsion_does_not_concern_a_member_who_entered_after_it(again: dict[str, str], monkeypatch):
    claim = schema_version.claim

    async def slow() -> None:  # a handshake that takes its time must not put the clock back
        await asyncio.sleep(0.2)
        await claim()

    monkeypatch.setattr(schema_version, "claim", slow)
    async with connected() as ana:
        if again:
            await ana.call("join:thread", {"thread_id": 42})
        await asyncio.sleep(0.02)
        expelled_at = await revocation.now()
        await asyncio.sleep(0.02)
        await ana.call("join:thread", {"thread_id": 42, **again})
        consumer().expel("thread:42", "expelled", before=expelled_at)
        assert "thread:42" in consumer().rooms
        consumer().expel("thread:42", "expelled", before=expelled_at + 3600)
        assert "thread:42" not in consumer().rooms


@pytest.mark.parametrize("how", ["policy", "expulsion"])
async def test_right_that_ends_while_the_room_is_entered_refuses_the_join(how: str, monkeypatch):
    asked: list[str] = []

    async def may_enter(connection: HubConsumer, room: str) -> bool:
        asked.append(room)
        if len(asked) == 2 and how == "expulsion":
            connection.expel("thread:42", "expelled")
        return len(asked) == 1 or how == "expulsion"

    async with connected() as ana:
        monkeypatch.setattr(HubConsumer, "may_enter", may_enter)
        assert (await ana.refused("join:thread", {"thread_id": 42}))["code"] == "forbidden"
        assert "thread:42" not in consumer().rooms


async def test_resume_does_not_answer_for_a_room_lost_while_others_are_resumed(monkeypatch):
    async def may_enter(connection: HubConsumer, room: str) -> bool:
        if room == "thread:43":
            connection.expel("thread:42", "expelled")
        return True

    async with connected("hub", "7") as ana:
        offset = (await ana.call("join:thread", {"thread_id": 42}))["offset"]
        monkeypatch.setattr(HubConsumer, "may_enter", may_enter)
        answer = await ana.call("resume", {"rooms": {"thread:42": offset, "thread:43": offset}})
        assert answer["rooms"]["thread:42"] == {"error": "forbidden"}
        assert "error" not in answer["rooms"]["thread:43"]


async def test_resume_that_redis_did_not_answer_leaves_no_room_with_a_hole(monkeypatch):
    missed = RoomChannelLayer.missed

    async with bridging(), connected("hub", "8") as other, connected() as ana:
        await other.call("join:thread", {"thread_id": "42"})
        await add("thread:message", {"thread_id": 42, "message_id": 1})
        since = (await other.expect("thread:message", message_id="1"))["offset"]
        await add("thread:message", {"thread_id": 42, "message_id": 2})
        await other.expect("thread:message", message_id="2")
        monkeypatch.setattr(RoomChannelLayer, "missed", AsyncMock(side_effect=RedisDown("away")))
        refused = await ana.refused("resume", {"rooms": {"thread:42": since}})
        assert refused["code"] == "unavailable"
        await add("thread:message", {"thread_id": 42, "message_id": 3})
        await other.expect("thread:message", message_id="3")
        await ana.nothing("thread:message")
        monkeypatch.setattr(RoomChannelLayer, "missed", missed)
        await ana.call("resume", {"rooms": {"thread:42": since}})
        for n in (2, 3):
            await ana.expect("thread:message", message_id=str(n))


async def test_member_whose_rejoin_fails_stays_in_the_room(monkeypatch):
    async with bridging(), connected() as ana:
        await ana.call("join:thread", {"thread_id": "42"})
        monkeypatch.setattr(RoomChannelLayer, "missed", AsyncMock(side_effect=RedisDown("away")))
        again = {"thread_id": "42", "since": "1"}
        assert (await ana.refused("join:thread", again))["code"] == "unavailable"
        await add("thread:message", {"thread_id": 42, "message_id": 1})
        await ana.expect("thread:message", message_id="1")


async def test_room_held_back_for_a_resume_waits_also_when_the_resume_has_failed(monkeypatch):
    missed = RoomChannelLayer.missed

    async def fails_for_the_thread(layer: Any, listener: Any, *args: Any) -> Any:
        if listener.group.room == "thread:42":
            raise RedisDown("away")
        return await missed(layer, listener, *args)

    async with bridging(), connected("hub", "9") as first_tab:
        since = first_tab.ready["rooms"]["user:9"]
        await add("user:notification", {"user_id": "9", "n": 1})
        await first_tab.expect("user:notification", n=1)
        token = issue(user_id="9", role="attendant")
        ana = Connection("/hub/?resume=1", headers=bearer(token))
        await ana.handshake()
        monkeypatch.setattr(RoomChannelLayer, "missed", fails_for_the_thread)
        rooms = {"user:9": since, "thread:42": "1"}
        assert (await ana.refused("resume", {"rooms": rooms}))["code"] == "unavailable"
        await ana.nothing("user:notification")
        monkeypatch.setattr(RoomChannelLayer, "missed", missed)
        await ana.call("resume", {"rooms": rooms})
        await ana.expect("user:notification", n=1)
        await ana.nothing("user:notification")
        await ana.disconnect()


@pytest.mark.parametrize("rooms", [None, [], {"thread:42": 1}, {"thread:42": ""}, "thread:42"])
async def test_resume_of_something_else_is_an_invalid_payload(rooms: Any):
    async with connected() as ana:
        assert (await ana.refused("resume", {"rooms": rooms}))["code"] == "invalid_payload"
