"""What a channel layer hands to the members of a group, and what it asks of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from realtime.protocol.publication import Publication
from realtime.telemetry import metrics


class PublicationBatch:
    """Consecutive publications of one room; what all of its listeners need is made once."""

    __slots__ = ("_wire", "excluded", "last", "previous", "publications")

    def __init__(self, publications: Sequence[Publication]) -> None:
        self.publications = publications
        self.previous = publications[0].previous
        """The position that the first of them follows."""
        self.last = publications[-1].position
        self.excluded = {p.exclude for p in publications if p.exclude}
        """Connections that do not get all of them."""
        self._wire = b""

    def wire(self) -> bytes:
        """All of them as WebSocket frames."""
        if not self._wire:
            frames = [text_frame(p.frame) for p in self.publications]
            self._wire = frames[0] if len(frames) == 1 else b"".join(frames)
        return self._wire

    def above(self, position: int) -> PublicationBatch | None:
        """The publications above a position; None when there are none."""
        if position < self.publications[0].position:
            return self
        rest = [publication for publication in self.publications if publication.position > position]
        return PublicationBatch(rest) if rest else None

    def wire_for(self, connection_id: str) -> bytes:
        """The frames that a connection gets."""
        if connection_id not in self.excluded:
            return self.wire()
        return b"".join([text_frame(p.frame) for p in self.publications if p.exclude != connection_id])


class Ephemeral:
    """An event that is stored nowhere; `sender` is the connection that does not get it."""

    __slots__ = ("_wire", "frame", "room", "sender")

    def __init__(self, room: str, frame: bytes, sender: str) -> None:
        self.room = room
        self.frame = frame
        self.sender = sender
        self._wire: bytes | None = None

    @property
    def wire(self) -> bytes:
        """It as a WebSocket frame."""
        if self._wire is None:
            self._wire = text_frame(self.frame)
        return self._wire

    def give(self, listener: Any) -> bool:
        """Hand it to a listener; True if that has written it."""
        return bool(listener.emit(self))

    def message(self) -> dict[str, Any]:
        """It as a message for a channel layer that knows messages only."""
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


def payloads(frames: bytes) -> Iterator[bytes]:
    """The payloads of frames that `text_frame` made."""
    start = 0
    while start < len(frames):
        size = {126: 2, 127: 8}.get(frames[start + 1], 0)
        begin = start + 2 + size
        length = int.from_bytes(frames[start + 2 : begin], "big") if size else frames[start + 1]
        start = begin + length
        yield frames[begin:start]


class Mailbox(Protocol):
    """Takes the messages that are sent to a channel."""

    def message(self, message: dict[str, Any]) -> None:
        """Take a message that the receiver may change."""


class Outlet(Mailbox, Protocol):
    """A connection as the channel layer sees it: it is called at once, so that no task is woken for a delivery."""

    connection_id: str

    def write(self, frames: bytes) -> None:
        """Write whole WebSocket frames, or nothing when the connection is closing."""

    @property
    def is_behind(self) -> bool:
        """Whether the client does not read what is sent to it."""

    async def drained(self) -> None:
        """Return once the client has read what was written."""

    def gap(self, room: str, reason: str) -> None:
        """Tell the client that publications of the room are lost."""

    def fail(self) -> None:
        """Close the connection: something went wrong here."""


class Queue:
    """The mailbox of a channel without an outlet: messages wait for `receive()`, but not longer than `expiry`."""

    __slots__ = ("_arrived", "capacity", "expiry", "full", "messages", "receivers")

    def __init__(self, capacity: int, expiry: float) -> None:
        self.capacity = capacity
        self.expiry = expiry
        """Seconds."""
        self.messages: deque[tuple[float, dict[str, Any]]] = deque()
        """With the loop time at which each expires."""
        self.receivers = 0
        """Calls of `receive()` that wait."""
        self.full = False
        self._arrived = asyncio.Event()

    def message(self, message: dict[str, Any]) -> None:
        if self.full:
            return
        if self.is_full:
            # Loss is reported: the reader of this queue learns that it is not complete.
            self.full = True
            metrics.DROPPED.inc()
            message = {"type": "channel.overflow"}
        self.messages.append((asyncio.get_running_loop().time() + self.expiry, message))
        self._arrived.set()

    @property
    def is_full(self) -> bool:
        """Whether `capacity` messages wait that have not expired."""
        return len(self._unexpired()) >= self.capacity

    async def get(self) -> dict[str, Any]:
        """The next message that has not expired; waits for it."""
        while not self._unexpired():
            self._arrived.clear()
            await self._arrived.wait()
        _, message = self.messages.popleft()
        self.full = self.full and bool(self.messages)
        return message

    def _unexpired(self) -> deque[tuple[float, dict[str, Any]]]:
        now = asyncio.get_running_loop().time()
        while self.messages and self.messages[0][0] <= now:
            self.messages.popleft()
        self.full = self.full and bool(self.messages)
        return self.messages
