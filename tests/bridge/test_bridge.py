from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisDown

from presence import store
from realtime.bridge import bridge as module
from realtime.bridge import bus_handlers as handling
from realtime.bridge.bridge import Bridge
from realtime.bridge.bus_entry import BUS
from realtime.layers import history
from realtime.namespaces.portal_events import ChatEnded
from realtime.protocol import catalogue
from realtime.protocol.catalogue import BusContext
from realtime.redis.client import client, key
from realtime.redis.lease import Lease
from tests.bridge.support import BREAKING, MESSAGE, Room, cursor, publish
from tests.inprocess import HUB, PATIENCE, add, bridging, dead_letters, eventually
from tests.telemetry.test_metrics import Counting

pytestmark = pytest.mark.usefixtures("process")


# --- Both ways in ------------------------------------------------------------------------------------


@pytest.mark.parametrize("send", [add, publish])
async def test_message_reaches_its_room_with_room_and_offset(room: Room, send):
    async with bridging():
        await send("thread:message", {**MESSAGE, "body": "hi"})
        message = await room.frame()
    assert message == {
        "event": "thread:message",
        "room": "thread:42",
        "offset": message["offset"],
        "data": {"thread_id": "42", "message_id": "7", "body": "hi"},
    }
    assert (await history.ends(["hub.thread.42"]))["hub.thread.42"] == int(message["offset"])


async def test_bridge_goes_on_where_the_last_one_stopped(room: Room):
    async with bridging():
        await add("thread:message", {**MESSAGE, "message_id": 1})
        await room.frame()
        await eventually(cursor)
    await add("thread:message", {**MESSAGE, "message_id": 2})
    async with bridging():
        assert await room.message_ids(1) == ["2"]


async def test_bridge_is_ready_once_it_caught_up(room: Room):
    entries = [await add("thread:message", {**MESSAGE, "message_id": n}) for n in range(150)]
    async with bridging():
        assert await cursor() == entries[-1]


async def test_bridge_that_is_far_behind_says_how_far_and_when_it_caught_up(room: Room, caplog):
    caplog.set_level("INFO", "realtime.bridge.lag")
    long_ago = (await client().time())[0] - 300
    message = json.dumps({"event": "thread:message", "data": MESSAGE})
    async with client().pipeline(transaction=False) as pipe:
        for n in range(700):
            pipe.xadd(key("stream"), {"message": message}, id=f"{long_ago * 1000 + n}-0")
        await pipe.execute()
    async with bridging():
        await eventually(lambda: "caught up" in caplog.messages)
    (behind,) = [record for record in caplog.records if record.message == "behind"]
    assert 299 <= behind.seconds <= 360  # type: ignore[attr-defined]


async def test_exclusion_travels_with_the_frame(room: Room):
    async with bridging():
        excluded = await Room("c1").enter()
        await add("thread:message", MESSAGE, **{"except": "c1"})
        await add("thread:message", {**MESSAGE, "message_id": 8})
        assert await room.message_ids(2) == ["7", "8"]
        assert await excluded.message_ids(1) == ["8"]


async def test_what_is_published_amid_dead_letters_and_control_events_is_delivered(room: Room, monkeypatch):
    """Working through them takes longer than the lease lasts: it is renewed meanwhile."""
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.2)

    async def slow(payload: Any, context: BusContext) -> None:
        await asyncio.sleep(0.05)

    monkeypatch.setitem(catalogue.catalogue().bus_handlers, "chat:ended", [slow])
    async with bridging():
        for n in range(20):
            await add("chat:ended", {"thread_id": 43})
            await client().xadd(key("stream"), {"message": f"no json {n}"})
        await asyncio.sleep(0.5)
        await publish("thread:message", MESSAGE)
        assert await room.message_ids(1) == ["7"]


async def test_lease_is_renewed_while_a_handler_takes_long(room: Room, monkeypatch):
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.2)

    async def slow(payload: Any, context: BusContext) -> None:
        await asyncio.sleep(1)

    monkeypatch.setitem(catalogue.catalogue().bus_handlers, "chat:ended", [slow])
    async with bridging():
        holder = await client().get(key("lease", "bridge"))
        await add("chat:ended", {"thread_id": 42})
        await publish("thread:message", MESSAGE)
        await asyncio.sleep(0.7)
        assert holder == await client().get(key("lease", "bridge")) is not None
        assert await room.message_ids(1) == ["7"]


async def test_presence_transitions_are_announced_to_their_groups(process):
    room = await Room().enter("presence:sales")
    operation = {"does": "connect", "connection": "c1", "user": "ana", "name": "Ana", "groups": ["sales"]}
    async with bridging():
        await store.apply(HUB, [operation])
        frame = await room.frame()
    assert (frame["event"], frame["room"], frame["data"]["user_id"]) == (
        "attendant:online",
        "presence:sales",
        "ana",
    )


# --- Several bridges ---------------------------------------------------------------------------------


@pytest.mark.parametrize("send", [add, publish])
async def test_several_bridges_deliver_once(room: Room, send):
    async with bridging(), bridging(), bridging():
        for n in range(20):
            await send("thread:message", {"thread_id": 42, "message_id": n})
        await add("thread:message", {"thread_id": 42, "message_id": "last"})
        assert len({*(await room.message_ids(21))}) == 21


async def test_standby_takes_over_when_the_one_that_delivers_stops(room: Room):
    async with bridging() as standby:
        assert standby.is_leading
        async with bridging() as second:
            assert not second.is_leading
    async with bridging():
        await add("thread:message", MESSAGE)
        assert await room.message_ids(1) == ["7"]


