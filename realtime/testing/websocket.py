"""What carries a test's frames over the network. This module alone needs `websockets`."""

from __future__ import annotations

from typing import Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from realtime.testing.connection import TIMEOUT, Closed
from realtime.testing.transports import Headers, denied


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
            raise denied(error.response.status_code, bytes(error.response.body or b"")) from None

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
