"""Bus messages that cannot be delivered."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from realtime.bridge import dead_letters as letters
from realtime.protocol import catalogue
from realtime.redis.client import client, key
from tests.bridge.support import MESSAGE, Room, publish
from tests.inprocess import add, bridging, dead_letters, eventually

pytestmark = pytest.mark.usefixtures("process")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"message": "{"}, "invalid_json"),
        ({"message": "[]"}, "invalid_message"),
        ({"message": b"\xff"}, "invalid_json"),
        ({"message": '{"event": "thread:massage"}'}, "unknown_event"),
        ({"message": '{"event": "join:thread", "data": {"thread_id": 1}}'}, "client_event"),
        ({"message": '{"event": "thread:message", "data": {"thread_id": 1}}'}, "invalid_payload"),
        ({"massage": "{}"}, "invalid_message"),
    ],
)
async def test_message_that_is_not_valid_is_a_dead_letter_and_holds_nothing_up(
    room: Room, fields: dict[str, Any], reason: str, caplog
):
    await client().xadd(key("stream"), fields)
    await add("thread:message", MESSAGE)
    async with bridging():
        assert await room.message_ids(1) == ["7"]
    entries: Any = await client().xrange(key("dead"))
    ((_, letter),) = entries
    assert letter[b"reason"].decode().startswith(f"{reason}: ")
    assert letter[b"source"] == b"stream"
    assert "dead letter" in caplog.text


async def test_dead_letter_is_cut_to_4_kib():
    async with bridging():
        await client().xadd(key("stream"), {"message": "x" * 10_000})
        await eventually(dead_letters)
        (letter,) = await dead_letters()
    assert len(letter["message"]) == 4096


async def test_dead_letters_are_capped(monkeypatch):
    monkeypatch.setattr(letters, "DEAD_LETTERS", 100)
    for n in range(500):
        await client().xadd(key("stream"), {"message": str(n)})
    async with bridging():
        kept = [letter["message"] for letter in await dead_letters()]
    assert 100 <= len(kept) < 300  # Redis cuts off whole nodes of about a hundred entries
    assert kept[-1] == "499"


@pytest.mark.parametrize(
    "rooms",
    [lambda payload: {}["x"], lambda payload: None, lambda payload: [5], lambda payload: [("hub", [])]],
)
async def test_event_whose_rooms_fail_is_a_dead_letter(room: Room, monkeypatch, rooms: Any):
    server = catalogue.catalogue().server
    broken = dataclasses.replace(server["chat:ended"], rooms=rooms)
    monkeypatch.setitem(server, "chat:ended", broken)
    async with bridging():
        for send in (add, publish):
            await send("chat:ended", {"thread_id": 42})
            await send("thread:message", MESSAGE)
            assert await room.message_ids(1) == ["7"]
        letters = await dead_letters()
    assert [letter["reason"].partition(":")[0] for letter in letters] == ["event_failed"] * 2
