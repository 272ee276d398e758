"""`manage.py runweb`: the web side."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

import uvicorn
from django.core.management.base import BaseCommand, CommandError, CommandParser

from realtime.server.http_protocol import HttpProtocol
from realtime.server.uvicorn_server import SHUTDOWN_SECONDS, bind


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print("ready", flush=True)


class Command(BaseCommand):
    help = (
        "Serve the admin, the token endpoint and, in development, the demo. "
        "Prints 'ready' once it accepts connections."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default=os.environ.get("WEB_HOST") or "127.0.0.1")
        parser.add_argument("--port", type=int, default=os.environ.get("WEB_PORT") or "8000")

    def handle(self, *, host: str, port: int, **_: Any) -> None:
        if not 0 <= port < 65536:
            raise CommandError(f"--port must be between 0 and 65535, got {port}", returncode=2)
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
        try:
            sock = bind(host, port)
        except OSError as error:
            raise CommandError(f"cannot listen on {host}:{port}: {error.strerror}", returncode=2) from error
        with sock, contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once it has stopped
            _Server(config).run(sockets=[sock])
