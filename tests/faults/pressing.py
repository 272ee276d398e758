"""Connections of attackers: each writes as fast as the server reads."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from tests.faults.crowd import Member


class Spent(msgspec.Struct):
    """What a flood cost the attackers."""

    bytes: int = 0
    connections: int = 0
    most_open: int = 0
    """Connections at the same time."""


class Pressing(asyncio.BaseProtocol):
    """A connection that is written to as fast as the server reads."""

    transport: Any = None
    is_over = False

    def __init__(self, spent: Spent) -> None:
        super().__init__()
        self._spent = spent
        self._may_write = asyncio.Event()
        self._may_write.set()
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.is_over = True
        self._may_write.set()
        self.ended.set()

    async def press(self, data: bytes) -> None:
        """Write, as soon as there is room. Raises `ConnectionResetError` when the connection is over."""
        await self._may_write.wait()
        if self.is_over:
            raise ConnectionResetError
        self.transport.write(data)
        self._spent.bytes += len(data)
        await asyncio.sleep(0)


class Raw(Pressing, asyncio.Protocol):
    """A connection that ignores what it receives."""

    def __init__(self, spent: Spent) -> None:
        super().__init__(spent)
        self.answered = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.answered.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.answered.set()


class Peer(Pressing, Member):
    """A connection that speaks the protocol."""
