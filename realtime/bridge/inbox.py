"""What arrives over Pub/Sub and waits to be delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from realtime.bridge.batch import drop

INBOX_BYTES = 8 << 20
"""What may wait; more is dropped, as Pub/Sub itself does with a subscriber that is too slow."""
MESSAGE_BYTES = 64
"""What waits takes so much besides its content: small messages, or empty ones, must not be without number."""


class Inbox:
    """A bounded queue of raw messages, from which as many are taken as there are."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue()
        self._bytes = 0

    def put(self, messages: Sequence[bytes]) -> None:
        """Add messages; those that are too many are dropped and counted."""
        dropped = 0
        for raw in messages:
            if self._bytes + len(raw) + MESSAGE_BYTES > INBOX_BYTES:
                dropped += 1
            else:
                self._bytes += len(raw) + MESSAGE_BYTES
                self._waiting.put_nowait(raw)
        if dropped:
            drop(dropped, "more than can be delivered")

    async def take(self, most: int) -> list[bytes]:
        """Wait until something is there, and return it in order, at most so many."""
        taken = [await self._waiting.get()]
        while len(taken) < most and not self._waiting.empty():
            taken.append(self._waiting.get_nowait())
        self._bytes -= sum(map(len, taken)) + MESSAGE_BYTES * len(taken)
        return taken
