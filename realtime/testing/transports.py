"""What carries a test's frames, and the ASGI application in this process, which does so without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

from channels.testing import WebsocketCommunicator

from realtime.client.errors import Denied
from realtime.routing import websocket
from realtime.testing.connection import TIMEOUT, Closed, Transport

Headers = Sequence[tuple[str, str]]
Open = Callable[[str, Headers], Awaitable[Transport]]
"""Opens a connection to a path. Raises `Denied`."""


def denied(status: int, body: bytes) -> Denied:
    """The error that a refused handshake raises."""
    try:
        error = json.loads(body)["error"]
        return Denied(status, f"{error['code']}: {error['message']}")
    except (ValueError, LookupError, TypeError):
        return Denied(status, "")


class InProcess:
    """A connection to the socket server's application in this process, by channels' `WebsocketCommunicator`."""

    def __init__(self, path: str, headers: Headers) -> None:
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers]
        self._communicator: Any = WebsocketCommunicator(websocket, path, headers=encoded)
        self._communicator.scope["extensions"] = {"websocket.http.response": {}}

    @classmethod
    async def open(cls, path: str, headers: Headers) -> Self:
        """Connect. Raises `Denied` when the handshake is refused."""
        opened = cls(path, headers)
        await opened._handshake()
        return opened

    async def _handshake(self) -> None:
        await self._communicator.send_input({"type": "websocket.connect"})
        answer = await self._communicator.receive_output(TIMEOUT)
        if answer["type"] == "websocket.http.response.start":
            body = await self._communicator.receive_output(TIMEOUT)
            await self._communicator.wait(TIMEOUT)
            raise denied(answer["status"], body["body"])
        if answer["type"] == "websocket.close":
            raise Denied(403, answer.get("reason") or "")

    async def send(self, text: str) -> None:
        """Send a frame."""
        await self._communicator.send_to(text_data=text)

    async def receive(self) -> str:
        """Return the next frame. Raises `Closed`."""
        # With a time-out the communicator would end the application.
        output = await self._communicator.receive_output(None)
        if output["type"] == "websocket.close":
            raise Closed(output.get("code", 1000), output.get("reason") or "")
        return str(output["text"])

    async def close(self) -> None:
        """Close the connection, and wait for the end of the application."""
        if not self._communicator.future.done():
            await self._communicator.send_input({"type": "websocket.disconnect", "code": 1001})
            await asyncio.wait([self._communicator.future], timeout=TIMEOUT)
