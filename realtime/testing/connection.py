"""A client's connection in a test: it keeps what it has received until a test asks for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

from realtime.client.errors import CallFailed
from realtime.testing.comparing import described, differences, listing, nearest_line

TIMEOUT = 10.0
"""Seconds to wait for what has to come, unless a test says otherwise."""
QUIET = 0.2
"""Seconds in which something that must not come is given the chance to."""


class Closed(Exception):
    """The server has closed the connection, or it was lost."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code
        self.reason = reason


class Transport(Protocol):
    """What carries frames."""

    async def send(self, text: str) -> None:
        """Send a frame."""

    async def receive(self) -> str:
        """Return the next frame. Raises `Closed`."""

    async def close(self) -> None:
        """Close the connection, if it is open."""


@dataclass(frozen=True, slots=True)
class Received:
    """A frame from the server."""

    event: str
    data: Mapping[str, Any] = field(default_factory=dict)
    room: str | None = None
    offset: str | None = None
    id: str | int | None = None

    @classmethod
    def parse(cls, text: str) -> Received:
        """A frame as it came."""
        frame = json.loads(text)
        return cls(
            frame["event"],
            frame.get("data") or {},
            frame.get("room"),
            frame.get("offset"),
            frame.get("id"),
        )

    def __str__(self) -> str:
        text = json.dumps(self.data, ensure_ascii=False)
        where = f" in {self.room}" if self.room else ""
        return f"{self.event}{where} {text if len(text) <= 200 else text[:200] + '…'}"


class Connection:
    """A connection on some transport, in one event loop."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._unread: list[Received] = []
        self._closed: Closed | None = None
        self._changed = asyncio.Condition()
        self._ids = count(1)
        self._reading = asyncio.create_task(self._read(), name="read")
        self.ready: Mapping[str, Any] = {}

    async def _read(self) -> None:
        while self._closed is None:
            try:
                received = Received.parse(await self._transport.receive())
            except Closed as closed:
                self._closed = closed
            else:
                self._unread.append(received)
            async with self._changed:
                self._changed.notify_all()

    async def begin(self) -> None:
        """Wait for `connection:ready`, and keep what it says."""
        self.ready = (await self.expect("connection:ready", {}, TIMEOUT)).data

    async def send(self, event: str, data: Mapping[str, Any], **more: Any) -> None:
        """Send an event."""
        await self._transport.send(json.dumps({"event": event, "data": dict(data), **more}))

    async def call(self, event: str, data: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        """Send an event, and return the data of its acknowledgement. Raises `CallFailed`."""
        id = f"call-{next(self._ids)}"
        await self.send(event, data, id=id)
        answer = await self._next(lambda frame: frame.id == id, timeout)
        if answer is None:
            raise AssertionError(f"{event} was not answered{self._why(timeout)}.\n{self._received()}")
        if answer.event == "error":
            raise CallFailed(answer.data["code"], answer.data["message"], answer.data.get("retry_after"))
        return answer.data

    async def expect(self, event: str, fields: Mapping[str, Any], timeout: float) -> Received:
        """Return the next unread frame of an event with these fields. Raises `AssertionError` when none comes."""

        def matches(frame: Received) -> bool:
            return frame.event == event and not differences(fields, frame.data)

        if (found := await self._next(matches, timeout)) is not None:
            return found
        nearest = nearest_line(
            event, (differences(fields, each.data) for each in self._unread if each.event == event)
        )
        complaint = f"{described(event, fields)} did not come{self._why(timeout)}."
        raise AssertionError("\n".join([complaint, *nearest, self._received()]))

    async def expect_nothing(self, events: tuple[str, ...], within: float) -> None:
        """Raise `AssertionError` if one of these events (without any: a frame) is unread, or comes in this time."""

        def matches(frame: Received) -> bool:
            return not events or frame.event in events

        if (found := await self._next(matches, within)) is not None:
            raise AssertionError(f"Expected nothing, but this came: {found}")

    async def expect_close(self, timeout: float) -> tuple[int, str]:
        """Return code and reason of the close. Raises `AssertionError` when the connection stays open."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(lambda: self._closed is not None)
        if self._closed is None:
            raise AssertionError(f"The connection is open after {timeout:g} s.\n{self._received()}")
        return self._closed.code, self._closed.reason

    async def close(self) -> None:
        """Close the connection."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._transport.close()

    async def _next(self, matches: Callable[[Received], bool], timeout: float) -> Received | None:
        """Take the first unread frame that matches; the frames before it stay unread."""

        def found() -> Received | None:
            return next(filter(matches, self._unread), None)

        with suppress(TimeoutError):
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(lambda: found() is not None or self._closed is not None)
        if (frame := found()) is not None:
            self._unread.remove(frame)
        return frame

    def _why(self, timeout: float) -> str:
        if self._closed is not None:
            return f": the connection was closed with {self._closed}"
        return f" within {timeout:g} s"

    def _received(self) -> str:
        return listing("Received and not read", map(str, self._unread))
