"""The one writer of a connection: everything that it sends is written in the order of the calls."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from realtime.conf import conf
from realtime.connections.interface import Connection
from realtime.layers.outlets import payloads, text_frame
from realtime.protocol.close_codes import By, CloseCode
from realtime.protocol.envelope import encode
from realtime.telemetry import metrics

EXTENSION = "realtime.frames"
"""The ASGI extension with which a server offers its frame writer: `scope["extensions"]["realtime.frames"]`."""

BEHIND_SECONDS = 0.1
"""Seconds that frames may wait before the peer counts as too slow: one turn of the loop may write many."""


class Receiver(Protocol):
    """What the events of a connection are given to."""

    def take(self, message: dict[str, Any], *, is_alone: bool) -> Awaitable[None] | None:
        """Handle an event, and return what is left to be awaited in a task, or None.

        `is_alone`: no earlier event is being handled.
        """

    def charge(self, size: int) -> float:
        """Count one frame of `size` bytes, of whatever kind. Returns 0, or how many seconds it came too early."""


class FrameWriter(Protocol):
    """Writes finished WebSocket frames at once, in the order of the calls."""

    @property
    def unsent(self) -> int:
        """Bytes that wait for a peer that reads too slowly; 0 for one that does not."""

    @property
    def ending(self) -> tuple[By, int, str] | None:
        """Which side ended the connection, with which code and reason; None if the writer does not know."""

    def write_frames(self, frames: bytes) -> None:
        """Write whole frames, or nothing when the connection is closing."""

    def close(self, code: int, reason: str) -> None:
        """Write a close frame, and nothing after it. A peer that does not read it is cut off."""

    async def drained(self) -> None:
        """Return once the peer has read what was written."""


class HandingOver(FrameWriter, Protocol):
    """The frame writer of a server that calls the application for each event, so that no task has to wait."""

    def hand_over(self, receiver: Receiver) -> None:
        """Give every further event to `receiver`, so that the application may return.

        `receiver.charge` is called for every frame of the client, control frames and fragments included, before it is
        parsed. What it returns is in `websocket.receive` as `retry_after`.
        """


class AsgiWriter:
    """A frame writer for any ASGI server (daphne, Channels' test communicators): one task sends the waiting frames."""

    ending = None

    def __init__(self, send: Callable[[Any], Awaitable[None]]) -> None:
        self._send = send
        self._waiting: deque[dict[str, Any]] = deque()
        self._bytes = 0
        self._waits_since = 0.0
        self._sender: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def unsent(self) -> int:
        is_behind = self._bytes and asyncio.get_running_loop().time() - self._waits_since >= BEHIND_SECONDS
        return self._bytes if is_behind else 0

    def write_frames(self, frames: bytes) -> None:
        if self._is_closed:
            return
        if self.unsent > conf().limits.unsent_bytes > 0:
            self.close(CloseCode.TOO_SLOW, "too slow")
            return
        for payload in payloads(frames):
            self._bytes += len(payload)
            self._put({"type": "websocket.send", "text": payload.decode()})

    def close(self, code: int, reason: str) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._put({"type": "websocket.close", "code": code, "reason": reason})

    async def drained(self) -> None:
        if self._sender is not None:
            await asyncio.wait([self._sender])

    def _put(self, message: dict[str, Any]) -> None:
        self._waiting.append(message)
        if self._sender is None or self._sender.done():
            self._waits_since = asyncio.get_running_loop().time()
            self._sender = asyncio.create_task(self._send_waiting(), name="send")

    async def _send_waiting(self) -> None:
        while self._waiting:
            message = self._waiting.popleft()
            try:
                await self._send(message)
            except Exception:
                # Each server has exceptions of its own for a peer that is gone; its end is reported by `receive()`.
                self._is_closed = True
                self._waiting.clear()
            self._bytes -= len(message.get("text", "").encode())


class ConnectionOutlet:
    """The outlet of one connection."""

    __slots__ = ("_connection", "connection_id", "write", "writer")

    def __init__(self, connection: Connection, writer: FrameWriter) -> None:
        self._connection = connection
        self.connection_id = connection.connection_id
        self.writer = writer
        self.write = writer.write_frames

    @property
    def is_behind(self) -> bool:
        return self.writer.unsent > 0

    async def drained(self) -> None:
        await self.writer.drained()

    def gap(self, room: str, reason: str) -> None:
        metrics.frames_out("direct", "room:gap").inc()
        self.write(text_frame(encode("room:gap", {"room": room, "reason": reason}).encode()))
        self._connection.soon(self._connection.on_gap, room)

    def fail(self) -> None:
        self._connection.terminate(CloseCode.INTERNAL_ERROR)

    def message(self, message: dict[str, Any]) -> None:
        self._connection.soon(self._connection.handle, message)
