"""What the tests of the bridge share: a room that hears, a backbone that publishes, and handlers that break."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import Any

from redis.exceptions import ConnectionError as RedisDown

from realtime.bridge.bus_entry import BUS, BusEntry
from realtime.layers.interface import room_layer
from realtime.layers.outlets import payloads
from realtime.protocol.rooms import group_name
from realtime.redis.client import client, key
from tests.inprocess import HUB, PATIENCE

MESSAGE = {"thread_id": 42, "message_id": 7}


class Room:
    """The frames that arrive in a room, as a connection would get them."""

    is_behind = False

    def __init__(self, connection_id: str = "") -> None:
        self.connection_id = connection_id
        self._frames: asyncio.Queue[bytes] = asyncio.Queue()

    async def enter(self, room: str = "thread:42", namespace: str = HUB) -> Room:
        layer = room_layer()
        channel = await layer.attach(self)
        (listener,) = await layer.enter([group_name(namespace, room)], self, channel)
        listener.start()
        return self

    def write(self, frames: bytes) -> None:
        for payload in payloads(frames):
            self._frames.put_nowait(payload)

    async def drained(self) -> None:
        pass

    def gap(self, room: str, reason: str) -> None:
        raise AssertionError(f"gap in {room}: {reason}")

    def fail(self) -> None:
        raise AssertionError("failed")

    def message(self, message: dict[str, Any]) -> None:
        """No message is expected."""

    async def text(self) -> str:
        return (await asyncio.wait_for(self._frames.get(), PATIENCE)).decode()

    async def frame(self) -> dict[str, Any]:
        return json.loads(await self.text())

    async def message_ids(self, count: int) -> list[str]:
        return [(await self.frame())["data"]["message_id"] for _ in range(count)]


async def publish(event: str, data: dict[str, Any], **more: Any) -> None:
    await client().publish(key("events"), json.dumps({"event": event, "data": data, **more}))


async def cursor() -> str | None:
    saved: Any = await client().hget(key("cursors"), key("stream"))
    return saved.decode() if saved else None


def message(event: str, data: dict[str, Any], number: int = 1, **more: Any) -> BusEntry:
    encoded = json.dumps({"event": event, "data": data, **more}).encode()
    return BUS.entry(b"%d-0" % number, [b"message", encoded], "")


def accepted(thread: str, number: int = 1, **more: Any) -> BusEntry:
    return message("chat:accepted", {"thread_id": thread, "attendant_id": "a"}, number, **more)


async def raises_cancelled_error() -> None:
    raise asyncio.CancelledError


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def waits_for_what_is_cancelled() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def exits() -> None:
    sys.exit("enough")


async def is_interrupted() -> None:
    raise KeyboardInterrupt


async def closes() -> None:
    raise GeneratorExit


async def raises_a_group() -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fails())
        tasks.create_task(loses_redis())


async def fails() -> None:
    raise ZeroDivisionError


async def loses_redis() -> None:
    raise RedisDown("gone")


async def raises_a_group_of_anything() -> None:
    raise BaseExceptionGroup("all of it", [KeyboardInterrupt(), ValueError()])


async def never_returns() -> None:
    await asyncio.Event().wait()


async def refuses_to_be_cancelled() -> None:
    for _ in range(2):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


BREAKING = [
    (raises_cancelled_error, "CancelledError"),
    (cancels_itself, "CancelledError"),
    (waits_for_what_is_cancelled, "CancelledError"),
    (exits, "SystemExit"),
    (is_interrupted, "KeyboardInterrupt"),
    (closes, "GeneratorExit"),
    (raises_a_group, "ExceptionGroup"),
    (raises_a_group_of_anything, "BaseExceptionGroup"),
    (never_returns, "TimeoutError"),
    (refuses_to_be_cancelled, "TimeoutError"),
]
"""What a handler can do, and what it has failed with."""
