"""What every client of the tests does: wait for something, and send frames whose answer it expects."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 60.0
"""Seconds until a test gives up waiting for something that must happen: however slow the machine is, it takes less."""


async def eventually(condition: Callable[[], Any], within: float = PATIENCE) -> Any:
    """Wait until `condition()` (or its awaited result) is true, and return it."""
    deadline = time.monotonic() + within
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result
        assert time.monotonic() < deadline, f"still not true after {within} s: {condition}"
        await asyncio.sleep(0.01)


def matching(event: str, data: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    """Whether a frame is of this event, and its data has these values."""
    return lambda frame: (
        frame["event"] == event and all(frame["data"].get(name) == value for name, value in data.items())
    )


class Asking:
    """Mixin: frames of a client that sends texts by `raw` and waits for an answer by `ask`."""

    async def raw(self, frame: Any) -> None:
        raise NotImplementedError

    async def ask(self, event: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
        raise NotImplementedError

    async def send(self, event: str, data: dict[str, Any] | None = None, **more: Any) -> None:
        await self.raw(json.dumps({"event": event, "data": data or {}, **more}))

    async def call(self, event: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send with an id and return the data of its ack."""
        frame = await self.ask(event, data)
        assert frame["event"] == "ack", frame
        return frame["data"]

    async def refused(self, event: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send with an id and return the data of its error."""
        frame = await self.ask(event, data)
        assert frame["event"] == "error", frame
        return frame["data"]
