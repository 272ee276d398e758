"""What a client sends, cut into frames no faster than they may come."""

from __future__ import annotations

import asyncio
from typing import Protocol

from realtime.conf import conf
from realtime.connections.rate_limit import PAUSE_SECONDS, Bucket, frame_cost
from realtime.server.dispatcher import Dispatcher
from realtime.server.frames import frame_size

FRAMES_A_TURN = 16
"""The most frames of a connection that are parsed in one turn of the event loop."""
LONGEST_HOLD = PAUSE_SECONDS / 2
"""The longest time for which a connection over its limit is not read: short enough to be no pause in sending."""


class Connection(Protocol):
    """As much of a connection as its frame reader needs."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    read_paused: bool

    def frame_received(self, frame: bytes, early: float) -> None:
        """Handle one frame, which came `early` seconds too early."""


class FrameReader:
    """Keeps the bytes of one connection until they are frames that may be parsed, and stops reading meanwhile.

    A frame may be parsed when the connection is open, the events before it are not too many, and it is within the
    limit. Frames over the limit are parsed too, to be refused, but no faster than the limit itself allows.
    """

    __slots__ = ("_connection", "_dispatcher", "_held", "_most", "_received", "_refusals")

    def __init__(self, connection: Connection, most: int) -> None:
        self._connection = connection
        self._most = most
        """The largest payload, in bytes."""
        self._dispatcher: Dispatcher | None = None
        self._received = bytearray()
        """What is not parsed yet."""
        self._held: asyncio.Handle | None = None
        """Goes on parsing; until then nothing is parsed."""
        self._refusals: Bucket | None = None
        """How fast frames over the limit may be parsed."""

    @property
    def unparsed(self) -> int:
        """Bytes that were received and not parsed yet."""
        return len(self._received)

    def start(self, dispatcher: Dispatcher) -> None:
        """Parse from now on, as fast as `dispatcher` handles the events."""
        self._dispatcher = dispatcher
        if self._received:
            self._parse()

    def feed(self, data: bytes) -> None:
        """Take bytes from the network. Most often they are exactly one frame."""
        if (
            not self._received
            and len(data) == frame_size(data, self._most)
            and (early := self._admit(len(data))) is not None
        ):
            self._connection.frame_received(data, early)
        else:
            self._received += data
            self._parse()

    def read_on(self) -> None:
        """Go on: events have been handled."""
        if self._connection.read_paused:
            self._parse()

    def _parse(self) -> None:
        """Parse what was received, but not too much in one turn. Nothing is read while there are frames left."""
        received = self._received
        for _ in range(FRAMES_A_TURN):
            if self._connection.transport.is_closing():
                received.clear()
            if len(received) < (size := frame_size(received, self._most)):
                self._resume_reading()
                return
            if (early := self._admit(size)) is None:
                self._pause_reading()
                return
            frame = bytes(received[:size])
            del received[:size]
            self._connection.frame_received(frame, early)
        self._pause_reading()
        self._hold(0)

    def _admit(self, size: int) -> float | None:
        """How many seconds one more frame comes too early; None if it may not be parsed before `_parse` runs again."""
        dispatcher = self._dispatcher
        if self._held is not None or dispatcher is None or dispatcher.is_full:
            return None
        early = dispatcher.receiver.charge(size)
        if early and (pause := self._refusal_pause(size)):
            self._hold(min(pause, LONGEST_HOLD))
            return None
        return early

    def _refusal_pause(self, size: int) -> float:
        """Seconds until one more frame over the limit may be parsed; 0 when it may be now."""
        if self._refusals is None:
            self._refusals = Bucket()
        limits = conf().limits
        return self._refusals.take(self._connection.loop.time(), limits.rate, limits.burst, frame_cost(size))

    def _hold(self, seconds: float) -> None:
        if self._held is None:
            self._held = self._connection.loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._held = None
        self._parse()

    def _resume_reading(self) -> None:
        if self._connection.read_paused:
            self._connection.read_paused = False
            if not self._connection.transport.is_closing():
                self._connection.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._connection.read_paused:
            self._connection.read_paused = True
            self._connection.transport.pause_reading()
