"""What the tests of the bridge share: a room that hears, and a backbone that publishes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

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
