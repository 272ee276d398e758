"""A client that speaks the protocol over a WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.asking import PATIENCE, Asking, matching

QUIET = 0.4
"""Seconds in which something that must not happen is given the chance to."""


class Client(Asking):
    """A native WebSocket client: sends frames, keeps everything it receives in order."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self.ready: dict[str, Any] = {}
        self.frames: list[dict[str, Any]] = []
        """Everything received, in order."""
        self.texts: list[str] = []
        """The same as it came."""
        self.close_code: int | None = None
        self.close_reason = ""
        self._unread: list[dict[str, Any]] = []
        self._news = asyncio.Event()
        self._ids = 0
        self._reader = asyncio.create_task(self._read())

    @property
    def connection_id(self) -> str:
        return self.ready["connection_id"]

    @property
    def user_id(self) -> str:
        return self.ready["user_id"]

    async def _read(self) -> None:
        try:
            async for text in self.websocket:
                frame = json.loads(text)
                self.texts.append(text)
                self.frames.append(frame)
                self._unread.append(frame)
                self._news.set()
        except ConnectionClosed:
            pass
        finally:
            self.close_code = self.websocket.close_code
            self.close_reason = self.websocket.close_reason or ""
            self._news.set()

    async def close(self) -> None:
        await self.websocket.close()
        await self._reader

    def drop(self) -> None:
        """Cut the connection without a closing handshake."""
        self.websocket.transport.abort()

    async def raw(self, frame: str | bytes) -> None:
        await self.websocket.send(frame)

    async def ask(self, event: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send with an id, as fast as it is allowed, and return the answer: an ack or an error."""
        while True:
            self._ids += 1
            frame_id = f"call-{self._ids}"
            await self.send(event, data, id=frame_id)
            frame = await self._answer_to(frame_id, event)
            if frame["data"].get("code") != "rate_limited":
                return frame
            await asyncio.sleep(frame["data"]["retry_after"])

    async def _answer_to(self, frame_id: str, event: str) -> dict[str, Any]:
        return await self.next_frame(lambda frame: frame.get("id") == frame_id, f"an answer to {event}")

    async def expect(self, event: str, within: float = PATIENCE, **data: Any) -> dict[str, Any]:
        """The next unread frame of this event whose data has these values; frames before it stay unread."""
        return await self.next_frame(
            matching(event, data),
            f"{event} {data}",
            within,
        )

    async def expect_close(self, within: float = PATIENCE) -> int | None:
        """Wait for the close; returns its code."""
        await asyncio.wait_for(asyncio.shield(self._reader), within)
        return self.close_code

    async def nothing(self, *events: str, within: float = QUIET) -> None:
        """None of these events (none at all, if none is named) is unread, nor comes within a moment."""
        await asyncio.sleep(within)
        found = [frame for frame in self._unread if not events or frame["event"] in events]
        assert not found, found

    def received(self, event: str) -> list[dict[str, Any]]:
        """Every frame of this event so far, read or not."""
        return [frame for frame in self.frames if frame["event"] == event]

    def forget_unread(self) -> None:
        """Let no frame that has come so far be found any more."""
        self._unread.clear()

    async def next_frame(
        self, matches: Callable[[dict[str, Any]], bool], what: str, within: float = PATIENCE
    ) -> dict[str, Any]:
        """The next unread frame that matches; frames before it stay unread. `what` describes it if it does not come."""
        try:
            async with asyncio.timeout(within):
                while True:
                    for frame in self._unread:
                        if matches(frame):
                            self._unread.remove(frame)
                            return frame
                    assert not self._reader.done(), f"closed with {self.close_code} while waiting for {what}"
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"{what} did not come; got {self.frames}") from None
