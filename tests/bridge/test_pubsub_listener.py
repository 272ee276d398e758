"""What is published over Pub/Sub: each message once, in the term in which it was published, or counted as dropped."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisDown

from realtime.bridge.bus_entry import entry_order
from realtime.bridge.bus_handlers import Handlers
from realtime.bridge.pubsub_listener import PubSubListener
from realtime.layers import history
from realtime.namespaces.portal_events import ChatEnded
from realtime.protocol.catalogue import BusContext
from realtime.redis.client import client, key, sync_client
from realtime.redis.lease import Lease
from tests.bridge.support import MESSAGE, Room, publish
from tests.inprocess import PATIENCE, add, bridging, dead_letters, eventually
from tests.telemetry.test_metrics import Counting

pytestmark = pytest.mark.usefixtures("process")


class Listening:
    """Only the Pub/Sub listener of a bridge: nothing renews its lease."""

    def __init__(self) -> None:
        self.lease = Lease("bridge", 60)
        self.listener = PubSubListener(self.lease, Handlers())
        self.tasks = [asyncio.create_task(self.listener.run())]

    async def lead(self) -> None:
        begun = asyncio.Event()
        self.tasks.append(asyncio.create_task(self.listener.lead(self.lease.fence, begun.set)))
        await asyncio.wait_for(begun.wait(), PATIENCE)


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[Listening]:
    """A listener that leads."""
    listening = Listening()
    with contextlib.closing(listening.listener):
        await asyncio.wait_for(listening.listener.subscribed.wait(), PATIENCE)
        assert await listening.lease.hold()
        await listening.lead()
        yield listening
        for task in listening.tasks:
            task.cancel()
        await asyncio.gather(*listening.tasks, return_exceptions=True)


def publish_now(message_id: str) -> None:
    """Publish before this loop does anything else: the message waits in the connections of its bridges."""
    message = {"event": "thread:message", "data": {**MESSAGE, "message_id": message_id}}
    sync_client().publish(key("events"), json.dumps(message))


async def follow() -> None:
    """The lease of the leader lapses; another bridge follows it, and its lease lapses as well."""
    sync_client().delete(key("lease", "bridge"))
    assert await Lease("bridge", 60).hold()
    sync_client().delete(key("lease", "bridge"))


async def test_message_that_another_bridge_has_delivered_is_refused_when_the_lease_comes_back(room: Room):
    """A leader is suspended for longer than its lease, then its successor as well, and the first goes on."""
    async with listening() as it:
        await follow()
        publish_now("delivered-by-the-successor")
        assert await it.lease.hold()
        await publish("thread:message", MESSAGE, id="a")
        assert await room.message_ids(1) == ["7"]


@pytest.mark.parametrize("more", [{}, {"id": "a"}])
async def test_order_that_comes_after_its_term_is_not_handled(on_ended, more: dict[str, str], caplog):
    """A bridge that was suspended finds it in its connection; handled now, it would replace a newer one."""
    handled: list[str] = []

    async def handler(payload: ChatEnded, context: BusContext) -> None:
        handled.append(context.order)

    on_ended(handler)
    async with listening():
        await follow()
        await publish("chat:ended", {"thread_id": 42}, **more)
        await eventually(lambda: "dropped" in caplog.messages)
    assert handled == []


async def test_invalid_message_that_comes_after_its_term_is_no_second_dead_letter(caplog):
    """The bridge that has led since has kept one."""
    async with listening():
        await follow()
        await client().publish(key("events"), "no json")
        await eventually(lambda: "dropped" in caplog.messages)
        assert await dead_letters() == []


@pytest.mark.parametrize("more", [{}, {"id": "a"}])
async def test_lone_bridge_that_has_stood_still_delivers_what_came_meanwhile(
    room: Room, on_ended, more: dict[str, str]
):
    """Its lease has lapsed, but no other bridge has followed it."""
    handled: list[str] = []

    async def handler(payload: ChatEnded, context: BusContext) -> None:
        handled.append(context.order)

    on_ended(handler)
    async with listening():
        await client().delete(key("lease", "bridge"))
        await publish("thread:message", MESSAGE, **more)
        assert await room.message_ids(1) == ["7"]
        await client().delete(key("lease", "bridge"))
        await publish("chat:ended", {"thread_id": 42}, id="b")
        await eventually(lambda: handled)
    assert len(handled) == 1


async def test_message_that_waits_in_the_connection_when_a_term_begins_is_not_delivered_in_it(room: Room):
    async with listening() as it:
        it.tasks.pop().cancel()
        await eventually(lambda: not it.listener.is_leading)
        publish_now("perhaps-delivered-by-the-former-leader")
        await it.lead()
        await publish("thread:message", MESSAGE)
        assert await room.message_ids(1) == ["7"]


async def test_what_was_published_in_the_meantime_is_delivered_together_and_in_order(room: Room, monkeypatch):
    sizes: list[int] = []
    prepare_append = history.prepare_append

    def counted(pipes: Any, entries: Any, **options: Any) -> Any:
        sizes.append(len(entries))
        return prepare_append(pipes, entries, **options)

    monkeypatch.setattr(history, "prepare_append", counted)
    async with bridging():
        async with client().pipeline(transaction=False) as pipe:
            for number in range(300):
                message = {"event": "thread:message", "data": {"thread_id": 42, "message_id": number}}
                pipe.publish(key("events"), json.dumps(message))
            await pipe.execute()
        assert await room.message_ids(300) == [str(number) for number in range(300)]
    assert len([size for size in sizes if size]) < 150


async def test_what_is_published_without_id_while_the_lease_is_lost_is_counted(room: Room, caplog):
    async with listening():
        await client().set(key("lease", "bridge"), "another bridge")
        counted = Counting()
        await publish("thread:message", MESSAGE)
        await publish("thread:message", MESSAGE, id="a")
        assert await room.message_ids(1) == ["7"]
        await eventually(lambda: counted("realtime_bus_messages_total", result="dropped") == 1)
    assert "dropped" in caplog.messages


async def test_what_could_not_be_delivered_is_counted_and_not_tried_twice(room: Room, monkeypatch):
    prepare_append = history.prepare_append

    def broken(pipes: Any, entries: Any, **options: Any) -> Any:
        if entries:
            raise RedisDown("gone")
        return prepare_append(pipes, entries, **options)

    async with bridging():
        counted = Counting()
        with monkeypatch.context() as patch:
            patch.setattr(history, "prepare_append", broken)
            await publish("thread:message", MESSAGE)
            await eventually(lambda: counted("realtime_bus_messages_total", result="dropped") == 1)
        await publish("thread:message", {**MESSAGE, "message_id": 8})
        assert await room.message_ids(1) == ["8"]


async def publish_together(*messages: dict[str, Any]) -> None:
    """In a transaction: they arrive together."""
    async with client().pipeline() as pipe:
        for message in messages:
            pipe.publish(key("events"), json.dumps(message))
        await pipe.execute()


def to_thread(thread_id: int) -> dict[str, Any]:
    return {"event": "thread:message", "data": {**MESSAGE, "thread_id": thread_id}, "namespaces": ["hub"]}


async def test_dead_letter_is_not_counted_as_dropped_with_the_messages_beside_it(monkeypatch):
    async with listening():
        counted = Counting()
        monkeypatch.setattr(history, "prepare_append", lambda *_, **__: refused)
        await publish_together({"event": "nonsense"}, to_thread(42))
        await eventually(lambda: counted("realtime_bus_messages_total", result="dropped"))
        assert counted("realtime_bus_messages_total", result="dropped") == 1
        assert len(await dead_letters()) == 1


async def test_dead_letter_that_came_alone_leaves_nothing_to_deliver(room: Room, caplog):
    async with listening():
        await publish("nonsense", {})
        await eventually(dead_letters)
        await publish("thread:message", MESSAGE)
        assert await room.message_ids(1) == ["7"]
    assert [record for record in caplog.records if record.exc_info] == []


def refused() -> asyncio.Future[Any]:
    future = asyncio.get_running_loop().create_future()
    future.set_exception(RedisDown("gone"))
    return future


@pytest.mark.usefixtures("damaged")
async def test_message_beside_a_dead_letter_that_cannot_be_kept_is_not_counted_as_dropped(room: Room):
    await client().set(key("dead"), "not ours")
    async with listening():
        counted = Counting()
        await publish_together(to_thread(42), to_thread(13))
        assert await room.message_ids(1) == ["7"]
        await eventually(lambda: counted("realtime_bus_messages_total", result="dropped"))
        assert counted("realtime_bus_messages_total", result="dropped") == 1


@pytest.mark.usefixtures("damaged")
@pytest.mark.parametrize("ids", [(None, None, None, None), ("a", "b", "c", "d"), ("a", None, None, "d")])
async def test_published_message_that_redis_refuses_is_kept_and_those_with_it_come_once(
    room: Room, ids: tuple[str | None, ...]
):
    async with listening():
        counted = Counting()
        messages = [
            {**to_thread(thread_id), "id": id} for thread_id, id in zip((42, 13, 13, 42), ids, strict=True)
        ]
        for number, message in enumerate(messages):
            message["data"]["message_id"] = number
        await publish_together(*messages)
        await publish("thread:message", MESSAGE)
        assert await room.message_ids(3) == ["0", "3", "7"]
        letters = await dead_letters()
        assert counted("realtime_bus_messages_total", result="dropped") == 0
    assert [json.loads(letter["message"])["data"]["message_id"] for letter in letters] == [1, 2]
    assert {letter["source"] for letter in letters} == {"events"}


async def test_orders_that_are_published_follow_each_other(on_ended):
    orders: list[str] = []

    async def handler(payload: ChatEnded, context: BusContext) -> None:
        orders.append(context.order)

    on_ended(handler)
    async with bridging():
        before = await add("chat:ended", {"thread_id": 42})
        await eventually(lambda: len(orders) == 1)
        async with client().pipeline(transaction=False) as pipe:
            for _ in range(20):
                pipe.publish(key("events"), json.dumps({"event": "chat:ended", "data": {"thread_id": 42}}))
            await pipe.execute()
        await eventually(lambda: len(orders) == 21)
        await asyncio.sleep(0.002)
        await add("chat:ended", {"thread_id": 42})
        await eventually(lambda: len(orders) == 22)
    assert orders[0] == entry_order(before.encode())
    assert orders == sorted(set(orders))
