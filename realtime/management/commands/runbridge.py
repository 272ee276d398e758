"""`manage.py runbridge`: from the bus to the rooms, and the presence sweeper."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Any

import uvloop
from django.core.management.base import BaseCommand

from presence.events import announcements
from presence.sweeper import Sweeper
from realtime.bridge import BUS, Bridge, Source

PRESENCE = Source("presence", b"transition", announcements, keep=86400)


class Command(BaseCommand):
    help = "Deliver what backbones publish, and judge presence. Prints 'ready' once subscribed and caught up."

    def handle(self, **_: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
            uvloop.run(self._run())

    async def _run(self) -> None:
        bridge = Bridge([BUS, PRESENCE])
        tasks = [asyncio.create_task(bridge.run()), asyncio.create_task(Sweeper().run())]
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, tasks[0].cancel)
        waiting = asyncio.create_task(bridge.ready.wait())
        await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
        if bridge.ready.is_set():
            self.stdout.write("ready")
            self.stdout.flush()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, waiting):
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
