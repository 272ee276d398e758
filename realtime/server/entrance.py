"""The first protocol of every connection to the socket server: it sends a client where it wants to go.

A handshake as nearly all clients send it goes straight to the WebSocket protocol. All other bytes go, as they came, to
the HTTP protocol, which finds out what they are.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from realtime.conf import conf
from realtime.connections import admission
from realtime.server.heads import Handshake, read_handshake
from realtime.server.http_protocol import BodilessHttpProtocol
from realtime.server.network import peer_address


class Entrance(asyncio.Protocol):
    """Waits for the first bytes of a connection, for `HANDSHAKE_SECONDS` at most."""

    __slots__ = ("_app_state", "_config", "_deadline", "_loop", "_server", "_transport")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._config = config
        self._server = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._deadline: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._server.connections.add(self)  # type: ignore[arg-type]  # what uvicorn asks of them is `shutdown`
        if patience := conf().limits.handshake_seconds:
            self._deadline = self._loop.call_later(patience, transport.close)

    def data_received(self, data: bytes) -> None:
        if (handshake := read_handshake(data)) is None:
            self._leave()
            http = BodilessHttpProtocol(self._config, self._server, self._app_state, self._loop)
            http.take_over(self._transport, self._deadline, data)
        else:
            self._forget_deadline()
            self._begin(handshake)

    def _begin(self, handshake: Handshake) -> None:
        transport = self._transport
        path = handshake.target.partition(b"?")[0]
        peer = peer_address(transport) if conf().trusted_proxies else None  # needed only then
        refused = admission.refuse_handshake(peer, handshake.headers, path)
        if refused is not None:
            transport.write(admission.response(refused, self._server.default_headers))
            transport.close()
            return
        self._leave()
        websocket: Any = self._config.ws_protocol_class
        websocket = websocket(self._config, self._server, self._app_state, self._loop)
        websocket.connection_made(transport)
        transport.set_protocol(websocket)
        websocket.handshake_received("GET", *handshake)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        self._leave()

    def _leave(self) -> None:
        self._server.connections.discard(self)

    def shutdown(self) -> None:
        """The server stops: nothing was asked yet."""
        self._transport.close()

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
