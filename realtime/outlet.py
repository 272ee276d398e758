"""Straight from the channel layer to the wire: what a connection receives without queue, task or thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from realtime import metrics
from realtime.closing import By
from realtime.delivery import Ephemeral, Run, text_frame
from realtime.envelope import encode

if TYPE_CHECKING:
    from realtime.consumers import NamespaceConsumer

EXTENSION = "realtime.frames"
"""The ASGI extension with which a server offers its frame writer: `scope["extensions"]["realtime.frames"]`."""

REPLAY_BYTES = 64 * 1024
"""Written of a replay before it is looked whether the client keeps up."""


class FrameWriter(Protocol):
    """What the server offers: writes finished WebSocket frames, in order with everything else it sends."""

    @property
    def unsent(self) -> int:
        """Bytes that wait for a peer that does not keep up; 0 for one that does."""

    @property
    def ending(self) -> tuple[By, int, str]:
        """Who has ended the connection, with which code and reason."""

    def write_frames(self, frames: bytes) -> None:
        """Write whole frames, or nothing when the connection is closing."""

    async def drained(self) -> None:
        """Return once the peer keeps up with what is written."""

    def hand_over(self, take: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Give every further event to `take`, so that the application may return."""


class ConnectionOutlet:
    """The outlet of one connection. Where there is a frame writer it takes the place of `receive()`."""

    __slots__ = ("_connection", "_writer")

    def __init__(self, connection: NamespaceConsumer, writer: FrameWriter) -> None:
        self._connection = connection
        self._writer = writer

    @property
    def is_behind(self) -> bool:
        """Whether the client does not read what is sent to it."""
        return self._writer.unsent > 0

    @property
    def unsent(self) -> int:
        """Bytes that wait for it."""
        return self._writer.unsent

    @property
    def ending(self) -> tuple[By, int, str]:
        """Who has ended the connection, with which code and reason."""
        return self._writer.ending

    def publications(self, run: Run) -> None:
        self._writer.write_frames(
            run.wire_for(self._connection.connection_id) if run.excluded else run.wire()
        )

    def ephemeral(self, ephemeral: Ephemeral) -> None:
        connection = self._connection
        if self.is_behind:
            metrics.EPHEMERAL_DROPPED.inc()  # whoever does not keep up gets what matters first
        elif connection.hears(ephemeral.room) and ephemeral.sender != connection.connection_id:
            ephemeral.sent += 1
            self._writer.write_frames(ephemeral.wire)

    async def replay(self, run: Run) -> None:
        """What the client missed, as fast as it reads: this never counts as unsent."""
        part: list[bytes] = []
        for publication in run.publications:
            if publication.exclude != self._connection.connection_id:
                metrics.tally.sent("replay", publication.frame)
                part.append(text_frame(publication.frame))
            if sum(map(len, part)) >= REPLAY_BYTES or publication is run.publications[-1]:
                self._writer.write_frames(b"".join(part))
                part.clear()
                await self._writer.drained()

    def message(self, message: dict[str, Any]) -> None:
        connection = self._connection
        if message["type"] == "room.gap":
            # Written here and now: what comes after the gap must not overtake it.
            if (room := message["room"]) in connection.rooms:
                connection.rooms[room] = int(message["offset"])
                metrics.frames_out("direct", "room:gap").inc()
                gap = encode("room:gap", {"room": room, "reason": message["reason"]})
                self._writer.write_frames(text_frame(gap.encode()))
                connection.soon(connection.on_gap, room)
        else:
            connection.soon(connection.handle, message)
