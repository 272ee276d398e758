"""`manage.py runweb`: the web side."""

from __future__ import annotations

import os
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser

from realtime.management import base


class Command(base.Command):
    app, extra = "realtime.web", "web"
    help = (
        "Serve the admin, the token endpoint and, in development, the demo. "
        "Prints 'ready' once it accepts connections."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        host, port = os.environ.get("WEB_HOST") or "127.0.0.1", os.environ.get("WEB_PORT") or "8000"
        parser.add_argument("--host", default=host, help="address to listen on (default %(default)s)")
        parser.add_argument("--port", type=int, default=port, help="default %(default)s")

    def handle(self, *, host: str, port: int, **_: Any) -> None:
        from realtime.web import serving  # noqa: PLC0415  (an extra)

        if not (settings.DEBUG or settings.ALLOWED_HOSTS):
            raise CommandError(
                "ALLOWED_HOSTS is not set: with DEBUG off every request would be refused", returncode=2
            )
        with base.listening(host, port):
            serving.serve(host, port)
