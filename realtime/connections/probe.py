"""The proof that messages reach this instance: one that it sends to itself through Redis comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4


class Probe:
    """Sends probes and waits for them."""

    def __init__(self, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        self._send = send
        self._name = ""
        """Of the last one that was sent."""
        self._is_back = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def run(self, timeout: float) -> None:
        """Send a probe and wait for it. Callers at the same time share one.

        Raises `TimeoutError` after `timeout` seconds, or what the channel layer raises.
        """
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._round_trip(timeout), name="probe")
        await asyncio.shield(self._running)

    async def _round_trip(self, timeout: float) -> None:
        self._name = uuid4().hex
        self._is_back.clear()
        async with asyncio.timeout(timeout):
            await self._send({"type": "node.probe", "probe": self._name})
            await self._is_back.wait()

    def on_message(self, message: dict[str, Any]) -> None:
        """A probe has come back."""
        if message["probe"] == self._name:
            self._is_back.set()
