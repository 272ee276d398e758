"""The bridge and the sweeper in a running event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from presence.sweeper import Sweeper
from realtime.bridge.bridge import Bridge
from realtime.bridge.bus_entry import BUS
from realtime.management.commands.runbridge import PRESENCE


async def run_bridge(on_ready: Callable[[], object]) -> None:
    """Deliver until cancelled; call `on_ready` once everything that is published from then on is delivered."""
    bridge = Bridge([BUS, PRESENCE])
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bridge.run(), name="bridge")
        tasks.create_task(Sweeper().run(), name="sweeper")
        await bridge.ready.wait()
        on_ready()
