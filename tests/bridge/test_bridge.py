from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisDown

from presence import store
from realtime.bridge import bridge as module
from realtime.bridge import bus_handlers as handling
from realtime.bridge import dead_letters as letters
from realtime.bridge.batch import Batch
from realtime.bridge.bridge import Bridge
from realtime.bridge.bus_entry import BUS
from realtime.bridge.cursors import trim
from realtime.layers import history
from realtime.namespaces.portal_events import ChatEnded
from realtime.protocol import bus_message, catalogue
from realtime.protocol.catalogue import BusContext
from realtime.protocol.publication import Draft
from realtime.redis.client import client, key
from realtime.redis.lease import Lease
from realtime.redis.pipelining import pipes
from tests.bridge.support import BREAKING, MESSAGE, Room, cursor, publish
from tests.inprocess import HUB, PATIENCE, add, bridging, connected, dead_letters, eventually
from tests.telemetry.test_metrics import Counting

pytestmark = pytest.mark.usefixtures("process")


async def test_batch_is_sent_only_when_the_one_before_succeeded(room: Room, monkeypatch):
    sent: list[int] = []
    confirmed = asyncio.Event()
    confirmed.set()

    class Held(Batch):
        def send(self, *arguments, **options):
            sent.append(1)
            return super().send(*arguments, **options)

        def __await__(self):
            yield from confirmed.wait().__await__()
            return (yield from super().__await__())

    monkeypatch.setattr("realtime.bridge.stream_delivery.Batch", Held)
    monkeypatch.setattr("realtime.bridge.batch.BATCH_ROOMS", 1)
    async with bridging():
        confirmed.clear()
        for number in range(3):
            await add("thread:message", {**MESSAGE, "message_id": number})
        await eventually(lambda: sent)
        await asyncio.sleep(0.3)
        assert len(sent) == 1
        confirmed.set()
        assert await room.message_ids(3) == ["0", "1", "2"]


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


# --- What goes wrong ---------------------------------------------------------------------------------


async def test_entry_whose_delivery_failed_is_delivered_again_and_reaches_each_room_once(
    room: Room, monkeypatch, caplog
):
    """Redis goes away after any step: the room knows the last entry it took from the stream."""
    failures = iter([True])
    prepare_append = history.prepare_append

    def unreliable(*args: Any, **kwargs: Any) -> Any:
        send = prepare_append(*args, **kwargs)

        async def answer() -> Any:
            result = await send()
            if next(failures, False):
                raise RedisDown("gone")
            return result

        return lambda: asyncio.ensure_future(answer())

    async with bridging():
        await add("thread:message", {**MESSAGE, "message_id": 6})
        assert await room.message_ids(1) == ["6"]  # Redis knows the script from here on
        monkeypatch.setattr(history, "prepare_append", unreliable)
        entry = await add("thread:message", MESSAGE)
        first = await room.frame()
        await eventually(lambda: "redis lost" in caplog.text)

        async def done() -> bool:
            return await cursor() == entry

        await eventually(done)
        await add("thread:message", {**MESSAGE, "message_id": 8})
        frames = [first]
        while frames[-1]["data"]["message_id"] != "8":
            frames.append(await room.frame())
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


async def is_at(entry: str) -> bool:
    return await cursor() == entry


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


async def test_mistake_in_the_bridge_does_not_end_it(room: Room, monkeypatch, caplog):
    failures = iter([True])
    prepare_append = history.prepare_append

    def mistaken(*args: Any, **kwargs: Any) -> Any:
        if next(failures, False):
            raise ZeroDivisionError
        return prepare_append(*args, **kwargs)

    async with bridging():
        monkeypatch.setattr(history, "prepare_append", mistaken)
        await add("thread:message", MESSAGE)
        assert await room.message_ids(1) == ["7"]
    assert "task failed" in caplog.messages


# --- What must not hold up the rest ------------------------------------------------------------------


def size(entry: Draft) -> int:
    """Roughly the bytes of what Redis is sent."""
    return len(entry.tail) + sum(64 + len(head) for _, head in entry.rooms)


async def test_batch_that_is_too_much_is_made_smaller(room: Room, monkeypatch):
    """A slow link: what is not through in time fails, however often the same is sent."""
    prepare_append = history.prepare_append

    def failed() -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.set_exception(RedisDown("no answer"))
        return answer

    def narrow(pipes: Any, entries: Any, **options: Any) -> Any:
        too_much = sum(map(size, entries)) > 150_000
        return failed if too_much else prepare_append(pipes, entries, **options)

    monkeypatch.setattr(history, "prepare_append", narrow)
    for number in range(60):
        await add("thread:message", {"thread_id": 42, "message_id": number, "body": "x" * 60_000})
    async with bridging():
        assert await room.message_ids(60) == [str(number) for number in range(60)]


@pytest.mark.usefixtures("damaged")
async def test_entry_that_redis_refuses_is_kept_and_holds_nothing_up(room: Room):
    counted = Counting()
    for number, thread in enumerate([42, 13, 42, 13]):
        last = await add("thread:message", {"thread_id": thread, "message_id": number}, namespaces=["hub"])
    async with bridging():
        assert await room.message_ids(2) == ["0", "2"]
        await eventually(lambda: is_at(last))
        letters = await dead_letters()
    assert [letter["reason"].partition(" ")[0] for letter in letters] == ["refused:", "refused:"]
    assert all(letter["source"] == "stream" for letter in letters)
    results = ("delivered", "dead", "duplicate", "dropped")
    assert [counted("realtime_bus_messages_total", result=each) for each in results] == [2, 2, 0, 0]


