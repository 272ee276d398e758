"""`manage.py runbridge`: the bridge from the bus to the rooms, and the presence sweeper."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Any

from django.core.management.base import CommandParser

from realtime.management import base


class Command(base.Command):
    app, extra = "realtime.server", "asgi"
    help = "Deliver what backbones publish, and run the presence sweeper. Prints 'ready' once subscribed and caught up."
    requires_system_checks = ("realtime",)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--metrics-host", default="127.0.0.1", help="address for /metrics (default %(default)s)"
        )
        parser.add_argument("--metrics-port", type=int, help="serve /metrics on this port (default: on none)")

    def handle(self, *, metrics_host: str, metrics_port: int | None, **_: Any) -> None:
        import uvloop  # noqa: PLC0415  (an extra)

        from realtime.telemetry import prometheus  # noqa: PLC0415

        with contextlib.ExitStack() as stack:
            if metrics_port is not None:
                with base.listening(metrics_host, metrics_port, "--metrics-port"):
                    stack.enter_context(prometheus.port(metrics_host, metrics_port))
            stack.enter_context(contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt))
            uvloop.run(self._run())

    async def _run(self) -> None:
        from realtime.inline.delivery import deliver  # noqa: PLC0415
        from realtime.server.vitals import watch  # noqa: PLC0415

        main, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert main is not None  # noqa: S101
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, main.cancel)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch())
            tasks.create_task(deliver(self._ready))

    def _ready(self) -> None:
        from realtime.server.setup import spare_the_collector  # noqa: PLC0415

        spare_the_collector()
        self.stdout.write("ready")
        self.stdout.flush()
