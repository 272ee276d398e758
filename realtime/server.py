"""uvicorn as we serve with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket

import uvicorn
from redis.exceptions import RedisError
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from realtime.conf import conf
from realtime.protocol import HttpProtocol, WebSocketProtocol

logger = logging.getLogger(__name__)

PING_SECONDS = 20.0
"""Between WebSocket pings, and for the pong: a peer that vanished is noticed within twice that."""
SHUTDOWN_SECONDS = 5
START_SECONDS = 30.0


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
        proxy_headers=False,
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