async def test_bridge_that_stops_gives_its_lease_back():
    async with bridging():
        assert await client().exists(key("lease", "bridge"))
    assert not await client().exists(key("lease", "bridge"))


async def test_standby_delivers_within_seconds_when_the_first_is_killed(room: Room, monkeypatch):
    first = Bridge([BUS])
    running = asyncio.create_task(first.run())
    await first.ready.wait()
    async with bridging() as standby:
        monkeypatch.setattr(Lease, "release", lambda lease: asyncio.sleep(0))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await add("thread:message", MESSAGE)
        assert await room.message_ids(1) == ["7"]
        assert standby.is_leading


# --- What is counted ---------------------------------------------------------------------------------


async def test_lag_and_duplicates_are_counted(room: Room):
    async with bridging():
        counted = Counting()
        for _ in range(2):
            await add("thread:message", MESSAGE, id="order-7", namespaces=["hub"])
        await eventually(lambda: counted("realtime_bus_messages_total", result="duplicate") == 1)
        assert counted("realtime_bus_messages_total", result="delivered") == 1
        assert counted("realtime_bus_lag_seconds_count") in {1, 2}
        assert counted("realtime_bus_lag_seconds_sum") >= 0


# --- Handlers ----------------------------------------------------------------------------------------


async def test_handler_runs_before_the_event_is_delivered(room: Room, on_ended):
    happened: list[Any] = []

    async def handler(payload: ChatEnded, context: BusContext) -> None:
        await asyncio.sleep(0.05)
        happened.append((payload.thread_id, context.at))

    on_ended(handler)
    async with bridging():
        entry = await add("chat:ended", {"thread_id": 42})
        await room.frame()
    ((thread_id, at),) = happened
    assert thread_id == "42"
    assert 0 <= at - int(entry.partition("-")[0]) / 1000 <= 0.002


async def test_message_whose_handler_fails_is_a_dead_letter_and_still_delivered(room: Room, on_ended, caplog):
    async def broken(payload: ChatEnded, context: BusContext) -> None:
        raise ZeroDivisionError("oh")

    ran: list[Any] = []

    async def fine(payload: ChatEnded, context: BusContext) -> None:
        ran.append(payload)

    on_ended(broken, fine)
    async with bridging():
        await add("chat:ended", {"thread_id": 42})
        assert (await room.frame())["event"] == "chat:ended"
        (letter,) = await dead_letters()
    assert letter["reason"] == "handler_failed: ZeroDivisionError('oh')"
    assert ran
    assert "bus handler failed" in caplog.text


@pytest.mark.parametrize(("breaks", "name"), BREAKING)
@pytest.mark.parametrize("send", [add, publish])
async def test_handler_breaks_neither_the_bridge_nor_what_is_behind(
    room: Room, on_ended, monkeypatch, send: Any, breaks: Any, name: str
):
    monkeypatch.setattr(handling, "HANDLER_SECONDS", 0.2)

    async def handler(payload: ChatEnded, context: BusContext) -> None:
        await breaks()

    on_ended(handler)
    async with bridging():
        await send("chat:ended", {"thread_id": 42})
        await send("thread:message", MESSAGE)
        assert (await room.frame())["event"] == "chat:ended"
        assert await room.message_ids(1) == ["7"]
        (letter,) = await dead_letters()
    assert letter["reason"].startswith(f"handler_failed: {name}(")


async def test_order_is_repeated_until_it_succeeds(room: Room, on_ended):
    runs: list[Any] = []

    async def handler(payload: ChatEnded, context: BusContext) -> None:
        runs.append(context.order)
        if len(runs) < 4:
            raise [RedisDown("gone"), OSError("gone"), TimeoutError][len(runs) - 1]

    catalogue.catalogue().orders.add(handler)
    on_ended(handler)
    async with bridging():
        await add("chat:ended", {"thread_id": 42})
        assert (await room.frame())["event"] == "chat:ended"
        assert await dead_letters() == []
    assert (len(runs), len({*runs})) == (4, 1)


# --- What goes wrong ---------------------------------------------------------------------------------


async def test_bridge_outlives_a_lost_connection(room: Room):
    async with bridging():
        for kind in ("normal", "pubsub"):
            await client().execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        await add("thread:message", MESSAGE)

        async def arrived() -> bool:
            return bool(await cursor())

        await eventually(arrived)


async def test_bridge_ends_even_if_the_cancellation_was_swallowed(monkeypatch):
    """Python 3.11's `asyncio.wait_for`, with which redis-py sends, can do that."""
    bridge = Bridge([BUS])
    running = asyncio.create_task(bridge.run())
    await bridge.ready.wait()
    asked = asyncio.Event()

    async def swallow(*command: Any) -> int:
        if not asked.is_set():
            asked.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        return 1

    monkeypatch.setattr("realtime.redis.lease.run", swallow)
    await asked.wait()
    running.cancel()
    await asyncio.wait_for(asyncio.gather(running, return_exceptions=True), PATIENCE)


@pytest.mark.parametrize("traceparent", [5, {}, ["00"], None, "nonsense"])
async def test_trace_that_is_none_does_no_harm(room: Room, traceparent: Any):
    async with bridging():
        await add("thread:message", MESSAGE, traceparent=traceparent)
        await room.frame()
    assert await dead_letters() == []
