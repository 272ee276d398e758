"""A person who is connected, comes back after every loss, and notes what they saw."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from realtime.client import Client, Event
from tests.e2e.harness import Stack, unique


@dataclass
class Person:
    """The project's own client, as products use it, with notes of what it saw and was told."""

    stack: Stack
    ports: Sequence[int]
    group: str
    threads: Sequence[str]
    user_id: str = field(default_factory=lambda: unique("u"))
    seen: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Message ids by thread, in order."""
    delays: array[float] = field(default_factory=lambda: array("d"))
    """Seconds from the moment at which a message was written until it was here, in order."""
    told: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Why a thread has to be fetched anew, each time that was said."""
    endings: Counter[str] = field(default_factory=Counter)
    """How connections ended."""

    def __post_init__(self) -> None:
        token = self.stack.token(self.user_id, "attendant", groups=[self.group])
        self._attempts = itertools.count()
        self._client = Client(
            self._address,
            lambda: token,
            reconnection_delay=0.3,
            reconnection_delay_max=0.3,
            connect_timeout=60,
            connect=self._connect,
        )
        self._websocket: ClientConnection | None = None
        self._moves = False
        self._leaving = asyncio.Event()

    def _address(self) -> str:
        return self.stack.url("hub", port=self.ports[next(self._attempts) % len(self.ports)])

    async def _connect(self, *address: Any, **options: Any) -> ClientConnection:
        self._websocket = await connect(*address, **options)
        return self._websocket

    async def stay(self) -> None:
        """Be there until told to leave."""
        async with self._client:
            for thread in self.threads:
                self._client.join(thread)
            reading = asyncio.create_task(self._read())
            leaving = asyncio.create_task(self._leaving.wait())
            try:
                await asyncio.wait([reading, leaving], return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    reading.result()
                    raise AssertionError("a server said that this is the end")
                self.endings["left"] += 1
            finally:
                reading.cancel()
                leaving.cancel()
                await asyncio.gather(reading, leaving, return_exceptions=True)

    @property
    def present(self) -> bool:
        """In all threads, just now."""
        return all(f"thread:{thread}" in self._client.rooms for thread in self.threads)

    async def leave(self) -> None:
        """Go, and do not come back."""
        self._leaving.set()

    def move(self) -> None:
        """Come again by another way, without ending the old one."""
        self._moves = True
        self._client.reconnect()

    async def type(self) -> None:
        """Start to type in some thread, or stop."""
        if self.present:
            event = random.choice(["typing:start", "typing:stop"])
            await self._client.send(event, {"thread_id": random.choice(list(self.threads))})

    def drop(self) -> None:
        """Lose the connection without a word."""
        if self._websocket is not None:
            self._websocket.transport.abort()

    async def _read(self) -> None:
        async for event in self._client:
            self._take(event)

    def _take(self, event: Event) -> None:
        data = event.data
        match event.name:
            case "thread:message":
                self.seen[data["thread_id"]].append(data["message_id"])
                self.delays.append(time.monotonic() - data["written_at"])
            case "room:gap" if data["room"].startswith("thread:"):
                self.told[data["room"].removeprefix("thread:")].append(data["reason"])
            case "room:left":
                raise AssertionError(f"taken out of {data['room']}: {data['reason']}")
            case "connection:lost":
                # Without a code the reason begins with the name of an exception.
                ending = str(data["code"] or data["reason"].partition(":")[0])
                self.endings["moved" if self._moves else ending] += 1
                self._moves = False
