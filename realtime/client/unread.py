"""Events that wait for the program to read them."""

from __future__ import annotations

import asyncio
from collections import deque

from .event import Event


class Unread:
    """A queue without a hard bound: its writer waits for room before it reads the next frame from the network.

    Unlike `asyncio.Queue` it ends, and what is in it can still be read then.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()

    def put(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)
        self._arrived.set()

    def take(self) -> Event | None:
        """Remove the oldest event and return it; None if there is none."""
        if not self._events:
            return None
        self._taken.set()
        return self._events.popleft()

    async def arrival(self) -> None:
        """Return once an event has arrived, or none will arrive any more."""
        self._arrived.clear()
        await self._arrived.wait()

    async def room(self) -> None:
        """Return once fewer than the most events wait."""
        while len(self._events) >= self._most:
            self._taken.clear()
            await self._taken.wait()

    def end(self) -> None:
        """No more events arrive."""
        self._arrived.set()
