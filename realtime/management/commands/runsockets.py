"""`manage.py runsockets`: the socket server."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from django.core.management.base import CommandError, CommandParser

from realtime.management import base


class Command(base.Command):
    app, extra = "realtime.server", "server"
    help = "Serve the WebSocket namespaces. Prints 'ready' once it accepts connections."
    requires_system_checks = ("realtime",)  # neither the URLs nor the models of a project are used

    def add_arguments(self, parser: CommandParser) -> None:
        host, port = os.environ.get("SOCKETS_HOST") or "127.0.0.1", os.environ.get("SOCKETS_PORT") or "8001"
        parser.add_argument("--host", default=host, help="address to listen on (default %(default)s)")
        parser.add_argument("--port", type=int, default=port, help="default %(default)s")
        parser.add_argument(
            "--workers", type=int, default=1, help="instances that share the port (default %(default)s)"
        )

    def handle(self, *, host: str, port: int, workers: int, **_: Any) -> None:
        from realtime.server import uvicorn_server  # noqa: PLC0415  (an extra)

        if workers < 1:
            raise CommandError(f"--workers must be at least 1, got {workers}", returncode=2)
        # uvicorn raises KeyboardInterrupt again once it has stopped.
        with base.listening(host, port), contextlib.suppress(KeyboardInterrupt):
            uvicorn_server.serve(host, port, workers)
