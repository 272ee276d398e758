"""The inbox: a bounded queue of messages that arrived over Pub/Sub."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from realtime.bridge.dead_letters import drop
from realtime.layers.history import Lease

INBOX_BYTES = 8 << 20
"""Bytes that may wait; what arrives beyond is dropped, as Redis drops what a slow subscriber does not read."""
MESSAGE_BYTES = 64
"""Bytes that a message takes besides its content, so that even the number of empty messages is bounded."""


class Inbox:
    """A bounded queue of raw messages, each with the term in which it arrived. Those that wait are taken together."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[tuple[bytes, Lease]] = asyncio.Queue()
        self._bytes = 0

    def put(self, messages: Sequence[bytes], term: Lease) -> None:
        """Add messages; those that do not fit are dropped and counted."""
        dropped = 0
        for raw in messages:
            if self._bytes + len(raw) + MESSAGE_BYTES > INBOX_BYTES:
                dropped += 1
            else:
                self._bytes += len(raw) + MESSAGE_BYTES
                self._waiting.put_nowait((raw, term))
        if dropped:
            drop(dropped, "more than can be delivered")

    async def take(self, most: int) -> list[tuple[bytes, Lease]]:
        """Wait for a message, and return up to `most` of those that wait, in order."""
        taken = [await self._waiting.get()]
        while len(taken) < most and not self._waiting.empty():
            taken.append(self._waiting.get_nowait())
        self._bytes -= sum([len(raw) + MESSAGE_BYTES for raw, _ in taken])
        return taken
