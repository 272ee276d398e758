"""The web side on uvicorn."""

from __future__ import annotations

import contextlib
import socket

import uvicorn

from realtime.server.http_protocol import HttpProtocol
from realtime.server.uvicorn_server import SHUTDOWN_SECONDS, bind


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print("ready", flush=True)  # noqa: T201


def serve(host: str, port: int) -> None:
    """Serve until a signal ends it. Raises `OSError` when the address cannot be bound."""
    config = uvicorn.Config(
        "realtime.web.asgi:application",
        loop="uvloop",
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        access_log=False,  # it writes query strings
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    with (
        bind(host, port) as sock,
        contextlib.suppress(KeyboardInterrupt),
    ):  # uvicorn raises it again at its end
        _Server(config).run(sockets=[sock])
