"""uvicorn as we serve with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
from typing import Any

import uvicorn
from redis.exceptions import RedisError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.supervisors.multiprocess import Multiprocess, Process
from websockets.http11 import Request

from realtime.closing import CloseCode
from realtime.conf import conf
from realtime.outlet import EXTENSION

logger = logging.getLogger(__name__)

PING_SECONDS = 20.0
"""Between WebSocket pings, and for the pong: a peer that vanished is noticed within twice that."""
SHUTDOWN_SECONDS = 5
START_SECONDS = 30.0
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, that does not wait for ever for the rest of a request.

    `HttpToolsProtocol` is no public API either.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_request()

    def on_message_complete(self) -> None:
        self._forget_deadline()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._forget_deadline()
        super().handle_websocket_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        patience = conf().limits.handshake_seconds
        if patience and self._deadline is None:
            self._deadline = self.loop.call_later(patience, self.transport.close)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol, made calm about what a client can send.

    `WebSocketsSansIOProtocol` is no public API: uvicorn's minor version is pinned, and a test fails when it
    changes.
    """

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            # The headers are too long or too many. uvicorn would wait for a request that never comes.
            self.transport.write(b"".join(self.conn.data_to_send()) or BAD_REQUEST)
            self.handshake_complete = self.close_sent = True
            self.transport.close()

    def handle_connect(self, event: Request) -> None:
        try:
            super().handle_connect(event)
            if self.handshake_initiated and not self.handshake_complete:
                extensions: Any = self.scope["extensions"]
                extensions[EXTENSION] = self
        except UnicodeError:
            # Bytes outside ASCII in the request line or a header's name.
            self.send_400_response()

    def write_frames(self, frames: bytes) -> None:
        """The extension's frame writer: finished frames go out as they are."""
        if self.handshake_complete and not (self.close_sent or self.disconnected):
            self.transport.write(frames)

    def send_400_response(self) -> None:
        """Refuse a request that is not HTTP."""
        self.conn.send_response(self.conn.reject(400, "Bad Request"))
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.handshake_complete = self.close_sent = True
        self.transport.close()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                # uvicorn does the same, and writes a stack trace into the log.
                self.frames = []
                self.conn.send_close(CloseCode.INVALID_UTF8)
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()


class Server(uvicorn.Server):
    """Says `ready` once it accepts, and tells Redis goodbye when it stops."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.announce()

    def announce(self) -> None:
        """Whoever started us may go on."""
        print("ready", flush=True)  # noqa: T201

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        from presence.node import PresenceNode  # noqa: PLC0415  (needs the app registry)
        from realtime.node import Node  # noqa: PLC0415

        await super().shutdown(sockets)
        with contextlib.suppress(RedisError, TimeoutError):
            async with asyncio.timeout(1):
                await PresenceNode.current().close()
        await Node.current().stop()


class _WorkerServer(Server):
    def announce(self) -> None:
        """The supervisor does, once all workers accept."""


class _Worker(Process):
    @property
    def server(self) -> uvicorn.Server:
        if self._server is None:
            self._server = _WorkerServer(self.config)
        return self._server


class Workers(Multiprocess):
    """Several processes on one port; says `ready` once all of them accept."""

    def init_processes(self) -> None:
        self.processes = [_Worker(self.config, self.sockets) for _ in range(self.processes_num)]
        for process in self.processes:
            process.start()
        if all(process.wait_until_ready(START_SECONDS) for process in self.processes):
            print("ready", flush=True)  # noqa: T201


def configuration(host: str, port: int, workers: int = 1) -> uvicorn.Config:
    """How the socket server is served."""
    return uvicorn.Config(
        "realtime.asgi:application",
        host=host,
        port=port,
        workers=workers,
        loop="uvloop",
        http=HttpProtocol,
        ws=WebSocketProtocol,
        ws_max_size=conf().limits.frame_bytes or 2**31 - 1,
        ws_per_message_deflate=False,  # memory and CPU per connection, for frames of 200 bytes
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PING_SECONDS,
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket's address, taken. Raises `OSError`."""
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    sock.set_inheritable(True)
    return sock


def raise_file_limit() -> None:
    """Every connection is a file: use all that the system allows this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(host: str, port: int, workers: int = 1) -> None:
    """Serve until SIGTERM or SIGINT. Raises `OSError` when the address cannot be had."""
    raise_file_limit()
    sock = bind(host, port)
    config = configuration(host, port, workers)
    try:
        if workers > 1:
            Workers(config, [sock]).run()
        else:
            Server(config).run(sockets=[sock])
    finally:
        sock.close()
