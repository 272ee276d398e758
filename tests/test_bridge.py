from __future__ import annotations

import asyncio
import functools
import json
from typing import Any

import pytest
from channels.layers import get_channel_layer
from redis.exceptions import ConnectionError as RedisDown

from presence import store
from realtime import bridge as module
from realtime import catalogue, roomlog
from realtime.bridge import BUS, Bridge
from realtime.catalogue import BusContext
from realtime.events import ChatEnded
from realtime.redis import client, key
from realtime.rooms import HUB, group_name
from tests.inprocess import PATIENCE, add, bridging, connected, dead_letters, eventually
from tests.test_metrics import Counting

pytestmark = pytest.mark.usefixtures("process")
MESSAGE = {"thread_id": 42, "message_id": 7}


class Room:
    """What arrives in a room's group, as a consumer would get it."""

    async def enter(self, room: str = "thread:42", namespace: str = HUB) -> Room:
        self.layer: Any = get_channel_layer()
        self.channel = await self.layer.new_channel()
        await self.layer.group_add(group_name(namespace, room), self.channel)
        self.layer.listen(group_name(namespace, room), self.channel)
        return self

    async def next(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.layer.receive(self.channel), PATIENCE)

    async def frame(self) -> dict[str, Any]:
        return json.loads((await self.next())["text"])

    async def message_ids(self, count: int) -> list[str]:
        return [(await self.frame())["data"]["message_id"] for _ in range(count)]


@pytest.fixture
async def room() -> Room:
    return await Room().enter()


async def publish(event: str, data: dict[str, Any], **more: Any) -> None:
    await client().publish(key("events"), json.dumps({"event": event, "data": data, **more}))


async def cursor() -> str | None:
    saved: Any = await client().hget(key("cursors"), key("stream"))
    return saved.decode() if saved else None


# --- Both ways in ------------------------------------------------------------------------------------


@pytest.mark.parametrize("send", [add, publish])
async def test_message_reaches_its_room_with_room_and_offset(room: Room, send):
    async with bridging():
        await send("thread:message", {**MESSAGE, "body": "hi"})
        message = await room.next()
    assert message["type"] == "room.frame"
    assert json.loads(message["text"]) == {
        "event": "thread:message",
        "room": "thread:42",
        "offset": message["offset"],
        "data": {"thread_id": "42", "message_id": "7", "body": "hi"},
    }
    assert (await roomlog.ends(["hub.thread.42"]))["hub.thread.42"] == int(message["offset"])


async def test_order_of_the_stream_is_the_order_of_the_room(room: Room):
    for n in range(250):
        await add("thread:message", {"thread_id": 42, "message_id": n})
    async with bridging():
        assert await room.message_ids(250) == [str(n) for n in range(250)]


async def test_first_bridge_ever_starts_at_the_beginning_of_the_stream(room: Room):
    await add("thread:message", MESSAGE)
    async with bridging():
        assert (await room.frame())["event"] == "thread:message"


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
    caplog.set_level("INFO", "realtime.bridge")
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
        await add("thread:message", MESSAGE, **{"except": "c1"})
        assert (await room.next())["except"] == "c1"
        await add("thread:message", MESSAGE)
        assert not (await room.next())["except"]


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


async def test_same_id_is_delivered_once_over_both_ways_in(room: Room):
    async with bridging():
        await add("thread:message", {**MESSAGE, "message_id": 1}, id="m")
        await room.frame()
        await publish("thread:message", {**MESSAGE, "message_id": 2}, id="m")
        await add("thread:message", {**MESSAGE, "message_id": 3}, id="m")
        await add("thread:message", {**MESSAGE, "message_id": 4})
        assert await room.message_ids(1) == ["4"]


async def test_presence_transitions_are_told_to_their_groups(process):
    room = await Room().enter("presence:sales")
    operation = {"does": "connect", "connection": "c1", "user": "ana", "name": "Ana", "groups": ["sales"]}
    async with bridging():
        await store.apply([operation])
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
        assert standby._leading
        async with bridging() as second:
            assert not second._leading
    async with bridging():
        await add("thread:message", MESSAGE)
        assert await room.message_ids(1) == ["7"]


async def test_bridge_that_stops_gives_its_lease_back():
    async with bridging():
        assert await client().exists(key("lease", "bridge"))
    assert not await client().exists(key("lease", "bridge"))


async def test_standby_delivers_within_seconds_when_the_first_is_killed(room: Room):
    first = Bridge([BUS])
    running = asyncio.create_task(first.run())
    await first.ready.wait()
    async with bridging() as standby:
        first._lease.release = lambda: asyncio.sleep(0)  # type: ignore[assignment,method-assign]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await add("thread:message", MESSAGE)
        assert await room.message_ids(1) == ["7"]
        assert standby._leading


# --- What goes wrong ---------------------------------------------------------------------------------


