"""Which handlers wait for which, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import defaultdict
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisDown
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

from realtime.bridge import bus_handlers as handling
from realtime.bridge.bus_entry import BUS, BusEntry, published
from realtime.bridge.bus_handlers import Handlers
from realtime.protocol import catalogue
from realtime.protocol.catalogue import BusContext
from realtime.redis.client import client, key
from realtime.redis.connection import is_refusal
from realtime.redis.pipelining import Pipes
from tests.bridge.support import BREAKING, accepted, message
from tests.inprocess import PATIENCE, dead_letters, eventually

pytestmark = pytest.mark.usefixtures("process")


@pytest.fixture
def on_accepted(monkeypatch):
    def register(handler: Any) -> Handlers:
        handlers = {**catalogue.catalogue().bus_handlers, "chat:accepted": [handler]}
        monkeypatch.setattr(catalogue.catalogue(), "bus_handlers", handlers)
        return Handlers()

    return register


@pytest.fixture
async def pipes():
    pipes = Pipes()
    yield pipes
    pipes.close()


async def run(handlers: Handlers, pipes: Pipes, *messages: BusEntry) -> None:
    await asyncio.wait_for(handlers.run(pipes, messages), PATIENCE)


async def test_handlers_of_different_threads_run_at_the_same_time(on_accepted, pipes: Pipes):
    all_running, running = asyncio.Event(), 0

    async def handler(payload: Any, context: BusContext) -> None:
        nonlocal running
        running += 1
        if running == 50:
            all_running.set()
        await all_running.wait()

    await run(on_accepted(handler), pipes, *(accepted(str(n), n) for n in range(1, 51)))


async def test_handlers_of_one_thread_run_in_order_one_by_one(on_accepted, pipes: Pipes):
    running: defaultdict[str, int] = defaultdict(int)
    orders: defaultdict[str, list[str]] = defaultdict(list)

    async def handler(payload: Any, context: BusContext) -> None:
        running[payload.thread_id] += 1
        assert running[payload.thread_id] == 1
        await asyncio.sleep(0.001 * (10 - len(orders[payload.thread_id])))
        orders[payload.thread_id].append(context.order)
        running[payload.thread_id] -= 1

    await run(on_accepted(handler), pipes, *(accepted(str(n % 3), n) for n in range(1, 31)))
    assert [len(order) for order in orders.values()] == [10, 10, 10]
    assert all(order == sorted(order) for order in orders.values())
    assert await dead_letters() == []


async def test_handlers_of_an_event_about_no_user_thread_or_token_run_in_order(monkeypatch, pipes: Pipes):
    running: list[str] = []

    async def handler(payload: Any, context: BusContext) -> None:
        running.append(payload.item_id)
        await asyncio.sleep(0.01)
        assert running.pop() == payload.item_id
        assert not running

    monkeypatch.setitem(catalogue.catalogue().bus_handlers, "queue:new", [handler])
    await run(Handlers(), pipes, *(message("queue:new", {"item_id": n}, n) for n in range(1, 6)))
    assert await dead_letters() == []


async def test_two_ways_in_wait_for_each_other(on_accepted, pipes: Pipes):
    """The stream and Pub/Sub bring the same message at the same moment."""
    ran: list[str] = []

    async def handler(payload: Any, context: BusContext) -> None:
        await asyncio.sleep(0.02)
        ran.append(context.order)

    handlers = on_accepted(handler)
    same = accepted("1", 1, id="order-7")
    await asyncio.gather(
        run(handlers, pipes, same), run(handlers, pipes, published(same.raw).added_at(5_000_000))
    )
    assert len(ran) == 1


async def test_message_with_an_id_is_handled_once(on_accepted, pipes: Pipes):
    ran: list[str] = []

    async def handler(payload: Any, context: BusContext) -> None:
        ran.append(context.order)

    handlers = on_accepted(handler)
    await run(
        handlers, pipes, accepted("1", 1, id="order-7"), accepted("2", 2, id="order-7"), accepted("3", 3)
    )
    assert len(ran) == 2
    assert 590 < await client().ttl(key("handled", "order-7")) <= 600


async def test_message_whose_handling_was_cut_off_is_handled_when_it_comes_the_other_way(
    on_accepted, pipes: Pipes
):
    """The bridge that got it over Pub/Sub died; the backbone had also added it to the stream."""
    ran: list[str] = []

    async def handler(payload: Any, context: BusContext) -> None:
        ran.append(context.order)
        if len(ran) == 1:
            raise RedisDown("gone")

    handlers = on_accepted(order(handler))
    same = accepted("1", 1, id="order-7")
    with pytest.raises(RedisDown):
        await run(handlers, pipes, published(same.raw).added_at(5_000_000))
    await run(handlers, pipes, same)
    assert len(ran) == 2


async def test_same_message_runs_again_after_a_crash(on_accepted, pipes: Pipes):
    ran: list[str] = []

    async def handler(payload: Any, context: BusContext) -> None:
        ran.append(context.order)

    handlers = on_accepted(handler)
    for _ in range(2):
        await run(handlers, pipes, accepted("1", 1, id="order-7"))
    assert (len(ran), len({*ran})) == (2, 1)


async def test_nothing_is_done_again_for_what_was_delivered_before(on_accepted, pipes: Pipes):
    ran: list[str] = []

    async def handler(payload: Any, context: BusContext) -> None:
        ran.append(context.order)

    handlers = on_accepted(handler)
    again = [BUS.entry(b"2-0", [b"message", raw], "9" * 41) for raw in (accepted("1").raw, b"no json")]
    await run(handlers, pipes, *again, accepted("1"))
    assert len(ran) == 1
    assert await dead_letters() == []


async def test_handler_that_fails_stops_no_other(on_accepted, pipes: Pipes):
    ran: list[str] = []

    async def handler(payload: Any, context: BusContext) -> None:
        ran.append(payload.thread_id)
        if payload.thread_id == "2":
            raise ZeroDivisionError
        if payload.thread_id == "3":
            raise ResponseError("WRONGTYPE Operation against a key")

    await run(on_accepted(handler), pipes, *(accepted(str(n), n) for n in range(1, 6)))
    assert sorted(ran) == ["1", "2", "3", "4", "5"]
    reasons = sorted(letter["reason"] for letter in await dead_letters())
    assert [reason.partition("(")[0] for reason in reasons] == [
        "handler_failed: ResponseError",
        "handler_failed: ZeroDivisionError",
    ]


def order(handler: Any) -> Any:
    """An order, as if it was registered with `is_order`."""
    catalogue.catalogue().orders.add(handler)
    return handler


OUTAGES = [RedisDown("refused"), OutOfMemoryError("full"), OSError("refused"), TimeoutError("no answer")]


@pytest.mark.parametrize("error", OUTAGES, ids=repr)
async def test_handler_whose_own_redis_is_away_fails_alone(on_accepted, pipes: Pipes, error: Exception):
    """A cache that is down, for example; the bus is on another Redis."""
    ran: list[str] = []

    async def handler(payload: Any, context: BusContext) -> None:
        ran.append(payload.thread_id)
        if payload.thread_id == "2":
            raise error

    await run(on_accepted(handler), pipes, *(accepted(str(n), n) for n in range(1, 4)))
    assert sorted(ran) == ["1", "2", "2", "3"]
    (letter,) = await dead_letters()
    assert letter["reason"].startswith(f"handler_failed: {type(error).__name__}")
    assert json.loads(letter["message"])["data"]["thread_id"] == "2"


async def test_handler_that_is_back_at_once_has_not_failed(on_accepted, pipes: Pipes):
    errors: list[Exception] = [RedisDown("gone")]

    async def handler(payload: Any, context: BusContext) -> None:
        if errors:
            raise errors.pop()

    await run(on_accepted(handler), pipes, accepted("1"))
    assert await dead_letters() == []


async def test_handler_is_not_to_blame_while_our_redis_is_away(on_accepted, pipes: Pipes, caplog):
    async def handler(payload: Any, context: BusContext) -> None:
        raise RedisDown("gone")

    pipes.close()
    with pytest.raises(RedisDown, match="closed"):
        await run(on_accepted(handler), pipes, accepted("1"))
    assert "bus handler failed" not in caplog.messages
    assert await dead_letters() == []


@pytest.mark.parametrize("error", OUTAGES, ids=repr)
async def test_order_is_not_lost_to_an_outage(on_accepted, pipes: Pipes, error: Exception):
    """Even if Redis answers again by the time that its handler has failed."""

    async def handler(payload: Any, context: BusContext) -> None:
        raise error

    with pytest.raises(type(error)):
        await run(on_accepted(order(handler)), pipes, accepted("1"))
    assert await dead_letters() == []


async def test_order_that_takes_too_long_is_not_lost(on_accepted, pipes: Pipes, monkeypatch):
    monkeypatch.setattr(handling, "HANDLER_SECONDS", 0.05)

    async def handler(payload: Any, context: BusContext) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await run(on_accepted(order(handler)), pipes, accepted("1"))
    assert await dead_letters() == []


@pytest.mark.parametrize(("breaks", "name"), BREAKING)
async def test_handler_can_break_nothing_but_itself(
    on_accepted, pipes: Pipes, monkeypatch, breaks: Any, name: str
):
    monkeypatch.setattr(handling, "HANDLER_SECONDS", 0.2)
    began: list[str] = []
    ended: list[str] = []

    async def handler(payload: Any, context: BusContext) -> None:
        began.append(payload.thread_id)
        if payload.thread_id == "2":
            await breaks()
        ended.append(payload.thread_id)

    await run(on_accepted(handler), pipes, *(accepted(str(n), n) for n in range(1, 4)))
    assert (sorted(began), sorted(ended)) == (["1", "2", "3"], ["1", "3"])
    (letter,) = await dead_letters()
    assert letter["reason"].startswith(f"handler_failed: {name}(")


async def test_handler_that_cancels_itself_at_its_end_breaks_nothing_else(on_accepted, pipes: Pipes):
    async def handler(payload: Any, context: BusContext) -> None:
        task = asyncio.current_task()
        if payload.thread_id == "2" and task is not None:
            task.cancel()  # and there is no await left at which it would hear of it

    await run(on_accepted(handler), pipes, *(accepted(str(n), n) for n in range(1, 4)))
    (letter,) = await dead_letters()
    assert letter["reason"].startswith("handler_failed: CancelledError(")


async def test_handler_ends_with_the_bridge(on_accepted, pipes: Pipes):
    began, ended = asyncio.Event(), asyncio.Event()

    async def handler(payload: Any, context: BusContext) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = asyncio.create_task(on_accepted(handler).run(pipes, [accepted("1")]))
    await asyncio.wait_for(began.wait(), PATIENCE)
    running.cancel()
    await asyncio.wait_for(ended.wait(), PATIENCE)
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert await dead_letters() == []


async def test_nothing_is_kept_of_what_was_handled(on_accepted, pipes: Pipes):
    async def handler(payload: Any, context: BusContext) -> None: ...

    before = len(handling_tasks())
    handlers = on_accepted(handler)
    await run(handlers, pipes, *(accepted(str(n), n, id=f"id-{n}") for n in range(1, 6)))
    await eventually(lambda: len(handling_tasks()) <= before)


def handling_tasks() -> list[Any]:
    gc.collect()  # of earlier tests
    return [
        each
        for each in gc.get_objects()
        if issubclass(type(each), asyncio.Task) and each.get_name() == "bus handlers"
    ]


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (ResponseError("WRONGTYPE Operation against a key"), True),
        (ResponseError("ERR user_script:1: attempt to compare nil with number"), True),
        (ResponseError("value is not an integer"), True),
        (ResponseError("MISCONF Redis is configured to save"), False),
        (ResponseError("NOREPLICAS Not enough good replicas"), False),
        (OutOfMemoryError("command not allowed"), False),
        (NoPermissionError("this user has no permissions"), False),
        (RedisDown("gone"), False),
        (OSError("gone"), False),
    ],
)
def test_refusal_is_what_redis_would_say_at_any_time(error: Exception, refused: bool):
    assert is_refusal(error) == refused
