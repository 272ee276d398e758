"""`manage.py runsockets`: the socket server."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from realtime.server import uvicorn_server


class Command(BaseCommand):
    help = "Serve the WebSocket namespaces. Prints 'ready' once it accepts connections."
    requires_system_checks = ("realtime",)  # neither the URLs nor the models of a project are used

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default=os.environ.get("SOCKETS_HOST") or "127.0.0.1")
        parser.add_argument("--port", type=int, default=os.environ.get("SOCKETS_PORT") or "8001")
        parser.add_argument(
            "--workers", type=int, default=1, help="instances that share the port (default 1)"
        )

    def handle(self, *, host: str, port: int, workers: int, **_: Any) -> None:
        if workers < 1:
            raise CommandError(f"--workers must be at least 1, got {workers}", returncode=2)
        if not 0 <= port < 65536:
            raise CommandError(f"--port must be between 0 and 65535, got {port}", returncode=2)
        try:
            with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once it has stopped
                uvicorn_server.serve(host, port, workers)
        except OSError as error:
            raise CommandError(f"cannot listen on {host}:{port}: {error.strerror}", returncode=2) from error