async def test_entry_whose_delivery_failed_is_delivered_again_and_reaches_each_room_once(
    room: Room, monkeypatch, caplog
):
    """Redis goes away after any step: the room knows the last entry it took from the stream."""
    failures = iter([True])
    send_append = roomlog.send_append

    def unreliable(*args: Any, **kwargs: Any) -> Any:
        sent = send_append(*args, **kwargs)

        async def answer() -> Any:
            result = await sent
            if next(failures, False):
                raise RedisDown("gone")
            return result

        return asyncio.ensure_future(answer())

    async with bridging():
        monkeypatch.setattr(roomlog, "send_append", unreliable)
        entry = await add("thread:message", MESSAGE)
        first = await room.next()
        await eventually(lambda: "redis lost" in caplog.text)

        async def done() -> bool:
            return await cursor() == entry

        await eventually(done)
        await add("thread:message", {**MESSAGE, "message_id": 8})
        frames = [first]
        while json.loads(frames[-1]["text"])["data"]["message_id"] != "8":
            frames.append(await room.next())
    assert len({frame["offset"] for frame in frames}) == 2


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
async def test_what_is_not_valid_is_kept_with_the_reason_and_holds_nothing_up(
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


async def test_entry_without_the_field_is_kept_whole():
    await client().xadd(key("stream"), {"massage": "hello"})
    async with bridging():
        (letter,) = await dead_letters()
    assert "hello" in letter["message"]


async def test_invalid_message_over_pubsub_is_a_dead_letter_too(room: Room):
    async with bridging():
        await client().publish(key("events"), "hello")
        await publish("thread:message", MESSAGE)
        await room.next()
        (letter,) = await dead_letters()
    assert (letter["source"], letter["message"]) == ("events", "hello")


async def test_dead_letter_is_cut_to_4_kib():
    async with bridging():
        await client().xadd(key("stream"), {"message": "x" * 10_000})
        await eventually(dead_letters)
        (letter,) = await dead_letters()
    assert len(letter["message"]) == 4096


async def test_dead_letters_are_capped(monkeypatch):
    monkeypatch.setattr(module, "DEAD_LETTERS", 100)
    for n in range(500):
        await client().xadd(key("stream"), {"message": str(n)})
    async with bridging():
        kept = [letter["message"] for letter in await dead_letters()]
    assert 100 <= len(kept) < 300  # Redis cuts off whole nodes of about a hundred entries
    assert kept[-1] == "499"


async def test_too_large_message_is_a_dead_letter(settings):
    settings.REALTIME = {**settings.REALTIME, "LIMITS": {"BUS_BYTES": 100}}
    await add("thread:message", {**MESSAGE, "body": "x" * 100})
    async with bridging():
        (letter,) = await dead_letters()
    assert letter["reason"].startswith("too_large")


# --- What comes alone ----------------------------------------------------------------------------------


async def silent_commands() -> int:
    """How often Redis was told not to answer."""
    found: Any = await client().info("commandstats")
    return int(found.get("cmdstat_client|reply", {}).get("calls", 0))


async def one_by_one(room: Room, *ids: int) -> None:
    for number in ids:
        await add("thread:message", {"thread_id": 42, "message_id": number})
        assert await room.message_ids(1) == [str(number)]


async def test_what_comes_alone_is_sent_without_an_answer(room: Room):
    async with bridging():
        await one_by_one(room, 1, 2)
        before = await silent_commands()
        await one_by_one(room, 3, 4)
        assert await silent_commands() == before + 2
        entry = await add("no:such", {})
        await eventually(dead_letters)
        await eventually(lambda: is_at(entry))


async def is_at(entry: str) -> bool:
    return await cursor() == entry


async def test_what_redis_did_not_do_is_noticed_though_it_does_not_answer(room: Room, caplog):
    async with bridging():
        await one_by_one(room, 1, 2, 3)
        await client().script_flush()
        await one_by_one(room, 4, 5, 6)
    (lost,) = [record for record in caplog.records if record.message == "redis lost, trying again"]
    assert lost.error == "RedisError('redis did not do what was sent last')"  # type: ignore[attr-defined]


async def test_what_is_left_out_without_an_answer_is_counted(room: Room):
    async with bridging() as bridge:
        await one_by_one(room, 1, 2)
        await eventually(lambda: bridge._in_flight is None)
        counted, before = Counting(), await silent_commands()
        await add("thread:message", MESSAGE, id="order-7", namespaces=["hub"])
        await room.next()
        await add("thread:message", MESSAGE, id="order-7", namespaces=["hub"])
        await eventually(lambda: counted("realtime_bus_messages_total", result="duplicate") == 1)
        assert counted("realtime_bus_messages_total", result="delivered") == 1
        assert counted("realtime_bus_lag_seconds_count") == 2
        assert 0 <= counted("realtime_bus_lag_seconds_sum") < 5
        assert await silent_commands() == before + 2


async def test_where_redis_may_not_be_silenced_it_answers(room: Room):
    change = functools.partial(client().execute_command, "ACL", "SETUSER", "default")
    await change("-client|reply")
    try:
        before = await silent_commands()
        async with bridging():
            await one_by_one(room, 1, 2, 3)
        assert await silent_commands() == before
    finally:
        await change("+@all")


# --- Handlers ----------------------------------------------------------------------------------------


@pytest.fixture
def on_ended(monkeypatch):
    """Bus handlers of `chat:ended` for one test."""

    def register(*handlers: Any) -> None:
        handling = {**catalogue.catalogue().bus_handlers, "chat:ended": list(handlers)}
        monkeypatch.setattr(catalogue.catalogue(), "bus_handlers", handling)

    return register


async def test_handler_runs_before_the_event_is_delivered(room: Room, on_ended):
    happened: list[Any] = []

    async def handler(payload: ChatEnded, context: BusContext) -> None:
        await asyncio.sleep(0.05)
        happened.append((payload.thread_id, context.at))

    on_ended(handler)
    async with bridging():
        entry = await add("chat:ended", {"thread_id": 42})
        await room.next()
    ((thread_id, at),) = happened
    assert thread_id == "42"
    assert 0 <= at - int(entry.partition("-")[0]) / 1000 <= 0.002


async def test_handler_that_fails_is_kept_and_keeps_nobody_from_the_event(room: Room, on_ended, caplog):
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


async def test_handler_that_lost_redis_runs_again(room: Room, on_ended):
    runs: list[Any] = []

    async def handler(payload: ChatEnded, context: BusContext) -> None:
        runs.append(payload)
        if len(runs) == 1:
            raise RedisDown("gone")

    on_ended(handler)
    async with bridging():
        await add("chat:ended", {"thread_id": 42})
        assert (await room.frame())["event"] == "chat:ended"
        assert await dead_letters() == []
    assert len(runs) == 2


# --- Housekeeping ------------------------------------------------------------------------------------


async def test_entries_behind_the_cursor_are_forgotten_when_old_enough():
    """More of them than Redis trims at a time unless told to."""
    pipeline = client().pipeline(transaction=False)
    for n in range(25_000):
        pipeline.xadd(key("stream"), {"message": ""}, id=f"1000-{n}")
    await pipeline.execute()
    fresh = await add("thread:message", MESSAGE)
    bridge = Bridge([BUS])
    bridge._cursors = {key("stream").encode(): fresh.encode()}
    bridge._trimmed_at = -1000.0
    await bridge._trim()
    assert await client().xlen(key("stream")) < 300  # Redis cuts off whole nodes of about a hundred entries
    await bridge._trim()
    ((last, _),) = await client().xrevrange(key("stream"), count=1)
    assert last.decode() == fresh


async def test_young_entries_are_kept_even_behind_the_cursor():
    entries = [await add("thread:message", MESSAGE) for _ in range(300)]
    bridge = Bridge([BUS])
    bridge._cursors = {key("stream").encode(): entries[-1].encode()}
    bridge._trimmed_at = -1000.0
    await bridge._trim()
    assert await client().xlen(key("stream")) == 300


async def test_entries_ahead_of_the_cursor_are_never_forgotten():
    pipeline = client().pipeline(transaction=False)
    for n in range(300):
        pipeline.xadd(key("stream"), {"message": ""}, id=f"1000-{n}")
    await pipeline.execute()
    bridge = Bridge([BUS])
    bridge._cursors = {key("stream").encode(): b"0-0"}
    bridge._trimmed_at = -1000.0
    await bridge._trim()
    assert await client().xlen(key("stream")) == 300


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

    async def swallow() -> bool:
        asked.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return True
        return False

    monkeypatch.setattr(bridge._lease, "hold", swallow)
    await asked.wait()
    running.cancel()
    await asyncio.wait_for(asyncio.gather(running, return_exceptions=True), 5)


async def test_whole_way_from_the_bus_to_a_client():
    async with bridging(), connected() as ana:
        await ana.call("join:thread", {"thread_id": 42})
        await add("thread:message", MESSAGE)
        frame = await ana.expect("thread:message")
        assert frame["data"] == {"thread_id": "42", "message_id": "7"}


async def test_redis_that_says_nothing_any_more_is_left():
    class Silent:
        pings = 0

        async def ping(self) -> None:
            self.pings += 1

    silent = Silent()
    for quiet in range(1, module.LISTEN_PATIENCE + 1):
        await Bridge._prove(silent, None, quiet)
    with pytest.raises(RedisDown):
        await Bridge._prove(silent, None, module.LISTEN_PATIENCE + 1)
    assert silent.pings == module.LISTEN_PATIENCE


async def test_quiet_channel_is_kept(monkeypatch, room: Room, caplog):
    monkeypatch.setattr(module, "LISTEN_SECONDS", 0.01)
    async with bridging():
        await asyncio.sleep(0.3)
        await publish("thread:message", MESSAGE)
        await room.next()
    assert "redis lost" not in caplog.text


@pytest.mark.parametrize("traceparent", [5, {}, ["00"], None, "nonsense"])
async def test_trace_that_is_none_does_no_harm(room: Room, traceparent: Any):
    async with bridging():
        await add("thread:message", MESSAGE, traceparent=traceparent)
        await room.next()
    assert await dead_letters() == []
