"""What is handed to the members of a group, and what they are."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Protocol

from realtime import metrics
from realtime.roomlog import Publication


class Run:
    """Consecutive publications of one room, handed to many; what all of them need is made once."""

    __slots__ = ("_wire", "excluded", "publications", "room")

    def __init__(self, room: str, publications: Sequence[Publication]) -> None:
        self.room = room
        self.publications = publications
        self.excluded = {p.exclude for p in publications if p.exclude}
        """Connections that do not get all of it."""
        self._wire = b""

    def wire(self) -> bytes:
        """All of it as WebSocket frames."""
        if not self._wire:
            self._wire = b"".join([text_frame(p.frame) for p in self.publications])
        return self._wire

    def wire_for(self, connection_id: str) -> bytes:
        """What of it a connection gets."""
        if connection_id not in self.excluded:
            return self.wire()
        return b"".join([text_frame(p.frame) for p in self.publications if p.exclude != connection_id])

    def give(self, outlet: Outlet) -> None:
        """Hand it over."""
        outlet.publications(self)


class Ephemeral:
    """Something said in a room that is stored nowhere; `sender` is the connection that does not get it."""

    __slots__ = ("_wire", "frame", "room", "sender", "sent")

    def __init__(self, room: str, frame: bytes, sender: str) -> None:
        self.room = room
        self.frame = frame
        self.sender = sender
        self.sent = 0
        """Connections that it was written to."""
        self._wire: bytes | None = None

    def give(self, outlet: Outlet) -> None:
        """Hand it over."""
        outlet.ephemeral(self)

    @property
    def wire(self) -> bytes:
        """It as a WebSocket frame."""
        if self._wire is None:
            self._wire = text_frame(self.frame)
        return self._wire

    def message(self) -> dict[str, Any]:
        """It as a message for `receive()`."""
        text = self.frame.decode()
        return {"type": "room.ephemeral", "room": self.room, "text": text, "sender": self.sender}


def text_frame(payload: bytes) -> bytes:
    """A whole, unmasked text frame (RFC 6455 §5.2), as a server sends it."""
    length = len(payload)
    if length < 126:
        return bytes((0x81, length)) + payload
    if length < 1 << 16:
        return b"\x81\x7e" + length.to_bytes(2, "big") + payload
    return b"\x81\x7f" + length.to_bytes(8, "big") + payload


class Outlet(Protocol):
    """Takes what a channel receives, at once."""

    def publications(self, run: Run) -> None:
        """Publications of a room this channel listens to, in order."""

    def ephemeral(self, ephemeral: Ephemeral) -> None:
        """Something of a group this channel is in."""

    def message(self, message: dict[str, Any]) -> None:
        """Anything else."""


class Queue:
    """A channel without outlet: what it receives waits for `receive()`."""

    __slots__ = ("capacity", "full", "messages", "waiter")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.messages: deque[dict[str, Any]] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.full = False

    def publications(self, run: Run) -> None:
        for publication in run.publications:
            self.message(
                {
                    "type": "room.frame",
                    "room": run.room,
                    "offset": str(publication.position),
                    "text": publication.frame.decode(),
                    "except": publication.exclude,
                }
            )

    def ephemeral(self, ephemeral: Ephemeral) -> None:
        self.message(ephemeral.message())

    def message(self, message: dict[str, Any]) -> None:
        if self.full:
            return
        if len(self.messages) >= self.capacity:
            # Loss is said: whoever reads this queue learns that it is not complete.
            self.full = True
            metrics.DROPPED.inc()
            message = {"type": "channel.overflow"}
        self.messages.append(message)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def get(self) -> dict[str, Any]:
        while not self.messages:
            self.waiter = asyncio.get_running_loop().create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None
        message = self.messages.popleft()
        self.full = self.full and bool(self.messages)
        return message


def copy(message: dict[str, Any]) -> dict[str, Any]:
    """A copy that its receiver may change."""
    return {
        name: value if isinstance(value, _IMMUTABLE) else deepcopy(value) for name, value in message.items()
    }


_IMMUTABLE = (str, bytes, int, float, type(None))
