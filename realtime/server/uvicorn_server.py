"""The server process: uvicorn with our protocols, alone or as several workers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
from types import FrameType

import uvicorn
from uvicorn.supervisors import Multiprocess, multiprocess

from realtime.conf import conf
from realtime.connections.drain import drain
from realtime.server.entrance import Entrance
from realtime.server.keepalive import PING_SECONDS
from realtime.server.setup import spare_the_collector
from realtime.server.websocket_protocol import WebSocketProtocol
from realtime.telemetry import prometheus

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 5
START_SECONDS = 30.0
ACCEPTS = 16
"""Connections that are accepted in one turn of the event loop: libuv accepts one from each socket that it is given."""
TESTED = (0, 54)
"""The newest version of uvicorn that was tested. Its protocol classes, from which ours derive, are no public API."""


class Server(uvicorn.Server):
    """Prints `ready` once it accepts connections, and drains before it stops. A second signal stops it at once."""

    def __init__(self, config: uvicorn.Config, *, says_ready: bool = True) -> None:
        super().__init__(config)
        self._says_ready = says_ready
        self._asked_to_stop = False
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets and several(sockets))
        spare_the_collector()
        if self._says_ready:
            print("ready", flush=True)  # noqa: T201

    def leave(self) -> None:
        """Drain and stop. May be called from any thread, and again."""
        self._asked_to_stop = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would raise the signal again once it has stopped; here the exit status is 0.
        if self._asked_to_stop:
            self.should_exit = self.force_exit = True
        self._asked_to_stop = True

    async def on_tick(self, counter: int) -> bool:
        if self._asked_to_stop and self._drain is None:
            self._drain = asyncio.create_task(drain(), name="drain")
        if self._drain is not None and self._drain.done():
            self.should_exit = True
        return await super().on_tick(counter)


class Worker(multiprocess.Process):
    """One of several instances. It leaves when its supervisor is gone, however that ended."""

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        self.parent_conn.close()  # with a copy of the supervisor's end here, its death would not be noticed
        _ = self.server  # made before two threads ask for it
        super().target(sockets)

    def always_pong(self) -> None:
        try:
            super().always_pong()
        except (EOFError, OSError):
            self.server.leave()

    @property
    def server(self) -> Server:
        if self._server is None:
            self._server = Server(self.config, says_ready=False)
        return self._server  # type: ignore[return-value]


class Workers(Multiprocess):
    """Several instances on one port. Prints `ready` once all of them accept, and passes a second signal on."""

    def init_processes(self) -> None:
        super().init_processes()
        if all(process.wait_until_ready(START_SECONDS) for process in self.processes):
            print("ready", flush=True)  # noqa: T201

    def keep_subprocess_alive(self) -> None:
        super().keep_subprocess_alive()
        prometheus.forget_all_but({process.pid for process in self.processes})

    def join_all(self) -> None:
        self.signal_queue.clear()
        while any(process.exitcode is None for process in self.processes):
            for process in self.processes:
                process.process.join(0.1)
            if self.signal_queue:
                self.signal_queue.clear()
                for process in self.processes:
                    if process.exitcode is None and process.pid is not None:
                        os.kill(process.pid, signal.SIGTERM)


def configuration(host: str, port: int, workers: int = 1) -> uvicorn.Config:
    """uvicorn's configuration for the socket server."""
    return uvicorn.Config(
        "realtime.asgi:application",
        host=host,
        port=port,
        workers=workers,
        loop="uvloop",
        http=Entrance,
        ws=WebSocketProtocol,
        ws_max_size=conf().limits.frame_bytes or 2**31 - 1,
        ws_per_message_deflate=False,  # memory and CPU per connection, for frames of 200 bytes
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PING_SECONDS,
        lifespan="on",
        proxy_headers=False,
        access_log=False,
        log_config=None,
        log_level="warning",  # at INFO it logs the query string of a handshake, and so a token
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


def without_brackets(host: str) -> str:
    """The address, without the brackets that an IPv6 address has in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address, for workers to inherit. `host` may be `[::1]`. Raises `OSError`."""
    family, _, _, _, address = socket.getaddrinfo(
        without_brackets(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
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


def several(sockets: list[socket.socket]) -> list[socket.socket]:
    """Listening sockets, each `ACCEPTS` times.

    Connections that open in the same turn share their questions to Redis, which are most of what one alone costs. With
    one accepted a turn, all would be alone.
    """
    return [*sockets, *(sock.dup() for sock in sockets for _ in range(ACCEPTS - 1))]


def raise_file_limit() -> None:
    """Every connection is a file: use all that the system allows this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def warn_of_a_newer_uvicorn() -> None:
    """Log a warning if the installed uvicorn is newer than what was tested."""
    major, minor, *_ = uvicorn.__version__.split(".")
    if (int(major), int(minor)) > TESTED:
        tested = ".".join(map(str, TESTED))
        logger.warning("uvicorn %s is newer than %s, the newest that was tested", uvicorn.__version__, tested)


def serve(host: str, port: int, workers: int = 1) -> None:
    """Serve until SIGTERM or SIGINT. Raises `OSError` when the address cannot be bound."""
    warn_of_a_newer_uvicorn()
    raise_file_limit()
    sock = bind(host, port)
    config = configuration(host, port, workers)
    try:
        if workers > 1:
            # uvicorn has no option for the class of its workers.
            multiprocess.Process = Worker  # type: ignore[misc]
            with prometheus.shared():
                Workers(config, [sock]).run()
        else:
            Server(config).run(sockets=[sock])
    finally:
        sock.close()
