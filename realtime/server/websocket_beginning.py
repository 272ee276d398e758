"""How a WebSocket begins, on uvicorn's protocol: its state, and the answer to its handshake.

`WebSocketsSansIOProtocol` is no public API: a test fails when what is relied on here changes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import unquote

from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.protocol import CONNECTING, OPEN
from websockets.server import ServerProtocol

from realtime.connections.frame_outlet import EXTENSION
from realtime.server import heads
from realtime.server.gate import Gate
from realtime.server.network import local_address, peer_address

_SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b"
)


class WebSocketBeginning(WebSocketsSansIOProtocol):
    """A connection up to the moment when it is open. Its state is small, since many connections share a process."""

    # What nearly every connection sets; the rest is in a dict, which few of them have.
    __slots__ = (
        "_accepts",
        "app",
        "app_state",
        "config",
        "connections",
        "default_headers",
        "handshake_complete",
        "head",
        "loop",
        "parser",
        "ping_interval",
        "queue",
        "read_paused",
        "scope",
        "tasks",
        "transport",
        "writable",
    )

    # What uvicorn sets for each connection, where it begins the same for all.
    logger = logging.getLogger("uvicorn.error")
    client = server = None
    handshake_initiated = close_sent = disconnected = False
    close_timer: asyncio.TimerHandle | None = None
    ping_timer = pong_timer = pending_ping_payload = None
    initial_response = None
    close_timeout = 10.0
    frames: Any = ()
    """Of the message that is being received."""
    curr_msg_data_type = "bytes"

    def __init__(  # not uvicorn's, which makes objects that most connections never need
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.config = config
        self.app = config.loaded_app
        self.loop = _loop or asyncio.get_running_loop()
        self.app_state = app_state
        self.connections = server_state.connections
        self.tasks = server_state.tasks
        self.default_headers = server_state.default_headers
        self.ping_interval = config.ws_ping_interval
        self.queue = asyncio.Queue()
        self.writable = Gate()  # type: ignore[assignment]
        self.handshake_complete = self.read_paused = False
        self.head = b""
        """The head with which the handshake is accepted, until it is written: a system call less if a frame follows."""
        self.parser: ServerProtocol | None = None
        """Made when something comes, or is sent, that is not ordinary."""

    @property
    def conn(self) -> ServerProtocol:  # type: ignore[override]
        """Parses what is not ordinary, and writes the closing handshake: most connections need it at their end only."""
        if self.parser is None:
            state = OPEN if self.handshake_complete else CONNECTING
            self.parser = ServerProtocol(state=state, max_size=self.config.ws_max_size, logger=self.logger)
            self.parser.debug = False  # else it logs what it reads, and with that tokens
        return self.parser

    # --- The handshake ---------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.connections.add(self)

    def handshake_received(
        self, method: str, target: bytes, headers: heads.Headers, accepts: bytes = b""
    ) -> None:
        """Answer a request for a WebSocket, whose head was read.

        `accepts` is the value of Sec-WebSocket-Accept, if the request is known to be an ordinary handshake.
        """
        self._accepts = accepts or self._examine(method, target, headers)
        if self._accepts:
            self.scope = self._make_scope(target, headers)
            self.queue.put_nowait({"type": "websocket.connect"})
            task = self.loop.create_task(self.run_asgi())
            task.add_done_callback(self.tasks.discard)
            self.tasks.add(task)

    def _examine(self, method: str, target: bytes, headers: heads.Headers) -> bytes:
        """What to accept a request with; empty: it is no handshake, and was refused."""
        try:
            named = Headers([(name.decode("ascii"), value.decode("latin-1")) for name, value in headers])
            request = Request(target.decode("ascii"), named, method)
        except ValueError:
            # Bytes outside ASCII in the request line or a header's name.
            self._refuse(self.conn.reject(400, "Bad Request"))
            return b""
        response = self.conn.accept(request)
        if response.status_code != 101:
            self._refuse(self._refusal() if response.status_code == 400 else response)
            return b""
        self.parser = None  # the next one begins behind the handshake
        return response.headers["Sec-WebSocket-Accept"].encode()

    def _refusal(self) -> Response:
        """Which header is wrong, without its value: that may be a token, and `websockets` repeats it."""
        name = getattr(self.conn.handshake_exc, "name", "")
        return self.conn.reject(400, f"{name} is missing, or is not what it has to be\n")

    def _refuse(self, response: Response) -> None:
        self.conn.send_response(response)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.handshake_complete = self.close_sent = True
        self.transport.close()

    def _make_scope(self, target: bytes, headers: heads.Headers) -> Any:
        path, _, query = target.partition(b"?")
        root = self.config.root_path
        offered = [value.decode("latin-1") for name, value in headers if name == b"sec-websocket-protocol"]
        return {
            "type": "websocket",
            "asgi": {"version": self.config.asgi_version, "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "wss" if self.transport.get_extra_info("sslcontext") else "ws",
            "server": local_address(self.transport),
            "client": peer_address(self.transport),
            "root_path": root,
            "path": root + unquote(path.decode("ascii")),
            "raw_path": root.encode("ascii") + path,
            "query_string": query,
            "headers": headers,
            "subprotocols": [item.strip() for value in offered for item in value.split(",")],
            "state": self.app_state.copy(),
            "extensions": {"websocket.http.response": {}, EXTENSION: self},
        }

    def accept(self, message: Any) -> None:
        """Write the head with which a handshake is accepted. uvicorn's has the same lines, from several objects."""
        lines = [_SWITCHING % self._accepts]
        for name, value in (*self.default_headers, *message.get("headers", ())):
            lines.append(b"%b: %b" % (name.lower(), value))
        if subprotocol := message.get("subprotocol"):
            lines.append(b"Sec-WebSocket-Protocol: " + subprotocol.encode())
        self.head = b"\r\n".join([*lines, b"", b""])
        self._accepts = b""
        self.handshake_complete = True
        self.start_keepalive()
        self.loop.call_soon(self.write_head)

    def write_head(self) -> None:
        """Write the head, unless that is done. It waits until the end of this turn of the loop for the first frame."""
        if self.head:
            head, self.head = self.head, b""
            self.transport.write(head)

    def shutdown(self) -> None:
        self.write_head()
        super().shutdown()
