"""What fails in a batch, a list or a round fails alone: it holds up nothing beside it."""

from __future__ import annotations

from typing import Any

import pytest

from presence import store
from presence.sweeper import Sweeper
from realtime.connections.registry import ConnectionRegistry
from realtime.layers.history_reader import HistoryReader
from realtime.protocol import bus_message
from realtime.redis.client import client, key
from tests.inprocess import HUB, add, bridging, connected, dead_letters, eventually
from tests.tasks.failing import Failing

pytestmark = pytest.mark.usefixtures("impatient", "process")


async def test_message_in_whose_routing_a_product_fails_is_a_dead_letter_and_holds_up_no_other(monkeypatch):
    parse_message = bus_message.parse

    def odd(raw: bytes) -> Any:
        if b"odd" in raw:
            raise KeyError("a mistake")
        return parse_message(raw)

    monkeypatch.setattr(bus_message, "parse", odd)
    async with connected() as ana, bridging():
        await ana.call("join:thread", {"thread_id": "1"})
        for body in ("one", "odd", "two"):
            await add("thread:message", {"thread_id": "1", "message_id": body})
        await client().publish(key("events"), b"odd")
        for body in ("one", "two"):
            await ana.expect("thread:message", message_id=body)
        await eventually(lambda: _has_letters(2))


async def _has_letters(number: int) -> bool:
    letters = await dead_letters()
    return [letter["reason"] for letter in letters] == ["event_failed: KeyError(\"'a mistake'\")"] * number


async def test_message_that_cannot_be_encoded_is_a_dead_letter_and_holds_up_no_other(monkeypatch):
    encode = bus_message.frame_tail

    def odd(data: Any) -> bytes:
        if b"odd" in encode(data):
            raise KeyError("a mistake")
        return encode(data)

    monkeypatch.setattr(bus_message, "frame_tail", odd)
    async with connected() as ana, bridging():
        await ana.call("join:thread", {"thread_id": "1"})
        for body in ("one", "odd", "two"):
            await add("thread:message", {"thread_id": "1", "message_id": body})
        for body in ("one", "two"):
            await ana.expect("thread:message", message_id=body)
        await eventually(lambda: _has_letters(1))


async def test_rooms_that_cannot_be_opened_fail_their_own_frames_and_are_opened_by_the_next(monkeypatch):
    async with connected() as ana:
        failing = Failing(monkeypatch, HistoryReader, "learn_ends")
        assert (await ana.refused("join:thread", {"thread_id": "1"}))["code"] in {"unavailable", "internal"}
        assert await ana.call("join:thread", {"thread_id": "1"})
        assert failing.calls == 2


async def test_connection_that_cannot_be_registered_is_left_out_alone(monkeypatch):
    encode = store.encode

    def odd(operation: Any) -> Any:
        if operation.get("user") == "odd":
            raise TypeError("odd")
        return encode(operation)

    async with connected(user_id="odd"), connected(user_id="ana"):
        monkeypatch.setattr(store, "encode", odd)
        await client().delete(f"{store.base(HUB)}:nodes", f"{store.base(HUB)}:user:ana")
        await eventually(lambda: client().exists(f"{store.base(HUB)}:user:ana"))


async def test_member_whose_record_makes_no_sense_is_left_out_of_the_list_alone():
    async with connected(user_id="odd", groups=["g"]), connected(user_id="ana", groups=["g"]):
        await client().hset(f"{store.base(HUB)}:user:odd", "since", "never")
        assert [member["user_id"] for member in await store.snapshot(HUB, "g")] == ["ana"]


async def test_user_who_cannot_be_judged_holds_up_no_other(monkeypatch):
    async with connected(user_id="odd"), connected(user_id="ana"):
        pass
    deadlines, known = f"{store.base(HUB)}:deadlines", f"{store.base(HUB)}:known"
    await eventually(lambda: _is_in_grace(deadlines))
    await client().hset(known, "odd", "no JSON")
    await client().zadd(deadlines, {"grace|odd": 1, "grace|ana": 2})
    await Sweeper().sweep()
    assert not await client().zcard(deadlines)
    assert not await client().hexists(known, "ana")


async def _is_in_grace(deadlines: str) -> bool:
    return await client().zcount(deadlines, "-inf", "+inf") == 2


async def test_connection_that_cannot_be_described_hides_no_other_from_the_admin(monkeypatch):
    from realtime.survey import results
    from realtime.survey.messages import AboutConnections

    row = results.row

    def odd(connection: Any, at: Any = None) -> Any:
        if connection.user[1] == "odd":
            raise ValueError("odd")
        return row(connection, at)

    async with connected(user_id="odd"), connected(user_id="ana"):
        monkeypatch.setattr(results, "row", odd)
        page = await results.page(
            AboutConnections(), tuple(ConnectionRegistry.current().connections.values())
        )
        assert [each.user_id for each in page.rows] == ["ana"]
