"""What carries a test's frames: a WebSocket to a server, or the ASGI application in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

from channels.testing import WebsocketCommunicator
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from realtime.client.errors import Denied
from realtime.routing import websocket
from realtime.testing.connection import TIMEOUT, Closed, Transport

Headers = Sequence[tuple[str, str]]
Open = Callable[[str, Headers], Awaitable[Transport]]
"""Opens a connection to a path. Raises `Denied`."""


def _denied(status: int, body: bytes) -> Denied:
    try:
        error = json.loads(body)["error"]
        return Denied(status, f"{error['code']}: {error['message']}")
    except (ValueError, LookupError, TypeError):
        return Denied(status, "")


class WebSocket:
    """A connection over the network."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, url: str, headers: Headers) -> Self:
        """Connect. Raises `Denied` when the handshake is refused."""
        try:
            return cls(await connect(url, additional_headers=headers, proxy=None, open_timeout=TIMEOUT))
        except InvalidStatus as error:
            # Without its cause, whose traceback shows the token.
            raise _denied(error.response.status_code, bytes(error.response.body or b"")) from None

    async def send(self, text: str) -> None:
        """Send a frame."""
        await self._connection.send(text)

    async def receive(self) -> str:
        """Return the next frame. Raises `Closed`."""
        try:
            return await self._connection.recv(decode=True)
        except ConnectionClosed as error:
            raise Closed(error.rcvd.code, error.rcvd.reason) if error.rcvd else Closed(1006, "") from error

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()


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
            raise _denied(answer["status"], body["body"])
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
