"""Batches of the stream: one in flight, repeated until it succeeds, and what must not hold up the rest."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisDown

from realtime.bridge.batch import Batch
from realtime.bridge.bus_entry import BUS
from realtime.layers import history
from realtime.protocol import bus_message
from realtime.protocol.publication import Draft
from realtime.redis.client import client, key
from realtime.redis.pipelining import pipes
from tests.bridge.support import MESSAGE, Room, cursor, publish
from tests.inprocess import add, bridging, connected, dead_letters, eventually
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


async def is_at(entry: str) -> bool:
    return await cursor() == entry


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