ROOMS = [["thread:42", "thread:13", "thread:43"], ["thread:13", "thread:42", "thread:43"]]


@pytest.mark.usefixtures("damaged")
@pytest.mark.parametrize("rooms", ROOMS)
@pytest.mark.parametrize(("send", "more"), [(add, {}), (publish, {}), (publish, {"id": "a"})])
async def test_message_that_one_of_its_rooms_refuses_reaches_the_others_once(
    room: Room, rooms: list[str], more: dict[str, Any], send: Any
):
    other = await Room().enter("thread:43")
    async with bridging():
        for message_id in (7, 8, 9):
            message = {"thread_id": 42, "message_id": message_id}
            await send("thread:message", message, **({"rooms": rooms, **more} if message_id == 8 else {}))
        assert await room.message_ids(3) == ["7", "8", "9"]
        assert await other.message_ids(1) == ["8"]
        (letter,) = await eventually(dead_letters)
        await send("thread:message", {"thread_id": 42, "message_id": 10}, rooms=["thread:42", "thread:43"])
        assert await other.message_ids(1) == ["10"]
        assert await room.message_ids(1) == ["10"]
    assert json.loads(letter["message"])["data"]["message_id"] == 8


@pytest.mark.usefixtures("damaged")
@pytest.mark.parametrize("rooms", [["thread:13"], *ROOMS])
async def test_id_that_a_room_refused_is_new_for_that_room_alone(room: Room, rooms: list[str]):
    """A backbone sends a message again, and an operator sends the dead letter again once the room is mended."""
    async with bridging():
        message = {"thread_id": 13, "message_id": 7}
        for _ in range(2):
            last = await add("thread:message", message, id="a", rooms=rooms, namespaces=["hub"])
        await eventually(lambda: is_at(last))
        base = history.base("hub.thread.13")
        await client().delete(f"{base}:room", f"{base}:log")
        mended = await Room().enter("thread:13")
        for _ in range(2):
            await add("thread:message", message, id="a", rooms=rooms, namespaces=["hub"])
        await add("thread:message", {**message, "message_id": 8}, rooms=["thread:13", "thread:42"])
        assert await mended.message_ids(2) == ["7", "8"]
        assert await room.message_ids(len(rooms[:2])) == ["7", "8"][-len(rooms[:2]) :]


async def test_of_several_messages_in_an_entry_the_one_that_redis_refuses_is_kept_once(room: Room):
    await client().set(f"{history.base('hub.thread.13')}:room", "not ours")

    def decode(raw: bytes) -> list[bus_message.BusMessage]:
        messages = [{"thread_id": thread, "message_id": thread} for thread in (42, 13)]
        return [
            bus_message.parse(json.dumps({"event": "thread:message", "data": data}).encode())
            for data in messages
        ]

    entry = dataclasses.replace(BUS, decode=decode).entry(b"1-0", [b"message", b"both"])
    await Batch([entry], pipes(), cursor=(key("cursors"), key("stream").encode(), b"1-0")).send()
    assert await room.message_ids(1) == ["42"]
    assert [letter["message"] for letter in await dead_letters()] == ["both"]


async def test_revoke_comes_before_the_message_that_follows_it():
    async with connected("portal", "ana", threads=["42", "43"]) as ana:
        for thread in (42, 43):
            await ana.call("join:thread", {"thread_id": thread})
        await add("thread:message", {**MESSAGE, "message_id": "before"})
        await add("thread:revoke", {"thread_id": 42, "user_id": "ana"})
        await add("thread:message", {**MESSAGE, "message_id": "after"})
        await add("thread:message", {"thread_id": 43, "message_id": "elsewhere"})
        async with bridging():
            assert (await ana.expect("thread:message"))["data"]["message_id"] == "before"
            await ana.expect("room:left", room="thread:42")
            assert (await ana.expect("thread:message"))["data"]["message_id"] == "elsewhere"
            await ana.nothing("thread:message")


# --- Housekeeping ------------------------------------------------------------------------------------


async def test_entries_behind_the_cursor_are_forgotten_when_old_enough():
    """More of them than Redis trims at a time by default."""
    pipeline = client().pipeline(transaction=False)
    for n in range(25_000):
        pipeline.xadd(key("stream"), {"message": ""}, id=f"1000-{n}")
    await pipeline.execute()
    fresh = await add("thread:message", MESSAGE)
    await client().hset(key("cursors"), key("stream"), fresh)
    await trim([BUS])
    assert await client().xlen(key("stream")) < 300  # Redis cuts off whole nodes of about a hundred entries
    ((last, _),) = await client().xrevrange(key("stream"), count=1)
    assert last.decode() == fresh


async def test_young_entries_are_kept_even_behind_the_cursor():
    entries = [await add("thread:message", MESSAGE) for _ in range(300)]
    await client().hset(key("cursors"), key("stream"), entries[-1])
    await trim([BUS])
    assert await client().xlen(key("stream")) == 300


async def test_entries_ahead_of_the_cursor_are_never_forgotten():
    pipeline = client().pipeline(transaction=False)
    for n in range(300):
        pipeline.xadd(key("stream"), {"message": ""}, id=f"1000-{n}")
    await pipeline.execute()
    await client().hset(key("cursors"), key("stream"), "0-0")
    await trim([BUS])
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
